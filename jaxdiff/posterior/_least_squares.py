"""Clean data near a state and seen by a linear observation: p(y | z) N(z; x, I / precision)."""

import jax
import jax.numpy as jnp

from jaxdiff import _rows
from jaxdiff.guidance._observed import conjugate_gradients
from jaxdiff.observations import Observation


def conditioned(
    observation: Observation,
    x: jax.Array,
    precision: jax.Array,
    *,
    keys: tuple[jax.Array, jax.Array] | None = None,
    num_iterations: int,
) -> jax.Array:
    """Return the mean of p(y | z) N(z; x, I / precision), or a draw of it.

        mean = argmin_z |y - A z|^2 / noise_std^2 + precision |z - x|^2

    A draw is the minimiser for another y and another x, with noise of their own variances.

    Args:
      observation: linear, with Gaussian noise.
      x: states, [B, *D].
      precision: broadcasts against x.
      keys: None for the mean; for a draw, keys for the noise of y and of x, one a row each.
      num_iterations: iterations of conjugate gradients. As many as x has entries are exact.
    Returns:
      [B, *D].
    Source: Orieux et al. 2012, perturbation optimisation.
    """
    observe = jax.vmap(observation.operator)
    predicted, transpose = jax.vjp(observe, x)
    y, observed, std = (
        _rows.lead(jnp.asarray(v, x.dtype), predicted.ndim)
        for v in (observation.y, observation.observed, observation.noise_std)
    )

    def curvature(z: jax.Array) -> jax.Array:
        return transpose(observed * observe(z) / std**2)[0] + precision * z

    residual, moved = y - predicted, jnp.zeros_like(x)
    if keys is not None:
        noise_y, noise_x = (
            _rows.normal(key, like).astype(x.dtype)
            for key, like in zip(keys, (predicted, x), strict=True)
        )
        residual, moved = residual + std * noise_y, jnp.sqrt(precision) * noise_x
    right = transpose(observed * residual / std**2)[0] + moved
    return x + conjugate_gradients(curvature, right, num_iterations)
