"""The density of the probability-flow ODE: the state and the divergence of its velocity, along one path."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _rows
from jaxdiff.forward import level
from jaxdiff.kernels import Kernel, without_memory
from jaxdiff.kernels._flow import Rates, rates, solve
from jaxdiff.sampling import run
from jaxdiff.schedules import Schedule


def density(
    denoiser: Partial,
    schedule: Schedule,
    ts: jax.Array,
    x_0: jax.Array,
    probes: jax.Array | None,
    tolerance: Any,
    log_snr_range: tuple[float, float],
) -> jax.Array:
    """Return log p(x_0), as `likelihood.ode_log_prob` documents it.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      ts: the grid, decreasing.
      x_0: states at ts[-1], [B, *D].
      probes: Hutchinson's vectors, [B, num_probes, *D]; None for the exact trace.
      tolerance: None for one Runge-Kutta step a step of the grid.
      log_snr_range: where the ODE is solved.
    Returns:
      [B], in nats.
    """
    x = x_0.astype(_rows.state_dtype(x_0.dtype))
    size = x[0].size
    kernel = flowing(denoiser, schedule, probes, tolerance, log_snr_range)
    start, end = _size(schedule, ts[-1], x), _size(schedule, ts[0], x)
    path = run(None, kernel, x / start, ts[::-1])
    last = end * path.x
    sigma = level(schedule, ts[0], x).sigma
    prior = _rows.event_sum(-0.5 * (last / sigma) ** 2) - size * (
        jnp.log(sigma) + math.log(2 * math.pi) / 2
    )
    # p(x) dx = p(y) dy at both ends of the path.
    return prior + size * (jnp.log(end) - jnp.log(start)) + path.log_weights


def _size(schedule: Schedule, t: Any, x: jax.Array) -> jax.Array:
    alpha, sigma, _ = level(schedule, t, x)
    return jnp.hypot(alpha, sigma)


def flowing(
    denoiser: Partial,
    schedule: Schedule,
    probes: jax.Array | None,
    tolerance: Any,
    log_snr_range: tuple[float, float],
) -> Kernel:
    """Return the kernel of the ODE in y = x / sqrt(alpha^2 + sigma^2), weighted with the divergence.

        dy/dl as in kernels/_flow.py,   increment = int div(dy/dl) dl

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      probes: Hutchinson's vectors, [B, num_probes, *D]; None for the exact trace.
      tolerance: None for one Runge-Kutta step of order 4, or diffrax's, whose steps are each row's
        own.
      log_snr_range: where the ODE is solved; outside, y stays.
    Returns:
      A Kernel without memory, to be run in either direction.
    Source: Song et al. 2021, arXiv:2011.13456, Eq. (39); Chen et al. 2018, arXiv:1806.07366, Eq.
    (8).
    """
    return without_memory(Partial(_flow, denoiser, schedule, probes, tolerance, log_snr_range))


def _flow(
    denoiser: Partial, schedule: Schedule, probes: Any, tolerance: Any, log_snr_range: Any,
    key: jax.Array, carry: Any, y: jax.Array, t: Any, s: Any,
) -> Any:  # fmt: skip
    low, high = log_snr_range
    begin, end = (jnp.clip(schedule.log_snr(u), low, high) / 2 for u in (t, s))
    look, rest = (Partial(_exact), ()) if probes is None else (Partial(_hutchinson), (probes,))
    if tolerance is None:
        moved = _runge_kutta(
            lambda half, y: rates(look, denoiser, schedule, half, y, *rest), begin, end, y
        )
    else:
        moved = solve(look, denoiser, schedule, tolerance, begin, end, y, *rest)
    return carry, moved.y, moved.divergence


def _exact(denoise: Any, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """D and its divergence, from one Jacobian-vector product a dimension: rows do not see each other."""
    basis = jnp.eye(y[0].size, dtype=y.dtype).reshape(-1, *y.shape[1:])
    x_0, push = jax.linearize(denoise, y)

    def diagonal(unit: jax.Array) -> jax.Array:
        return _rows.event_sum(push(jnp.broadcast_to(unit[None], y.shape)) * unit[None])

    return x_0, jnp.sum(jax.lax.map(diagonal, basis), axis=0)


def _hutchinson(denoise: Any, y: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """D and v^T (dD/dy) v, averaged over each row's probes."""
    x_0, push = jax.linearize(denoise, y)
    products = jax.lax.map(lambda v: _rows.event_sum(push(v) * v), jnp.moveaxis(probes, 1, 0))
    return x_0, jnp.mean(products, axis=0)


def _runge_kutta(rates: Any, begin: jax.Array, end: jax.Array, y: jax.Array) -> Rates:
    """One step of the classical method of order 4."""
    h = end - begin
    k_1 = rates(begin, y)
    k_2 = rates(begin + h / 2, y + h / 2 * k_1.y)
    k_3 = rates(begin + h / 2, y + h / 2 * k_2.y)
    k_4 = rates(end, y + h * k_3.y)
    total = jax.tree.map(lambda a, b, c, d: h / 6 * (a + 2 * b + 2 * c + d), k_1, k_2, k_3, k_4)
    return Rates(y + total.y, total.divergence)
