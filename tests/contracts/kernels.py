"""What every reverse kernel must satisfy; each one is listed once in KERNELS."""

from collections.abc import Callable
from typing import NamedTuple

from helpers import slow

import jaxdiff as jd
from jaxdiff import kernels


class Contract(NamedTuple):
    """A kernel as make(denoiser, schedule), and what is special about it.

    Fields:
      make: (denoiser, schedule) -> Kernel.
      deterministic: whether it ignores its key.
      order: of a deterministic kernel in the step size, for the whole run; None for the rest.
      continuous: whether a step of length zero is the identity.
      denoises: whether a step to s = 0, where there is no noise, returns the denoised state.
    """

    make: Callable[..., jd.Kernel]
    deterministic: bool
    order: int | None = None
    continuous: bool = True
    denoises: bool = True


KERNELS = {
    "ancestral_small": Contract(kernels.ancestral, False),
    "ancestral_large": Contract(lambda d, s: kernels.ancestral(d, s, "large"), False),
    "ancestral_half": Contract(lambda d, s: kernels.ancestral(d, s, 0.5), False),
    "ddim": Contract(kernels.ddim, True, 1),
    "ddim_half": Contract(lambda d, s: kernels.ddim(d, s, 0.5), False),
    "euler_t": Contract(kernels.euler_t, True, 1, denoises=False),
    "heun": Contract(kernels.heun, True, 2),
    "heun_churn": Contract(
        lambda d, s: kernels.heun(d, s, 0.1), False, continuous=False, denoises=False
    ),
    "euler_maruyama": Contract(kernels.euler_maruyama, False, denoises=False),
    "dpmpp_1s": Contract(kernels.dpmpp_1s, True, 1),
    "dpmpp_2s": Contract(kernels.dpmpp_2s, True, 2),
    "dpmpp_2m": Contract(kernels.dpmpp_2m, True, 2),
    "dpmpp_3m": Contract(kernels.dpmpp_3m, True, 3),
    "sde_dpmpp_2m": Contract(lambda d, s: kernels.dpmpp_2m(d, s, 1.0), False),
    "sde_dpmpp_3m": Contract(lambda d, s: kernels.dpmpp_3m(d, s, 1.0), False),
    "unipc_1": Contract(lambda d, s: kernels.unipc(d, s, 1), True, 2),
    "unipc_2": Contract(kernels.unipc, True, 3),
    "unipc_3": Contract(lambda d, s: kernels.unipc(d, s, 3), True, 4),
    "corrected": Contract(
        lambda d, s: kernels.corrected(kernels.ddim(d, s), d, s), False, continuous=False
    ),
    "langevin": Contract(
        lambda d, s: kernels.corrected(kernels.ancestral(d, s), d, s, 0.2, num_corrections=2),
        False,
        continuous=False,
    ),
    "adaptive": Contract(kernels.adaptive, True, denoises=False),
}

# These are expensive to compile: they are left out of chex's variants.
COSTLY = {"adaptive", "langevin", "unipc_1", "sde_dpmpp_3m", "ancestral_half"}
# The contract of these, and of close relatives of others, is proved behind the slow marker.
SLOW = COSTLY | {
    "ancestral_large", "ddim_half", "dpmpp_1s", "dpmpp_2m", "dpmpp_2s", "euler_t", "euler_maruyama", "heun_churn", "sde_dpmpp_2m", "unipc_3",
    "corrected", "dpmpp_3m",
}  # fmt: skip


def names(holds: Callable[[Contract], bool] = lambda contract: True) -> list:
    """The kernels for which a predicate holds, as parameters of a test."""
    return [
        slow(name) if name in SLOW else name
        for name, contract in KERNELS.items()
        if holds(contract)
    ]
