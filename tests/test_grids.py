"""Grids: every one runs from 1 to 0, and equally spaced in what it says."""

import jax
import numpy as np
import pytest
from helpers import SCHEDULES
from hypothesis import given
from hypothesis import strategies as st

import jaxdiff as jd

every = pytest.mark.parametrize("name", SCHEDULES)


@every
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 1000])
def test_grids_fall_from_one_to_zero(name: str, num_steps: int) -> None:
    schedule = SCHEDULES[name]()
    for ts in (
        jd.grids.uniform(num_steps),
        jd.grids.quadratic(num_steps),
        jd.grids.log_snr(schedule, num_steps),
        jd.grids.karras(schedule, num_steps),
    ):
        assert ts.shape == (num_steps + 1,)
        assert ts[0] == 1
        assert ts[-1] == 0
        assert np.all(np.diff(ts) < 0)


@given(num_steps=st.integers(1, 300))
def test_uniform_is_exact(num_steps: int) -> None:
    with jax.enable_x64(True):
        np.testing.assert_array_equal(jd.grids.uniform(num_steps), np.arange(num_steps, -1, -1) / num_steps)


def test_quadratic_has_even_square_roots(x64: None) -> None:
    np.testing.assert_allclose(np.diff(np.sqrt(jd.grids.quadratic(10))), -0.1, rtol=1e-12)


def test_log_snr_spacing(x64: None) -> None:
    finite = jd.schedules.edm()
    np.testing.assert_allclose(np.diff(finite.log_snr(jd.grids.log_snr(finite, 8)), 2), 0, atol=1e-10)
    infinite = jd.schedules.linear()  # lambda(0) = inf: the last step is set apart
    ts = jd.grids.log_snr(infinite, 8)
    np.testing.assert_allclose(ts[-2], 1e-3, rtol=1e-9)
    np.testing.assert_allclose(np.diff(infinite.log_snr(ts[:-1]), 2), 0, atol=1e-9)


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_is_their_equation_5(rho: float, x64: None) -> None:
    schedule = jd.schedules.edm(0.002, 80.0)
    i = np.arange(19) / 18
    expected = (80 ** (1 / rho) + i * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    np.testing.assert_allclose(schedule.sigma(jd.grids.karras(schedule, 18, rho)), expected, rtol=1e-9)


@every
def test_grids_of_a_traced_schedule(name: str) -> None:
    schedule = SCHEDULES[name]()
    np.testing.assert_allclose(
        jax.jit(lambda s: jd.grids.log_snr(s, 6))(schedule), jd.grids.log_snr(schedule, 6), atol=1e-5, rtol=1e-4
    )  # an inverse in float32


BAD = {
    "no steps": (lambda: jd.grids.uniform(0), ValueError, "num_steps: expected a positive int, got 0"),
    "a float": (lambda: jd.grids.quadratic(2.0), TypeError, "num_steps: expected a positive int"),
    "rho": (lambda: jd.grids.karras(jd.schedules.edm(), 4, 0.0), ValueError, "rho: expected a positive power"),
    "margin": (lambda: jd.grids.log_snr(jd.schedules.edm(), 4, margin=0.5), ValueError, "margin: expected a distance"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
