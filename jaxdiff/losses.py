"""Training objectives: one number per example, so that the caller decides what is averaged over which devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._functions import as_function
from jaxdiff.decoders import Decoder, event_sum
from jaxdiff.forward import Normal, level, q_sample
from jaxdiff.prediction import affine, edm_input, target, x_0_of
from jaxdiff.schedules import LOG_SNR_LIMIT, Schedule


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

    With a weight, the error is measured on x_0 instead: weight(lambda_t) mean_D (x_0 - x_0_hat)^2, for whatever the
    network predicts.

    Args:
      key: typed PRNG key, or one a row, [B]; row i's noise and time depend on row i's key alone.
      network: (x_t [B, *D], t [B]) -> prediction [B, *D].
      schedule: the noise schedule.
      x_0: data, [B, *D], floating.
      t: times, [B]; None draws them uniformly.
      prediction: what the network predicts, one of jaxdiff.prediction.PREDICTIONS.
      weight: None for the plain error of the prediction, or a function of lambda (`min_snr`, `edm`, `sigmoid`, `snr`).
      sigma_data: standard deviation of the data; only "edm" uses it.
    Returns:
      [B] losses, at least float32.
    Raises:
      ValueError: shapes do not fit, unknown prediction.
      TypeError: integer images, or key is no typed key.
    Numerics: the weighted error is computed from the prediction's own error, never from a difference of two x_0.
    Source: Ho et al. 2020, arXiv:2006.11239, Eq. (14). The weights multiply the error at the times drawn, whatever the
      schedule: there is no factor -dlambda/dt as in Kingma & Gao 2023, arXiv:2303.00848, Section 3.
    """
    _checks.floating("x_0", x_0)
    key_time, key_noise = _split_rows(key, x_0.shape[0])
    t = uniform_times(key_time, x_0.shape[0]) if t is None else t
    _checks.time("t", t, x_0)
    t = jnp.broadcast_to(jnp.asarray(t, _rows.state_dtype(x_0.dtype)), x_0.shape[:1])
    eps = _rows.normal(key_noise, x_0).astype(x_0.dtype)
    x_t = q_sample(schedule, x_0, t, eps)
    wanted = target(schedule, x_0, eps, t, prediction=prediction, sigma_data=sigma_data)
    seen = edm_input(schedule, t, x_t, sigma_data=sigma_data) if prediction == "edm" else x_t
    output = network(seen, t)
    _checks.same_shape("the network's output", output, "x_0", x_0)
    error = _event_mean((output.astype(_rows.state_dtype(output.dtype)) - wanted) ** 2)
    if weight is None:
        return error
    out = affine(schedule, t, x_t, prediction=prediction, sigma_data=sigma_data).out
    # The root first: near t = 0 the weight is huge where out^2 underflows.
    scale = jnp.sqrt(as_function("weight", weight)(schedule.log_snr(t))) * jnp.reshape(out, (-1,))
    return scale**2 * error


def _split_rows(key: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Two independent keys a row, [B] each."""
    pairs = jax.vmap(jax.random.split)(_rows.keys(key, num_rows))
    return pairs[:, 0], pairs[:, 1]


def _event_mean(x: jax.Array) -> jax.Array:
    """Mean over all axes but the first, [B]."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


def uniform_times(key: jax.Array, num: int) -> jax.Array:
    """Draw independent uniform times.

    Args:
      key: typed PRNG key, or one a row, [num].
      num: how many.
    Returns:
      [num] times in [0, 1), float32.
    """
    return jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(_rows.keys(key, num))


def low_discrepancy_times(key: jax.Array, num: int, *, first: Any = 0, total: int | None = None) -> jax.Array:
    """Draw times that cover [0, 1) evenly within a batch; each alone is uniform.

        t_i = (u + i / total) mod 1,   u ~ U[0, 1)

    Args:
      key: one typed PRNG key, the same for all parts of the batch.
      num: how many.
      first: index of the first of them in the whole batch.
      total: size of the whole batch; num if None.
    Returns:
      [num] times in [0, 1), float32.
    Source: Kingma et al. 2021, arXiv:2107.00630, Appendix I.1.
    """
    _checks.key("key", key)
    whole = num if total is None else total
    return jnp.mod(jax.random.uniform(key, (), jnp.float32) + (first + jnp.arange(num)) / whole, 1.0)


def log_normal_times(
    key: jax.Array, num: int, schedule: Schedule, *, mean: float = -1.2, std: float = 1.2
) -> jax.Array:
    """Draw times whose log noise-to-signal ratio is normal.

        log(sigma_t / alpha_t) = -lambda_t / 2 ~ N(mean, std^2)

    Args:
      key: typed PRNG key, or one a row, [num].
      num: how many.
      schedule: the noise schedule, which turns lambda into t.
      mean: of log(sigma / alpha).
      std: of log(sigma / alpha).
    Returns:
      [num] times in [0, 1], float32.
    Raises:
      ValueError: std is not positive.
    Source: Karras et al. 2022, arXiv:2206.00364, Table 1.
    """
    _checks.values("std", std, "a positive standard deviation", lambda v: v > 0)
    noise = jax.vmap(lambda k: jax.random.normal(k, (), jnp.float32))(_rows.keys(key, num))
    return schedule.time(-2 * (mean + std * noise))


def snr() -> Partial:
    """Return the weight exp(lambda): the plain error of eps.

    Returns:
      A function lambda -> weight of the squared error of x_0.
    """
    return Partial(jnp.exp)


def min_snr(gamma: float = 5.0) -> Partial:
    """Return the weight min(SNR, gamma).

    Args:
      gamma: largest weight, positive.
    Returns:
      A function lambda -> weight of the squared error of x_0.
    Raises:
      ValueError: gamma is not positive.
    Source: Hang et al. 2023, arXiv:2303.09556, Section 3.4.
    """
    _checks.values("gamma", gamma, "a positive bound", lambda g: g > 0)
    return Partial(_min_snr, gamma)


def _min_snr(gamma: Any, log_snr: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(log_snr, jnp.log(gamma)))


def edm(sigma_data: float = 0.5) -> Partial:
    """Return EDM's weight, which makes the preconditioned network's own error uniform over noise levels.

        w = (r^2 + sigma_data^2) / (r sigma_data)^2,   r = sigma / alpha

    Args:
      sigma_data: standard deviation of the data, positive.
    Returns:
      A function lambda -> weight of the squared error of x_0.
    Raises:
      ValueError: sigma_data is not positive.
    Source: Karras et al. 2022, arXiv:2206.00364, Table 1.
    """
    _checks.values("sigma_data", sigma_data, "a positive standard deviation", lambda s: s > 0)
    return Partial(_edm, sigma_data)


def _edm(sigma_data: Any, log_snr: jax.Array) -> jax.Array:
    return sigma_data**-2 + jnp.exp(log_snr)


def sigmoid(bias: float = 0.0) -> Partial:
    """Return the sigmoid weight: sigmoid(bias - lambda) on the error of eps.

    Args:
      bias: lambda at which the weight of the error of eps is one half.
    Returns:
      A function lambda -> weight of the squared error of x_0.
    Source: Kingma & Gao 2023, arXiv:2303.00848, Section 3; Hoogeboom et al. 2024, arXiv:2410.19324, Eq. (8).
    """
    return Partial(_sigmoid, bias)


def _sigmoid(bias: Any, log_snr: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(bias - log_snr) * jnp.exp(log_snr)


def denoising_error(key: jax.Array, denoiser: Callable, schedule: Schedule, x_0: jax.Array, t: Any) -> jax.Array:
    """Return the squared error of a denoiser at given times.

        e = sum_D (x_0 - D(x_t, t))^2,   x_t = alpha_t x_0 + sigma_t eps

    Args:
      key: typed PRNG key, or one a row [B].
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      x_0: data, [B, *D], floating.
      t: times, [] or [B].
    Returns:
      [B], in squared units of the data; its mean over rows is the mmse where the denoiser is exact.
    Raises:
      ValueError: t is no time for x_0.
      TypeError: x_0 is not floating.
    Source: Guo et al. 2005, arXiv:cs/0412108, for the mmse as a function of the SNR.
    """
    _checks.floating("x_0", x_0)
    eps = _rows.normal(_rows.keys(key, x_0.shape[0]), x_0).astype(x_0.dtype)
    return event_sum((x_0 - x_0_of(denoiser(q_sample(schedule, x_0, t, eps), t))) ** 2)


class BoundTerms(NamedTuple):
    """The parts of a negative variational bound, [B] each, in nats; their sum bounds -log p(x_0) from above.

    Fields:
      prior: KL(q(x_1 | x_0) || p(x_1)).
      diffusion: what the reverse process between t = 1 and t = 0 costs.
      reconstruction: -log p(x_0 | x at t = 0).
    """

    prior: jax.Array
    diffusion: jax.Array
    reconstruction: jax.Array


def continuous_elbo(
    key: jax.Array,
    denoiser: Callable,
    schedule: Schedule,
    x_0: jax.Array,
    *,
    decoder: Decoder,
    t: jax.Array | None = None,
) -> BoundTerms:
    """Estimate the negative variational bound in continuous time, with one time an example.

        prior           alpha_1^2 |x_0|^2 / (2 sigma_1^2)
        diffusion       1/2 E_t[-lambda'(t) exp(lambda_t) |x_0 - D(x_t, t)|^2]
        reconstruction  -E log p(x_0 | x_{t=0}),   p the decoder of N(x_{t=0} / alpha_0, (sigma_0 / alpha_0)^2)

    Args:
      key: typed PRNG key, or one a row [B].
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule, which must leave some noise at t = 0: `cosine(log_snr_max=13)`, `edm`, `learned`.
      x_0: data, [B, *D], floating.
      decoder: p(x_0 | x_{t=0}), such as `decoders.discretised_normal(256)`.
      t: times, [B]; None draws them uniformly.
    Returns:
      BoundTerms; the sum of the three is the loss, whose mean over times and noise bounds -log p(x_0) from above.
    Raises:
      ValueError: the schedule has no noise at t = 0, where this is known; shapes do not fit.
      TypeError: integer images, or key is no typed key.
    Numerics: lambda' by forward-mode differentiation. Gradients reach the schedule, its end-points too.
    Source: Kingma et al. 2021, arXiv:2107.00630, Eqs. (11), (12) and (17).
    """
    _checks.floating("x_0", x_0)
    _checks.values(
        "schedule", schedule.log_snr(0.0), "noise left at t = 0 (a finite log-SNR)", lambda v: v < 0.75 * LOG_SNR_LIMIT
    )
    size = x_0.shape[0]
    keys = jax.vmap(lambda k: jax.random.split(k, 3))(_rows.keys(key, size))
    t = uniform_times(keys[:, 0], size) if t is None else t
    _checks.time("t", t, x_0)
    t = jnp.broadcast_to(jnp.asarray(t, _rows.state_dtype(x_0.dtype)), (size,))
    log_snr, rate = jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))
    error = denoising_error(keys[:, 1], denoiser, schedule, x_0, t)
    last = level(schedule, 0.0, x_0)
    x = q_sample(schedule, x_0, 0.0, _rows.normal(keys[:, 2], x_0).astype(x_0.dtype))
    end = Normal(x / last.alpha, jnp.exp(-last.log_snr))
    return BoundTerms(
        prior=prior_kl(schedule, x_0, 1.0),
        diffusion=-rate * jnp.exp(log_snr) / 2 * error,
        reconstruction=-decoder.log_prob(x_0, end),
    )


def prior_kl(schedule: Schedule, x_0: jax.Array, t: Any) -> jax.Array:
    """Return how far the diffused data are from the prior.

        KL(q(x_t | x_0) || N(0, sigma_t^2 I)) = alpha_t^2 |x_0|^2 / (2 sigma_t^2)

    Args:
      schedule: the noise schedule.
      x_0: data, [B, *D], floating.
      t: time, [] or [B], as a rule 1.
    Returns:
      [B], in nats.
    Raises:
      ValueError: t is no time for x_0.
    """
    return event_sum(jnp.exp(level(schedule, t, x_0).log_snr) * x_0**2 / 2)


def spend_times_well(parameters: dict[str, Any], log_snr: jax.Array, diffusion: jax.Array) -> jax.Array:
    """Return zeros whose gradient trains the interior of a learned schedule to reduce the bound's variance.

        E[diffusion^2] as a function of the density r(lambda) that times are drawn from; its gradient is
        -E[diffusion^2 grad log r(lambda)], which needs no derivative of the network

    The expectation of the bound does not depend on the interior; `schedules.learned` with `stop_gradient` on the logits
    leaves this the only gradient that reaches them.

    Args:
      parameters: of `schedules.learned`.
      log_snr: lambda at the times drawn, [B].
      diffusion: the diffusion terms at these, [B], in any unit.
    Returns:
      [B] zeros, to be added to the loss.
    Source: Kingma et al. 2021, arXiv:2107.00630, Section 5.1; the gradient is that of an importance sampling density.
    """
    low, high, logits = (parameters[name] for name in ("log_snr_min", "log_snr_max", "logits"))
    width = (high - low) / len(logits)
    bins = jnp.clip(jnp.floor((high - log_snr) / width).astype(int), 0, len(logits) - 1)
    log_density = jax.nn.log_softmax(logits)[jax.lax.stop_gradient(bins)]
    return jax.lax.stop_gradient(diffusion) ** 2 * (jax.lax.stop_gradient(log_density) - log_density)
