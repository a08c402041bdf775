"""The variational bound of a finite chain, from one random term for each example."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff.chain import Chain, prior_kl
from jaxdiff.forward import q_posterior, q_sample
from jaxdiff.normal import Normal
from jaxdiff.prediction import Denoised, affine, x_0_of


def vlb(
    key: jax.Array,
    chain: Chain,
    x_0: jax.Array,
    *,
    index: jax.Array | None = None,
    probability: Any = None,
) -> jax.Array:
    """Estimate the negative variational bound from one random term.

        L_T + L_i / p_i,   E over i = the sum of all terms

    A grid that ends with noise left adds the term of the decoder, L_0.

    Args:
      key: typed PRNG key, or one a row [B].
      chain: the model. Its variance may be learned.
      x_0: data, [B, *D], floating.
      index: i, the step ts[i] -> ts[i + 1] of each row, [B], integer, 0 to num_steps - 1. None
        draws it uniformly. A traced index outside makes its row NaN.
      probability: p_i of each row's index, [B]. None is uniform, 1 / num_steps.
    Returns:
      [B], in nats. Its mean is at least -log p_theta(x_0). It takes one call of the denoiser.
    Raises:
      ValueError: index has another shape, or a value outside 0 to num_steps - 1.
      TypeError: x_0 has an integer dtype, index is not integer, or key is not a typed key.
    Source: Ho et al. 2020, arXiv:2006.11239, Eq. (5); Nichol & Dhariwal 2021, arXiv:2102.09672, Eq.
    (18), for p_i.
    """
    step = _draw(key, chain, x_0, index)
    denoised = chain.denoiser(step.x_t, _rows.pick(chain.ts, step.number))
    return _estimate(chain, step, denoised, probability)


def hybrid(
    key: jax.Array,
    chain: Chain,
    x_0: jax.Array,
    *,
    prediction: str = "eps",
    sigma_data: float = 0.5,
    vlb_weight: Any = 1e-3,
    index: jax.Array | None = None,
    probability: Any = None,
) -> jax.Array:
    """Return the simple loss, which trains the mean, plus the bound, which trains the variance.

        L_simple / (T p_i) + vlb_weight L_vlb,   L_vlb in bits per dimension

    The gradient of L_vlb does not flow through x_0_hat.

    Args:
      key: typed PRNG key, or one a row [B].
      chain: the model. Its variance is "learned", and its denoiser returns a `Denoised` with the
        fraction.
      x_0: data, [B, *D], floating.
      prediction: what the network predicts. L_simple is the error of this prediction.
      sigma_data: standard deviation of the data. Only "edm" uses it.
      vlb_weight: weight of the bound.
      index: as in `vlb`.
      probability: as in `vlb`.
    Returns:
      [B]. It takes one call of the denoiser.
    Raises:
      ValueError: index has another shape, or a value outside 0 to num_steps - 1; prediction is
        unknown; vlb_weight is known and negative.
      TypeError: x_0 has an integer dtype, index is not integer, or key is not a typed key.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. (16).
    """
    _checks.values("vlb_weight", vlb_weight, "a weight of at least 0", lambda w: w >= 0)
    step = _draw(key, chain, x_0, index)
    x_t, t = step.x_t, _rows.pick(chain.ts, step.number)
    denoised = chain.denoiser(x_t, t)
    out = affine(chain.schedule, t, x_t, prediction=prediction, sigma_data=sigma_data).out
    size = x_0[0].size
    simple = _rows.event_sum(((x_0_of(denoised, x_t) - x_0) / out) ** 2) / size
    mean = jax.lax.stop_gradient(x_0_of(denoised, x_t))
    fixed = denoised._replace(x_0=mean) if isinstance(denoised, Denoised) else mean
    bound = _estimate(chain, step, fixed, probability)
    if probability is not None:
        simple = simple / ((len(chain.ts) - 1) * jnp.asarray(probability, simple.dtype))
    return simple + jnp.asarray(vlb_weight, bound.dtype) * bound / (
        size * jnp.log(2.0).astype(bound.dtype)
    )


class Step(NamedTuple):
    """A random step of the chain for each row.

    Fields:
      x_0: data, [B, *D].
      x_t: states at the start of the step, [B, *D].
      number: i, the step ts[i] -> ts[i + 1], [B].
      key: for the end of the path, [B].
    """

    x_0: jax.Array
    x_t: jax.Array
    number: jax.Array
    key: jax.Array


def _draw(key: jax.Array, chain: Chain, x_0: jax.Array, index: Any) -> Step:
    """Draw a step for each row, and its state."""
    _checks.data("x_0", x_0)
    size, num_steps = x_0.shape[0], len(chain.ts) - 1
    key_index, key_noise, key_end = _rows.split(_rows.keys(key, size), 3)
    if index is None:
        index = jax.vmap(lambda k: jax.random.randint(k, (), 0, num_steps))(key_index)
    _checks.index("index", index, num_steps)
    if jnp.shape(index) != (size,):
        raise ValueError(f"index: expected shape ({size},), got {jnp.shape(index)}")
    index = jnp.where(index == num_steps, -1, index)  # ts has this index, but no step starts there
    eps = _rows.normal(key_noise, x_0).astype(x_0.dtype)
    x_t = q_sample(chain.schedule, x_0, _rows.pick(chain.ts, index), eps)
    return Step(x_0, x_t, index, key_end)


def _estimate(chain: Chain, step: Step, denoised: Any, probability: Any) -> jax.Array:
    """The bound from the denoised states of one step."""
    x_0, x_t, index, key = step
    num_steps = len(chain.ts) - 1
    t, s = _rows.pick(chain.ts, index), _rows.pick(chain.ts, index + 1)
    at_end = (index == num_steps - 1) & chain.ends_clean
    # The step to clean data has no variance. Its rows take the decoder's term instead of the KL.
    s = jnp.where(at_end, t / 2, s)
    cost = q_posterior(chain.schedule, x_t, x_0, t, s).kl(chain.p_given(denoised, x_t, t, s))
    rest = prior_kl(chain.schedule, x_0, chain.ts[0])
    if chain.ends_clean:
        last = chain.p_last_of(denoised, x_t)
        safe = Normal(*(jnp.where(_rows.expand(at_end, x_0), v, 1) for v in last))
        cost = jnp.where(at_end, -chain.decoder.log_prob(x_0, safe), cost)
    else:
        eps = _rows.normal(key, x_0).astype(x_0.dtype)
        x = q_sample(chain.schedule, x_0, chain.ts[-1], eps)
        rest = rest - chain.decoder.log_prob(x_0, chain.p_last(x))
    probability = jnp.asarray(1 / num_steps if probability is None else probability, cost.dtype)
    return rest + cost / probability
