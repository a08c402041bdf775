"""Wasserstein distances: exact, sliced, and of normal laws with the moments of the samples."""

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxdiff import _checks
from jaxdiff.metrics._samples import Estimate, pair, require_pairs, squared_distances


def wasserstein(x: Any, y: Any, *, order: float = 2.0) -> Estimate:
    """Return the Wasserstein distance of two samples of one size.

        W_p^p = min over permutations s of 1/n sum_i |x_i - y_s(i)|^p

    Args:
      x: first sample, [n, *D].
      y: second sample, [n, *D].
      order: p, at least 1.
    Returns:
      Estimate, in units of the data. It is biased upwards, by O(n^(-1/d)) for close laws. The
      standard error is that of the estimate about its own mean, from the optimal potentials.
    Raises:
      ValueError: order < 1; the samples are not of one shape, have fewer than 2 examples or more
        than 8192, or are not finite.
    Numerics: the assignment takes O(n^3) operations and n^2 numbers: a few seconds for thousands of
      examples.
    Source: Peyre & Cuturi 2019, arXiv:1803.00567, Section 2.2; standard error: del Barrio & Loubes
      2019, arXiv:1705.01299, Theorem 4.1.
    """
    _checks.same_shape("y", y, "x", x)
    _checks.values("order", order, "at least 1", lambda p: p >= 1)
    require_pairs("x", x, y, "or use sliced_wasserstein")
    cost = squared_distances(*pair(x, y)) ** (order / 2)
    cost = cost[:, linear_sum_assignment(cost)[1]]  # row i is matched with column i
    return _root(float(np.mean(np.diag(cost))), *_potentials(cost), order=order)


def _potentials(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u, v with u_i + v_j <= cost_ij, and equality on the diagonal, which is an optimal matching.

    v_j <= v_i + cost_ij - cost_ii: shortest paths without negative cycles (Bellman-Ford).
    """
    edges = cost - np.diag(cost)[:, None]
    v = np.zeros(len(cost))
    for _ in range(len(cost)):
        shorter = np.min(v[:, None] + edges, axis=0)
        if np.allclose(shorter, v, rtol=0, atol=1e-12 * np.max(cost)):
            break
        v = shorter
    return np.diag(cost) - v, v


def _root(total: float, *influences: np.ndarray, order: float = 2.0) -> Estimate:
    """The root of a power of a distance. Its standard error comes from the points' influences."""
    value = max(total, 0.0) ** (1 / order)
    error = float(np.sqrt(sum(np.var(part, ddof=1) / len(part) for part in influences)))
    return Estimate(value, error * value ** (1 - order) / order if value else 0.0)


def sliced_wasserstein(x: Any, y: Any, *, num_slices: int = 1000, seed: int = 0) -> Estimate:
    """Return the sliced Wasserstein-2 distance of two samples.

        SW_2^2 = E_theta W_2^2(theta . x, theta . y),   theta uniform on the sphere

    In one dimension W_2^2 is the mean squared difference of the sorted values.

    Args:
      x: first sample, [n, *D].
      y: second sample, [n, *D].
      num_slices: number of directions.
      seed: seed of the directions.
    Returns:
      Estimate, in units of the data. The standard error is that of the directions, not of the
      samples. For the error of the samples see the floor of `compare`.
    Raises:
      ValueError: the samples are not of one shape, or num_slices < 2.
    Source: Bonneel et al. 2015, J. Math. Imaging Vis. 51(1), Definition 3.
    """
    _checks.same_shape("y", y, "x", x)
    _checks.values("num_slices", num_slices, "at least 2 directions", lambda v: v >= 2)
    flat = pair(x, y, least=1)
    theta = np.random.default_rng(seed).normal(size=(num_slices, flat[0].shape[1]))
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    squared = np.concatenate(  # some directions at a time: all projections may not fit in memory
        [
            np.mean(
                (np.sort(flat[0] @ part.T, axis=0) - np.sort(flat[1] @ part.T, axis=0)) ** 2,
                axis=0,
            )
            for part in np.array_split(theta, -(-num_slices // 100))
        ]
    )
    return _root(float(np.mean(squared)), squared)


def frechet_distance(x: Any, y: Any) -> Estimate:
    """Return the Frechet distance: Wasserstein-2 of normal laws with the samples' moments.

        d^2 = |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^(1/2) C_y C_x^(1/2))^(1/2))

    FID is d^2 for the features of an Inception network. `compare` takes any feature function.

    Args:
      x: first sample, [n, *D].
      y: second sample, [m, *D].
    Returns:
      Estimate of d, in units of the data. The errors of the moments bias it upwards. The standard
      error is of first order, about the mean of the estimate.
    Raises:
      ValueError: the samples are of different event shapes, have fewer than 2 examples, or are not
        finite.
    Numerics: covariances are k x k with k = min(d, n + m): they are taken in the space that the
      examples span, if it is smaller than the whole. The result is the same.
    Source: Dowson & Landau 1982, J. Multivar. Anal. 12(3), Eq. (4); Heusel et al. 2017,
    arXiv:1706.08500, Eq. (6).
    """
    x, y = _coordinates(*pair(x, y))
    (mean, covariance), (mean_y, covariance_y) = moments = [
        (z.mean(0), np.atleast_2d(np.cov(z.T))) for z in (x, y)
    ]
    value = normal_wasserstein(*moments[0], *moments[1])
    influences = (
        _influence(x - mean, mean - mean_y, _transport_map(covariance, covariance_y)),
        _influence(y - mean_y, mean_y - mean, _transport_map(covariance_y, covariance)),
    )
    return _root(value**2, *influences)


def _coordinates(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The examples in an orthonormal basis of their span, [n, k] and [m, k], k = min(d, n + m).

    Z^T = Q R: the columns of R are the rows of Z in the basis Q, with the same distances.
    """
    z = np.concatenate([x, y])
    if z.shape[0] >= z.shape[1]:
        return x, y
    r: Any = np.linalg.qr((z - z.mean(0)).T, mode="r")
    return r.T[: len(x)], r.T[len(x) :]


def _influence(centred: np.ndarray, shift: np.ndarray, transport: np.ndarray) -> np.ndarray:
    """Twice the Kantorovich potential of normal laws: 2 shift . z + z^T (I - T) z."""
    return 2 * centred @ shift + np.sum(centred * (centred - centred @ transport), axis=1)


def normal_wasserstein(mean: Any, covariance: Any, other_mean: Any, other_covariance: Any) -> float:
    """Return the Wasserstein-2 distance of two normal distributions.

        d^2 = |m - m'|^2 + tr(C + C' - 2 (C^(1/2) C' C^(1/2))^(1/2))

    Args:
      mean: [d].
      covariance: [d, d].
      other_mean: [d].
      other_covariance: [d, d].
    Returns:
      The distance, in units of the mean.
    Raises:
      ValueError: shapes do not fit.
    Source: Dowson & Landau 1982, J. Multivar. Anal. 12(3), Eq. (4).
    """
    means = [np.asarray(value, np.float64) for value in (mean, other_mean)]
    covariances = [np.asarray(value, np.float64) for value in (covariance, other_covariance)]
    d = means[0].shape[:1]
    shapes = [value.shape for value in (*means, *covariances)]
    if shapes != [d, d, 2 * d, 2 * d]:
        raise ValueError(
            "mean, other_mean, covariance, other_covariance: expected [d], [d], [d, d], [d, d], "
            f"got {shapes}"
        )
    root = _power(covariances[0], 0.5)
    cross = np.trace(_power(root @ covariances[1] @ root, 0.5))
    squared = (
        np.sum((means[0] - means[1]) ** 2)
        + np.trace(covariances[0])
        + np.trace(covariances[1])
        - 2 * cross
    )
    return float(np.sqrt(max(squared, 0.0)))


def _transport_map(covariance: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The optimal map of normal laws, T with T C T = C'. T is 0 where C has no variance."""
    root, inverse = _power(covariance, 0.5), _power(covariance, -0.5)
    return inverse @ _power(root @ other @ root, 0.5) @ inverse


def _power(matrix: np.ndarray, power: float) -> np.ndarray:
    """The power of a positive semidefinite matrix, outside its null space."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    return (vectors[:, kept] * values[kept] ** power) @ vectors[:, kept].T
