"""Resampling: every row has the copies that its weight says, on average, and never further off than its scheme allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rejects, z_scores

from jaxdiff import resampling

SCHEMES = ("multinomial", "stratified", "systematic", "residual")
LOG_WEIGHTS = jnp.log(jnp.array([0.05, 0.3, 0.02, 0.4, 0.13, 0.1])) + 700  # far beyond what exp can bear


def copies(scheme: str, num: int = 4000) -> np.ndarray:
    """Numbers of copies, [num, rows]."""
    draw = jax.vmap(lambda key: getattr(resampling, scheme)(2.0)(key, LOG_WEIGHTS)[0])
    ancestors = np.asarray(draw(jax.random.split(jax.random.key(0), num)))
    return np.stack([(ancestors == row).sum(1) for row in range(6)], axis=1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_copies_are_right_on_average(scheme: str) -> None:
    expected = 6 * np.asarray(jax.nn.softmax(LOG_WEIGHTS))
    assert np.abs(z_scores(copies(scheme), expected)).max() < 4


def test_schemes_keep_their_bounds() -> None:
    expected = 6 * np.asarray(jax.nn.softmax(LOG_WEIGHTS))
    assert np.all(np.abs(copies("systematic") - expected) < 1)
    assert np.all(np.abs(copies("stratified") - expected) < 2)
    assert np.all(copies("residual") >= np.floor(expected))
    spread = {scheme: copies(scheme).var(0).sum() for scheme in SCHEMES}
    assert spread["systematic"] < spread["stratified"] < spread["residual"] < spread["multinomial"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_threshold(scheme: str) -> None:
    """Equal weights are left alone; a threshold of 0 never resamples."""
    for threshold, log_weights, expected in (
        (0.5, jnp.zeros(6), False),
        (0.0, LOG_WEIGHTS, False),
        (1.0, LOG_WEIGHTS, True),
    ):
        ancestors, resampled = getattr(resampling, scheme)(threshold)(jax.random.key(0), log_weights)
        assert bool(resampled) == expected
        if not expected:
            np.testing.assert_array_equal(ancestors, np.arange(6))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_row_takes_all(scheme: str) -> None:
    log_weights = jnp.array([-jnp.inf, -jnp.inf, 3.0, -jnp.inf])
    ancestors, _ = getattr(resampling, scheme)(1.0)(jax.random.key(0), log_weights)
    np.testing.assert_array_equal(ancestors, 2)


def test_effective_sample_size_of_small_weights() -> None:
    """Weights of any magnitude: rounding of numbers of order one, not of the log-weights."""
    log_weights = jnp.array([0.0, 0.0, -1.0, -50.0])
    exact = (2 + np.exp(-1)) ** 2 / (2 + np.exp(-2))
    for shift in (0.0, -80_000.0, 5000.0):
        np.testing.assert_allclose(resampling.effective_sample_size(log_weights + shift), exact, rtol=1e-5)


def test_draw() -> None:
    x = jnp.arange(6.0)[:, None]
    drawn = resampling.draw(jax.random.key(0), LOG_WEIGHTS, x, 1000)
    assert drawn.shape == (1000, 1)
    counts = np.bincount(np.asarray(drawn[:, 0], int), minlength=6)
    assert np.all(np.abs(counts - 1000 * np.asarray(jax.nn.softmax(LOG_WEIGHTS))) < 1.01)  # systematic; float32


X = jnp.zeros((4, 2))
test_bad_input = rejects(
    {
        "threshold": (lambda: resampling.residual(-0.1), ValueError, "threshold: expected a share of the rows of at least 0"),
        "num": (lambda: resampling.draw(jax.random.key(0), jnp.zeros(4), X, 0), ValueError, "num: expected a positive int"),
        "weights": (lambda: resampling.draw(jax.random.key(0), jnp.zeros(3), X, 2), ValueError, r"log_weights: expected one a row of x, \(4,\), got \(3,\)"),
    }
)  # fmt: skip
