"""Losses: what they are minimised by, how weights relate, and how times are drawn."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from helpers import SCHEDULES, asymmetric_mixture, rejects, slow, z_scores
from scipy import stats

import jaxdiff as jd
from jaxdiff import losses
from jaxdiff.prediction import PREDICTIONS, affine, from_x_0

COSINE = jd.schedules.cosine()


def zero(x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.zeros_like(x)


def test_simple_is_the_mean_squared_noise() -> None:
    loss = losses.simple(jax.random.key(0), zero, COSINE, jnp.ones((20_000, 3)))
    assert loss.shape == (20_000,)
    assert np.abs(z_scores(np.asarray(loss), np.array(1.0))).max() < 5  # E eps^2 = 1


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_posterior_mean_is_the_minimiser(prediction: str, x64: None) -> None:
    """The exact denoiser's loss is lower than that of the same network with an error of known size, by that size."""
    schedule, mixture = COSINE, asymmetric_mixture()
    oracle = mixture.denoiser(schedule)
    x_0 = mixture.sample(jax.random.key(0), (20_000,))

    def network(shift: float) -> object:
        return lambda x, t: from_x_0(schedule, oracle(x, t), x, t, prediction=prediction) + shift

    t = jnp.linspace(0.05, 0.95, len(x_0))

    @jax.jit
    def loss(shift: float) -> jax.Array:
        key = jax.random.key(1)
        return losses.simple(key, network(shift), schedule, x_0, t=t, prediction=prediction)

    best, worse = loss(0.0), loss(0.1)
    # The cross term has mean zero because the error of a posterior mean is orthogonal to anything known.
    assert np.abs(z_scores(np.asarray(worse - best), np.array(0.01))).max() < 5


@pytest.mark.parametrize("name", ["cosine", slow("linear"), slow("edm"), slow("rectified_flow")])
@pytest.mark.parametrize("weight", ["snr", "min_snr", "edm", "sigmoid"])
def test_weighted_losses_do_not_depend_on_the_prediction(name: str, weight: str, x64: None) -> None:
    """One denoiser, written as any of the six networks, has one weighted loss."""
    schedule, mixture = SCHEDULES[name](), asymmetric_mixture()
    x_0, t = mixture.sample(jax.random.key(0), (16,)), jnp.linspace(0.05, 0.95, 16)
    chosen = getattr(losses.weights, weight)()

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.tanh(x)  # any function of x_t

    def network(prediction: str) -> object:
        def apply(x: jax.Array, t: jax.Array) -> jax.Array:
            if prediction == "edm":
                alpha, sigma = schedule.alpha_sigma(t)
                x = x * jnp.hypot(sigma, alpha * 0.5)[:, None]
            return from_x_0(schedule, denoise(x, t), x, t, prediction=prediction)

        return apply

    @jax.jit
    def losses_of(key: jax.Array, x_0: jax.Array) -> list[jax.Array]:
        return [
            losses.simple(key, network(p), schedule, x_0, t=t, prediction=p, weight=chosen)
            for p in PREDICTIONS
        ]

    values = losses_of(jax.random.key(1), x_0)
    for value in values:
        np.testing.assert_allclose(value, values[1], rtol=1e-8)


def test_weights_by_their_definitions(x64: None) -> None:
    log_snr = jnp.linspace(-10, 10, 21)
    snr = np.exp(log_snr)
    np.testing.assert_allclose(losses.weights.snr()(log_snr), snr)
    np.testing.assert_allclose(losses.weights.min_snr(5.0)(log_snr), np.minimum(snr, 5))
    np.testing.assert_allclose(losses.weights.edm(0.5)(log_snr), (1 / snr + 0.25) / (0.25 / snr))
    np.testing.assert_allclose(
        losses.weights.sigmoid(1.0)(log_snr), snr / (1 + np.exp(log_snr - 1))
    )


def test_snr_weight_is_the_plain_loss_of_eps(x64: None) -> None:
    x_0, key = asymmetric_mixture().sample(jax.random.key(0), (8,)), jax.random.key(1)
    plain = losses.simple(key, zero, COSINE, x_0)
    np.testing.assert_allclose(
        losses.simple(key, zero, COSINE, x_0, weight=losses.weights.snr()), plain, rtol=1e-9
    )


def test_edm_weight_is_the_plain_loss_of_the_preconditioned_network(x64: None) -> None:
    x_0, key = asymmetric_mixture().sample(jax.random.key(0), (8,)), jax.random.key(1)
    schedule = jd.schedules.edm()
    plain = losses.simple(key, zero, schedule, x_0, prediction="edm")
    weighted = losses.simple(
        key, zero, schedule, x_0, prediction="edm", weight=losses.weights.edm(0.5)
    )
    np.testing.assert_allclose(weighted, plain, rtol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_losses_are_finite_at_the_ends(prediction: str, dtype: str) -> None:
    x_0, t = jnp.ones((2, 3), dtype), jnp.array([0.0, 1.0])
    found = jax.jit(
        lambda schedules: [
            losses.simple(jax.random.key(0), zero, schedule, x_0, t=t, prediction=prediction)
            for schedule in schedules
        ]
    )
    edm, flow = jd.schedules.edm(), jd.schedules.rectified_flow()
    for loss in found([COSINE, jd.schedules.linear(), flow, edm]):
        assert loss.dtype == dtype
        assert np.all(np.isfinite(loss))


def test_weighted_losses_at_the_ends_are_the_plain_one() -> None:
    """In float32, where a weight of exp(80) meets a squared coefficient of exp(-160)."""
    x_0, t = jnp.ones((2, 3)), jnp.array([0.0, 1.0])
    for prediction in ("eps", "v", "score"):
        arguments = (jax.random.key(0), zero, jd.schedules.linear(), x_0)
        loss = losses.simple(*arguments, t=t, prediction=prediction, weight=losses.weights.snr())
        eps_loss = losses.simple(*arguments, t=t)
        if prediction != "v":  # a network that says v = 0 is not one that says eps = 0
            np.testing.assert_allclose(loss, eps_loss, rtol=1e-4)
        assert np.all(np.isfinite(loss))


def test_rows_depend_on_their_own_keys() -> None:
    keys = jax.random.split(jax.random.key(0), 6)
    x_0 = jax.random.normal(jax.random.key(1), (6, 4))
    whole = losses.simple(keys, zero, COSINE, x_0)
    parts = [losses.simple(keys[i : i + 2], zero, COSINE, x_0[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)


def test_uniform_times() -> None:
    t = losses.uniform_times(jax.random.key(0), 5000)
    assert stats.kstest(t, "uniform").pvalue > 1e-3


def test_low_discrepancy_times() -> None:
    t = np.asarray(losses.low_discrepancy_times(jax.random.key(0), 64))
    np.testing.assert_allclose(
        np.diff(np.sort(t)), 1 / 64, atol=1e-6
    )  # evenly spaced, whatever the offset
    parts = [
        losses.low_discrepancy_times(jax.random.key(0), 16, first=i, total=64)
        for i in (0, 16, 32, 48)
    ]
    np.testing.assert_allclose(np.concatenate(parts), t, atol=1e-6)
    firsts = [losses.low_discrepancy_times(jax.random.key(i), 8)[3] for i in range(400)]
    assert stats.kstest(firsts, "uniform").pvalue > 1e-3  # each alone is uniform


def test_log_normal_times() -> None:
    schedule = jd.schedules.edm(1e-4, 1e4)  # wide: next to nothing is clipped
    t = losses.log_normal_times(jax.random.key(0), 4000, schedule)
    assert (
        stats.kstest(-np.asarray(schedule.log_snr(t)) / 2, stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    )


class Variants(chex.TestCase, parameterized.TestCase):
    @chex.all_variants(with_pmap=True)
    @parameterized.parameters("eps", "v", "edm")
    def test_simple(self, prediction: str) -> None:
        keys = jax.random.split(jax.random.key(0), 4)
        x_0 = jax.random.normal(jax.random.key(1), (4, 3))

        def loss(keys: jax.Array, x_0: jax.Array) -> jax.Array:
            return losses.simple(keys, lambda x, t: jnp.tanh(x), COSINE, x_0, prediction=prediction)

        np.testing.assert_allclose(
            self.variant(loss)(keys, x_0), loss(keys, x_0), rtol=1e-4
        )  # float32


def test_weight_is_of_the_x_0_error(x64: None) -> None:
    x_0, t = jnp.ones((3, 2)), jnp.array([0.1, 0.5, 0.9])
    one = losses.simple(
        jax.random.key(0), zero, COSINE, x_0, t=t, prediction="v", weight=jnp.ones_like
    )
    plain = losses.simple(jax.random.key(0), zero, COSINE, x_0, t=t, prediction="v")
    out = affine(COSINE, t, x_0, prediction="v").out[:, 0]
    np.testing.assert_allclose(one, out**2 * plain, rtol=1e-12)


X = jnp.zeros((2, 3))
KEY = jax.random.key(0)
BAD = {
    "integer images": (lambda: losses.simple(KEY, zero, COSINE, X.astype(jnp.uint8)), TypeError, "x_0: expected a floating dtype, got uint8"),
    "old key": (lambda: losses.simple(jax.random.PRNGKey(0), zero, COSINE, X), TypeError, "key: expected a typed key"),
    "prediction": (lambda: losses.simple(KEY, zero, COSINE, X, prediction="noise"), ValueError, "prediction: expected one of"),
    "output": (lambda: losses.simple(KEY, lambda x, t: x[..., :1], COSINE, X), ValueError, "the network's output: expected the shape of x_0"),
    "times": (lambda: losses.simple(KEY, zero, COSINE, X, t=jnp.zeros(5)), ValueError, "t: expected shape"),
    "weight": (lambda: losses.simple(KEY, zero, COSINE, X, weight="min_snr"), TypeError, "weight: expected a function, got str"),
    "gamma": (lambda: losses.weights.min_snr(0.0), ValueError, "gamma: expected a positive bound"),
    "sigma_data": (lambda: losses.weights.edm(-1.0), ValueError, "sigma_data: expected a positive"),
}  # fmt: skip


test_bad_input = rejects(BAD)
