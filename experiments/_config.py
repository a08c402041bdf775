"""The configuration of a run, and the objects it stands for."""

import dataclasses
import json
import math
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import _options
import jax
import tyro
from _datasets import Dataset
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import models, training

Objective = Literal["simple", "vlb", "hybrid"]
TimeSampling = Literal["uniform", "low_discrepancy", "loss_aware"]
Prediction = Literal["eps", "x0", "v", "score", "velocity", "edm", "levels"]
ScheduleName = Literal["cosine", "linear", "sigmoid", "ddpm", "edm", "rectified_flow", "learned"]
WeightName = Literal["none", "snr", "min_snr", "edm", "sigmoid"]


@dataclass(frozen=True)
class Network:
    """The network: a UNet for images, an MLP for vectors (which has no multipliers, attention, patch or fourier)."""

    channels: int = 32
    """Channels at full resolution (width of an MLP); a multiple of 8."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each resolution, as multiples; each further one halves the sides."""
    num_blocks: int = 1
    """Residual blocks per resolution (layers of an MLP)."""
    attention: tuple[int, ...] = (4,)
    """Side lengths of feature maps at which there is self-attention; in the middle there always is."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    patch: int = 1
    """2 works on 2x2 patches: faster, a little coarser. Zeros fill the rim of sides that it does not divide."""
    time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal"
    """How the time enters."""
    fourier: tuple[int, ...] = ()
    """Exponents n of input features sin(2^n pi x), cos(2^n pi x); 7 shows single levels of 8 bits."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the layers compute in; parameters stay float32."""


@dataclass(frozen=True)
class Diffusion:
    """The process and what the network predicts of it."""

    schedule: ScheduleName = "cosine"
    """Noise schedule; ddpm is the 1000-step table of linear betas. learned trains it, and the network, on the
    variational bound in continuous time."""
    prediction: Prediction = "v"
    """What the network predicts; levels is a distribution over the data's levels, for the learned schedule."""
    weight: WeightName = "none"
    """Weight of the simple loss by noise level; none is the plain error of the prediction."""
    objective: Objective | None = None
    """simple is the denoising error; vlb the variational bound of a finite chain whose reverse variance is learned;
    hybrid both, with little of the bound. None is simple, but for the learned schedule, which has
    its own bound."""
    num_steps: int = 100
    """Steps T of the finite chain that vlb and hybrid train."""
    time_sampling: TimeSampling = "low_discrepancy"
    """How a batch's times are drawn; loss_aware draws the steps of vlb and hybrid by what they cost last."""
    sigma_data: float = 0.5
    """Standard deviation of the data in [-1, 1]; only the edm prediction and weight use it."""

    @property
    def finite(self) -> bool:
        """Whether a finite chain is trained, for which the network gives the reverse variance too."""
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
    """Folder of the run. A run that is there already goes on from its last checkpoint: with its own command bit for
    bit, or with other --steps, --log-every, --eval-every, --optimizer, dropout or --label-drop."""
    dataset: str = "digits"
    """digits (embedded), any prepared TFDS image set such as mnist, or a 2-D density such as swiss_roll."""
    data_dir: Path | None = None
    """Where TFDS keeps its sets; JAXDIFF_DATA_DIR, TFDS_DATA_DIR or ~/tensorflow_datasets if not given."""
    steps: int = 1500
    """Number of updates. A run may go on for longer than it was begun with: the learning rate is a function of the
    step and of this number, so it rises again to that of a run of the new length, and falls to the
    new end."""
    batch_size: int = 128
    """Examples in an update, over all devices."""
    seed: int = 0
    """Seed of everything random in the run."""
    conditional: bool = True
    """Whether the network is given the label, where there are labels."""
    label_drop: float = 0.1
    """Share of labels hidden in training, for classifier-free guidance."""
    log_every: int = 20
    """Steps between lines of the log."""
    eval_every: int = 500
    """Steps between held-out evaluations, each of which ends in a checkpoint."""
    network: Network = field(default_factory=Network)
    diffusion: Diffusion = field(default_factory=Diffusion)
    optimizer: Optimizer = field(default_factory=Optimizer)


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
        "MNIST, trained on the variational bound for the probability of the data: hours on a few cores",
        Config(
            run=Path("runs/mnist-likelihood"),
            dataset="mnist",
            steps=12000,
            batch_size=64,
            conditional=False,
            network=Network(
                channels=64,
                multipliers=(1, 2),
                num_blocks=2,
                attention=(7,),
                patch=2,
                fourier=(5, 7),
            ),
            diffusion=Diffusion(schedule="learned", prediction="levels"),
            optimizer=Optimizer(learning_rate=1e-3, ema_decay=0.999),
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


def parse_config(description: str) -> Config:
    """Read a preset and its overrides from the command line."""
    return tyro.extras.overridable_config_cli(PRESETS, description=description)


# What may be another when a run goes on, and why. A name of a section stands for all of it that is
# not named itself.
BETWEEN_STARTS: dict[str, tuple[bool, str]] = {
    "run": (True, "the folder may be moved"),
    "data_dir": (True, "the same data may lie elsewhere"),
    "steps": (True, "the learning rate is that of a run of the new length"),
    "log_every": (True, "the updates do not depend on it"),
    "eval_every": (True, "the updates do not depend on it"),
    "label_drop": (True, "the parameters keep their places and their meaning"),
    "network.dropout": (True, "the parameters keep their places and their meaning"),
    "optimizer": (True, "Adam's moments and the moving average are kept, whatever the rates"),
    "dataset": (False, "the parameters were fitted to another"),
    "batch_size": (False, "a place in the order of the examples is counted in batches"),
    "seed": (False, "the order of the examples and the noise would begin anew"),
    "conditional": (False, "the parameters have other places"),
    "network": (False, "the parameters have other places, or another meaning"),
    "diffusion": (False, "the parameters have learnt to predict something else"),
}


def check(config: Config) -> None:
    """Refuse numbers that mean nothing, and half of what belongs together."""
    _options.seed(config.seed)
    _options.counts(
        config, steps=1, batch_size=1, log_every=1, eval_every=1, network__channels=1, network__multipliers=1,
        network__num_blocks=1, network__attention=1, network__patch=1, diffusion__num_steps=1, optimizer__warmup=0,
    )  # fmt: skip
    _options.numbers(
        config, label_drop=_options.SHARE, network__dropout=_options.DECAY, diffusion__sigma_data=_options.POSITIVE,
        optimizer__learning_rate=_options.POSITIVE, optimizer__final_scale=_options.SHARE,
        optimizer__clip_norm=_options.POSITIVE, optimizer__b1=_options.DECAY, optimizer__b2=_options.DECAY,
        optimizer__weight_decay=_options.NOT_NEGATIVE, optimizer__ema_decay=_options.DECAY,
    )  # fmt: skip
    diffusion, network = config.diffusion, config.network
    if network.channels % 8:
        raise ValueError(f"network.channels: expected a multiple of 8, got {network.channels}")
    if not network.multipliers:
        raise ValueError("network.multipliers: expected at least one level, got ()")
    if not all(0 <= n <= models.MOST_FOURIER for n in network.fourier):
        raise ValueError(
            f"network.fourier: expected exponents 0 to {models.MOST_FOURIER}, got {network.fourier}"
        )
    names = (diffusion.schedule, diffusion.prediction)
    if (names[0] == "learned") != (names[1] == "levels"):
        raise ValueError(
            f"schedule, prediction: expected learned and levels together or neither, got {names}"
        )
    if names[0] == "learned" and config.conditional:
        raise ValueError(
            "conditional: expected False (--no-conditional) where the probability of the data is trained"
        )
    if names[0] == "learned" and diffusion.objective is not None:
        raise ValueError(
            f"objective: expected None with the learned schedule's own bound, got {diffusion.objective}"
        )
    if names[1] != "levels":
        jd.prediction.check_start(make_schedule(config), names[1])
    if diffusion.weight != "none" and (names[0] == "learned" or diffusion.finite):
        raise ValueError(
            f"weight: expected none but for the simple objective, got {diffusion.weight}"
        )
    if diffusion.time_sampling == "loss_aware" and not diffusion.finite:
        raise ValueError(
            f"time_sampling: expected loss_aware with vlb or hybrid only, got {diffusion.objective}"
        )


def check_network(config: Config, dataset: Dataset) -> None:
    """Refuse options of the network that would do nothing for these data, and say what a preset's may leave undone."""
    network = config.network
    if len(dataset.event_shape) == 1:
        for name in ("multipliers", "attention", "patch", "fourier"):
            default = getattr(Network(), name)
            if getattr(network, name) != default:
                raise ValueError(
                    f"network.{name}: expected the default, {default}, because the MLP for {config.dataset}'s vectors "
                    f"has none, got {getattr(network, name)}"
                )
        return
    height, width = dataset.event_shape[:2]
    if network.patch > min(height, width):
        raise ValueError(
            f"network.patch: expected at most the images' side, {min(height, width)}, got {network.patch}"
        )
    heights = [math.ceil(height / network.patch)]
    for _ in network.multipliers[1:]:
        heights.append(math.ceil(heights[-1] / 2))
    absent = [side for side in network.attention if side not in heights]
    if absent:
        print(
            f"network.attention: no feature map has side {', '.join(map(str, absent))} (they have "
            f"{', '.join(map(str, heights))}): nothing attends there",
            file=sys.stderr,
        )


def check_same(config: Config) -> Config | None:
    """Require of a run that is there already that it can go on with this configuration; return its own, or None."""
    if not (config.run / "config.json").exists():
        return None
    before = load_config(config.run)
    fixed = [f"{name} ({reason})" for name, reason in _changed(before, config, may=False).items()]
    if fixed:
        raise ValueError(
            f"run: {config.run} was begun with another {', '.join(fixed)}; "
            "repeat its own command to go on with it, or give another --run"
        )
    return before


def what_changes(before: Config, config: Config, step: int) -> str:
    """Which options a run goes on with that it did not have before, and what the learning rate does; "" if none."""
    old, new = _options.flat(before), _options.flat(config)
    changed = [
        name for name in _changed(before, config, may=True) if name not in ("run", "data_dir")
    ]
    if not changed:
        return ""
    options = ", ".join(f"{name} {new[name]} (was {old[name]})" for name in changed)
    line = f"{config.run} goes on from step {step} with {options}"
    rate, rate_before = (float(learning_rates(each)(step)) for each in (config, before))
    if rate != rate_before:
        line += f"; the learning rate here is {rate:.3g} (was {rate_before:.3g}), as in a run of {config.steps} steps"
    return f"{line}; Adam's moments and the moving average are kept"


def _changed(before: Config, config: Config, *, may: bool) -> dict[str, str]:
    """The options that differ and may, or may not, with the reason."""
    old, new = _options.flat(before), _options.flat(config)
    rules = {name: BETWEEN_STARTS.get(name) or BETWEEN_STARTS[name.split(".")[0]] for name in new}
    return {
        name: rules[name][1] for name in new if new[name] != old[name] and rules[name][0] == may
    }


def save(config: Config) -> None:
    """Write config.json, from which the run can be read back."""
    training.write_json(config.run / "config.json", json.loads(as_json(config)))


def key_of(seed: int, purpose: str) -> jax.Array:
    """The key of one purpose of a seed: training, sampling and data never share a stream."""
    _options.seed(seed)
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def as_json(config: Config) -> str:
    """The configuration as JSON."""
    return json.dumps(dataclasses.asdict(config), default=str)


def load_config(run: Path) -> Config:
    """Read the configuration of a run folder."""
    path = run / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"run: {run} is no run folder (it has no config.json); train one with train.py"
        )
    fields = _options.read_json(path)
    try:
        config = from_fields(fields, run)
        check(config)
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}; repair it, or train again with another --run"
        ) from error
    return config


def from_fields(fields: Any, run: Path) -> Config:
    """The configuration that `as_json` wrote, of a run in another place perhaps."""
    return dataclasses.replace(_options.read(Config, fields), run=run)


def make_schedule(config: Config, parameters: Any = None) -> jd.Schedule:
    """The noise schedule of a run; a learned one from its parameters, or as it starts out without them."""
    name = config.diffusion.schedule
    if name == "ddpm":
        return jd.schedules.from_betas(jd.schedules.linear_betas(1000))
    if name == "learned":
        return jd.schedules.learned(parameters or jd.schedules.learned_parameters())
    return getattr(jd.schedules, name)()


def make_denoiser(config: Config, model: models.Model, num_levels: int | None) -> Any:
    """The denoiser of a run, as a function of (network's params, schedule, label=, threshold=, dropout_key=)."""
    diffusion = config.diffusion

    def make(params: Any, schedule: jd.Schedule, *, threshold: Any = None, **options: Any) -> Any:
        apply = Partial(model.apply, params, **options)
        if diffusion.prediction == "levels":
            assert num_levels is not None  # make_model has seen to it
            return jd.make_categorical_denoiser(
                jd.categorical.on_log_snr(apply, schedule), schedule, num_levels
            )
        return jd.make_denoiser(
            apply,
            schedule,
            diffusion.prediction,
            threshold,
            sigma_data=diffusion.sigma_data,
            learned_variance=diffusion.finite,
        )

    return make


def make_chain(
    config: Config, schedule: jd.Schedule, *, levels: int | None, num_steps: int
) -> jd.Chain:
    """The finite chain of a run, still without its denoiser, with what that will say of the variance, and a decoder.

    It is made outside of compiled functions, where the schedule has no values; there the denoiser
    is put in its place.
    """
    decoder = jd.decoders.normal() if levels is None else jd.decoders.discretised_normal(levels)
    by_levels = config.diffusion.prediction == "levels"
    variance = "learned" if config.diffusion.finite else "optimal" if by_levels else "large"
    ts = jd.grids.uniform(num_steps)
    return jd.Chain(lambda x, t: x, schedule, ts, variance=variance, decoder=decoder)


def make_model(config: Config, dataset: Dataset) -> models.Model:
    """The network of a run."""
    network = config.network
    num_classes = dataset.num_classes if config.conditional else None
    by_levels = config.diffusion.prediction == "levels"
    if by_levels and dataset.levels is None:
        raise ValueError(
            f"prediction: expected another than levels, because {config.dataset} has none"
        )
    if len(dataset.event_shape) == 1:
        return models.mlp(
            width=network.channels,
            depth=network.num_blocks,
            num_classes=num_classes,
            dropout=network.dropout,
            time_embedding=network.time_embedding,
            learned_variance=config.diffusion.finite,
            dtype=network.dtype,
        )
    return models.unet(
        channels=network.channels,
        multipliers=network.multipliers,
        num_blocks=network.num_blocks,
        attention=network.attention,
        num_classes=num_classes,
        dropout=network.dropout,
        patch=network.patch,
        time_embedding=network.time_embedding,
        learned_variance=config.diffusion.finite,
        dtype=network.dtype,
        fourier=network.fourier,
        num_levels=dataset.levels if by_levels else None,
    )


def make_optimizer(config: Config) -> Any:
    """The optimiser of a run."""
    optimizer = config.optimizer
    return training.make_optimizer(
        **_rates(config),
        clip_norm=optimizer.clip_norm,
        weight_decay=optimizer.weight_decay,
        b1=optimizer.b1,
        b2=optimizer.b2,
    )


def learning_rates(config: Config) -> Any:
    """The learning rate of a run, a function of the step."""
    return training.learning_rates(**_rates(config))


def _rates(config: Config) -> dict[str, Any]:
    optimizer = config.optimizer
    return {
        "learning_rate": optimizer.learning_rate,
        "num_steps": config.steps,
        "warmup": min(
            optimizer.warmup, config.steps // 2
        ),  # a short run warms up over its first half
        "final_scale": optimizer.final_scale,
    }


def remembers(config: Config) -> bool:
    """Whether the loss remembers what the steps of the chain cost."""
    return config.diffusion.time_sampling == "loss_aware"


def abstract_state(
    config: Config, model: models.Model, event_shape: tuple[int, ...]
) -> training.TrainState:
    """What the run's state looks like, without computing it."""
    return jax.eval_shape(lambda: initial_state(config, model, event_shape))


def initial_state(
    config: Config, model: models.Model, event_shape: tuple[int, ...]
) -> training.TrainState:
    """The run's state before its first step."""
    key_params, key_run = (key_of(config.seed, purpose) for purpose in ("parameters", "training"))
    learned = jd.schedules.learned_parameters() if config.diffusion.schedule == "learned" else {}
    params = {"network": model.init(key_params, event_shape), "schedule": learned}
    memory = jd.losses.term_history(config.diffusion.num_steps) if remembers(config) else None
    return training.init_state(key_run, params, make_optimizer(config), memory)
