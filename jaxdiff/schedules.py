"""Noise schedules: the log signal-to-noise ratio lambda(t) of x_t = alpha_t x_0 + sigma_t eps.

    lambda_t = log(alpha_t^2 / sigma_t^2),   t in [0, 1], decreasing

    family   alpha                   sigma
    vp       sqrt(sigmoid(lambda))   sqrt(sigmoid(-lambda))
    ve       1                       exp(-lambda / 2)
    flow     sigmoid(lambda / 2)     sigmoid(-lambda / 2)

Where lambda is infinite (t = 0 of a DDPM schedule, t = 1 of a flow) or beyond +-LOG_SNR_LIMIT, it takes that value:
sigma or alpha is then exp(-40), far below rounding next to any number of order one, and every formula built on lambda
keeps finite values and finite gradients without a special case.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff.betas import cosine_betas, linear_betas, zero_terminal_snr

__all__ = [
    "LOG_SNR_LIMIT",
    "Schedule",
    "cosine",
    "cosine_betas",
    "edm",
    "from_betas",
    "linear",
    "linear_betas",
    "rectified_flow",
    "sigmoid",
    "zero_terminal_snr",
]

LOG_SNR_LIMIT = 80.0
_TINY = math.exp(-LOG_SNR_LIMIT / 2)  # an amplitude; its square is still a normal float32


@partial(jax.tree_util.register_dataclass, data_fields=["log_snr_fn", "time_fn", "coefficients_fn"], meta_fields=[])
@dataclass(frozen=True)
class Schedule:
    """A noise schedule: lambda(t), its inverse, and the family that turns lambda into (alpha, sigma).

    Fields:
      log_snr_fn: t -> lambda, strictly decreasing.
      time_fn: lambda -> t, its inverse.
      coefficients_fn: (t, lambda) -> (alpha, sigma).

    Times lie in [0, 1], of any shape (else ValueError; integer arrays: TypeError). Results have their shape and dtype.
    """

    log_snr_fn: Partial
    time_fn: Partial
    coefficients_fn: Partial

    def log_snr(self, t: Any) -> jax.Array:
        """lambda_t = log(alpha_t^2 / sigma_t^2), in nats."""
        return self.log_snr_fn(_as_time(t))

    def time(self, log_snr: Any) -> jax.Array:
        """The t at which lambda_t = log_snr: the inverse of `log_snr`, clipped to [0, 1]."""
        return jnp.clip(self.time_fn(_as_float(log_snr)), 0.0, 1.0)

    def alpha_sigma(self, t: Any) -> tuple[jax.Array, jax.Array]:
        """The pair (alpha_t, sigma_t) of x_t = alpha_t x_0 + sigma_t eps."""
        t = _as_time(t)
        return self.coefficients_fn(t, self.log_snr_fn(t))

    def alpha(self, t: Any) -> jax.Array:
        """alpha_t, the scale of the signal."""
        return self.alpha_sigma(t)[0]

    def sigma(self, t: Any) -> jax.Array:
        """sigma_t, the standard deviation of the noise (EDM's sigma is the ratio sigma_t / alpha_t)."""
        return self.alpha_sigma(t)[1]

    def velocity(self, t: Any) -> tuple[jax.Array, jax.Array]:
        """The time derivatives (alpha'_t, sigma'_t), by forward-mode differentiation."""
        t = _as_time(t)
        return jax.jvp(self.alpha_sigma, (t,), (jnp.ones_like(t),))[1]


def _as_float(value: Any) -> jax.Array:
    value = jnp.asarray(value)
    value = value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)
    return value.astype(_rows.state_dtype(value.dtype))


def _as_time(t: Any) -> jax.Array:
    _checks.time("t", t)
    return _as_float(t)


def _vp(t: jax.Array, log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The roots of sigmoid(lambda) and sigmoid(-lambda), accurate however small they are.
    return jnp.exp(-jax.nn.softplus(-log_snr) / 2), jnp.exp(-jax.nn.softplus(log_snr) / 2)


def _ve(t: jax.Array, log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.ones_like(log_snr), jnp.exp(-log_snr / 2)


def _flow(t: jax.Array, log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Straight from t, not through lambda: alpha' = -1 and sigma' = 1 hold at the end-points too.
    return _lifted(1 - t), _lifted(t)


def _lifted(x: jax.Array) -> jax.Array:
    """max(x, _TINY), with the derivative of x. (1 - t + _TINY would do, but XLA folds the two constants into one.)"""
    return x + jax.lax.stop_gradient(jnp.where(x < _TINY, _TINY - x, 0))


def _schedule(log_snr: Partial, time: Partial, coefficients: Any = _vp) -> Schedule:
    return Schedule(log_snr, time, Partial(coefficients))


def cosine(*, log_snr_min: float = -15.0, log_snr_max: float = math.inf) -> Schedule:
    """Return the cosine schedule with log-SNR between two bounds.

        alpha_t = cos(theta_t),  sigma_t = sin(theta_t),  lambda_t = -2 log tan(theta_t),  theta_t linear in t

    Args:
      log_snr_min: lambda at t = 1; -inf for zero terminal SNR, where an eps prediction says nothing about x_0. The
        default leaves alpha_1 = 5.5e-4, so that an eps network stays usable from the first step on.
      log_snr_max: lambda at t = 0; +inf makes x at t = 0 the data.
    Returns:
      A variance-preserving Schedule; theta runs over [0, pi/2] where both bounds are infinite.
    Raises:
      ValueError: log_snr_min is not below log_snr_max.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. (17); bounds: Hoogeboom et al. 2023, arXiv:2301.11093.
    """
    _checks.values("log_snr_min", log_snr_min, f"a value below log_snr_max = {log_snr_max}", lambda v: v < log_snr_max)
    bounds = (log_snr_min, log_snr_max)
    return _schedule(Partial(_cosine_log_snr, *bounds), Partial(_cosine_time, *bounds))


def _cosine_angles(log_snr_min: Any, log_snr_max: Any, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """theta_0, pi/2 - theta_1 (without the cancellation) and the span between the two angles."""
    low = jnp.arctan(jnp.exp(-jnp.asarray(log_snr_max, dtype) / 2))
    high = jnp.arctan(jnp.exp(jnp.asarray(log_snr_min, dtype) / 2))
    return low, high, jnp.pi / 2 - low - high


def _cosine_log_snr(log_snr_min: Any, log_snr_max: Any, t: jax.Array) -> jax.Array:
    low, high, span = _cosine_angles(log_snr_min, log_snr_max, t.dtype)
    # cos(theta) as the sine of the complement: exact at both ends.
    return 2 * (jnp.log(jnp.sin(high + (1 - t) * span) + _TINY) - jnp.log(jnp.sin(low + t * span) + _TINY))


def _cosine_time(log_snr_min: Any, log_snr_max: Any, log_snr: jax.Array) -> jax.Array:
    low, _, span = _cosine_angles(log_snr_min, log_snr_max, log_snr.dtype)
    return (jnp.arctan(jnp.exp(-log_snr / 2)) - low) / span


def linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """Return the VP schedule whose rate beta(t) is linear in t: DDPM's in continuous time.

        -log alpha_t^2 = B(t) = beta_min t + (beta_max - beta_min) t^2 / 2,   lambda_t = -log(exp(B(t)) - 1)

    Args:
      beta_min: rate at t = 0, per unit time.
      beta_max: rate at t = 1, at least beta_min.
    Returns:
      A variance-preserving Schedule with lambda = +inf (LOG_SNR_LIMIT) at t = 0.
    Raises:
      ValueError: not 0 < beta_min <= beta_max.
    Source: Song et al. 2021, arXiv:2011.13456, Eq. (33).
    """
    _checks.values("beta_min", beta_min, "a positive rate", lambda v: v > 0)
    _checks.values("beta_max", beta_max, f"a rate of at least beta_min = {beta_min}", lambda v: v >= beta_min)
    return _schedule(Partial(_linear_log_snr, beta_min, beta_max), Partial(_linear_time, beta_min, beta_max))


def _log_snr_from_decay(decay: jax.Array) -> jax.Array:
    """lambda of a variance-preserving process from B = -log alpha^2 >= 0."""
    return jnp.maximum(-decay - jnp.log(-jnp.expm1(-decay) + _TINY**2), -LOG_SNR_LIMIT)


def _linear_log_snr(beta_min: Any, beta_max: Any, t: jax.Array) -> jax.Array:
    return _log_snr_from_decay(beta_min * t + (beta_max - beta_min) * t**2 / 2)


def _linear_time(beta_min: Any, beta_max: Any, log_snr: jax.Array) -> jax.Array:
    decay = jax.nn.softplus(-log_snr)
    return 2 * decay / (beta_min + jnp.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * decay))


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0, *, clip_min: float = 1e-9) -> Schedule:
    """Return the sigmoid schedule: alpha^2 falls along a stretch of the logistic curve.

        g(t) = (S(end) - S(z)) / (S(end) - S(start)),   S(z) = 1 / (1 + exp(-z / tau)),   z = start + t (end - start)
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
    Numerics: differences of logistic functions are written with log sinh: no cancellation, no overflow.
    Source: Jabri et al. 2022, arXiv:2212.11972, Algorithm 1, with its clipping at clip_min made affine: no plateau.
    """
    _checks.values("end", end, f"a value above start = {start}", lambda v: v > start)
    _checks.values("tau", tau, "a positive temperature", lambda v: v > 0)
    _checks.values("clip_min", clip_min, "a value in (0, 1)", lambda v: (v > 0) & (v < 1))
    options = (start / tau, end / tau, clip_min)
    return _schedule(Partial(_sigmoid_log_snr, *options), Partial(_sigmoid_time, *options))


def _sigmoid_log_snr(start: Any, end: Any, clip_min: Any, t: jax.Array) -> jax.Array:
    # S(b) - S(a) = sinh((b - a) / 2) / (2 cosh(a / 2) cosh(b / 2)); the common 1 / cosh(z / 2) cancels in g / (1 - g).
    span = end - start
    left = _log_sinh((1 - t) * span / 2) - jnp.logaddexp(end / 2, -end / 2)  # log g, but for a constant
    gone = _log_sinh(t * span / 2) - jnp.logaddexp(start / 2, -start / 2)  # log(1 - g), with the same constant
    gone_clipped = jnp.logaddexp(gone + jnp.log1p(-clip_min), left - LOG_SNR_LIMIT)
    return (jnp.logaddexp(left, gone + jnp.log(clip_min)) - gone_clipped).astype(t.dtype)


def _log_sinh(x: jax.Array) -> jax.Array:
    """log(2 sinh(x)) for x >= 0, however large."""
    return x + jnp.log(-jnp.expm1(-2 * x) + _TINY**2)


def _sigmoid_time(start: Any, end: Any, clip_min: Any, log_snr: jax.Array) -> jax.Array:
    gone = jax.nn.sigmoid(-log_snr) / (1 - clip_min)  # 1 - g
    low, high = jax.nn.sigmoid(start), jax.nn.sigmoid(end)
    level = jnp.clip(low + gone * (high - low), low, high)
    return (jnp.log(level) - jnp.log1p(-level) - start) / (end - start)


def from_betas(betas: Any) -> Schedule:
    """Return DDPM's discrete schedule: exact at t = i / T, with T = len(betas) steps.

        alpha_bar_i = prod_{j <= i} (1 - beta_j) = alpha_t^2 at t = i / T;   alpha_bar_0 = 1

    Between the table's times -log alpha_t^2 is linear: the rate beta(t) is constant within a step.

    Args:
      betas: [T] variances of the T steps, in (0, 1), non-decreasing; concrete or traced. The last one may be 1, for
        zero terminal SNR (`zero_terminal_snr`).
    Returns:
      A variance-preserving Schedule with lambda = +inf (LOG_SNR_LIMIT) at t = 0.
    Raises:
      ValueError: betas is not a vector of T >= 1 entries, or holds values outside (0, 1), NaN or a decrease.
    Numerics: a concrete table is summed in float64, then used in the dtype of t.
    Source: Ho et al. 2020, arXiv:2006.11239, Eq. (4).
    """
    betas = betas if hasattr(betas, "shape") else np.asarray(betas, np.float64)
    if jnp.ndim(betas) != 1 or jnp.size(betas) == 0:
        raise ValueError(f"betas: expected a vector of T >= 1 variances, got shape {jnp.shape(betas)}")
    _checks.values("betas", betas, "values in (0, 1)", lambda b: (b > 0) & (b < 1) | (b == 1) & _last(b))
    _checks.values("betas", betas, "non-decreasing values", lambda b: np.diff(b) >= 0)
    table = _checks.known(betas)
    decay = _decay(jnp, betas) if table is None else _decay(np, np.asarray(table, np.float64))
    return _schedule(Partial(_table_log_snr, decay), Partial(_table_time, decay))


def _decay(numpy: Any, betas: Any) -> Any:
    """-log alpha_bar_i for i = 0 .. T, in NumPy or JAX; a beta of 1 ends at the finite stand-in."""
    logs = numpy.log1p(-numpy.where(betas < 1, betas, 0))
    steps = numpy.where(betas < 1, -logs, LOG_SNR_LIMIT)
    return numpy.concatenate([numpy.zeros(1, betas.dtype), numpy.cumsum(steps)])


def _last(betas: np.ndarray) -> np.ndarray:
    return np.arange(betas.size) == betas.size - 1


def _table_log_snr(decay: Any, t: jax.Array) -> jax.Array:
    decay = jnp.asarray(decay, t.dtype)
    steps = decay.shape[0] - 1
    index = jnp.clip(jnp.floor(t * steps).astype(int), 0, steps - 1)
    return _log_snr_from_decay(decay[index] + (t * steps - index) * (decay[index + 1] - decay[index]))


def _table_time(decay: Any, log_snr: jax.Array) -> jax.Array:
    decay = jnp.asarray(decay, log_snr.dtype)
    times = jnp.arange(decay.shape[0], dtype=log_snr.dtype) / (decay.shape[0] - 1)
    return jnp.interp(jax.nn.softplus(-log_snr), decay, times)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """Return the variance-exploding schedule, geometric in the noise level.

        alpha_t = 1,   sigma_t = sigma_min^(1 - t) sigma_max^t,   lambda_t = -2 log sigma_t

    Args:
      sigma_min: noise level at t = 0, in units of the data.
      sigma_max: noise level at t = 1, above sigma_min.
    Returns:
      A variance-exploding Schedule. At t = 0 a state still carries noise of standard deviation sigma_min.
    Raises:
      ValueError: not 0 < sigma_min < sigma_max.
    Source: Song et al. 2021, arXiv:2011.13456, Eq. (31); levels: Karras et al. 2022, arXiv:2206.00364, Table 1.
    """
    _checks.values("sigma_min", sigma_min, "a positive noise level", lambda v: v > 0)
    _checks.values("sigma_max", sigma_max, f"a level above sigma_min = {sigma_min}", lambda v: v > sigma_min)
    return _schedule(Partial(_edm_log_snr, sigma_min, sigma_max), Partial(_edm_time, sigma_min, sigma_max), _ve)


def _edm_log_snr(sigma_min: Any, sigma_max: Any, t: jax.Array) -> jax.Array:
    return -2 * ((1 - t) * jnp.log(sigma_min) + t * jnp.log(sigma_max)).astype(t.dtype)


def _edm_time(sigma_min: Any, sigma_max: Any, log_snr: jax.Array) -> jax.Array:
    return ((-log_snr / 2 - jnp.log(sigma_min)) / jnp.log(sigma_max / sigma_min)).astype(log_snr.dtype)


def rectified_flow() -> Schedule:
    """Return the straight-line interpolation between data and noise.

        alpha_t = 1 - t,   sigma_t = t,   lambda_t = 2 log((1 - t) / t)

    Returns:
      A flow-family Schedule, with lambda = +inf at t = 0 and -inf at t = 1 (+-LOG_SNR_LIMIT).
    Source: Liu et al. 2022, arXiv:2209.03003, Eq. (1); Lipman et al. 2022, arXiv:2210.02747.
    """
    return _schedule(Partial(_flow_log_snr), Partial(_flow_time), _flow)


def _flow_log_snr(t: jax.Array) -> jax.Array:
    return 2 * (jnp.log(_lifted(1 - t)) - jnp.log(_lifted(t)))


def _flow_time(log_snr: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(-log_snr / 2)
