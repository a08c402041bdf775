"""Two-sample metrics: how far generated samples are from real ones, beside how far real ones are from each other."""

from typing import Any, NamedTuple

import numpy as np

from jaxdiff import _checks


class Estimate(NamedTuple):
    """A figure and its standard error.

    Fields:
      value: the figure.
      standard_error: of the figure, in its units.
    """

    value: float
    standard_error: float


def nearest_neighbour_accuracy(x: Any, y: Any) -> Estimate:
    """Return the leave-one-out accuracy of a 1-nearest-neighbour classifier that tells x from y.

        1/(2n) sum_i [the nearest other point of i is of i's own sample]

    One half for two samples of one distribution; more when they differ, less when one copies the other.

    Args:
      x: first sample, [n, *D].
      y: second sample, [n, *D].
    Returns:
      Estimate; its standard error is that of 2n independent answers.
    Raises:
      ValueError: the samples are not of one shape, or n < 2.
    Source: Lopez-Paz & Oquab 2017, arXiv:1610.06545, Section 3; Xu et al. 2018, arXiv:1806.07755.
    """
    _checks.same_shape("y", y, "x", x)
    if len(x) < 2:
        raise ValueError(f"x: expected at least 2 examples, got {len(x)}")
    points = np.concatenate([np.asarray(part, np.float64).reshape(len(part), -1) for part in (x, y)])
    of_x = np.arange(len(points)) < len(x)
    right = of_x[_nearest_other(points)] == of_x
    value = float(np.mean(right))
    return Estimate(value, float(np.sqrt(value * (1 - value) / len(points))))


def _nearest_other(points: np.ndarray) -> np.ndarray:
    """Index of each point's nearest other point, [N]; float64, since close points' distances are small differences."""
    points = points - points.mean(0)
    squares = np.sum(points**2, axis=1)
    distances = squares[:, None] - 2 * points @ points.T + squares[None, :]
    np.fill_diagonal(distances, np.inf)
    return np.argmin(distances, axis=1)


def sliced_wasserstein(x: Any, y: Any, *, num_slices: int = 1000, seed: int = 0) -> Estimate:
    """Return the sliced Wasserstein-2 distance of two samples.

        SW_2^2 = E_theta W_2^2(theta . x, theta . y),   theta uniform on the sphere

    In one dimension W_2^2 is the mean squared difference of the sorted values.

    Args:
      x: first sample, [n, *D].
      y: second sample, [n, *D].
      num_slices: number of directions.
      seed: of the directions.
    Returns:
      Estimate in units of the data; its standard error is that of the directions, not of the samples: for their
      part compare with the distance of two samples of one law.
    Raises:
      ValueError: the samples are not of one shape, or num_slices < 2.
    Source: Bonneel et al. 2015, J. Math. Imaging Vis. 51(1), Definition 3.
    """
    _checks.same_shape("y", y, "x", x)
    _checks.values("num_slices", num_slices, "at least 2 directions", lambda v: v >= 2)
    flat = [np.asarray(part, np.float64).reshape(len(part), -1) for part in (x, y)]
    theta = np.random.default_rng(seed).normal(size=(num_slices, flat[0].shape[1]))
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    squared = np.concatenate(  # some directions at a time: the projections of all of them may not fit
        [
            np.mean((np.sort(flat[0] @ part.T, axis=0) - np.sort(flat[1] @ part.T, axis=0)) ** 2, axis=0)
            for part in np.array_split(theta, -(-num_slices // 100))
        ]
    )
    value = float(np.sqrt(np.mean(squared)))
    spread = float(np.std(squared, ddof=1) / np.sqrt(num_slices))
    return Estimate(value, spread / (2 * value) if value else 0.0)


def frechet_distance(x: Any, mean: Any, covariance: Any) -> float:
    """Return the Frechet distance between the moments of a sample and given ones.

        d^2 = |m_x - m|^2 + tr(C_x + C - 2 (C_x^(1/2) C C_x^(1/2))^(1/2))

    It is the Wasserstein-2 distance of the normal distributions with these moments.

    Args:
      x: sample, [n, *D].
      mean: [d], d = prod(D).
      covariance: [d, d].
    Returns:
      The distance, in units of the data.
    Raises:
      ValueError: shapes do not fit, or n < 2.
    Source: Dowson & Landau 1982, J. Multivar. Anal. 12(3), Eq. (4).
    """
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    size = flat.shape[1]
    if len(flat) < 2:
        raise ValueError(f"x: expected at least 2 examples, got {len(flat)}")
    if mean.shape != (size,) or covariance.shape != (size, size):
        raise ValueError(
            f"mean, covariance: expected shapes ({size},), ({size}, {size}), got {mean.shape}, {covariance.shape}"
        )
    own = np.atleast_2d(np.cov(flat, rowvar=False))
    root = _square_root(own)
    cross = _square_root(root @ covariance @ root)
    squared = np.sum((flat.mean(0) - mean) ** 2) + np.trace(own) + np.trace(covariance) - 2 * np.trace(cross)
    return float(np.sqrt(max(squared, 0.0)))


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
