"""What a schedule is, and the three families."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows

LOG_SNR_LIMIT = 80.0
TINY = math.exp(-LOG_SNR_LIMIT / 2)  # an amplitude; its square is still a normal float32


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["log_snr_fn", "time_fn", "coefficients_fn"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Schedule:
    """A noise schedule: lambda(t), its inverse, and the family that turns lambda into (alpha, sigma).

    Fields:
      log_snr_fn: t -> lambda, strictly decreasing.
      time_fn: lambda -> t, its inverse.
      coefficients_fn: (t, lambda) -> (alpha, sigma).

    Times lie in [0, 1], of any shape (else ValueError; integer arrays: TypeError). Results have
    their shape and dtype.
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


def vp(t: jax.Array, log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The roots of sigmoid(lambda) and sigmoid(-lambda), accurate however small they are.
    return jnp.exp(-jax.nn.softplus(-log_snr) / 2), jnp.exp(-jax.nn.softplus(log_snr) / 2)


def ve(t: jax.Array, log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.ones_like(log_snr), jnp.exp(-log_snr / 2)


def flow(t: jax.Array, log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Straight from t, not through lambda: alpha' = -1 and sigma' = 1 hold at the end-points too.
    return lifted(1 - t), lifted(t)


def lifted(x: jax.Array) -> jax.Array:
    """max(x, TINY), with the derivative of x. (1 - t + TINY would do, but XLA folds the two constants into one.)"""
    return x + jax.lax.stop_gradient(jnp.where(x < TINY, TINY - x, 0))


def make(log_snr: Partial, time: Partial, coefficients: Any = vp) -> Schedule:
    return Schedule(log_snr, time, Partial(coefficients))


def log_snr_from_decay(decay: jax.Array) -> jax.Array:
    """lambda of a variance-preserving process from B = -log alpha^2 >= 0."""
    return jnp.maximum(-decay - jnp.log(-jnp.expm1(-decay) + TINY**2), -LOG_SNR_LIMIT)
