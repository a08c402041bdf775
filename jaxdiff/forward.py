"""The forward process, s <= t: q(x_t | x_0), q(x_t | x_s), and the posterior q(x_s | x_t, x_0)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff.normal import Normal
from jaxdiff.schedules import Schedule


class Level(NamedTuple):
    """The schedule at one time: alpha, sigma and log-SNR, broadcasting against a state."""

    alpha: jax.Array
    sigma: jax.Array
    log_snr: jax.Array


def level(schedule: Schedule, t: Any, x: jax.Array) -> Level:
    """Evaluate the schedule at t, broadcasting against x.

    Args:
      schedule: the noise schedule.
      t: time, [] or [B], in [0, 1].
      x: the state whose batch axis t follows, [B, *D].
    Returns:
      Level of arrays [] or [B, 1, ...], in x's dtype but at least float32.
    Raises:
      ValueError, TypeError: t is not a time for x, or schedule is not a Schedule.
    """
    if not isinstance(schedule, Schedule):
        got = type(schedule).__name__
        raise TypeError(f"schedule: expected a Schedule such as schedules.cosine(), got {got}")
    _checks.time("t", t, x)
    t = jnp.asarray(t, _rows.state_dtype(x.dtype))
    log_snr = schedule.log_snr(t)
    alpha, sigma = schedule.coefficients(t, log_snr)
    return Level(*(_rows.expand(value, x) for value in (alpha, sigma, log_snr)))


def levels(schedule: Schedule, x: jax.Array, t: Any, s: Any) -> tuple[Level, Level]:
    """Evaluate the schedule at both ends of a step, for s <= t.

    Args:
      schedule: the noise schedule.
      x: the state whose batch axis the times follow, [B, *D].
      t: time, [] or [B].
      s: earlier time, [] or [B], s <= t.
    Returns:
      (Level at t, Level at s).
    Raises:
      ValueError: s > t where both are known, or one of them is not a time for x.
    """
    _checks.time("s", s, x)
    _checks.time("t", t, x)
    now = _checks.known(t)
    if now is not None:
        # Compared in the dtype they are used in: 0.3 is not the same number in all of them.
        dtype = _rows.state_dtype(x.dtype)
        order = f"a time s <= t = {now}" if now.ndim == 0 else "times s <= t"
        _checks.values("s", s, order, lambda s: s.astype(dtype) <= now.astype(dtype))
    return level(schedule, t, x), level(schedule, s, x)


def no_noise(log_snr: jax.Array) -> jax.Array:
    """Return whether rounding hides the noise in x_t: sigma_t / alpha_t < eps of the dtype.

    Args:
      log_snr: lambda_t, floating.
    Returns:
      Booleans of its shape.
    """
    return log_snr > -2 * math.log(jnp.finfo(log_snr.dtype).eps)


def renewed(level_t: Level, level_s: Level) -> jax.Array:
    """Return the share of the noise at time t that is younger than time s.

        1 - SNR_t / SNR_s = -expm1(lambda_t - lambda_s)

    A compiler may round the log-SNR of one time in two ways. So a gap of a few units in the last
    place counts as none, and the share is 0. If s is truly later than t, the share is negative, and
    its root is NaN.

    Args:
      level_t: the schedule at t.
      level_s: the schedule at s, less noisy.
    Returns:
      Floating array that broadcasts against the state.
    """
    gap = level_t.log_snr - level_s.log_snr
    rounding = 16 * jnp.finfo(gap.dtype).eps * (1 + jnp.abs(level_t.log_snr))
    return -jnp.expm1(jnp.where(gap <= rounding, jnp.minimum(gap, 0), gap))


def rates(schedule: Schedule, t: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Evaluate the schedule's time derivatives at t, broadcasting against x.

    Args:
      schedule: the noise schedule.
      t: time, [] or [B], in [0, 1].
      x: the state whose batch axis t follows, [B, *D].
    Returns:
      (alpha'_t, sigma'_t), arrays [] or [B, 1, ...], in x's dtype but at least float32.
    """
    d_alpha, d_sigma = schedule.velocity(jnp.asarray(t, _rows.state_dtype(x.dtype)))
    return _rows.expand(d_alpha, x), _rows.expand(d_sigma, x)


def q_sample(schedule: Schedule, x_0: jax.Array, t: Any, eps: jax.Array) -> jax.Array:
    """Diffuse data to time t.

        x_t = alpha_t x_0 + sigma_t eps

    Args:
      schedule: the noise schedule.
      x_0: data, [B, *D], floating.
      t: time, [] or [B], in [0, 1].
      eps: standard normal noise, shaped like x_0.
    Returns:
      x_t, [B, *D], dtype of x_0.
    Raises:
      ValueError: shapes do not fit, or t is a Python number outside [0, 1].
      TypeError: x_0, eps or t is an integer array.
    Source: Ho et al. 2020, arXiv:2006.11239, Eq. (4).
    """
    _checks.floating("x_0", x_0)
    _checks.floating("eps", eps)
    _checks.same_shape("eps", eps, "x_0", x_0)
    alpha, sigma, _ = level(schedule, t, x_0)
    return (alpha * x_0 + sigma * eps).astype(x_0.dtype)


def q_step(schedule: Schedule, x_s: jax.Array, s: Any, t: Any, eps: jax.Array) -> jax.Array:
    """Diffuse from time s on to a later time t: one draw of q(x_t | x_s).

        x_t = (alpha_t / alpha_s) x_s + sqrt(-sigma_t^2 expm1(lambda_t - lambda_s)) eps

    Args:
      schedule: the noise schedule.
      x_s: state at time s, [B, *D], floating.
      s: time of x_s, [] or [B].
      t: later time, [] or [B], t >= s.
      eps: standard normal noise, shaped like x_s.
    Returns:
      x_t, [B, *D], dtype of x_s.
    Raises:
      ValueError: shapes do not fit, or s > t where both are known.
      TypeError: x_s, eps or a time is an integer array.
    Numerics: s = t is the identity.
    Source: Kingma et al. 2021, arXiv:2107.00630, Appendix A.1.
    """
    _checks.floating("x_s", x_s)
    _checks.floating("eps", eps)
    _checks.same_shape("eps", eps, "x_s", x_s)
    level_t, level_s = levels(schedule, x_s, t, s)
    noise = level_t.sigma * jnp.sqrt(renewed(level_t, level_s))
    return (level_t.alpha / level_s.alpha * x_s + noise * eps).astype(x_s.dtype)


def q_posterior(schedule: Schedule, x_t: jax.Array, x_0: jax.Array, t: Any, s: Any) -> Normal:
    """Condition an earlier state on the data and a later state: q(x_s | x_t, x_0).

        mean = (alpha_t / alpha_s) (sigma_s^2 / sigma_t^2) x_t
            - alpha_s expm1(lambda_t - lambda_s) x_0
        variance = -sigma_s^2 expm1(lambda_t - lambda_s)

    Args:
      schedule: the noise schedule.
      x_t: state at time t, [B, *D], floating.
      x_0: data, shaped like x_t.
      t: time of x_t, [] or [B].
      s: earlier time, [] or [B], s <= t.
    Returns:
      Normal over x_s: mean and variance, both [B, *D], dtype of x_t.
    Raises:
      ValueError: shapes do not fit, or s > t where both are known.
      TypeError: x_t, x_0 or a time is an integer array.
    Numerics: s = t is the identity with variance 0; at an s with infinite log-SNR the mean is x_0.
    Source: Ho et al. 2020, arXiv:2006.11239, Eq. (7); this form: Kingma et al. 2021,
    arXiv:2107.00630, Appendix A.2.
    """
    _checks.floating("x_t", x_t)
    _checks.floating("x_0", x_0)
    _checks.same_shape("x_0", x_0, "x_t", x_t)
    return q_between(x_t, x_0, *levels(schedule, x_t, t, s))


def q_between(x_t: jax.Array, x_0: jax.Array, level_t: Level, level_s: Level) -> Normal:
    """Return `q_posterior` from the levels at both ends of the step.

    Args:
      x_t: state at time t, [B, *D], floating.
      x_0: data, shaped like x_t.
      level_t: the schedule at t.
      level_s: the schedule at s, less noisy.
    Returns:
      Normal over x_s: mean and variance, both [B, *D], dtype of x_t.
    """
    (alpha_t, sigma_t, _), (alpha_s, sigma_s, _) = level_t, level_s
    new = renewed(level_t, level_s)
    mean = alpha_t / alpha_s * (sigma_s / sigma_t) ** 2 * x_t + alpha_s * new * x_0
    variance = jnp.broadcast_to(sigma_s**2 * new, mean.shape)
    return Normal(mean.astype(x_t.dtype), variance.astype(x_t.dtype))


def q_likelihood(schedule: Schedule, x_t: jax.Array, t: Any) -> Normal:
    """Return what x_t alone tells about x_0: q(x_t | x_0), normalised over x_0.

        N(x_0; x_t / alpha_t, sigma_t^2 / alpha_t^2)

    Args:
      schedule: the noise schedule.
      x_t: noisy state, [B, *D], floating.
      t: time, [] or [B], where alpha_t > 0.
    Returns:
      Normal over x_0: mean and variance, both [B, *D].
    Raises:
      ValueError: t is not a time for x_t.
    """
    alpha, _, log_snr = level(schedule, t, x_t)
    return Normal(x_t / alpha, jnp.broadcast_to(jnp.exp(-log_snr), x_t.shape))
