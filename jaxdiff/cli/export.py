"""Pack a run's averaged parameters, and its spread, into a file that `jaxdiff.pretrained` can ship.

jaxdiff export runs/mnist --output jaxdiff/zoo/mnist.npz

With --program it writes a sampler with its network instead: a file that runs where JAX is, without
jaxdiff (`interop.export_sampler` says how). Any network can be written so.

jaxdiff export runs/mine --program digits.stablehlo --guidance 1.5
"""

import dataclasses
import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from jaxdiff import interop, models, training, zoo
from jaxdiff.runs import loading, loop, problems, require, samplers, sampling
from jaxdiff.runs.config import as_json


@dataclass(frozen=True)
class Sampling:
    """The sampler of a program."""

    guidance: float = 1.0
    """Classifier-free guidance: 1 is the model, more follows the label harder."""
    sampler: samplers.SamplerName = samplers.DEFAULT
    """As `jaxdiff sample` takes it."""
    steps: int = samplers.STEPS
    """Number of steps."""
    noise: float = 0.0
    """The sampler's own noise: 0 is the probability-flow ODE."""
    grid: samplers.GridName = "uniform"
    """Where the steps are."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """Where the program is to run."""


@dataclass(frozen=True)
class Options:
    """Which run, and where to."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run that `jaxdiff train` made, of images, with a schedule that is not learned. A
    program may be of any network, mnist too."""
    output: Path | None = None
    """The file; RUN/NAME.npz of the data set's name if not given."""
    source: str = ""
    """Where the data come from, and their licence, to be kept in the file."""
    program: Path | None = None
    """Write the sampler with its network to this file instead: StableHLO, with its batch size
    free."""
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = dataclasses.field(default_factory=Sampling)
    """Of the program."""


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


def write_program(trained: zoo.Trained, options: Sampling, file: Path) -> Path:
    """Write the sampler of a network to a file."""
    content = interop.export_sampler(
        trained,
        kernel=lambda denoiser, schedule: samplers.make_kernel(
            options.sampler,
            denoiser,
            schedule,
            options.noise,
            variance=sampling.reverse_variance(trained),
        ),
        ts=samplers.make_grid(trained.schedule, options.grid, options.steps),
        guidance=options.guidance,
        platforms=options.platforms,
    )
    with training.atomic(file) as draft:
        draft.write_bytes(content)
    print(f"{file}: {len(content) / 1e6:.2f} MB for {', '.join(options.platforms)}")
    labels = "" if trained.num_classes is None else ", label [B] int32"
    print(f"inputs: seed [] uint32, index [B] uint32{labels}")
    return file


def main(options: Options) -> Path:
    require.counts(options.sampling, steps=1)
    require.numbers(options.sampling, guidance=require.FINITE, noise=require.NOT_NEGATIVE)
    samplers.require_noise(options.sampling.sampler, options.sampling.noise)
    if options.program is None and options.sampling != Sampling():
        raise ValueError(f"sampling: expected none without --program, got {options.sampling}")
    run = loading.load_run(options.run)
    if options.program is not None:
        return write_program(run.trained, options.sampling, options.program)
    output = options.output or run.folder / f"{run.dataset.name}.npz"
    if output.suffix != ".npz":
        raise ValueError(f"output: expected a name that ends in .npz, got {output}")
    arrays: dict[str, Any] = {zoo.ABOUT: json.dumps(about(run, options.source))} | zoo.pack(
        run.trained.params
    )
    arrays |= zoo.pack_spread(problems.spread_of(run))
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
