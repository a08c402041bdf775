"""One step of the reverse process, from t to an earlier s.

A kernel is a pair of functions. Every sampler, likelihood estimator and particle method is one:

    init(x_init, t) -> carry                                            leaves [B, ...], or empty
    step(key, carry, x_t, t, s) -> (carry, x_s, log_weight_increment)   [B, *D] and [B], in nats

`key` is one typed key, one a row, or None for a kernel that draws nothing. Rows are independent; t
and s are scalars. A kernel of an unweighted process returns zero increments. Kernels of the ODE
also run from s up to t: `sampling.encode`.

`kernel.step` is the algorithm, with a field for each option: `kernel.replace(eta=1.0)` is the same
kernel with another one, and its repr is one line. `euler` is the Euler method of EDM and
k-diffusion, a step in sigma / alpha; `euler_t` steps in t.
"""

from jaxdiff.kernels._adaptive import adaptive
from jaxdiff.kernels._classic import euler, euler_maruyama, euler_t, heun
from jaxdiff.kernels._corrected import corrected
from jaxdiff.kernels._discrete import ancestral, ddim
from jaxdiff.kernels._exponential import dpmpp_1s, dpmpp_2m, dpmpp_2s, dpmpp_3m, unipc
from jaxdiff.kernels._kernel import Kernel, no_weight, without_memory
from jaxdiff.kernels._reverse import VARIANCES, StepVariance, p_given, p_mean_variance

__all__ = [
    "VARIANCES",
    "Kernel",
    "StepVariance",
    "adaptive",
    "ancestral",
    "corrected",
    "ddim",
    "dpmpp_1s",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "euler",
    "euler_maruyama",
    "euler_t",
    "heun",
    "no_weight",
    "p_given",
    "p_mean_variance",
    "unipc",
    "without_memory",
]
