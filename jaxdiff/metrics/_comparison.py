"""Reference values of a metric: the real-vs-real floor, and the permutation distribution."""

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
    """A metric, and its distribution for two samples of one law.

    Fields:
      estimate: metric(x, y).
      null: metrics of random splits of the pooled sample, [num_permutations].
      p_value: probability of a value at least as extreme for two samples of one law.
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
    """Compare a metric of generated samples with its floor: the same metric of real samples.

        metric(f(x), f(real)),   metric(f(other_real), f(real))

    Args:
      metric: (sample, sample) -> Estimate, such as `mmd`, or `partial(precision,
        num_neighbours=5)`.
      x: generated sample, [n, *D].
      real: real sample, [m, *D].
      other_real: other real examples, at least n. The first n are used, because the bias of a
        metric depends on the number.
      features: f, from a sample [n, *D] to the features that the metric compares, [n, *F]. None is
        the identity.
    Returns:
      Comparison.
    Raises:
      ValueError: other_real has fewer examples than x.
    """
    if len(other_real) < len(x):
        raise ValueError(
            f"other_real: expected at least as many examples as x, {len(x)}, got {len(other_real)}"
        )
    x, real, other_real = (
        _features(sample, features) for sample in (x, real, other_real[: len(x)])
    )
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

        p = (1 + #{b: metric(random split b of the pooled sample) >= metric(x, y)}) / (1 + B)

    B is num_permutations. The test is valid at any sample size, because under one law all splits of
    the pooled sample are equally likely.

    Args:
      metric: (sample, sample) -> Estimate. It is evaluated once for each permutation.
      x: first sample, [n, *D].
      y: second sample, [m, *D].
      num_permutations: B, the number of random splits. The smallest p-value is 1 / (1 + B).
      alternative: the values that indicate a difference: "greater" (distances, accuracies), "less"
        (`precision`, `recall`, `parzen_log_likelihood`) or "two-sided".
      features: from a sample [n, *D] to the features that the metric compares, [n, *F]. None is the
        identity.
      seed: seed of the splits.
    Returns:
      PermutationTest.
    Raises:
      ValueError: num_permutations < 1, or alternative is unknown.
    Source: Gretton et al. 2012, JMLR 13, Section 8.1; the added ones: Phipson & Smyth 2010,
    arXiv:1603.05766.
    """
    _checks.positive_int("num_permutations", num_permutations)
    _checks.choice("alternative", alternative, ALTERNATIVES)
    x, y = _features(x, features), _features(y, features)
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


def _features(sample: Any, features: Callable | None) -> np.ndarray:
    return np.asarray(sample if features is None else features(sample))
