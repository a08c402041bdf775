"""The probability-flow ODE with an adaptive solver: diffrax, an optional extra."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxdiff import _checks
from jaxdiff._functions import as_function
from jaxdiff.forward import Level, level
from jaxdiff.kernels._exponential import exponential_euler
from jaxdiff.kernels._kernel import Kernel, no_weight, without_memory
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


def adaptive(
    denoiser: Callable, schedule: Schedule, tolerance: Any = 1e-4, *, log_snr_range: tuple[Any, Any] = (-20.0, 15.0)
) -> Kernel:
    """Return a kernel that solves each step of the probability-flow ODE to a tolerance (Dormand-Prince, order 5).

        dy / dl = (alpha sigma / c^3) (sigma x_0 - alpha eps),   y = x / c,   c^2 = alpha^2 + sigma^2,   l = lambda / 2

    A grid of one step, ts = [1, 0], leaves all to the solver; each row has its own step sizes.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      tolerance: relative and absolute, in units of y, [], positive, traced.
      log_snr_range: where the solver works, low < high; the stretches outside, where the denoiser hardly changes, are
        DDIM steps.
    Returns:
      A Kernel without memory and with zero increments.
    Raises:
      ValueError: tolerance is not positive, or log_snr_range is empty.
      ModuleNotFoundError: diffrax is not installed (pip install 'jaxdiff[ode]').
    Numerics: reverse-mode gradients, unless the denoiser holds a label or a scale for each row: then there are none.
    Source: Song et al. 2021, arXiv:2011.13456, Section 4.3; Kidger 2021, arXiv:2202.02435, for diffrax.
    """
    import diffrax  # noqa: F401  (said now rather than when the step is traced)

    _checks.values("log_snr_range", np.array(log_snr_range), "low < high", lambda v: np.diff(v) > 0)
    _checks.values("tolerance", tolerance, "a positive tolerance", lambda v: v > 0)
    return without_memory(
        Partial(_adaptive_step, as_function("denoiser", denoiser), schedule, tolerance, log_snr_range)
    )


def _adaptive_step(
    denoiser: Partial, schedule: Schedule, tolerance: Any, log_snr_range: tuple[Any, Any],
    key: jax.Array, carry: Any, x_t: jax.Array, t: Any, s: Any,
) -> tuple[Any, jax.Array, jax.Array]:  # fmt: skip
    early, late = level(schedule, s, x_t), level(schedule, t, x_t)
    low, high = log_snr_range
    first = schedule.time(jnp.clip(late.log_snr, low, high))
    last = schedule.time(jnp.clip(early.log_snr, low, high))
    # A clipped time is only as good as the schedule's inverse: inside the range t and s are taken as they are.
    first = jnp.where((late.log_snr < low) | (late.log_snr > high), first, t)
    last = jnp.where((early.log_snr < low) | (early.log_snr > high), last, s)
    begin, end = level(schedule, first, x_t), level(schedule, last, x_t)
    x = exponential_euler(begin, late, x_t, x_0_of(denoiser(x_t, t)))
    one_row = _one_row if _serves_any_row(denoiser, x_t, last) else _one_of_the_rows
    x = jax.vmap(Partial(_solve, Partial(one_row, denoiser), schedule, tolerance), (0, None, None))(x, begin, end)
    x_s = exponential_euler(early, end, x, x_0_of(denoiser(x.astype(x_t.dtype), last)))
    return carry, x_s.astype(x_t.dtype), no_weight(x_t)


def _solve(denoise: Partial, schedule: Schedule, tolerance: Any, x: jax.Array, begin: Level, end: Level) -> jax.Array:
    """One row from one level to another: dx/dl in units of the state's own size, with l = lambda / 2."""
    import diffrax

    def scale(half: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        now = level(schedule, schedule.time(2 * half), x[None])
        return now.alpha, now.sigma, jnp.hypot(now.alpha, now.sigma), schedule.time(2 * half)

    def rate(half: jax.Array, y: jax.Array, _: Any) -> jax.Array:
        # y = x / c with c^2 = alpha^2 + sigma^2: y' = (alpha sigma / c^2) (sigma x_0 - alpha eps) / c, in every family.
        alpha, sigma, size, time = scale(half)
        state = size * y
        x_0 = denoise(state, time)
        eps = (state - alpha * x_0) / sigma
        return alpha * sigma / size**3 * (sigma * x_0 - alpha * eps)

    start, stop = begin.log_snr / 2, end.log_snr / 2
    # Integrated over [0, 1], so that a step of length zero is the identity.
    term = diffrax.ODETerm(lambda v, y, _: (stop - start) * rate(start + v * (stop - start), y, _))
    control = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    solution = diffrax.diffeqsolve(
        term, diffrax.Dopri5(), 0.0, 1.0, 0.01, x / jnp.hypot(begin.alpha, begin.sigma), stepsize_controller=control,
        max_steps=16384,
    )  # fmt: skip
    return solution.ys[0] * jnp.hypot(end.alpha, end.sigma)


def _serves_any_row(denoiser: Partial, x_t: jax.Array, t: jax.Array) -> bool:
    """Whether the denoiser works on one row alone: not if it holds a label or a scale for each of them."""
    one = jax.ShapeDtypeStruct((1, *x_t.shape[1:]), x_t.dtype)
    try:
        return jax.eval_shape(lambda x, t: x_0_of(denoiser(x, t)), one, jnp.broadcast_to(t, (1,))).shape == one.shape
    except (TypeError, ValueError):
        return False


def _one_row(denoiser: Partial, x_t: jax.Array, t: jax.Array) -> jax.Array:
    return x_0_of(denoiser(x_t[None], t[None]))[0]


_one_of_the_rows = jax.custom_batching.custom_vmap(_one_row)


@_one_of_the_rows.def_vmap
def _all_rows(size: int, batched: Any, denoiser: Partial, x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, bool]:
    """The rows in one call, which the denoiser that holds something for each of them needs."""
    _, many_states, many_times = batched
    x_t = x_t if many_states else jnp.broadcast_to(x_t, (size, *x_t.shape))
    return x_0_of(denoiser(x_t, t if many_times else jnp.broadcast_to(t, (size,)))), True
