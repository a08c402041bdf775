"""Markov chain Monte Carlo moves: steps with a given invariant density, row by row.

A proposal whose log-density is -inf or NaN is rejected. A row at such a state accepts any proposal
of positive density. A gradient that is not finite counts as 0. The moves stay exact, because any
drift that depends on the state alone is exact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows


class Moved(NamedTuple):
    """The result of a move.

    Fields:
      x: states, [B, *D].
      acceptance: the acceptance probability of each row's proposal, [B].
    """

    x: jax.Array
    acceptance: jax.Array


def ula(key: jax.Array, score: Callable, x: jax.Array, step_size: Any) -> jax.Array:
    """Make one unadjusted Langevin step. Its invariant density is off by O(step_size).

        x' = x + d score(x) + sqrt(2 d) eps

    Args:
      key: typed PRNG key, or one a row [B].
      score: x [B, *D] -> gradient of the log-density, [B, *D].
      x: states, [B, *D], floating.
      step_size: d, [], positive, traced.
    Returns:
      [B, *D].
    Raises:
      ValueError: step_size is known and not positive.
    Source: Roberts & Tweedie 1996, Bernoulli 2(4), Section 1.4.1.
    """
    _checks.values("step_size", step_size, "a positive step", lambda d: d > 0)
    x, step_size = _state(x, step_size)
    return x + step_size * score(x) + jnp.sqrt(2 * step_size) * _rows.normal(key, x)


def mala(key: jax.Array, log_density: Callable, x: jax.Array, step_size: Any) -> Moved:
    """Make one Metropolis-adjusted Langevin step. Its invariant density is exact.

        x' = x + d grad log p(x) + sqrt(2 d) eps
        acceptance = min(1, p(x') q(x | x') / (p(x) q(x' | x)))
        log q(x' | x) = -|x' - x - d grad log p(x)|^2 / (4 d) + const

    Args:
      key: typed PRNG key, or one a row [B].
      log_density: x [B, *D] -> [B], in nats, up to a constant; differentiable, row by row.
      x: states, [B, *D], floating.
      step_size: d, [], positive, traced.
    Returns:
      Moved.
    Raises:
      ValueError: step_size is known and not positive.
    Source: Besag 1994, J. R. Stat. Soc. B 56(4), 591; Roberts & Tweedie 1996, Bernoulli 2(4),
    Section 1.4.2.
    """
    _checks.values("step_size", step_size, "a positive step", lambda d: d > 0)
    x, step_size = _state(x, step_size)
    key_draw, key_accept = _rows.split(_rows.keys(key, x.shape[0]))
    before, slope = _with_slope(log_density, x)
    eps = _rows.normal(key_draw, x)
    new = x + step_size * slope + jnp.sqrt(2 * step_size) * eps
    after, slope_new = _with_slope(log_density, new)
    # The noise of the reverse proposal, from the sum of the gradients: nothing large cancels.
    back = eps + jnp.sqrt(step_size / 2) * (slope + slope_new)
    gain = after - before + _rows.event_sum((eps - back) * (eps + back)) / 2
    return _accept(key_accept, x, new, gain)


def hmc(
    key: jax.Array, log_density: Callable, x: jax.Array, step_size: Any, *, num_leapfrog: int = 5
) -> Moved:
    """Make one Hamiltonian move. Its invariant density is exact.

        H(x, p) = -log p(x) + |p|^2 / 2,   p ~ N(0, I),   num_leapfrog leapfrog steps

    Args:
      key: typed PRNG key, or one a row [B].
      log_density: x [B, *D] -> [B], in nats, up to a constant; differentiable, row by row.
      x: states, [B, *D], floating.
      step_size: step of the leapfrog integrator, [], positive, traced.
      num_leapfrog: number of gradients, static.
    Returns:
      Moved.
    Raises:
      ValueError: num_leapfrog < 1, or step_size is known and not positive.
    Source: Duane et al. 1987, Phys. Lett. B 195(2); Neal 2011, arXiv:1206.1901, Section 3.
    """
    _checks.positive_int("num_leapfrog", num_leapfrog)
    _checks.values("step_size", step_size, "a positive step", lambda d: d > 0)
    x, step_size = _state(x, step_size)
    key_draw, key_accept = _rows.split(_rows.keys(key, x.shape[0]))
    momentum = _rows.normal(key_draw, x)
    before, slope = _with_slope(log_density, x)

    def leap(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, p, slope, _ = state
        p = p + step_size / 2 * slope
        x = x + step_size * p
        value, slope = _with_slope(log_density, x)
        return x, p + step_size / 2 * slope, slope, value

    new, last, _, after = jax.lax.fori_loop(0, num_leapfrog, leap, (x, momentum, slope, before))
    gain = after - before + _rows.event_sum((momentum - last) * (momentum + last)) / 2
    return _accept(key_accept, x, new, gain)


def _state(x: jax.Array, step_size: Any) -> tuple[jax.Array, jax.Array]:
    """The states in at least float32, and the step size in their dtype."""
    x = x.astype(_rows.state_dtype(x.dtype))
    return x, jnp.asarray(step_size, x.dtype)


def _with_slope(log_density: Callable, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The log-density and its gradient. The gradient of a row is 0 if it is not finite."""
    value, pull = jax.vjp(log_density, x)
    slope = pull(jnp.ones_like(value))[0]
    return jnp.where(jnp.isnan(value), -jnp.inf, value), jnp.where(
        _rows.all_finite(slope), slope, 0
    )


def _accept(key: jax.Array, x: jax.Array, new: jax.Array, gain: jax.Array) -> Moved:
    """The Metropolis rule for a log ratio. NaN rejects the proposal."""
    gain = jnp.where(jnp.isnan(gain), -jnp.inf, gain)
    chance = jax.vmap(lambda k: jax.random.uniform(k, (), gain.dtype))(key)
    return Moved(
        jnp.where(_rows.expand(jnp.log(chance) < gain, x), new, x), jnp.minimum(jnp.exp(gain), 1)
    )
