"""The probability-flow ODE with an adaptive solver: diffrax, an optional extra."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxdiff import _checks
from jaxdiff._tree import as_function
from jaxdiff.forward import level
from jaxdiff.kernels._exponential import exponential_euler
from jaxdiff.kernels._flow import no_trace, solve
from jaxdiff.kernels._kernel import Kernel, no_weight, without_memory
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


def adaptive(
    denoiser: Callable,
    schedule: Schedule,
    tolerance: Any = 1e-4,
    *,
    log_snr_range: tuple[Any, Any] = (-20.0, 15.0),
) -> Kernel:
    """Return a kernel that solves each step of the probability-flow ODE to a tolerance (Dormand-Prince, order 5).

        dy / dl = (alpha sigma / c^3) (sigma x_0 - alpha eps),   y = x / c,   c^2 = alpha^2 + sigma^2,   l = lambda / 2

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
      ModuleNotFoundError: diffrax is not installed (pip install 'jaxdiff[ode]').
    Numerics: reverse-mode gradients, unless the denoiser holds a label or a scale for each row:
      then there are none. A row that cannot be solved is NaN.
    Source: Song et al. 2021, arXiv:2011.13456, Section 4.3; Kidger 2021, arXiv:2202.02435, for
    diffrax.
    """
    import diffrax  # noqa: F401  (said now rather than when the step is traced)

    _checks.values("log_snr_range", np.array(log_snr_range), "low < high", lambda v: np.diff(v) > 0)
    _checks.values("tolerance", tolerance, "a positive tolerance", lambda v: v > 0)
    return without_memory(
        Partial(
            _adaptive_step, as_function("denoiser", denoiser), schedule, tolerance, log_snr_range
        )
    )


def _adaptive_step(
    denoiser: Partial, schedule: Schedule, tolerance: Any, log_snr_range: tuple[Any, Any],
    key: jax.Array, carry: Any, x_t: jax.Array, t: Any, s: Any,
) -> tuple[Any, jax.Array, jax.Array]:  # fmt: skip
    early, late = level(schedule, s, x_t), level(schedule, t, x_t)
    low, high = log_snr_range
    first = schedule.time(jnp.clip(late.log_snr, low, high))
    last = schedule.time(jnp.clip(early.log_snr, low, high))
    # A clipped time is only as good as the schedule's inverse: inside the range t and s are taken
    # as they are.
    first = jnp.where((late.log_snr < low) | (late.log_snr > high), first, t)
    last = jnp.where((early.log_snr < low) | (early.log_snr > high), last, s)
    begin, end = level(schedule, first, x_t), level(schedule, last, x_t)
    x = exponential_euler(begin, late, x_t, x_0_of(denoiser(x_t, t), x_t))
    y = x / jnp.hypot(begin.alpha, begin.sigma)
    y = solve(
        Partial(no_trace), denoiser, schedule, tolerance, begin.log_snr / 2, end.log_snr / 2, y
    ).y
    x = y * jnp.hypot(end.alpha, end.sigma)
    x_s = exponential_euler(early, end, x, x_0_of(denoiser(x.astype(x_t.dtype), last), x_t))
    return carry, x_s.astype(x_t.dtype), no_weight(x_t)
