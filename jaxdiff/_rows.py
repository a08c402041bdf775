"""Randomness and broadcasting by row: row i of a batch has key i and time i, and no other row's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks

# The index that no row has. Its key serves what belongs to all rows.
NO_ROW = np.uint32(2**32 - 1)


def keys(key: jax.Array, num_rows: int, *, first: Any = 0, name: str = "key") -> jax.Array:
    """One key a row, [B]: row keys as they are, a single key folded with the row's index.

    Row i's key is a function of (key, first + i) alone. So it depends neither on the batch size nor
    on how a run is cut into chunks or spread over devices.
    """
    _checks.row_key(name, key)
    if key.ndim == 0:
        index = jnp.asarray(first_index(first, num_rows)).astype(jnp.uint32) + jnp.arange(
            num_rows, dtype=jnp.uint32
        )
        return jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    if key.shape != (num_rows,):
        raise ValueError(
            f"{name}: expected one key or one a row, shape () or ({num_rows},), got {key.shape}"
        )
    return key


def first_index(first: Any, num_rows: int) -> Any:
    """Require an unsigned index of 32 bits with room for num_rows rows from it on, if known."""
    _checks.index("first", first)
    if jnp.shape(first) != ():
        raise ValueError(f"first: expected one index, shape (), got {jnp.shape(first)}")
    room = int(NO_ROW) - num_rows
    _checks.values(
        "first",
        first,
        f"an index of at most {room}, with {num_rows} rows from it on",
        lambda i: i <= room,
    )
    return first if _checks.known(first) is None else np.uint32(first)


def fold(keys: jax.Array, n: Any) -> jax.Array:
    """Fold a number into every row's key, [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, n)


def split(keys: jax.Array, num: int = 2) -> jax.Array:
    """Split every row's key, [B] to [num, B]: a, b = split(keys)."""
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys)


def normal(key: jax.Array, x: Any) -> jax.Array:
    """Standard normal noise like x, [B, *D], drawn row by row; at least float32."""
    dtype = state_dtype(x.dtype)
    draw = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], dtype))
    return draw(keys(key, x.shape[0]))


def state_dtype(dtype: Any) -> Any:
    """The dtype coefficients and sampler states are computed in: at least float32."""
    return common_dtype(dtype, jnp.float32)


def common_dtype(one: Any, other: Any) -> Any:
    """The wider of two floating dtypes."""
    with jax.numpy_dtype_promotion("standard"):  # asked for by name: no promotion by accident
        return jnp.promote_types(one, other)


def cast(dtype: Any, *numbers: Any) -> tuple[Any, ...]:
    """A user's numbers for arithmetic with arrays of a dtype: NumPy's and JAX's become that dtype.

    Python's own numbers stay as they are: they never change the dtype of an array.
    """
    return tuple(v if type(v) in (int, float) else jnp.asarray(v, dtype) for v in numbers)


def pick(values: jax.Array, index: Any) -> jax.Array:
    """values[index] along the first axis; NaN where the index lies outside, negative ones too."""
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        return values[index]  # integers and keys have no NaN
    return values.at[index].get(mode="fill", wrap_negative_indices=False)


def expand(value: jax.Array, x: Any) -> jax.Array:
    """Append axes to a per-row value, [] or [B], until it broadcasts against x, [B, *D]."""
    return (
        jnp.reshape(value, jnp.shape(value) + (1,) * (jnp.ndim(x) - jnp.ndim(value)))
        if jnp.ndim(value)
        else value
    )


def event_sum(x: jax.Array) -> jax.Array:
    """Sum over all axes but the first, [B, *D] to [B]."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)


def all_finite(x: jax.Array) -> jax.Array:
    """Whether every entry of a row is finite, [B, 1, ...] with as many axes as x."""
    return jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)), keepdims=True)


def lead(value: jax.Array, ndim: int) -> jax.Array:
    """Prepend axes to a value shared by all rows until it has ndim axes."""
    return jnp.reshape(value, (1,) * (ndim - jnp.ndim(value)) + jnp.shape(value))
