"""A network that predicts a distribution over the levels of discrete data, as a denoiser."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.decoders import check_levels, levels
from jaxdiff.forward import level
from jaxdiff.prediction import Denoised
from jaxdiff.schedules import Schedule


def make_categorical_denoiser(
    apply: Callable, schedule: Schedule, num_levels: int, *, low: float = -1.0, high: float = 1.0
) -> Callable:
    """Turn a network's logits over levels into a denoiser, by Bayes' rule in each component.

        p(v_k | x_t) propto exp(logits_k(x_t, t)) N(x_t; alpha_t v_k, sigma_t^2)
        v_k = low + k step
        D(x_t, t) = sum_k p(v_k | x_t) v_k,   variance = sum_k p(v_k | x_t) (v_k - D)^2

    The network learns what the other components tell about one. What its own noisy value tells is
    known exactly, and is not left to be learnt. Near the data the denoiser rounds to the nearest
    level.

    Args:
      apply: the network, (x_t [B, *D], t [B]) -> logits [B, *D, num_levels].
      schedule: the noise schedule.
      num_levels: number of levels, at least 2.
      low: value of level 0.
      high: value of the last level.
    Returns:
      A denoiser: (x_t [B, *D], t [] or [B]) -> `Denoised` with the mean and the variance of x_0,
      dtype of x_t.
    Raises:
      ValueError: num_levels < 2; when called, logits of another shape.
      TypeError: apply is not a function.
    Source: Gulrajani & Hashimoto 2023, arXiv:2305.18619, Section 3 (categorical reparameterization,
    output prior).
    """
    return CategoricalDenoiser(apply, schedule, num_levels, low, high)


@pytree
class CategoricalDenoiser:
    """The denoiser of `make_categorical_denoiser`."""

    apply: Callable
    schedule: Schedule
    num_levels: int = static()
    low: float = static(default=-1.0)
    high: float = static(default=1.0)

    def __post_init__(self) -> None:
        check_levels(self.num_levels, self.low, self.high)
        put(self, apply=as_function("apply", self.apply))

    def __call__(self, x_t: jax.Array, t: Any) -> Denoised:
        """Return the mean and the variance of x_0 given x_t."""
        _checks.floating("x_t", x_t)
        dtype = _rows.state_dtype(x_t.dtype)
        t = jnp.broadcast_to(jnp.asarray(t, dtype), x_t.shape[:1])
        alpha, sigma, _ = level(self.schedule, t, x_t)
        logits, expected = self.apply(x_t, t), (*x_t.shape, self.num_levels)
        if logits.shape != expected:
            raise ValueError(f"logits: expected shape {expected}, got {logits.shape}")
        values = levels(self.num_levels, self.low, self.high).astype(dtype)
        level_k = _rows.lead(values, x_t.ndim + 1)
        distance = (x_t[..., None] - alpha[..., None] * level_k) / sigma[..., None]
        joint = logits.astype(dtype) - distance**2 / 2
        top = jax.lax.stop_gradient(jnp.max(joint, axis=-1, keepdims=True))
        weight = jnp.exp(joint - top)  # p(v_k | x_t), up to a factor
        ones = jnp.ones_like(values)
        sums = _total(weight, jnp.stack([ones, values], axis=1))
        mean = sums[..., 1] / sums[..., 0]
        variance = _total(weight * (level_k - mean[..., None]) ** 2, ones) / sums[..., 0]
        return Denoised(mean.astype(x_t.dtype), variance=variance.astype(x_t.dtype))

    def short_name(self) -> str:
        """What stands for the denoiser in the line of an algorithm."""
        return f"{self.num_levels}-levels"


def _total(weight: jax.Array, value: jax.Array) -> jax.Array:
    """sum_k weight_k value_k, as a product: XLA's CPU adds along the last axis one by one."""
    return jnp.matmul(weight, value, precision=jax.lax.Precision.HIGHEST)


def on_log_snr(
    apply: Callable, schedule: Schedule, *, low: float = -20.0, high: float = 20.0
) -> Callable:
    """Give a network the log-SNR in place of the time: it means the same under every schedule.

        (x, t) -> apply(x, u),   u = clip((high - lambda_t) / (high - low), 0, 1)

    Args:
      apply: the network, (x [B, *D], u [B]) -> its output.
      schedule: the noise schedule, which may be learned.
      low: log-SNR that becomes u = 1.
      high: log-SNR that becomes u = 0.
    Returns:
      A function of (x_t, t), as `make_denoiser` takes it.
    Raises:
      ValueError: not low < high.
      TypeError: apply is not a function.
    Source: Kingma et al. 2021, arXiv:2107.00630, Section 4.1, where the network is given gamma_t =
    -lambda_t.
    """
    return OnLogSNR(apply, schedule, low, high)


@pytree
class OnLogSNR:
    """The function of `on_log_snr`."""

    apply: Callable
    schedule: Schedule
    low: Any = -20.0
    high: Any = 20.0

    def __post_init__(self) -> None:
        _checks.finite("high", self.high)
        below = f"a value below high = {self.high}"
        _checks.values("low", self.low, below, lambda low: low < self.high)
        put(self, apply=as_function("apply", self.apply))

    def __call__(self, x: jax.Array, t: Any) -> Any:
        """Call the network at u in place of t."""
        log_snr = self.schedule.log_snr(t)
        low, high = _rows.cast(log_snr.dtype, self.low, self.high)
        return self.apply(x, jnp.clip((high - log_snr) / (high - low), 0, 1))
