"""Load an existing run: its network for a notebook, its folder and data too for the commands."""

import dataclasses
import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

import jaxdiff as jd
from jaxdiff import data, interop, models, training, zoo
from jaxdiff.runs import build, datasets, folders
from jaxdiff.runs.config import FOLDER, Config, Diffusion, as_json, from_fields
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
      folder: the run's folder, as `jaxdiff train` left it; or the folder of a network from
        elsewhere, as `interop.save` or diffusers wrote it; or the name of a network that ships.
      best: whether to take the checkpoint of the lowest held-out loss instead of the newest.
    Returns:
      Trained: model, parameters, schedule, shapes, and `denoiser`. The data are not needed.
    Raises:
      FileNotFoundError: the run or its first checkpoint does not exist.
      ValueError: the configuration is damaged, or all checkpoints are damaged, or a file of a
        network from elsewhere.
    """
    return load_run(Path(folder), best=best).trained


def load_run(
    folder: Path,
    *,
    best: bool = False,
    dataset: str | None = None,
    data_dir: Path | None = None,
    batch_size: int | None = None,
) -> Run:
    """Load a run with its folder and data, from its folder or the name of a network that ships.

    Another data set, place of the data, or batch size takes that of the run's own.
    """
    if str(folder) in zoo.SHA256 and not (folder / "config.json").exists():
        run = shipped(str(folder))
    else:
        trained = interop.recognised(folder)
        run = from_training(folder, best=best) if trained is None else elsewhere(folder, trained)
    if batch_size is not None:
        run = dataclasses.replace(
            run, config=dataclasses.replace(run.config, batch_size=batch_size)
        )
    if dataset is None and data_dir is None:
        return run
    return with_data(run, run.config.dataset if dataset is None else dataset, data_dir)


def from_training(folder: Path, *, best: bool = False) -> Run:
    """Load a run from the folder that `jaxdiff train` left."""
    config = folders.load_config(folder)
    dataset = datasets.later(config, folders.load_facts(folder))
    model = build.make_model(config, dataset)
    abstract = build.abstract_state(config, model, dataset.event_shape)
    run = folders.of_run(config)
    with training.Checkpoints(folder / "checkpoints", read_only=True, run=run) as checkpoints:
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
    dataset = datasets.later(dataclasses.replace(config, data_dir=None), facts)
    return Run(config.run, config, dataset, trained)


UNKNOWN = "unknown data"


def elsewhere(folder: Path, trained: Trained) -> Run:
    """A network from elsewhere, as a run: its folder holds what the commands write.

    A network that `interop.save` took from a run knows its data set. Of others it has to be named.
    """
    if "config" in trained.about:
        try:
            config = from_fields(trained.about["config"], folder)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: about.config: {error}") from error
    else:
        name = {"from_betas": "ddpm"}.get(trained.schedule.name, trained.schedule.name)
        config = Config(
            run=folder,
            dataset=UNKNOWN,
            batch_size=64,
            conditional=trained.num_classes is not None,
            diffusion=Diffusion(
                schedule=cast(Any, name),
                prediction=cast(Any, trained.prediction),
                objective="hybrid" if trained.learned_variance else None,
            ),
        )
    facts = datasets.Facts(trained.event_shape, trained.num_classes, trained.levels)

    def read() -> dict[str, data.Split]:
        raise ValueError(
            f"dataset: expected the name of a data set (--dataset NAME), because {folder} does not "
            "say what its network was trained on"
        )

    dataset = datasets.later(dataclasses.replace(config, data_dir=None), facts)
    if config.dataset == UNKNOWN:
        dataset = dataclasses.replace(dataset, read=read)
    return Run(folder, config, dataset, trained)


def with_data(run: Run, name: str, data_dir: Path | None) -> Run:
    """The run on another data set, of examples that its network takes."""
    if name == UNKNOWN:
        raise ValueError(f"dataset: expected the name of a data set beside data_dir, {data_dir}")
    trained, folder = run.trained, run.config.folder if name == FOLDER else None
    config = dataclasses.replace(run.config, dataset=name, data_dir=data_dir, folder=folder)
    dataset = datasets.of(config)
    if dataset.event_shape != trained.event_shape:
        raise ValueError(
            f"dataset: expected examples of shape {trained.event_shape}, as the network's, "
            f"got {name} of {dataset.event_shape}"
        )
    if trained.num_classes is not None and dataset.num_classes not in (None, trained.num_classes):
        raise ValueError(
            f"dataset: expected {trained.num_classes} classes, as the network has, "
            f"got {name} of {dataset.num_classes}"
        )
    if trained.prediction == "levels" and dataset.levels != trained.levels:
        raise ValueError(
            f"dataset: expected {trained.levels} levels, which the network predicts, "
            f"got {name} of {dataset.levels}"
        )
    return Run(run.folder, config, dataset, dataclasses.replace(trained, levels=dataset.levels))
