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
    Raises:
      ValueError: an array does not hold finite numbers, a scale has other axes than its weight or
        none to scale, or one name is both an array and a dict.
    """
    params: dict[str, Any] = {}
    for name in sorted(arrays):
        if name.endswith(SCALE):
            if name.removesuffix(SCALE) not in arrays:
                raise ValueError(f"{name}: expected the scale of a weight, got none of that name")
            continue
        value = _numbers(name, arrays[name])
        if name + SCALE in arrays:
            scale = _numbers(name + SCALE, arrays[name + SCALE])
            expected = (1,) * (value.ndim - 1) + value.shape[-1:]
            if scale.shape != expected:  # another one might broadcast the weight to any size
                raise ValueError(f"{name + SCALE}: expected {expected}, got {scale.shape}")
            with np.errstate(over="ignore"):  # `_finite` sees it
                value = value * scale
        *outer, last = name.split("/")
        inner = params
        for part in outer:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{name}: expected no array of the name {part}, got one")
        inner[last] = jnp.asarray(_finite(name, value))
    return params


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected numbers, got {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32)


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return array


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
    Raises:
      ValueError: a part of it is missing, or is not numbers.
    """
    found = {name: arrays.pop(SPREAD + name) for name in _FIELDS if SPREAD + name in arrays}
    if not found:
        return None
    if len(found) < len(_FIELDS):
        raise ValueError(f"spread: expected {', '.join(_FIELDS)}, got {', '.join(found)}")
    numbers = {
        name: jnp.asarray(_finite(name, _numbers(name, each))) for name, each in found.items()
    }
    if numbers["axes"].ndim < 2 or numbers["log_snr"].ndim != 1:
        got = {name: each.shape for name, each in numbers.items()}
        raise ValueError(f"spread: expected axes [R, *D] and log_snr [L], got {got}")
    return Spread(**numbers)
