"""One step of the reverse process, from t to an earlier s.

A kernel is a pair of functions, and every sampler, likelihood estimator and particle method is one:

    init(x_init, t) -> carry                                            what a step remembers, leaves [B, ...] or empty
    step(key, carry, x_t, t, s) -> (carry, x_s, log_weight_increment)   [B, *D] and [B], in nats

`key` is one typed key, one a row, or None for a kernel that draws nothing. Rows are independent; t
and s are scalars. A kernel of an unweighted process returns zero increments. Kernels of the ODE
also run from s up to t: `sampling.encode`.
"""

from jaxdiff.kernels._adaptive import adaptive
from jaxdiff.kernels._classic import euler, euler_maruyama, heun
from jaxdiff.kernels._corrected import corrected
from jaxdiff.kernels._discrete import (
    VARIANCES,
    ancestral,
    as_variance,
    ddim,
    kind_of,
    p_mean_variance,
    reverse_variance,
)
from jaxdiff.kernels._exponential import dpmpp_1s, dpmpp_2m, dpmpp_2s, dpmpp_3m, unipc
from jaxdiff.kernels._kernel import Kernel, is_clean, no_weight, noise, without_memory

__all__ = [
    "VARIANCES",
    "Kernel",
    "adaptive",
    "ancestral",
    "as_variance",
    "corrected",
    "ddim",
    "dpmpp_1s",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "euler",
    "euler_maruyama",
    "heun",
    "is_clean",
    "kind_of",
    "no_weight",
    "noise",
    "p_mean_variance",
    "reverse_variance",
    "unipc",
    "without_memory",
]
