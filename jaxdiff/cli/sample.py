"""Draw samples from a trained run: a sheet, a GIF of the reverse process, and the arrays."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxdiff import training
from jaxdiff.cli import pictures
from jaxdiff.runs import loading, require, samplers, sampling


@dataclass(frozen=True)
class Options:
    """What to draw and how."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run that `jaxdiff train` made, or of a network from elsewhere; or mnist, the
    network that ships with jaxdiff."""
    num: int = 100
    """Number of samples."""
    labels: tuple[int, ...] = ()
    """Classes to draw, repeated in turn; all of them in turn if not given."""
    unconditional: bool = False
    """Hide the label from a class-conditional network."""
    guidance: float = 1.0
    """Classifier-free guidance: 1 is the model, more follows the label harder (needs a label)."""
    sampler: samplers.SamplerName = samplers.DEFAULT
    """unipc_2 is the one to start with, ancestral is DDPM's; docs/choosing has the others."""
    steps: int = samplers.STEPS
    """Number of steps, each one network call (heun, dpmpp_2s and corrected: two)."""
    noise: float = 0.0
    """eta of ddim, tau of dpmpp_2m and dpmpp_3m, churn of heun: 0 is the probability-flow ODE."""
    grid: samplers.GridName = "uniform"
    """Where the steps are."""
    threshold: Literal["own", "none", "static", "dynamic"] = "own"
    """Whether every denoised image is kept within [-1, 1]; own is as the network's files say, and
    none where they say nothing."""
    seed: int = 0
    """Sample i depends on (seed, i) alone, whatever the batch size and the number of devices."""
    batch_size: int | None = None
    """Samples at a time, over all devices; the batch size of the run's training if not given. The
    memory of the network grows with it, and only the samples themselves grow with --num."""
    best: bool = False
    """Use the checkpoint of the lowest held-out loss instead of the newest."""
    output: Path | None = None
    """Folder for the results; RUN/samples if not given."""


def labels_of(options: Options, run: loading.Run) -> np.ndarray | None:
    """Return the label of each sample; None if the samples are unconditional."""
    num_classes = run.trained.num_classes
    if num_classes is None or options.unconditional:
        if options.labels or options.guidance != 1:
            why = "the run has no classes" if num_classes is None else "--unconditional hides them"
            raise ValueError(f"labels, guidance: expected none, because {why}")
        return None
    chosen = np.asarray(options.labels or range(num_classes))
    if chosen.min() < 0 or chosen.max() >= num_classes:
        raise ValueError(f"labels: expected classes 0 to {num_classes - 1}, got {options.labels}")
    return np.resize(chosen, options.num)


def check(options: Options) -> None:
    """Refuse what cannot be drawn, before anything is read."""
    require.seed(options.seed)
    require.counts(options, num=1, steps=1, batch_size=1, labels=0)
    require.numbers(options, guidance=require.FINITE, noise=require.NOT_NEGATIVE)
    samplers.require_noise(options.sampler, options.noise)


def main(options: Options) -> None:
    check(options)
    run = loading.load_run(options.run, best=options.best)
    labels = labels_of(options, run)
    trained = run.trained
    if options.threshold == "none":
        trained = dataclasses.replace(trained, threshold=None)
    began = time.monotonic()
    generated = sampling.generate(
        trained,
        options.num,
        seed=options.seed,
        labels=labels,
        guidance=options.guidance,
        sampler=options.sampler,
        noise=options.noise,
        steps=options.steps,
        grid=options.grid,
        threshold=options.threshold if options.threshold in ("static", "dynamic") else None,
        batch_size=run.config.batch_size if options.batch_size is None else options.batch_size,
        save_every=max(1, options.steps // 25),
    )
    seconds = time.monotonic() - began
    folder = run.folder / "samples" if options.output is None else options.output
    arrays: dict[str, Any] = {"x": generated.x} | ({} if labels is None else {"labels": labels})
    if (table := run.dataset.in_units(generated.x)) is not None:
        arrays["table"] = table
    with training.atomic(folder / "samples.npz") as draft:
        np.savez_compressed(draft, **arrays)
    real = run.dataset.head("train", min(options.num, 100))[0] if run.dataset.is_here else None
    pictures.samples(run.dataset, generated.x[:100], real, folder / "samples.png")
    pictures.reverse(run.dataset, generated.trajectory[:, :64], folder / "reverse.gif")
    print(f"{options.num} samples of step {run.trained.step} in {seconds:.1f} s with compilation")
    print(f"look at {folder / 'samples.png'}")
