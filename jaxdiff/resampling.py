"""Resampling: which rows go on, and how often, so that weights become copies.

A scheme is a function (key, log_weights [B]) -> (ancestors [B], resampled []), for `sample`. With W the normalised
weights, every scheme has E[copies of row i] = B W_i; they differ in how far the numbers of copies stray from that.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.tree_util import Partial

from jaxdiff import _checks


def multinomial(threshold: Any = 0.5) -> Partial:
    """Return multinomial resampling: every ancestor is an independent draw.

        P(ancestor_i = j) = W_j

    Args:
      threshold: resample when ESS < threshold B, [], traced; above 1 after every step, 0 never.
    Returns:
      A function (key, log_weights [B]) -> (ancestors [B], resampled []).
    Raises:
      ValueError: threshold is negative.
    Source: Gordon, Salmond & Smith 1993, IEE Proc. F 140(2).
    """
    return _scheme(_multinomial, threshold)


def _multinomial(key: jax.Array, weights: jax.Array) -> jax.Array:
    return _invert(weights, jax.random.uniform(key, weights.shape, weights.dtype))


def stratified(threshold: Any = 0.5) -> Partial:
    """Return stratified resampling: one draw in each of B equal parts of the unit interval.

        ancestor_i = min {j : W_1 + ... + W_j > (i + u_i) / B},   u_i ~ U[0, 1)

    Args:
      threshold: as in `multinomial`.
    Returns:
      A function (key, log_weights [B]) -> (ancestors [B], resampled []).
    Raises:
      ValueError: threshold is negative.
    Source: Kitagawa 1996, J. Comput. Graph. Stat. 5(1), Appendix A.
    """
    return _scheme(_stratified, threshold)


def _stratified(key: jax.Array, weights: jax.Array) -> jax.Array:
    return _one_a_part(weights, jax.random.uniform(key, weights.shape, weights.dtype), len(weights))


def systematic(threshold: Any = 0.5) -> Partial:
    """Return systematic resampling: stratified, with one draw for all parts. B W_i is rounded up or down.

        ancestor_i = min {j : W_1 + ... + W_j > (i + u) / B},   u ~ U[0, 1)

    Args:
      threshold: as in `multinomial`.
    Returns:
      A function (key, log_weights [B]) -> (ancestors [B], resampled []).
    Raises:
      ValueError: threshold is negative.
    Source: Kitagawa 1996, J. Comput. Graph. Stat. 5(1), Appendix A.
    """
    return _scheme(_systematic, threshold)


def _systematic(key: jax.Array, weights: jax.Array) -> jax.Array:
    return _one_a_part(weights, jax.random.uniform(key, (), weights.dtype), len(weights))


def residual(threshold: Any = 0.5) -> Partial:
    """Return residual resampling: the whole part of B W_i copies for certain, the rest by multinomial draws.

        copies_i = floor(B W_i) + Multinomial(R, (B W_i - floor(B W_i)) / R),   R = B - sum_i floor(B W_i)

    Args:
      threshold: as in `multinomial`.
    Returns:
      A function (key, log_weights [B]) -> (ancestors [B], resampled []).
    Raises:
      ValueError: threshold is negative.
    Source: Liu & Chen 1998, J. Am. Stat. Assoc. 93(443), Section 3.
    """
    return _scheme(_residual, threshold)


def _residual(key: jax.Array, weights: jax.Array) -> jax.Array:
    size = len(weights)
    certain = jnp.floor(size * weights)
    ends = jnp.cumsum(certain)
    place = jnp.arange(size)
    kept = jnp.searchsorted(ends, place, side="right")
    drawn = _multinomial(key, (size * weights - certain) / jnp.maximum(size - ends[-1], 1))
    return jnp.where(place < ends[-1], jnp.minimum(kept, size - 1), drawn)


def _one_a_part(weights: jax.Array, u: jax.Array, num: int) -> jax.Array:
    """The rows of points at the shares u, [] or [num], of the unit interval's num equal parts."""
    return _invert(weights, (jnp.arange(num) + u) / num)


def _invert(weights: jax.Array, points: jax.Array) -> jax.Array:
    """The rows whose parts of the unit interval the points fall into."""
    # Rounding may leave the last edge a hair below the last point.
    return jnp.minimum(jnp.searchsorted(jnp.cumsum(weights), points, side="right"), len(weights) - 1)


def _scheme(choose: Callable, threshold: Any) -> Partial:
    _checks.values("threshold", threshold, "a share of the rows of at least 0", lambda v: v >= 0)
    return Partial(_resample, Partial(choose), threshold)


def _resample(choose: Partial, threshold: Any, key: jax.Array, log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    _checks.one_key("key", key)
    num_rows = len(log_weights)
    resampled = effective_sample_size(log_weights) < threshold * num_rows
    return jnp.where(resampled, choose(key, jax.nn.softmax(log_weights)), jnp.arange(num_rows)), resampled


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    """Return the number of equally weighted samples worth as much as these.

        ESS = (sum_i w_i)^2 / sum_i w_i^2

    Args:
      log_weights: [B], in nats.
    Returns:
      [], between 1 and B.
    Source: Kong 1992, A note on importance sampling using standardized weights.
    """
    shifted = log_weights - jnp.max(log_weights)  # weights of e^-1000 are nothing special
    return jnp.exp(2 * logsumexp(shifted) - logsumexp(2 * shifted))


def draw(key: jax.Array, log_weights: jax.Array, x: jax.Array, num: int) -> jax.Array:
    """Turn weighted samples into equally weighted ones, systematically.

    Args:
      key: typed PRNG key.
      log_weights: [B], in nats.
      x: weighted samples, [B, *D].
      num: number of samples to return, static.
    Returns:
      [num, *D], in the order of x: row i about num W_i times.
    Raises:
      ValueError: num < 1, or shapes do not fit.
      TypeError: key is no typed key.
    Source: as of `systematic`.
    """
    _checks.one_key("key", key)
    _checks.positive_int("num", num)
    if jnp.shape(log_weights) != x.shape[:1]:
        raise ValueError(f"log_weights: expected one a row of x, {x.shape[:1]}, got {jnp.shape(log_weights)}")
    weights = jax.nn.softmax(log_weights)
    return x[_one_a_part(weights, jax.random.uniform(key, (), weights.dtype), num)]
