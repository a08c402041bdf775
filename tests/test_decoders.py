"""Decoders: distributions over levels that sum to one, densities, dequantisation and units."""

import functools
from collections.abc import Callable

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rejects
from hypothesis import example, given
from scipy import stats

import jaxdiff as jd
from jaxdiff import decoders
from jaxdiff.forward import Normal

DISCRETE = {"discretised_normal": decoders.discretised_normal, "categorical": decoders.categorical}


def every_level(num_levels: int, mean: float, variance: float) -> tuple[jax.Array, Normal]:
    """All levels as a batch of one-pixel images, under one and the same normal."""
    values = decoders.levels(num_levels)[:, None]
    return values, Normal(jnp.full(values.shape, mean), jnp.full(values.shape, variance))


@functools.cache
def log_probs(name: str, num_levels: int) -> Callable[..., jax.Array]:
    return jax.jit(DISCRETE[name](num_levels).log_prob)


@given(
    mean=st.floats(-1.5, 1.5),
    log_variance=st.floats(-14, 4),
    num_levels=st.sampled_from([2, 17, 256]),
    name=st.sampled_from(sorted(DISCRETE)),
)
@example(mean=0.25, log_variance=-11.0, num_levels=2, name="categorical")  # densities of e^16839
def test_probabilities_of_all_levels_sum_to_one(
    mean: float, log_variance: float, num_levels: int, name: str
) -> None:
    log_prob = log_probs(name, num_levels)(*every_level(num_levels, mean, np.exp(log_variance)))
    assert bool(jnp.all(jnp.isfinite(log_prob)))
    np.testing.assert_allclose(
        float(jnp.sum(jnp.exp(log_prob))), 1, atol=2e-5
    )  # rounding, of 256 terms


def test_discretised_normal_is_the_mass_of_the_bins(x64: None) -> None:
    values, last = every_level(17, 0.3, 0.04)
    edges = np.concatenate(
        [[-np.inf], (np.asarray(values[:-1, 0]) + np.asarray(values[1:, 0])) / 2, [np.inf]]
    )
    exact = np.diff(stats.norm.cdf(edges, 0.3, 0.2))
    np.testing.assert_allclose(
        jnp.exp(decoders.discretised_normal(17).log_prob(values, last)), exact, rtol=1e-9
    )


@pytest.mark.parametrize("name", DISCRETE)
def test_gradients_are_finite_far_away(name: str) -> None:
    values, last = every_level(256, 0.0, 1e-6)
    slopes = jax.grad(lambda n: jnp.sum(DISCRETE[name](256).log_prob(values, n)))(last)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in slopes)


@pytest.mark.parametrize("name", DISCRETE)
def test_samples_follow_the_probabilities(name: str) -> None:
    values, last = every_level(17, 0.3, 0.05)
    expected = 20_000 * np.exp(np.asarray(DISCRETE[name](17).log_prob(values, last), np.float64))
    many = Normal(*(jnp.full((20_000, 1), leaf[0, 0]) for leaf in last))
    x = np.asarray(DISCRETE[name](17).sample(jax.random.key(0), many))[:, 0]
    counts = np.array([np.sum(np.isclose(x, v, atol=1e-6)) for v in np.asarray(values)[:, 0]])
    assert counts.sum() == 20_000
    kept = expected > 5  # the chi-square approximation
    assert (
        stats.chisquare(
            counts[kept], expected[kept] * counts[kept].sum() / expected[kept].sum()
        ).pvalue
        > 1e-3
    )


def test_normal_decoder_is_the_density(x64: None) -> None:
    x = jax.random.normal(jax.random.key(0), (4, 2, 3))
    log_prob = decoders.normal().log_prob(x, Normal(0.1 * x, jnp.full(x.shape, 0.3)))
    exact = stats.norm.logpdf(x, 0.1 * np.asarray(x), np.sqrt(0.3)).reshape(4, -1).sum(1)
    np.testing.assert_allclose(log_prob, exact, rtol=1e-12)


def test_normal_decoder_draws_from_it() -> None:
    last = Normal(jnp.full((20_000, 1), 0.3), jnp.full((20_000, 1), 0.04))
    x = np.asarray(decoders.normal().sample(jax.random.key(0), last), np.float64)[:, 0]
    assert stats.kstest(x, stats.norm(0.3, 0.2).cdf).pvalue > 1e-3


def test_dequantisation_counts_its_volume(x64: None) -> None:
    """A density that is flat within each bin: E log p(x + u) + d log(step) is the discrete log-probability, exactly."""
    probabilities, step = np.array([0.1, 0.2, 0.3, 0.4]), 2 / 3
    x_0 = decoders.levels(4)[jnp.array([[0, 3], [2, 2], [1, 0]])]
    x = decoders.uniform_dequantise(jax.random.key(0), x_0, 4)
    assert float(jnp.max(jnp.abs(x - x_0))) <= step / 2
    index = np.round((np.asarray(x) + 1) / step).astype(int)
    log_density = np.log(probabilities[index] / step).sum(1)
    bits = jd.likelihood.bits_per_dim(log_density, 2, bin_width=step)
    exact = -np.log2(probabilities[np.array([[0, 3], [2, 2], [1, 0]])]).mean(1)
    np.testing.assert_allclose(bits, exact, rtol=1e-12)
    without = jd.likelihood.bits_per_dim(
        log_density, 2
    )  # the mutant: the volume of the bins forgotten
    np.testing.assert_allclose(without - exact, np.log2(step), rtol=1e-9)


_X = jnp.zeros((2, 3))
test_bad_input = rejects(
    {
        "one level": (
            lambda: decoders.categorical(1),
            ValueError,
            "num_levels: expected at least 2 levels, got 1",
        ),
        "ends": (
            lambda: decoders.discretised_normal(8, low=1.0),
            ValueError,
            "low: expected a value below high = 1.0",
        ),
        "levels of a float": (
            lambda: decoders.categorical(2.5),
            TypeError,
            "num_levels: expected a positive int",
        ),
        "integers": (
            lambda: decoders.uniform_dequantise(jax.random.key(0), jnp.zeros((2, 3), int), 4),
            TypeError,
            "x_0: expected a floating",
        ),
        "bin": (
            lambda: jd.likelihood.bits_per_dim(_X, 3, bin_width=0.0),
            ValueError,
            "bin_width: expected a positive width",
        ),
        "size": (
            lambda: jd.likelihood.bits_per_dim(_X, 0),
            ValueError,
            "event_size: expected a positive int",
        ),
    }
)
