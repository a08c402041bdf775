"""Every test runs on four forced CPU devices, under rank promotion "raise", with warnings as errors."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

# On the CPU wherever it runs; JAX_PLATFORMS=cuda asks for a GPU, where the tests of several devices need several.
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 4)  # before the backend starts: chex skips its pmap variant on one device
jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of the suite's time is compilation of small programs that run for milliseconds: LLVM need not optimise them. The
# backend reads the flags as it starts; what the tests start themselves (scripts, a notebook) is compiled as for users.
# Devices wait for each other for longer than 40 s on a busy machine, after which XLA would end the process.
_flags = os.environ.get("XLA_FLAGS")
os.environ["XLA_FLAGS"] = " ".join(
    [_flags or "", "--xla_backend_optimization_level=0", "--xla_cpu_collective_call_terminate_timeout_seconds=1200"]
)
jax.devices()
os.environ.pop("XLA_FLAGS") if _flags is None else os.environ.update(XLA_FLAGS=_flags)

# Compilation makes a first example slow and says nothing about the property; a fixed seed keeps CI repeatable.
hypothesis.settings.register_profile("jaxdiff", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("jaxdiff")


_finished = itertools.count(1)
FIRST = ("test_notebooks.py", "test_scripts.py", "test_training.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest: workers that end together waste no time."""
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Drop compiled programs now and then: thousands of them would fill the process's memory map."""
    yield
    if next(_finished) % 100 == 0:
        jax.clear_caches()


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
