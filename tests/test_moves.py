"""Moves hold their density: long chains against exact moments, at sizes that plain Langevin dynamics does not bear."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import asymmetric_mixture, rejects, slow

from jaxdiff import moves

MIXTURE = asymmetric_mixture()


def features(x: jax.Array) -> np.ndarray:
    return np.column_stack([x, x**2, x[:, :1] * x[:, 1:], MIXTURE.log_prob(x)]).astype(np.float64)


@functools.cache
def exact() -> np.ndarray:
    return features(MIXTURE.sample(jax.random.key(2), (400_000,)))


def held(step: Callable, num_moves: int = 30, num: int = 6000) -> float:
    """The largest z-score of moments after moves from exact draws: of x, x^2 and the log-density."""
    start = MIXTURE.sample(jax.random.key(0), (num,))
    x = jax.lax.fori_loop(
        0, num_moves, lambda n, x: step(jax.random.fold_in(jax.random.key(1), n), x), start
    )
    moved, other = features(x), exact()
    error = np.sqrt(moved.var(0) / len(moved) + other.var(0) / len(other))
    return float(np.abs((moved.mean(0) - other.mean(0)) / error).max())


@pytest.mark.slow
@pytest.mark.parametrize("step_size", [slow(0.02), 0.15])
def test_mala_holds_its_target_at_any_size(step_size: float) -> None:
    assert held(lambda key, x: moves.mala(key, MIXTURE.log_prob, x, step_size).x) < 4.5


def test_hmc_holds_its_target() -> None:
    assert held(lambda key, x: moves.hmc(key, MIXTURE.log_prob, x, 0.25, num_leapfrog=4).x) < 4.5


def test_ula_leaves_it_by_its_step_size() -> None:
    small, large = (
        held(lambda key, x, d=d: moves.ula(key, MIXTURE.score, x, d)) for d in (0.001, 0.15)
    )
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


@pytest.mark.slow
def test_acceptance(x64: None) -> None:
    """Near 1 for small steps; each row's proposal counts for itself; a step off the edge of a density is refused."""
    x = MIXTURE.sample(jax.random.key(0), (200,)).astype(float)
    assert moves.mala(jax.random.key(1), MIXTURE.log_prob, x, 1e-4).acceptance.mean() > 0.97
    keys = jax.random.split(jax.random.key(1), 200)
    for move in (moves.mala, moves.hmc):
        together, alone = (
            move(keys, MIXTURE.log_prob, x, 0.1),
            move(keys[3:4], MIXTURE.log_prob, x[3:4], 0.1),
        )
        np.testing.assert_allclose(together.x[3], alone.x[0], rtol=1e-9)
        np.testing.assert_allclose(together.acceptance[3], alone.acceptance[0], rtol=1e-9)
    edge = moves.hmc(
        keys,
        lambda x: jnp.where(x[:, 0] > 0, jnp.nan, -jnp.sum(x**2, axis=1)),
        -jnp.ones((200, 2)),
        0.5,
    )
    assert np.all(edge.x[:, 0] <= 0)


# --- densities that end somewhere ----------------------------------------------------------------------------------------


def half_normal(x: jax.Array) -> jax.Array:
    """Zero on the left, where its gradient is NaN."""
    return jnp.where(x[:, 0] < 0, -jnp.inf, -(jnp.sqrt(x[:, 0]) ** 4) / 2)


MOVES: dict[str, Callable] = {
    "mala": lambda key, x: moves.mala(key, half_normal, x, 0.3).x,
    "hmc": lambda key, x: moves.hmc(key, half_normal, x, 0.4, num_leapfrog=3).x,
}


@pytest.mark.parametrize("kind", MOVES)
def test_moves_at_the_edge_of_a_density(kind: str) -> None:
    """Rows stay where the density is, and hold it: |x| of a normal (Monte Carlo: 5 standard errors)."""
    start = jnp.abs(jax.random.normal(jax.random.key(0), (6000, 1)))
    x = jax.lax.fori_loop(
        0,
        30,
        lambda n, x: MOVES[kind](jax.random.fold_in(jax.random.key(1), n), x),
        jnp.where(start > 0, start, 1),
    )
    assert np.all(x > 0)
    assert abs(float(x.mean()) - np.sqrt(2 / np.pi)) < 5 * np.sqrt(1 - 2 / np.pi) / np.sqrt(6000)
    assert abs(float((x**2).mean()) - 1) < 5 * np.sqrt(2 / 6000)


@pytest.mark.parametrize("kind", MOVES)
def test_rows_without_a_density(kind: str) -> None:
    """-inf - (-inf): such a row stays where it is, or finds the density; never NaN."""
    start = jnp.full((500, 1), -0.3)
    once = MOVES[kind](jax.random.key(0), start)
    assert np.all((once == -0.3) | (once >= 0))
    x = jax.lax.fori_loop(
        0, 30, lambda n, x: MOVES[kind](jax.random.fold_in(jax.random.key(1), n), x), start
    )
    assert np.mean(np.asarray(x) > 0) > 0.9
    nowhere = lambda x: jnp.full(len(x), -jnp.inf)  # noqa: E731
    moved = moves.mala(jax.random.key(0), nowhere, start, 0.1)
    np.testing.assert_array_equal(moved.x, start)
    np.testing.assert_array_equal(moved.acceptance, 0)


def test_a_slope_of_nan_rejects_the_mutant() -> None:
    """With the gradient as it comes a row without a density proposes NaN, and never finds it."""
    slope = jax.grad(lambda x: half_normal(x)[0])(jnp.full((1, 1), -0.3))
    assert np.isnan(slope).all()


test_bad_input = rejects(
    {
        "leapfrog": (
            lambda: moves.hmc(
                jax.random.key(0), MIXTURE.log_prob, jnp.zeros((2, 2)), 0.1, num_leapfrog=0
            ),
            ValueError,
            "num_leapfrog: expected a positive int",
        )
    }
)
