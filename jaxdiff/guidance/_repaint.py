"""Inpainting by replacement."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._functions import Static
from jaxdiff._tree import as_function
from jaxdiff.forward import q_sample, q_step
from jaxdiff.kernels import Kernel, no_weight, p_mean_variance, without_memory
from jaxdiff.kernels._kernel import noise
from jaxdiff.observations import masked
from jaxdiff.schedules import Schedule


def repaint(
    denoiser: Callable,
    schedule: Schedule,
    y: jax.Array,
    observed: jax.Array,
    *,
    num_resamples: int = 10,
) -> Kernel:
    """Return RePaint's kernel: an approximation of inpainting, biased however many steps it takes.

        x_s = observed q(x_s | y) + (1 - observed) p(x_s | x_t),   then x_t ~ q(x_t | x_s) and again

    What is seen enters only through the other half of the next denoiser call; going back and forth
    lets the two halves agree, though on no posterior in particular.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      y: [*D], what is seen, without noise.
      observed: [*D], true or 1 where y is seen, false or 0 elsewhere: bool, int or float. A traced
        one counts as true where it is not 0.
      num_resamples: steps from t to s in each step, static; 1 is plain replacement (Song & Ermon).
    Returns:
      A Kernel without memory and with zero increments: num_resamples denoiser calls a step.
    Raises:
      ValueError: num_resamples < 1, observed is not shaped like y or has other values than 0 and 1,
        or y is known and not finite where it is seen.
      TypeError: y is not floating, or observed no mask.
    Source: Lugmayr et al. 2022, arXiv:2201.09865, Algorithm 1.
    """
    _checks.floating("y", y)
    _checks.same_shape("observed", observed, "y", y)
    _checks.positive_int("num_resamples", num_resamples)
    shown, y = masked("observed", observed, y)
    step = Partial(
        _repaint_step, Static(num_resamples), as_function("denoiser", denoiser), schedule, y, shown
    )
    return without_memory(step)


def _repaint_step(
    num_resamples: Static, denoiser: Partial, schedule: Schedule, y: jax.Array, observed: jax.Array,
    key: jax.Array, carry: Any, x_t: jax.Array, t: Any, s: Any,
) -> tuple[Any, jax.Array, jax.Array]:  # fmt: skip
    keys = _rows.keys(key, x_t.shape[0])
    known_0 = jnp.broadcast_to(y[None], x_t.shape).astype(x_t.dtype)

    def down(x: jax.Array, n: Any) -> jax.Array:
        known = q_sample(schedule, known_0, s, noise(_rows.fold(keys, 3 * n), x, s).astype(x.dtype))
        mean, variance = p_mean_variance(denoiser, schedule, x, t, s)
        unknown = mean + jnp.sqrt(variance) * noise(_rows.fold(keys, 3 * n + 1), x, s)
        return jnp.where(observed[None], known, unknown).astype(x.dtype)

    def again(n: Any, x: jax.Array) -> jax.Array:
        eps = _rows.normal(_rows.fold(keys, 3 * n + 2), x).astype(x.dtype)
        return q_step(schedule, down(x, n), s, t, eps)

    x_t = jax.lax.fori_loop(0, num_resamples.value - 1, again, x_t)
    return carry, down(x_t, num_resamples.value - 1), no_weight(x_t)
