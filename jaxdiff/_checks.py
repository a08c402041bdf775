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
    if np.shape(x) != np.shape(other):
        raise ValueError(f"{name}: expected the shape of {other_name}, {np.shape(other)}, got {np.shape(x)}")


def time(name: str, t: Any, x: Any = None) -> None:
    """Require t in [0, 1] where its value is known, of shape [] or x.shape[:1] where x is given."""
    if x is not None and np.shape(t) not in ((), np.shape(x)[:1]):
        raise ValueError(f"{name}: expected shape () or {np.shape(x)[:1]}, got {np.shape(t)}")
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


def finite(name: str, value: Any, expected: str = "a finite number") -> None:
    """Require finite numbers, where they are known now."""
    values(name, value, expected, np.isfinite, finite=False)


def values(name: str, value: Any, expected: str, holds: Callable[[np.ndarray], Any], *, finite: bool = True) -> None:
    """Require that a predicate holds for every entry, where the value is known now, and that each is finite."""
    now = known(value)
    if now is None:
        return
    good = np.isfinite(now).ravel() if finite else np.ones(1, bool)
    good = np.asarray(holds(now)).ravel() if good.all() else good
    if not good.all():
        first = int(np.argmin(good))
        # A predicate on neighbours has an entry less than the value: show both of the pair.
        shown = now.ravel()[first : first + 1 + now.size - good.size].tolist()
        where = f" at index {first} of {now.size}" if now.ndim else ""
        raise ValueError(f"{name}: expected {expected}, got {', '.join(map(str, shown))}{where}")


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
    if np.ndim(ts) != 1 or np.size(ts) < 2:
        raise ValueError(f"{name}: expected a vector of at least 2 times (1 step), got shape {np.shape(ts)}")
    floating(name, jnp.asarray(ts))
    values(name, ts, "times in [0, 1]", lambda v: (v >= 0) & (v <= 1))
    values(name, ts, "decreasing times", lambda v: np.diff(v) < 0)
