"""Linear operators given as functions: what their matrix would say, without the matrix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Rows of A that are counted one by one; where there are more, as many random vectors tell their lengths.
_EXACT_ROWS = 256


def squared_rows(operator: Callable, like: Any) -> jax.Array:
    """Return the diagonal of A A^T, the squared lengths of A's rows.

        (A A^T)_ii = |A^T e_i|^2 = E[(A z)_i^2],   z of independent random signs

    Args:
      operator: A, one x [*D] -> [*M], linear; an offset does not count.
      like: shape and dtype of x.
    Returns:
      [*M]: exact for 256 rows and fewer; for more within a tenth (standard error at most sqrt(2 / 256)), and exact in a
      row with one entry.
    Source: Hutchinson 1990, Commun. Stat. Simul. Comput. 19(2); Bekas et al. 2007, Appl. Numer. Math. 57.
    """
    zeros = jnp.zeros(like.shape, like.dtype)
    predicted, pull = jax.vjp(operator, zeros)
    if predicted.size <= _EXACT_ROWS:
        one = lambda e: jnp.sum(pull(e.reshape(predicted.shape))[0] ** 2)  # noqa: E731
        return jax.lax.map(one, jnp.eye(predicted.size, dtype=predicted.dtype), batch_size=16).reshape(predicted.shape)

    def add(n: Any, total: jax.Array) -> jax.Array:
        signs = jax.random.rademacher(jax.random.fold_in(jax.random.key(0), n), zeros.shape, zeros.dtype)
        return total + jax.jvp(operator, (zeros,), (signs,))[1] ** 2

    return jax.lax.fori_loop(0, _EXACT_ROWS, add, jnp.zeros_like(predicted)) / _EXACT_ROWS
