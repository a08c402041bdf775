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
