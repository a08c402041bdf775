"""The configuration of a run, and the objects it stands for."""

import dataclasses
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    """The network: a UNet for images, an MLP for vectors."""

    channels: int = 32
    """Channels at full resolution (width of an MLP)."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each resolution, as multiples; each further one halves the sides."""
    num_blocks: int = 1
    """Residual blocks per resolution (layers of an MLP)."""
    attention: tuple[int, ...] = (4,)
    """Side lengths at which there is self-attention."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    patch: int = 1
    """2 works on 2x2 patches: faster, a little coarser."""
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
    hybrid both, with little of the bound. None is simple, but for the learned schedule, which has its own bound."""
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
    """Steps of linear warm-up."""
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
    """Folder of the run. A run that is there already goes on from its last checkpoint."""
    dataset: str = "digits"
    """digits (embedded), any prepared TFDS image set such as mnist, or a 2-D density such as swiss_roll."""
    data_dir: Path | None = None
    """Where TFDS keeps its sets; JAXDIFF_DATA_DIR, TFDS_DATA_DIR or ~/tensorflow_datasets if not given."""
    steps: int = 1500
    """Number of updates."""
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
    "digits": ("scikit-learn's 8x8 handwritten digits, inside the package: minutes on two cores", Config()),
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
            network=Network(channels=64, multipliers=(1, 2), num_blocks=2, attention=(7,), patch=2, fourier=(5, 7)),
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


def check(config: Config) -> None:
    """Refuse counts that mean nothing, and half of what belongs together."""
    for name in ("steps", "batch_size", "log_every", "eval_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    diffusion = config.diffusion
    if diffusion.num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, got {diffusion.num_steps}")
    names = (diffusion.schedule, diffusion.prediction)
    if (names[0] == "learned") != (names[1] == "levels"):
        raise ValueError(f"schedule, prediction: expected learned and levels together or neither, got {names}")
    if names[0] == "learned" and config.conditional:
        raise ValueError("conditional: expected False (--no-conditional) where the probability of the data is trained")
    if names[0] == "learned" and diffusion.objective is not None:
        raise ValueError(f"objective: expected None with the learned schedule's own bound, got {diffusion.objective}")
    if names[1] != "levels":
        jd.prediction.check_start(make_schedule(config), names[1])
    if diffusion.weight != "none" and (names[0] == "learned" or diffusion.finite):
        raise ValueError(f"weight: expected none but for the simple objective, got {diffusion.weight}")
    if diffusion.time_sampling == "loss_aware" and not diffusion.finite:
        raise ValueError(f"time_sampling: expected loss_aware with vlb or hybrid only, got {diffusion.objective}")


def check_same(config: Config) -> None:
    """Require the configuration of a run that is there already to be this one."""
    path = config.run / "config.json"
    if not path.exists():
        return
    new, old = (json.loads(as_json(each)) for each in (config, load_config(config.run)))
    differing = [name for name in new if new[name] != old[name] and name not in ("run", "data_dir")]
    if differing:
        raise ValueError(
            f"run: {config.run} was begun with another {', '.join(differing)}; "
            "repeat its own command to go on with it, or give another --run"
        )


def save(config: Config) -> None:
    """Write config.json, from which the run can be read back."""
    training.write_json(config.run / "config.json", json.loads(as_json(config)))


def read_json(path: Path) -> Any:
    """Read a JSON file, naming it where it is damaged."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error


def key_of(seed: int, purpose: str) -> jax.Array:
    """The key of one purpose of a seed: training, sampling and data never share a stream."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def as_json(config: Config) -> str:
    """The configuration as JSON."""
    return json.dumps(dataclasses.asdict(config), default=str)


def load_config(run: Path) -> Config:
    """Read the configuration of a run folder."""
    path = run / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"run: {run} is no run folder (it has no config.json); train one with train.py")
    return from_fields(read_json(path), run)


def from_fields(fields: dict[str, Any], run: Path) -> Config:
    """The configuration that `as_json` wrote, of a run in another place perhaps."""
    parts = {"network": Network, "diffusion": Diffusion, "optimizer": Optimizer}
    nested = {name: kind(**_tuples(fields[name])) for name, kind in parts.items()}
    data_dir = None if fields["data_dir"] is None else Path(fields["data_dir"])
    return Config(**fields | {"run": run, "data_dir": data_dir} | nested)


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


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
            return jd.make_categorical_denoiser(jd.categorical.on_log_snr(apply, schedule), schedule, num_levels)
        return jd.make_denoiser(
            apply,
            schedule,
            diffusion.prediction,
            threshold,
            sigma_data=diffusion.sigma_data,
            learned_variance=diffusion.finite,
        )

    return make


def make_chain(config: Config, schedule: jd.Schedule, *, levels: int | None, num_steps: int) -> jd.Chain:
    """The finite chain of a run, still without its denoiser, with what that will say of the variance, and a decoder.

    It is made outside of compiled functions, where the schedule has no values; there the denoiser is put in its place.
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
        raise ValueError(f"prediction: expected another than levels, because {config.dataset} has none")
    if len(dataset.event_shape) == 1:
        return models.mlp(
            width=network.channels,
            depth=network.num_blocks,
            num_classes=num_classes,
            learned_variance=config.diffusion.finite,
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
        optimizer.learning_rate,
        num_steps=config.steps,
        warmup=min(optimizer.warmup, config.steps // 2),  # a short run warms up over its first half
        final_scale=optimizer.final_scale,
        clip_norm=optimizer.clip_norm,
        weight_decay=optimizer.weight_decay,
        b1=optimizer.b1,
        b2=optimizer.b2,
    )


def remembers(config: Config) -> bool:
    """Whether the loss remembers what the steps of the chain cost."""
    return config.diffusion.time_sampling == "loss_aware"


def abstract_state(config: Config, model: models.Model, event_shape: tuple[int, ...]) -> training.TrainState:
    """What the run's state looks like, without computing it."""
    return jax.eval_shape(lambda: initial_state(config, model, event_shape))


def initial_state(config: Config, model: models.Model, event_shape: tuple[int, ...]) -> training.TrainState:
    """The run's state before its first step."""
    key_params, key_run = (key_of(config.seed, purpose) for purpose in ("parameters", "training"))
    learned = jd.schedules.learned_parameters() if config.diffusion.schedule == "learned" else {}
    params = {"network": model.init(key_params, event_shape), "schedule": learned}
    memory = jd.losses.term_history(config.diffusion.num_steps) if remembers(config) else None
    return training.init_state(key_run, params, make_optimizer(config), memory)
