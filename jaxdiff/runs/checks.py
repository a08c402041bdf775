"""Checks of a configuration before a run begins."""

import math
import sys
from typing import Any

from jaxdiff import models, prediction
from jaxdiff.runs import build, require
from jaxdiff.runs.config import Config, Network
from jaxdiff.runs.datasets import Dataset


def check(config: Config) -> None:
    """Refuse numbers out of range, and options that do not fit together."""
    require.seed(config.seed)
    require.counts(
        config, steps=1, batch_size=1, accumulate=1, at_once=1, most_skipped=1, log_every=1,
        eval_every=1, size=1,
        network__channels=1, network__multipliers=1, network__num_blocks=1, network__attention=1,
        network__patch=1, diffusion__num_steps=1, optimizer__warmup=0,
    )  # fmt: skip
    require.numbers(
        config, label_drop=require.SHARE, network__dropout=require.DECAY,
        diffusion__sigma_data=require.POSITIVE,
        optimizer__learning_rate=require.POSITIVE, optimizer__final_scale=require.SHARE,
        optimizer__clip_norm=require.POSITIVE,
        optimizer__b1=require.DECAY, optimizer__b2=require.DECAY,
        optimizer__weight_decay=require.NOT_NEGATIVE, optimizer__ema_decay=require.DECAY,
    )  # fmt: skip
    every = (config.log_every, config.eval_every)
    if any(steps % config.at_once for steps in every):
        raise ValueError(
            f"at_once: expected a divisor of log_every and eval_every, {every}, "
            f"got {config.at_once}"
        )
    network = config.network
    if network.channels is not None and network.channels % 8:
        raise ValueError(f"network.channels: expected a multiple of 8, got {network.channels}")
    if network.multipliers == ():
        raise ValueError("network.multipliers: expected at least one level, got ()")
    if not all(0 <= n <= models.MOST_FOURIER for n in network.fourier):
        raise ValueError(
            f"network.fourier: expected exponents 0 to {models.MOST_FOURIER}, got {network.fourier}"
        )
    _check_diffusion(config)


def _check_diffusion(config: Config) -> None:
    """Refuse parts of a process that do not fit together."""
    diffusion = config.diffusion
    names = (diffusion.schedule, diffusion.prediction)
    if (names[0] == "learned") != (names[1] == "levels"):
        raise ValueError(
            f"schedule, prediction: expected learned and levels together or neither, got {names}"
        )
    if names[0] == "learned" and config.conditional:
        raise ValueError(
            "conditional: expected False (--no-conditional) where the probability of the data is "
            "trained"
        )
    if names[0] == "learned" and diffusion.objective is not None:
        raise ValueError(
            "objective: expected None with the learned schedule's own bound, "
            f"got {diffusion.objective}"
        )
    if names[1] != "levels":
        prediction.check_start(build.make_schedule(config), names[1])
    if diffusion.weight != "none" and (names[0] == "learned" or diffusion.finite):
        raise ValueError(
            f"weight: expected none but for the simple objective, got {diffusion.weight}"
        )
    if diffusion.time_sampling == "loss_aware" and not diffusion.finite:
        raise ValueError(
            f"time_sampling: expected loss_aware with vlb or hybrid only, got {diffusion.objective}"
        )


def check_network(config: Config, dataset: Dataset) -> None:
    """Refuse network options that do nothing for these data; report attention without a place."""
    network: Any = config.network  # with all of its sizes
    if len(dataset.event_shape) == 1:
        if config.flip:
            raise ValueError(f"flip: expected False, because {config.dataset} has no images")
        for name in ("multipliers", "attention", "patch", "fourier", "remat"):
            default = getattr(Network(), name)
            if getattr(network, name) != default:
                raise ValueError(
                    f"network.{name}: expected the default, {default}, because the MLP for "
                    f"{config.dataset}'s vectors has none, got {getattr(network, name)}"
                )
        return
    height, width = dataset.event_shape[:2]
    if network.patch > min(height, width):
        raise ValueError(
            f"network.patch: expected at most the images' side, {min(height, width)}, "
            f"got {network.patch}"
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
