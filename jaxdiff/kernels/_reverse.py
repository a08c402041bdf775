"""The learned reverse process p(x_s | x_t): the mean from the denoiser, and a variance."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks
from jaxdiff._tree import as_function, pytree
from jaxdiff.forward import Level, levels, q_between
from jaxdiff.normal import Normal
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


class StepVariance(NamedTuple):
    """What the variance of one reverse step is made of, each broadcasting against x_t.

        Var[x_s | x_t] = given + gain Var[x_0 | x_t],   the law of total variance

    Fields:
      given: Var q(x_s | x_t, x_0).
      gain: (alpha_s (1 - exp(lambda_t - lambda_s)))^2.
      small: what "small" stands for: `given`, except in the last step of a `Chain`.
      large: the total variance for data ~ N(0, I).
      floor: where the interpolation of `learned` and `between` begins: `given`, except there too.
    """

    given: jax.Array
    gain: jax.Array
    small: jax.Array
    large: jax.Array
    floor: jax.Array

    def total(self, x_0_variance: jax.Array) -> jax.Array:
        """Return Var[x_s | x_t] where Var[x_0 | x_t] is known."""
        return self.given + (self.gain * x_0_variance).astype(self.given.dtype)

    def interpolated(self, fraction: jax.Array) -> jax.Array:
        """Return exp(f log large + (1 - f) log floor)."""
        low, high = (
            jnp.log(jnp.maximum(v, jnp.finfo(v.dtype).tiny)) for v in (self.floor, self.large)
        )
        return jnp.exp(low + fraction * (high - low))


def small(denoised: Any, step: StepVariance) -> jax.Array:
    """Var q(x_s | x_t, x_0): right for data at one point."""
    return step.small


def large(denoised: Any, step: StepVariance) -> jax.Array:
    """The total variance for data ~ N(0, I): beta_t of a variance-preserving process."""
    return step.large


def learned(denoised: Any, step: StepVariance) -> jax.Array:
    """Between both, where the network says."""
    return step.interpolated(_field(denoised, "fraction"))


def optimal(denoised: Any, step: StepVariance) -> jax.Array:
    """The total variance from Var[x_0 | x_t]: the least KL to the true reversal."""
    return step.total(_field(denoised, "variance"))


@pytree
class Between:
    """Between small and large by the same fraction everywhere."""

    fraction: Any

    def __call__(self, denoised: Any, step: StepVariance) -> jax.Array:
        """Return the variance."""
        return step.interpolated(jnp.asarray(self.fraction, step.large.dtype))


def _field(denoised: Any, name: str) -> jax.Array:
    value = getattr(denoised, name, None)
    if value is None:
        raise TypeError(
            f"denoiser: expected a Denoised with its {name}, got {type(denoised).__name__} without"
        )
    return value


# Variances of a reverse step, by name.
VARIANCES = {
    "small": Partial(small),
    "large": Partial(large),
    "learned": Partial(learned),
    "optimal": Partial(optimal),
}


def variance_function(variance: Any) -> Callable:
    """Return what a user gave for a reverse variance as a function, (denoised, step) -> variance.

    Args:
      variance: one of VARIANCES, a fraction [] in [0, 1], or a function (denoised, StepVariance) ->
        [B, *D].
    Returns:
      The function, a pytree. A fraction is traced.
    Raises:
      ValueError: it is none of these.
    """
    if isinstance(variance, str):
        _checks.choice("variance", variance, tuple(VARIANCES))
        return VARIANCES[variance]
    if callable(variance):
        return as_function("variance", variance)
    expected = "a name or a fraction in [0, 1]"
    _checks.values("variance", variance, expected, lambda f: (f >= 0) & (f <= 1))
    return Between(variance)


def p_mean_variance(
    denoiser: Callable,
    schedule: Schedule,
    x_t: jax.Array,
    t: Any,
    s: Any,
    *,
    variance: Any = "small",
) -> Normal:
    """Return the learned reverse process p(x_s | x_t): q(x_s | x_t, x_0) with x_0 = D(x_t, t).

        small    Var q(x_s | x_t, x_0), right for data at one point
        large    Var q(x_s | x_t) for data ~ N(0, I): beta_t of a variance-preserving process
        learned  exp(f log large + (1 - f) log small), f from the network
        optimal  small + (alpha_s (1 - exp(lambda_t - lambda_s)))^2 Var[x_0 | x_t]:
                 the least KL to the true reversal

    A number f in [0, 1] lies between small and large as above, the same f everywhere.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t], or a `Denoised` with the fraction or the variance that
        the variance needs.
      schedule: the noise schedule.
      x_t: state at time t, [B, *D], floating.
      t: time of x_t, [] or [B].
      s: earlier time, [] or [B], s <= t.
      variance: one of VARIANCES; or a fraction, [], traced; or a function.
    Returns:
      Normal over x_s: mean and variance, both [B, *D], dtype of x_t.
    Raises:
      ValueError: unknown variance, shapes do not fit, s > t where both are known.
      TypeError: "learned" or "optimal" with a denoiser that does not return what they need.
    Source: Ho et al. 2020, arXiv:2006.11239, Section 3.2; learned: Nichol & Dhariwal 2021,
      arXiv:2102.09672, Eq. (15); optimal: Bao et al. 2022, arXiv:2201.06503, Theorem 1.
    """
    variance = variance_function(variance)  # an unknown one is refused before the network runs
    return p_given(denoiser(x_t, t), schedule, x_t, t, s, variance=variance)


def p_given(
    denoised: Any, schedule: Schedule, x_t: jax.Array, t: Any, s: Any, *, variance: Any = "small"
) -> Normal:
    """Return p(x_s | x_t) from what the denoiser returned for (x_t, t).

    Args:
      denoised: E[x_0 | x_t], or a `Denoised`.
      schedule: the noise schedule.
      x_t: state at time t, [B, *D], floating.
      t: time of x_t, [] or [B].
      s: earlier time, [] or [B], s <= t.
      variance: as in `p_mean_variance`.
    Returns:
      Normal over x_s: mean and variance, both [B, *D], dtype of x_t.
    Raises:
      ValueError, TypeError: as in `p_mean_variance`.
    """
    level_t, level_s = levels(schedule, x_t, t, s)
    mean, given = q_between(x_t, x_0_of(denoised, x_t), level_t, level_s)
    step = step_variance(given, level_t, level_s)
    value = variance_function(variance)(denoised, step)
    _checks.same_shape("variance(denoised, step)", value, "x_t", x_t)
    return Normal(mean, value)


def step_variance(given: jax.Array, level_t: Level, level_s: Level) -> StepVariance:
    """Return what the variance of a reverse step is made of.

    Args:
      given: Var q(x_s | x_t, x_0), [B, *D].
      level_t: the schedule at t.
      level_s: the schedule at s.
    Returns:
      StepVariance.
    """
    (alpha_t, sigma_t, lambda_t), (alpha_s, _, lambda_s) = level_t, level_s
    gain = (alpha_s * jnp.expm1(lambda_t - lambda_s)) ** 2
    unit = sigma_t**2 / (alpha_t**2 + sigma_t**2)  # Var[x_0 | x_t] of data ~ N(0, I)
    step = StepVariance(given, gain, given, given, given)
    return step._replace(large=step.total(unit))
