"""Diffusion posterior sampling as its authors run it: a normalised step at each ancestral one."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree
from jaxdiff.forward import levels
from jaxdiff.guidance._observed import require_observation
from jaxdiff.kernels import Kernel, p_given
from jaxdiff.kernels._kernel import Drawing, lift, noise
from jaxdiff.kernels._reverse import variance_function
from jaxdiff.observations import Observation
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


def dps_step(
    denoiser: Callable,
    schedule: Schedule,
    observation: Observation,
    scale: Any = 1.0,
    *,
    variance: Any = "small",
) -> Kernel:
    """Return the authors' kernel of diffusion posterior sampling: an approximation, always biased.

        x_s ~ p(x_s | x_t),   then   x_s <- x_s - zeta_t c_s c_t grad_x |y - A D(x_t)|^2
        zeta_t = scale / |y - A D(x_t)|,   c^2 = alpha^2 + sigma^2

    The length of the step depends neither on sigma_t nor on the residual. On a schedule that
    preserves variance c = 1: the paper's step. On any other one c makes the step that of the
    variance preserving process x / c, so that two schedules of one log-SNR draw the same x / c.
    `dps` is the step without the normalisation, with the size that Bayes' rule gives.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      observation: only its operator, y and mask count, not its noise. The operator need not be
        linear.
      scale: zeta', [] or [B], traced. The paper tunes it for each task. The authors' code takes the
        gradient of |y - A D|, which is half of this one.
      variance: of the model's steps, as in `kernels.p_mean_variance`.
    Returns:
      A Kernel without memory and with zero increments: one denoiser call and one vector-Jacobian
      product a step.
    Raises:
      ValueError: variance is unknown, or scale is known and not finite.
      TypeError: denoiser is no function, or observation is no Observation.
    Numerics: near the data a step has the length 2 scale |A^T r| / |r|, r = y - A D, however small
      r is. The samples come no nearer to the observation than that. A row with r = 0 takes the step
      of the model.
    Source: Chung et al. 2023, arXiv:2209.14687, Algorithm 1, with the step size of its experiments.
    """
    return lift(DPSStep(denoiser, schedule, observation, scale, variance=variance))


@pytree
class DPSStep(Drawing):
    """The algorithm of `dps_step`."""

    denoiser: Callable
    schedule: Schedule
    observation: Observation
    scale: Any = 1.0
    _: KW_ONLY
    variance: Any = "small"

    def __post_init__(self) -> None:
        _checks.finite("scale", self.scale)
        require_observation(self.observation)
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            variance=variance_function(self.variance),
        )

    def draw(self, key: Any, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Make the ancestral step, then the normalised one."""
        denoised, slope = self.residual_slope(x_t, t)
        p = p_given(denoised, self.schedule, x_t, t, s, variance=self.variance)
        size_t, size_s = (
            jnp.sqrt(level.alpha**2 + level.sigma**2) for level in levels(self.schedule, x_t, t, s)
        )
        scale = _rows.expand(jnp.asarray(self.scale, x_t.dtype), x_t)
        return p.at(noise(key, x_t, s)) - 2 * scale * size_s * size_t * slope

    def residual_slope(self, x_t: jax.Array, t: Any) -> tuple[Any, jax.Array]:
        """Return what the denoiser returned, and grad_x |y - A D(x)|, 0 where that is 0."""

        def both(x: jax.Array) -> tuple[jax.Array, Any]:
            denoised = self.denoiser(x, t)
            return x_0_of(denoised, x), denoised

        seen = self.observation
        x_0, pull, denoised = jax.vjp(both, x_t, has_aux=True)
        predicted, pull_back = jax.vjp(jax.vmap(seen.operator), x_0)
        y, observed = (
            _rows.lead(jnp.asarray(v, predicted.dtype), predicted.ndim)
            for v in (seen.y, seen.observed)
        )
        residual = observed * (predicted - y)
        length = _rows.expand(jnp.sqrt(_rows.event_sum(residual**2)), residual)
        direction = jnp.where(length > 0, residual / jnp.where(length > 0, length, 1), 0)
        return denoised, pull(pull_back(direction)[0])[0]
