"""Midpoint guidance: look at the observation from a time below s, and come back along a bridge."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import Level, level, levels, q_between
from jaxdiff.kernels import p_given
from jaxdiff.kernels._reverse import variance_function
from jaxdiff.normal import Normal
from jaxdiff.posterior._twisted import Twisted
from jaxdiff.posterior._weighting import POSITIVE
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


def bridge_gain(level_t: Level, level_s: Level, level_l: Level) -> jax.Array:
    """Return how far the mean of q(x_s | x_l, x_t) follows x_l, for l <= s <= t.

        (alpha_s / alpha_l) (u_t - u_s) / (u_t - u_l),   u = (sigma / alpha)^2

    In x / alpha the process is a Brownian motion in u.
    """
    # u_s / u_t may be 0, and u_t infinite.
    kept = jnp.expm1(level_t.log_snr - level_s.log_snr) / jnp.expm1(
        level_t.log_snr - level_l.log_snr
    )
    return level_s.alpha / level_l.alpha * kept


def midpoint(
    denoiser: Callable,
    schedule: Schedule,
    log_likelihood: Callable,
    *,
    fraction: Any = 0.5,
    num_gradients: int = 2,
    step_size: Any = 0.5,
    prior_std: Any = 1.0,
    twist: Callable | None = None,
    variance: Any = "small",
) -> "Midpoint":
    """Return the proposal of midpoint guidance, for `twisted`: the weights make it exact.

        l = fraction s,   p(x_l | x_t) = N(m_l, v_l) = q(x_l | x_t, x_0 = D(x_t))
        m <- m + step_size (m_l + v_l grad log r_l(m) - m),   from m_l
        q(x_s | x_t) = N(mean + g (m - m_l), variance),   g = dE[x_s | x_l, x_t] / dx_l

    The likelihood is known better at the midpoint l than at s. The mean of a normal law near
    p(x_l | x_t) r_l(x_l) is sought by gradient steps. The bridge of the forward process brings it
    to s, where it is normal again. The variance stays the model's: a narrower proposal has heavier
    weights.

    With fraction = 1, which looks at s itself, the mean is the exact E[x_s | x_t, y] in the limit
    of small steps, for data ~ N(m, prior_std^2 I) and a linear observation. Deeper midpoints move
    less than that, because v_l leaves out Var[x_0 | x_t].

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      log_likelihood: one x_0 [*D] -> log p(y | x_0), [], in nats, as that of `twisted`.
      fraction: of s at which the midpoint lies, [], in (0, 1], traced.
      num_gradients: gradient steps of the fit, static.
      step_size: of the fit, [], in (0, 1], traced, in units of v_l. The steps contract for any of
        them, for data of the prior's width and the twist of an `Observation`.
      prior_std: standard deviation of an entry of the data, [], traced.
      twist: as in `twisted`.
      variance: as in `twisted`: take the same there.
    Returns:
      A proposal for `twisted`, (x_t, t, s) -> Normal. It takes num_gradients + 1 denoiser calls and
      num_gradients vector-Jacobian products.
    Raises:
      ValueError: a number is outside its range, or variance is unknown.
      TypeError: an argument is not a function.
    Numerics: a gradient that is not finite counts as zero.
    Source: Moufad et al. 2024, arXiv:2410.09945, Sections 3 and 4 (MGPS), with the gradient at the
    mean for the one at a random point, and without the fit of a variance.
    """
    return Midpoint(
        denoiser,
        schedule,
        log_likelihood,
        fraction=fraction,
        num_gradients=num_gradients,
        step_size=step_size,
        prior_std=prior_std,
        twist=twist,
        variance=variance,
    )


@pytree
class Midpoint:
    """The proposal of `midpoint`."""

    denoiser: Callable
    schedule: Schedule
    log_likelihood: Callable
    _: KW_ONLY
    fraction: Any = 0.5
    num_gradients: int = static(default=2)
    step_size: Any = 0.5
    prior_std: Any = 1.0
    twist: Any = None
    variance: Any = "small"

    def __post_init__(self) -> None:
        within = "a number in (0, 1]"
        for name in ("fraction", "step_size"):
            _checks.values(name, getattr(self, name), within, lambda v: (v > 0) & (v <= 1))
        _checks.positive_int("num_gradients", self.num_gradients)
        _checks.values("prior_std", self.prior_std, POSITIVE, lambda v: v > 0)
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            log_likelihood=as_function("log_likelihood", self.log_likelihood),
            twist=None if self.twist is None else as_function("twist", self.twist),
            variance=variance_function(self.variance),
        )

    def __call__(self, x_t: jax.Array, t: Any, s: Any) -> Normal:
        """Return the model's step, moved as its midpoint is."""
        middle = jnp.asarray(self.fraction, x_t.dtype) * s
        level_t, level_s = levels(self.schedule, x_t, t, s)
        level_l = level(self.schedule, middle, x_t)
        denoised = self.denoiser(x_t, t)
        p = p_given(denoised, self.schedule, x_t, t, s, variance=self.variance)
        mean, given = q_between(x_t, x_0_of(denoised, x_t), level_t, level_l)
        shift = self.fit(Normal(mean, given), middle) - mean
        return Normal(p.mean + bridge_gain(level_t, level_s, level_l) * shift, p.variance)

    def fit(self, prior: Normal, middle: Any) -> jax.Array:
        """Return the mean of a normal near prior r_l, [B, *D]."""
        look = Twisted(
            self.denoiser,
            self.schedule,
            self.log_likelihood,
            twist=self.twist,
            prior_std=self.prior_std,
        ).look
        step_size = jnp.asarray(self.step_size, prior.mean.dtype)

        def step(_: Any, mean: jax.Array) -> jax.Array:
            slope = look(mean, middle)[1]
            slope = jnp.where(_rows.all_finite(slope), slope, 0)
            moved = mean + step_size * (prior.mean + prior.variance * slope - mean)
            return moved.astype(mean.dtype)

        return jax.lax.fori_loop(0, self.num_gradients, step, prior.mean)
