"""Trained networks that ship with the package: something real to sample from, score and condition, in seconds.

mnist = jaxdiff.pretrained("mnist")
kernel = jaxdiff.kernels.unipc(mnist.denoiser(jnp.arange(10)), mnist.schedule)
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from jaxdiff import schedules
from jaxdiff.prediction import make_denoiser
from jaxdiff.schedules import Schedule
from jaxdiff.zoo._packing import pack, unpack

__all__ = ["ABOUT", "SHA256", "Pretrained", "pack", "pretrained", "read", "unpack"]

ABOUT = "about"  # the name of what is no parameter in a checkpoint's file

SHA256: dict[str, str] = {
    "mnist": "5f96e15199e081fa1dfe8f9bec946cec2bae15bc172b48d174d87ea3b9c3c8c2",
}


@dataclass(frozen=True)
class Pretrained:
    """A trained network and what it was trained for.

    Fields:
      name: the name it ships under.
      model: the network, `models.Model`; its parameters are not part of it.
      params: its parameters, a nested dict of float32 arrays.
      schedule: the noise schedule.
      prediction: what the network predicts, as `make_denoiser` takes it.
      sigma_data: standard deviation of the data, which the EDM prediction was made for; others do
        not use it.
      event_shape: the shape of one example.
      levels: grey levels of the data, which are scaled to [-1, 1].
      about: everything else: the training run's configuration and step, and where the data come
        from.
    """

    name: str
    model: Any
    params: Any
    schedule: Schedule
    prediction: str
    sigma_data: float
    event_shape: tuple[int, ...]
    levels: int
    about: dict[str, Any]

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None for an unconditional network."""
        return self.model.num_classes

    def denoiser(self, label: jax.Array | None = None, *, threshold: Any = None) -> Callable:
        """Return the denoiser, a pytree whose leaves are the parameters.

            D(x_t, t) = E[x_0 | x_t, label]

        Args:
          label: class of each row, [B], or of all rows, [], integer; num_classes, like None, stands
            for all classes together. Traced, one outside makes its row NaN.
          threshold: as `make_denoiser` takes it.
        Returns:
          A denoiser for kernels, guidance, likelihoods and posteriors.
        Raises:
          ValueError: threshold is not offered, a label is outside 0 .. num_classes, or the network
            has no classes.
          TypeError: label is not integer.
        """
        self.model.check_label(label)
        apply = Partial(self.model.apply, self.params, label=label)
        return make_denoiser(
            apply, self.schedule, self.prediction, threshold, sigma_data=self.sigma_data
        )


def pretrained(name: str) -> Pretrained:
    """Load a network that ships with the package.

    "mnist" is a class-conditional U-Net of 28x28 handwritten digits in [-1, 1], trained as
    RESULTS.md says.

    Args:
      name: "mnist".
    Returns:
      Pretrained: model, parameters, schedule, shapes, and `denoiser`.
    Raises:
      ValueError: no network has this name, or its file is not the one that was shipped (its SHA-256
        differs).
    """
    if name not in SHA256:
        raise ValueError(f"name: expected one of {', '.join(SHA256)}, got {name!r}")
    content = resources.files(__name__).joinpath(f"{name}.npz").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise ValueError(
            f"{name}: expected the file of SHA-256 {SHA256[name]}, got {found}; install jaxdiff again"
        )
    return read(name, content)


def read(name: str, content: bytes) -> Pretrained:
    """Read a checkpoint's file, without verifying it.

    Args:
      name: what to call it.
      content: a NumPy archive of `pack`'s arrays, and of JSON under "about": the arguments of
        `models.unet`, and the fields of `Pretrained`.
    Returns:
      Pretrained.
    """
    from jaxdiff import models  # the network library is loaded where a network is wanted

    with np.load(io.BytesIO(content)) as file:
        arrays = {key: file[key] for key in file.files}
    about = json.loads(str(arrays.pop(ABOUT)))
    return Pretrained(
        name=name,
        model=models.unet(**about.pop("unet")),
        params=unpack(arrays),
        schedule=getattr(schedules, about.pop("schedule"))(),
        prediction=about.pop("prediction"),
        sigma_data=about.pop("sigma_data"),
        event_shape=tuple(about.pop("event_shape")),
        levels=about.pop("levels"),
        about=about,
    )
