"""The error of a prediction, or of a denoiser."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function
from jaxdiff.forward import q_sample
from jaxdiff.losses._times import uniform_times
from jaxdiff.prediction import affine, edm_input, target, x_0_of
from jaxdiff.schedules import Schedule


def simple(
    key: jax.Array,
    network: Callable,
    schedule: Schedule,
    x_0: jax.Array,
    *,
    t: jax.Array | None = None,
    prediction: str = "eps",
    weight: Callable | None = None,
    sigma_data: float = 0.5,
) -> jax.Array:
    """Return the denoising error of each example at one random time.

        L = mean_D (target(x_0, eps, t) - network(x_t, t))^2,   x_t = alpha_t x_0 + sigma_t eps
        L = weight(lambda_t) mean_D (x_0 - x_0_hat)^2           with a weight, for any prediction

    Args:
      key: typed PRNG key, or one a row, [B]. The noise and time of row i depend on its key alone.
      network: (x_t [B, *D], t [B]) -> prediction [B, *D].
      schedule: the noise schedule.
      x_0: data, [B, *D], floating.
      t: times, [B]; None draws them uniformly.
      prediction: what the network predicts, one of jaxdiff.prediction.PREDICTIONS.
      weight: None for the plain error of the prediction, or a function of lambda, such as
        `weights.min_snr()`, `weights.edm()`, `weights.sigmoid()`, `weights.snr()`.
      sigma_data: standard deviation of the data. Only "edm" uses it.
    Returns:
      [B] losses, at least float32.
    Raises:
      ValueError: shapes do not fit, or prediction is unknown.
      TypeError: x_0 has an integer dtype, or key is not a typed key.
    Numerics: the weighted error comes from the error of the prediction, never from a difference of
      two x_0. A network of eps or score can be trained where alpha_1 = 0. Its samples must then
      start before t = 1 (`make_denoiser`, start).
    Source: Ho et al. 2020, arXiv:2006.11239, Eq. (14). The weight multiplies the error at the drawn
      times. Kingma & Gao 2023, arXiv:2303.00848, Section 3, has a further factor -dlambda/dt.
    """
    _checks.data("x_0", x_0)
    key_time, key_noise = _rows.split(_rows.keys(key, x_0.shape[0]))
    t = uniform_times(key_time, x_0.shape[0]) if t is None else t
    _checks.time("t", t, x_0)
    t = jnp.broadcast_to(jnp.asarray(t, _rows.state_dtype(x_0.dtype)), x_0.shape[:1])
    eps = _rows.normal(key_noise, x_0).astype(x_0.dtype)
    x_t = q_sample(schedule, x_0, t, eps)
    expected = target(schedule, x_0, eps, t, prediction=prediction, sigma_data=sigma_data)
    edm = prediction == "edm"
    x_in = edm_input(schedule, t, x_t, sigma_data=sigma_data) if edm else x_t
    output = network(x_in, t)
    _checks.same_shape("the network's output", output, "x_0", x_0)
    error = _event_mean((output.astype(_rows.state_dtype(output.dtype)) - expected) ** 2)
    if weight is None:
        return error
    out = affine(schedule, t, x_t, prediction=prediction, sigma_data=sigma_data).out
    # The root comes first: near t = 0 the weight is huge, and out^2 underflows.
    root = jnp.sqrt(as_function("weight", weight)(schedule.log_snr(t)))
    scale = root * jnp.reshape(out, (-1,))
    return scale**2 * error


def _event_mean(x: jax.Array) -> jax.Array:
    """Mean over all axes but the first, [B]."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


def denoising_error(
    key: jax.Array, denoiser: Callable, schedule: Schedule, x_0: jax.Array, *, t: Any
) -> jax.Array:
    """Return the squared error of a denoiser at given times.

        e = sum_D (x_0 - D(x_t, t))^2,   x_t = alpha_t x_0 + sigma_t eps

    Args:
      key: typed PRNG key, or one a row [B].
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      x_0: data, [B, *D], floating.
      t: times, [] or [B].
    Returns:
      [B], in squared units of the data. Its mean over rows is the mmse of an exact denoiser.
    Raises:
      ValueError: t is outside [0, 1], or its shape does not fit.
      TypeError: x_0 is not floating.
    Source: Guo et al. 2005, arXiv:cs/0412108, for the mmse as a function of the SNR.
    """
    _checks.data("x_0", x_0)
    eps = _rows.normal(_rows.keys(key, x_0.shape[0]), x_0).astype(x_0.dtype)
    return _rows.event_sum((x_0 - x_0_of(denoiser(q_sample(schedule, x_0, t, eps), t), x_0)) ** 2)
