"""A figure beside what it would be without a difference: the real-vs-real floor, and the permutation null."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxdiff import _checks
from jaxdiff.metrics._samples import Estimate

ALTERNATIVES = ("greater", "less", "two-sided")


class Comparison(NamedTuple):
    """A metric of generated samples and the same metric of real ones.

    Fields:
      estimate: metric(x, real).
      floor: metric(other_real, real), from as many examples.
    """

    estimate: Estimate
    floor: Estimate


class PermutationTest(NamedTuple):
    """A metric and its distribution where both samples have one law.

    Fields:
      estimate: metric(x, y).
      null: the figures of the pooled sample, split at random, [num_permutations].
      p_value: probability of a figure at least as extreme where both samples have one law.
    """

    estimate: Estimate
    null: np.ndarray
    p_value: float


def compare(
    metric: Callable[..., Estimate],
    x: Any,
    real: Any,
    other_real: Any,
    *,
    features: Callable | None = None,
) -> Comparison:
    """Set a metric of generated samples beside its floor: the same metric of real samples.

        metric(f(x), f(real)),   metric(f(other_real), f(real))

    Args:
      metric: (sample, sample) -> Estimate, such as `mmd`, or `partial(precision,
        num_neighbours=5)`.
      x: generated sample, [n, *D].
      real: real sample, [m, *D].
      other_real: other real examples, at least n of them: the metrics' bias depends on the number,
        so n are used.
      features: f, from a sample [n, *D] to what the metric sees, [n, *F]; None is the identity.
    Returns:
      Comparison.
    Raises:
      ValueError: other_real has fewer examples than x.
    """
    if len(other_real) < len(x):
        raise ValueError(
            f"other_real: expected at least as many examples as x, {len(x)}, got {len(other_real)}"
        )
    x, real, other_real = (_seen(sample, features) for sample in (x, real, other_real[: len(x)]))
    return Comparison(metric(x, real), metric(other_real, real))


def permutation_test(
    metric: Callable[..., Estimate],
    x: Any,
    y: Any,
    *,
    num_permutations: int = 199,
    alternative: str = "greater",
    features: Callable | None = None,
    seed: int = 0,
) -> PermutationTest:
    """Test whether two samples have one law, with any metric as the statistic.

        p = (1 + #{b: metric(pooled sample, split at random)_b >= metric(x, y)}) / (1 +
        num_permutations)

    Valid at any sample size, since under one law all splits of the pooled sample are equally
    likely.

    Args:
      metric: (sample, sample) -> Estimate; it is evaluated once a permutation.
      x: first sample, [n, *D].
      y: second sample, [m, *D].
      num_permutations: number of random splits; the smallest p-value is 1 / (1 + this).
      alternative: which figures speak for a difference: "greater" (distances, accuracies), "less"
        (`precision`, `recall`, `parzen_log_likelihood`) or "two-sided".
      features: from a sample [n, *D] to what the metric sees, [n, *F]; None is the identity.
      seed: of the splits.
    Returns:
      PermutationTest.
    Raises:
      ValueError: num_permutations < 1, or alternative is unknown.
    Source: Gretton et al. 2012, JMLR 13, Section 8.1; the added ones: Phipson & Smyth 2010,
    arXiv:1603.05766.
    """
    _checks.positive_int("num_permutations", num_permutations)
    _checks.choice("alternative", alternative, ALTERNATIVES)
    x, y = _seen(x, features), _seen(y, features)
    pooled = np.concatenate([x, y])

    def statistic(i: np.ndarray, j: np.ndarray) -> float:
        return metric(pooled[i], pooled[j]).value

    rows = np.arange(len(pooled))
    result = stats.permutation_test(
        (rows[: len(x)], rows[len(x) :]),
        statistic,
        n_resamples=num_permutations,
        alternative=alternative,
        vectorized=False,
        rng=np.random.default_rng(seed),
    )
    return PermutationTest(metric(x, y), result.null_distribution, float(result.pvalue))


def _seen(sample: Any, features: Callable | None) -> np.ndarray:
    return np.asarray(sample if features is None else features(sample))
