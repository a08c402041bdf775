"""The forward process: composition, Bayes by brute force, the discrete recursion, end-points."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from helpers import SCHEDULES, every_schedule, rejects
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdiff as jd
from jaxdiff.forward import Level, renewed

every = every_schedule()
shapes = st.sampled_from(
    [(3,), (2, 5), (1, 5, 4, 1), (2, 3, 3, 2)]
)  # each new shape compiles: a few will do
ordered = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@every
@settings(max_examples=15)  # of each schedule
@given(
    shape=shapes, t=st.floats(0, 1), precision=st.sampled_from(["bfloat16", "float32", "float64"])
)
def test_q_sample_is_affine(name: str, shape: tuple[int, ...], t: float, precision: str) -> None:
    with jax.enable_x64(True):
        schedule = SCHEDULES[name]()
        x_0, eps = jax.random.normal(jax.random.key(0), (2, *shape)).astype(precision)
        x_t = jd.q_sample(schedule, x_0, t, eps)
        assert x_t.dtype == precision
        assert x_t.shape == shape
        alpha, sigma = schedule.alpha_sigma(t)
        expected = np.asarray(alpha) * np.asarray(x_0, float) + np.asarray(sigma) * np.asarray(
            eps, float
        )
        # Two roundings of terms this large; float32 coefficients near t = 0 and 1 carry lambda's rounding.
        size = np.abs(np.asarray(alpha)) * 4 + np.abs(np.asarray(sigma)) * 4
        tolerance = {"bfloat16": 1e-2, "float32": 1e-5, "float64": 1e-13}[precision] * size
        np.testing.assert_allclose(np.asarray(x_t, float), expected, atol=float(tolerance))


@jax.jit
def composed(schedule: jd.Schedule, s: float, t: float) -> tuple[jax.Array, ...]:
    """q(x_t | x_s) after q(x_s | x_0): the maps are affine, so their coefficients are their values at unit inputs."""
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
    mean = jd.q_step(schedule, jd.q_sample(schedule, one, s, zero), s, t, zero)
    first = jd.q_step(schedule, jd.q_sample(schedule, zero, s, one), s, t, zero)
    return mean, first, jd.q_step(schedule, zero, s, t, one)


@every
@given(times=ordered)
def test_steps_compose_to_q_sample(name: str, times: list[float]) -> None:
    """q(x_t | x_s) after q(x_s | x_0) has the mean and the variance of q(x_t | x_0), for any s <= t."""
    s, t = times
    with jax.enable_x64(True):
        schedule = SCHEDULES[name]()
        mean, first, second = composed(schedule, s, t)
        alpha, sigma = schedule.alpha_sigma(t)
        # atol: alpha_t / alpha_s loses digits where both vanish (1 - t near t = 1).
        np.testing.assert_allclose(mean, alpha, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(first**2 + second**2, sigma**2, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("log_snr", [-80.0, -0.3, 0.01, 13.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_of_a_log_snr_makes_no_negative_variance(log_snr: float, dtype: str) -> None:
    """A compiler may round the log-SNR of one time in two ways; times in the wrong order stay visible."""
    with jax.enable_x64(True):
        earlier = jnp.asarray(log_snr, dtype)

        def share(later: jax.Array) -> float:
            one = jnp.ones((), dtype)
            return float(renewed(Level(one, one, later), Level(one, one, earlier)))

        assert share(earlier) == 0
        assert share(jnp.nextafter(earlier, jnp.asarray(100.0, dtype))) == 0
        assert 0 < share(jnp.nextafter(earlier, jnp.asarray(-100.0, dtype))) < 1e-4
        assert share(earlier + 0.01) < 0


def bayes(schedule: jd.Schedule, x_t: float, x_0: float, t: float, s: float) -> tuple[float, float]:
    """Mean and variance of q(x_s | x_t, x_0): q(x_t | x_s) q(x_s | x_0), normalised on a grid."""
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
    shrink = float(jd.q_step(schedule, one, s, t, zero)[0, 0])
    noise = float(jd.q_step(schedule, zero, s, t, one)[0, 0])
    alpha, sigma = map(float, schedule.alpha_sigma(s))
    # The joint is a parabola in x_s: its width bounds both factors' widths from below.
    x_s = alpha * x_0 + sigma * np.linspace(-40, 40, 2_000_001)
    log_joint = (
        -0.5 * ((x_t - shrink * x_s) / noise) ** 2 - 0.5 * ((x_s - alpha * x_0) / sigma) ** 2
    )
    weights = np.exp(log_joint - log_joint.max())
    weights /= weights.sum()
    mean = float(weights @ x_s)
    return mean, float(weights @ (x_s - mean) ** 2)


@every
@pytest.mark.parametrize(("s", "t"), [(0.1, 0.3), (0.45, 0.5), (0.2, 0.9)])
def test_posterior_is_bayes_by_brute_force(name: str, s: float, t: float, x64: None) -> None:
    schedule, x_0 = SCHEDULES[name](), 0.7
    x_t = -0.4 * float(schedule.sigma(t))
    mean, variance = bayes(schedule, x_t, x_0, t, s)
    posterior = jd.q_posterior(schedule, jnp.full((1, 1), x_t), jnp.full((1, 1), x_0), t, s)
    # A sum over a smooth, decaying integrand is exact to rounding.
    np.testing.assert_allclose(posterior.mean[0, 0], mean, atol=1e-7 * np.sqrt(variance))
    np.testing.assert_allclose(posterior.variance[0, 0], variance, rtol=1e-7)


def test_posterior_mutants_are_rejected(x64: None) -> None:
    """Each classic slip moves the mean or the variance far beyond the tolerance of the test above."""
    schedule, x_0, x_t, t, s = jd.schedules.cosine(), 0.7, -0.4, 0.5, 0.45
    mean, variance = bayes(schedule, x_t, x_0, t, s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    kept = -jnp.expm1(schedule.log_snr(t) - schedule.log_snr(s))
    ratio = alpha_t / alpha_s * (sigma_s / sigma_t) ** 2
    right = (ratio * x_t + alpha_s * kept * x_0, sigma_s**2 * kept)
    np.testing.assert_allclose(right, (mean, variance), rtol=1e-6)
    mutants = {
        "variance at the wrong end": (right[0], sigma_t**2 * kept),
        "alpha_t for alpha_s": (ratio * x_t + alpha_t * kept * x_0, right[1]),
        "sigmas swapped": (
            alpha_t / alpha_s * (sigma_t / sigma_s) ** 2 * x_t + alpha_s * kept * x_0,
            right[1],
        ),
        "t and s swapped": (
            right[0],
            -(sigma_s**2) * jnp.expm1(schedule.log_snr(s) - schedule.log_snr(t)),
        ),
    }
    for broken in mutants.values():
        assert not np.allclose(broken, (mean, variance), rtol=1e-3)


@every
def test_limits(name: str, dtype: str) -> None:
    schedule = SCHEDULES[name]()
    x_0, x_t, eps = jax.random.normal(jax.random.key(0), (3, 4, 2), dtype)
    rtol = {"float32": 2e-6, "float64": 1e-14}[dtype]
    for t in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(
            jd.q_step(schedule, x_t, t, t, eps), x_t, rtol=rtol
        )  # s -> t is the identity
        mean, variance = jd.q_posterior(schedule, x_t, x_0, t, t)
        np.testing.assert_allclose(mean, x_t, rtol=rtol)
        np.testing.assert_array_equal(variance, 0)
    if schedule.log_snr(0.0) > 79:  # t = 0 is the data
        np.testing.assert_allclose(jd.q_sample(schedule, x_0, 0.0, eps), x_0, rtol=rtol)
        mean, variance = jd.q_posterior(schedule, x_t, x_0, 0.5, 0.0)
        np.testing.assert_allclose(mean, x_0, rtol=rtol)
        np.testing.assert_allclose(variance, 0, atol=1e-30)


def test_posterior_is_ddpm_equation_7(x64: None) -> None:
    betas = np.linspace(1e-4, 2e-2, 1000)
    schedule = jd.schedules.from_betas(betas)
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    i = np.array([2, 10, 500, 1000])
    beta, now, before = betas[i - 1], alpha_bar[i], alpha_bar[i - 1]
    x_t, x_0 = jax.random.normal(jax.random.key(0), (2, 4, 3))
    mean, variance = jd.q_posterior(
        schedule, x_t, x_0, jnp.asarray(i) / 1000, jnp.asarray(i - 1) / 1000
    )
    expected = (np.sqrt(before) * beta / (1 - now))[:, None] * x_0 + (
        np.sqrt(1 - beta) * (1 - before) / (1 - now)
    )[:, None] * x_t
    np.testing.assert_allclose(
        mean, expected, rtol=1e-9
    )  # 1 - alpha_bar is 1e-4 in Eq. (7): its cancellation
    np.testing.assert_allclose(variance[:, 0], (1 - before) / (1 - now) * beta, rtol=1e-9)


def test_rows_have_their_own_times() -> None:
    schedule = jd.schedules.cosine()
    x, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    t = jnp.array([0.1, 0.5, 0.9])
    together = jd.q_sample(schedule, x, t, eps)
    for row in range(3):
        alone = jd.q_sample(schedule, x[row : row + 1], t[row : row + 1], eps[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-6)


def test_equal_times_of_two_precisions_are_equal(x64: None) -> None:
    x = jnp.ones((2, 2), jnp.float32)
    np.testing.assert_array_equal(jd.q_step(COSINE, x, jnp.float32(0.3), 0.3, x), x)


class Variants(chex.TestCase, parameterized.TestCase):
    @chex.all_variants(with_pmap=True)
    @parameterized.parameters("cosine", "edm", "rectified_flow", "ddpm")
    def test_q_sample(self, name: str) -> None:
        schedule = SCHEDULES[name]()
        x_0, eps = jax.random.normal(jax.random.key(0), (2, 6, 3, 3, 2))
        t = jnp.linspace(0, 1, 6)
        out = self.variant(lambda x_0, t, eps: jd.q_sample(schedule, x_0, t, eps))(x_0, t, eps)
        chex.assert_trees_all_close(
            out, jd.q_sample(schedule, x_0, t, eps), rtol=1e-5, atol=1e-5
        )  # float32

    @chex.all_variants(with_pmap=True)
    @parameterized.parameters("cosine", "edm", "rectified_flow", "ddpm")
    def test_q_posterior(self, name: str) -> None:
        schedule = SCHEDULES[name]()
        x_t, x_0 = jax.random.normal(jax.random.key(0), (2, 6, 3))
        t, s = jnp.linspace(0.2, 1, 6), jnp.linspace(0, 0.9, 6)
        out = self.variant(lambda x_t, x_0, t, s: jd.q_posterior(schedule, x_t, x_0, t, s))(
            x_t, x_0, t, s
        )
        chex.assert_trees_all_close(
            out, jd.q_posterior(schedule, x_t, x_0, t, s), rtol=1e-5, atol=1e-5
        )  # float32


X = jnp.zeros((2, 3))
COSINE = jd.schedules.cosine()
BAD = {
    "integer images": (
        lambda: jd.q_sample(COSINE, jnp.zeros((2, 3), jnp.uint8), 0.5, X), TypeError, "x_0: expected a floating dtype, got uint8"),
    "noise of another shape": (
        lambda: jd.q_sample(COSINE, X, 0.5, X[:1]), ValueError, r"eps: expected the shape of x_0, \(2, 3\), got \(1, 3\)"),
    "t of another shape": (
        lambda: jd.q_sample(COSINE, X, jnp.zeros(3), X), ValueError, r"t: expected shape \(\) or \(2,\), got \(3,\)"),
    "t above 1": (lambda: jd.q_sample(COSINE, X, 1.01, X), ValueError, r"t: expected a time in \[0, 1\], got 1.01"),
    "t an index": (lambda: jd.q_sample(COSINE, X, jnp.array([1, 2]), X), TypeError, "t: expected a floating time"),
    "no array": (lambda: jd.q_sample(COSINE, [[0.0]], 0.5, X), TypeError, "x_0: expected a floating array, got list"),
    "backwards": (lambda: jd.q_step(COSINE, X, 0.6, 0.5, X), ValueError, "s: expected a time s <= t = 0.5, got 0.6"),
    "posterior backwards": (
        lambda: jd.q_posterior(COSINE, X, X, 0.5, jnp.array([0.4, 0.7])), ValueError, "s: expected a time s <= t"),
    "posterior shapes": (lambda: jd.q_posterior(COSINE, X, X[:, :2], 0.5, 0.4), ValueError, "x_0: expected the shape of x_t"),
}  # fmt: skip


test_bad_input = rejects(BAD)
