"""Schedules with a formula: cosine, linear, sigmoid, EDM's and the straight line."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import pytree
from jaxdiff.schedules._base import LOG_SNR_LIMIT, TINY, Schedule, lifted, log_snr_from_decay


def cosine(*, log_snr_min: float = -15.0, log_snr_max: float = math.inf) -> Schedule:
    """Return the cosine schedule with log-SNR between two bounds.

        alpha_t = cos(theta_t),   sigma_t = sin(theta_t),   lambda_t = -2 log tan(theta_t)

    theta_t is linear in t.

    Args:
      log_snr_min: lambda at t = 1; -inf for zero terminal SNR, where an eps prediction tells
        nothing about x_0. The default leaves alpha_1 = 5.5e-4: then an eps network is of use from
        the first step on.
      log_snr_max: lambda at t = 0. At +inf the state at t = 0 is the data.
    Returns:
      A variance-preserving Schedule; theta runs over [0, pi/2] where both bounds are infinite.
    Raises:
      ValueError: log_snr_min is not below log_snr_max.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. (17); bounds: Hoogeboom et al. 2023,
    arXiv:2301.11093.
    """
    return Cosine(log_snr_min, log_snr_max)


@pytree
class Cosine(Schedule):
    """The schedule of `cosine`."""

    log_snr_min: Any = -15.0
    log_snr_max: Any = math.inf

    name = "cosine"

    def __post_init__(self) -> None:
        below = f"a value below log_snr_max = {self.log_snr_max}"
        _checks.values(
            "log_snr_min", self.log_snr_min, below, lambda v: v < self.log_snr_max, finite=False
        )

    def _angles(self, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """theta_0, pi/2 - theta_1 without cancellation, and the span between the two angles."""
        low = jnp.arctan(jnp.exp(-jnp.asarray(self.log_snr_max, dtype) / 2))
        high = jnp.arctan(jnp.exp(jnp.asarray(self.log_snr_min, dtype) / 2))
        return low, high, jnp.pi / 2 - low - high

    def log_snr_at(self, t: jax.Array) -> jax.Array:
        """-2 log tan(theta_t)."""
        low, high, span = self._angles(t.dtype)
        # cos(theta) as the sine of the complement: exact at both ends.
        return 2 * (
            jnp.log(jnp.sin(high + (1 - t) * span) + TINY) - jnp.log(jnp.sin(low + t * span) + TINY)
        )

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """The angle's place between its ends."""
        low, _, span = self._angles(log_snr.dtype)
        return (jnp.arctan(jnp.exp(-log_snr / 2)) - low) / span


def linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """Return the VP schedule whose rate beta(t) is linear in t: DDPM's in continuous time.

        -log alpha_t^2 = B(t) = beta_min t + (beta_max - beta_min) t^2 / 2
        lambda_t = -log(exp(B(t)) - 1)

    Args:
      beta_min: rate at t = 0, per unit time.
      beta_max: rate at t = 1, at least beta_min.
    Returns:
      A variance-preserving Schedule with lambda = +inf (LOG_SNR_LIMIT) at t = 0.
    Raises:
      ValueError: not 0 < beta_min <= beta_max.
    Source: Song et al. 2021, arXiv:2011.13456, Eq. (33).
    """
    return Linear(beta_min, beta_max)


@pytree
class Linear(Schedule):
    """The schedule of `linear`."""

    beta_min: Any = 0.1
    beta_max: Any = 20.0

    name = "linear"

    def __post_init__(self) -> None:
        least = f"a rate of at least beta_min = {self.beta_min}"
        _checks.values("beta_min", self.beta_min, "a positive rate", lambda v: v > 0)
        _checks.values("beta_max", self.beta_max, least, lambda v: v >= self.beta_min)

    def log_snr_at(self, t: jax.Array) -> jax.Array:
        """-log(exp(B(t)) - 1)."""
        beta_min, beta_max = _rows.cast(t.dtype, self.beta_min, self.beta_max)
        return log_snr_from_decay(beta_min * t + (beta_max - beta_min) * t**2 / 2)

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """The root of the quadratic equation B(t) = log(1 + exp(-lambda))."""
        beta_min, beta_max = _rows.cast(log_snr.dtype, self.beta_min, self.beta_max)
        decay = jax.nn.softplus(-log_snr)
        return 2 * decay / (beta_min + jnp.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * decay))


def sigmoid(
    start: float = -3.0, end: float = 3.0, tau: float = 1.0, *, clip_min: float = 1e-9
) -> Schedule:
    """Return the sigmoid schedule: alpha^2 falls along a part of the logistic curve.

        g(t) = (S(end) - S(z)) / (S(end) - S(start))
        S(z) = 1 / (1 + exp(-z / tau)),   z = start + t (end - start)
        alpha_t^2 = clip_min + (1 - clip_min) g(t)

    Args:
      start: z at t = 0.
      end: z at t = 1, above start.
      tau: temperature, positive.
      clip_min: alpha^2 at t = 1, in (0, 1).
    Returns:
      A variance-preserving Schedule with lambda = +inf (LOG_SNR_LIMIT) at t = 0.
    Raises:
      ValueError: an argument is out of its range.
    Numerics: differences of logistic functions are written with log sinh: no cancellation, no
      overflow.
    Source: Jabri et al. 2022, arXiv:2212.11972, Algorithm 1, with its clipping at clip_min made
    affine: no plateau.
    """
    return Sigmoid(start, end, tau, clip_min)


@pytree
class Sigmoid(Schedule):
    """The schedule of `sigmoid`."""

    start: Any = -3.0
    end: Any = 3.0
    tau: Any = 1.0
    clip_min: Any = 1e-9

    name = "sigmoid"

    def __post_init__(self) -> None:
        above = f"a value above start = {self.start}"
        _checks.finite("start", self.start)
        _checks.values("end", self.end, above, lambda v: v > self.start)
        _checks.values("tau", self.tau, "a positive temperature", lambda v: v > 0)
        _checks.values("clip_min", self.clip_min, "a value in (0, 1)", lambda v: (v > 0) & (v < 1))

    def _options(self, dtype: Any) -> tuple[Any, Any, Any]:
        """Both ends, in units of the temperature, and clip_min."""
        start, end, tau, clip_min = _rows.cast(dtype, self.start, self.end, self.tau, self.clip_min)
        return start / tau, end / tau, clip_min

    def log_snr_at(self, t: jax.Array) -> jax.Array:
        """The log of alpha^2 / (1 - alpha^2)."""
        start, end, clip_min = self._options(t.dtype)
        # S(b) - S(a) = sinh((b - a) / 2) / (2 cosh(a / 2) cosh(b / 2)). The common 1 / cosh(z / 2)
        # cancels in g / (1 - g). Below are log g and log(1 - g), but for the same constant.
        span = end - start
        left = _log_sinh((1 - t) * span / 2) - jnp.logaddexp(end / 2, -end / 2)
        gone = _log_sinh(t * span / 2) - jnp.logaddexp(start / 2, -start / 2)
        gone_clipped = jnp.logaddexp(gone + jnp.log1p(-clip_min), left - LOG_SNR_LIMIT)
        return (jnp.logaddexp(left, gone + jnp.log(clip_min)) - gone_clipped).astype(t.dtype)

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """The place on the logistic curve."""
        start, end, clip_min = self._options(log_snr.dtype)
        gone = jax.nn.sigmoid(-log_snr) / (1 - clip_min)  # 1 - g
        low, high = jax.nn.sigmoid(start), jax.nn.sigmoid(end)
        level = jnp.clip(low + gone * (high - low), low, high)
        return (jnp.log(level) - jnp.log1p(-level) - start) / (end - start)


def _log_sinh(x: jax.Array) -> jax.Array:
    """log(2 sinh(x)) for x >= 0, however large."""
    return x + jnp.log(-jnp.expm1(-2 * x) + TINY**2)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """Return the variance-exploding schedule, geometric in the noise level.

        alpha_t = 1,   sigma_t = sigma_min^(1 - t) sigma_max^t,   lambda_t = -2 log sigma_t

    Args:
      sigma_min: noise level at t = 0, in units of the data.
      sigma_max: noise level at t = 1, above sigma_min.
    Returns:
      A variance-exploding Schedule. At t = 0 a state still carries noise of standard deviation
      sigma_min.
    Raises:
      ValueError: not 0 < sigma_min < sigma_max.
    Source: Song et al. 2021, arXiv:2011.13456, Eq. (31); levels: Karras et al. 2022,
    arXiv:2206.00364, Table 1.
    """
    return EDM(sigma_min, sigma_max)


@pytree
class EDM(Schedule):
    """The schedule of `edm`."""

    sigma_min: Any = 0.002
    sigma_max: Any = 80.0

    name = "edm"

    def __post_init__(self) -> None:
        above = f"a level above sigma_min = {self.sigma_min}"
        _checks.values("sigma_min", self.sigma_min, "a positive noise level", lambda v: v > 0)
        _checks.values("sigma_max", self.sigma_max, above, lambda v: v > self.sigma_min)

    def log_snr_at(self, t: jax.Array) -> jax.Array:
        """-2 log sigma_t."""
        low, high = (jnp.log(jnp.asarray(v, t.dtype)) for v in (self.sigma_min, self.sigma_max))
        return -2 * ((1 - t) * low + t * high)

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """The place of log sigma between its ends."""
        sigma_min, sigma_max = _rows.cast(log_snr.dtype, self.sigma_min, self.sigma_max)
        low = jnp.log(jnp.asarray(sigma_min, log_snr.dtype))
        return (-log_snr / 2 - low) / jnp.log(jnp.asarray(sigma_max / sigma_min, log_snr.dtype))

    def coefficients(self, t: jax.Array, log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The variance-exploding family: (1, exp(-lambda / 2))."""
        return jnp.ones_like(log_snr), jnp.exp(-log_snr / 2)


def rectified_flow() -> Schedule:
    """Return the straight-line interpolation between data and noise.

        alpha_t = 1 - t,   sigma_t = t,   lambda_t = 2 log((1 - t) / t)

    Returns:
      A flow-family Schedule, with lambda = +inf at t = 0 and -inf at t = 1 (+-LOG_SNR_LIMIT).
    Source: Liu et al. 2022, arXiv:2209.03003, Eq. (1); Lipman et al. 2022, arXiv:2210.02747.
    """
    return RectifiedFlow()


@pytree
class RectifiedFlow(Schedule):
    """The schedule of `rectified_flow`."""

    name = "rectified_flow"

    def log_snr_at(self, t: jax.Array) -> jax.Array:
        """2 log((1 - t) / t)."""
        return 2 * (jnp.log(lifted(1 - t)) - jnp.log(lifted(t)))

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """sigmoid(-lambda / 2)."""
        return jax.nn.sigmoid(-log_snr / 2)

    def coefficients(self, t: jax.Array, log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The flow family, (1 - t, t), from t itself: so the derivatives hold at both ends too."""
        return lifted(1 - t), lifted(t)
