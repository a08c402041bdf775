"""jaxdiff: functional JAX diffusion models, proved against closed-form oracles.

Everything is imported where it is first used. So `import jaxdiff` takes no time, and a command can
set up its process before jax is imported. The core works without the libraries of networks, data
and training.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from jaxdiff import data as data
    from jaxdiff import interop as interop
    from jaxdiff import models as models
    from jaxdiff import runs as runs
    from jaxdiff import testing as testing
    from jaxdiff import training as training
    from jaxdiff.categorical import make_categorical_denoiser
    from jaxdiff.chain import Chain
    from jaxdiff.drawing import draw
    from jaxdiff.forward import q_posterior, q_sample, q_step
    from jaxdiff.kernels import Kernel, p_mean_variance
    from jaxdiff.normal import Normal
    from jaxdiff.prediction import Denoised, make_denoiser
    from jaxdiff.runs import load as load
    from jaxdiff.sampling import Samples, prior_sample, sample
    from jaxdiff.schedules import Schedule
    from jaxdiff.zoo import pretrained

__version__ = "0.1.0"

# Where the names of the first level come from.
HOMES = {
    "Chain": "chain",
    "Denoised": "prediction",
    "Kernel": "kernels",
    "Normal": "normal",
    "Samples": "sampling",
    "Schedule": "schedules",
    "draw": "drawing",
    "load": "runs",
    "make_categorical_denoiser": "categorical",
    "make_denoiser": "prediction",
    "p_mean_variance": "kernels",
    "pretrained": "zoo",
    "prior_sample": "sampling",
    "q_posterior": "forward",
    "q_sample": "forward",
    "q_step": "forward",
    "sample": "sampling",
}

# What needs more than the core's libraries: `from jaxdiff import *` leaves it out.
EXTRA = frozenset({"data", "interop", "load", "models", "runs", "testing", "training"})

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
    """Import a name where it is first used (PEP 562)."""
    if name in HOMES:
        found = getattr(importlib.import_module(f"jaxdiff.{HOMES[name]}"), name)
        globals()[name] = found
        return found
    if name in EXTRA or name in __all__:
        return importlib.import_module(f"jaxdiff.{name}")
    homes = [] if name.startswith("_") else [home for home in __all__ if name in _public(home)]
    hint = f": did you mean jd.{homes[0]}.{name}?" if homes else ""
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}{hint}")


def _public(home: str) -> Any:
    """The names that a module of the first level says are public; none if it does not say."""
    if home in HOMES:
        return ()
    return getattr(importlib.import_module(f"jaxdiff.{home}"), "__all__", ())


def __dir__() -> list[str]:
    """List what is here, with what is not imported yet."""
    return sorted({*globals(), *__all__, *EXTRA})
