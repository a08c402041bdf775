"""The times a batch is trained at."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff.schedules import Schedule


def uniform_times(key: jax.Array, num: int) -> jax.Array:
    """Draw independent uniform times.

    Args:
      key: typed PRNG key, or one a row, [num].
      num: how many.
    Returns:
      [num] times in [0, 1), float32.
    """
    return jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(_rows.keys(key, num))


def low_discrepancy_times(
    key: jax.Array, num: int, *, first: Any = 0, total: int | None = None
) -> jax.Array:
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
    _checks.one_key("key", key)
    whole = num if total is None else total
    return jnp.mod(
        jax.random.uniform(key, (), jnp.float32) + (first + jnp.arange(num)) / whole, 1.0
    )


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
    _checks.finite("mean", mean)
    _checks.values("std", std, "a positive standard deviation", lambda v: v > 0)
    noise = jax.vmap(lambda k: jax.random.normal(k, (), jnp.float32))(_rows.keys(key, num))
    return schedule.time(-2 * (mean + std * noise))


class TermHistory(NamedTuple):
    """The last losses of each term of the bound.

    Fields:
      losses: [num_terms, size], newest first.
      counts: how many of each term there have been, [num_terms].
    """

    losses: jax.Array
    counts: jax.Array


def term_history(num_terms: int, *, size: int = 10) -> TermHistory:
    """Return an empty history.

    Args:
      num_terms: number of terms that are drawn from.
      size: how many losses of each are kept.
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
      history: what was there before.
      index: the terms, [B], integer; traced, one that there is no term of is left out.
      loss: the loss of each, [B], before it was divided by its probability.
    Returns:
      TermHistory.
    Raises:
      ValueError, TypeError: index is known and there is no such term, or it is not integer.
    """
    num_terms = len(history.counts)
    _checks.index("index", index, num_terms)
    index = jnp.where(index < 0, num_terms, index)  # a negative one would count from the end

    def add(n: Any, history: TermHistory) -> TermHistory:
        i = index[n]
        row = jnp.concatenate([loss[n][None], history.losses[i, :-1]])
        return TermHistory(history.losses.at[i].set(row), history.counts.at[i].add(1))

    return jax.lax.fori_loop(0, len(index), add, history)


def loss_aware_terms(
    key: jax.Array, history: TermHistory, num: int, *, uniform: float = 1e-3
) -> Any:
    """Draw terms of the bound in proportion to the root mean square of their last losses.

        p_i propto sqrt(E[L_i^2]), mixed with a little of the uniform distribution; uniform until
        every term has a full history, and where no term costs anything

    Args:
      key: typed PRNG key, or one a row, [num].
      history: of the terms' losses.
      num: how many to draw.
      uniform: share of the uniform distribution.
    Returns:
      (index [num], probability of each [num]): `losses.vlb` takes both, and stays unbiased.
    Raises:
      ValueError: uniform is outside (0, 1].
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. (18).
    """
    _checks.values("uniform", uniform, "a share in (0, 1]", lambda u: (u > 0) & (u <= 1))
    num_terms, size = history.losses.shape
    root = jnp.sqrt(jnp.mean(history.losses**2, axis=1))
    known = jnp.all(history.counts >= size) & (jnp.sum(root) > 0)
    share = jnp.where(known, root / jnp.where(known, jnp.sum(root), 1), 1 / num_terms)
    share = (1 - uniform) * share + uniform / num_terms
    index = jax.vmap(lambda k: jax.random.categorical(k, jnp.log(share)))(_rows.keys(key, num))
    return index, share[index]
