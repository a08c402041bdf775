"""The last step of a model: p(x_0 | the last latent), for continuous data or data on levels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from jaxdiff import _checks, _rows
from jaxdiff._tree import pytree, static
from jaxdiff.normal import Normal


class Decoder:
    """A distribution of x_0 made from the chain's last normal distribution: a pytree."""

    def log_prob(self, x_0: jax.Array, last: Normal) -> jax.Array:
        """Return log p(x_0) in nats, [B]: a density for `normal`, else a probability."""
        raise NotImplementedError

    def sample(self, key: jax.Array, last: Normal) -> jax.Array:
        """Draw x_0, [B, *D]. The key is one, or one a row."""
        raise NotImplementedError


def normal() -> Decoder:
    """Return the decoder of continuous data: the normal distribution itself.

        log p(x_0) = log N(x_0; mean, variance), a density

    Returns:
      A Decoder.
    """
    return NormalDecoder()


@pytree
class NormalDecoder(Decoder):
    """The decoder of `normal`."""

    def log_prob(self, x_0: jax.Array, last: Normal) -> jax.Array:
        """Return the density."""
        return last.log_prob(x_0)

    def sample(self, key: jax.Array, last: Normal) -> jax.Array:
        """Draw from it."""
        return last.sample(key)


@pytree
class LevelDecoder(Decoder):
    """A decoder of data on num_levels levels from low to high."""

    num_levels: int = static()
    low: float = static(default=-1.0)
    high: float = static(default=1.0)

    def __post_init__(self) -> None:
        check_levels(self.num_levels, self.low, self.high)

    @property
    def step(self) -> float:
        """The distance of two levels."""
        return (self.high - self.low) / (self.num_levels - 1)

    def valid(self, x_0: jax.Array) -> jax.Array:
        """Whether all of a row lies on the levels, [B]; refuse known data that do not."""
        return on_levels(x_0, self.num_levels, self.low, self.high)

    def values(self, x: jax.Array) -> jax.Array:
        """The levels with a last axis of their own, behind those of x."""
        values = levels(self.num_levels, self.low, self.high).astype(x.dtype)
        return _rows.lead(values, x.ndim + 1)


def discretised_normal(num_levels: int, *, low: float = -1.0, high: float = 1.0) -> Decoder:
    """Return the decoder that gives each level the normal distribution's mass of its bin.

        p(v_k) = Phi((b_{k+1} - mean) / std) - Phi((b_k - mean) / std)
        v_k = low + k step,   b_k = v_k - step / 2,   step = (high - low) / (num_levels - 1)
        b_0 = -inf,   b_{num_levels} = +inf

    Args:
      num_levels: number of levels, at least 2: 256 for MNIST, 17 for the 8x8 digits.
      low: value of level 0.
      high: value of the last level.
    Returns:
      A Decoder of data that lie on the levels; sampling rounds to the nearest.
    Raises:
      ValueError: num_levels < 2, or not low < high; when called, data off the levels where they are
        known.
    Numerics: differences of log Phi on the side where it is small; no bin gets probability zero. A
      traced row off the levels is NaN.
    Source: Ho et al. 2020, arXiv:2006.11239, Eq. (13).
    """
    return DiscretisedNormal(num_levels, low, high)


@pytree
class DiscretisedNormal(LevelDecoder):
    """The decoder of `discretised_normal`."""

    def log_prob(self, x_0: jax.Array, last: Normal) -> jax.Array:
        """Return log[Phi(upper) - Phi(lower)], summed over the entries."""
        valid, half, std = self.valid(x_0), self.step / 2, jnp.sqrt(last.variance)
        lower = jnp.where(x_0 < self.low + half, -jnp.inf, (x_0 - half - last.mean) / std)
        upper = jnp.where(x_0 > self.high - half, jnp.inf, (x_0 + half - last.mean) / std)
        # Phi(u) - Phi(l) = Phi(-l) - Phi(-u): the side on which both are small keeps its digits.
        flip = lower + upper > 0
        lower, upper = jnp.where(flip, -upper, lower), jnp.where(flip, -lower, upper)
        open_below, open_above = jnp.isinf(lower), jnp.isinf(upper)
        top = jnp.where(open_above, 0, log_ndtr(jnp.where(open_above, 0, upper)))
        bottom = log_ndtr(jnp.where(open_below, 0, lower))
        gap = jnp.where(open_below, -1, jnp.minimum(bottom - top, -jnp.finfo(std.dtype).tiny))
        mass = top + jnp.where(open_below, 0, jnp.log(-jnp.expm1(gap)))
        return jnp.where(valid, _rows.event_sum(mass), jnp.nan)

    def sample(self, key: jax.Array, last: Normal) -> jax.Array:
        """Draw from the normal distribution and round to the nearest level."""
        index = jnp.round((last.sample(key) - self.low) / self.step)
        return self.low + self.step * jnp.clip(index, 0, self.num_levels - 1)


def check_levels(num_levels: int, low: float, high: float) -> None:
    """Require at least two levels, between two different ends.

    Args:
      num_levels: number of levels.
      low: value of level 0.
      high: value of the last level.
    Raises:
      TypeError, ValueError: they are not.
    """
    _checks.positive_int("num_levels", num_levels)
    _checks.values("num_levels", num_levels, "at least 2 levels", lambda n: n >= 2)
    _checks.finite("high", high)
    _checks.values("low", low, f"a value below high = {high}", lambda v: v < high)


def on_levels(x_0: jax.Array, num_levels: int, low: float = -1.0, high: float = 1.0) -> jax.Array:
    """Return which rows lie on the levels, within rounding; known data must lie on them.

    Args:
      x_0: data, [B, *D], floating.
      num_levels: number of levels.
      low: value of level 0.
      high: value of the last level.
    Returns:
      Whether all of a row lies on the levels, [B].
    Raises:
      ValueError: x_0 is known and does not.
    """

    def holds(numpy: Any, x: Any) -> Any:
        index = (x.astype(_rows.state_dtype(x.dtype)) - low) * ((num_levels - 1) / (high - low))
        # A few roundings of x_0, in steps; where its dtype cannot tell levels apart, a quarter of
        # one.
        slack = min(0.25, 1e-3 + 4 * num_levels * float(jnp.finfo(x.dtype).eps))
        inside = (index > -slack) & (index < num_levels - 1 + slack)
        return inside & (abs(index - numpy.round(index)) < slack)

    expected = f"data on the {num_levels} levels from {low} to {high}"
    _checks.values("x_0", x_0, expected, lambda now: holds(np, now))
    return jnp.all(holds(jnp, x_0).reshape(x_0.shape[0], -1), axis=1)


def categorical(num_levels: int, *, low: float = -1.0, high: float = 1.0) -> Decoder:
    """Return VDM's decoder: the levels in proportion to the normal density at them.

        p(v_k) = N(v_k; mean, variance) / sum_j N(v_j; mean, variance)
        v_k = low + k (high - low) / (num_levels - 1)

    A chain that ends with noise left has N(x_t / alpha_t, (sigma_t / alpha_t)^2) for its last
    normal. Then this is the posterior of the level given x_t, under equal prior probabilities.

    Args:
      num_levels: number of levels, at least 2.
      low: value of level 0.
      high: value of the last level.
    Returns:
      A Decoder of data that lie on the levels.
    Raises:
      ValueError: num_levels < 2, or not low < high; when called, data off the levels where they are
        known.
    Numerics: a traced row off the levels is NaN.
    Source: Kingma et al. 2021, arXiv:2107.00630, Section 3.2 and Appendix E.
    """
    return CategoricalDecoder(num_levels, low, high)


@pytree
class CategoricalDecoder(LevelDecoder):
    """The decoder of `categorical`."""

    def log_prob(self, x_0: jax.Array, last: Normal) -> jax.Array:
        """Return -log sum_j N(v_j; mean, variance) / N(x_0; mean, variance), over all entries."""
        valid, values = self.valid(x_0), self.values(last.mean)
        x, mean, variance = x_0[..., None], last.mean[..., None], self._variance(last)
        # The exponents' difference as a product: it is exactly zero at the level of x_0 itself.
        gap = (x - values) * (x + values - 2 * mean) / (2 * variance)
        return jnp.where(valid, _rows.event_sum(-jax.nn.logsumexp(gap, axis=-1)), jnp.nan)

    def sample(self, key: jax.Array, last: Normal) -> jax.Array:
        """Draw a level."""
        centred = self.values(last.mean) - last.mean[..., None]
        logits = -(centred**2) / (2 * self._variance(last))
        keys = _rows.keys(key, last.mean.shape[0])
        index = jax.vmap(jax.random.categorical)(keys, logits)
        return levels(self.num_levels, self.low, self.high).astype(last.mean.dtype)[index]

    def _variance(self, last: Normal) -> jax.Array:
        return jnp.broadcast_to(last.variance, last.mean.shape)[..., None]


def levels(num_levels: int, low: float = -1.0, high: float = 1.0) -> jax.Array:
    """Return the values of the levels.

        v_k = low + k (high - low) / (num_levels - 1)

    Args:
      num_levels: number of levels, at least 2.
      low: value of level 0.
      high: value of the last level.
    Returns:
      [num_levels], default floating dtype.
    """
    return jnp.linspace(low, high, num_levels)


def uniform_dequantise(
    key: jax.Array, x_0: jax.Array, num_levels: int, *, low: float = -1.0, high: float = 1.0
) -> Any:
    """Spread each level evenly over its bin, to compare a density with a probability.

        x = x_0 + step u,   u ~ U(-1/2, 1/2)^D,   log P(x_0) >= E log p(x) + d log(step)

    Args:
      key: typed PRNG key, or one a row, [B].
      x_0: data on the levels, [B, *D], floating.
      num_levels: number of levels, at least 2.
      low: value of level 0.
      high: value of the last level.
    Returns:
      x, [B, *D], dtype of x_0; `bits_per_dim` with bin_width = step counts the term d log(step).
    Raises:
      ValueError: num_levels < 2, or not low < high; data off the levels, where they are known.
      TypeError: x_0 is not floating.
    Numerics: a traced row off the levels is NaN.
    Source: Theis et al. 2016, arXiv:1511.01844, Section 3.1.
    """
    _checks.floating("x_0", x_0)
    check_levels(num_levels, low, high)
    keys = _rows.keys(key, x_0.shape[0])
    noise = jax.vmap(lambda k: jax.random.uniform(k, x_0.shape[1:], x_0.dtype, -0.5, 0.5))(keys)
    valid = _rows.expand(on_levels(x_0, num_levels, low, high), x_0)
    return jnp.where(valid, x_0 + (high - low) / (num_levels - 1) * noise, jnp.nan)
