"""Evaluate a run on held-out data: probability, denoising error, classes, two-sample test."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jaxdiff import training
from jaxdiff.cli import pictures, tables, typed
from jaxdiff.runs import (
    denoising,
    estimates,
    loading,
    machine,
    quality,
    require,
    samplers,
    sampling,
)
from jaxdiff.runs.probability import Probability


@dataclass(frozen=True)
class Options:
    """What to measure."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run that `jaxdiff train` made, or of a network from elsewhere; or mnist, the
    network that ships with jaxdiff."""
    num_times: int = 12
    """Noise levels at which the denoising error is measured."""
    examples: int = 1000
    """Held-out examples for it, at most."""
    samples: int = 500
    """Samples to classify and compare; at most the number of held-out examples; 0 for none."""
    sampler: samplers.SamplerName = "unipc_2"
    """How they are drawn."""
    steps: int = 20
    """Steps of the sampler."""
    guidance: float = 1.0
    """Guidance scale of the samples."""
    classifier_steps: int | None = None
    """Updates of the independent classifier, which is trained on the real training images; if not
    given, 1200 or those of 60 epochs, whichever is less."""
    seed: int = 0
    """Seed of noise and samples."""
    batch_size: int | None = None
    """Examples or samples that the network takes at a time, over all devices; the batch size of the
    run's training if not given. The memory of the network grows with it, and the rest grows
    with the examples and samples."""
    best: bool = False
    """Use the checkpoint of the lowest held-out loss instead of the newest."""
    dataset: str | None = None
    """Data set to measure on, as `jaxdiff train` takes it; the one that the network was trained on
    if not given."""
    data_dir: Path | None = None
    """Where TFDS keeps it; the run's own place if not given."""
    probability: Probability = field(default_factory=Probability)


def sample_quality(run: loading.Run, options: Options) -> dict[str, Any]:
    """Measure samples with a classifier, two-sample metrics and a search for copies."""
    sizes = (split.num_examples for split in run.dataset.splits.values())
    num = min(options.samples, *sizes)  # as many real ones
    labels = sampling.classes_in_turn(run.trained, num)
    x = sampling.generate(
        run.trained,
        num,
        seed=options.seed,
        labels=labels,
        guidance=options.guidance,
        sampler=options.sampler,
        steps=options.steps,
        keep=run.folder / "samples" / "parts",
        batch_size=run.config.batch_size,
    ).x
    measured = quality.measure(
        run, x, labels, seed=options.seed, classifier_steps=options.classifier_steps
    )
    if x.ndim == 4:
        copied, _ = run.dataset.examples("train", measured.nearest)
        pictures.neighbours(x, measured.distance, copied, run.folder / "neighbours.png")
    return measured.figures


def estimate_probability(run: loading.Run, options: Options) -> list[dict[str, Any]]:
    """Print the table of the model's probability and draw its pictures; finished parts are kept."""
    rows, shown = estimates.estimate(run, options.probability, seed=options.seed)
    tables.print_probability(rows)
    pictures.bound_terms(shown["terms"], run.folder / "terms.png")
    if "works" in shown:
        pictures.crooks(shown["works"], run.folder / "crooks.png")
    if "paths" in shown or "works" in shown:
        size = int(np.prod(run.dataset.event_shape))
        pictures.bound_by_paths(shown, size, run.folder / "paths.png")
    if "acceptance" in shown:
        share = f"{shown['acceptance']:.0%}"
        print(f"annealing accepted {share} of its moves (--probability.ais-step-size)")
    return [dataclasses.asdict(row) for row in rows]


def check(options: Options) -> None:
    """Refuse what cannot be measured, before anything is read."""
    require.seed(options.seed)
    require.counts(
        options, num_times=1, batch_size=1, examples=2, samples=0, steps=1, classifier_steps=1
    )
    if 0 < options.samples < 10:
        raise ValueError(f"samples: expected at least 10, or 0 for none, got {options.samples}")
    require.numbers(options, guidance=require.FINITE, probability__ais_step_size=require.POSITIVE)
    require.counts(
        options, probability__examples=0, probability__term_examples=2,
        probability__steps=1, probability__times=2,
        probability__paths=1, probability__path_examples=0, probability__simulated_examples=0,
        probability__ode_steps=1, probability__ode_examples=0,
        probability__ais_examples=0, probability__ais_temperatures=1,
    )  # fmt: skip
    for name in ("examples", "path_examples", "simulated_examples", "ode_examples", "ais_examples"):
        value = getattr(options.probability, name)
        if value == 1:
            raise ValueError(
                f"probability.{name}: expected at least 2 for a standard error, or 0 for none, "
                "got 1"
            )


def possible(run: loading.Run, options: Options) -> Options:
    """Leave out what too few examples do not allow, and print a line for it before any work."""
    if options.probability.examples:  # 0 leaves out what needs all classes together
        run.trained.model.check_label(None)
    num_train, num_held_out = (len(run.dataset.splits[name].images) for name in ("train", "test"))
    if min(num_train, num_held_out) < 2:
        got = f"{num_train} and {num_held_out}"
        raise ValueError(
            f"run: expected at least 2 training and 2 held-out examples of {run.dataset.name}, "
            f"got {got}"
        )
    if options.samples and min(num_train, num_held_out) < 10:
        print(
            "no samples: they are compared with at least 10 training and 10 held-out examples, "
            f"and there are {num_train} and {num_held_out}"
        )
        return dataclasses.replace(options, samples=0)
    return options


def main(options: Options) -> dict[str, Any]:
    """Measure, print and save."""
    check(options)
    run = loading.load_run(
        options.run, best=options.best, dataset=options.dataset, data_dir=options.data_dir,
        batch_size=options.batch_size,
    )  # fmt: skip
    options = possible(run, options)
    rows = denoising.denoising_errors(
        run, num_times=options.num_times, examples=options.examples, seed=options.seed
    )
    tables.print_denoising(rows)
    pictures.error_by_time(rows, run.folder / "denoising.png")
    result: dict[str, Any] = {
        "step": run.trained.step,
        "dataset": run.dataset.name,
        "command": typed(),
        "machine": machine.describe(),
        "denoising": rows,
    }
    if options.probability.examples:
        result["probability"] = estimate_probability(run, options)
    if options.samples:
        found = sample_quality(run, options)
        result |= found
        tables.print_quality(found)
    training.write_json(run.folder / "evaluation.json", result)
    return result
