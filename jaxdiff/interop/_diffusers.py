"""A UNet2DModel folder with its scheduler, as a trained network."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from jaxdiff.interop import _arrays, _files, _safetensors
from jaxdiff.interop._scheduler import Scheduler
from jaxdiff.interop._scheduler import scheduler as read_scheduler
from jaxdiff.interop._unet2d import unet2d
from jaxdiff.models import Model
from jaxdiff.zoo import Trained

CLASS = "UNet2DModel"
WEIGHTS = "diffusion_pytorch_model"
# Whether a level attends, and how it resamples: None is as downsample_type or upsample_type says.
DOWN = {
    "DownBlock2D": (False, "conv"),
    "ResnetDownsampleBlock2D": (False, "block"),
    "AttnDownBlock2D": (True, None),
}
UP = {
    "UpBlock2D": (False, "conv"),
    "ResnetUpsampleBlock2D": (False, "block"),
    "AttnUpBlock2D": (True, None),
}
RESAMPLING = {"conv": "conv", "resnet": "block"}
# The names that attention's arrays had before.
BEFORE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Options:
    """The options of UNet2DModel, with its own defaults."""

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0.0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", *3 * ("AttnDownBlock2D",))
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (*3 * ("AttnUpBlock2D",), "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    add_attention: bool = True
    num_train_timesteps: int | None = None  # of learned time embeddings alone


CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_type": tuple(RESAMPLING),
    "upsample_type": tuple(RESAMPLING),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}


def diffusers(
    folder: str | PathLike, *, event_shape: tuple[int, int, int] | None = None, levels: int = 256
) -> Trained:
    """Load a UNet2DModel folder and its scheduler, without torch and without pickles.

        trained = jd.interop.diffusers("ddpm-cifar10-32")
        x = jd.draw(key, trained.denoiser(), trained.schedule, (16, *trained.event_shape)).x

    Images have their channels last here. Step i of the scheduler's T is the time (i + 1) / T, and
    t = 0 is the data.

    Args:
      folder: of a pipeline, with unet/config.json and scheduler/scheduler_config.json; or a single
        folder with config.json and scheduler_config.json. The weights are
        diffusion_pytorch_model.safetensors beside config.json.
      event_shape: (H, W, C) of an image; what sample_size says if None.
      levels: grey levels of the data, which the network knows as values in [-1, 1].
    Returns:
      Trained. Its threshold and its variance are those of the scheduler; `scheduler(folder).grid`
      has its times. A network with classes has no null class: `denoiser` needs a label.
    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged or a pickle; an option is unknown, or has a value that is not
        offered here; an array is missing, left over or misshapen. The message names the file.
    Numerics: weights of 16 bits are widened to float32. With the same weights the output is
      torch's to 1e-5. With clip_sample, x_0 is clipped and the noise follows from it, as in
      DDPMScheduler; DDIMScheduler does so with use_clipped_model_output=True, and by default keeps
      the noise of the x_0 that was not clipped.
    """
    folder = Path(folder)
    path, process = _config_of(folder), scheduler(folder)
    config = _files.read_json(path)
    _files.require_choice(path, "_class_name", config.get("_class_name", CLASS), (CLASS,))
    options = _files.read_options(Options, config, path)
    model = _model(options, process.total, path)
    weights = _files.weights_in(path.parent, WEIGHTS)
    arrays = {_modern(name): array for name, array in _safetensors.read(weights).items()}
    learned = model.module.learned_variance
    if process.variance is not None and learned != (process.variance == "learned"):
        raise ValueError(
            f"{path}: out_channels: expected {options.in_channels * (1 + (not learned))} with the "
            f"scheduler's variance_type, got {options.out_channels}"
        )
    return Trained(
        model=model,
        params=_arrays.fit(model, arrays, weights),
        schedule=process.schedule,
        prediction=process.prediction,
        event_shape=_event_shape(options, event_shape, path),
        levels=levels,
        threshold=process.threshold,
        variance="learned" if learned else process.variance,
        about={"source": f"{CLASS} {config.get('_name_or_path') or folder.name}"},
    )


def scheduler(folder: str | PathLike) -> Scheduler:
    """Read the scheduler of a folder.

        process = jd.interop.scheduler("ddpm-cifar10-32")
        ts = process.grid(50)  # the times that DDIMScheduler visits in 50 steps

    Args:
      folder: as `diffusers` takes it; or one with scheduler_config.json alone.
    Returns:
      Scheduler: schedule, prediction, threshold, variance, and the times of its steps.
    Raises:
      FileNotFoundError: the folder has no scheduler_config.json.
      ValueError: the file is damaged, or asks for another process; the message names it.
    """
    name = "scheduler_config.json"
    for path in (Path(folder) / "scheduler" / name, Path(folder) / name):
        if path.is_file():
            return read_scheduler(path)
    raise FileNotFoundError(f"{folder}: expected {name}, there or in scheduler, got neither")


def is_diffusers(folder: Path) -> bool:
    """Whether a folder is one for `diffusers`."""
    if (folder / "unet" / "config.json").is_file():
        return True
    path = folder / "config.json"
    try:
        return path.is_file() and "_class_name" in _files.read_json(path)
    except ValueError:  # a damaged file is another reader's
        return False


def _config_of(folder: Path) -> Path:
    for path in (folder / "unet" / "config.json", folder / "config.json"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder}: expected config.json, there or in unet, got neither")


def _model(options: Options, total: int, path: Path) -> Model:
    """The network that the options describe."""
    for name, values in CHOICES.items():
        _files.require_choice(path, name, getattr(options, name), values)
    for name, kinds in (("down_block_types", DOWN), ("up_block_types", UP)):
        for kind in getattr(options, name):
            _files.require_choice(path, name, kind, kinds)
    down = [DOWN[kind] for kind in options.down_block_types]
    up = [UP[kind] for kind in options.up_block_types]
    film = options.resnet_time_scale_shift == "scale_shift"
    groups = options.norm_num_groups
    with _files.naming(path):
        return unet2d(
            in_channels=options.in_channels,
            out_channels=options.out_channels,
            widths=options.block_out_channels,
            num_blocks=options.layers_per_block,
            down_attention=tuple(attends for attends, _ in down),
            up_attention=tuple(attends for attends, _ in up),
            down_resampling=tuple(way or RESAMPLING[options.downsample_type] for _, way in down),
            up_resampling=tuple(way or RESAMPLING[options.upsample_type] for _, way in up),
            head_size=options.attention_head_dim,
            groups=groups,
            # Under scale and shift the middle attends without normalisation, unless it is set.
            middle_groups=options.attn_norm_num_groups or (None if film else groups),
            eps=options.norm_eps,
            film=film,
            middle=options.mid_block_type is not None,
            middle_attention=options.add_attention,
            middle_divide=options.mid_block_scale_factor,
            padding=options.downsample_padding,
            frequency_shift=options.freq_shift,
            cos_first=options.flip_sin_to_cos,
            embedding_size=options.time_embedding_dim,
            num_classes=options.num_class_embeds,
            centred=options.center_input_sample,
            dropout=options.dropout,
            total=total,
        )


def _event_shape(
    options: Options, given: tuple[int, int, int] | None, path: Path
) -> tuple[int, ...]:
    size = options.sample_size
    if given is None and size is None:
        raise ValueError(
            f"{path}: sample_size: expected the side of an image, got null; give event_shape"
        )
    sides = size if isinstance(size, tuple) else (size, size)
    shape = (*sides, options.in_channels) if given is None else tuple(given)
    unit = 2 ** (len(options.block_out_channels) - 1)
    if (
        len(shape) != 3
        or shape[2] != options.in_channels
        or any(type(side) is not int or side < 1 or side % unit for side in shape[:2])
    ):
        name = f"{path}: sample_size" if given is None else "event_shape"
        raise ValueError(
            f"{name}: expected sides that are multiples of {unit}, which the levels halve, and "
            f"{options.in_channels} channels, got {shape}"
        )
    return shape


def _modern(name: str) -> str:
    """An array's name of today."""
    if ".attentions." not in name:
        return name
    return ".".join(BEFORE.get(part, part) for part in name.split("."))
