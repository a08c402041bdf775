"""Distances of mean embeddings: the maximum mean discrepancy, and the energy distance, which is one of |x - y|."""

from typing import Any

import numpy as np

from jaxdiff import _checks
from jaxdiff.metrics._samples import Estimate, pair, squared_distances


def energy_distance(x: Any, y: Any) -> Estimate:
    """Return the squared energy distance of two samples, without bias.

        E = 2 E|X - Y| - E|X - X'| - E|Y - Y'|

    Zero for one law and positive for two. The estimate leaves out each point's distance from itself, so that its mean
    is E; it may be negative.

    Args:
      x: first sample, [n, *D].
      y: second sample, [m, *D].
    Returns:
      Estimate, in units of the data.
    Raises:
      ValueError: the samples are of different event shapes, have fewer than 2 examples, or are not finite.
    Numerics: the standard error is as in `mmd`.
    Source: Szekely & Rizzo 2013, J. Stat. Plan. Inference 143(8), Eq. (2.2); as a discrepancy: Sejdinovic et al. 2013,
      arXiv:1207.6076.
    """
    x, y = pair(x, y)
    within, across, within_y = (np.sqrt(squared_distances(*both)) for both in ((x, x), (x, y), (y, y)))
    return _discrepancy(-within, -across, -within_y)


def mmd(x: Any, y: Any, *, bandwidths: Any = None) -> Estimate:
    """Return the squared maximum mean discrepancy of two samples, without bias.

        MMD^2 = E k(X, X') - 2 E k(X, Y) + E k(Y, Y'),   k(x, y) = mean_b exp(-|x - y|^2 / (2 b^2))

    Args:
      x: first sample, [n, *D].
      y: second sample, [m, *D].
      bandwidths: one or several b, in units of the data; None is the median distance of the pooled sample's points,
        which two halves of a pooled sample share, as a permutation test needs it.
    Returns:
      Estimate, between -1 and 2; its mean is MMD^2, and it may be negative.
    Raises:
      ValueError: a bandwidth is not positive; the samples are of different event shapes, have fewer than 2 examples, or
        are not finite.
    Numerics: the standard error is of first order in the two samples' projections. For two samples of one law, where
      that vanishes, it only has the right magnitude, O(1 / n): `permutation_test` has the law of the figure there.
    Source: Gretton et al. 2012, JMLR 13, Eq. (3); standard error: Serfling 1980, Section 5.5.1.
    """
    x, y = pair(x, y)
    squared = [squared_distances(*both) for both in ((x, x), (x, y), (y, y))]
    if bandwidths is None:
        bandwidths = _median_distance(*squared)
    bandwidths = np.atleast_1d(np.asarray(bandwidths, np.float64))
    _checks.values("bandwidths", bandwidths, "positive widths", lambda b: b > 0)
    return _discrepancy(*(np.mean([np.exp(-part / (2 * b**2)) for b in bandwidths], axis=0) for part in squared))


def _median_distance(within: np.ndarray, across: np.ndarray, within_y: np.ndarray) -> float:
    """Median distance of two points of the pooled sample; 1 where more than half are the same point."""
    parts = (within[np.triu_indices(len(within), 1)], across.ravel(), within_y[np.triu_indices(len(within_y), 1)])
    return float(np.sqrt(np.median(np.concatenate(parts)))) or 1.0


def _discrepancy(within: np.ndarray, across: np.ndarray, within_y: np.ndarray) -> Estimate:
    """The U-statistic of kernel matrices [n, n], [n, m] and [m, m]."""
    n, m = across.shape
    near, near_y = ((np.sum(k, axis=1) - np.diag(k)) / (len(k) - 1) for k in (within, within_y))
    value = np.mean(near) + np.mean(near_y) - 2 * np.mean(across)
    # Half the first variation of the figure in each sample: how far a point moves it.
    moves, moves_y = near - np.mean(across, axis=1), near_y - np.mean(across, axis=0)
    variance = 4 * (np.var(moves, ddof=1) / n + np.var(moves_y, ddof=1) / m)
    return Estimate(float(value), float(np.sqrt(variance)))
