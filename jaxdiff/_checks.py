"""Checks on static facts at the public boundary: shapes, dtypes, and values that are known before compilation.

A traced value is never looked at: `known` returns None for it, and the check passes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def known(value: Any) -> np.ndarray | None:
    """The value as a NumPy array where it is known now, None under tracing."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)


def floating(name: str, x: Any) -> None:
    """Require an array of floating dtype."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        raise TypeError(f"{name}: expected a floating array, got {type(x).__name__}")
    if not jnp.issubdtype(dtype, jnp.floating):
        hint = " (scale images to [-1, 1] first)" if jnp.issubdtype(dtype, jnp.integer) else ""
        raise TypeError(f"{name}: expected a floating dtype, got {dtype}{hint}")


def same_shape(name: str, x: Any, other_name: str, other: Any) -> None:
    """Require x to have the shape of other."""
    if jnp.shape(x) != jnp.shape(other):
        raise ValueError(f"{name}: expected the shape of {other_name}, {jnp.shape(other)}, got {jnp.shape(x)}")


def time(name: str, t: Any, x: Any = None) -> None:
    """Require t in [0, 1] where its value is known, of shape [] or x.shape[:1] where x is given."""
    if x is not None and jnp.shape(t) not in ((), jnp.shape(x)[:1]):
        raise ValueError(f"{name}: expected shape () or {jnp.shape(x)[:1]}, got {jnp.shape(t)}")
    dtype = getattr(t, "dtype", None)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating time in [0, 1], got dtype {dtype} (a step i of T is t = i / T)")
    values(name, t, "a time in [0, 1]", lambda now: (now >= 0) & (now <= 1))


def positive_int(name: str, value: Any) -> None:
    """Require a Python integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a positive int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value}")


def choice(name: str, value: Any, options: Sequence[str]) -> None:
    """Require one of the named options."""
    if value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}")


def values(name: str, value: Any, expected: str, holds: Callable[[np.ndarray], Any]) -> None:
    """Require that a predicate holds for every entry, where the value is known now."""
    now = known(value)
    if now is None:
        return
    good = np.asarray(holds(now)).ravel()
    if not good.all():
        first = int(np.argmin(good))
        # A predicate on neighbours has an entry less than the value: show both of the pair.
        shown = now.ravel()[first : first + 1 + now.size - good.size].tolist()
        where = f" at index {first} of {now.size}" if now.ndim else ""
        raise ValueError(f"{name}: expected {expected}, got {', '.join(map(str, shown))}{where}")


def mask(name: str, value: Any) -> None:
    """Require an array of 0 and 1, or False and True, where its values are known."""
    dtype = jnp.result_type(value)
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise TypeError(f"{name}: expected a mask of bool, int or float, got dtype {dtype}")
    values(name, value, "a mask of 0 and 1 (for any other array: `mask > 0`)", lambda v: (v == 0) | (v == 1))


def key(name: str, value: Any) -> None:
    """Require typed PRNG keys (jax.random.key)."""
    if not jnp.issubdtype(getattr(value, "dtype", np.dtype(object)), jax.dtypes.prng_key):
        raise TypeError(f"{name}: expected a typed key from jax.random.key, got {type(value).__name__}")


def one_key(name: str, value: Any) -> None:
    """Require a single typed PRNG key."""
    key(name, value)
    if value.shape != ():
        raise ValueError(f"{name}: expected one key, shape (), got {value.shape}")


def grid(name: str, ts: Any) -> None:
    """Require decreasing times in [0, 1], at least two."""
    if jnp.ndim(ts) != 1 or jnp.size(ts) < 2:
        raise ValueError(f"{name}: expected a vector of at least 2 times (1 step), got shape {jnp.shape(ts)}")
    floating(name, jnp.asarray(ts))
    values(name, ts, "times in [0, 1]", lambda v: (v >= 0) & (v <= 1))
    values(name, ts, "decreasing times", lambda v: np.diff(v) < 0)
