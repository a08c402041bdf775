"""Training objectives: one number per example. The caller takes the mean over rows and devices.

simple            squared error of the prediction, or a weighted error of x_0 (`losses.weights`)
vlb, hybrid       negative variational bound of a finite chain, from one random step
continuous_elbo   negative variational bound in continuous time
"""

from jaxdiff.losses import weights
from jaxdiff.losses._bound import BoundTerms, continuous_elbo, schedule_variance_loss
from jaxdiff.losses._chain import hybrid, vlb
from jaxdiff.losses._denoising import denoising_error, simple
from jaxdiff.losses._times import (
    TermHistory,
    log_normal_times,
    loss_aware_terms,
    low_discrepancy_times,
    record_terms,
    term_history,
    uniform_times,
)

__all__ = [
    "BoundTerms",
    "TermHistory",
    "continuous_elbo",
    "denoising_error",
    "hybrid",
    "log_normal_times",
    "loss_aware_terms",
    "low_discrepancy_times",
    "record_terms",
    "schedule_variance_loss",
    "simple",
    "term_history",
    "uniform_times",
    "vlb",
    "weights",
]
