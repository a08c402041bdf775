"""One step of the reverse process, from t to an earlier s.

A kernel is a pair of functions, and every sampler, likelihood estimator and particle method is one:

    init(x_init, t) -> carry                                            what a step remembers, leaves [B, ...] or empty
    step(key, carry, x_t, t, s) -> (carry, x_s, log_weight_increment)   [B, *D] and [B], in nats

`key` is one typed key or one a row. Rows are independent; t and s are scalars. A kernel of an unweighted process
returns zero increments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._functions import Static, as_function
from jaxdiff.forward import Normal, level, q_posterior
from jaxdiff.prediction import Denoised, x_0_of
from jaxdiff.schedules import Schedule

VARIANCES = ("small", "large", "learned")
_TINY = 1e-35  # next to numbers of order one: nothing; still a normal float32


class Kernel(NamedTuple):
    """A reverse step with memory; a pytree of functions.

    Fields:
      init: (x_init [B, *D], t []) -> carry.
      step: (key, carry, x_t [B, *D], t [], s []) -> (carry, x_s [B, *D], log_weight_increment [B]).
    """

    init: Partial
    step: Partial


def p_mean_variance(
    denoiser: Callable, schedule: Schedule, x_t: jax.Array, t: Any, s: Any, *, variance: str = "small"
) -> Normal:
    """Return the learned reverse process p(x_s | x_t): the posterior q(x_s | x_t, x_0) with x_0 = D(x_t, t).

        small    Var q(x_s | x_t, x_0), right for data at one point
        large    Var q(x_s | x_t) for data ~ N(0, I), which is beta_t of a variance-preserving process
        learned  exp(f log large + (1 - f) log small), f from the network

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t], or a `Denoised` where variance is "learned".
      schedule: the noise schedule.
      x_t: state at time t, [B, *D], floating.
      t: time of x_t, [] or [B].
      s: earlier time, [] or [B], s <= t.
      variance: one of VARIANCES.
    Returns:
      Normal over x_s: mean and variance, both [B, *D], dtype of x_t.
    Raises:
      ValueError: unknown variance, shapes do not fit, s > t where both are known.
      TypeError: "learned" with a denoiser that returns no fraction.
    Source: Ho et al. 2020, arXiv:2006.11239, Section 3.2; learned: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. (15).
    """
    _checks.choice("variance", variance, VARIANCES)
    denoised = denoiser(x_t, t)
    mean, small = q_posterior(schedule, x_t, x_0_of(denoised), t, s)
    if variance == "small":
        return Normal(mean, small)
    large = jnp.broadcast_to(_large_variance(schedule, x_t, t, s), mean.shape).astype(mean.dtype)
    if variance == "large":
        return Normal(mean, large)
    if not isinstance(denoised, Denoised):
        raise TypeError("denoiser: expected a Denoised (make_denoiser(..., learned_variance=True)), got an array")
    log_small, log_large = (jnp.log(jnp.maximum(v, jnp.finfo(v.dtype).tiny)) for v in (small, large))
    return Normal(mean, jnp.exp(log_small + denoised.fraction * (log_large - log_small)))


def _large_variance(schedule: Schedule, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
    """Var q(x_s | x_t) for unit-variance data: the posterior's variance, and x_0's own carried through its mean."""
    early, late = level(schedule, s, x_t), level(schedule, t, x_t)
    kept = -jnp.expm1(late.log_snr - early.log_snr)
    x_0_variance = late.sigma**2 / (late.alpha**2 + late.sigma**2)
    return early.sigma**2 * kept + (early.alpha * kept) ** 2 * x_0_variance


def ancestral(denoiser: Callable, schedule: Schedule, variance: str = "small") -> Kernel:
    """Return DDPM's kernel: a draw of p(x_s | x_t), whose last step, to s = 0, returns the mean.

        x_s = mean + sqrt(variance) z,   z ~ N(0, I) for s > 0, else 0

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t], or a `Denoised` where variance is "learned".
      schedule: the noise schedule.
      variance: one of VARIANCES, as in `p_mean_variance`.
    Returns:
      A Kernel without memory and with zero increments.
    Raises:
      ValueError: unknown variance.
    Source: Ho et al. 2020, arXiv:2006.11239, Algorithm 2.
    """
    _checks.choice("variance", variance, VARIANCES)
    step = Partial(_ancestral_step, Static(variance), as_function("denoiser", denoiser), schedule)
    return Kernel(Partial(_no_memory), step)


def _no_memory(x_init: jax.Array, t: jax.Array) -> tuple[()]:
    return ()


def _ancestral_step(
    variance: Static, denoiser: Partial, schedule: Schedule, key: jax.Array, carry: Any, x_t: jax.Array, t: Any, s: Any
) -> tuple[Any, jax.Array, jax.Array]:
    mean, squared = p_mean_variance(denoiser, schedule, x_t, t, s, variance=variance.value)
    noise = jnp.where(jnp.asarray(s) > 0, jnp.sqrt(squared), 0) * _rows.normal(key, x_t)
    return carry, (mean + noise).astype(x_t.dtype), no_weight(x_t)


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
    Numerics: where sigma_s = 0 the step returns x_0; gradients, also in eta and the schedule, are finite for s < t.
    Source: Song et al. 2021, arXiv:2010.02502, Eqs. (12) and (16).
    """
    _checks.values("eta", eta, "a share in [0, 1]", lambda e: (e >= 0) & (e <= 1))
    return Kernel(Partial(_no_memory), Partial(_ddim_step, as_function("denoiser", denoiser), schedule, eta))


def _ddim_step(
    denoiser: Partial, schedule: Schedule, eta: Any, key: jax.Array, carry: Any, x_t: jax.Array, t: Any, s: Any
) -> tuple[Any, jax.Array, jax.Array]:
    early, late = level(schedule, s, x_t), level(schedule, t, x_t)
    x_0 = x_0_of(denoiser(x_t, t))
    eps = (x_t - late.alpha * x_0) / late.sigma
    eta = jnp.asarray(eta, early.sigma.dtype)
    ratio = jnp.exp(late.log_snr - early.log_snr)
    kept = -jnp.expm1(late.log_snr - early.log_snr)
    # sqrt(sigma_s^2 - v) / sigma_s without its cancellation; the last term keeps the root's gradient finite at 0.
    old = jnp.sqrt(ratio + (1 - eta**2) * kept + _TINY)
    new = jnp.where(jnp.asarray(s) > 0, eta * jnp.sqrt(kept), 0)
    x_s = early.alpha * x_0 + early.sigma * (old * eps + new * _rows.normal(key, x_t))
    return carry, x_s.astype(x_t.dtype), no_weight(x_t)


def no_weight(x: jax.Array) -> jax.Array:
    """Return the increments of an unweighted kernel.

    Args:
      x: state, [B, *D].
    Returns:
      Zeros, [B], in the state's dtype but at least float32.
    """
    return jnp.zeros(x.shape[:1], _rows.state_dtype(x.dtype))
