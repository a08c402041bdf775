"""Grids: every one runs from 1 to 0, and equally spaced in what it says."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SCHEDULES, asymmetric_mixture, every_schedule, rejects, slow
from hypothesis import given
from hypothesis import strategies as st

import jaxdiff as jd

every = every_schedule()


@every
@pytest.mark.parametrize("num_steps", [1, slow(2), slow(3), slow(10), 1000])
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
        np.testing.assert_array_equal(
            jd.grids.uniform(num_steps), np.arange(num_steps, -1, -1) / num_steps
        )


def test_quadratic_has_even_square_roots(x64: None) -> None:
    np.testing.assert_allclose(np.diff(np.sqrt(jd.grids.quadratic(10))), -0.1, rtol=1e-12)


def test_log_snr_spacing(x64: None) -> None:
    finite = jd.schedules.edm()
    np.testing.assert_allclose(
        np.diff(finite.log_snr(jd.grids.log_snr(finite, 8)), 2), 0, atol=1e-10
    )
    infinite = jd.schedules.linear()  # lambda(0) = inf: the last step is set apart
    ts = jd.grids.log_snr(infinite, 8)
    np.testing.assert_allclose(ts[-2], 1e-3, rtol=1e-9)
    np.testing.assert_allclose(np.diff(infinite.log_snr(ts[:-1]), 2), 0, atol=1e-9)


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_is_their_equation_5(rho: float, x64: None) -> None:
    schedule = jd.schedules.edm(0.002, 80.0)
    i = np.arange(19) / 18
    expected = (80 ** (1 / rho) + i * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    np.testing.assert_allclose(
        schedule.sigma(jd.grids.karras(schedule, 18, rho)), expected, rtol=1e-9
    )


@every
def test_grids_of_a_traced_schedule(name: str) -> None:
    schedule = SCHEDULES[name]()
    np.testing.assert_allclose(
        jax.jit(lambda s: jd.grids.log_snr(s, 6))(schedule),
        jd.grids.log_snr(schedule, 6),
        atol=1e-5,
        rtol=1e-4,
    )  # an inverse in float32


@every
def test_grids_between_other_ends(name: str, x64: None) -> None:
    schedule = SCHEDULES[name]()
    for ts in (
        jd.grids.uniform(5, start=0.9, end=0.2),
        jd.grids.quadratic(5, start=0.9, end=0.2),
        jd.grids.log_snr(schedule, 5, start=0.9, end=0.2),
        jd.grids.karras(schedule, 5, start=0.9, end=0.2),
    ):
        np.testing.assert_array_equal(ts[jnp.array([0, -1])], [0.9, 0.2])
        assert np.all(np.diff(ts) < 0)
    np.testing.assert_allclose(
        np.diff(schedule.log_snr(jd.grids.log_snr(schedule, 5, start=0.9, end=0.2)), 2),
        0,
        atol=1e-8,
    )


@pytest.mark.parametrize("ends", [{"end": 0.9995}, {"start": 0.0005}])
def test_grids_within_a_steep_end_still_fall(ends: dict[str, float], x64: None) -> None:
    assert np.all(np.diff(jd.grids.log_snr(jd.schedules.rectified_flow(), 4, **ends)) < 0)


def test_karras_ends_at_its_margin() -> None:
    schedule = jd.schedules.cosine(log_snr_min=-20)
    np.testing.assert_allclose(
        jd.grids.karras(schedule, 10, 1.0)[-2], 1e-3, rtol=1e-2
    )  # an inverse in float32


@pytest.mark.parametrize(
    ("spacing", "steps"),
    [  # Lin et al. 2023, Table 2, for T = 1000 and 10 steps
        ("leading", [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        ("linspace", [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]),
        ("trailing", [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]),
    ],
)
def test_subsequences_are_the_table_s(spacing: str, steps: list[int], x64: None) -> None:
    np.testing.assert_allclose(
        jd.grids.subsequence(1000, 10, spacing), np.array([*steps, 0]) / 1000, rtol=1e-12
    )


def test_optimised_is_the_best_of_all_grids(x64: None) -> None:
    """Dynamic programming against every choice of three inner candidates out of eight."""
    schedule = jd.schedules.edm(0.1, 10.0)
    lambdas = np.linspace(*np.asarray(schedule.log_snr(np.array([1.0, 0.0]))), 10)
    error = 1 / (1 + np.exp(lambdas)) ** 0.7
    ts = jd.grids.optimised(schedule, 4, jnp.asarray(lambdas), jnp.asarray(error))

    def cost(chosen: np.ndarray) -> float:
        return float(np.sum(np.diff(np.exp(lambdas[chosen])) * error[chosen[:-1]]))

    best = min(
        (np.array([0, *inner, 9]) for inner in itertools.combinations(range(1, 9), 3)), key=cost
    )
    np.testing.assert_allclose(schedule.log_snr(ts), lambdas[best], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_optimised_with_steep_ends_lowers_the_gap() -> None:
    """On the oracle, the sum it minimises is below that of the grids it is an alternative to."""
    schedule, mixture = jd.schedules.cosine(), asymmetric_mixture()
    ts = schedule.time(jnp.linspace(-14, 12, 150))
    x_0 = mixture.sample(jax.random.key(0), (2000,))
    denoiser = mixture.denoiser(schedule)
    error = jax.vmap(
        lambda t: jd.losses.denoising_error(jax.random.key(1), denoiser, schedule, x_0, t=t).mean()
    )(ts)
    error = jnp.minimum.accumulate(error)  # a mmse falls; Monte Carlo lets it rise by a hair

    def gap(grid: jax.Array) -> float:
        lambdas = schedule.log_snr(grid[1:-1])
        at = jnp.exp(jnp.interp(lambdas, schedule.log_snr(ts), jnp.log(error)))
        return float(jnp.sum(jnp.diff(jnp.exp(lambdas)) * at[:-1]))

    best = jd.grids.optimised(schedule, 12, schedule.log_snr(ts), error)
    assert best.shape == (13,)
    assert np.all(np.diff(best) < 0)
    assert gap(best) < 0.95 * min(
        gap(jd.grids.log_snr(schedule, 12)), gap(jd.grids.karras(schedule, 12))
    )


@pytest.mark.slow
def test_denoising_error_is_the_mmse_of_a_gaussian(x64: None) -> None:
    """sum_i c_i sigma^2 / (alpha^2 c_i + sigma^2), n = 20,000: within 5 standard errors."""
    schedule, variances = jd.schedules.linear(), np.array([2.0, 0.3])
    data = jd.oracles.gaussian(jnp.array([0.5, -1.0]), jnp.asarray(variances))
    x_0, (alpha, sigma) = data.sample(jax.random.key(0), (20_000,)), schedule.alpha_sigma(0.4)
    errors = jd.losses.denoising_error(
        jax.random.key(1), data.denoiser(schedule), schedule, x_0, t=0.4
    )
    exact = np.sum(variances * sigma**2 / (alpha**2 * variances + sigma**2))
    assert abs(errors.mean() - exact) < 5 * errors.std() / np.sqrt(20_000)


TABLE = (jnp.linspace(-5.0, 5.0, 6), jnp.ones(6))
BAD = {
    "no steps": (lambda: jd.grids.uniform(0), ValueError, "num_steps: expected a positive int, got 0"),
    "a float": (lambda: jd.grids.quadratic(2.0), TypeError, "num_steps: expected a positive int"),
    "rho": (lambda: jd.grids.karras(jd.schedules.edm(), 4, 0.0), ValueError, "rho: expected a power of at least 0.5"),
    "ends": (lambda: jd.grids.uniform(4, start=0.2, end=0.3), ValueError, "end: expected a time below start = 0.2, got 0.3"),
    "spacing": (lambda: jd.grids.subsequence(10, 2, "odd"), ValueError, "spacing: expected one of 'leading'"),
    "offset": (lambda: jd.grids.subsequence(10, 2, "leading", offset=5), ValueError, "offset: expected"),
    "offset of others": (lambda: jd.grids.subsequence(10, 2, offset=1), ValueError, "offset: expected"),
    "too many": (lambda: jd.grids.subsequence(10, 20), ValueError, "num_steps: expected at most total = 10 steps"),
    "table": (lambda: jd.grids.optimised(jd.schedules.edm(), 99, *TABLE), ValueError, "num_steps: expected 1 to 7, got 99"),
    "error": (lambda: jd.grids.optimised(jd.schedules.edm(), 2, TABLE[0], -TABLE[1]), ValueError, "error: expected positive"),
    "order": (lambda: jd.grids.optimised(jd.schedules.edm(), 2, -TABLE[0], TABLE[1]), ValueError, "log_snr: expected increasing"),
    "margin": (lambda: jd.grids.log_snr(jd.schedules.edm(), 4, margin=0.5), ValueError, "margin: expected a distance"),
}  # fmt: skip


test_bad_input = rejects(BAD)
