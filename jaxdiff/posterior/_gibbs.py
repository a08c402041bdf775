"""Split Gibbs sampling: alternate draws of the data and of a noisy copy of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import level
from jaxdiff.guidance._observed import require_observation
from jaxdiff.kernels import Kernel, ancestral
from jaxdiff.kernels._kernel import Drawing, lift
from jaxdiff.observations import Observation
from jaxdiff.posterior._least_squares import conditioned
from jaxdiff.sampling import run
from jaxdiff.schedules import Schedule


@pytree
class SplitGibbs(Drawing):
    """The split Gibbs sampler of a linear observation."""

    denoiser: Callable
    schedule: Schedule
    observation: Observation
    num_denoising: int = static(default=20)
    num_iterations: int = static(default=20)

    def __post_init__(self) -> None:
        require_observation(self.observation)
        _checks.positive_int("num_denoising", self.num_denoising)
        _checks.positive_int("num_iterations", self.num_iterations)
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def draw(self, key: jax.Array, x: jax.Array, t: Any, s: Any) -> jax.Array:
        """Draw z given x, then x given z."""
        key_y, key_z, key_x = _rows.split(_rows.keys(key, x.shape[0]), 3)
        alpha, sigma, _ = level(self.schedule, t, x)
        z = conditioned(
            self.observation,
            x,
            (alpha / sigma) ** 2,
            keys=(key_y, key_z),
            num_iterations=self.num_iterations,
        )
        ts = t * jnp.linspace(1, 0, self.num_denoising + 1, dtype=x.dtype)
        reverse = ancestral(self.denoiser, self.schedule)
        return run(key_x, reverse, (alpha * z).astype(x.dtype), ts).x


def split_gibbs(
    denoiser: Callable,
    schedule: Schedule,
    observation: Observation,
    *,
    num_denoising: int = 20,
    num_iterations: int = 20,
) -> Kernel:
    """Return the split Gibbs sampler: x and a copy z of it at distance rho = sigma_t / alpha_t.

        z ~ p(y | z) N(z; x, rho^2 I),   x ~ p(x) N(z; x, rho^2 I)

    x is drawn by the model, from x_t = alpha_t z down to t = 0. At a fixed t the invariant law of x
    is p(x) int p(y | z) N(z; x, rho^2 I) dz. It is the posterior in the limit of small rho. The
    times of the grid are the levels: start at a moderate one, then take some steps at small ones.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      observation: linear, with Gaussian noise.
      num_denoising: steps of `kernels.ancestral` from t to 0, static: the denoiser calls of a step.
      num_iterations: iterations of conjugate gradients for z, static. As many as x has entries are
        exact.
    Returns:
      A Kernel without memory and with zero increments, since a Markov chain has no evidence. Its
      state is x itself, and any start is valid.
    Raises:
      ValueError: num_denoising or num_iterations < 1.
      TypeError: observation is not an Observation, or denoiser is not a function.
    Source: Coeurdoux et al. 2023, arXiv:2304.11134, Algorithm 1; the draw of z: Orieux et al. 2012,
    perturbation optimisation.
    """
    return lift(SplitGibbs(denoiser, schedule, observation, num_denoising, num_iterations))
