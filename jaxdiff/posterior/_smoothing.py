"""A likelihood where x_0 is known up to a spread: its mean over some fixed points around x_0."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

NUM_NODES = 32
_MOST_SOBOL = 21_201  # dimensions that the tables of Joe and Kuo have


@functools.lru_cache(maxsize=16)
def standard_nodes(num: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return num fixed points of N(0, I), [num, *shape], in pairs z and -z.

    They are quasi-random: a scrambled Sobol sequence through the inverse of the normal law. An odd
    one is the point zero.
    """
    from scipy.stats import norm, qmc

    half, size = num // 2, int(np.prod(shape))
    random = np.random.default_rng(0)
    if size <= _MOST_SOBOL and half:
        sobol = qmc.Sobol(size, rng=random)
        uniform = sobol.random_base2(int(np.ceil(np.log2(half))))[:half]
        z = norm.ppf(np.clip(uniform, 1e-6, 1 - 1e-6))
    else:
        z = random.normal(size=(half, size))
    nodes = np.concatenate([z, -z, np.zeros((num % 2, size))])
    return nodes.reshape(num, *shape).astype(np.float32)


def smoothed(log_likelihood: Callable, x_0: jax.Array, shifts: jax.Array) -> jax.Array:
    """Return the log of the mean likelihood around every row, [B], in nats.

        log 1/K sum_k r(x_0 + shift_k)

    A likelihood that has `terms` is a product of them, and each one is averaged by itself: that
    takes few points in many dimensions, where the terms see different entries.

    Args:
      log_likelihood: one x_0 [*D] -> [], in nats. -inf and NaN are a likelihood of 0.
      x_0: [B, *D].
      shifts: [K, *D].
    Returns:
      [B].
    """
    function: Any = getattr(log_likelihood, "terms", log_likelihood)

    def one(x: jax.Array) -> jax.Array:
        values = jax.vmap(function)(x[None] + shifts)
        values = jnp.where(jnp.isnan(values), -jnp.inf, values)
        return jnp.sum(logsumexp(values, axis=0) - jnp.log(len(shifts)))

    return jax.vmap(one)(x_0)
