"""The negative variational bound in continuous time, and the schedule it trains."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff.chain import prior_kl
from jaxdiff.decoders import Decoder
from jaxdiff.forward import level, q_likelihood, q_sample
from jaxdiff.kernels._kernel import is_clean
from jaxdiff.losses._denoising import denoising_error
from jaxdiff.losses._times import uniform_times
from jaxdiff.schedules import Schedule


class BoundTerms(NamedTuple):
    """The three parts of a negative variational bound. Their mean sum is at least -log p(x_0).

    Fields:
      prior: KL(q(x_1 | x_0) || p(x_1)), [B], in nats.
      diffusion: the cost of the reverse process from t = 1 to t = 0, [B], in nats.
      reconstruction: -log p(x_0 | x_{t=0}), [B], in nats.
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
    """Estimate the negative variational bound in continuous time: a cost, to be minimised.

        prior           alpha_1^2 |x_0|^2 / (2 sigma_1^2)
        diffusion       1/2 E_t[-lambda'(t) exp(lambda_t) |x_0 - D(x_t, t)|^2]
        reconstruction  -E log p(x_0 | x_{t=0})

    The decoder takes x_0 given x_{t=0} from N(x_{t=0} / alpha_0, (sigma_0 / alpha_0)^2). Each row
    has one random time. `likelihood.continuous_lower_bound` is minus the sum of the three, with
    several times a row.

    Args:
      key: typed PRNG key, or one a row [B].
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule. It must leave some noise at t = 0, as
        `cosine(log_snr_max=13)`, `edm` and `learned` do.
      x_0: data, [B, *D], floating.
      decoder: p(x_0 | x_{t=0}), such as `decoders.discretised_normal(256)`.
      t: times, [B]; None draws them uniformly.
    Returns:
      BoundTerms. The loss is the sum of the three. Its mean over times and noise is at least
      -log p(x_0).
    Raises:
      ValueError: the schedule is known and has no noise at t = 0, or shapes do not fit.
      TypeError: x_0 has an integer dtype, or key is not a typed key.
    Numerics: lambda' by forward-mode differentiation. The schedule and its end-points have
      gradients.
    Source: Kingma et al. 2021, arXiv:2107.00630, Eqs. (11), (12) and (17).
    """
    _checks.data("x_0", x_0)
    last = level(schedule, 0.0, x_0)

    def noisy(log_snr: Any) -> Any:
        return ~is_clean(last._replace(log_snr=log_snr))

    _checks.values("schedule", last.log_snr, "noise left at t = 0 (a finite log-SNR)", noisy)
    size = x_0.shape[0]
    key_time, key_noise, key_end = _rows.split(_rows.keys(key, size), 3)
    t = uniform_times(key_time, size) if t is None else t
    _checks.time("t", t, x_0)
    t = jnp.broadcast_to(jnp.asarray(t, _rows.state_dtype(x_0.dtype)), (size,))
    log_snr, rate = jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))
    # The decoder comes first, because it checks the data.
    x = q_sample(schedule, x_0, 0.0, _rows.normal(key_end, x_0).astype(x_0.dtype))
    reconstruction = -decoder.log_prob(x_0, q_likelihood(schedule, x, 0.0))
    error = denoising_error(key_noise, denoiser, schedule, x_0, t=t)
    return BoundTerms(
        prior=prior_kl(schedule, x_0, 1.0),
        diffusion=-rate * jnp.exp(log_snr) / 2 * error.astype(rate.dtype),
        reconstruction=reconstruction,
    )


def schedule_variance_loss(
    parameters: dict[str, Any], log_snr: jax.Array, diffusion: jax.Array
) -> jax.Array:
    """Return zeros whose gradient lowers the variance of the bound with a learned schedule.

        grad E[diffusion^2] = -E[diffusion^2 grad log r(lambda)]

    r is the density of lambda at uniform times; it is the importance density of the bound. The
    mean of the bound does not depend on the interior of the schedule, its variance does. Give the
    schedule its logits under `stop_gradient`: then they have this gradient alone. No derivative of
    the network is needed.

    Args:
      parameters: of `schedules.learned`.
      log_snr: lambda at the drawn times, [B].
      diffusion: the diffusion terms at these times, [B], in any unit.
    Returns:
      [B] zeros. Add them to the loss.
    Source: Kingma et al. 2021, arXiv:2107.00630, Section 5.1.
    """
    low, high, logits = (parameters[name] for name in ("log_snr_min", "log_snr_max", "logits"))
    width = (high - low) / len(logits)
    bins = jnp.clip(jnp.floor((high - log_snr) / width).astype(int), 0, len(logits) - 1)
    log_density = jax.nn.log_softmax(logits)[jax.lax.stop_gradient(bins)]
    return jax.lax.stop_gradient(diffusion) ** 2 * (
        jax.lax.stop_gradient(log_density) - log_density
    )
