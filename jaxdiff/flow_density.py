"""The density of the probability-flow ODE: a path, and the divergence of the velocity along it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _rows
from jaxdiff._tree import pytree
from jaxdiff.forward import level
from jaxdiff.kernels import Kernel
from jaxdiff.kernels._flow import FlowODE
from jaxdiff.kernels._kernel import Algorithm, lift
from jaxdiff.sampling import run
from jaxdiff.schedules import Schedule


def density(
    denoiser: Callable,
    schedule: Schedule,
    ts: jax.Array,
    x_0: jax.Array,
    *,
    probes: jax.Array | None = None,
    tolerance: Any = None,
    log_snr_range: tuple[Any, Any] = (-20.0, 15.0),
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
    options = {"probes": probes, "tolerance": tolerance, "log_snr_range": log_snr_range}
    kernel = flowing(denoiser, schedule, **options)
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
    denoiser: Callable,
    schedule: Schedule,
    *,
    probes: jax.Array | None = None,
    tolerance: Any = None,
    log_snr_range: tuple[Any, Any] = (-20.0, 15.0),
) -> Kernel:
    """Return the kernel of the ODE, weighted with the divergence.

        y = x / sqrt(alpha^2 + sigma^2)
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
    trace = _exact if probes is None else _hutchinson
    ode = FlowODE(denoiser, schedule, Partial(trace), tolerance)
    return lift(Flowing(ode, probes, log_snr_range))


@pytree
class Flowing(Algorithm):
    """The algorithm of `flowing`."""

    ode: FlowODE
    probes: Any
    log_snr_range: tuple[Any, Any]

    def step(
        self, key: Any, carry: Any, x_t: jax.Array, t: Any, s: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Go from y at t to y at s, and count the divergence."""
        low, high = self.log_snr_range
        begin, end = (
            jnp.clip(self.ode.schedule.log_snr(u), *_rows.cast(x_t.dtype, low, high)) / 2
            for u in (t, s)
        )
        probes = () if self.probes is None else (self.probes,)
        moved = self.ode.solve(begin, end, x_t, *probes)
        return carry, moved.y, moved.divergence


# Both traces use products v^T J: XLA's CPU has no fast program for the products J v of convolutions
# inside a scan (see `models._layers.convolve`).


def _exact(denoise: Any, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """D and its divergence, from one vector-Jacobian product a dimension. Rows do not couple."""
    basis = jnp.eye(y[0].size, dtype=y.dtype).reshape(-1, *y.shape[1:])
    x_0, pull = jax.vjp(denoise, y)

    def diagonal(unit: jax.Array) -> jax.Array:
        return _rows.event_sum(pull(jnp.broadcast_to(unit[None], y.shape))[0] * unit[None])

    return x_0, jnp.sum(jax.lax.map(diagonal, basis), axis=0)


def _hutchinson(denoise: Any, y: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """D and v^T (dD/dy) v, averaged over each row's probes."""
    x_0, pull = jax.vjp(denoise, y)
    products = jax.lax.map(lambda v: _rows.event_sum(pull(v)[0] * v), jnp.moveaxis(probes, 1, 0))
    return x_0, jnp.mean(products, axis=0)
