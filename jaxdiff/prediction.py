"""What a network predicts, and how it becomes a denoiser: every prediction is a statement about x_0.

    eps        x_t = alpha x_0 + sigma eps
    x0         x_0
    v          alpha eps - sigma x_0
    score      -eps / sigma                     = grad log q(x_t | x_0)
    velocity   alpha' x_0 + sigma' eps          = dx_t / dt
    edm        F in x_0 = c_skip x_t + c_out F(c_in x_t), the preconditioned network

Any two are joined by the linear pair (x_t, x_0), so a conversion goes to x_0 and back: 2 K functions, not K^2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._functions import Static, as_function, known_ahead
from jaxdiff.forward import level, no_data, no_noise, rates
from jaxdiff.schedules import Schedule

Denoiser = Callable[[jax.Array, jax.Array], Any]
"""(x_t [B, *D], t [] or [B]) -> E[x_0 | x_t], [B, *D]; or a `Denoised`, where the reverse variance is learned."""

PREDICTIONS = ("eps", "x0", "v", "score", "velocity", "edm")
CONVERTIBLE = PREDICTIONS[:5]
OF_NOISE = ("eps", "score")  # x_0 is what they leave of x_t, divided by alpha_t
THRESHOLDS = ("static", "dynamic")


class Denoised(NamedTuple):
    """What a denoiser says of x_t where it says more than the mean.

    Fields:
      x_0: E[x_0 | x_t], [B, *D].
      fraction: position between the smallest (0) and the largest (1) log-variance of the reverse step, [B, *D], or
        None; a network with a learned variance gives it.
      variance: Var[x_0 | x_t] of each component, [B, *D], or None; an oracle gives it.
    """

    x_0: jax.Array
    fraction: jax.Array | None = None
    variance: jax.Array | None = None


def x_0_of(denoised: Any) -> jax.Array:
    """Return E[x_0 | x_t] from what a denoiser returned.

    Args:
      denoised: an array, or a `Denoised`.
    Returns:
      x_0, [B, *D].
    """
    return denoised.x_0 if isinstance(denoised, Denoised) else denoised


class Affine(NamedTuple):
    """x_0 = skip x_t + out prediction: a prediction type at one time, broadcasting against x_t."""

    skip: jax.Array
    out: jax.Array


def affine(schedule: Schedule, t: Any, x_t: jax.Array, *, prediction: str, sigma_data: float = 0.5) -> Affine:
    """Return the coefficients that turn a prediction into x_0.

        x_0 = skip x_t + out prediction

    Args:
      schedule: the noise schedule.
      t: time, [] or [B].
      x_t: noisy state, [B, *D].
      prediction: one of PREDICTIONS.
      sigma_data: standard deviation of the data; only "edm" uses it.
    Returns:
      Affine, in x_t's dtype but at least float32. |out|^2 turns a squared error of the prediction into one of x_0.
    Raises:
      ValueError: unknown prediction, or t is no time for x_t.
    Numerics: eps and score divide by alpha_t, so they say nothing about x_0 where alpha_t = 0, and are finite there
      without meaning (`to_x_0` and denoisers are NaN); the others are bounded.
    Source: v: Salimans & Ho 2022, arXiv:2202.00512, Appendix D; edm: Karras et al. 2022, arXiv:2206.00364, Table 1.
    """
    _checks.choice("prediction", prediction, PREDICTIONS)
    alpha, sigma, _ = level(schedule, t, x_t)
    if prediction == "eps":
        return Affine(1 / alpha, -sigma / alpha)
    if prediction == "x0":
        return Affine(jnp.zeros_like(alpha), jnp.ones_like(alpha))
    if prediction == "v":
        return Affine(alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2))
    if prediction == "score":
        return Affine(1 / alpha, sigma**2 / alpha)
    if prediction == "velocity":
        d_alpha, d_sigma = rates(schedule, t, x_t)
        wronskian = d_sigma * alpha - d_alpha * sigma  # positive, since lambda decreases; 0 where it is at its limit
        wronskian = jnp.maximum(wronskian, jnp.finfo(wronskian.dtype).tiny)
        return Affine(d_sigma / wronskian, -sigma / wronskian)
    # EDM's network sees x_t / alpha, whose noise level is the ratio sigma / alpha.
    total = jnp.hypot(sigma, alpha * sigma_data)
    return Affine(alpha * sigma_data**2 / total**2, sigma * sigma_data / total)


def to_x_0(schedule: Schedule, output: jax.Array, x_t: jax.Array, t: Any, *, prediction: str) -> jax.Array:
    """Turn a prediction into x_0.

    Args:
      schedule: the noise schedule.
      output: the prediction, [B, *D].
      x_t: noisy state, [B, *D], floating.
      t: time, [] or [B].
      prediction: one of CONVERTIBLE.
    Returns:
      x_0, [B, *D], dtype of x_t.
    Raises:
      ValueError: unknown prediction, shapes do not fit, or eps or score at a known t where no data are left.
    Numerics: eps and score give NaN at a traced t where no data are left: alpha_t / sigma_t below rounding.
    Source: see the table at the top of this module.
    """
    _checks.floating("x_t", x_t)
    _checks.choice("prediction", prediction, CONVERTIBLE)
    _checks.same_shape("output", output, "x_t", x_t)
    skip, out = affine(schedule, t, x_t, prediction=prediction)
    if prediction in OF_NOISE:
        lost = no_data(level(schedule, t, x_t).log_snr)
        _checks.values("t", lost, f"a time with data left, of which {prediction} says something", np.logical_not)
        out = jnp.where(lost, jnp.nan, out)
    return (skip * x_t + out * output).astype(x_t.dtype)


def from_x_0(
    schedule: Schedule, x_0: jax.Array, x_t: jax.Array, t: Any, *, prediction: str, sigma_data: float = 0.5
) -> jax.Array:
    """Turn x_0 into a prediction: the target of a network, where x_0 is the data.

    Args:
      schedule: the noise schedule.
      x_0: data or denoised state, [B, *D].
      x_t: noisy state, [B, *D], floating.
      t: time, [] or [B].
      prediction: one of PREDICTIONS.
      sigma_data: standard deviation of the data; only "edm" uses it.
    Returns:
      The prediction, [B, *D], dtype of x_t.
    Raises:
      ValueError: unknown prediction, shapes do not fit, or another prediction than x0 at a known t without noise.
    Numerics: all but x0 divide by sigma_t, and are NaN at a traced t without noise: sigma_t / alpha_t below rounding. A
      training target is better written from eps, which is known there (`target`).
    """
    _checks.floating("x_t", x_t)
    _checks.same_shape("x_0", x_0, "x_t", x_t)
    skip, out = affine(schedule, t, x_t, prediction=prediction, sigma_data=sigma_data)
    if prediction != "x0":
        lost = no_noise(level(schedule, t, x_t).log_snr)
        _checks.values("t", lost, f"a time with noise left, of which {prediction} says something", np.logical_not)
        out = jnp.where(lost, jnp.nan, out)
    return ((x_0 - skip * x_t) / out).astype(x_t.dtype)


def target(
    schedule: Schedule, x_0: jax.Array, eps: jax.Array, t: Any, *, prediction: str, sigma_data: float = 0.5
) -> jax.Array:
    """Return what a network should have said of x_t = alpha x_0 + sigma eps.

    Args:
      schedule: the noise schedule.
      x_0: data, [B, *D], floating.
      eps: the noise in x_t, shaped like x_0.
      t: time, [] or [B].
      prediction: one of PREDICTIONS.
      sigma_data: standard deviation of the data; only "edm" uses it.
    Returns:
      The prediction without error, [B, *D], dtype of x_0; finite at both ends.
    Raises:
      ValueError: unknown prediction, or shapes do not fit.
    Source: see the table at the top of this module.
    """
    _checks.floating("x_0", x_0)
    _checks.choice("prediction", prediction, PREDICTIONS)
    _checks.same_shape("eps", eps, "x_0", x_0)
    alpha, sigma, _ = level(schedule, t, x_0)
    if prediction == "velocity":
        d_alpha, d_sigma = rates(schedule, t, x_0)
        value = d_alpha * x_0 + d_sigma * eps
    elif prediction == "edm":
        value = (sigma / sigma_data * x_0 - alpha * sigma_data * eps) / jnp.hypot(sigma, alpha * sigma_data)
    else:
        value = {"eps": eps, "x0": x_0, "v": alpha * eps - sigma * x_0, "score": -eps / sigma}[prediction]
    return value.astype(x_0.dtype)


def convert(schedule: Schedule, output: jax.Array, x_t: jax.Array, t: Any, *, source: str, target: str) -> jax.Array:
    """Turn one prediction into another, through x_0.

    Args:
      schedule: the noise schedule.
      output: the prediction, [B, *D].
      x_t: noisy state, [B, *D].
      t: time, [] or [B].
      source: what output is, one of CONVERTIBLE.
      target: what to return, one of CONVERTIBLE.
    Returns:
      The converted prediction, [B, *D], dtype of x_t.
    Raises:
      ValueError: unknown prediction, shapes do not fit, or a known t where source does not tell x_0, or x_0 not target.
    Numerics: as `to_x_0` and `from_x_0`.
    """
    _checks.choice("source", source, CONVERTIBLE)
    _checks.choice("target", target, CONVERTIBLE)
    _checks.same_shape("output", output, "x_t", x_t)
    if source == target:
        return output
    return from_x_0(schedule, to_x_0(schedule, output, x_t, t, prediction=source), x_t, t, prediction=target)


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
      apply: the network, (x_t [B, *D], t [B]) -> prediction [B, *D]. Give it as `Partial(model.apply, params)`: then
        the parameters are traced, and a new set compiles nothing. A closure works too, its constants compiled in.
      schedule: the noise schedule.
      prediction: one of PREDICTIONS. "edm" feeds the network c_in x_t and treats its output as F.
      threshold: None, "static" (`clip`), "dynamic" (`dynamic_threshold`), or a function of x_0.
      sigma_data: standard deviation of the data; only "edm" uses it.
      learned_variance: the network's last axis holds the prediction and then, as many channels again, the fraction of
        the reverse log-variance; the denoiser returns a `Denoised`.
      start: the latest time the denoiser is asked at, []: where a grid begins. "eps" and "score" say nothing of x_0
        where no data are left: at t = 1 of a rectified flow and of tables with zero terminal SNR.
    Returns:
      A denoiser: (x_t [B, *D], t [] or [B]) -> E[x_0 | x_t], [B, *D], dtype of x_t. A pytree, fit to pass through jit.
    Raises:
      ValueError: unknown prediction or threshold; "eps" or "score" where the schedule is known to leave no data at
        start; when called, an output of another shape than x_t.
      TypeError: apply or threshold is no function.
    Numerics: "eps" and "score" are NaN at times where no data are left: alpha_t / sigma_t below rounding.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. (15), for the learned variance.
    """
    check_start(schedule, prediction, start)
    if isinstance(threshold, str):
        _checks.choice("threshold", threshold, THRESHOLDS)
        threshold = clip() if threshold == "static" else dynamic_threshold()
    limiter = None if threshold is None else as_function("threshold", threshold)
    options = Static((prediction, learned_variance))
    return Partial(_denoise, options, as_function("apply", apply), schedule, limiter, sigma_data)


@known_ahead
def check_start(schedule: Schedule, prediction: str, start: Any = 1.0) -> None:
    """Require a prediction that says something of x_0 where sampling starts.

    Args:
      schedule: the noise schedule.
      prediction: one of PREDICTIONS.
      start: the latest time that the network is asked at, [].
    Raises:
      ValueError: unknown prediction, or "eps" or "score" where the schedule is known to leave no data at start.
    Source: Lin et al. 2023, arXiv:2305.08891, Section 3.2; Salimans & Ho 2022, arXiv:2202.00512, Section 4, for v.
    """
    _checks.choice("prediction", prediction, PREDICTIONS)
    _checks.time("start", start)
    if prediction in OF_NOISE and _checks.known(lost := no_data(schedule.log_snr(start))) is not None and jnp.any(lost):
        raise ValueError(
            f"prediction: expected 'v', 'velocity' or 'x0', because the schedule leaves no data at t = {start}, "
            f"got {prediction!r}, which says nothing of x_0 there (or begin earlier: start=0.99, here and in the grid)"
        )


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
    if prediction in OF_NOISE:
        out = jnp.where(no_data(level(schedule, t, x_t).log_snr), jnp.nan, out)
    output = apply(edm_input(schedule, t, x_t, sigma_data=sigma_data) if prediction == "edm" else x_t, t)
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
    Source: Karras et al. 2022, arXiv:2206.00364, Table 1.
    """
    alpha, sigma, _ = level(schedule, t, x_t)
    return (x_t / jnp.hypot(sigma, alpha * sigma_data)).astype(x_t.dtype)
