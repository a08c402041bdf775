"""What a run minimises."""

import dataclasses
import math
from typing import Any

import _config
import jax
from _datasets import Dataset
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import models, training


def make_loss(
    config: _config.Config, model: models.Model, dataset: Dataset, *, training_time: bool = True
) -> Any:
    """The loss of a run, per example; without dropout, hidden labels and memory outside training."""
    if config.diffusion.finite:
        return _chain_loss(config, model, dataset, training_time)
    if config.diffusion.schedule == "learned":
        return training.likelihood_loss(
            _config.make_denoiser(config, model, dataset.levels),
            decoder=jd.decoders.categorical(dataset.levels or 2),
            time_sampling=config.diffusion.time_sampling,
            dropout=training_time,
        )
    return training.denoising_loss(
        Partial(_apply_network, model),
        _config.make_schedule(config),
        prediction=config.diffusion.prediction,
        weight=make_weight(config),
        num_classes=model.num_classes,
        label_drop=config.label_drop if training_time else 0.0,
        sigma_data=config.diffusion.sigma_data,
        time_sampling=config.diffusion.time_sampling,
        dropout=training_time,
    )


def _chain_loss(
    config: _config.Config, model: models.Model, dataset: Dataset, training_time: bool
) -> Any:
    diffusion, schedule = config.diffusion, _config.make_schedule(config)
    chain = _config.make_chain(
        config, schedule, levels=dataset.levels, num_steps=diffusion.num_steps
    )
    denoiser_of = _config.make_denoiser(config, model, dataset.levels)

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
        if training_time or not _config.remembers(config)
        else "low_discrepancy",
        num_classes=model.num_classes,
        label_drop=config.label_drop if training_time else 0.0,
        dropout=training_time,
    )


def _vlb_bits(key: jax.Array, chain: jd.Chain, x_0: jax.Array, **options: Any) -> jax.Array:
    return jd.losses.vlb(key, chain, x_0, **options) / (x_0[0].size * math.log(2))


def _apply_network(model: models.Model, params: Any, *args: Any, **options: Any) -> Any:
    return model.apply(params["network"], *args, **options)


def make_weight(config: _config.Config) -> Any:
    """The loss weight of a run, None for the plain error."""
    name = config.diffusion.weight
    if name == "none":
        return None
    return (
        jd.losses.edm(config.diffusion.sigma_data) if name == "edm" else getattr(jd.losses, name)()
    )
