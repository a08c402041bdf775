"""Noise schedules: the log signal-to-noise ratio lambda(t) of x_t = alpha_t x_0 + sigma_t eps.

    lambda_t = log(alpha_t^2 / sigma_t^2),   t in [0, 1], decreasing

    family   alpha                   sigma
    vp       sqrt(sigmoid(lambda))   sqrt(sigmoid(-lambda))
    ve       1                       exp(-lambda / 2)
    flow     sigmoid(lambda / 2)     sigmoid(-lambda / 2)

Lambda is infinite at t = 0 of a DDPM schedule and at t = 1 of a flow. There, and beyond
+-LOG_SNR_LIMIT, it takes that value. Then sigma or alpha is exp(-40), which is far below rounding
next to a number of order one. So every formula in lambda has finite values and finite gradients
without a special case.
"""

from jaxdiff.schedules._base import LOG_SNR_LIMIT, Schedule
from jaxdiff.schedules._betas import cosine_betas, linear_betas, zero_terminal_snr
from jaxdiff.schedules._continuous import cosine, edm, linear, rectified_flow, sigmoid
from jaxdiff.schedules._learned import learned, learned_parameters
from jaxdiff.schedules._table import from_betas

__all__ = [
    "LOG_SNR_LIMIT",
    "Schedule",
    "cosine",
    "cosine_betas",
    "edm",
    "from_betas",
    "learned",
    "learned_parameters",
    "linear",
    "linear_betas",
    "rectified_flow",
    "sigmoid",
    "zero_terminal_snr",
]
