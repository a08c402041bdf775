"""What a denoiser returns, and how a network of any prediction becomes one.

A denoiser is a function (x_t [B, *D], t [] or [B]) -> E[x_0 | x_t], [B, *D]. Where it knows more,
it returns a `Denoised`.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import level
from jaxdiff.prediction._conversions import (
    PREDICTIONS,
    affine,
    check_sigma_data,
    check_start,
    says_nothing,
)
from jaxdiff.schedules import Schedule


class Denoised(NamedTuple):
    """What a denoiser returns where it knows more than the mean.

    Fields:
      x_0: E[x_0 | x_t], [B, *D].
      fraction: position between the smallest (0) and the largest (1) log-variance of the reverse
        step, [B, *D], or None. A network with a learned variance gives it.
      variance: Var[x_0 | x_t] of each component, [B, *D], or None. An oracle gives it.
    """

    x_0: jax.Array
    fraction: jax.Array | None = None
    variance: jax.Array | None = None


def x_0_of(denoised: Any, x_t: jax.Array) -> jax.Array:
    """Return E[x_0 | x_t] from what a denoiser returned.

    Args:
      denoised: an array, or a `Denoised`.
      x_t: the state it was asked about, [B, *D].
    Returns:
      x_0, [B, *D].
    Raises:
      ValueError: x_0 has another shape than x_t.
    """
    x_0 = denoised.x_0 if isinstance(denoised, Denoised) else denoised
    _checks.same_shape("denoiser(x_t, t)", x_0, "x_t", x_t)
    return x_0


def clip(limit: Any = 1.0) -> Callable:
    """Return static thresholding: x_0 clipped to [-limit, limit].

    Args:
      limit: the bound, in units of the data.
    Returns:
      A function x_0 [B, *D] -> [B, *D].
    Raises:
      ValueError: limit is not positive.
    Source: Ho et al. 2020, released code (clip_denoised).
    """
    return Clip(limit)


@pytree
class Clip:
    """The threshold of `clip`."""

    limit: Any = 1.0

    def __post_init__(self) -> None:
        _checks.values("limit", self.limit, "a positive bound", lambda bound: bound > 0)

    def __call__(self, x_0: jax.Array) -> jax.Array:
        """Clip."""
        (limit,) = _rows.cast(x_0.dtype, self.limit)
        return jnp.clip(x_0, -limit, limit)


def dynamic_threshold(
    quantile: Any = 0.995, limit: Any = 1.0, *, most: float | None = None
) -> Callable:
    """Return dynamic thresholding: each example is clipped to a quantile of its own |x_0|.

        s = max(limit, min(most, quantile(|x_0|))),   x_0 -> clip(x_0, -s, s) limit / s

    Args:
      quantile: in [0, 1].
      limit: the bound of the data.
      most: the largest s, at least the limit; None for no such bound.
    Returns:
      A function x_0 [B, *D] -> [B, *D], independent between rows.
    Raises:
      ValueError: quantile outside [0, 1], limit is not positive, or most is below it.
    Source: Saharia et al. 2022, arXiv:2205.11487, Section 2.3.
    """
    return DynamicThreshold(quantile, limit, most)


@pytree
class DynamicThreshold:
    """The threshold of `dynamic_threshold`."""

    quantile: Any = 0.995
    limit: Any = 1.0
    most: float | None = static(default=None)

    def __post_init__(self) -> None:
        expected = "a fraction in [0, 1]"
        _checks.values("quantile", self.quantile, expected, lambda q: (q >= 0) & (q <= 1))
        _checks.values("limit", self.limit, "a positive bound", lambda bound: bound > 0)
        if self.most is not None:
            _checks.values(
                "most", self.most, "a bound of at least limit", lambda most: most >= self.limit
            )

    def __call__(self, x_0: jax.Array) -> jax.Array:
        """Clip each row, and bring it back to the limit."""
        quantile, limit = _rows.cast(_rows.state_dtype(x_0.dtype), self.quantile, self.limit)
        size = jnp.quantile(jnp.abs(x_0).reshape(x_0.shape[0], -1), quantile, axis=1)
        size = size if self.most is None else jnp.minimum(size, self.most)
        bound = _rows.expand(jnp.maximum(size, limit).astype(x_0.dtype), x_0)
        return (jnp.clip(x_0, -bound, bound) * (limit / bound)).astype(x_0.dtype)


# What keeps a denoised image within [-1, 1], by name.
THRESHOLDS: dict[str, Callable] = {"static": clip, "dynamic": dynamic_threshold}


def make_denoiser(
    apply: Callable,
    schedule: Schedule,
    prediction: str = "eps",
    threshold: str | Callable | None = None,
    *,
    sigma_data: Any = 0.5,
    learned_variance: bool = False,
    start: Any = 1.0,
) -> Callable:
    """Turn a network with any prediction type into a denoiser.

        D(x_t, t) = threshold(skip_t x_t + out_t apply(x_t, t))

    Args:
      apply: the network, (x_t [B, *D], t [B]) -> prediction [B, *D]. Give it as
        `Partial(model.apply, params)`: then the parameters are traced, and new ones compile
        nothing. A closure works too; its constants become part of the program.
      schedule: the noise schedule.
      prediction: one of PREDICTIONS. "edm" feeds the network c_in x_t and treats its output as F.
      threshold: None, "static" (`clip`), "dynamic" (`dynamic_threshold`), or a function of x_0.
      sigma_data: standard deviation of the data; only "edm" uses it.
      learned_variance: the network's last axis holds the prediction and then, as many channels
        again, the fraction of the reverse log-variance; the denoiser returns a `Denoised`.
      start: the latest time that the denoiser is called at, []: where a grid begins. Where no data
        are left (t = 1 of a rectified flow and of tables with zero terminal SNR), "eps", "score"
        and the tables' "velocity" tell nothing about x_0.
    Returns:
      A denoiser: (x_t [B, *D], t [] or [B]) -> E[x_0 | x_t], [B, *D], dtype of x_t. A pytree, fit
      to pass through jit.
    Raises:
      ValueError: unknown prediction or threshold; sigma_data is not positive; a prediction that
        tells nothing about x_0 at start, where the schedule is known; when called, an output of
        another shape than x_t.
      TypeError: apply or threshold is not a function.
    Numerics: NaN at times where rounding of the prediction is as large as x_0.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. (15), for the learned variance.
    """
    check_start(schedule, prediction, start)
    return NetworkDenoiser(
        apply,
        schedule,
        prediction,
        threshold,
        sigma_data=sigma_data,
        learned_variance=learned_variance,
    )


@pytree
class NetworkDenoiser:
    """The denoiser of `make_denoiser`."""

    apply: Callable
    schedule: Schedule
    prediction: str = static(default="eps")
    threshold: Any = None
    _: KW_ONLY
    sigma_data: Any = 0.5
    learned_variance: bool = static(default=False)

    def __post_init__(self) -> None:
        _checks.choice("prediction", self.prediction, PREDICTIONS)
        check_sigma_data(self.sigma_data)
        threshold = self.threshold
        if isinstance(threshold, str):
            _checks.choice("threshold", threshold, tuple(THRESHOLDS))
            threshold = THRESHOLDS[threshold]()
        if threshold is not None:
            threshold = as_function("threshold", threshold)
        put(self, apply=as_function("apply", self.apply), threshold=threshold)

    def __call__(self, x_t: jax.Array, t: Any) -> Any:
        """Return E[x_0 | x_t], or a `Denoised`."""
        _checks.floating("x_t", x_t)
        t = jnp.broadcast_to(jnp.asarray(t, _rows.state_dtype(x_t.dtype)), x_t.shape[:1])
        options = {"prediction": self.prediction, "sigma_data": self.sigma_data}
        skip, out = affine(self.schedule, t, x_t, **options)
        out = jnp.where(says_nothing(self.schedule, t, out, self.prediction), jnp.nan, out)
        scaled = x_t
        if self.prediction == "edm":
            scaled = edm_input(self.schedule, t, x_t, sigma_data=self.sigma_data)
        output = self.apply(scaled, t)
        if self.learned_variance:
            output, fraction = jnp.split(output, 2, axis=-1)
        _checks.same_shape("the network's output", output, "x_t", x_t)
        x_0 = skip * x_t + out * output
        x_0 = (x_0 if self.threshold is None else self.threshold(x_0)).astype(x_t.dtype)
        if not self.learned_variance:
            return x_0
        # A network's own range is [-1, 1], centred on zero.
        return Denoised(x_0, ((fraction + 1) / 2).astype(x_t.dtype))

    def short_name(self) -> str:
        """What stands for the denoiser in the line of an algorithm."""
        return f"{self.prediction}-prediction"


def edm_input(schedule: Schedule, t: Any, x_t: jax.Array, *, sigma_data: Any = 0.5) -> jax.Array:
    """Scale the input of an EDM-preconditioned network to unit variance.

        c_in x_t = x_t / sqrt(sigma_t^2 + (alpha_t sigma_data)^2)

    Args:
      schedule: the noise schedule.
      t: time, [] or [B].
      x_t: noisy state, [B, *D].
      sigma_data: standard deviation of the data.
    Returns:
      [B, *D], dtype of x_t.
    Raises:
      ValueError: sigma_data is not positive.
    Source: Karras et al. 2022, arXiv:2206.00364, Table 1.
    """
    check_sigma_data(sigma_data)
    alpha, sigma, _ = level(schedule, t, x_t)
    (sigma_data,) = _rows.cast(sigma.dtype, sigma_data)
    return (x_t / jnp.hypot(sigma, alpha * sigma_data)).astype(x_t.dtype)
