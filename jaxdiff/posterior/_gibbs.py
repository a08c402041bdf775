"""Split Gibbs sampling: data and a noisy copy of them, drawn in turns."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._functions import Static
from jaxdiff._tree import as_function
from jaxdiff.forward import level
from jaxdiff.guidance import conjugate_gradients
from jaxdiff.kernels import Kernel, ancestral, no_weight, without_memory
from jaxdiff.observations import Observation
from jaxdiff.sampling import run
from jaxdiff.schedules import Schedule


def split_gibbs(
    denoiser: Callable,
    schedule: Schedule,
    observation: Observation,
    *,
    num_denoising: int = 20,
    num_iterations: int = 20,
) -> Kernel:
    """Return the split Gibbs sampler: x and a copy z of it, a distance rho = sigma_t / alpha_t apart, in turns.

        z ~ p(y | z) N(z; x, rho^2 I),   x ~ p(x) N(z; x, rho^2 I): the model run from x_t = alpha_t z down to 0

    At a fixed t it leaves p(x) int p(y | z) N(z; x, rho^2) dz as it is, which is the posterior as
    rho goes to 0. The grid's times are the levels: a moderate one to begin with, then some steps at
    small ones.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      observation: linear, with Gaussian noise.
      num_denoising: steps of `kernels.ancestral` from t to 0, static: denoiser calls a step.
      num_iterations: of conjugate gradients for z, static; as many as x has entries are exact.
    Returns:
      A Kernel without memory, whose state is x itself (any start will do), with zero increments: a
      Markov chain has no evidence.
    Raises:
      ValueError: num_denoising or num_iterations < 1, or observation's mask is known and has other
        values than 0 and 1.
      TypeError: observation is no Observation.
    Source: Coeurdoux et al. 2023, arXiv:2304.11134, Algorithm 1; the draw of z: Orieux et al. 2012,
      perturbation optimisation.
    """
    if not isinstance(observation, Observation):
        raise TypeError(f"observation: expected an Observation, got {type(observation).__name__}")
    _checks.positive_int("num_denoising", num_denoising)
    _checks.positive_int("num_iterations", num_iterations)
    options = Static((num_denoising, num_iterations))
    return without_memory(
        Partial(_gibbs_step, options, as_function("denoiser", denoiser), schedule, observation)
    )


def _gibbs_step(
    options: Static, denoiser: Partial, schedule: Schedule, seen: Observation,
    key: jax.Array, carry: Any, x: jax.Array, t: Any, s: Any,
) -> tuple[Any, jax.Array, jax.Array]:  # fmt: skip
    num_denoising, num_iterations = options.value
    keys = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(_rows.keys(key, x.shape[0]))
    alpha, sigma, _ = level(schedule, t, x)
    precision = (alpha / sigma) ** 2
    observe = jax.vmap(seen.operator)
    predicted, pull_back = jax.vjp(observe, x)
    weight, std = (
        _rows.lead(jnp.asarray(v, x.dtype), predicted.ndim) for v in (seen.observed, seen.noise_std)
    )

    def curvature(z: jax.Array) -> jax.Array:
        return pull_back(weight * observe(z) / std**2)[0] + precision * z

    # z - x solves a least squares problem whose right-hand side is perturbed with the noise of both
    # factors.
    residual = weight * (
        seen.y[None] - predicted + std * _rows.normal(keys[0], predicted).astype(x.dtype)
    )
    right = pull_back(residual / std**2)[0] + jnp.sqrt(precision) * _rows.normal(keys[1], x).astype(
        x.dtype
    )
    z = x + conjugate_gradients(curvature, right, num_iterations)
    ts = t * jnp.linspace(1, 0, num_denoising + 1, dtype=x.dtype)
    denoised = run(keys[2], ancestral(denoiser, schedule), (alpha * z).astype(x.dtype), ts)
    return carry, denoised.x, no_weight(x)
