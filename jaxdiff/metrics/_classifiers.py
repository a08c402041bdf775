"""Two-sample metrics from classifiers and nearest neighbours."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxdiff import _checks
from jaxdiff.metrics._samples import Estimate, blocks, pair, proportion, squared_distances


def nearest_neighbour_accuracy(x: Any, y: Any) -> Estimate:
    """Return the leave-one-out accuracy of a 1-nearest-neighbour classifier that tells x from y.

        1/(2n) sum_i [the nearest other point of i is of i's own sample]

    One half for two samples of one distribution. More means that they differ, less that one copies
    the other.

    Args:
      x: first sample, [n, *D].
      y: second sample, [n, *D].
    Returns:
      Estimate. The standard error is that of 2n independent answers.
    Raises:
      ValueError: the samples are not of one shape, n < 2, or they are not finite.
    Source: Lopez-Paz & Oquab 2017, arXiv:1610.06545, Section 3; Xu et al. 2018, arXiv:1806.07755.
    """
    _checks.same_shape("y", y, "x", x)
    points = np.concatenate(pair(x, y))
    of_x = np.arange(len(points)) < len(x)
    nearest, start = [], 0
    for part in blocks(points, points):
        distances, row = squared_distances(part, points), np.arange(len(part))
        distances[row, start + row] = np.inf
        nearest.append(np.argmin(distances, axis=1))
        start += len(part)
    return proportion(of_x[np.concatenate(nearest)] == of_x)


def classifier_accuracy(x: Any, y: Any, *, fit: Callable, seed: int = 0) -> Estimate:
    """Return the held-out accuracy of a classifier that is trained to tell x from y (C2ST).

        1/n sum over held-out z [predict(z) = the sample of z]
        predict = fit(half of x and y, their labels)

    For two samples of one law and one size the number of right answers is binomial with probability
    one half. The accuracy then has the standard deviation 1 / (2 sqrt(n)) for n held-out examples,
    with any classifier.

    Args:
      x: first sample, [n, *D], label 0.
      y: second sample, [n, *D], label 1.
      fit: (points [n, d], labels [n]) -> (points [k, d] -> labels [k]). With scikit-learn:
        `lambda z, label: KNeighborsClassifier(20).fit(z, label).predict`.
      seed: seed of the split in halves.
    Returns:
      Estimate.
    Raises:
      ValueError: the samples are not of one shape, n < 4, or they are not finite; the classifier
        returns another shape.
      TypeError: fit is not a function.
    Source: Lopez-Paz & Oquab 2017, arXiv:1610.06545, Section 3.
    """
    _checks.same_shape("y", y, "x", x)
    if not callable(fit):
        raise TypeError(f"fit: expected a function, got {type(fit).__name__}")
    random = np.random.default_rng(seed)
    half = len(x) // 2
    shuffled = [random.permutation(sample) for sample in pair(x, y, least=4)]
    train, test = (
        np.concatenate([sample[part] for sample in shuffled])
        for part in (slice(half), slice(half, None))
    )
    predicted = np.asarray(fit(train, np.repeat([0, 1], half))(test))
    labels = np.repeat([0, 1], len(test) // 2)
    if predicted.shape != labels.shape:
        raise ValueError(
            f"fit: expected a classifier that returns shape {labels.shape}, got {predicted.shape}"
        )
    return proportion(predicted == labels)


def precision(x: Any, y: Any, *, num_neighbours: int = 3) -> Estimate:
    """Return the fraction of generated samples that lie among the real ones.

        1/n sum_i [x_i in M(y)],   M(y) = union_j ball(y_j, r_j)

    r_j is the distance of y_j from its k-th nearest other point of y.

    Args:
      x: generated sample, [n, *D], usually features.
      y: real sample, [m, *D].
      num_neighbours: k.
    Returns:
      Estimate. For two samples of one law it is below 1 and depends on k and m: see `compare`. The
      standard error is that of n independent answers, given the real sample. The ball of a single
      outlier covers much, so precision is a weak test for a difference.
    Raises:
      ValueError: num_neighbours < 1 or not below m; the samples are of different event shapes, or
        not finite.
    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, Eqs. (1) and (2).
    """
    x, y = pair(x, y)
    _checks.positive_int("num_neighbours", num_neighbours)
    if num_neighbours >= len(y):
        raise ValueError(
            f"num_neighbours: expected less than the {len(y)} points of y, got {num_neighbours}"
        )
    k = num_neighbours  # entry 0 of the sorted distances is that of the point from itself
    radius = np.concatenate(
        [np.partition(squared_distances(part, y), k, axis=1)[:, k] for part in blocks(y, y)]
    )
    return proportion(
        np.concatenate(
            [np.any(squared_distances(part, y) <= radius, axis=1) for part in blocks(x, y)]
        )
    )


def recall(x: Any, y: Any, *, num_neighbours: int = 3) -> Estimate:
    """Return the fraction of real samples that lie among the generated ones.

        1/m sum_j [y_j in M(x)],   M as in `precision`

    Args:
      x: generated sample, [n, *D], usually features.
      y: real sample, [m, *D].
      num_neighbours: k.
    Returns:
      Estimate: `precision` with the samples exchanged.
    Raises:
      ValueError: num_neighbours < 1 or not below n; the samples are of different event shapes, or
        not finite.
    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, Eqs. (1) and (2).
    """
    return precision(y, x, num_neighbours=num_neighbours)
