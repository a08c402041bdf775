"""Moves that leave a composed model's noisy states as they are: reduce, reuse, recycle."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows, moves
from jaxdiff._functions import Static
from jaxdiff._tree import as_function
from jaxdiff.forward import level
from jaxdiff.posterior._composed import composed_score
from jaxdiff.schedules import Schedule


def langevin(
    denoisers: Sequence[Callable],
    exponents: Any,
    schedule: Schedule,
    snr: Any = 0.16,
    *,
    num_moves: int = 1,
) -> Partial:
    """Return unadjusted Langevin moves on a product of models: scores are all it takes, and it is off by O(d).

        x' = x + d sum_i a_i s_i(x, t) + sqrt(2 d) eps,   d = 2 (snr sigma_t)^2

    Args:
      denoisers: K models, each (x_t, t) -> E[x_0 | x_t].
      exponents: a, [K], traced.
      schedule: the noise schedule.
      snr: of the step, as in `kernels.corrected`, [], positive, traced.
      num_moves: steps each time, static; one call of each denoiser for one.
    Returns:
      (key, x [B, *D], t) -> x, for `composed`.
    Raises:
      ValueError: snr is not positive, num_moves < 1, no denoisers.
    Source: Du et al. 2023, arXiv:2302.11552, Section 4.1.
    """
    score = composed_score(denoisers, exponents, schedule)
    return _moves("ula", score, schedule, snr, num_moves)


def metropolis(
    log_density: Callable, schedule: Schedule, snr: Any = 0.16, *, num_moves: int = 1
) -> Partial:
    """Return Metropolis-adjusted Langevin moves (MALA): exact, for models whose log-density is known.

        d = 2 (snr sigma_t)^2, as in `moves.mala`

    Args:
      log_density: (x [B, *D], t []) -> log p_t(x), [B], in nats, up to a constant: an energy, or an
        oracle's.
      schedule: the noise schedule.
      snr: of the step, [], positive, traced.
      num_moves: steps each time, static.
    Returns:
      (key, x [B, *D], t) -> x, for `composed`.
    Raises:
      ValueError: snr is not positive, num_moves < 1.
      TypeError: log_density is no function.
    Source: Du et al. 2023, arXiv:2302.11552, Section 4.2.
    """
    return _moves("mala", as_function("log_density", log_density), schedule, snr, num_moves)


def hamiltonian(
    log_density: Callable,
    schedule: Schedule,
    snr: Any = 0.3,
    *,
    num_moves: int = 1,
    num_leapfrog: int = 3,
) -> Partial:
    """Return Hamiltonian moves (HMC): exact, for models whose log-density is known.

        leapfrog steps of size snr sigma_t, as in `moves.hmc`

    Args:
      log_density: (x [B, *D], t []) -> log p_t(x), [B], in nats, up to a constant.
      schedule: the noise schedule.
      snr: size of a leapfrog step, in units of sigma_t, [], positive, traced.
      num_moves: moves each time, static.
      num_leapfrog: gradients a move, static.
    Returns:
      (key, x [B, *D], t) -> x, for `composed`.
    Raises:
      ValueError: snr is not positive, num_moves or num_leapfrog < 1.
      TypeError: log_density is no function.
    Source: Du et al. 2023, arXiv:2302.11552, Section 4.2.
    """
    _checks.positive_int("num_leapfrog", num_leapfrog)
    return _moves(
        "hmc", as_function("log_density", log_density), schedule, snr, num_moves, num_leapfrog
    )


def _moves(
    kind: str, target: Partial, schedule: Schedule, snr: Any, num_moves: int, num_leapfrog: int = 1
) -> Partial:
    _checks.values("snr", snr, "a positive ratio", lambda v: v > 0)
    _checks.positive_int("num_moves", num_moves)
    return Partial(_move, Static((kind, num_moves, num_leapfrog)), target, schedule, snr)


def _move(
    options: Static,
    target: Partial,
    schedule: Schedule,
    snr: Any,
    key: jax.Array,
    x: jax.Array,
    t: Any,
) -> jax.Array:
    kind, num_moves, num_leapfrog = options.value
    keys, step = (
        _rows.keys(key, x.shape[0]),
        jnp.asarray(snr, x.dtype) * level(schedule, t, x).sigma,
    )

    def here(x: jax.Array) -> jax.Array:
        return target(x, t)

    def once(n: Any, x: jax.Array) -> jax.Array:
        now = _rows.fold(keys, n)
        if kind == "ula":
            return moves.ula(now, here, x, 2 * step**2)
        if kind == "mala":
            return moves.mala(now, here, x, 2 * step**2).x
        return moves.hmc(now, here, x, step, num_leapfrog=num_leapfrog).x

    return jax.lax.fori_loop(0, num_moves, lambda n, x: once(n, x).astype(x.dtype), x)
