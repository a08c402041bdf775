"""Every test runs on four forced CPU devices, under rank promotion "raise", with warnings as errors."""

import gc
import itertools
import math
import os
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

# Most of the suite's time is compilation of small programs that run for milliseconds: LLVM need not optimise them, and
# one plain module a program takes a quarter of the time of fusion emitters and 32 parallel modules. The backend reads
# the flags as it starts; what the tests start themselves (scripts, a notebook) is compiled as for users, but where a
# test asks for `plain_programs`.
# Devices wait for each other for longer than 40 s on a busy machine, after which XLA would end the process.
# An XLA that does not know a flag ends the process: the newer ones are for versions that were tried.
_flags = os.environ.get("XLA_FLAGS")
_added = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_collective_call_terminate_timeout_seconds=1200",
]
if jax.__version__.startswith("0.10."):
    _added += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
PLAIN = " ".join([_flags or "", *_added])
os.environ["XLA_FLAGS"] = PLAIN
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


@pytest.hookimpl(optionalhook=True)  # without xdist there is none
def pytest_xdist_auto_num_workers() -> int:
    """As many workers as there are cores for this process, not cores of the machine."""
    return _machine.cores()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files: workers that end together waste no time."""
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish() -> None:
    """Look for cycles rarely, and not among the modules: tracing makes so many objects that a twentieth of the time went there."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Drop compiled programs before they fill the process's memory map, which has room for 65530 pieces on Linux."""
    yield
    finished = next(_finished)
    if finished % (100 if MEMORY_MAP is None else 20) == 0 and _pieces() > 10_000:
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
def plain_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that the test starts compile as the tests do, not as for users."""
    monkeypatch.setenv("XLA_FLAGS", PLAIN)


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
