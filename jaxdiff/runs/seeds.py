"""Seeds, and the keys that come of them."""

import zlib

import jax

from jaxdiff.runs import require


def another(seed: int, number: int = 1) -> int:
    """Derive another seed, for draws that must be independent of this one."""
    return (seed + number) % require.SEEDS


def key_of(seed: int, purpose: str) -> jax.Array:
    """The key of one purpose of a seed: training, sampling and data never share a stream."""
    require.seed(seed)
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
