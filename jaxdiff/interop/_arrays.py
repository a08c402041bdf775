"""A file's arrays as the parameters of a network: each in its place, and none left over."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.interop import _files
from jaxdiff.models import Model

# How torch calls the leaves of Flax.
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def fit(model: Model, arrays: dict[str, np.ndarray], path: Path) -> Any:
    """The parameters of a `unet2d` from arrays that are named and laid out as torch has them.

    Args:
      model: of `unet2d`.
      arrays: name -> array.
      path: the file that they come from, for messages.
    Returns:
      A nested dict of float32 JAX arrays.
    Raises:
      ValueError: an array is missing, has no place, has another shape, or is not of floats.
    """
    module: Any = model.module
    numbers, widest = sum(array.size for array in arrays.values()), max(module.widths)
    if numbers < 9 * widest**2 * module.num_blocks:  # before anything of that size is traced
        raise ValueError(
            f"{path}: expected the numbers of {module.num_blocks} blocks of width {widest}, "
            f"got {numbers} numbers"
        )
    side = 2 ** (len(module.widths) - 1)
    example = jax.ShapeDtypeStruct((1, side, side, module.in_channels), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    wanted = jax.eval_shape(
        lambda x, t: module.init(jax.random.key(0), x, t, None, None)["params"], example, time
    )
    places, structure = jax.tree_util.tree_flatten_with_path(wanted)
    names = [_torch_name(place) for place, _ in places]
    for name in names:
        if name not in arrays:
            raise ValueError(f"{path}: expected an array {name}, which it does not have")
    extra = sorted(set(arrays) - set(names))
    if extra:
        raise ValueError(
            f"{path}: expected no array {_files.shown(extra[0])}: the network has no place for it"
            + (f", and for {len(extra) - 1} more" if extra[1:] else "")
        )
    leaves = [
        _laid_out(arrays[name], leaf.shape, f"{path}: {name}")
        for name, (_, leaf) in zip(names, places, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def _torch_name(place: Any) -> str:
    *outer, last = (str(key.key) for key in place)
    return ".".join([*outer, LEAVES[last]])


def _laid_out(array: np.ndarray, shape: tuple[int, ...], where: str) -> jax.Array:
    """An array of torch, [out, in, ...], as Flax has it, [..., in, out]."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{where}: expected floats, got {array.dtype}")
    found = array
    if len(shape) == 2 and found.ndim > 2 and all(side == 1 for side in found.shape[2:]):
        found = found.reshape(found.shape[:2])  # a convolution of single pixels is a matrix
    embedding = where.endswith("class_embedding.weight")
    if found.ndim == 4:
        found = found.transpose(2, 3, 1, 0)
    elif found.ndim == 2 and not embedding:
        found = found.T
    if found.shape != shape:
        expected = shape if embedding or len(shape) < 2 else (*shape[:-3:-1], *shape[:-2])
        raise ValueError(f"{where}: expected shape {tuple(expected)}, got {array.shape}")
    return jnp.asarray(found.astype(np.float32))
