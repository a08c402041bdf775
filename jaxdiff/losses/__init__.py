"""Training objectives: one number per example, so that the caller decides what is averaged over which devices."""

from jaxdiff.losses._bound import BoundTerms, continuous_elbo, spend_times_well
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
from jaxdiff.losses._weights import edm, min_snr, sigmoid, snr

__all__ = [
    "BoundTerms",
    "TermHistory",
    "continuous_elbo",
    "denoising_error",
    "edm",
    "hybrid",
    "log_normal_times",
    "loss_aware_terms",
    "low_discrepancy_times",
    "min_snr",
    "record_terms",
    "sigmoid",
    "simple",
    "snr",
    "spend_times_well",
    "term_history",
    "uniform_times",
    "vlb",
]
