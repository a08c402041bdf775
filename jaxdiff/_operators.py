"""Linear operators of one example, and the diagonal of A A^T without the matrix A."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff._tree import pytree, static

_EXACT_ROWS = 256  # more rows of A than this are measured with as many random vectors


def squared_rows(operator: Callable, like: Any) -> jax.Array:
    """Return the diagonal of A A^T: the squared lengths of A's rows.

        (A A^T)_ii = |A^T e_i|^2 = E[(A z)_i^2],   z of independent random signs

    Args:
      operator: A, one x [*D] -> [*M], linear. An offset does not count.
      like: shape and dtype of x.
    Returns:
      [*M]. Up to 256 rows are exact. With more rows the relative standard error is at most
      sqrt(2 / 256), and a row with one entry is exact.
    Source: Hutchinson 1990, Commun. Stat. Simul. Comput. 19(2); Bekas et al. 2007, Appl. Numer.
    Math. 57.
    """
    zeros = jnp.zeros(like.shape, like.dtype)
    predicted, pull = jax.vjp(operator, zeros)
    if predicted.size <= _EXACT_ROWS:
        one = lambda e: jnp.sum(pull(e.reshape(predicted.shape))[0] ** 2)  # noqa: E731
        return jax.lax.map(
            one, jnp.eye(predicted.size, dtype=predicted.dtype), batch_size=16
        ).reshape(predicted.shape)

    def add(n: Any, total: jax.Array) -> jax.Array:
        signs = jax.random.rademacher(
            jax.random.fold_in(jax.random.key(0), n), zeros.shape, zeros.dtype
        )
        return total + jax.jvp(operator, (zeros,), (signs,))[1] ** 2

    return jax.lax.fori_loop(0, _EXACT_ROWS, add, jnp.zeros_like(predicted)) / _EXACT_ROWS


@pytree
class Matrix:
    """x -> A x for a matrix A [m, d]; x's d entries in order."""

    matrix: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return A x, [m]."""
        return self.matrix.astype(x.dtype) @ x.reshape(-1)


@pytree
class BlockMeans:
    """The means of blocks of factor x factor pixels."""

    factor: int = static()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the means, [H / factor, W / factor, C]."""
        (height, width, channels), factor = x.shape, self.factor
        if height % factor or width % factor:
            raise ValueError(f"x_0: expected sides that are multiples of {factor}, got {x.shape}")
        blocks = x.reshape(height // factor, factor, width // factor, factor, channels)
        return blocks.mean(axis=(1, 3))


@pytree
class Blur:
    """x -> K_H x K_W^T for images [H, W, C]."""

    vertical: jax.Array
    horizontal: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the blurred image, [H, W, C]."""
        vertical, horizontal = self.vertical.astype(x.dtype), self.horizontal.astype(x.dtype)
        return jnp.einsum("ih,hwc,jw->ijc", vertical, x, horizontal)


def blur_matrix(size: int, width: Any) -> jax.Array:
    """K_ij = exp(-(i - j)^2 / (2 width^2)) / sum_j, [size, size]."""
    index = jnp.arange(size)
    squared = ((index[:, None] - index[None]) ** 2).astype(float)
    return jax.nn.softmax(-squared / jnp.asarray(2 * width**2, squared.dtype), axis=1)
