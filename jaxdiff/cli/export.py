"""Pack a run's averaged parameters, and its spread, into a file that `jaxdiff.pretrained` can ship.

jaxdiff export runs/mnist --output jaxdiff/zoo/mnist.npz
"""

import dataclasses
import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from jaxdiff import models, training, zoo
from jaxdiff.runs import loading, loop, problems
from jaxdiff.runs.config import as_json


@dataclass(frozen=True)
class Options:
    """Which run, and where to."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run that `jaxdiff train` made, of images, with a schedule that is not learned."""
    output: Path | None = None
    """The file; RUN/NAME.npz of the data set's name if not given."""
    source: str = ""
    """Where the data come from, and their licence, to be kept in the file."""


def about(run: loading.Run, source: str) -> dict[str, Any]:
    """Return what `zoo.read` needs besides the parameters, and their origin."""
    config = run.config
    if (
        len(run.dataset.event_shape) != 3
        or config.diffusion.schedule in ("learned", "ddpm")
        or config.diffusion.finite
    ):
        raise ValueError(
            "run: expected one of images with a named schedule and the simple objective, "
            f"got {config.dataset} with {config.diffusion.schedule}, {config.diffusion.objective}"
        )
    arguments = inspect.signature(models.unet).parameters
    # The file must not name folders of this machine.
    config = dataclasses.replace(config, run=Path("runs") / config.run.name, data_dir=None)
    return {
        "unet": {name: getattr(run.trained.model.module, name) for name in arguments},
        "schedule": config.diffusion.schedule,
        "prediction": config.diffusion.prediction,
        "sigma_data": config.diffusion.sigma_data,
        "event_shape": run.dataset.event_shape,
        "levels": run.dataset.levels,
        "step": run.trained.step,
        "source": source,
        "config": json.loads(as_json(config)),
    }


def main(options: Options) -> Path:
    run = loading.load_run(options.run)
    output = options.output or run.folder / f"{run.dataset.name}.npz"
    if output.suffix != ".npz":
        raise ValueError(f"output: expected a name that ends in .npz, got {output}")
    arrays: dict[str, Any] = {zoo.ABOUT: json.dumps(about(run, options.source))} | zoo.pack(
        run.trained.params
    )
    train, _ = run.dataset.head("train", problems.SPREAD_IMAGES)
    arrays |= zoo.pack_spread(problems.spread_of(run, train))
    with training.atomic(output) as draft:
        np.savez_compressed(draft, **arrays)
    content = output.read_bytes()
    read = zoo.read(output.stem, content)
    loss = loop.held_out_loss(run.config, run.dataset, run.trained.model)
    before, after = (
        float(loss({"network": params, "schedule": {}}))
        for params in (run.trained.params, read.params)
    )
    num = sum(leaf.size for leaf in jax.tree.leaves(read.params))
    print(f"{output}: {num} parameters in {len(content) / 1e6:.2f} MB")
    print(f"held-out loss {before:.5f} before rounding, {after:.5f} after")
    print(f"SHA-256 {hashlib.sha256(content).hexdigest()}")
    return output
