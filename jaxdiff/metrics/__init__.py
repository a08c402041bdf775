"""Two-sample metrics: the distance of generated samples from real ones, and its real-vs-real floor.

Every metric is a function of two samples, metric(generated, real) -> `Estimate`. `compare` gives
the metric of real samples beside it. `permutation_test` gives its distribution for two samples of
one law. A metric takes arrays [n, *D] as vectors. Both functions have an option `features`, which
maps data to the vectors that a metric compares.
"""

from jaxdiff.metrics._classifiers import (
    classifier_accuracy,
    nearest_neighbour_accuracy,
    precision,
    recall,
)
from jaxdiff.metrics._comparison import Comparison, PermutationTest, compare, permutation_test
from jaxdiff.metrics._kernels import energy_distance, mmd
from jaxdiff.metrics._parzen import parzen_log_likelihood, parzen_width
from jaxdiff.metrics._samples import Estimate
from jaxdiff.metrics._transport import (
    frechet_distance,
    normal_wasserstein,
    sliced_wasserstein,
    wasserstein,
)

__all__ = [
    "Comparison",
    "Estimate",
    "PermutationTest",
    "classifier_accuracy",
    "compare",
    "energy_distance",
    "frechet_distance",
    "mmd",
    "nearest_neighbour_accuracy",
    "normal_wasserstein",
    "parzen_log_likelihood",
    "parzen_width",
    "permutation_test",
    "precision",
    "recall",
    "sliced_wasserstein",
    "wasserstein",
]
