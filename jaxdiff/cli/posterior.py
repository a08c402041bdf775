"""Draw posterior samples of observed images from a trained run, with evidence and calibration.

jaxdiff posterior RUN --task inpaint
jaxdiff posterior RUN --task inpaint --compare     # every method at equal network calls

Held-out images are observed (in part, blurred, in noise, ...), and samples are drawn from the
model's p(x_0 | y): each from a particle system of its own, so that they are independent.
Calibration checks this: images from the model itself are observed, and their ranks among posterior
samples must be uniform. A call is one network call on one image; a vector-Jacobian product counts
as one more.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxdiff import training
from jaxdiff.cli import posterior_pictures, posterior_tables
from jaxdiff.runs import (
    loading,
    machine,
    methods,
    posteriors,
    problems,
    recogniser,
    records,
    require,
    tasks,
)
from jaxdiff.runs.seeds import key_of


@dataclass(frozen=True)
class Options:
    """What is observed of which images, and how the posterior is drawn."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run that `jaxdiff train` made, or of a network from elsewhere; or mnist, the
    network that ships with jaxdiff."""
    task: tasks.TaskName = "inpaint"
    """What is observed: all but the middle, the top half, everything in noise, blurred, in blocks,
    a random projection, photon counts, or the class."""
    method: methods.MethodName = "twisted"
    """How the posterior is drawn; docs/choosing says which to use when."""
    compare: bool = False
    """Compare methods at equal network calls."""
    among: tuple[methods.MethodName, ...] = ()
    """Methods to compare; all that the task allows if not given."""
    classes: bool = False
    """Classify by evidence: compute log p(y) under each class of a class-conditional run."""
    images: int = 8
    """Held-out images."""
    calibration: int = 60
    """Images drawn from the model for the calibration; 0 leaves it out."""
    noise: float | None = None
    """Standard deviation of the observation's noise, for images in [-1, 1]; the task's own if not
    given."""
    peak: float = 8.0
    """Mean count of a white pixel, for --task poisson."""
    sampling: tyro.conf.OmitArgPrefixes[problems.Particles] = field(
        default_factory=problems.Particles
    )
    """How samples are drawn."""
    seed: int = 0
    """Image i depends on (seed, i) alone."""
    batch_size: int | None = None
    """Images drawn from the model at a time, for the calibration; the batch size of the run's
    training if not given. The posterior takes --at-once images of --draws times --rows rows at a
    time on a device: its memory grows with these. The rest grows with images times draws."""
    best: bool = False
    """Use the checkpoint of the lowest held-out loss instead of the newest."""
    dataset: str | None = None
    """Data set to measure on, as `jaxdiff train` takes it; the one that the network was trained on
    if not given."""
    data_dir: Path | None = None
    """Where TFDS keeps it; the run's own place if not given."""


def held_out(run: loading.Run, task: tasks.Task, options: Options) -> posteriors.Observed:
    """The first held-out images, observed."""
    x_0, labels = run.dataset.head("test", options.images)
    return posteriors.observe(task, x_0, labels, seed=options.seed, what=f"observe {task.name}")


def one_method(
    run: loading.Run,
    problem: problems.Problem,
    name: str,
    options: Options,
    *,
    seen: posteriors.Observed,
    own: posteriors.Observed | None,
    read: Any = None,
) -> tuple[posteriors.Drawn, dict[str, Any]]:
    """Draw, measure and calibrate with one method, at the calls that are given to it."""
    size = problems.size_of(name, problem, equal=options.compare)
    what = f"posterior {problem.task.name}"
    drawn = posteriors.draw(run, problem, name, seen.ys, seed=options.seed, what=what, size=size)
    rows = posteriors.figures(problem.task, seen, drawn)
    found: dict[str, Any] = {
        "method": name,
        "systems": size.systems,
        "rows": size.rows,
        "calls": problems.calls_of(name, problem, size),
        "seconds_an_image": drawn.seconds,
        "weighted": methods.METHODS[name].weighted,
        "images": rows,
        "mean": {field: float(np.mean([row[field] for row in rows])) for field in rows[0]},
    }
    if own is not None:
        found["calibration"] = posteriors.calibrate(
            run, problem, name, own, size=size, seed=options.seed, read=read
        )
    return drawn, found


def by_class(
    run: loading.Run, problem: problems.Problem, options: Options, seen: posteriors.Observed
) -> dict[str, Any]:
    """Classify each image by Bayes' rule, from the evidence of each class's own model."""
    num_classes = run.trained.num_classes
    if num_classes is None or not methods.METHODS[options.method].weighted:
        raise ValueError("classes: expected a class-conditional run, and a method with evidence")
    log_evidence = []
    for number in range(num_classes):
        labels = np.full(len(seen.ys), number)
        what = f"class {number} of {problem.task.name}"
        drawn = posteriors.draw(
            run, problem, options.method, seen.ys, seed=options.seed, what=what, labels=labels
        )
        log_evidence.append(drawn.log_evidence)
    table = np.stack(log_evidence, axis=1)
    probability = np.asarray(jax.nn.softmax(jnp.asarray(table), axis=1))
    right = table.argmax(1) == seen.labels
    print(f"the class of the largest evidence is the label in {right.sum()} of {len(right)} images")
    return {
        "log_evidence": table.tolist(),
        "probability": probability.tolist(),
        "accuracy": float(right.mean()),
    }


def check(options: Options) -> None:
    """Refuse what cannot be drawn, before anything is read."""
    require.seed(options.seed)
    require.counts(options, images=1, calibration=0, batch_size=1)
    require.counts(options.sampling, draws=1, rows=2, steps=2, at_once=1)
    if options.among and not options.compare:
        raise ValueError("among: expected none without --compare; --method names one")
    if 0 < options.calibration < 10:
        raise ValueError(
            f"calibration: expected 0, or at least 10 images, got {options.calibration}"
        )
    width = ("a positive standard deviation", require.POSITIVE[1])
    require.numbers(options, noise=width, peak=("a positive mean count", require.POSITIVE[1]))
    require.numbers(
        options.sampling, start=require.FINITE, threshold=require.NOT_NEGATIVE, prior_std=width
    )


def main(options: Options) -> dict[str, Any]:
    """Observe, draw, measure, print, draw pictures and save."""
    check(options)
    run = loading.load_run(
        options.run, best=options.best, dataset=options.dataset, data_dir=options.data_dir,
        batch_size=options.batch_size,
    )  # fmt: skip
    run.trained.model.check_label(None)  # the prior is that of all classes together
    task = tasks.make_task(
        options.task, run.dataset, noise=options.noise, peak=options.peak, seed=options.seed
    )
    for chosen in options.among if options.compare else (options.method,):
        problems.check_method(chosen, task, options.sampling)
    problem = problems.make_problem(task, run, options.sampling)
    names: list[str] = [options.method]
    if options.compare:
        names = list(options.among) or problems.fitting(task, options.sampling)
    folder = (
        run.folder / "posterior" / f"{task.name}-{'compare' if options.compare else options.method}"
    )
    seen = held_out(run, task, options)
    own, read = None, None
    if options.calibration:
        own = posteriors.from_the_model(run, problem, num=options.calibration, seed=options.seed)
        if options.compare and np.any(seen.labels >= 0):
            read = recogniser.trained(run).log_probabilities
    found: list[dict[str, Any]] = []
    draws: dict[str, posteriors.Drawn] = {}
    for name in names:
        draws[name], row = one_method(run, problem, name, options, seen=seen, own=own, read=read)
        found.append(row)
    posterior_tables.show(found, task)
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "step": run.trained.step,
        "task": task.name,
        "methods": found,
    }
    result["options"] = records.for_json(options)
    if options.classes:
        result["classes"] = by_class(run, problem, options, seen)
    posterior_pictures.samples(
        task, seen, draws, folder / "posterior.png", key=key_of(options.seed, "pictures")
    )
    if own is not None:
        posterior_pictures.ranks(found, folder / "calibration.png")
        posterior_pictures.decision(found, folder / "decision.png")
    training.write_json(folder / "posterior.json", result)
    print(f"look at {folder / 'posterior.png'}")
    return result
