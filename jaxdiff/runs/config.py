"""The configuration of a run: dataclasses, presets, and their JSON."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxdiff.runs import records

FOLDER = "folder"  # the data set that is in a folder, or in a file, of one's own


Objective = Literal["simple", "vlb", "hybrid"]


TimeSampling = Literal["uniform", "low_discrepancy", "loss_aware"]


Prediction = Literal["eps", "x0", "v", "score", "velocity", "edm", "levels"]


ScheduleName = Literal["cosine", "linear", "sigmoid", "ddpm", "edm", "rectified_flow", "learned"]


WeightName = Literal["none", "snr", "min_snr", "edm", "sigmoid"]


@dataclass(frozen=True)
class Network:
    """The network: a UNet for images, an MLP for vectors.

    The MLP does not use multipliers, attention, patch, fourier and remat. A size that is None is
    chosen by the size of the data.
    """

    channels: int | None = 32
    """Channels at full resolution (width of an MLP); a multiple of 8."""
    multipliers: tuple[int, ...] | None = (1, 2)
    """Channels at each resolution, as multiples; each further entry halves the sides."""
    num_blocks: int | None = 1
    """Residual blocks per resolution (layers of an MLP)."""
    attention: tuple[int, ...] | None = (4,)
    """Side lengths of the feature maps with self-attention; the middle always has it."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    patch: int | None = 1
    """2 works on 2x2 patches: faster, a little coarser. Zeros fill up sides it does not divide."""
    time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal"
    """How the time enters."""
    fourier: tuple[int, ...] = ()
    """Exponents n of inputs sin(2^n pi x), cos(2^n pi x); 7 shows single levels of 8-bit images."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the layers compute; parameters stay float32."""
    remat: bool = False
    """Compute each block of the UNet again for its gradient: less memory, more time."""


@dataclass(frozen=True)
class Diffusion:
    """The process and what the network predicts of it."""

    schedule: ScheduleName = "cosine"
    """Noise schedule; ddpm is the 1000-step table of linear betas. learned trains the schedule and
    the network on the variational bound in continuous time."""
    prediction: Prediction = "v"
    """What the network predicts; levels, for the learned schedule, is a distribution over the
    data's levels."""
    weight: WeightName = "none"
    """Weight of the simple loss by noise level; none is the plain error of the prediction."""
    objective: Objective | None = None
    """simple is the denoising error. vlb is the variational bound of a finite chain with a learned
    reverse variance. hybrid is simple plus a small part of vlb. None is simple, or the bound in
    continuous time for the learned schedule."""
    num_steps: int = 100
    """Steps T of the finite chain that vlb and hybrid train."""
    time_sampling: TimeSampling = "low_discrepancy"
    """How a batch's times are drawn; loss_aware draws the steps of vlb and hybrid by their last
    losses."""
    sigma_data: float = 0.5
    """Standard deviation of the data in [-1, 1]; only the edm prediction and weight use it."""

    @property
    def finite(self) -> bool:
        """Whether a finite chain is trained. The network then gives the reverse variance too."""
        return self.objective in ("vlb", "hybrid")


@dataclass(frozen=True)
class Optimizer:
    """Adam(W) with warm-up, cosine decay and clipping; the moving average of the parameters."""

    learning_rate: float = 2e-3
    """Peak learning rate."""
    warmup: int = 100
    """Steps of linear warm-up, at most half of all steps."""
    final_scale: float = 0.02
    """Last learning rate, as a share of the peak."""
    clip_norm: float | None = 1.0
    """Largest norm of a gradient; None for no clipping."""
    b1: float = 0.9
    """Adam's decay of the first moment."""
    b2: float = 0.99
    """Adam's decay of the second moment."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    ema_decay: float = 0.998
    """Decay of the moving average that samples are drawn with."""


@dataclass(frozen=True)
class Config:
    """A training run."""

    run: Path = Path("runs/digits")
    """Folder of the run. An existing run goes on from its last checkpoint: bit for bit with its own
    command, or with other --steps, --log-every, --eval-every, --optimizer, dropout or
    --label-drop."""
    dataset: str = "digits"
    """digits (embedded), a prepared TFDS image set such as mnist, a 2-D density such as swiss_roll,
    or folder, for the data of --folder."""
    data_dir: Path | None = None
    """Where TFDS keeps its sets; JAXDIFF_DATA_DIR, TFDS_DATA_DIR or ~/tensorflow_datasets if not
    given. The pictures of a folder are kept here too; in JAXDIFF_DATA_DIR or ~/.cache/jaxdiff if
    not given."""
    folder: Path | None = None
    """With the preset images: a folder of pictures (PNG, JPEG, WebP, BMP), with a folder a class or
    none; or a table (.npy, .npz, .csv)."""
    size: int = 32
    """Side of the pictures of a folder, in pixels. Smaller pictures are skipped."""
    fit: Literal["crop", "stretch"] = "crop"
    """How a picture becomes a square: by the largest one in its middle, or by stretching it."""
    colour: Literal["auto", "grey", "rgb"] = "auto"
    """Colours of the pictures of a folder; auto is grey if all of them are grey."""
    flip: bool = False
    """Mirror half of the training images from left to right, chosen anew each time."""
    steps: int = 1500
    """Number of updates. A run may go on with a larger number than it was begun with. The learning
    rate depends on the step and on this number, so it rises to the rate of a run of the new length
    and falls to the new end."""
    batch_size: int = 128
    """Examples in an update, over all devices."""
    accumulate: int = 1
    """Parts that a device's examples are taken in, one after the other: less memory, the same
    gradient."""
    at_once: int = 1
    """Updates in one dispatch: faster for a tiny MLP, whose update takes less time than its
    dispatch. It divides --log-every and --eval-every. A UNet on a CPU becomes much slower."""
    shard_state: bool = False
    """Divide the optimiser's state and the moving average over the devices: less memory on each."""
    seed: int = 0
    """Seed of everything random in the run."""
    conditional: bool = True
    """Whether the network is given the label; without effect on data without labels."""
    label_drop: float = 0.1
    """Share of labels hidden in training, for classifier-free guidance."""
    most_skipped: int = 10
    """Updates in a row that may be skipped because their loss or gradient is not finite; then the
    run stops."""
    log_every: int = 20
    """Steps between lines of the log."""
    eval_every: int = 500
    """Steps between held-out evaluations; each of them writes a checkpoint."""
    network: Network = field(default_factory=Network)
    diffusion: Diffusion = field(default_factory=Diffusion)
    optimizer: Optimizer = field(default_factory=Optimizer)


# What each preset is for, and its configuration, by name.
PRESETS: dict[str, tuple[str, Config]] = {
    "digits": (
        "scikit-learn's 8x8 handwritten digits, inside the package: minutes on two cores",
        Config(),
    ),
    "mnist": (
        "MNIST, 28x28, on a few cores: a UNet on 2x2 patches",
        Config(
            run=Path("runs/mnist"),
            dataset="mnist",
            steps=4000,
            batch_size=64,
            network=Network(channels=64, multipliers=(1, 2), num_blocks=2, attention=(7,), patch=2),
            optimizer=Optimizer(learning_rate=1e-3, ema_decay=0.999),
        ),
    ),
    "images": (
        "a folder of pictures, or a table, of your own (--folder), with a network by its size",
        Config(
            run=Path("runs/images"),
            dataset=FOLDER,
            steps=4000,
            batch_size=64,
            network=Network(
                channels=None, multipliers=None, num_blocks=None, attention=None, patch=None
            ),
            optimizer=Optimizer(learning_rate=1e-3, ema_decay=0.999),
        ),
    ),
    "digits-likelihood": (
        "the digits, trained on the variational bound for the probability of the data",
        Config(
            run=Path("runs/digits-likelihood"),
            steps=1200,
            conditional=False,
            network=Network(dropout=0.1),  # 1437 digits are soon known by heart
            diffusion=Diffusion(schedule="learned", prediction="levels"),
        ),
    ),
    "mnist-likelihood": (
        "MNIST, trained on the variational bound for the probability of the data: "
        "hours on a few cores",
        Config(
            run=Path("runs/mnist-likelihood"),
            dataset="mnist",
            steps=12000,
            batch_size=32,
            conditional=False,
            network=Network(multipliers=(1, 2, 2), attention=(7,), fourier=(5, 7)),
            diffusion=Diffusion(schedule="learned", prediction="levels"),
            optimizer=Optimizer(ema_decay=0.999),
        ),
    ),
    "toy": (
        "a 2-D density and an MLP: a minute on two cores",
        Config(
            run=Path("runs/toy"),
            dataset="swiss_roll",
            batch_size=512,
            network=Network(channels=128, num_blocks=4),
            diffusion=Diffusion(schedule="linear", prediction="eps"),
        ),
    ),
}


def as_json(config: Config) -> str:
    """The configuration as JSON."""
    return json.dumps(dataclasses.asdict(config), default=str)


def arguments(config: Config) -> list[str]:
    """The arguments of `jaxdiff train` that make a configuration: the nearest preset, and the rest.

    Args:
      config: of a run.
    Returns:
      The name of a preset and options, as a shell takes them.
    """
    wanted = records.flat(config)

    def others(preset: str) -> dict[str, Any]:
        given = records.flat(PRESETS[preset][1])
        return {name: value for name, value in wanted.items() if value != given[name]}

    nearest = min(PRESETS, key=lambda preset: len(others(preset)))
    words = [nearest]
    for name, value in others(nearest).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            place, _, last = option.rpartition(".")
            word = last if value else f"no-{last}"
            words.append(f"--{place}.{word}" if place else f"--{word}")
        else:
            many = value if isinstance(value, tuple) else (value,)
            words += [f"--{option}", *map(str, many)]
    return words


def from_fields(fields: Any, run: Path) -> Config:
    """The configuration that `as_json` wrote; the run may have moved to another folder."""
    return dataclasses.replace(records.read(Config, fields), run=run)
