"""The steps of a discrete chain: the learned reverse process p(x_s | x_t), DDPM's draw of it, and DDIM."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks
from jaxdiff._functions import Static
from jaxdiff._tree import as_function
from jaxdiff.forward import Normal, level, q_posterior
from jaxdiff.kernels._kernel import TINY, Kernel, no_weight, noise, without_memory
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule

VARIANCES = ("small", "large", "learned", "optimal")


def p_mean_variance(
    denoiser: Callable,
    schedule: Schedule,
    x_t: jax.Array,
    t: Any,
    s: Any,
    *,
    variance: Any = "small",
) -> Normal:
    """Return the learned reverse process p(x_s | x_t): the posterior q(x_s | x_t, x_0) with x_0 = D(x_t, t).

        small    Var q(x_s | x_t, x_0), right for data at one point
        large    Var q(x_s | x_t) for data ~ N(0, I), which is beta_t of a variance-preserving process
        learned  exp(f log large + (1 - f) log small), f from the network
        optimal  small + (alpha_s (1 - exp(lambda_t - lambda_s)))^2 Var[x_0 | x_t], the least KL to
        the true reversal a number f in [0, 1]: between small and large as above, the same
        everywhere

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t], or a `Denoised` with the fraction or the variance that is
        asked for.
      schedule: the noise schedule.
      x_t: state at time t, [B, *D], floating.
      t: time of x_t, [] or [B].
      s: earlier time, [] or [B], s <= t.
      variance: one of VARIANCES, or a fraction, [], traced.
    Returns:
      Normal over x_s: mean and variance, both [B, *D], dtype of x_t.
    Raises:
      ValueError: unknown variance, shapes do not fit, s > t where both are known.
      TypeError: "learned" or "optimal" with a denoiser that does not say what they need.
    Source: Ho et al. 2020, arXiv:2006.11239, Section 3.2; learned: Nichol & Dhariwal 2021,
      arXiv:2102.09672, Eq. (15); optimal: Bao et al. 2022, arXiv:2201.06503, Theorem 1.
    """
    variance, denoised = as_variance(variance), denoiser(x_t, t)
    mean, small = q_posterior(schedule, x_t, x_0_of(denoised, x_t), t, s)
    return Normal(
        mean, reverse_variance(denoised, schedule, x_t, t, s, variance=variance, small=small)
    )


def reverse_variance(
    denoised: Any,
    schedule: Schedule,
    x_t: jax.Array,
    t: Any,
    s: Any,
    *,
    variance: Any,
    small: Any = None,
) -> jax.Array:
    """Return the variance of the learned reverse process from what the denoiser said.

    Args:
      denoised: what the denoiser returned for (x_t, t).
      schedule: the noise schedule.
      x_t: state at time t, [B, *D], floating.
      t: time of x_t, [] or [B].
      s: earlier time, [] or [B], s <= t.
      variance: as in `p_mean_variance`.
      small: the variance that "small" stands for, [B, *D]; None is Var q(x_s | x_t, x_0).
    Returns:
      [B, *D], dtype of x_t.
    Raises:
      TypeError: "learned" or "optimal" with a denoiser that does not say what they need.
    """
    variance, given = kind_of(variance), q_posterior(schedule, x_t, x_t, t, s).variance
    small = given if small is None else small
    if isinstance(variance, str) and variance == "small":
        return small
    if isinstance(variance, str) and variance == "optimal":
        return given + _spread(schedule, x_t, t, s, _said(denoised, "variance")).astype(given.dtype)
    late = level(schedule, t, x_t)
    unit = late.sigma**2 / (late.alpha**2 + late.sigma**2)  # Var[x_0 | x_t] of data ~ N(0, I)
    large = given + _spread(schedule, x_t, t, s, unit).astype(given.dtype)
    if isinstance(variance, str) and variance == "large":
        return large
    fraction = (
        _said(denoised, "fraction")
        if isinstance(variance, str)
        else jnp.asarray(variance, large.dtype)
    )
    log_small, log_large = (
        jnp.log(jnp.maximum(v, jnp.finfo(v.dtype).tiny)) for v in (small, large)
    )
    return jnp.exp(log_small + fraction * (log_large - log_small))


def as_variance(variance: Any) -> Any:
    """Return what a user gave for a reverse variance as an argument of a pytree: a name is static, a fraction traced.

    Args:
      variance: one of VARIANCES, or a fraction; or what this function returned.
    Returns:
      What `p_mean_variance` and `reverse_variance` take.
    Raises:
      ValueError: it is neither.
    """
    if isinstance(variance, Static):
        return variance
    if isinstance(variance, str):
        _checks.choice("variance", variance, VARIANCES)
        return Static(variance)
    _checks.values(
        "variance", variance, "a name or a fraction in [0, 1]", lambda f: (f >= 0) & (f <= 1)
    )
    return variance


def kind_of(variance: Any) -> Any:
    """Return the name or the fraction that `as_variance` was given."""
    return variance.value if isinstance(variance, Static) else variance


def _said(denoised: Any, name: str) -> jax.Array:
    value = getattr(denoised, name, None)
    if value is None:
        raise TypeError(
            f"denoiser: expected a Denoised with its {name}, got {type(denoised).__name__} without"
        )
    return value


def _spread(
    schedule: Schedule, x_t: jax.Array, t: Any, s: Any, x_0_variance: jax.Array
) -> jax.Array:
    """What a variance of x_0 given x_t adds to that of x_s, through the posterior's mean."""
    early, late = level(schedule, s, x_t), level(schedule, t, x_t)
    return (early.alpha * jnp.expm1(late.log_snr - early.log_snr)) ** 2 * x_0_variance


def ancestral(denoiser: Callable, schedule: Schedule, variance: Any = "small") -> Kernel:
    """Return DDPM's kernel: a draw of p(x_s | x_t), whose last step, to s = 0, returns the mean.

        x_s = mean + sqrt(variance) z,   z ~ N(0, I) for s > 0, else 0

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t], or a `Denoised` with the fraction or the variance that is
        asked for.
      schedule: the noise schedule.
      variance: one of VARIANCES, or a fraction, as in `p_mean_variance`.
    Returns:
      A Kernel without memory and with zero increments.
    Raises:
      ValueError: unknown variance.
    Source: Ho et al. 2020, arXiv:2006.11239, Algorithm 2.
    """
    step = Partial(
        _ancestral_step, as_variance(variance), as_function("denoiser", denoiser), schedule
    )
    return without_memory(step)


def _ancestral_step(
    variance: Any,
    denoiser: Partial,
    schedule: Schedule,
    key: jax.Array,
    carry: Any,
    x_t: jax.Array,
    t: Any,
    s: Any,
) -> tuple[Any, jax.Array, jax.Array]:
    mean, squared = p_mean_variance(denoiser, schedule, x_t, t, s, variance=variance)
    return carry, (mean + jnp.sqrt(squared) * noise(key, x_t, s)).astype(x_t.dtype), no_weight(x_t)


def ddim(denoiser: Callable, schedule: Schedule, eta: Any = 0.0) -> Kernel:
    """Return DDIM's kernel: deterministic at eta = 0, DDPM's "small" ancestral kernel at eta = 1.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z,   eps = (x_t - alpha_t x_0) / sigma_t
        v = eta^2 Var q(x_s | x_t, x_0)

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      eta: share of the ancestral noise, [], in [0, 1], traced.
    Returns:
      A Kernel without memory and with zero increments.
    Raises:
      ValueError: eta known and outside [0, 1].
    Numerics: where sigma_s = 0 the step returns x_0; gradients, also in eta and the schedule, are
      finite for s < t.
    Source: Song et al. 2021, arXiv:2010.02502, Eqs. (12) and (16).
    """
    _checks.values("eta", eta, "a share in [0, 1]", lambda e: (e >= 0) & (e <= 1))
    return without_memory(Partial(_ddim_step, as_function("denoiser", denoiser), schedule, eta))


def _ddim_step(
    denoiser: Partial,
    schedule: Schedule,
    eta: Any,
    key: jax.Array,
    carry: Any,
    x_t: jax.Array,
    t: Any,
    s: Any,
) -> tuple[Any, jax.Array, jax.Array]:
    early, late = level(schedule, s, x_t), level(schedule, t, x_t)
    x_0 = x_0_of(denoiser(x_t, t), x_t)
    eps = (x_t - late.alpha * x_0) / late.sigma
    share = jnp.asarray(eta, early.sigma.dtype)
    # A step up, from data to noise, adds none: there eps is kept whole.
    gap = jnp.minimum(late.log_snr - early.log_snr, 0)
    ratio, kept = jnp.exp(gap), -jnp.expm1(gap)
    # sqrt(sigma_s^2 - v) / sigma_s without its cancellation; the last term keeps the root's
    # gradient finite at 0.
    old = jnp.sqrt(ratio + (1 - share**2) * kept + TINY)
    new = share * jnp.sqrt(kept + TINY)
    x_s = early.alpha * x_0 + early.sigma * (old * eps + new * noise(key, x_t, s, strength=eta))
    return carry, x_s.astype(x_t.dtype), no_weight(x_t)
