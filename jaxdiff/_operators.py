"""Linear operators of one example as functions, and what their matrix would say, without the matrix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff._functions import Static

# Rows of A that are counted one by one; where there are more, as many random vectors tell their
# lengths.
_EXACT_ROWS = 256


def squared_rows(operator: Callable, like: Any) -> jax.Array:
    """Return the diagonal of A A^T, the squared lengths of A's rows.

        (A A^T)_ii = |A^T e_i|^2 = E[(A z)_i^2],   z of independent random signs

    Args:
      operator: A, one x [*D] -> [*M], linear; an offset does not count.
      like: shape and dtype of x.
    Returns:
      [*M]: exact for 256 rows and fewer; for more within a tenth (standard error at most sqrt(2 /
      256)), and exact in a row with one entry.
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


def multiply(matrix: jax.Array, x_0: jax.Array) -> jax.Array:
    """A x, [m], of a matrix [m, d] and one example of d entries."""
    return matrix @ x_0.reshape(-1)


def block_means(factor: Static, x_0: jax.Array) -> jax.Array:
    """The means of blocks of factor x factor pixels, [H / factor, W / factor, C]."""
    height, width, channels = x_0.shape
    if height % factor.value or width % factor.value:
        raise ValueError(
            f"x_0: expected sides that are multiples of {factor.value}, got {x_0.shape}"
        )
    blocks = x_0.reshape(
        height // factor.value, factor.value, width // factor.value, factor.value, channels
    )
    return blocks.mean(axis=(1, 3))


def blur_matrix(size: int, width: Any) -> jax.Array:
    """K_ij = exp(-(i - j)^2 / (2 width^2)) / sum_j, [size, size]."""
    place = jnp.arange(size)
    return jax.nn.softmax(-((place[:, None] - place[None]) ** 2) / (2 * width**2), axis=1)


def blurred(vertical: jax.Array, horizontal: jax.Array, x_0: jax.Array) -> jax.Array:
    """K_H x_0 K_W^T of an image [H, W, C]."""
    return jnp.einsum("ih,hwc,jw->ijc", vertical, x_0, horizontal)
