"""What a kernel is, and what all of them share."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._tree import Method, brief
from jaxdiff.forward import Level
from jaxdiff.schedules import LOG_SNR_LIMIT

# Keeps the gradient of a root finite at 0. It vanishes next to a number of order one.
TINY = 1e-35


class Kernel(NamedTuple):
    """A reverse step with memory; a pytree of functions.

    Fields:
      init: (x_init [B, *D], t []) -> carry.
      step: (key, carry, x_t [B, *D], t [], s []) -> (carry, x_s [B, *D], log_weight_increment [B]).
        The key is one, one a row, or None where nothing may be drawn.
    """

    init: Callable
    step: Callable

    def replace(self, **options: Any) -> "Kernel":
        """Return the same kernel with other options: kernel.replace(eta=1.0)."""
        step: Any = self.step
        return lift(dataclasses.replace(step, **options))

    def __repr__(self) -> str:
        return brief(self.step)


class Algorithm:
    """What a kernel is made of: a pytree with a field for each option, and these methods.

    An algorithm without memory keeps this `init`.
    """

    def init(self, x_init: jax.Array, t: jax.Array) -> Any:
        """Return what the first step remembers."""
        return ()

    def step(self, key: Any, carry: Any, x_t: jax.Array, t: Any, s: Any, /) -> tuple[Any, Any, Any]:
        """Go from x_t to x_s: (carry, x_s, log_weight_increment)."""
        raise NotImplementedError

    def __call__(self, key: Any, carry: Any, x_t: jax.Array, t: Any, s: Any) -> Any:
        """Make a step."""
        return self.step(key, carry, x_t, t, s)


class Drawing(Algorithm):
    """An algorithm that remembers nothing and has no weights: `draw` is all of it."""

    def draw(self, key: Any, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Draw x_s."""
        raise NotImplementedError

    def step(self, key: Any, carry: Any, x_t: jax.Array, t: Any, s: Any) -> tuple[Any, Any, Any]:
        """Make a step from the draw."""
        return carry, self.draw(key, x_t, t, s).astype(x_t.dtype), no_weight(x_t)


def lift(algorithm: Any) -> Kernel:
    """Return the kernel of an algorithm; `kernel.step` is the algorithm itself.

    Args:
      algorithm: an `Algorithm`.
    Returns:
      A Kernel.
    """
    if type(algorithm).init is Algorithm.init:
        return without_memory(algorithm)
    return Kernel(Method(algorithm, "init"), algorithm)


def without_memory(step: Callable) -> Kernel:
    """Return the kernel of a step that carries nothing.

    Args:
      step: (key, carry, x_t, t, s) -> (carry, x_s, log_weight_increment).
    Returns:
      A Kernel whose carry is the empty tuple.
    """
    return Kernel(Partial(_no_memory), step)


def _no_memory(x_init: jax.Array, t: jax.Array) -> tuple[()]:
    return ()


def no_weight(x: jax.Array) -> jax.Array:
    """Return the increments of an unweighted kernel.

    Args:
      x: state, [B, *D].
    Returns:
      Zeros, [B], in the state's dtype but at least float32.
    """
    return jnp.zeros(x.shape[:1], _rows.state_dtype(x.dtype))


def is_clean(level: Level) -> jax.Array:
    """Whether a level is data without noise: its log-SNR is infinite (LOG_SNR_LIMIT)."""
    return level.log_snr > 0.75 * LOG_SNR_LIMIT


def is_noise(level: Level) -> jax.Array:
    """Whether a level is noise without data: its log-SNR is minus infinity (-LOG_SNR_LIMIT)."""
    return level.log_snr < -0.75 * LOG_SNR_LIMIT


def noise(key: jax.Array | None, x: jax.Array, s: Any, *, strength: Any = 1.0) -> jax.Array:
    """Standard normal noise like x, [B, *D]; zero in a step to s = 0, which returns a mean.

    Without a key, as in `sampling.encode`, a kernel must be deterministic. A strength other than 0
    is an error where it is known, and NaN where it is traced.
    """
    if key is None:
        _checks.values(
            "kernel", strength, "a deterministic one: noise of strength 0", lambda v: v == 0
        )
        return jnp.where(jnp.asarray(strength) == 0, jnp.zeros_like(x), jnp.nan)
    return jnp.where(jnp.asarray(s) > 0, _rows.normal(key, x), 0)
