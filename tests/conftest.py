"""Every test runs on four forced CPU devices, under rank promotion "raise", with warnings as errors."""

import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
from helpers import ProgramsOnSeveralDevices

from jaxdiff import _machine

# On the CPU wherever it runs; JAX_PLATFORMS=cuda asks for a GPU, where the tests of several devices need several.
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update(
    "jax_num_cpu_devices", 4
)  # before the backend starts: chex skips its pmap variant on one device
jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of the suite's time is compilation of small programs that run for milliseconds: LLVM need not optimise them. The
# backend reads the flags as it starts; what the tests start themselves (scripts, a notebook) is compiled as for users.
# Devices wait for each other for longer than 40 s on a busy machine, after which XLA would end the process.
_flags = os.environ.get("XLA_FLAGS")
os.environ["XLA_FLAGS"] = " ".join(
    [
        _flags or "",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_collective_call_terminate_timeout_seconds=1200",
    ]
)
jax.devices()
os.environ.pop("XLA_FLAGS") if _flags is None else os.environ.update(XLA_FLAGS=_flags)

# Compilation makes a first example slow and says nothing about the property; a fixed seed keeps CI repeatable.
hypothesis.settings.register_profile("jaxdiff", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("jaxdiff")


_finished = itertools.count(1)
MEMORY_MAP = Path("/proc/self/maps") if Path("/proc/self/maps").exists() else None
FIRST = (
    "test_notebooks.py",
    "test_scripts.py",
    "test_posterior_script.py",
    "test_posterior.py",
    "test_solvers.py",
)


# The longest cases that have a shorter relative in the suite: with `make test-slow`, beside what is marked in place.
LONG = re.compile(
    "|".join(
        [
            r"test_benchmarks\.py::test_(calibration_tells|an_interrupted|the_denoiser_is_the_oracles\[8\])",
            r"test_binomial\.py::test_the_estimated_bound",
            r"test_bound\.py::test_(it_is_the_limit|the_ends_are_learned|descent_spends)",
            r"test_chain\.py::test_(a_path_and_its|hybrid_trains|random_terms|row_i|the_gap_shrinks|the_two_sided_gap)",
            r"test_chain\.py::test_(probabilities_of_all_images|terms_are_the_path_bound_on_common_noise)",
            r"test_chain\.py::test_the_exact_law_lies_between_the_bounds\[(64-optimal|8-large)",
            r"test_chain\.py::(TestVariants|test_mutants_leave)",
            r"test_composed\.py::test_(guidance_as_a_density|one_model_is_itself|a_product_of_mixtures|equal_normal|moves_hold_the_product\[(metropolis|hamiltonian))",
            r"test_data\.py::test_mnist_through_tfds",
            r"test_discrete_chain\.py::test_(annealing|mutants_are|gaussian_data_on_levels|every_estimator.*\[(0\.9|large-0\.3))",
            r"test_flow_density\.py::test_(mutants|hutchinson|order_of|adaptive|the_density_integrates)",
            r"test_grids\.py::test_optimised_with_steep_ends",
            r"test_kernels\.py::test_sampling_reproduces_the_oracle.*ddpm_1000",
            r"test_kernels\.py::test_gradients_through_the_sampler_are_finite\[(linear|sigmoid)",
            r"test_metrics\.py::test_p_values",
            r"test_moves\.py::test_(acceptance|mala_holds_its_target_at_any_size\[0\.02)",
            r"test_observations\.py::test_(a_learned_variance|no_row_sees_another\[(dps|tmpd|mmps)|mmps_is_exact.*(cosine|flow))",
            r"test_oracles\.py::test_(25_components|components_in_turns|three_forms|denoised_covariance|the_empirical_denoiser)",
            r"test_posterior\.py::test_(tilted_converges|repeated_and_surplus|denoising_is|problems_are_vmapped)",
            r"test_posterior\.py::test_(the_perfect_twist_rejects|calibration_of|a_zero_likelihood_rejects|one_run_of_many)",
            r"test_posterior\.py::test_moments_and_modes_of_the_posterior\[mcgdiff_believing",
            r"test_posterior\.py::test_mutants_of_the_driver_are_rejected\[(none|forgets|leaves|never)",
            r"test_posterior\.py::test_(evidence_picks|split_gibbs|the_unweighted_bias.*lambda)",
            r"test_posterior\.py::test_evidence_(under_every_resampling\[(multinomial|stratified|residual)|is_unbiased)",
            r"test_prediction\.py::test_a_perfect_network_of_any_kind_is_the_oracle\[.*ddpm",
            r"test_reproduce_2015\.py::test_(a_swiss_roll|heartbeats_stop)",
            r"test_sampling\.py::test_systematic_resampling",
            r"test_scripts\.py::test_(a_likelihood_run|rates_of|comparing_samplers|a_toy_density|ctrl_c_and_kill)",
            r"test_solvers\.py::test_(order|gradients_through_the_solvers_are_finite)\[.*rectified_flow",
            r"test_solvers\.py::test_(order_one_is_ddim_and_with_noise_ddpm\[(sigmoid|linear|ddpm)|real_digits)",
            r"test_solvers\.py::test_(the_adaptive_solver_takes_a_scale|gradients.*unipc_3|stochastic.*euler_maruyama)",
            r"test_solvers\.py::test_encoding_and_decoding_is_the_identity_to_the_order\[(dpmpp_2m|.*linear)",
            r"test_solvers\.py::test_(order\[(euler|dpmpp_1s|unipc_1)|every_prediction_samples_alike\[heun|the_affine_chain.*flow)",
            r"test_solvers\.py::test_a_first_step_has_no_history\[rectified",
            r"test_training\.py::test_memory_is_one",
            r"test_work\.py::test_(annealing_|entropy_production|crooks_and_bennett_on_a_chain)",
            r"test_zoo\.py::test_it_knows",
        ]
    )
)


@pytest.hookimpl(optionalhook=True)  # without xdist there is none
def pytest_xdist_auto_num_workers() -> int:
    """As many workers as there are cores for this process, not cores of the machine."""
    return _machine.cores()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the long cases, and start with the longest of the rest: workers that end together waste no time."""
    for item in items:
        if LONG.search(item.nodeid):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Drop compiled programs before they fill the process's memory map, which has room for 65530 pieces on Linux."""
    yield
    finished = next(_finished)
    if finished % (100 if MEMORY_MAP is None else 20) == 0 and _pieces() > 20_000:
        jax.clear_caches()


def _pieces() -> float:
    """Pieces of the memory map; many where nobody counts them."""
    return math.inf if MEMORY_MAP is None else MEMORY_MAP.read_bytes().count(b"\n")


@pytest.fixture(autouse=True)
def only_mapped_functions_on_several_devices() -> Iterator[None]:
    """Refuse an array on several devices that is computed on outside a mapped function: enough of them hang a run."""
    with ProgramsOnSeveralDevices() as found:
        yield
    assert not found, "read the shard, or let the mapped function return it: " + "; ".join(found)


@pytest.fixture
def x64() -> Iterator[None]:
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test in both precisions."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(scope="session")
def mnist_source() -> Path:
    """The folder of MNIST's four files, which are no part of the repository: tests that need them skip without."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "mnist"
    folder = Path(os.environ.get("JAXDIFF_MNIST_DIR", beside))
    if not folder.is_dir():
        pytest.skip(f"MNIST's IDX files are not in {folder}; set JAXDIFF_MNIST_DIR to their folder")
    return folder
