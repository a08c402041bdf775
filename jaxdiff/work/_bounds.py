"""Two-sided bounds of log p at data from the model."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxdiff import _checks, _rows
from jaxdiff.chain import Chain, generating, log_ends
from jaxdiff.likelihood import paths_log_weights
from jaxdiff.sampling import Samples, run


class Bounds(NamedTuple):
    """Data from the model, and bounds of their log-probability, in nats.

    Fields:
      x_0: draws of p_theta, [B, *D].
      lower: in expectation lower bounds of log p_theta(x_0), [B].
      upper: in expectation upper bounds of log p_theta(x_0), [B].
      forward_work: W_F of K forward paths of each x_0, [K, B].
      reverse_work: W_R of the reverse path to x_0, [B].
    """

    x_0: jax.Array
    lower: jax.Array
    upper: jax.Array
    forward_work: jax.Array
    reverse_work: jax.Array


def reverse_path(
    key: jax.Array, chain: Chain, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Draw data from the model, with the log weights of their reverse paths.

        x_T ~ N(0, sigma_T^2 I),   x_s ~ p(x_s | x_t),   x_0 ~ p(x_0 | x_1)

    Args:
      key: typed PRNG key. Row i depends on (key, i) alone.
      chain: the model.
      shape: [B, *D].
    Returns:
      (x_0 [B, *D], log w [B]). The path is an exact draw of the posterior given x_0.
    Raises:
      ValueError: shape has no batch axis.
    Source: Grosse et al. 2015, arXiv:1511.02543, Section 3.
    """
    x_0, drawn, x_T = reverse_run(key, chain, shape)
    return x_0, drawn.log_weights + log_ends(chain, x_0, drawn.x, x_T)


def reverse_run(
    key: jax.Array, chain: Chain, shape: tuple[int, ...], save_every: int | None = None
) -> tuple[jax.Array, Samples, jax.Array]:
    """Draw data from the model, with the run of their latents and its start.

    Args:
      key: typed PRNG key. Row i depends on (key, i) alone.
      chain: the model.
      shape: [B, *D].
      save_every: as in `sampling.sample`. 1 keeps the whole path.
    Returns:
      (x_0 [B, *D], the Samples of `generating`, x_T [B, *D]).
    Raises:
      ValueError: shape has no batch axis.
    """
    _checks.one_key("key", key)
    if not isinstance(shape, tuple) or len(shape) < 1:
        raise ValueError(f"shape: expected a tuple [B, *D], got {shape}")
    key_prior, key_path, key_decoder = jax.random.split(key, 3)
    like = jax.ShapeDtypeStruct(shape, chain.times.dtype)
    x_T = chain.schedule.sigma(chain.times[0]) * _rows.normal(key_prior, like)
    drawn = run(key_path, generating(chain), x_T, chain.times, save_every=save_every)
    return chain.decoder.sample(key_decoder, chain.p_last(drawn.x)), drawn, x_T


def bidirectional_bounds(
    key: jax.Array, chain: Chain, shape: tuple[int, ...], *, num_paths: int
) -> Bounds:
    """Bound log p_theta from both sides at data from the model.

        lower = log 1/K sum_k w_k,   upper = log 1/K (w_reverse + sum_{k<K} w_k)

    w_k are weights of new forward paths. An upper bound needs a path of the exact posterior. The
    reverse path is one, so upper bounds exist for data from the model, not for real data.

    Args:
      key: typed PRNG key. Row i depends on (key, i) alone.
      chain: the model.
      shape: shape of the data to simulate, [B, *D].
      num_paths: K, static.
    Returns:
      Bounds, in nats.
    Raises:
      ValueError: shape has no batch axis, or num_paths < 1.
    Source: Grosse et al. 2015, arXiv:1511.02543; Sohl-Dickstein & Culpepper 2012, arXiv:1205.1925.
    """
    _checks.positive_int("num_paths", num_paths)
    _checks.one_key("key", key)
    key_reverse, key_forward = jax.random.split(key)
    x_0, reverse = reverse_path(key_reverse, chain, shape)
    forward = paths_log_weights(key_forward, chain, x_0, num_paths)
    with_reverse = jnp.concatenate([reverse[None], forward[:-1]])
    lower, upper = (logsumexp(w, axis=0) - math.log(num_paths) for w in (forward, with_reverse))
    return Bounds(x_0, lower, upper, -forward, reverse)
