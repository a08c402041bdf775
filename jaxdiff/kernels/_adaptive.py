"""The probability-flow ODE with an adaptive solver: diffrax, an optional extra."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks, _rows
from jaxdiff._extras import needs
from jaxdiff._tree import as_function, put, pytree
from jaxdiff.forward import level
from jaxdiff.kernels._exponential import exponential_euler
from jaxdiff.kernels._flow import FlowODE
from jaxdiff.kernels._kernel import Drawing, Kernel, lift
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


def adaptive(
    denoiser: Callable,
    schedule: Schedule,
    tolerance: Any = 1e-4,
    *,
    log_snr_range: tuple[Any, Any] = (-20.0, 15.0),
) -> Kernel:
    """Return a kernel that solves each step of the probability-flow ODE to a tolerance.

        dy / dl = (alpha sigma / c^3) (sigma x_0 - alpha eps)
        y = x / c,   c^2 = alpha^2 + sigma^2,   l = lambda / 2,   by Dormand-Prince, order 5

    A grid of one step, ts = [1, 0], leaves all to the solver; each row has its own step sizes, and
    is what it is alone.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      tolerance: relative and absolute, in units of y, [], positive, traced.
      log_snr_range: where the solver works, low < high; the stretches outside, where the denoiser
        hardly changes, are DDIM steps.
    Returns:
      A Kernel without memory and with zero increments.
    Raises:
      ValueError: tolerance is not positive, or log_snr_range is empty.
      ModuleNotFoundError: diffrax is not installed (pip install "jaxdiff[ode]").
    Numerics: reverse-mode gradients, unless the denoiser holds a label or a scale for each row:
      then there are none. A row that cannot be solved is NaN.
    Source: Song et al. 2021, arXiv:2011.13456, Section 4.3; Kidger 2021, arXiv:2202.02435, for
    diffrax.
    """
    return lift(Adaptive(denoiser, schedule, tolerance, log_snr_range))


@pytree
class Adaptive(Drawing):
    """The algorithm of `adaptive`."""

    denoiser: Callable
    schedule: Schedule
    tolerance: Any = 1e-4
    log_snr_range: tuple[Any, Any] = (-20.0, 15.0)

    def __post_init__(self) -> None:
        needs("diffrax", extra="ode")  # it is named now, and not when a step is traced
        ends = np.array(self.log_snr_range)
        _checks.values("log_snr_range", ends, "low < high", lambda v: np.diff(v) > 0)
        _checks.values("tolerance", self.tolerance, "a positive tolerance", lambda v: v > 0)
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def draw(self, key: jax.Array | None, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Solve the ODE inside the range, with a DDIM step on either side."""
        level_t, level_s = level(self.schedule, t, x_t), level(self.schedule, s, x_t)
        first, last = self._inside(level_t.log_snr, t), self._inside(level_s.log_snr, s)
        begin, end = level(self.schedule, first, x_t), level(self.schedule, last, x_t)
        x = exponential_euler(level_t, begin, x_t, x_0_of(self.denoiser(x_t, t), x_t))
        ode = FlowODE(self.denoiser, self.schedule, tolerance=self.tolerance)
        y = x / jnp.hypot(begin.alpha, begin.sigma)
        y = ode.solve(begin.log_snr / 2, end.log_snr / 2, y).y
        x = y * jnp.hypot(end.alpha, end.sigma)
        x_0 = x_0_of(self.denoiser(x.astype(x_t.dtype), last), x_t)
        return exponential_euler(end, level_s, x, x_0)

    def _inside(self, log_snr: jax.Array, t: Any) -> jax.Array:
        """The time nearest to t in the range; t itself inside, since an inverse has rounding."""
        low, high = _rows.cast(log_snr.dtype, *self.log_snr_range)
        clipped = self.schedule.time(jnp.clip(log_snr, low, high))
        return jnp.where((log_snr < low) | (log_snr > high), clipped, t)
