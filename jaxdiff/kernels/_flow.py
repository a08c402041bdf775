"""The probability-flow ODE in variables that stay bounded, and its solvers.

    y = x / c,   c^2 = alpha^2 + sigma^2,   l = lambda / 2
    dy / dl = (alpha / c) D(c y, t) - (alpha / c)^2 y
    div dy / dl = (alpha / c) tr dD / dy - (alpha / c)^2 d

The rate is (alpha sigma / c^3) (sigma x_0 - alpha eps), in every family of schedules. The adaptive
solver is diffrax's, an extra.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff._tree import Method, pytree
from jaxdiff.forward import level
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule

# The shortest step, as a part of the whole. A row whose error stays NaN ends here; others go on.
_SHORTEST = 1e-6


class Rates(NamedTuple):
    """dy/dl [B, *D] and its divergence [B]; or y and the divergence integrated."""

    y: jax.Array
    divergence: jax.Array


def no_trace(denoise: Any, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """D alone, where no density is asked for."""
    return denoise(y), jnp.zeros(y.shape[:1], y.dtype)


@pytree
class FlowODE:
    """The ODE: the one place where it is written.

    Fields:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      trace: (y -> D, y, *probes) -> (D [B, *D], tr dD/dy [B]), such as `no_trace`.
      tolerance: None for one Runge-Kutta step; or relative and absolute, of y and of the
        divergence, [], traced.
    """

    denoiser: Callable
    schedule: Schedule
    trace: Callable = Partial(no_trace)
    tolerance: Any = None

    def rates(self, half: jax.Array, y: jax.Array, *probes: Any) -> Rates:
        """Evaluate the ODE at l = half, [] or [B], and y [B, *D]. The probes are the trace's."""
        t = self.schedule.time(2 * half)
        alpha, sigma, _ = level(self.schedule, t, y)
        size = jnp.hypot(alpha, sigma)
        cosine = alpha / size
        x_0, trace = self.trace(lambda y: x_0_of(self.denoiser(size * y, t), y), y, *probes)
        by_row = jnp.reshape(cosine, cosine.shape[:1])
        return Rates(cosine * x_0 - cosine**2 * y, by_row * trace - by_row**2 * y[0].size)

    def solve(self, begin: jax.Array, end: jax.Array, y: jax.Array, *probes: Any) -> Rates:
        """Go from l = begin [] to l = end []: y there, and the integral of the divergence."""
        if self.tolerance is None:
            return self._runge_kutta(begin, end, y, *probes)
        return self._adaptive(begin, end, y, *probes)

    def _runge_kutta(self, begin: jax.Array, end: jax.Array, y: jax.Array, *probes: Any) -> Rates:
        """One step of the classical method of order 4."""
        h = end - begin
        k_1 = self.rates(begin, y, *probes)
        k_2 = self.rates(begin + h / 2, y + h / 2 * k_1.y, *probes)
        k_3 = self.rates(begin + h / 2, y + h / 2 * k_2.y, *probes)
        k_4 = self.rates(end, y + h * k_3.y, *probes)
        total = jax.tree.map(lambda a, b, c, d: h / 6 * (a + 2 * b + 2 * c + d), k_1, k_2, k_3, k_4)
        return Rates(y + total.y, total.divergence)

    def _adaptive(self, begin: jax.Array, end: jax.Array, y: jax.Array, *probes: Any) -> Rates:
        """Dormand-Prince, order 5, each row in its own steps; NaN in a row without a solution."""
        import diffrax
        import optimistix

        alone = _serves_any_row(self.denoiser, y, self.schedule.time(2 * end))
        rates_of_one = Partial(_one_row if alone else _one_of_the_rows, Method(self, "rates"))

        def largest(error: Rates) -> jax.Array:
            return jnp.maximum(*map(optimistix.rms_norm, error))

        tolerance = jnp.asarray(self.tolerance, y.dtype)
        control = diffrax.PIDController(
            tolerance, tolerance, norm=largest, dtmin=_SHORTEST, force_dtmin=False
        )

        # Integrated over [0, 1], so that a step of length zero is the identity.
        def field(v: Any, state: Rates, probes: Any) -> Rates:
            now = rates_of_one(begin + v * (end - begin), state.y, *probes)
            return Rates(*((end - begin) * rate for rate in now))

        def row(y: jax.Array, *probes: Any) -> Rates:
            term, start = diffrax.ODETerm(field), Rates(y, jnp.zeros((), y.dtype))
            options = {"stepsize_controller": control, "max_steps": 16384, "throw": False}
            solution = diffrax.diffeqsolve(
                term, diffrax.Dopri5(), 0.0, 1.0, 0.01, start, probes, **options
            )
            solved = solution.result == diffrax.RESULTS.successful
            return Rates(*(jnp.where(solved, leaf[0], jnp.nan) for leaf in solution.ys))

        return jax.vmap(row)(y, *probes)


def _serves_any_row(denoiser: Callable, x_t: jax.Array, t: jax.Array) -> bool:
    """Whether the denoiser works on one row: not if it holds a label or a scale for each row."""
    one = jax.ShapeDtypeStruct((1, *x_t.shape[1:]), x_t.dtype)
    try:
        answer = jax.eval_shape(
            lambda x, t: x_0_of(denoiser(x, t), x), one, jnp.broadcast_to(t, (1,))
        )
        return answer.shape == one.shape
    except (TypeError, ValueError):
        return False


def _one_row(rates: Callable, *row: jax.Array) -> Rates:
    return Rates(*(leaf[0] for leaf in rates(*(value[None] for value in row))))


@jax.custom_batching.custom_vmap
def _one_of_the_rows(rates: Callable, half: jax.Array, y: jax.Array, *probes: jax.Array) -> Rates:
    """A row's part of the rates of all rows: always mapped, and here only its shapes count."""
    return Rates(jnp.zeros_like(y), jnp.zeros((), y.dtype))


@_one_of_the_rows.def_vmap
def _all_rows(size: int, batched: Any, rates: Callable, *rows: jax.Array) -> tuple[Rates, Any]:
    """The rows in one call, which the denoiser that holds something for each of them needs."""
    whole = zip(rows, batched[1:], strict=True)
    now = rates(
        *(value if many else jnp.broadcast_to(value, (size, *value.shape)) for value, many in whole)
    )
    return now, jax.tree.map(lambda _: True, now)
