"""Networks that were trained elsewhere, and ours for other people: safetensors, never pickles.

trained = jd.interop.diffusers("ddpm-cifar10-32")  # samples, likelihoods and posteriors of it
jd.interop.save(trained, "mine", data="...", licence="...")
content = jd.interop.export_sampler(trained)  # runs where JAX is, without jaxdiff
"""

from os import PathLike
from pathlib import Path

from jaxdiff.interop._adm import guided_diffusion
from jaxdiff.interop._diffusers import diffusers, is_diffusers, scheduler
from jaxdiff.interop._program import export_sampler
from jaxdiff.interop._saved import is_saved, load, save
from jaxdiff.interop._scheduler import Scheduler
from jaxdiff.zoo import Trained

__all__ = [
    "Scheduler",
    "diffusers",
    "export_sampler",
    "guided_diffusion",
    "load",
    "recognised",
    "save",
    "scheduler",
]


def recognised(folder: str | PathLike) -> Trained | None:
    """Load a folder that `save` wrote, or that `diffusers` reads.

    Args:
      folder: any path.
    Returns:
      The network; None if the path is of neither kind.
    Raises:
      FileNotFoundError: the folder is of one kind, and lacks a file.
      ValueError: the folder is of one kind, and one of its files is damaged.
    """
    folder = Path(folder)
    if is_saved(folder):
        return load(folder)
    return diffusers(folder) if is_diffusers(folder) else None
