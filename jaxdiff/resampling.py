"""Resampling: which rows go on, and how often, so that weights become copies.

A scheme is a function (key, log_weights [B]) -> (ancestors [B], resampled []), for `sample`. With W
the normalised weights, every scheme has E[copies of row i] = B W_i; they differ in how far the
numbers of copies stray from that.

What counts as a weight is the same everywhere here. A log weight of -inf is a weight of 0: that row
is never drawn. So is NaN: the row has failed, and is dropped with its weight. It still counts among
the B rows of a mean, so that an evidence is too low by what the row would have had. Where no row
has a weight, nothing is resampled and the effective sample size is 0. A weight of +inf is an error
where it is known; under tracing such rows share all of the weight.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.tree_util import Partial

from jaxdiff import _checks

# Numbers of copies are kept in fixed point: a whole part, and a fraction in units of 2^-30.
# Integers add up to the same in any order, so that edges of equal rows tie exactly and the last
# edge is the number of draws, at any number of rows.
_BITS = 30
_UNIT = 2**_BITS


class _Copies(NamedTuple):
    """Numbers of copies, or sums of them: whole + fraction / 2^30, 0 <= fraction < 2^30, integers."""

    whole: jax.Array
    fraction: jax.Array


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


def _multinomial(key: jax.Array, copies: _Copies) -> jax.Array:
    size = len(copies.whole)
    return _rows_at(_edges(copies), _anywhere(key, size, size))


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


def _stratified(key: jax.Array, copies: _Copies) -> jax.Array:
    place = jnp.arange(len(copies.whole), dtype=jnp.int32)
    return _rows_at(_edges(copies), _Copies(place, _fractions(key, place.shape)))


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


def _systematic(key: jax.Array, copies: _Copies) -> jax.Array:
    return _evenly(key, copies, len(copies.whole))


def _evenly(key: jax.Array, copies: _Copies, num: int, stride: int = 1) -> jax.Array:
    """The rows of one point in each of num parts, at the same place in all; a part is `stride` copies."""
    offset, place = _anywhere(key, 1, stride), jnp.arange(num, dtype=jnp.int32)
    points = _Copies(stride * place + offset.whole, jnp.broadcast_to(offset.fraction, place.shape))
    return _rows_at(_edges(copies), points)


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


def _residual(key: jax.Array, copies: _Copies) -> jax.Array:
    place = jnp.arange(len(copies.whole), dtype=jnp.int32)
    ends = jnp.cumsum(copies.whole)
    kept = jnp.searchsorted(ends, place, side="right")
    rest = _Copies(jnp.zeros_like(copies.whole), copies.fraction)
    drawn = _rows_at(
        _edges(rest), _anywhere(key, len(place), jnp.maximum(len(place) - ends[-1], 1))
    )
    return jnp.where(place < ends[-1], kept, drawn)


def _shares(log_weights: jax.Array) -> jax.Array:
    """Weights next to the largest, [B]; all zero where no row has any."""
    usable = log_weights > -jnp.inf  # NaN is not
    top = jnp.max(jnp.where(usable, log_weights, -jnp.inf))
    safe = jnp.where(usable, log_weights, top)
    return jnp.where(usable, jnp.exp(jnp.where(safe == top, 0, safe - top)), 0)


def _expected_copies(log_weights: jax.Array, num: int) -> _Copies:
    """num W_i in fixed point, [B], of sum num exactly."""
    shares = _shares(jax.lax.stop_gradient(log_weights))
    shares = shares.astype(jnp.promote_types(shares.dtype, jnp.float32))
    copies = num * shares / jnp.maximum(jnp.sum(shares), 1)
    # A hair beside an integer is that integer: rounding would take away a copy that is certain.
    nearest = jnp.round(copies)
    copies = jnp.where(
        jnp.abs(copies - nearest) <= 32 * jnp.finfo(copies.dtype).eps * nearest, nearest, copies
    )
    whole = jnp.floor(copies)
    rounded = _carried(
        whole.astype(jnp.int32), jnp.round((copies - whole) * _UNIT).astype(jnp.int32)
    )
    # The largest weight, of a copy at least, takes what rounding has left over.
    total, is_largest = _edges(rounded), jnp.arange(len(shares)) == jnp.argmax(shares)
    left = num - total.whole[-1], -total.fraction[-1]
    return _carried(
        *(value + jnp.where(is_largest, over, 0) for value, over in zip(rounded, left, strict=True))
    )


def _carried(whole: jax.Array, fraction: jax.Array) -> _Copies:
    """Carry what a fraction has outside of [0, 1) to the whole part."""
    return _Copies(whole + (fraction >> _BITS), fraction & (_UNIT - 1))


def _edges(copies: _Copies) -> _Copies:
    """Cumulative sums, [B]: digits of 5 bits add up without overflow for 2^26 rows, and are carried afterwards."""
    places = jnp.arange(0, _BITS, 5, dtype=jnp.int32)
    digits = (copies.fraction[None] >> places[:, None]) & 31
    whole, *sums = jnp.cumsum(jnp.concatenate([copies.whole[None], digits]), axis=1)
    fraction = carry = jnp.zeros_like(whole)
    for place, digit in zip(range(0, _BITS, 5), sums, strict=True):
        fraction, carry = fraction | (((digit + carry) & 31) << place), (digit + carry) >> 5
    return _Copies(whole + carry, fraction)


def _fractions(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform fractions."""
    return (jax.random.bits(key, shape, jnp.uint32) >> (32 - _BITS)).astype(jnp.int32)


def _anywhere(key: jax.Array, num: int, end: Any) -> _Copies:
    """Independent uniform points between 0 and an integer, [num]."""
    key_whole, key_fraction = jax.random.split(key)
    whole = jax.random.randint(key_whole, (num,), 0, end, jnp.int32)
    return _Copies(whole, _fractions(key_fraction, (num,)))


def _rows_at(edges: _Copies, points: _Copies) -> jax.Array:
    """The rows min {j : edge_j > point} of points below the last edge; a row of weight 0 is never one."""
    size = len(edges.whole)

    def halve(_: Any, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) // 2
        whole, fraction = edges.whole[middle], edges.fraction[middle]
        beyond = (whole > points.whole) | ((whole == points.whole) & (fraction > points.fraction))
        return jnp.where(beyond, low, middle + 1), jnp.where(beyond, middle, high)

    low = jnp.zeros_like(points.whole)
    low, _ = jax.lax.fori_loop(0, size.bit_length(), halve, (low, jnp.full_like(low, size - 1)))
    return jnp.minimum(low, size - 1)


def _scheme(choose: Callable, threshold: Any) -> Partial:
    _checks.values("threshold", threshold, "a share of the rows of at least 0", lambda v: v >= 0)
    return Partial(_resample, Partial(choose), threshold)


def _resample(
    choose: Partial, threshold: Any, key: jax.Array, log_weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _checks.one_key("key", key)
    num_rows = len(log_weights)
    size = effective_sample_size(log_weights)
    resampled = (size < threshold * num_rows) & (size > 0)
    chosen = choose(key, _expected_copies(log_weights, num_rows))
    return jnp.where(resampled, chosen, jnp.arange(num_rows)), resampled


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    """Return the number of equally weighted samples worth as much as these.

        ESS = (sum_i w_i)^2 / sum_i w_i^2

    Args:
      log_weights: [B], in nats; -inf and NaN are weights of 0.
    Returns:
      [], between 1 and B; 0 where no row has a weight.
    Raises:
      ValueError: a weight is known to be +inf.
    Source: Kong 1992, A note on importance sampling using standardized weights.
    """
    _below_infinity(log_weights)
    shares = _shares(jnp.asarray(log_weights))  # weights of e^-1000 are nothing special
    squares = jnp.sum(shares**2)
    return jnp.where(squares > 0, jnp.sum(shares) ** 2 / jnp.where(squares > 0, squares, 1), 0)


def log_mean_weight(log_weights: jax.Array) -> jax.Array:
    """Return the log of the mean weight: what a run's weights say of the evidence.

        log 1/B sum_i w_i

    Args:
      log_weights: [B], in nats; -inf and NaN are weights of 0.
    Returns:
      [], in nats; -inf where no row has a weight, and +inf where one is infinite.
    Source: Jarzynski 1997, Phys. Rev. Lett. 78, 2690.
    """
    usable = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
    return logsumexp(usable) - jnp.log(len(usable))


def draw(key: jax.Array, log_weights: jax.Array, x: jax.Array, num: int) -> jax.Array:
    """Turn weighted samples into equally weighted ones, systematically.

    Args:
      key: typed PRNG key.
      log_weights: [B], in nats; rows of -inf and NaN are never drawn.
      x: weighted samples, [B, *D].
      num: number of samples to return, static.
    Returns:
      [num, *D], in the order of x: row i about num W_i times. Under tracing, where no row has a
      weight, floating samples are NaN.
    Raises:
      ValueError: num < 1, shapes do not fit, no row is known to have a weight, or one is known to
        be +inf.
      TypeError: key is no typed key.
    Source: as of `systematic`.
    """
    _checks.one_key("key", key)
    _checks.positive_int("num", num)
    if jnp.shape(log_weights) != x.shape[:1]:
        raise ValueError(
            f"log_weights: expected one a row of x, {x.shape[:1]}, got {jnp.shape(log_weights)}"
        )
    _below_infinity(log_weights)
    known = _checks.known(log_weights)
    if known is not None and not (known > -jnp.inf).any():
        raise ValueError(
            "log_weights: expected a row with a weight to draw, got none: all are -inf or NaN"
        )
    stride = -(-len(x) // num)  # as many copies as rows: the fixed point has digits enough for them
    drawn = x[_evenly(key, _expected_copies(jnp.asarray(log_weights), num * stride), num, stride)]
    if not jnp.issubdtype(drawn.dtype, jnp.inexact):
        return drawn
    return jnp.where(jnp.any(log_weights > -jnp.inf), drawn, jnp.nan)


def _below_infinity(log_weights: Any) -> None:
    _checks.values(
        "log_weights", log_weights, "no weight of +inf", lambda v: ~(v == jnp.inf), finite=False
    )
