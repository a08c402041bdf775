"""What every reverse kernel must satisfy; each one is listed once in KERNELS."""

from collections.abc import Callable
from typing import NamedTuple

import jaxdiff as jd


class Contract(NamedTuple):
    """A kernel as make(denoiser, schedule), and what is special about it."""

    make: Callable[..., jd.Kernel]
    deterministic: bool


KERNELS = {
    "ancestral_small": Contract(jd.kernels.ancestral, False),
    "ancestral_large": Contract(lambda d, s: jd.kernels.ancestral(d, s, "large"), False),
    "ddim": Contract(jd.kernels.ddim, True),
    "ddim_half": Contract(lambda d, s: jd.kernels.ddim(d, s, 0.5), False),
}
