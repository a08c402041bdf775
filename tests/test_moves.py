"""Moves hold their density: long chains against exact moments, at sizes that plain Langevin dynamics does not bear."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import asymmetric_mixture, rejects

from jaxdiff import moves

MIXTURE = asymmetric_mixture()


def held(step: Callable, num_moves: int = 30, num: int = 6000) -> float:
    """The largest z-score of moments after moves from exact draws: of x, x^2 and the log-density."""
    start = MIXTURE.sample(jax.random.key(0), (num,))
    x = jax.lax.fori_loop(0, num_moves, lambda n, x: step(jax.random.fold_in(jax.random.key(1), n), x), start)
    exact = MIXTURE.sample(jax.random.key(2), (400_000,))

    def features(x: jax.Array) -> np.ndarray:
        return np.column_stack([x, x**2, x[:, :1] * x[:, 1:], MIXTURE.log_prob(x)]).astype(np.float64)

    moved, other = features(x), features(exact)
    error = np.sqrt(moved.var(0) / len(moved) + other.var(0) / len(other))
    return float(np.abs((moved.mean(0) - other.mean(0)) / error).max())


@pytest.mark.parametrize("step_size", [0.02, 0.15])
def test_mala_holds_its_target_at_any_size(step_size: float) -> None:
    assert held(lambda key, x: moves.mala(key, MIXTURE.log_prob, x, step_size).x) < 4.5


def test_hmc_holds_its_target() -> None:
    assert held(lambda key, x: moves.hmc(key, MIXTURE.log_prob, x, 0.25, num_leapfrog=4).x) < 4.5


def test_ula_leaves_it_by_its_step_size() -> None:
    small, large = (held(lambda key, x, d=d: moves.ula(key, MIXTURE.score, x, d)) for d in (0.001, 0.15))
    assert small < 4.5
    assert large > 10


def mala_by_hand(key: jax.Array, x: jax.Array, step: float, factor: float) -> jax.Array:
    """MALA from its densities: factor 4 is right, and 2 is the mutant."""
    keys = jax.random.split(key)
    slope = MIXTURE.score
    new = x + step * slope(x) + jnp.sqrt(2 * step) * jax.random.normal(keys[0], x.shape)

    def log_q(to: jax.Array, start: jax.Array) -> jax.Array:
        return -jnp.sum((to - start - step * slope(start)) ** 2, axis=1) / (factor * step)

    gain = MIXTURE.log_prob(new) - MIXTURE.log_prob(x) + log_q(x, new) - log_q(new, x)
    return jnp.where((jnp.log(jax.random.uniform(keys[1], gain.shape)) < gain)[:, None], new, x)


def test_malas_wrong_factor_is_rejected() -> None:
    assert held(lambda key, x: mala_by_hand(key, x, 0.1, 4.0)) < 4.5
    assert held(lambda key, x: mala_by_hand(key, x, 0.1, 2.0)) > 6


def test_acceptance(x64: None) -> None:
    """Near 1 for small steps; each row's proposal counts for itself; a step off the edge of a density is refused."""
    x = MIXTURE.sample(jax.random.key(0), (200,)).astype(float)
    assert moves.mala(jax.random.key(1), MIXTURE.log_prob, x, 1e-4).acceptance.mean() > 0.97
    keys = jax.random.split(jax.random.key(1), 200)
    for move in (moves.mala, moves.hmc):
        together, alone = move(keys, MIXTURE.log_prob, x, 0.1), move(keys[3:4], MIXTURE.log_prob, x[3:4], 0.1)
        np.testing.assert_allclose(together.x[3], alone.x[0], rtol=1e-9)
        np.testing.assert_allclose(together.acceptance[3], alone.acceptance[0], rtol=1e-9)
    edge = moves.hmc(keys, lambda x: jnp.where(x[:, 0] > 0, jnp.nan, -jnp.sum(x**2, axis=1)), -jnp.ones((200, 2)), 0.5)
    assert np.all(edge.x[:, 0] <= 0)


test_bad_input = rejects(
    {
        "leapfrog": (
            lambda: moves.hmc(jax.random.key(0), MIXTURE.log_prob, jnp.zeros((2, 2)), 0.1, num_leapfrog=0),
            ValueError,
            "num_leapfrog: expected a positive int",
        )
    }
)
