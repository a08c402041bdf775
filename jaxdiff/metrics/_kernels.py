"""The maximum mean discrepancy, and the energy distance, which is one with the kernel -|x - y|."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist

from jaxdiff import _checks
from jaxdiff.metrics._samples import Estimate, blocks, pair, require_pairs, squared_distances


def energy_distance(x: Any, y: Any) -> Estimate:
    """Return an unbiased estimate of the squared energy distance of two samples.

        E = 2 E|X - Y| - E|X - X'| - E|Y - Y'|

    E is 0 for one law and positive for two. The estimate leaves out the distance of a point from
    itself: its mean is E, and it may be negative.

    Args:
      x: first sample, [n, *D].
      y: second sample, [m, *D].
    Returns:
      Estimate, in units of the data.
    Raises:
      ValueError: the samples are of different event shapes, have fewer than 2 examples, or are not
        finite.
    Numerics: the standard error is as in `mmd`.
    Source: Szekely & Rizzo 2013, J. Stat. Plan. Inference 143(8), Eq. (2.2); as a discrepancy:
      Sejdinovic et al. 2013, arXiv:1207.6076.
    """
    return _discrepancy(lambda squared: -np.sqrt(squared), *pair(x, y))


def mmd(x: Any, y: Any, *, bandwidths: Any = None) -> Estimate:
    """Return an unbiased estimate of the squared maximum mean discrepancy of two samples.

        MMD^2 = E k(X, X') - 2 E k(X, Y) + E k(Y, Y'),   k(x, y) = mean_b exp(-|x - y|^2 / (2 b^2))

    Args:
      x: first sample, [n, *D].
      y: second sample, [m, *D].
      bandwidths: one or several b, in units of the data. None is the median distance of points of
        the pooled sample. It is the same for all splits of that sample, as a permutation test
        needs.
    Returns:
      Estimate, between -1 and 2. Its mean is MMD^2, and it may be negative.
    Raises:
      ValueError: a bandwidth is not positive; the samples are of different event shapes, have fewer
        than 2 examples, or are not finite; bandwidths is None and there are more than 8192 points.
    Numerics: the standard error is of first order in the projections of the two samples. For two
      samples of one law the first order vanishes, and the standard error only has the right order
      of magnitude, O(1 / n). `permutation_test` gives the law of the estimate there.
    Source: Gretton et al. 2012, JMLR 13, Eq. (3); standard error: Serfling 1980, Section 5.5.1.
    """
    x, y = pair(x, y)
    if bandwidths is None:
        bandwidths = _median_distance(np.concatenate([x, y]))
    bandwidths = np.atleast_1d(np.asarray(bandwidths, np.float64))
    _checks.values("bandwidths", bandwidths, "positive widths", lambda b: b > 0)

    def kernel(squared: np.ndarray) -> np.ndarray:
        return np.mean([np.exp(-squared / (2 * b**2)) for b in bandwidths], axis=0)

    return _discrepancy(kernel, x, y)


def _median_distance(points: np.ndarray) -> float:
    """The median distance of two points; 1 where more than half of the points are the same."""
    require_pairs("bandwidths", points, points, "or give the bandwidths")
    return float(np.median(pdist(points))) or 1.0


def _discrepancy(
    kernel: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray
) -> Estimate:
    """The U-statistic of a kernel, a function of squared distances."""
    n, m = len(x), len(y)
    near, near_y = (_sums(kernel, z, z)[0] / (len(z) - 1) for z in (x, y))
    across, across_y = _sums(kernel, x, y)
    value = np.mean(near) + np.mean(near_y) - 2 * np.mean(across) / m
    # Half the first variation of the estimate in each sample: the influence of a point.
    moves, moves_y = near - across / m, near_y - across_y / n
    variance = 4 * (np.var(moves, ddof=1) / n + np.var(moves_y, ddof=1) / m)
    return Estimate(float(value), float(np.sqrt(variance)))


def _sums(
    kernel: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel's matrix over its columns, [n], and its rows, [m], block by block.

    For one sample with itself the diagonal is left out.
    """
    over_y, over_x, start = [], np.zeros(len(y)), 0
    for part in blocks(x, y):
        values, row = kernel(squared_distances(part, y)), np.arange(len(part))
        if x is y:
            values[row, start + row] = 0
        over_y.append(np.sum(values, axis=1))
        over_x += np.sum(values, axis=0)
        start += len(part)
    return np.concatenate(over_y), over_x
