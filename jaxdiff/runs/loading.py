"""Load an existing run: its network for a notebook, its folder and data too for the commands."""

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jaxdiff as jd
from jaxdiff import models, training, zoo
from jaxdiff.runs import build, datasets, folders
from jaxdiff.runs.config import Config, as_json, from_fields
from jaxdiff.zoo import Trained


@dataclass(frozen=True, eq=False)
class Run:
    """A network with the folder and the data of its run."""

    folder: Path
    config: Config
    dataset: datasets.Dataset
    trained: Trained


def load(folder: str | PathLike, *, best: bool = False) -> Trained:
    """Load the network of a run, with the moving average of its parameters.

        trained = jd.load("runs/mine")
        jd.draw(key, trained.denoiser(), trained.schedule, (16, *trained.event_shape))

    Args:
      folder: the run's folder, as `jaxdiff train` left it; or the name of a network that ships.
      best: whether to take the checkpoint of the lowest held-out loss instead of the newest.
    Returns:
      Trained: model, parameters, schedule, shapes, and `denoiser`. The data are not needed.
    Raises:
      FileNotFoundError: the run or its first checkpoint does not exist.
      ValueError: the configuration is damaged, or all checkpoints are damaged.
    """
    return load_run(Path(folder), best=best).trained


def load_run(folder: Path, *, best: bool = False) -> Run:
    """Load a run with its folder and data, from its folder or the name of a network that ships."""
    if str(folder) in zoo.SHA256 and not (folder / "config.json").exists():
        return shipped(str(folder))
    config = folders.load_config(folder)
    dataset = datasets.later(config.dataset, folders.load_facts(folder), config.data_dir)
    model = build.make_model(config, dataset)
    abstract = build.abstract_state(config, model, dataset.event_shape)
    with training.Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(abstract, best=best)
    if state is None:
        raise FileNotFoundError(
            f"run: {folder} has no checkpoint yet; train it with `jaxdiff train`"
        )
    return assemble(config, dataset, model, state.ema_params, step=int(state.step))


def assemble(
    config: Config, dataset: datasets.Dataset, model: models.Model, params: Any, *, step: int = 0
) -> Run:
    """Put a run together; params holds the parameters of the network and of the schedule."""
    trained = Trained(
        model=model,
        params=params["network"],
        schedule=build.make_schedule(config, params["schedule"]),
        prediction=config.diffusion.prediction,
        event_shape=dataset.event_shape,
        levels=dataset.levels,
        sigma_data=config.diffusion.sigma_data,
        about={"step": step, "config": json.loads(as_json(config))},
    )
    return Run(config.run, config, dataset, trained)


def shipped(name: str) -> Run:
    """A network that ships, as the run that it came from; its folder is runs/NAME-pretrained."""
    trained = jd.pretrained(name)
    config = from_fields(trained.about["config"], Path("runs") / f"{name}-pretrained")
    facts = datasets.Facts(trained.event_shape, trained.num_classes, trained.levels)
    dataset = datasets.later(config.dataset, facts)
    return Run(config.run, config, dataset, trained)
