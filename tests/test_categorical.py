"""The denoiser of logits over levels, and networks that are given the log-SNR."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SCHEDULES, rejects

import jaxdiff as jd
from jaxdiff.decoders import levels


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cosine", "edm", "rectified_flow"])
def test_independent_pixels_have_the_exact_denoiser(name: str, x64: None) -> None:
    """Logits of the marginals are all there is to know: the mixture oracle, one component a pair of levels, agrees."""
    schedule, shares = SCHEDULES[name](), np.array([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    pairs = list(itertools.product(range(3), range(3)))
    weights = np.array([shares[0, i] * shares[1, j] for i, j in pairs])
    points = np.asarray(levels(3))[np.array(pairs)]
    oracle = jd.oracles.GaussianMixture(jnp.log(weights), jnp.asarray(points), jnp.full(9, 1e-18))
    logits = jnp.log(jnp.asarray(shares))
    ours = jd.make_categorical_denoiser(
        lambda x, t: jnp.broadcast_to(logits, (*x.shape, 3)), schedule, 3
    )
    x_t = jax.random.normal(jax.random.key(0), (50, 2))
    for t in (0.2, 0.6):
        exact = oracle.denoiser(schedule, variance=True)(x_t, t)
        said = ours(x_t, t)
        np.testing.assert_allclose(said.x_0, exact.x_0, atol=1e-8)
        np.testing.assert_allclose(said.variance, exact.variance, atol=1e-8)


def test_near_the_data_it_rounds() -> None:
    schedule = jd.schedules.cosine(log_snr_max=16.0)
    denoiser = jd.make_categorical_denoiser(lambda x, t: jnp.zeros((*x.shape, 256)), schedule, 256)
    x_0 = levels(256)[None]
    x_t = jd.q_sample(schedule, x_0, 0.0, jax.random.normal(jax.random.key(0), x_0.shape))
    np.testing.assert_allclose(denoiser(x_t, 0.0).x_0, x_0, atol=1e-6)


def test_a_network_of_the_log_snr_means_the_same_under_every_schedule() -> None:
    seen = []

    def network(x: jax.Array, u: jax.Array) -> jax.Array:
        seen.append(np.asarray(u))
        return x

    for schedule in (jd.schedules.cosine(), jd.schedules.edm()):
        t = schedule.time(jnp.array([3.0, -2.0]))
        jd.categorical.on_log_snr(network, schedule)(jnp.zeros((2, 1)), t)
    np.testing.assert_allclose(seen[0], [17 / 40, 22 / 40], atol=1e-5)
    np.testing.assert_allclose(seen[1], seen[0], atol=1e-5)


_SCHEDULE = jd.schedules.cosine()
test_bad_input = rejects(
    {
        "levels": (
            lambda: jd.make_categorical_denoiser(lambda x, t: x, _SCHEDULE, 1),
            ValueError,
            "num_levels: expected at least 2",
        ),
        "no function": (
            lambda: jd.make_categorical_denoiser(3, _SCHEDULE, 4),
            TypeError,
            "apply: expected a function, got int",
        ),
        "shape": (
            lambda: jd.make_categorical_denoiser(lambda x, t: x, _SCHEDULE, 4)(
                jnp.zeros((2, 3)), 0.5
            ),
            ValueError,
            "logits: expected shape",
        ),
        "ends": (
            lambda: jd.categorical.on_log_snr(lambda x, t: x, _SCHEDULE, low=3.0, high=2.0),
            ValueError,
            "low: expected a value below",
        ),
    }
)
