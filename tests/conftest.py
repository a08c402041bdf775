"""Every test runs on four forced CPU devices, under rank promotion "raise", with warnings as errors."""

from collections.abc import Iterator

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)  # before the backend starts: chex skips its pmap variant on one device
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes a first example slow and says nothing about the property; a fixed seed keeps CI repeatable.
hypothesis.settings.register_profile("jaxdiff", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("jaxdiff")


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
