"""Moves whose invariant law is a composed model at a noise level (reduce, reuse, recycle)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows, moves
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import level
from jaxdiff.posterior._composed import composed_score
from jaxdiff.schedules import Schedule


@pytree
class Moves:
    """Some moves of one kind, with steps in units of sigma_t: (key, x [B, *D], t) -> x.

    Fields:
      target: the score for "ula", the log-density for "mala" and "hmc".
      schedule: the noise schedule.
      snr: step size in units of sigma_t.
      kind: "ula", "mala" or "hmc".
      num_moves: number of moves.
      num_leapfrog: gradients of a Hamiltonian move.
    """

    target: Callable
    schedule: Schedule
    snr: Any
    kind: str = static()
    num_moves: int = static(default=1)
    num_leapfrog: int = static(default=1)

    def __post_init__(self) -> None:
        _checks.values("snr", self.snr, "a positive ratio", lambda v: v > 0)
        _checks.choice("kind", self.kind, ("ula", "mala", "hmc"))
        _checks.positive_int("num_moves", self.num_moves)
        _checks.positive_int("num_leapfrog", self.num_leapfrog)
        put(self, target=as_function("log_density", self.target))

    def __call__(self, key: jax.Array, x: jax.Array, t: Any) -> jax.Array:
        """Move the states at t."""
        keys = _rows.keys(key, x.shape[0])
        step = jnp.asarray(self.snr, x.dtype) * level(self.schedule, t, x).sigma

        def target(x: jax.Array) -> jax.Array:
            return self.target(x, t)

        def once(n: Any, x: jax.Array) -> jax.Array:
            key = _rows.fold(keys, n)
            if self.kind == "ula":
                new = moves.ula(key, target, x, 2 * step**2)
            elif self.kind == "mala":
                new = moves.mala(key, target, x, 2 * step**2).x
            else:
                new = moves.hmc(key, target, x, step, num_leapfrog=self.num_leapfrog).x
            return new.astype(x.dtype)

        return jax.lax.fori_loop(0, self.num_moves, once, x)


def langevin(
    denoisers: Sequence[Callable],
    exponents: Any,
    schedule: Schedule,
    snr: Any = 0.16,
    *,
    num_moves: int = 1,
) -> Moves:
    """Return unadjusted Langevin moves on a product of models. They need scores alone.

        x' = x + d sum_i a_i s_i(x, t) + sqrt(2 d) eps,   d = 2 (snr sigma_t)^2

    Their invariant law is off by O(d).

    Args:
      denoisers: K models, each (x_t, t) -> E[x_0 | x_t].
      exponents: a, [K], traced.
      schedule: the noise schedule.
      snr: size of a step, as in `kernels.corrected`, [], positive, traced.
      num_moves: number of moves, static. A move takes one call of each denoiser.
    Returns:
      (key, x [B, *D], t) -> x, for `composed`.
    Raises:
      ValueError: snr is not positive, num_moves < 1, or there is no denoiser.
    Source: Du et al. 2023, arXiv:2302.11552, Section 4.1.
    """
    score = composed_score(denoisers, exponents, schedule)
    return Moves(score, schedule, snr, "ula", num_moves)


def metropolis(
    log_density: Callable, schedule: Schedule, snr: Any = 0.16, *, num_moves: int = 1
) -> Moves:
    """Return Metropolis-adjusted Langevin moves (MALA): exact, for a known log-density.

        d = 2 (snr sigma_t)^2, as in `moves.mala`

    Args:
      log_density: (x [B, *D], t []) -> log p_t(x), [B], in nats, up to a constant: an energy, or
        the log-density of an oracle.
      schedule: the noise schedule.
      snr: size of a step, [], positive, traced.
      num_moves: number of moves, static.
    Returns:
      (key, x [B, *D], t) -> x, for `composed`.
    Raises:
      ValueError: snr is not positive, or num_moves < 1.
      TypeError: log_density is not a function.
    Source: Du et al. 2023, arXiv:2302.11552, Section 4.2.
    """
    return Moves(log_density, schedule, snr, "mala", num_moves)


def hamiltonian(
    log_density: Callable,
    schedule: Schedule,
    snr: Any = 0.3,
    *,
    num_moves: int = 1,
    num_leapfrog: int = 3,
) -> Moves:
    """Return Hamiltonian moves (HMC): exact, for a known log-density.

        leapfrog steps of size snr sigma_t, as in `moves.hmc`

    Args:
      log_density: (x [B, *D], t []) -> log p_t(x), [B], in nats, up to a constant.
      schedule: the noise schedule.
      snr: size of a leapfrog step in units of sigma_t, [], positive, traced.
      num_moves: number of moves, static.
      num_leapfrog: gradients of a move, static.
    Returns:
      (key, x [B, *D], t) -> x, for `composed`.
    Raises:
      ValueError: snr is not positive, or num_moves or num_leapfrog < 1.
      TypeError: log_density is not a function.
    Source: Du et al. 2023, arXiv:2302.11552, Section 4.2.
    """
    return Moves(log_density, schedule, snr, "hmc", num_moves, num_leapfrog)
