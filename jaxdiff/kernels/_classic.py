"""Solvers in the schedule's own variables: Euler in t, Heun with churn in sigma / alpha, Euler-Maruyama."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function
from jaxdiff.forward import level, q_posterior, rates
from jaxdiff.kernels._exponential import REACH, exponential_euler
from jaxdiff.kernels._kernel import TINY, Kernel, is_noise, no_weight, noise, without_memory
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


def euler(denoiser: Callable, schedule: Schedule) -> Kernel:
    """Return Euler's method for the probability-flow ODE in the schedule's time t.

        x_s = x_t + (s - t) (alpha'_t x_0 + sigma'_t eps),   eps = (x_t - alpha_t x_0) / sigma_t

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
    Returns:
      A Kernel without memory and with zero increments; one denoiser call a step, order 1. On a
      rectified flow it is DDIM; elsewhere DDIM is the better method of the same order.
    Source: Lipman et al. 2022, arXiv:2210.02747, Section 6.2.
    """
    return without_memory(Partial(_euler_step, as_function("denoiser", denoiser), schedule))


def _euler_step(
    denoiser: Partial,
    schedule: Schedule,
    key: jax.Array,
    carry: Any,
    x_t: jax.Array,
    t: Any,
    s: Any,
) -> tuple[Any, jax.Array, jax.Array]:
    late, x_0 = level(schedule, t, x_t), x_0_of(denoiser(x_t, t), x_t)
    d_alpha, d_sigma = rates(schedule, t, x_t)
    velocity = d_alpha * x_0 + d_sigma * (x_t - late.alpha * x_0) / late.sigma
    x_s = x_t + _rows.expand(jnp.asarray(s - t, late.sigma.dtype), x_t) * velocity
    return carry, x_s.astype(x_t.dtype), no_weight(x_t)


def heun(
    denoiser: Callable, schedule: Schedule, churn: Any = 0.0, *, churn_noise: Any = 1.0
) -> Kernel:
    """Return EDM's sampler: noise is added, then Heun's method goes down from the higher level.

        r = sigma / alpha,   r_u = (1 + churn) r_t,   x_u = (alpha_u / alpha_t) x_t + churn_noise sqrt(.) eps
        x_s = DDIM(x_u, u -> s) + alpha_s (r_u / r_s - 1) (D(x_s', s) - D(x_u, u)) / 2,   x_s' = DDIM(x_u, u -> s)

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
      DDIM's; so are the steps from noise without data and to data without noise. It wants many
      steps or a grid such as `grids.karras`.
    Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 2, its step written so that nothing
    cancels.
    """
    _checks.values("churn", churn, "a factor of at least 0", lambda v: v >= 0)
    _checks.values("churn_noise", churn_noise, "a scale of at least 0", lambda v: v >= 0)
    return without_memory(
        Partial(_heun_step, as_function("denoiser", denoiser), schedule, churn, churn_noise)
    )


def _heun_step(
    denoiser: Partial, schedule: Schedule, churn: Any, churn_noise: Any,
    key: jax.Array, carry: Any, x_t: jax.Array, t: Any, s: Any,
) -> tuple[Any, jax.Array, jax.Array]:  # fmt: skip
    start, early = level(schedule, t, x_t), level(schedule, s, x_t)
    raised = schedule.time(start.log_snr - 2 * jnp.log1p(jnp.asarray(churn, start.sigma.dtype)))
    u = jnp.where(
        jnp.asarray(churn) > 0, jnp.maximum(raised, t), t
    )  # t itself without churn, to the last bit
    late = level(schedule, u, x_t)
    kept = jnp.maximum(-jnp.expm1(late.log_snr - start.log_snr), 0)  # not below by rounding
    added = late.sigma * jnp.sqrt(kept + TINY)
    eps = noise(key, x_t, u, strength=churn)
    x_u = (late.alpha / start.alpha * x_t + churn_noise * added * eps).astype(x_t.dtype)
    x_0 = x_0_of(denoiser(x_u, u), x_u)
    x_s = exponential_euler(early, late, x_u, x_0).astype(x_t.dtype)
    step = (early.log_snr - late.log_snr) / 2
    change = (
        early.alpha * jnp.expm1(step) / 2 * (x_0_of(denoiser(x_s, s), x_s) - x_0)
    )  # r_u / r_s - 1 = e^step - 1
    x_s = x_s + jnp.where(step > jnp.log(REACH), 0, change)
    return carry, x_s.astype(x_t.dtype), no_weight(x_t)


def euler_maruyama(denoiser: Callable, schedule: Schedule) -> Kernel:
    """Return the Euler-Maruyama method for the reverse SDE in the schedule's time t.

        x_s = x_t + (s - t) (f x_t - g^2 score) + g sqrt(t - s) eps,   f = alpha' / alpha,   g^2 = -sigma^2 lambda'

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
    return without_memory(
        Partial(_euler_maruyama_step, as_function("denoiser", denoiser), schedule)
    )


def _euler_maruyama_step(
    denoiser: Partial,
    schedule: Schedule,
    key: jax.Array,
    carry: Any,
    x_t: jax.Array,
    t: Any,
    s: Any,
) -> tuple[Any, jax.Array, jax.Array]:
    late, x_0 = level(schedule, t, x_t), x_0_of(denoiser(x_t, t), x_t)
    d_alpha, d_sigma = rates(schedule, t, x_t)
    infinite = is_noise(late)
    alpha = jnp.where(infinite, 1, late.alpha)
    eps = (x_t - late.alpha * x_0) / late.sigma
    # f x - g^2 score with g^2 = 2 sigma (sigma' - f sigma) and score = -eps / sigma; x = alpha x_0
    # + sigma eps.
    drift = d_alpha * x_0 + (2 * d_sigma - d_alpha * late.sigma / alpha) * eps
    squared = jnp.maximum(2 * late.sigma * (d_sigma - d_alpha * late.sigma / alpha), 0)
    back = _rows.expand(jnp.asarray(t - s, late.sigma.dtype), x_t)
    mean, variance = q_posterior(schedule, x_t, x_0, t, s)
    mean = jnp.where(infinite, mean, x_t - back * drift)
    variance = jnp.where(infinite, variance, squared * back)
    return carry, (mean + jnp.sqrt(variance) * noise(key, x_t, s)).astype(x_t.dtype), no_weight(x_t)
