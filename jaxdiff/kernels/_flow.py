"""The probability-flow ODE in the variables in which nothing is large, and its adaptive solver: diffrax, an extra.

    y = x / c,   c^2 = alpha^2 + sigma^2,   l = lambda / 2
    dy / dl = (alpha / c) D(c y, t) - (alpha / c)^2 y,   div dy / dl = (alpha / c) tr dD / dy - (alpha / c)^2 d

which is (alpha sigma / c^3) (sigma x_0 - alpha eps), in every family of schedules.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff.forward import level
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule

# The shortest step, as a share of the whole: a row whose error stays NaN ends here, and does not
# hold up the others.
_SHORTEST = 1e-6


class Rates(NamedTuple):
    """dy/dl [B, *D] and its divergence [B]; or y and the divergence integrated."""

    y: jax.Array
    divergence: jax.Array


def rates(
    look: Partial,
    denoiser: Partial,
    schedule: Schedule,
    half: jax.Array,
    y: jax.Array,
    *probes: Any,
) -> Rates:
    """Evaluate the ODE, the one place where it is written.

    Args:
      look: (y -> D, y, *probes) -> (D [B, *D], tr dD/dy [B]), such as `no_trace`.
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      half: l, [] or [B].
      y: [B, *D].
      *probes: what look takes besides, [B, ...].
    Returns:
      Rates.
    """
    t = schedule.time(2 * half)
    alpha, sigma, _ = level(schedule, t, y)
    size = jnp.hypot(alpha, sigma)
    share = alpha / size
    x_0, trace = look(lambda y: x_0_of(denoiser(size * y, t), y), y, *probes)
    by_row = jnp.reshape(share, share.shape[:1])
    return Rates(share * x_0 - share**2 * y, by_row * trace - by_row**2 * y[0].size)


def no_trace(denoise: Any, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """D alone, where no density is asked for."""
    return denoise(y), jnp.zeros(y.shape[:1], y.dtype)


def solve(
    look: Partial, denoiser: Partial, schedule: Schedule, tolerance: Any,
    begin: jax.Array, end: jax.Array, y: jax.Array, *probes: Any,
) -> Rates:  # fmt: skip
    """Solve the ODE to a tolerance (Dormand-Prince, order 5), every row in steps of its own.

    Args:
      look: as in `rates`.
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      tolerance: relative and absolute, of y and of the divergence, [], traced.
      begin: l, [], where y is given.
      end: l, [], where it is wanted.
      y: [B, *D].
      *probes: as in `rates`.
    Returns:
      y at the end and the integral of the divergence; NaN in a row that could not be solved.
    """
    import diffrax
    import optimistix

    alone = _serves_any_row(denoiser, y, schedule.time(2 * end))
    rates_of_one = Partial(
        _one_row if alone else _one_of_the_rows, Partial(rates, look, denoiser, schedule)
    )

    def largest(error: Rates) -> jax.Array:
        return jnp.maximum(*map(optimistix.rms_norm, error))

    control = diffrax.PIDController(
        tolerance, tolerance, norm=largest, dtmin=_SHORTEST, force_dtmin=False
    )

    # Integrated over [0, 1], so that a step of length zero is the identity.
    def field(v: Any, state: Rates, probes: Any) -> Rates:
        now = rates_of_one(begin + v * (end - begin), state.y, *probes)
        return Rates(*((end - begin) * rate for rate in now))

    def row(y: jax.Array, *probes: Any) -> Rates:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Dopri5(), 0.0, 1.0, 0.01, Rates(y, jnp.zeros((), y.dtype)), probes,
            stepsize_controller=control, max_steps=16384, throw=False,
        )  # fmt: skip
        solved = solution.result == diffrax.RESULTS.successful
        return Rates(*(jnp.where(solved, leaf[0], jnp.nan) for leaf in solution.ys))

    return jax.vmap(row)(y, *probes)


def _serves_any_row(denoiser: Partial, x_t: jax.Array, t: jax.Array) -> bool:
    """Whether the denoiser works on one row alone: not if it holds a label or a scale for each of them."""
    one = jax.ShapeDtypeStruct((1, *x_t.shape[1:]), x_t.dtype)
    try:
        return (
            jax.eval_shape(
                lambda x, t: x_0_of(denoiser(x, t), x), one, jnp.broadcast_to(t, (1,))
            ).shape
            == one.shape
        )
    except (TypeError, ValueError):
        return False


def _one_row(rates: Partial, *row: jax.Array) -> Rates:
    return Rates(*(leaf[0] for leaf in rates(*(value[None] for value in row))))


@jax.custom_batching.custom_vmap
def _one_of_the_rows(rates: Partial, half: jax.Array, y: jax.Array, *probes: jax.Array) -> Rates:
    """A row's part of what all rows give: it is only ever mapped, and here only its shapes are asked for."""
    return Rates(jnp.zeros_like(y), jnp.zeros((), y.dtype))


@_one_of_the_rows.def_vmap
def _all_rows(size: int, batched: Any, rates: Partial, *rows: jax.Array) -> tuple[Rates, Any]:
    """The rows in one call, which the denoiser that holds something for each of them needs."""
    whole = zip(rows, batched[1:], strict=True)
    now = rates(
        *(value if many else jnp.broadcast_to(value, (size, *value.shape)) for value, many in whole)
    )
    return now, jax.tree.map(lambda _: True, now)
