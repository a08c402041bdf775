"""What a denoiser is and says, and how a network of any prediction becomes one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._functions import Static
from jaxdiff._tree import as_function
from jaxdiff.forward import level
from jaxdiff.prediction._conversions import affine, check_sigma_data, check_start, says_nothing
from jaxdiff.schedules import Schedule

Denoiser = Callable[[jax.Array, jax.Array], Any]
"""(x_t [B, *D], t [] or [B]) -> E[x_0 | x_t], [B, *D]; or a `Denoised`, where the reverse variance is learned."""

THRESHOLDS = ("static", "dynamic")


class Denoised(NamedTuple):
    """What a denoiser says of x_t where it says more than the mean.

    Fields:
      x_0: E[x_0 | x_t], [B, *D].
      fraction: position between the smallest (0) and the largest (1) log-variance of the reverse
        step, [B, *D], or None; a network with a learned variance gives it.
      variance: Var[x_0 | x_t] of each component, [B, *D], or None; an oracle gives it.
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
      ValueError: x_0 has another shape than x_t. It would be broadcast: one row's answer for all of
        them.
    """
    x_0 = denoised.x_0 if isinstance(denoised, Denoised) else denoised
    _checks.same_shape("denoiser(x_t, t)", x_0, "x_t", x_t)
    return x_0


def clip(limit: Any = 1.0) -> Partial:
    """Return static thresholding: x_0 clipped to [-limit, limit].

    Args:
      limit: the bound, in units of the data.
    Returns:
      A function x_0 [B, *D] -> [B, *D].
    Raises:
      ValueError: limit is not positive.
    Source: Ho et al. 2020, released code (clip_denoised).
    """
    _checks.values("limit", limit, "a positive bound", lambda bound: bound > 0)
    return Partial(_clip, limit)


def _clip(limit: Any, x_0: jax.Array) -> jax.Array:
    return jnp.clip(x_0, -limit, limit)


def dynamic_threshold(quantile: Any = 0.995, limit: Any = 1.0) -> Partial:
    """Return dynamic thresholding: each example clipped to a quantile of its own |x_0|, then rescaled to the limit.

        s = max(limit, quantile(|x_0|)),   x_0 -> clip(x_0, -s, s) limit / s

    Args:
      quantile: in [0, 1].
      limit: the bound of the data.
    Returns:
      A function x_0 [B, *D] -> [B, *D], independent between rows.
    Raises:
      ValueError: quantile outside [0, 1], or limit is not positive.
    Source: Saharia et al. 2022, arXiv:2205.11487, Section 2.3.
    """
    _checks.values("quantile", quantile, "a fraction in [0, 1]", lambda q: (q >= 0) & (q <= 1))
    _checks.values("limit", limit, "a positive bound", lambda bound: bound > 0)
    return Partial(_dynamic, quantile, limit)


def _dynamic(quantile: Any, limit: Any, x_0: jax.Array) -> jax.Array:
    size = jnp.quantile(jnp.abs(x_0).reshape(x_0.shape[0], -1), quantile, axis=1)
    bound = _rows.expand(jnp.maximum(size, limit).astype(x_0.dtype), x_0)
    return jnp.clip(x_0, -bound, bound) * (limit / bound)


def make_denoiser(
    apply: Callable,
    schedule: Schedule,
    prediction: str = "eps",
    threshold: str | Callable | None = None,
    *,
    sigma_data: Any = 0.5,
    learned_variance: bool = False,
    start: Any = 1.0,
) -> Partial:
    """Turn a network with any prediction type into a denoiser.

        D(x_t, t) = threshold(skip_t x_t + out_t apply(x_t, t))

    Args:
      apply: the network, (x_t [B, *D], t [B]) -> prediction [B, *D]. Give it as
        `Partial(model.apply, params)`: then the parameters are traced, and a new set compiles
        nothing. A closure works too, its constants compiled in.
      schedule: the noise schedule.
      prediction: one of PREDICTIONS. "edm" feeds the network c_in x_t and treats its output as F.
      threshold: None, "static" (`clip`), "dynamic" (`dynamic_threshold`), or a function of x_0.
      sigma_data: standard deviation of the data; only "edm" uses it.
      learned_variance: the network's last axis holds the prediction and then, as many channels
        again, the fraction of the reverse log-variance; the denoiser returns a `Denoised`.
      start: the latest time the denoiser is asked at, []: where a grid begins. "eps" and "score"
        say nothing of x_0 where no data are left: at t = 1 of a rectified flow and of tables with
        zero terminal SNR, whose "velocity" does not either.
    Returns:
      A denoiser: (x_t [B, *D], t [] or [B]) -> E[x_0 | x_t], [B, *D], dtype of x_t. A pytree, fit
      to pass through jit.
    Raises:
      ValueError: unknown prediction or threshold; sigma_data is not positive; a prediction that
        says nothing of x_0 at start, where the schedule is known; when called, an output of another
        shape than x_t.
      TypeError: apply or threshold is no function.
    Numerics: NaN at times where rounding of the prediction is as large as x_0.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. (15), for the learned variance.
    """
    check_start(schedule, prediction, start)
    check_sigma_data(sigma_data)
    if isinstance(threshold, str):
        _checks.choice("threshold", threshold, THRESHOLDS)
        threshold = clip() if threshold == "static" else dynamic_threshold()
    limiter = None if threshold is None else as_function("threshold", threshold)
    options = Static((prediction, learned_variance))
    return Partial(_denoise, options, as_function("apply", apply), schedule, limiter, sigma_data)


def _denoise(
    options: Static,
    apply: Partial,
    schedule: Schedule,
    threshold: Partial | None,
    sigma_data: Any,
    x_t: jax.Array,
    t: Any,
) -> Any:
    _checks.floating("x_t", x_t)
    prediction, learned_variance = options.value
    t = jnp.broadcast_to(jnp.asarray(t, _rows.state_dtype(x_t.dtype)), x_t.shape[:1])
    skip, out = affine(schedule, t, x_t, prediction=prediction, sigma_data=sigma_data)
    out = jnp.where(says_nothing(schedule, t, out, prediction), jnp.nan, out)
    output = apply(
        edm_input(schedule, t, x_t, sigma_data=sigma_data) if prediction == "edm" else x_t, t
    )
    if learned_variance:
        output, fraction = jnp.split(output, 2, axis=-1)
    _checks.same_shape("the network's output", output, "x_t", x_t)
    x_0 = skip * x_t + out * output
    x_0 = (x_0 if threshold is None else threshold(x_0)).astype(x_t.dtype)
    # Networks speak of the fraction in [-1, 1], centred on zero.
    return Denoised(x_0, ((fraction + 1) / 2).astype(x_t.dtype)) if learned_variance else x_0


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
    return (x_t / jnp.hypot(sigma, alpha * sigma_data)).astype(x_t.dtype)
