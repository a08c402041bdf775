"""Resampling: rows are copied or dropped, so that weights become numbers of copies.

A scheme is a function (key, log_weights [B]) -> (ancestors [B], resampled []), for `sample`. W are
the normalised weights. Every scheme has E[copies of row i] = B W_i; the schemes differ in the
variance of the numbers of copies.

All functions here read weights in one way. A log weight of -inf is a weight of 0: this row is never
drawn. NaN is a weight of 0 too: the row has failed. A failed row still counts among the B rows of a
mean, so an evidence lacks the weight that the row would have had. If no row has a positive weight,
nothing is resampled and the effective sample size is 0. A known weight of +inf is an error; under
tracing the rows of weight +inf have all of the weight.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxdiff import _checks, _rows
from jaxdiff._tree import pytree, static

# Numbers of copies are in fixed point: a whole part, and a fraction in units of 2^-30. A sum of
# integers does not depend on the order. So edges of equal rows tie exactly, and the last edge is
# the number of draws, at any number of rows.
_BITS = 30
_UNIT = 2**_BITS


class _Copies(NamedTuple):
    """Numbers of copies, or their sums: whole + fraction / 2^30, integers, 0 <= fraction < 2^30."""

    whole: jax.Array
    fraction: jax.Array


@pytree
class Resampler:
    """A resampling scheme that acts where the effective sample size is low.

    Fields:
      scheme: (key, expected numbers of copies) -> ancestors.
      threshold: resample where ESS < threshold B, [].
    Raises:
      ValueError: threshold is negative.
    """

    scheme: Callable = static()
    threshold: Any = 0.5

    def __post_init__(self) -> None:
        _checks.values(
            "threshold", self.threshold, "a fraction of the rows of at least 0", lambda v: v >= 0
        )

    def __call__(self, key: jax.Array, log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return (ancestors [B], resampled [])."""
        _checks.one_key("key", key)
        num_rows = len(log_weights)
        size = effective_sample_size(log_weights)
        threshold = jnp.asarray(self.threshold, size.dtype)
        resampled = (size < threshold * num_rows) & (size > 0)
        chosen = self.scheme(key, _expected_copies(log_weights, num_rows))
        return jnp.where(resampled, chosen, jnp.arange(num_rows, dtype=chosen.dtype)), resampled

    def beside(self, key: jax.Array, log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Resample beside a reference: the first row stays, the others are multinomial draws.

        Source: Andrieu, Doucet & Holenstein 2010, J. R. Stat. Soc. B 72(3), Section 2.4.3.
        """
        ancestors, resampled = Resampler(_multinomial, self.threshold)(key, log_weights)
        return ancestors.at[0].set(0), resampled


def multinomial(threshold: Any = 0.5) -> Resampler:
    """Return multinomial resampling: every ancestor is an independent draw.

        P(ancestor_i = j) = W_j

    Args:
      threshold: resample where ESS < threshold B, [], traced. A value above 1 resamples after every
        step, 0 never.
    Returns:
      A function (key, log_weights [B]) -> (ancestors [B], resampled []).
    Raises:
      ValueError: threshold is negative.
    Source: Gordon, Salmond & Smith 1993, IEE Proc. F 140(2).
    """
    return Resampler(_multinomial, threshold)


def _multinomial(key: jax.Array, copies: _Copies) -> jax.Array:
    size = len(copies.whole)
    return _rows_at(_edges(copies), _anywhere(key, size, size))


def stratified(threshold: Any = 0.5) -> Resampler:
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
    return Resampler(_stratified, threshold)


def _stratified(key: jax.Array, copies: _Copies) -> jax.Array:
    part = jnp.arange(len(copies.whole), dtype=jnp.int32)
    return _rows_at(_edges(copies), _Copies(part, _fractions(key, part.shape)))


def systematic(threshold: Any = 0.5) -> Resampler:
    """Return systematic resampling: one draw for all parts. B W_i is rounded up or down.

        ancestor_i = min {j : W_1 + ... + W_j > (i + u) / B},   u ~ U[0, 1)

    Args:
      threshold: as in `multinomial`.
    Returns:
      A function (key, log_weights [B]) -> (ancestors [B], resampled []).
    Raises:
      ValueError: threshold is negative.
    Source: Kitagawa 1996, J. Comput. Graph. Stat. 5(1), Appendix A.
    """
    return Resampler(_systematic, threshold)


def _systematic(key: jax.Array, copies: _Copies) -> jax.Array:
    return _evenly(key, copies, len(copies.whole))


def _evenly(key: jax.Array, copies: _Copies, num: int, stride: int = 1) -> jax.Array:
    """The rows of one point in each of num parts of `stride` copies, at the same offset in all."""
    offset, part = _anywhere(key, 1, stride), jnp.arange(num, dtype=jnp.int32)
    points = _Copies(stride * part + offset.whole, jnp.broadcast_to(offset.fraction, part.shape))
    return _rows_at(_edges(copies), points)


def residual(threshold: Any = 0.5) -> Resampler:
    """Return residual resampling: floor(B W_i) copies are certain, the rest are multinomial.

        copies_i = floor(B W_i) + Multinomial(R, (B W_i - floor(B W_i)) / R)
        R = B - sum_i floor(B W_i)

    Args:
      threshold: as in `multinomial`.
    Returns:
      A function (key, log_weights [B]) -> (ancestors [B], resampled []).
    Raises:
      ValueError: threshold is negative.
    Source: Liu & Chen 1998, J. Am. Stat. Assoc. 93(443), Section 3.
    """
    return Resampler(_residual, threshold)


def _residual(key: jax.Array, copies: _Copies) -> jax.Array:
    size = len(copies.whole)
    index = jnp.arange(size, dtype=jnp.int32)
    ends = jnp.cumsum(copies.whole)
    certain = jnp.searchsorted(ends, index, side="right")
    rest = _Copies(jnp.zeros_like(copies.whole), copies.fraction)
    drawn = _rows_at(_edges(rest), _anywhere(key, size, jnp.maximum(size - ends[-1], 1)))
    return jnp.where(index < ends[-1], certain, drawn)


def _relative_weights(log_weights: jax.Array) -> jax.Array:
    """Weights divided by the largest, [B]; all 0 where no row has a positive weight."""
    usable = log_weights > -jnp.inf  # false for NaN
    top = jnp.max(jnp.where(usable, log_weights, -jnp.inf))
    safe = jnp.where(usable, log_weights, top)
    return jnp.where(usable, jnp.exp(jnp.where(safe == top, 0, safe - top)), 0)


def _expected_copies(log_weights: jax.Array, num: int) -> _Copies:
    """num W_i in fixed point, [B], of sum num exactly."""
    weights = _relative_weights(jax.lax.stop_gradient(log_weights))
    weights = weights.astype(_rows.state_dtype(weights.dtype))
    copies = num * weights / jnp.maximum(jnp.sum(weights), 1)
    # A number within rounding of an integer is that integer: else a certain copy may be lost.
    nearest = jnp.round(copies)
    copies = jnp.where(
        jnp.abs(copies - nearest) <= 32 * jnp.finfo(copies.dtype).eps * nearest, nearest, copies
    )
    whole = jnp.floor(copies)
    rounded = _carried(
        whole.astype(jnp.int32), jnp.round((copies - whole) * _UNIT).astype(jnp.int32)
    )
    # The row of largest weight has at least one copy. It takes the rounding error of the sum.
    total, is_largest = _edges(rounded), jnp.arange(len(weights)) == jnp.argmax(weights)
    left = num - total.whole[-1], -total.fraction[-1]
    return _carried(
        *(value + jnp.where(is_largest, over, 0) for value, over in zip(rounded, left, strict=True))
    )


def _carried(whole: jax.Array, fraction: jax.Array) -> _Copies:
    """Carry a fraction outside [0, 1) over to the whole part."""
    return _Copies(whole + (fraction >> _BITS), fraction & (_UNIT - 1))


def _edges(copies: _Copies) -> _Copies:
    """Cumulative sums, [B]. Digits of 5 bits add up without overflow for 2^26 rows."""
    shifts = jnp.arange(0, _BITS, 5, dtype=jnp.int32)
    digits = (copies.fraction[None] >> shifts[:, None]) & 31
    whole, *sums = jnp.cumsum(jnp.concatenate([copies.whole[None], digits]), axis=1)
    fraction = carry = jnp.zeros_like(whole)
    for shift, digit in zip(range(0, _BITS, 5), sums, strict=True):
        fraction, carry = fraction | (((digit + carry) & 31) << shift), (digit + carry) >> 5
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
    """The rows min {j : edge_j > point} of points below the last edge. No row of weight 0."""
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


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    """Return the effective sample size: as good as this number of equally weighted samples.

        ESS = (sum_i w_i)^2 / sum_i w_i^2

    Args:
      log_weights: [B], in nats; -inf and NaN are weights of 0.
    Returns:
      [], between 1 and B; 0 where no row has a positive weight.
    Raises:
      ValueError: a weight is known to be +inf.
    Source: Kong 1992, A note on importance sampling using standardized weights.
    """
    _below_infinity(log_weights)
    weights = _relative_weights(jnp.asarray(log_weights))  # so that e^-1000 does not underflow
    squares = jnp.sum(weights**2)
    return jnp.where(squares > 0, jnp.sum(weights) ** 2 / jnp.where(squares > 0, squares, 1), 0)


def log_mean_weight(log_weights: jax.Array) -> jax.Array:
    """Return the log of the mean weight: the estimate of the log evidence from one run.

        log 1/B sum_i w_i

    Args:
      log_weights: [B], in nats; -inf and NaN are weights of 0.
    Returns:
      [], in nats; -inf where no row has a positive weight, and +inf where a weight is infinite.
    Source: Jarzynski 1997, Phys. Rev. Lett. 78, 2690.
    """
    usable = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
    return logsumexp(usable) - jnp.log(usable.shape[0])


def draw(key: jax.Array, log_weights: jax.Array, x: jax.Array, num: int) -> jax.Array:
    """Turn weighted samples into equally weighted ones, systematically.

    Args:
      key: typed PRNG key.
      log_weights: [B], in nats; rows of -inf and NaN are never drawn.
      x: weighted samples, [B, *D].
      num: number of samples to return, static.
    Returns:
      [num, *D], in the order of x: row i about num W_i times. If no row has a positive weight under
      tracing, floating samples are NaN.
    Raises:
      ValueError: num < 1, shapes do not fit, all weights are known and 0, or a weight is known and
        +inf.
      TypeError: key is not a typed key.
    Source: see `systematic`.
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
        raise ValueError("log_weights: expected a row of positive weight, got only -inf and NaN")
    stride = -(-len(x) // num)  # at least one copy a row, so that the fixed point is fine enough
    drawn = x[_evenly(key, _expected_copies(jnp.asarray(log_weights), num * stride), num, stride)]
    if not jnp.issubdtype(drawn.dtype, jnp.inexact):
        return drawn
    return jnp.where(jnp.any(log_weights > -jnp.inf), drawn, jnp.nan)


def _below_infinity(log_weights: Any) -> None:
    _checks.values(
        "log_weights", log_weights, "no weight of +inf", lambda v: ~(v == jnp.inf), finite=False
    )
