"""Inpainting by replacement."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import q_sample, q_step
from jaxdiff.kernels import Kernel, p_mean_variance
from jaxdiff.kernels._kernel import Drawing, lift, noise
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
    """Return RePaint's kernel: an approximation of inpainting, biased at any number of steps.

        x_s = observed q(x_s | y) + (1 - observed) p(x_s | x_t),   then x_t ~ q(x_t | x_s) and again

    The observed half reaches the other one only through the next denoiser call. Steps up and down
    let the two halves agree, but not on the posterior.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      y: observation without noise, [*D].
      observed: [*D], true or 1 where y is observed, false or 0 elsewhere: bool, int or float. A
        traced one counts as true where it is not 0.
      num_resamples: steps from t to s in each step, static; 1 is plain replacement (Song & Ermon).
    Returns:
      A Kernel without memory and with zero increments: num_resamples denoiser calls a step.
    Raises:
      ValueError: num_resamples < 1, observed is not shaped like y or has other values than 0 and 1,
        or y is known and not finite where it is observed.
      TypeError: y is not floating, or observed is not a mask.
    Source: Lugmayr et al. 2022, arXiv:2201.09865, Algorithm 1.
    """
    return lift(RePaint(denoiser, schedule, y, observed, num_resamples=num_resamples))


@pytree
class RePaint(Drawing):
    """The algorithm of `repaint`."""

    denoiser: Callable
    schedule: Schedule
    y: jax.Array
    observed: jax.Array
    _: KW_ONLY
    num_resamples: int = static(default=10)

    def __post_init__(self) -> None:
        _checks.floating("y", self.y)
        _checks.same_shape("observed", self.observed, "y", self.y)
        _checks.positive_int("num_resamples", self.num_resamples)
        observed, y = masked("observed", self.observed, self.y)
        put(self, denoiser=as_function("denoiser", self.denoiser), y=y, observed=observed)

    def draw(self, key: Any, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Step down and up in turns; the last step goes down."""
        keys = _rows.keys(key, x_t.shape[0])
        known_0 = jnp.broadcast_to(self.y[None], x_t.shape).astype(x_t.dtype)

        def down(x: jax.Array, n: Any) -> jax.Array:
            eps = noise(_rows.fold(keys, 3 * n), x, s).astype(x.dtype)
            known = q_sample(self.schedule, known_0, s, eps)
            p = p_mean_variance(self.denoiser, self.schedule, x, t, s)
            unknown = p.at(noise(_rows.fold(keys, 3 * n + 1), x, s))
            return jnp.where(self.observed[None], known, unknown).astype(x.dtype)

        def again(n: Any, x: jax.Array) -> jax.Array:
            eps = _rows.normal(_rows.fold(keys, 3 * n + 2), x).astype(x.dtype)
            return q_step(self.schedule, down(x, n), s, t, eps)

        x_t = jax.lax.fori_loop(0, self.num_resamples - 1, again, x_t)
        return down(x_t, self.num_resamples - 1)
