"""Typed keys as plain arrays and back: files and other processes know no keys."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_key(leaf: Any) -> bool:
    """Return whether a leaf is a typed key, or the shape of one.

    Args:
      leaf: an array or jax.ShapeDtypeStruct.
    Returns:
      Whether.
    """
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_numpy(leaf: Any) -> np.ndarray:
    """Return an array, or the data of a key, as an array of NumPy.

    Args:
      leaf: an array or a typed key.
    Returns:
      The values.
    """
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def like_plain(leaf: Any) -> Any:
    """Return the shape and dtype that `to_numpy` gives.

    Args:
      leaf: an array, a typed key or jax.ShapeDtypeStruct.
    Returns:
      An array or jax.ShapeDtypeStruct, with `shape` and `dtype`.
    """
    return jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf


def typed(values: Any, like: Any) -> jax.Array:
    """Return plain values as an array, or as the key that they are the data of.

    Args:
      values: what `to_numpy` gave.
      like: an array, a typed key, or the shape of one.
    Returns:
      An array or a typed key.
    """
    if not is_key(like):
        return jnp.asarray(values)
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(jnp.asarray(values), impl=found[0])
