"""jaxdiff: functional JAX diffusion models, proved against closed-form oracles."""

import importlib
from typing import Any

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

__version__ = "0.1.0"

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
    """Import what needs more packages where it is first used (PEP 562)."""
    if name == "load":
        return importlib.import_module("jaxdiff.runs").load
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")
