"""Mixtures of normal distributions fitted to data: oracles that look like the data."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._functions import exactly
from jaxdiff.oracles._mixture import GaussianMixture


@exactly
def fitted(
    key: jax.Array,
    points: jax.Array,
    num_components: int,
    *,
    num_iterations: int = 40,
    floor: Any = 0.1,
    strength: Any = 32.0,
) -> GaussianMixture:
    """Fit a mixture of normals with full covariances to data, by expectation maximisation.

        r_ik = p(k | x_i),   w_k = n_k / N,   n_k = sum_i r_ik,   m_k = sum_i r_ik x_i / n_k
        S_k = sum_i r_ik (x_i - m_k)(x_i - m_k)^T,   W = sum_k S_k / N
        C_k = (S_k + strength W) / (n_k + strength) + floor^2 I

    A component has few points where there are many dimensions. So its covariance is drawn to the
    mean covariance W, with the weight of `strength` points, and every direction has the variance
    floor^2 at least. The fit starts from k-means++.

    Args:
      key: typed PRNG key, for the start.
      points: data, [N, *D], floating.
      num_components: K, static.
      num_iterations: of expectation maximisation, static.
      floor: standard deviation that every direction has, in units of the data, [], traced.
      strength: number of points that the mean covariance counts for, [], traced.
    Returns:
      A GaussianMixture in prod(D) dimensions. Its denoiser takes states [B, *D].
    Raises:
      ValueError: num_components is not between 1 and N, num_iterations < 1, floor is not positive,
        or strength is negative.
      TypeError: points are not floating, or key is not a typed key.
    Numerics: an iteration takes about N K d^2 operations. With strength 0 and a small floor it is
      maximum likelihood. Otherwise the likelihood need not rise in each iteration.
    Source: Dempster, Laird & Rubin 1977, J. R. Stat. Soc. B 39(1); the start: Arthur &
    Vassilvitskii 2007, SODA; shrunken covariances: Fraley & Raftery 2007, J. Classif. 24.
    """
    _checks.one_key("key", key)
    _checks.floating("points", points)
    _checks.positive_int("num_components", num_components)
    _checks.positive_int("num_iterations", num_iterations)
    _checks.values("floor", floor, "a positive standard deviation", lambda v: v > 0)
    _checks.values("strength", strength, "a number of points of at least 0", lambda v: v >= 0)
    if len(points) < num_components:
        raise ValueError(
            f"num_components: expected at most one a point, {len(points)}, got {num_components}"
        )
    x = jnp.reshape(jnp.asarray(points), (len(points), -1))
    x = x.astype(_rows.state_dtype(x.dtype))
    floor, strength = (jnp.asarray(v, x.dtype) for v in (floor, strength))

    def improve(_: Any, mixture: GaussianMixture) -> GaussianMixture:
        joint = mixture._joint(x, mixture._spectrum(), 1.0)
        return _maximised(x, jax.nn.softmax(joint, axis=1), floor, strength)

    nearest = jnp.argmin(_squared_distances(x, _spread_out(key, x, num_components)), axis=1)
    start = jax.nn.one_hot(nearest, num_components, dtype=x.dtype)
    return jax.lax.fori_loop(0, num_iterations, improve, _maximised(x, start, floor, strength))


def _maximised(
    x: jax.Array, responsibility: jax.Array, floor: jax.Array, strength: jax.Array
) -> GaussianMixture:
    """The mixture of largest likelihood, its covariances shrunk, for responsibilities [N, K]."""
    counts = jnp.maximum(jnp.sum(responsibility, axis=0), 1e-6)
    means = responsibility.T @ x / counts[:, None]

    def scatter(component: tuple) -> jax.Array:
        mean, r = component
        centred = x - mean[None]
        return (r[:, None] * centred).T @ centred

    scatters = jax.lax.map(scatter, (means, responsibility.T))
    within = jnp.sum(scatters, axis=0) / len(x)
    total = (counts + strength)[:, None, None]
    covariances = (scatters + strength * within[None]) / total
    eye = jnp.eye(x.shape[1], dtype=x.dtype)
    return GaussianMixture(jnp.log(counts), means, covariances + floor**2 * eye[None])


def _spread_out(key: jax.Array, x: jax.Array, num: int) -> jax.Array:
    """k-means++: points drawn by their squared distance to the nearest one before them, [K, d]."""
    first = jax.random.randint(jax.random.fold_in(key, 0), (), 0, len(x))
    centres = jnp.broadcast_to(x[first], (num, x.shape[1]))

    def add(k: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centres, squared = state
        chosen = x[jax.random.categorical(jax.random.fold_in(key, k), jnp.log(squared))]
        nearer = jnp.minimum(squared, jnp.sum((x - chosen[None]) ** 2, axis=1))
        return centres.at[k].set(chosen), nearer

    squared = jnp.sum((x - x[first][None]) ** 2, axis=1)
    return jax.lax.fori_loop(1, num, add, (centres, squared))[0]


def _squared_distances(x: jax.Array, centres: jax.Array) -> jax.Array:
    """|x_i - c_k|^2, [N, K]."""
    one = lambda centre: jnp.sum((x - centre[None]) ** 2, axis=1)  # noqa: E731
    return jax.lax.map(one, centres).T
