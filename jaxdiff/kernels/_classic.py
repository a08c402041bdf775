"""Euler in sigma / alpha and in t, Heun with churn, and Euler-Maruyama."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree
from jaxdiff.forward import level, q_posterior, rates
from jaxdiff.kernels._discrete import ddim
from jaxdiff.kernels._exponential import REACH, exponential_euler
from jaxdiff.kernels._kernel import TINY, Drawing, Kernel, is_noise, lift, noise
from jaxdiff.normal import Normal
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


def euler(denoiser: Callable, schedule: Schedule) -> Kernel:
    """Return Euler's method as EDM and k-diffusion have it: a step in r = sigma / alpha.

        x_s / alpha_s = x_t / alpha_t + (r_s - r_t) eps,   eps = (x_t - alpha_t x_0) / sigma_t

    This is `ddim` at eta = 0, in every family of schedules. `euler_t` steps in the time t.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
    Returns:
      A Kernel without memory and with zero increments; one denoiser call a step, order 1.
    Raises:
      TypeError: denoiser is no function.
    Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 1 without its second-order correction;
      as DDIM: Song et al. 2021, arXiv:2010.02502, Eq. (13).
    """
    return ddim(denoiser, schedule)


def euler_t(denoiser: Callable, schedule: Schedule) -> Kernel:
    """Return Euler's method for the probability-flow ODE in the schedule's own time t.

        x_s = x_t + (s - t) (alpha'_t x_0 + sigma'_t eps),   eps = (x_t - alpha_t x_0) / sigma_t

    Flow matching calls this Euler's method. On a rectified flow it is `ddim`. Elsewhere the two are
    different methods of the same order. On `schedules.edm`, where sigma is exponential in t, this
    one is six times as far from the ODE's end at 10 uniform steps (the mixture of the tests). On
    `cosine` and `linear` it is less than half as far.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
    Returns:
      A Kernel without memory and with zero increments; one denoiser call a step, order 1.
    Raises:
      TypeError: denoiser is no function.
    Source: Lipman et al. 2022, arXiv:2210.02747, Section 6.2.
    """
    return lift(EulerT(denoiser, schedule))


@pytree
class EulerT(Drawing):
    """The algorithm of `euler_t`."""

    denoiser: Callable
    schedule: Schedule

    def __post_init__(self) -> None:
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def draw(self, key: jax.Array | None, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Go along the velocity."""
        alpha_t, sigma_t, _ = level(self.schedule, t, x_t)
        x_0 = x_0_of(self.denoiser(x_t, t), x_t)
        d_alpha, d_sigma = rates(self.schedule, t, x_t)
        velocity = d_alpha * x_0 + d_sigma * (x_t - alpha_t * x_0) / sigma_t
        return x_t + _rows.expand(jnp.asarray(s - t, sigma_t.dtype), x_t) * velocity


def heun(
    denoiser: Callable, schedule: Schedule, churn: Any = 0.0, *, churn_noise: Any = 1.0
) -> Kernel:
    """Return EDM's sampler: noise is added, then Heun's method goes down from the higher level.

        r = sigma / alpha,   r_u = (1 + churn) r_t
        x_u = (alpha_u / alpha_t) x_t + churn_noise sqrt(.) eps,   x_s' = DDIM(x_u, u -> s)
        x_s = x_s' + alpha_s (r_u / r_s - 1) (D(x_s', s) - D(x_u, u)) / 2

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      churn: gamma of the paper, [], at least 0, traced: how far each step first goes up in r,
        though not beyond t = 1. 0 is Heun's method for the probability-flow ODE.
      churn_noise: S_noise of the paper, [], traced: the scale of the added noise.
    Returns:
      A Kernel without memory and with zero increments; two denoiser calls a step, order 2 at churn
      = 0.
    Raises:
      ValueError: churn known and negative.
    Numerics: a step that lowers r to less than a quarter, where Heun's method overshoots, is
      DDIM's; so are the steps from noise without data and to data without noise. Take many steps,
      or a grid such as `grids.karras`.
    Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 2, its step written so that nothing
    cancels.
    """
    return lift(Heun(denoiser, schedule, churn, churn_noise))


@pytree
class Heun(Drawing):
    """The algorithm of `heun`."""

    denoiser: Callable
    schedule: Schedule
    churn: Any = 0.0
    churn_noise: Any = 1.0

    def __post_init__(self) -> None:
        _checks.values("churn", self.churn, "a factor of at least 0", lambda v: v >= 0)
        _checks.values("churn_noise", self.churn_noise, "a scale of at least 0", lambda v: v >= 0)
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def _raised(self, key: Any, x_t: jax.Array, t: Any) -> tuple[jax.Array, Any]:
        """Add noise: the state at the time u >= t, and u. Without churn they are x_t and t."""
        alpha_t, sigma_t, lambda_t = level(self.schedule, t, x_t)
        churn, scale = (jnp.asarray(v, sigma_t.dtype) for v in (self.churn, self.churn_noise))
        u = self.schedule.time(lambda_t - 2 * jnp.log1p(churn))
        u = jnp.where(churn > 0, jnp.maximum(u, t), t)  # t itself without churn, to the last bit
        alpha_u, sigma_u, lambda_u = level(self.schedule, u, x_t)
        kept = jnp.maximum(-jnp.expm1(lambda_u - lambda_t), 0)  # not below by rounding
        eps = noise(key, x_t, u, strength=self.churn)
        x_u = alpha_u / alpha_t * x_t + scale * (sigma_u * jnp.sqrt(kept + TINY)) * eps
        return x_u.astype(x_t.dtype), u

    def draw(self, key: jax.Array | None, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Add noise, then make Heun's step."""
        x_u, u = self._raised(key, x_t, t)
        level_u, level_s = level(self.schedule, u, x_t), level(self.schedule, s, x_t)
        x_0 = x_0_of(self.denoiser(x_u, u), x_u)
        x_s = exponential_euler(level_u, level_s, x_u, x_0).astype(x_t.dtype)
        h = (level_s.log_snr - level_u.log_snr) / 2  # r_u / r_s - 1 = e^h - 1
        change = x_0_of(self.denoiser(x_s, s), x_s) - x_0
        change = level_s.alpha * jnp.expm1(h) / 2 * change
        return x_s + jnp.where(h > jnp.log(REACH), 0, change)


def euler_maruyama(denoiser: Callable, schedule: Schedule) -> Kernel:
    """Return the Euler-Maruyama method for the reverse SDE in the schedule's time t.

        x_s = x_t + (s - t) (f x_t - g^2 score) + g sqrt(t - s) eps
        f = alpha' / alpha,   g^2 = -sigma^2 lambda'

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
    Returns:
      A Kernel without memory and with zero increments; one denoiser call a step, of weak order 1.
      `ancestral` and `dpmpp_1s(tau=1)` integrate the linear part exactly: the stochastic
      exponential integrator.
    Numerics: from noise without data, where f and g are infinite, the step is `ancestral`'s.
    Source: Song et al. 2021, arXiv:2011.13456, Eq. (6); g^2 in this form: Kingma et al. 2021,
    arXiv:2107.00630.
    """
    return lift(EulerMaruyama(denoiser, schedule))


@pytree
class EulerMaruyama(Drawing):
    """The algorithm of `euler_maruyama`."""

    denoiser: Callable
    schedule: Schedule

    def __post_init__(self) -> None:
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def draw(self, key: jax.Array | None, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Go along the drift and add noise."""
        level_t, x_0 = level(self.schedule, t, x_t), x_0_of(self.denoiser(x_t, t), x_t)
        alpha_t, sigma_t, _ = level_t
        d_alpha, d_sigma = rates(self.schedule, t, x_t)
        infinite = is_noise(level_t)
        alpha = jnp.where(infinite, 1, alpha_t)
        eps = (x_t - alpha_t * x_0) / sigma_t
        # f x - g^2 score, with g^2 = 2 sigma (sigma' - f sigma), score = -eps / sigma and
        # x = alpha x_0 + sigma eps.
        drift = d_alpha * x_0 + (2 * d_sigma - d_alpha * sigma_t / alpha) * eps
        squared = jnp.maximum(2 * sigma_t * (d_sigma - d_alpha * sigma_t / alpha), 0)
        back = _rows.expand(jnp.asarray(t - s, sigma_t.dtype), x_t)
        mean, variance = q_posterior(self.schedule, x_t, x_0, t, s)
        mean = jnp.where(infinite, mean, x_t - back * drift)
        variance = jnp.where(infinite, variance, squared * back)
        return Normal(mean, variance).at(noise(key, x_t, s))
