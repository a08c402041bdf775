"""Cholesky's root and the inverse of a triangular matrix, by loops that no thread waits in."""

from typing import Any

import jax
import jax.numpy as jnp


def lower_root(matrix: jax.Array) -> jax.Array:
    """Return Cholesky's root L of a positive definite matrix M, [R, R], column by column.

        L[:, i] = (M[:, i] - sum_{j < i} L[:, j] L[i, j]) / L[i, i]

    LAPACK's own on a CPU has threads that wait for each other: beside a sampler on busy cores they
    took a hundred times as long as the work (seen with OpenBLAS on two).
    """
    size = len(matrix)

    def column(i: Any, root: jax.Array) -> jax.Array:
        rest = matrix[i] - root @ root[i]
        return root.at[:, i].set(jnp.where(jnp.arange(size) < i, 0, rest / jnp.sqrt(rest[i])))

    return jax.lax.fori_loop(0, size, column, jnp.zeros_like(matrix))


def inverse_of_lower(matrix: jax.Array) -> jax.Array:
    """Return the inverse of a lower triangular matrix [R, R], row by row.

    A batch of XLA's own triangular solves beside a network's convolutions can stand still for ever
    on a CPU with few cores (seen with jax 0.10.2 on two).
    """
    size = len(matrix)

    def row(i: Any, inverse: jax.Array) -> jax.Array:
        unit = (jnp.arange(size) == i).astype(matrix.dtype)
        return inverse.at[i].set((unit - matrix[i] @ inverse) / matrix[i, i])

    return jax.lax.fori_loop(0, size, row, jnp.zeros_like(matrix))
