"""The conversions between predictions, all of them through x_0."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks, _rows
from jaxdiff._functions import known_ahead
from jaxdiff.forward import level, no_noise, rates
from jaxdiff.schedules import Schedule

# What a network may predict.
PREDICTIONS = ("eps", "x0", "v", "score", "velocity", "edm")
# The predictions that `convert` turns into each other.
CONVERTIBLE = PREDICTIONS[:5]
# The names of diffusers, and some of papers.
ELSEWHERE = {
    "epsilon": "eps", "noise": "eps", "sample": "x0", "x_0": "x0", "v_prediction": "v",
    "flow_prediction": "velocity",
}  # fmt: skip


class Affine(NamedTuple):
    """x_0 = skip x_t + out prediction: a prediction type at one time, broadcasting against x_t."""

    skip: jax.Array
    out: jax.Array


def check_sigma_data(value: Any) -> None:
    """Require the standard deviation of data.

    Args:
      value: what was given.
    Raises:
      ValueError: it is known, and not positive.
    """
    _checks.values("sigma_data", value, "a positive standard deviation", lambda s: s > 0)


def affine(
    schedule: Schedule, t: Any, x_t: jax.Array, *, prediction: str, sigma_data: float = 0.5
) -> Affine:
    """Return the coefficients that turn a prediction into x_0.

        x_0 = skip x_t + out prediction

    Args:
      schedule: the noise schedule.
      t: time, [] or [B].
      x_t: noisy state, [B, *D].
      prediction: one of PREDICTIONS.
      sigma_data: standard deviation of the data; only "edm" uses it.
    Returns:
      Affine, in x_t's dtype but at least float32. |out|^2 turns a squared error of the prediction
      into one of x_0.
    Raises:
      ValueError: unknown prediction, t is no time for x_t, or sigma_data is not positive.
    Numerics: eps and score divide by alpha_t, so they say nothing about x_0 where alpha_t = 0, and
      are finite there without meaning (`to_x_0` and denoisers are NaN); the others are bounded.
    Source: v: Salimans & Ho 2022, arXiv:2202.00512, Appendix D; edm: Karras et al. 2022,
    arXiv:2206.00364, Table 1.
    """
    _checks.choice("prediction", prediction, PREDICTIONS, elsewhere=ELSEWHERE)
    check_sigma_data(sigma_data)
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
        # Positive, because lambda decreases; 0 where lambda is at its limit.
        wronskian = d_sigma * alpha - d_alpha * sigma
        wronskian = jnp.maximum(wronskian, jnp.finfo(wronskian.dtype).tiny)
        return Affine(d_sigma / wronskian, -sigma / wronskian)
    (sigma_data,) = _rows.cast(sigma.dtype, sigma_data)
    # EDM's network sees x_t / alpha, whose noise level is the ratio sigma / alpha.
    total = jnp.hypot(sigma, alpha * sigma_data)
    return Affine(alpha * sigma_data**2 / total**2, sigma * sigma_data / total)


def says_nothing(schedule: Schedule, t: Any, out: jax.Array, prediction: str) -> jax.Array:
    """Return where rounding of the prediction, times out, is as large as x_0.

    Args:
      schedule: the noise schedule.
      t: time, [] or [B].
      out: the coefficient that `affine` has for the prediction, broadcasting against x_t.
      prediction: one of PREDICTIONS.
    Returns:
      Booleans of out's shape.
    """
    size = jnp.abs(out)
    if prediction == "score":  # it is of size 1 / sigma, the others of order one
        size = size / jnp.reshape(schedule.sigma(jnp.asarray(t, out.dtype)), out.shape)
    return size * jnp.finfo(out.dtype).eps > 1


def to_x_0(
    schedule: Schedule, output: jax.Array, x_t: jax.Array, t: Any, *, prediction: str
) -> jax.Array:
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
      ValueError: unknown prediction, shapes do not fit, or t is known and the prediction says
        nothing of x_0 there.
    Numerics: NaN at a traced t where rounding of the prediction is as large as x_0: eps and score
      where alpha_t = 0.
    Source: see the table at the top of this module.
    """
    _checks.floating("x_t", x_t)
    _checks.choice("prediction", prediction, CONVERTIBLE)
    _checks.same_shape("output", output, "x_t", x_t)
    skip, out = affine(schedule, t, x_t, prediction=prediction)
    lost = says_nothing(schedule, t, out, prediction)
    _checks.values(
        "t", lost, f"a time with data left, of which {prediction} says something", np.logical_not
    )
    return (skip * x_t + jnp.where(lost, jnp.nan, out) * output).astype(x_t.dtype)


def from_x_0(
    schedule: Schedule,
    x_0: jax.Array,
    x_t: jax.Array,
    t: Any,
    *,
    prediction: str,
    sigma_data: float = 0.5,
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
      ValueError: unknown prediction, shapes do not fit, or another prediction than x0 at a known t
        without noise.
    Numerics: all but x0 divide by sigma_t, and are NaN at a traced t without noise: sigma_t /
      alpha_t below rounding. A training target is better written from eps, which is known there
      (`target`).
    """
    _checks.floating("x_t", x_t)
    _checks.same_shape("x_0", x_0, "x_t", x_t)
    skip, out = affine(schedule, t, x_t, prediction=prediction, sigma_data=sigma_data)
    if prediction != "x0":
        lost = no_noise(level(schedule, t, x_t).log_snr)
        _checks.values(
            "t",
            lost,
            f"a time with noise left, of which {prediction} says something",
            np.logical_not,
        )
        out = jnp.where(lost, jnp.nan, out)
    return ((x_0 - skip * x_t) / out).astype(x_t.dtype)


def target(
    schedule: Schedule,
    x_0: jax.Array,
    eps: jax.Array,
    t: Any,
    *,
    prediction: str,
    sigma_data: float = 0.5,
) -> jax.Array:
    """Return what a perfect network predicts from x_t = alpha x_0 + sigma eps.

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
      ValueError: unknown prediction, shapes do not fit, or sigma_data is not positive.
    Source: see the table at the top of this module.
    """
    _checks.floating("x_0", x_0)
    _checks.choice("prediction", prediction, PREDICTIONS, elsewhere=ELSEWHERE)
    check_sigma_data(sigma_data)
    _checks.same_shape("eps", eps, "x_0", x_0)
    alpha, sigma, _ = level(schedule, t, x_0)
    if prediction == "velocity":
        d_alpha, d_sigma = rates(schedule, t, x_0)
        value = d_alpha * x_0 + d_sigma * eps
    elif prediction == "edm":
        (sigma_data,) = _rows.cast(sigma.dtype, sigma_data)
        value = (sigma / sigma_data * x_0 - alpha * sigma_data * eps) / jnp.hypot(
            sigma, alpha * sigma_data
        )
    else:
        value = {"eps": eps, "x0": x_0, "v": alpha * eps - sigma * x_0, "score": -eps / sigma}[
            prediction
        ]
    return value.astype(x_0.dtype)


def convert(
    schedule: Schedule, output: jax.Array, x_t: jax.Array, t: Any, *, source: str, target: str
) -> jax.Array:
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
      ValueError: unknown prediction, shapes do not fit, or a known t where source does not tell
        x_0, or x_0 not target.
    Numerics: as `to_x_0` and `from_x_0`.
    """
    _checks.choice("source", source, CONVERTIBLE)
    _checks.choice("target", target, CONVERTIBLE)
    _checks.same_shape("output", output, "x_t", x_t)
    if source == target:
        return output
    return from_x_0(
        schedule, to_x_0(schedule, output, x_t, t, prediction=source), x_t, t, prediction=target
    )


@known_ahead
def check_start(schedule: Schedule, prediction: str, start: Any = 1.0) -> None:
    """Require a prediction from which x_0 follows where sampling starts.

    Args:
      schedule: the noise schedule.
      prediction: one of PREDICTIONS.
      start: the latest time that the network is asked at, [].
    Raises:
      ValueError: unknown prediction, or one whose rounding is as large as x_0 at start, where the
        schedule is known.
    Source: Lin et al. 2023, arXiv:2305.08891, Section 3.2; Salimans & Ho 2022, arXiv:2202.00512,
    Section 4, for v.
    """
    _checks.choice("prediction", prediction, PREDICTIONS, elsewhere=ELSEWHERE)
    _checks.time("start", start)
    out = affine(schedule, start, jnp.zeros(1), prediction=prediction).out
    lost = _checks.known(says_nothing(schedule, start, out, prediction))
    if lost is not None and lost.any():
        raise ValueError(
            "prediction: expected 'v', 'x0' or 'edm', because the schedule leaves no data at "
            f"t = {start}, got {prediction!r}, which says nothing of x_0 there "
            "(or begin earlier: start=0.99, here and in the grid)"
        )
