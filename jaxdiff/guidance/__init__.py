"""Guidance: from denoisers to a denoiser.

`classifier_free` and `classifier` follow a label. `dps`, `pigdm`, `tmpd`, `mmps` and `conditioned`
follow an observation, approximately: each takes a normal distribution for x_0 given x_t. As the
proposal of `posterior.twisted` each of them is corrected by weights. `dps_step` and `repaint` are
kernels, and approximations too.
"""

from jaxdiff.guidance._classes import classifier, classifier_free
from jaxdiff.guidance._dps_step import dps_step
from jaxdiff.guidance._observed import dps, isotropic_spread, mmps, pigdm, tmpd
from jaxdiff.guidance._repaint import repaint
from jaxdiff.guidance._spread import conditioned

__all__ = [
    "classifier",
    "classifier_free",
    "conditioned",
    "dps",
    "dps_step",
    "isotropic_spread",
    "mmps",
    "pigdm",
    "repaint",
    "tmpd",
]
