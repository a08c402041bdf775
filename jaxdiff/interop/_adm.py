"""Weights of guided diffusion (ADM) and of improved DDPM, as a trained network."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import _checks, prediction, schedules
from jaxdiff.interop import _arrays, _files, _safetensors
from jaxdiff.interop._unet2d import unet2d
from jaxdiff.zoo import Trained

# Widths of the levels by the side of an image, where they are not given.
MULTIPLIERS: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
GROUPS = 32
NOISE = ("linear", "cosine")
# Their names of parts, and those of UNet2DModel.
BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}


def guided_diffusion(
    path: str | PathLike,
    *,
    image_size: int,
    num_channels: int = 128,
    num_res_blocks: int = 2,
    channel_mult: Sequence[float] | None = None,
    attention_resolutions: Sequence[int] = (16, 8),
    num_heads: int = 4,
    num_head_channels: int | None = None,
    use_scale_shift_norm: bool = True,
    resblock_updown: bool = False,
    use_new_attention_order: bool = False,
    num_classes: int | None = None,
    learn_sigma: bool = False,
    predict_xstart: bool = False,
    diffusion_steps: int = 1000,
    noise_schedule: str = "linear",
    rescale_timesteps: bool = False,
    dropout: float = 0.0,
    clip_denoised: bool = True,
    levels: int = 256,
) -> Trained:
    """Load a network of guided diffusion (ADM) or improved DDPM.

    The file does not say what network it holds: its options are those of the command that trained
    it, under their own names and with their own defaults. Images have their channels last here.

        trained = jd.interop.guided_diffusion(
            "64x64_diffusion.safetensors", image_size=64, num_channels=192, num_res_blocks=3, ...
        )

    Args:
      path: the weights, a safetensors file; the error of a .pt says how to convert it.
      image_size: side of an image.
      num_channels: width of the first level.
      num_res_blocks: residual blocks a level.
      channel_mult: width of each level, in units of num_channels; that of image_size if None.
      attention_resolutions: sides of the feature maps that attend.
      num_heads: attention heads, unless num_head_channels says how wide each is.
      num_head_channels: width of a head.
      use_scale_shift_norm: whether the embedding scales the features too.
      resblock_updown: whether residual blocks resample, instead of convolutions.
      use_new_attention_order: whether q, k and v lie one after the other, and not head by head.
      num_classes: None without classes; 1000 where class_cond was given.
      learn_sigma: whether the network gives the reverse variance too.
      predict_xstart: whether the network predicts x_0 instead of the noise.
      diffusion_steps: T.
      noise_schedule: "linear" or "cosine".
      rescale_timesteps: whether the network is told steps of 1000, whatever T is.
      dropout: rate in the residual blocks; drawn only where `Model.apply` gets a dropout_key.
      clip_denoised: whether x_0 is kept within [-1, 1].
      levels: grey levels of the data.
    Returns:
      Trained. A network with classes has no null class: `denoiser` needs a label.
    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, a pickle, or not of this network: an array is missing, left
        over or misshapen (the message names the file); or options do not fit together.
    Numerics: weights of 16 bits are widened to float32. With the same weights the output is
      torch's to 1e-5.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233; Nichol & Dhariwal 2021, arXiv:2102.09672.
    """
    _checks.choice("noise_schedule", noise_schedule, NOISE)
    _checks.positive_int("image_size", image_size)
    path = _files.require_safetensors(Path(path))
    multipliers = MULTIPLIERS.get(image_size) if channel_mult is None else tuple(channel_mult)
    if multipliers is None:
        raise ValueError(f"channel_mult: expected the widths of side {image_size}, got None")
    attends = tuple(image_size // 2**i in attention_resolutions for i in range(len(multipliers)))
    way = len(multipliers) * (("block",) if resblock_updown else ("conv",))
    model = unet2d(
        in_channels=3,
        out_channels=6 if learn_sigma else 3,
        widths=tuple(int(num_channels * m) for m in multipliers),
        num_blocks=num_res_blocks,
        down_attention=attends,
        up_attention=attends[::-1],
        down_resampling=way,
        up_resampling=way,
        num_heads=num_heads if num_head_channels is None else None,
        head_size=num_head_channels,
        groups=GROUPS,
        middle_groups=GROUPS,
        film=use_scale_shift_norm,
        embedding_size=4 * num_channels,
        num_classes=num_classes,
        dropout=dropout,
        total=diffusion_steps,
        step_scale=1000 / diffusion_steps if rescale_timesteps else 1.0,
    )
    arrays = _renamed(
        _safetensors.read(path), model.module, path, by_head=not use_new_attention_order
    )
    return Trained(
        model=model,
        params=_arrays.fit(model, arrays, path),
        schedule=_schedule(noise_schedule, diffusion_steps),
        prediction="x0" if predict_xstart else "eps",
        event_shape=(image_size, image_size, 3),
        levels=levels,
        threshold=prediction.clip() if clip_denoised else None,
        variance="learned" if learn_sigma else "large",
        about={"source": f"guided diffusion {path.name}"},
    )


def _schedule(name: str, total: int) -> schedules.Schedule:
    """Their tables: the linear one has the same noise in all whatever T is."""
    if name == "cosine":
        return schedules.from_betas(schedules.cosine_betas(total))
    return schedules.from_betas(schedules.linear_betas(total, 0.1 / total, 20 / total))


def _parts(net: Any) -> dict[str, str]:
    """Their name of every part, by the order in which it runs, and its name here."""
    found, number, last = dict(ENDS), 1, len(net.widths) - 1
    for i, attends in enumerate(net.down_attention):
        for j in range(net.num_blocks):
            found[f"input_blocks.{number}.0"] = f"down_blocks.{i}.resnets.{j}"
            if attends:
                found[f"input_blocks.{number}.1"] = f"down_blocks.{i}.attentions.{j}"
            number += 1
        if i < last:
            found[f"input_blocks.{number}.0"] = f"down_blocks.{i}.downsamplers.0"
            number += 1
    number = 0
    for i, attends in enumerate(net.up_attention):
        for j in range(net.num_blocks + 1):
            place = [f"up_blocks.{i}.resnets.{j}"]
            place += [f"up_blocks.{i}.attentions.{j}"] if attends else []
            place += [f"up_blocks.{i}.upsamplers.0"] if j == net.num_blocks and i < last else []
            found |= {f"output_blocks.{number}.{k}": name for k, name in enumerate(place)}
            number += 1
    return found


def _renamed(
    arrays: dict[str, np.ndarray], net: Any, path: Path, *, by_head: bool
) -> dict[str, np.ndarray]:
    """The arrays under the names of UNet2DModel; q, k and v as three."""
    parts, found = _parts(net), {}
    for name, array in arrays.items():
        theirs = next((part for part in parts if name.startswith(f"{part}.")), None)
        if theirs is None:
            raise ValueError(
                f"{path}: expected no array {_files.shown(name)}: the network has no place for it"
            )
        ours, (inner, _, leaf) = parts[theirs], name[len(theirs) + 1 :].rpartition(".")
        if "attentions" not in ours:
            inner = {"op": "conv"}.get(inner, BLOCK.get(inner, inner))
            found[".".join(filter(None, (ours, inner, leaf)))] = array
        elif inner != "qkv":
            found[f"{ours}.{ATTENTION.get(inner, inner)}.{leaf}"] = array
        else:
            split = _qkv(array, net, by_head, f"{path}: {name}")
            found |= {
                f"{ours}.to_{each}.{leaf}": part for each, part in zip("qkv", split, strict=True)
            }
    return found


def _qkv(array: np.ndarray, net: Any, by_head: bool, where: str) -> Any:
    """Their fused rows as q, k and v: one after the other, or in turn within every head."""
    width, left = divmod(array.shape[0] if array.ndim else 0, 3)
    heads = net.heads(width) if width else 0
    if left or not heads or width % heads:
        raise ValueError(f"{where}: expected rows of q, k and v, got shape {array.shape}")
    if not by_head:
        return array.reshape(3, width, *array.shape[1:])
    by_heads = array.reshape(heads, 3, width // heads, *array.shape[1:])
    return by_heads.swapaxes(0, 1).reshape(3, width, *array.shape[1:])
