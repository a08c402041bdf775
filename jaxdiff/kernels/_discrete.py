"""The steps of a discrete chain: DDPM's draw of p(x_s | x_t), and DDIM."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks
from jaxdiff._tree import as_function, put, pytree
from jaxdiff.forward import level
from jaxdiff.kernels._kernel import TINY, Drawing, Kernel, lift, noise
from jaxdiff.kernels._reverse import p_mean_variance, variance_function
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


def ancestral(denoiser: Callable, schedule: Schedule, variance: Any = "small") -> Kernel:
    """Return DDPM's kernel: a draw of p(x_s | x_t), whose last step, to s = 0, returns the mean.

        x_s = mean + sqrt(variance) z,   z ~ N(0, I) for s > 0, else 0

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t], or a `Denoised` with what the variance needs.
      schedule: the noise schedule.
      variance: one of VARIANCES, or a fraction, as in `p_mean_variance`.
    Returns:
      A Kernel without memory and with zero increments.
    Raises:
      ValueError: unknown variance.
    Source: Ho et al. 2020, arXiv:2006.11239, Algorithm 2.
    """
    return lift(Ancestral(denoiser, schedule, variance))


@pytree
class Ancestral(Drawing):
    """The algorithm of `ancestral`."""

    denoiser: Callable
    schedule: Schedule
    variance: Any = "small"

    def __post_init__(self) -> None:
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            variance=variance_function(self.variance),
        )

    def draw(self, key: jax.Array | None, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Draw x_s."""
        p = p_mean_variance(self.denoiser, self.schedule, x_t, t, s, variance=self.variance)
        return p.at(noise(key, x_t, s))


def ddim(denoiser: Callable, schedule: Schedule, eta: Any = 0.0) -> Kernel:
    """Return DDIM's kernel: deterministic at eta = 0, DDPM's "small" ancestral kernel at eta = 1.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z
        eps = (x_t - alpha_t x_0) / sigma_t,   v = eta^2 Var q(x_s | x_t, x_0)

    At eta = 0 it is Euler's method in sigma / alpha: what EDM and k-diffusion call Euler.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      eta: fraction of the ancestral noise, [], in [0, 1], traced.
    Returns:
      A Kernel without memory and with zero increments.
    Raises:
      ValueError: eta known and outside [0, 1].
    Numerics: where sigma_s = 0 the step returns x_0; gradients, also in eta and the schedule, are
      finite for s < t.
    Source: Song et al. 2021, arXiv:2010.02502, Eqs. (12) and (16).
    """
    return lift(DDIM(denoiser, schedule, eta))


@pytree
class DDIM(Drawing):
    """The algorithm of `ddim`."""

    denoiser: Callable
    schedule: Schedule
    eta: Any = 0.0

    def __post_init__(self) -> None:
        _checks.values("eta", self.eta, "a fraction in [0, 1]", lambda e: (e >= 0) & (e <= 1))
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def draw(self, key: jax.Array | None, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Draw x_s."""
        alpha_t, sigma_t, lambda_t = level(self.schedule, t, x_t)
        alpha_s, sigma_s, lambda_s = level(self.schedule, s, x_t)
        x_0 = x_0_of(self.denoiser(x_t, t), x_t)
        eps = (x_t - alpha_t * x_0) / sigma_t
        eta = jnp.asarray(self.eta, sigma_s.dtype)
        # A step up, from data to noise, adds no noise: there eps is kept whole.
        gap = jnp.minimum(lambda_t - lambda_s, 0)
        ratio, kept = jnp.exp(gap), -jnp.expm1(gap)
        # sqrt(sigma_s^2 - v) / sigma_s without cancellation. TINY keeps the gradient finite at 0.
        old = jnp.sqrt(ratio + (1 - eta**2) * kept + TINY)
        new = eta * jnp.sqrt(kept + TINY)
        return alpha_s * x_0 + sigma_s * (old * eps + new * noise(key, x_t, s, strength=self.eta))
