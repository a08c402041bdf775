"""Build what a configuration names: schedule, network, denoiser, chain, loss, optimiser, state."""

import dataclasses
import math
from typing import Any

import jax
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import models, training, zoo
from jaxdiff.runs import build
from jaxdiff.runs.config import Config
from jaxdiff.runs.datasets import Dataset
from jaxdiff.runs.seeds import key_of


def make_schedule(config: Config, parameters: Any = None) -> jd.Schedule:
    """The noise schedule of a run; without parameters a learned schedule has its initial ones."""
    name = config.diffusion.schedule
    if name == "ddpm":
        return jd.schedules.from_betas(jd.schedules.linear_betas(1000))
    if name == "learned":
        return jd.schedules.learned(parameters or jd.schedules.learned_parameters())
    return getattr(jd.schedules, name)()


def make_model(config: Config, dataset: Dataset) -> models.Model:
    """The network of a run."""
    # A Network may lack its sizes; those of a run have been filled in.
    network: Any = config.network
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
        remat=network.remat,
        num_levels=dataset.levels if by_levels else None,
    )


def make_denoiser(config: Config, model: models.Model, levels: int | None) -> Any:
    """Return the denoiser of a run as a function of the network's parameters and the schedule.

    Its options are label, threshold and dropout_key.
    """
    diffusion = config.diffusion
    return zoo.network_denoiser(
        model, diffusion.prediction, levels=levels, sigma_data=diffusion.sigma_data
    )


def make_chain(
    config: Config,
    schedule: jd.Schedule,
    *,
    levels: int | None,
    num_steps: int,
    variance: str | None = None,
) -> jd.Chain:
    """The finite chain of a run, with the kind of its variance and its decoder, without a denoiser.

    It is made outside compiled functions, because the schedule has no values inside them. The
    compiled functions then put the denoiser into it.
    """
    decoder = jd.decoders.normal() if levels is None else jd.decoders.discretised_normal(levels)
    by_levels = config.diffusion.prediction == "levels"
    if variance is None:
        variance = "learned" if config.diffusion.finite else "optimal" if by_levels else "large"
    ts = jd.grids.uniform(num_steps)
    return jd.Chain(lambda x, t: x, schedule, ts, variance=variance, decoder=decoder)


def make_loss(
    config: Config, model: models.Model, dataset: Dataset, *, training_time: bool = True
) -> Any:
    """The loss of a run for each example; only training uses dropout, hidden labels and memory."""
    if config.diffusion.finite:
        return _chain_loss(config, model, dataset, training_time)
    if config.diffusion.schedule == "learned":
        return training.likelihood_loss(
            build.make_denoiser(config, model, dataset.levels),
            decoder=jd.decoders.categorical(dataset.levels or 2),
            time_sampling=config.diffusion.time_sampling,
            dropout=training_time,
        )
    return training.denoising_loss(
        Partial(_apply_network, model),
        build.make_schedule(config),
        prediction=config.diffusion.prediction,
        weight=make_weight(config),
        num_classes=model.num_classes,
        label_drop=config.label_drop if training_time else 0.0,
        sigma_data=config.diffusion.sigma_data,
        time_sampling=config.diffusion.time_sampling,
        dropout=training_time,
    )


def _chain_loss(config: Config, model: models.Model, dataset: Dataset, training_time: bool) -> Any:
    diffusion, schedule = config.diffusion, build.make_schedule(config)
    chain = build.make_chain(config, schedule, levels=dataset.levels, num_steps=diffusion.num_steps)
    denoiser_of = build.make_denoiser(config, model, dataset.levels)

    def chain_of(params: Any, **options: Any) -> jd.Chain:
        return dataclasses.replace(
            chain, denoiser=denoiser_of(params["network"], schedule, **options)
        )

    hybrid = Partial(
        jd.losses.hybrid, prediction=diffusion.prediction, sigma_data=diffusion.sigma_data
    )
    return training.chain_loss(
        hybrid if diffusion.objective == "hybrid" else _vlb_bits,
        chain_of,
        time_sampling=diffusion.time_sampling
        if training_time or not build.remembers(config)
        else "low_discrepancy",
        num_classes=model.num_classes,
        label_drop=config.label_drop if training_time else 0.0,
        dropout=training_time,
    )


def _vlb_bits(key: jax.Array, chain: jd.Chain, x_0: jax.Array, **options: Any) -> jax.Array:
    return jd.losses.vlb(key, chain, x_0, **options) / (x_0[0].size * math.log(2))


def _apply_network(model: models.Model, params: Any, *args: Any, **options: Any) -> Any:
    return model.apply(params["network"], *args, **options)


def make_weight(config: Config) -> Any:
    """The loss weight of a run, None for the plain error."""
    name = config.diffusion.weight
    if name == "none":
        return None
    weights = jd.losses.weights
    return weights.edm(config.diffusion.sigma_data) if name == "edm" else getattr(weights, name)()


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
        # A short run warms up over its first half.
        "warmup": min(optimizer.warmup, config.steps // 2),
        "final_scale": optimizer.final_scale,
    }


def remembers(config: Config) -> bool:
    """Whether the loss remembers what the steps of the chain cost."""
    return config.diffusion.time_sampling == "loss_aware"


def abstract_state(
    config: Config, model: models.Model, event_shape: tuple[int, ...]
) -> training.TrainState:
    """The shapes and dtypes of the run's state, which is not computed."""
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
