"""Checks at the public boundary: shapes, dtypes, and values that are known before compilation.

A traced value passes every check: `known` returns None for it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Hints of mistakes that many make.
STEPS = " (a step i of T is t = i / T)"
CHANNELS_LAST = " (channels go last, [B, H, W, C]: jnp.moveaxis(x, 1, -1))"
TYPED = "jax.random.key(0)"


def known(value: Any) -> np.ndarray | None:
    """The value as a NumPy array where it is known now, None under tracing."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)


def concrete(name: str, value: Any) -> None:
    """Require a value that is known now."""
    if known(value) is None:
        raise TypeError(
            f"{name}: expected values that are known, got a traced array (make it outside of jit)"
        )


def floating(name: str, x: Any) -> None:
    """Require an array of floating dtype."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        hint = " (jnp.asarray makes one)" if isinstance(x, list | tuple | float) else ""
        raise TypeError(f"{name}: expected a floating array, got {type(x).__name__}{hint}")
    if not jnp.issubdtype(dtype, jnp.floating):
        hint = (
            " (scale images to [-1, 1] first; other data by .astype(float))"
            if _whole(dtype)
            else ""
        )
        raise TypeError(f"{name}: expected a floating dtype, got {dtype}{hint}")


def data(name: str, x: Any) -> None:
    """Require floating data with a batch axis, [B, *D]; known images must not be levels to 255."""
    floating(name, x)
    if jnp.ndim(x) < 1:
        raise ValueError(f"{name}: expected a batch, [B, *D], got shape ()")
    here = not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer) or x.is_fully_addressable
    now = known(x) if jnp.ndim(x) == 4 and here else None
    # Other data may have any scale; whole numbers up to 255 are an image's levels.
    if (
        now is not None
        and now.size
        and now.min() >= 0
        and 16 < now.max() <= 255
        and (now == np.round(now)).all()
    ):
        found = f"whole numbers in {now.min():g} .. {now.max():g}"
        raise ValueError(
            f"{name}: expected images scaled to [-1, 1], got {found} (data.to_unit scales integers)"
        )


def same_shape(name: str, x: Any, other_name: str, other: Any) -> None:
    """Require x to have the shape of other."""
    if jnp.shape(x) != jnp.shape(other):
        one, two = jnp.shape(x), jnp.shape(other)
        swapped = len(one) == len(two) == 4 and two in (
            one[:1] + one[2:] + one[1:2],
            one[:1] + one[3:] + one[1:3],
        )
        hint = CHANNELS_LAST if swapped else ""
        raise ValueError(f"{name}: expected the shape of {other_name}, {two}, got {one}{hint}")


def channels_last(name: str, shape: tuple[int, ...], expected: str) -> None:
    """Refuse the shape of an image whose channels come first: 1, 3 or 4, and then a square."""
    if shape[0] in (1, 3, 4) and len(shape) == 3 and shape[1] == shape[2] > 7:
        raise ValueError(f"{name}: expected {expected}, channels last, got {shape}")


def time(name: str, t: Any, x: Any = None) -> None:
    """Require t in [0, 1] where its value is known, of shape [] or x.shape[:1] where x is given."""
    dtype = _numbers(name, t, "a floating time in [0, 1]")
    if x is not None and np.shape(t) not in ((), jnp.shape(x)[:1]):
        raise ValueError(f"{name}: expected shape () or {jnp.shape(x)[:1]}, got {np.shape(t)}")
    if hasattr(t, "dtype") and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating time in [0, 1], got dtype {dtype}{STEPS}")
    values(name, t, "a time in [0, 1]", lambda now: (now >= 0) & (now <= 1), hint=_counted)


def positive_int(name: str, value: Any) -> None:
    """Require a Python integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a positive int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value}")


def index(name: str, value: Any, count: int | None = None) -> None:
    """Require integers from 0 to count - 1, or from 0 on without a count, where they are known."""
    try:
        dtype = jnp.result_type(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name}: expected an integer dtype, got {dtype}")
    expected = "an integer of at least 0" if count is None else f"0 .. {count - 1}"
    values(name, value, expected, lambda i: (i >= 0) & (True if count is None else i < count))


def choice(
    name: str, value: Any, options: Sequence[str], *, elsewhere: Mapping[str, str] | None = None
) -> None:
    """Require one of the named options; `elsewhere` has their names in other libraries."""
    if value not in options:
        here = (elsewhere or {}).get(value) if isinstance(value, str) else None
        hint = "" if here is None else f" (it is {here!r} here)"
        raise ValueError(
            f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}{hint}"
        )


def finite(name: str, value: Any, expected: str = "a finite number") -> None:
    """Require finite numbers, where they are known now."""
    values(name, value, expected, np.isfinite, finite=False)


def values(
    name: str,
    value: Any,
    expected: str,
    holds: Callable[[np.ndarray], Any],
    *,
    finite: bool = True,
    hint: Callable | None = None,
) -> None:
    """Require finite entries for which a predicate holds, where the value is known now.

    A hint is a function of the value. It returns what is added to the message.
    """
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
        more = "" if hint is None else hint(now)
        raise ValueError(
            f"{name}: expected {expected}, got {', '.join(map(str, shown))}{where}{more}"
        )


def mask(name: str, value: Any) -> None:
    """Require an array of 0 and 1, or False and True, where its values are known."""
    dtype = jnp.result_type(value)
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise TypeError(f"{name}: expected a mask of bool, int or float, got dtype {dtype}")
    values(
        name,
        value,
        "a mask of 0 and 1 (for any other array: `mask > 0`)",
        lambda v: (v == 0) | (v == 1),
    )


def key(name: str, value: Any) -> None:
    """Require typed PRNG keys (jax.random.key)."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return
    if dtype == np.uint32 and value.ndim:
        old = f"{TYPED} instead of jax.random.PRNGKey(0) (or jax.random.wrap_key_data)"
        raise TypeError(f"{name}: expected a typed key: {old}, got uint32 {list(value.shape)}")
    got = repr(value) if value is None or isinstance(value, int) else dtype or type(value).__name__
    raise TypeError(f"{name}: expected a typed key such as {TYPED}, got {got}")


def row_key(name: str, value: Any) -> None:
    """Require typed PRNG keys whose draws under vmap depend on the row's key alone: not rbg."""
    key(name, value)
    kind = str(jax.random.key_impl(value))
    if kind in ("rbg", "unsafe_rbg"):
        raise ValueError(
            f"{name}: expected a key whose draws do not depend on the batch, such as "
            f"jax.random.key(seed, impl='threefry2x32'), got one of impl={kind!r}"
        )


def one_key(name: str, value: Any) -> None:
    """Require a single typed PRNG key, one that rows can be given keys from."""
    row_key(name, value)
    if value.shape != ():
        raise ValueError(
            f"{name}: expected one key, shape (), got {value.shape} (key[0] is the first of them)"
        )


def grid(name: str, ts: Any) -> None:
    """Require decreasing times in [0, 1], at least two."""
    dtype = _numbers(name, ts, "an array of times")
    if np.ndim(ts) != 1 or np.size(ts) < 2:
        got = f"shape {np.shape(ts)}"
        if isinstance(ts, int):
            got = f"{ts} (grids.uniform({ts}) is a grid of {ts} steps)"
        raise ValueError(f"{name}: expected a vector of at least 2 times (1 step), got {got}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating dtype, times in [0, 1], got {dtype}{STEPS}")
    values(name, ts, "times in [0, 1]", lambda v: (v >= 0) & (v <= 1), hint=_counted)
    values(name, ts, "decreasing times", lambda v: np.diff(v) < 0, hint=_reversed)


def _numbers(name: str, value: Any, expected: str) -> Any:
    """The dtype of an array, a list or a number; TypeError for anything else."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        try:
            dtype = np.asarray(value).dtype
        except ValueError:  # lists of several lengths
            dtype = np.dtype(object)
    if not jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.bool):
        raise TypeError(
            f"{name}: expected {expected}, got {value if value is None else type(value).__name__}"
        )
    return dtype


def _whole(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or dtype == np.bool_


def _counted(now: np.ndarray) -> str:
    """The hint for whole numbers above 1 among times: they count steps."""
    return STEPS if now.max() > 1 and (now == np.round(now)).all() else ""


def _reversed(now: np.ndarray) -> str:
    return " (ts[::-1] is the other way round)" if (np.diff(now) > 0).all() else ""
