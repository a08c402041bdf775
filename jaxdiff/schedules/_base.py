"""What a schedule is."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import one_line

# The log-SNR of a schedule lies between minus this and this.
LOG_SNR_LIMIT = 80.0
TINY = math.exp(-LOG_SNR_LIMIT / 2)  # an amplitude; its square is still a normal float32


class Schedule:
    """A noise schedule: lambda(t), its inverse, and the family that gives (alpha, sigma).

    Times lie in [0, 1] and may have any shape (else ValueError; integer arrays: TypeError). Results
    have their shape and dtype.

    Each schedule is a subclass with its options as fields, and a pytree. It defines `log_snr_at`
    and `time_at`; and `coefficients`, unless it preserves variance.
    """

    name = "schedule"

    def log_snr_at(self, t: jax.Array) -> jax.Array:
        """lambda_t, strictly decreasing in t."""
        raise NotImplementedError

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """The inverse of `log_snr_at`."""
        raise NotImplementedError

    def coefficients(self, t: jax.Array, log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(alpha_t, sigma_t) from t and lambda_t."""
        return vp(log_snr)

    def log_snr(self, t: Any) -> jax.Array:
        """lambda_t = log(alpha_t^2 / sigma_t^2), in nats."""
        return self.log_snr_at(_as_time(t))

    def time(self, log_snr: Any) -> jax.Array:
        """The t at which lambda_t = log_snr: the inverse of `log_snr`, clipped to [0, 1]."""
        return jnp.clip(self.time_at(_as_float(log_snr)), 0.0, 1.0)

    def alpha_sigma(self, t: Any) -> tuple[jax.Array, jax.Array]:
        """The pair (alpha_t, sigma_t) of x_t = alpha_t x_0 + sigma_t eps."""
        t = _as_time(t)
        return self.coefficients(t, self.log_snr_at(t))

    def alpha(self, t: Any) -> jax.Array:
        """alpha_t, the scale of the signal."""
        return self.alpha_sigma(t)[0]

    def sigma(self, t: Any) -> jax.Array:
        """sigma_t, the standard deviation of the noise. EDM's sigma is sigma_t / alpha_t."""
        return self.alpha_sigma(t)[1]

    def velocity(self, t: Any) -> tuple[jax.Array, jax.Array]:
        """The time derivatives (alpha'_t, sigma'_t), by forward-mode differentiation."""
        t = _as_time(t)
        return jax.jvp(self.alpha_sigma, (t,), (jnp.ones_like(t),))[1]

    def __repr__(self) -> str:
        options: Any = self
        return one_line(options, name=self.name)

    def short_name(self) -> str:
        """What stands for the schedule in the line of an algorithm."""
        return self.name


def _as_float(value: Any) -> jax.Array:
    value = jnp.asarray(value)
    value = value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)
    return value.astype(_rows.state_dtype(value.dtype))


def _as_time(t: Any) -> jax.Array:
    _checks.time("t", t)
    return _as_float(t)


def vp(log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The variance-preserving family: alpha^2 = sigmoid(lambda), sigma^2 = sigmoid(-lambda)."""
    # The roots of the sigmoids, accurate however small they are.
    return jnp.exp(-jax.nn.softplus(-log_snr) / 2), jnp.exp(-jax.nn.softplus(log_snr) / 2)


def lifted(x: jax.Array) -> jax.Array:
    """max(x, TINY), with the derivative of x.

    1 - t + TINY would be the same, but XLA folds the two constants into one.
    """
    return x + jax.lax.stop_gradient(jnp.where(x < TINY, TINY - x, 0))


def log_snr_from_decay(decay: jax.Array) -> jax.Array:
    """lambda of a variance-preserving process from B = -log alpha^2 >= 0."""
    return jnp.maximum(-decay - jnp.log(-jnp.expm1(-decay) + TINY**2), -LOG_SNR_LIMIT)
