"""The reverse kernels by name, as the scripts offer them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

import jaxdiff as jd
from jaxdiff import kernels


class Sampler(NamedTuple):
    """A kernel and what it costs.

    Fields:
      make: (denoiser, schedule, noise) -> Kernel; noise in [0, 1] is the kernel's own option.
      calls: network calls a step.
      noise: the kernel's name for its noise option; "" if the kernel does not have one.
      ode: whether it solves the probability-flow ODE where the noise is 0.
    """

    make: Callable[[Any, jd.Schedule, Any], jd.Kernel]
    calls: int = 1
    noise: str = ""
    ode: bool = True


def _corrected(denoiser: Any, schedule: jd.Schedule, noise: Any) -> jd.Kernel:
    return kernels.corrected(kernels.ddim(denoiser, schedule, noise), denoiser, schedule, 0.1)


SAMPLERS = {
    "ancestral": Sampler(lambda d, s, n: kernels.ancestral(d, s), ode=False),
    "ddim": Sampler(lambda d, s, n: kernels.ddim(d, s, n), noise="eta"),
    "euler_t": Sampler(lambda d, s, n: kernels.euler_t(d, s)),
    "heun": Sampler(lambda d, s, n: kernels.heun(d, s, n), 2, "churn, gamma of each step"),
    "dpmpp_2s": Sampler(lambda d, s, n: kernels.dpmpp_2s(d, s), 2),
    "dpmpp_2m": Sampler(lambda d, s, n: kernels.dpmpp_2m(d, s, n), noise="tau"),
    "dpmpp_3m": Sampler(lambda d, s, n: kernels.dpmpp_3m(d, s, n), noise="tau"),
    "dpmpp_2m_sde": Sampler(lambda d, s, n: kernels.dpmpp_2m(d, s, 1.0), ode=False),
    "unipc_2": Sampler(lambda d, s, n: kernels.unipc(d, s, 2)),
    "unipc_3": Sampler(lambda d, s, n: kernels.unipc(d, s, 3)),
    "euler_maruyama": Sampler(lambda d, s, n: kernels.euler_maruyama(d, s), ode=False),
    "corrected": Sampler(_corrected, 2, "eta of the predictor", ode=False),
}
SamplerName = Literal[
    "ancestral", "ddim", "euler_t", "heun", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde",
    "unipc_2", "unipc_3", "euler_maruyama", "corrected",
]  # fmt: skip
DEFAULT: SamplerName = "unipc_2"
STEPS = 20  # as `jaxdiff.draw` has them
GridName = Literal["uniform", "quadratic", "log_snr", "karras"]


def make_kernel(
    name: str, denoiser: Any, schedule: jd.Schedule, noise: Any, *, variance: str = "small"
) -> jd.Kernel:
    """The kernel of a name; only the ancestral kernel uses the reverse variance."""
    if name == "ancestral":
        return kernels.ancestral(denoiser, schedule, variance)
    return SAMPLERS[name].make(denoiser, schedule, noise)


def require_noise(name: str, noise: float) -> None:
    """Refuse noise for a sampler that has no such option."""
    if noise and not SAMPLERS[name].noise:
        raise ValueError(f"noise: expected none with --sampler {name}, which has no such option")


def make_grid(schedule: jd.Schedule, grid: str, steps: int) -> jax.Array:
    """The times that a sampler visits, by the name of the grid."""
    if grid in ("uniform", "quadratic"):
        return getattr(jd.grids, grid)(steps)
    return getattr(jd.grids, grid)(schedule, steps)
