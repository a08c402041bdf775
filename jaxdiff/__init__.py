"""jaxdiff: functional JAX diffusion models, proved against closed-form oracles.

Everything but data, interop, models, runs, testing and training is imported at once. Those six are
imported where they are first used, so that `import jaxdiff` needs no network, data or training
library.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxdiff import (
    binomial,
    categorical,
    decoders,
    drawing,
    forward,
    grids,
    guidance,
    kernels,
    likelihood,
    losses,
    metrics,
    moves,
    observations,
    oracles,
    posterior,
    prediction,
    resampling,
    sampling,
    schedules,
    work,
    zoo,
)
from jaxdiff.categorical import make_categorical_denoiser
from jaxdiff.chain import Chain
from jaxdiff.drawing import draw
from jaxdiff.forward import q_posterior, q_sample, q_step
from jaxdiff.kernels import Kernel, p_mean_variance
from jaxdiff.normal import Normal
from jaxdiff.prediction import Denoised, make_denoiser
from jaxdiff.sampling import Samples, prior_sample, sample
from jaxdiff.schedules import Schedule
from jaxdiff.zoo import pretrained

if TYPE_CHECKING:
    from jaxdiff import data as data
    from jaxdiff import interop as interop
    from jaxdiff import models as models
    from jaxdiff import runs as runs
    from jaxdiff import testing as testing
    from jaxdiff import training as training
    from jaxdiff.runs import load as load

__version__ = "0.1.0"

LATER = frozenset({"data", "interop", "models", "runs", "testing", "training"})

__all__ = [
    "Chain",
    "Denoised",
    "Kernel",
    "Normal",
    "Samples",
    "Schedule",
    "binomial",
    "categorical",
    "decoders",
    "draw",
    "drawing",
    "forward",
    "grids",
    "guidance",
    "kernels",
    "likelihood",
    "losses",
    "make_categorical_denoiser",
    "make_denoiser",
    "metrics",
    "moves",
    "observations",
    "oracles",
    "p_mean_variance",
    "posterior",
    "prediction",
    "pretrained",
    "prior_sample",
    "q_posterior",
    "q_sample",
    "q_step",
    "resampling",
    "sample",
    "sampling",
    "schedules",
    "work",
    "zoo",
]


def __getattr__(name: str) -> Any:
    """Import a package of LATER, or `runs.load`, where it is first used (PEP 562)."""
    if name == "load":
        return importlib.import_module("jaxdiff.runs").load
    if name in LATER:
        return importlib.import_module(f"jaxdiff.{name}")
    homes = [home for home in __all__ if name in getattr(globals()[home], "__all__", ())]
    hint = f": did you mean jd.{homes[0]}.{name}?" if homes else ""
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    """List what is here, with what is imported later."""
    return sorted({*globals(), *LATER, "load"})
