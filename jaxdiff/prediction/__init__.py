"""What a network predicts, and how it becomes a denoiser: every prediction leads to x_0.

    eps        x_t = alpha x_0 + sigma eps
    x0         x_0
    v          alpha eps - sigma x_0
    score      -eps / sigma                     = grad log q(x_t | x_0)
    velocity   alpha' x_0 + sigma' eps          = dx_t / dt
    edm        F in x_0 = c_skip x_t + c_out F(c_in x_t), the preconditioned network

Each is linear in (x_t, x_0), so a conversion goes to x_0 and back: 2 K functions, not K^2.
"""

from jaxdiff.prediction._conversions import (
    CONVERTIBLE,
    PREDICTIONS,
    Affine,
    affine,
    check_start,
    convert,
    from_x_0,
    target,
    to_x_0,
)
from jaxdiff.prediction._denoiser import (
    THRESHOLDS,
    Denoised,
    clip,
    dynamic_threshold,
    edm_input,
    make_denoiser,
    x_0_of,
)

__all__ = [
    "CONVERTIBLE",
    "PREDICTIONS",
    "THRESHOLDS",
    "Affine",
    "Denoised",
    "affine",
    "check_start",
    "clip",
    "convert",
    "dynamic_threshold",
    "edm_input",
    "from_x_0",
    "make_denoiser",
    "target",
    "to_x_0",
    "x_0_of",
]
