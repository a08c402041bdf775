"""The size of a network that suits the data, where none is given."""

import dataclasses
import math
from typing import Any

from jaxdiff.runs.config import Config, Network

# A UNet by the longer side of its images, up to: channels (of grey images, of colour), multipliers,
# residual blocks, patch. The last row stands for any larger side too. Attention is at the smallest
# feature maps.
UNETS: dict[int, tuple[int, int, tuple[int, ...], int, int]] = {
    8: (32, 48, (1, 2), 1, 1),
    16: (32, 48, (1, 2), 2, 1),
    32: (64, 96, (1, 2), 2, 2),
    64: (64, 96, (1, 2, 2), 2, 2),
    128: (64, 96, (1, 2, 2, 2), 2, 4),
}
# An MLP by the size of its vectors, up to: width and layers. The last row stands for any larger.
MLPS = {16: (128, 4), 256: (256, 4), 1024: (512, 4)}


def fill(config: Config, event_shape: tuple[int, ...]) -> Config:
    """Give a network the sizes that it lacks (None), by the tables above.

    Args:
      config: the configuration of a run.
      event_shape: the shape of its examples, (H, W, C) or (D,).
    Returns:
      The configuration, with a size for each None.
    """
    network = config.network
    found = _mlp(*event_shape) if len(event_shape) == 1 else _unet(network, event_shape)
    lacking = {name: size for name, size in found.items() if getattr(network, name) is None}
    return dataclasses.replace(config, network=dataclasses.replace(network, **lacking))


def _mlp(size: int) -> dict[str, Any]:
    width, depth = MLPS[min((most for most in MLPS if size <= most), default=max(MLPS))]
    unused = {name: getattr(Network(), name) for name in ("multipliers", "attention", "patch")}
    return {"channels": width, "num_blocks": depth, **unused}


def _unet(network: Network, event_shape: tuple[int, ...]) -> dict[str, Any]:
    height, width, channels = event_shape
    side = max(height, width)
    row = UNETS[min((most for most in UNETS if side <= most), default=max(UNETS))]
    grey, colour, multipliers, num_blocks, patch = row
    levels = len(multipliers if network.multipliers is None else network.multipliers)
    smallest = math.ceil(height / (patch if network.patch is None else network.patch))
    for _ in range(levels - 1):
        smallest = math.ceil(smallest / 2)
    return {
        "channels": grey if channels == 1 else colour,
        "multipliers": multipliers,
        "num_blocks": num_blocks,
        "attention": (smallest,),
        "patch": patch,
    }


def describe(config: Config, event_shape: tuple[int, ...]) -> str:
    """The network of a run in words."""
    network = config.network
    if len(event_shape) == 1:
        return f"an MLP of width {network.channels} and {network.num_blocks} layers"
    return (
        f"a UNet of {network.channels} channels, multipliers {_listed(network.multipliers)}, "
        f"{network.num_blocks} blocks, patch {network.patch}, "
        f"attention at {_listed(network.attention)}"
    )


def _listed(numbers: tuple[int, ...] | None) -> str:
    return " ".join(map(str, numbers or ())) or "none"
