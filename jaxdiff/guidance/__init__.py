"""Guidance: from denoisers to a denoiser.

`classifier_free` and `classifier` follow a label. `dps`, `pigdm`, `tmpd` and `mmps` follow an
observation, approximately: each replaces what x_0 may still be, given x_t, by a normal
distribution. As the proposal of `posterior.twisted` any of them is corrected by weights. `repaint`
is a kernel, and an approximation too.
"""

from jaxdiff.guidance._classes import classifier, classifier_free
from jaxdiff.guidance._observed import (
    conjugate_gradients,
    dps,
    isotropic_spread,
    mmps,
    pigdm,
    shifted,
    tmpd,
)
from jaxdiff.guidance._repaint import repaint

__all__ = [
    "classifier",
    "classifier_free",
    "conjugate_gradients",
    "dps",
    "isotropic_spread",
    "mmps",
    "pigdm",
    "repaint",
    "shifted",
    "tmpd",
]
