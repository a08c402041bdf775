"""Two-sample metrics: how far generated samples are from real ones, beside how far real ones are from each other.

Every metric is a function of two samples, metric(generated, real) -> `Estimate`: `compare` sets it
beside the figure of real samples, and `permutation_test` beside its distribution where the two
samples have one law. A metric sees arrays [n, *D] and takes them for vectors; what it should see
instead of the data is a feature function, an option of both.
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
