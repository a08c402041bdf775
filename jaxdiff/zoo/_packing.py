"""Parameters in a quarter of their size: weights as integers of 8 bits, a scale for each output."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.posterior import Spread

LARGEST = 127
SCALE = ":scale"  # ends the name of a weight's scales; no parameter has a colon in its name


def pack(params: Any) -> dict[str, np.ndarray]:
    """Round a tree of parameters to arrays for `np.savez`.

        code = round(weight / scale),   scale = max |weight| / 127 over all axes but the last

    so that no weight moves by more than half a scale. What has one axis (shifts and scales) is kept
    as it is.

    Args:
      params: nested dict of floating arrays.
    Returns:
      "outer/inner" -> float32, or int8 beside "outer/inner:scale" -> float32 with the axes of the
      weight.
    """
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name, value = (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            np.asarray(leaf, np.float32),
        )
        if value.ndim < 2:
            arrays[name] = value
            continue
        largest = np.abs(value).max(axis=tuple(range(value.ndim - 1)), keepdims=True)
        scale = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(LARGEST)
        arrays[name] = np.round(value / scale).astype(np.int8)
        arrays[name + SCALE] = scale
    return arrays


def unpack(arrays: dict[str, np.ndarray]) -> Any:
    """Return the nested dict of float32 arrays that `pack` was given, its weights rounded.

    Args:
      arrays: what `pack` returned.
    Returns:
      Nested dict of float32 JAX arrays.
    """
    params: dict[str, Any] = {}
    for name in sorted(arrays):
        if name.endswith(SCALE):
            continue
        value = arrays[name].astype(np.float32) * arrays.get(name + SCALE, np.float32(1))
        *outer, last = name.split("/")
        inner = params
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = jnp.asarray(value)
    return params


SPREAD = "spread:"  # begins the names of a spread's arrays
_FIELDS = ("axes", "scale", "log_snr", "fraction")


def pack_spread(spread: Spread) -> dict[str, np.ndarray]:
    """Round a spread's axes to 16 bits, for `np.savez`.

    Args:
      spread: of the network.
    Returns:
      "spread:field" -> float32, and float16 for the axes.
    """
    arrays = {name: np.asarray(getattr(spread, name), np.float32) for name in _FIELDS}
    arrays["axes"] = arrays["axes"].astype(np.float16)
    return {SPREAD + name: array for name, array in arrays.items()}


def unpack_spread(arrays: dict[str, np.ndarray]) -> Spread | None:
    """Take a spread out of a file's arrays, which lose them.

    Args:
      arrays: of a file; those of the spread are removed.
    Returns:
      The spread, or None where the file has none.
    """
    found = {name: arrays.pop(SPREAD + name, None) for name in _FIELDS}
    if found["axes"] is None:
        return None
    return Spread(**{name: jnp.asarray(value, jnp.float32) for name, value in found.items()})
