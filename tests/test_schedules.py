"""Schedules: one battery for every family, then what each one's paper says of it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from helpers import FAMILY, SCHEDULES, rejects
from hypothesis import given
from hypothesis import strategies as st

import jaxdiff as jd

EPS = {"float32": 1e-6, "float64": 1e-14}  # a few roundings
TIMES = np.concatenate(
    [[0.0, 1e-12, 1e-6, 1e-3], np.linspace(0.01, 0.99, 37), [0.999, 1 - 1e-6, 1.0]]
)

every = pytest.mark.parametrize("name", SCHEDULES)


@every
def test_family_constraint(name: str, dtype: str) -> None:
    alpha, sigma = SCHEDULES[name]().alpha_sigma(jnp.asarray(TIMES, dtype))
    total = {"vp": alpha**2 + sigma**2, "ve": alpha, "flow": alpha + sigma}[FAMILY[name]]
    np.testing.assert_allclose(total, 1, rtol=4 * EPS[dtype])
    assert alpha.dtype == sigma.dtype == dtype


@every
def test_log_snr_is_the_log_of_the_ratio(name: str, dtype: str) -> None:
    schedule = SCHEDULES[name]()
    t = jnp.asarray(TIMES, dtype)
    alpha, sigma = schedule.alpha_sigma(t)
    # Rounding of a logarithm up to 80 in size, and of 1 - t near t = 1, where a flow's alpha is small.
    ratio = 2 * (jnp.log(alpha) - jnp.log(sigma))
    np.testing.assert_allclose(
        schedule.log_snr(t), ratio, rtol=20 * EPS[dtype], atol=200 * EPS[dtype]
    )


@every
def test_log_snr_decreases_strictly(name: str, x64: None) -> None:
    assert np.all(np.diff(SCHEDULES[name]().log_snr(jnp.linspace(0, 1, 5001))) < 0)


@jax.jit
def there_and_back(schedule: jd.Schedule, t: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """lambda(t), lambda(t(lambda(t))), lambda'(t)."""
    log_snr, slope = jax.value_and_grad(schedule.log_snr)(t)
    return log_snr, schedule.log_snr(schedule.time(log_snr)), slope


@every
@given(t=st.floats(0, 1))
def test_time_inverts_log_snr(name: str, t: float) -> None:
    with jax.enable_x64(True):
        log_snr, again, slope = there_and_back(SCHEDULES[name](), t)
        # The inverse is compared where it is well conditioned: on lambda. Rounding of t moves lambda by lambda' ulp(t).
        np.testing.assert_allclose(again, log_snr, atol=1e-9 + abs(float(slope)) * 1e-13)


@every
def test_end_points_are_finite_with_finite_gradients(name: str, dtype: str) -> None:
    schedule = SCHEDULES[name]()
    found = jax.jit(
        lambda t: [jax.value_and_grad(f)(t) for f in (schedule.log_snr, schedule.alpha, schedule.sigma)]
    )  # fmt: skip
    for t in (0.0, 1e-30, 1.0):
        assert np.all(np.isfinite(found(jnp.asarray(t, dtype))))


@every
def test_velocity_is_the_derivative(name: str, x64: None) -> None:
    schedule = SCHEDULES[name]()
    t, h = jnp.array([0.2003, 0.5007, 0.8001]), 1e-6  # inside a step of the tables
    rates = schedule.velocity(t)
    slopes = [
        (hi - lo) / (2 * h)
        for hi, lo in zip(schedule.alpha_sigma(t + h), schedule.alpha_sigma(t - h), strict=True)
    ]
    np.testing.assert_allclose(
        rates, slopes, rtol=1e-6, atol=1e-8
    )  # central difference: h^2 and rounding / h


@pytest.mark.parametrize(
    "betas", [np.linspace(1e-4, 2e-2, 1000), np.asarray(jd.schedules.cosine_betas(50), float)]
)
def test_from_betas_is_the_ddpm_recursion(betas: np.ndarray, x64: None) -> None:
    schedule = jd.schedules.from_betas(betas)
    alpha_bar, expected = 1.0, []
    for beta in betas:
        alpha_bar *= 1 - beta
        expected.append(alpha_bar)
    t = jnp.arange(1, len(betas) + 1) / len(betas)
    alpha, sigma = schedule.alpha_sigma(t)
    np.testing.assert_allclose(alpha**2, expected, rtol=1e-12)
    np.testing.assert_allclose(sigma**2, 1 - np.asarray(expected), rtol=1e-12)


def test_from_betas_traced_equals_concrete(x64: None) -> None:
    betas = jd.schedules.linear_betas(20)
    t = jnp.linspace(0, 1, 41)
    traced = jax.jit(lambda b: jd.schedules.from_betas(b).log_snr(t))(betas)
    np.testing.assert_allclose(traced, jd.schedules.from_betas(betas).log_snr(t), rtol=1e-13)


def test_cosine_is_the_cosine(x64: None) -> None:
    t = jnp.linspace(0, 1, 11)
    exact = jd.schedules.cosine(log_snr_min=-np.inf)
    np.testing.assert_allclose(exact.alpha(t), np.cos(np.pi / 2 * t), atol=1e-15)
    np.testing.assert_allclose(jd.schedules.cosine(log_snr_min=-15.0).log_snr(1.0), -15, rtol=1e-14)
    np.testing.assert_allclose(jd.schedules.cosine(log_snr_max=12.0).log_snr(0.0), 12, rtol=1e-13)


def test_linear_is_the_limit_of_ddpm(x64: None) -> None:
    """T betas of size beta(t) / T tend to the continuous schedule, at rate 1 / T."""
    t, errors = 0.75, []
    for num in (100, 1000):
        rates = 0.1 + (20 - 0.1) * (np.arange(num) + 0.5) / num
        errors.append(
            float(
                jd.schedules.from_betas(rates / num).log_snr(t)
                - jd.schedules.linear(0.1, 20.0).log_snr(t)
            )
        )
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.15)  # the next order, 1 / T


def test_sigmoid_matches_its_definition(x64: None) -> None:
    t = np.linspace(0, 1, 11)

    def s(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z / 0.9))

    g = (s(np.array(3.0)) - s(-3 + 6 * t)) / (s(np.array(3.0)) - s(np.array(-3.0)))
    alpha = jd.schedules.sigmoid(tau=0.9).alpha(jnp.asarray(t))
    np.testing.assert_allclose(alpha**2, 1e-9 + (1 - 1e-9) * g, atol=1e-15)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jd.schedules.linear(0.1, 400.0),
        lambda: jd.schedules.from_betas(np.full(200, 0.5)),
        lambda: jd.schedules.sigmoid(tau=0.03),
        lambda: jd.schedules.cosine(log_snr_min=-np.inf),
    ],
)
def test_extreme_schedules_stay_within_the_limit(make: object) -> None:
    """In float32, where exp(80) squared would overflow."""
    schedule = make()
    t = jnp.linspace(0, 1, 101)
    log_snr = np.asarray(schedule.log_snr(t))
    assert np.all(np.abs(log_snr) <= 80 + 1e-4)
    assert np.all(np.diff(log_snr) <= 0)
    for function in (schedule.log_snr, schedule.alpha, schedule.sigma):
        assert np.all(np.isfinite(jax.vmap(jax.grad(function))(t)))


def test_edm_levels(x64: None) -> None:
    schedule = jd.schedules.edm(0.002, 80.0)
    np.testing.assert_allclose(
        schedule.sigma(jnp.array([0.0, 0.5, 1.0])), [0.002, np.sqrt(0.16), 80.0], rtol=1e-13
    )


def test_beta_tables() -> None:
    np.testing.assert_allclose(
        jd.schedules.linear_betas(1000)[np.array([0, -1])], [1e-4, 2e-2], rtol=1e-6
    )
    cosine = np.asarray(jd.schedules.cosine_betas(1000))
    assert cosine.max() <= np.float32(0.999)
    # alpha_bar by the paper's Eq. (17), away from the capped last steps.
    f = np.cos((np.linspace(0, 1, 1001) + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(
        np.cumprod(1 - cosine.astype(float))[:990], f[1:991] / f[0], rtol=1e-4
    )  # float32 betas


class Variants(chex.TestCase, parameterized.TestCase):
    @chex.all_variants(with_pmap=True)
    @parameterized.parameters(*SCHEDULES)
    def test_variants_agree(self, name: str) -> None:
        schedule = SCHEDULES[name]()
        t = jnp.linspace(0, 1, 12)
        out = self.variant(lambda t: (*schedule.alpha_sigma(t), schedule.log_snr(t)))(t)
        expected = (*schedule.alpha_sigma(t), schedule.log_snr(t))
        chex.assert_trees_all_close(
            out, expected, rtol=2e-5
        )  # fused or not: roundings of a lambda of size 80


def test_floats_are_traced_once() -> None:
    count = 0

    @jax.jit
    def log_snr(schedule: jd.Schedule, t: jax.Array) -> jax.Array:
        nonlocal count
        count += 1
        return schedule.log_snr(t)

    for beta_max in (10.0, 15.0, 20.0):
        log_snr(jd.schedules.linear(0.1, beta_max), jnp.linspace(0, 1, 3))
    assert count == 1


BAD = {
    "betas decrease": (
        lambda: jd.schedules.from_betas([0.1, 0.05]),
        ValueError,
        "betas: expected non-decreasing",
    ),
    "beta of one": (
        lambda: jd.schedules.from_betas(np.array([0.1, 1.0, 1.0])),
        ValueError,
        r"betas: expected values in \(0, 1\)",
    ),
    "NaN beta": (
        lambda: jd.schedules.from_betas([0.1, np.nan]),
        ValueError,
        "betas: expected values",
    ),
    "no betas": (
        lambda: jd.schedules.from_betas(np.zeros(0)),
        ValueError,
        "betas: expected a vector of T >= 1",
    ),
    "beta matrix": (
        lambda: jd.schedules.from_betas(np.zeros((2, 2))),
        ValueError,
        "betas: expected a vector",
    ),
    "T = 0": (
        lambda: jd.schedules.linear_betas(0),
        ValueError,
        "num_steps: expected a positive int, got 0",
    ),
    "T a float": (
        lambda: jd.schedules.cosine_betas(10.0),
        TypeError,
        "num_steps: expected a positive int",
    ),
    "rates crossed": (
        lambda: jd.schedules.linear(3.0, 2.0),
        ValueError,
        "beta_max: expected a rate of at least",
    ),
    "no rate": (lambda: jd.schedules.linear(0.0), ValueError, "beta_min: expected a positive rate"),
    "levels crossed": (
        lambda: jd.schedules.edm(1.0, 0.5),
        ValueError,
        "sigma_max: expected a level above",
    ),
    "bounds crossed": (
        lambda: jd.schedules.cosine(log_snr_min=3.0, log_snr_max=1.0),
        ValueError,
        "log_snr_min",
    ),
    "tau": (
        lambda: jd.schedules.sigmoid(tau=0.0),
        ValueError,
        "tau: expected a positive temperature",
    ),
    "t above 1": (
        lambda: jd.schedules.cosine().alpha(1.5),
        ValueError,
        r"t: expected a time in \[0, 1\], got 1.5",
    ),
    "t below 0": (lambda: jd.schedules.cosine().log_snr(-0.1), ValueError, "t: expected a time"),
    "t NaN": (
        lambda: jd.schedules.cosine().log_snr(float("nan")),
        ValueError,
        "t: expected a time",
    ),
    "a grid of steps": (
        lambda: jd.schedules.cosine().alpha(np.array([0.0, 500.0])),
        ValueError,
        "t: expected a time .* got 500.0 at index 1 of 2",
    ),
    "a late NaN": (
        lambda: jd.schedules.from_betas(np.r_[np.full(50, 0.1), np.nan]),
        ValueError,
        "got nan at index 50 of 51",
    ),
    "a late decrease": (
        lambda: jd.schedules.from_betas(np.r_[np.full(50, 0.1), 0.05]),
        ValueError,
        r"got 0.1, 0.05 at index 49 of 51",
    ),
    "t an index": (
        lambda: jd.schedules.cosine().sigma(jnp.arange(3)),
        TypeError,
        "t: expected a floating time",
    ),
}


test_bad_input = rejects(BAD)


def test_zero_terminal_snr(x64: None) -> None:
    """The first step keeps its variance, the last state is noise, and what lies between keeps its order."""
    betas = jd.schedules.linear_betas(1000)
    rescaled = jd.schedules.zero_terminal_snr(betas)
    np.testing.assert_allclose(rescaled[0], betas[0], rtol=1e-9)
    assert rescaled[-1] == 1
    schedule = jd.schedules.from_betas(rescaled)
    assert schedule.alpha(1.0) < 1e-15
    alpha_bar = np.cumprod(1 - np.asarray(betas))
    root = np.sqrt(alpha_bar)
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(schedule.alpha(np.arange(1, 1000) / 1000), expected[:-1], rtol=1e-10)
    traced = jax.jit(lambda b: jd.schedules.from_betas(b).log_snr(np.array([0.5, 1.0])))(rescaled)
    np.testing.assert_allclose(traced, schedule.log_snr(np.array([0.5, 1.0])), rtol=1e-9)
