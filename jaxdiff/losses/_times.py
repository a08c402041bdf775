"""Times of a training batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff.schedules import Schedule


def uniform_times(key: jax.Array, num: int) -> jax.Array:
    """Draw independent uniform times.

    Args:
      key: typed PRNG key, or one a row, [num].
      num: number of times.
    Returns:
      [num] times in [0, 1), float32.
    """
    return jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(_rows.keys(key, num))


def low_discrepancy_times(
    key: jax.Array, num: int, *, first: Any = 0, total: int | None = None
) -> jax.Array:
    """Draw uniform times that cover [0, 1) evenly within a batch.

        t_i = (u + i / total) mod 1,   u ~ U[0, 1)

    Args:
      key: one typed PRNG key, the same for all parts of the batch.
      num: number of times.
      first: index of the first time in the whole batch.
      total: size of the whole batch. None is num.
    Returns:
      [num] times in [0, 1), float32.
    Source: Kingma et al. 2021, arXiv:2107.00630, Appendix I.1.
    """
    _checks.one_key("key", key)
    whole = jnp.asarray(num if total is None else total, jnp.float32)
    index = jnp.asarray(first, jnp.int32) + jnp.arange(num, dtype=jnp.int32)
    u = jax.random.uniform(key, (), jnp.float32)
    return jnp.mod(u + index.astype(jnp.float32) / whole, 1.0)


def log_normal_times(
    key: jax.Array, num: int, schedule: Schedule, *, mean: Any = -1.2, std: Any = 1.2
) -> jax.Array:
    """Draw times with a normal log(sigma / alpha).

        log(sigma_t / alpha_t) = -lambda_t / 2 ~ N(mean, std^2)

    Args:
      key: typed PRNG key, or one a row, [num].
      num: number of times.
      schedule: the noise schedule. It gives t of lambda.
      mean: of log(sigma / alpha).
      std: of log(sigma / alpha).
    Returns:
      [num] times in [0, 1], float32.
    Raises:
      ValueError: std is not positive.
    Source: Karras et al. 2022, arXiv:2206.00364, Table 1.
    """
    _checks.finite("mean", mean)
    _checks.values("std", std, "a positive standard deviation", lambda v: v > 0)
    noise = jax.vmap(lambda k: jax.random.normal(k, (), jnp.float32))(_rows.keys(key, num))
    mean, std = jnp.asarray(mean, noise.dtype), jnp.asarray(std, noise.dtype)
    return schedule.time(-2 * (mean + std * noise))


class TermHistory(NamedTuple):
    """The last losses of each term of the bound.

    Fields:
      losses: [num_terms, size], newest first.
      counts: number of losses recorded for each term, [num_terms].
    """

    losses: jax.Array
    counts: jax.Array


def term_history(num_terms: int, *, size: int = 10) -> TermHistory:
    """Return an empty history.

    Args:
      num_terms: number of terms.
      size: number of losses kept for each term.
    Returns:
      TermHistory.
    Raises:
      ValueError: a number is not positive.
    """
    _checks.positive_int("num_terms", num_terms)
    _checks.positive_int("size", size)
    return TermHistory(jnp.zeros((num_terms, size), jnp.float32), jnp.zeros(num_terms, jnp.int32))


def record_terms(history: TermHistory, index: jax.Array, loss: jax.Array) -> TermHistory:
    """Add losses to the history.

    Args:
      history: the history so far.
      index: the terms, [B], integer. A traced index outside 0 .. num_terms - 1 is skipped.
      loss: the loss of each, [B], not divided by the probability of its term.
    Returns:
      TermHistory.
    Raises:
      ValueError: index is known and outside 0 .. num_terms - 1.
      TypeError: index is not integer.
    """
    num_terms, loss = len(history.counts), jnp.asarray(loss, history.losses.dtype)
    _checks.index("index", index, num_terms)
    index = jnp.where(index < 0, num_terms, index)  # a negative index would count from the end

    def add(n: Any, history: TermHistory) -> TermHistory:
        i = index[n]
        row = jnp.concatenate([loss[n][None], history.losses[i, :-1]])
        return TermHistory(history.losses.at[i].set(row), history.counts.at[i].add(1))

    return jax.lax.fori_loop(0, len(index), add, history)


def loss_aware_terms(
    key: jax.Array, history: TermHistory, num: int, *, uniform: Any = 1e-3
) -> tuple[jax.Array, jax.Array]:
    """Draw terms of the bound in proportion to the root mean square of their last losses.

        p_i = (1 - uniform) sqrt(E[L_i^2]) / sum_j sqrt(E[L_j^2]) + uniform / num_terms

    p is uniform until every term has a full history, and where all losses are 0.

    Args:
      key: typed PRNG key, or one a row, [num].
      history: of the terms' losses.
      num: number of draws.
      uniform: weight of the uniform distribution in the mixture.
    Returns:
      (index [num], probability of each [num]). `losses.vlb` takes both and stays unbiased.
    Raises:
      ValueError: uniform is outside (0, 1].
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. (18).
    """
    _checks.values("uniform", uniform, "a weight in (0, 1]", lambda u: (u > 0) & (u <= 1))
    num_terms, size = history.losses.shape
    root = jnp.sqrt(jnp.mean(history.losses**2, axis=1))
    known = jnp.all(history.counts >= size) & (jnp.sum(root) > 0)
    probability = jnp.where(known, root / jnp.where(known, jnp.sum(root), 1), 1 / num_terms)
    kept, floor = (jnp.asarray(value, root.dtype) for value in (1 - uniform, uniform / num_terms))
    probability = kept * probability + floor
    index = jax.vmap(lambda k: jax.random.categorical(k, jnp.log(probability)))(
        _rows.keys(key, num)
    )
    return index, probability[index]
