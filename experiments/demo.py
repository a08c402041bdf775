"""The whole way in minutes: train on the embedded digits, sample, evaluate, and write a report to look at."""

import _process

_process.configure()

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import _cli
import _config
import _probability
import _report
import evaluate
import train
import tyro

from jaxdiff import training


@dataclass(frozen=True)
class Options:
    """The run of the demonstration."""

    run: Path = Path("runs/demo")
    """Folder of the run. A second call goes on from, or repeats only the evaluation of, the run that is there."""
    steps: int = _config.PRESETS["digits"][1].steps
    """Number of updates."""


def main(options: Options) -> int:
    began = time.monotonic()
    config = dataclasses.replace(_config.PRESETS["digits"][1], run=options.run, steps=options.steps)
    if not train.train(config):
        return 130
    trained = time.monotonic()
    none = _probability.Probability(
        examples=0
    )  # the bound is another objective's: the digits-likelihood preset
    evaluation = evaluate.evaluate(evaluate.Options(run=options.run, probability=none))
    ended = time.monotonic()
    summary = {
        "dataset": config.dataset,
        "steps": config.steps,
        "seed": config.seed,
        "training_seconds_this_call": round(trained - began, 1),
        "evaluation_seconds": round(ended - trained, 1),
        "machine": _cli.machine(),
    } | {name: value for name, value in evaluation.items() if name != "denoising"}
    training.write_json(options.run / "summary.json", summary)
    _report.write(options.run, summary, evaluation["denoising"])
    print(f"look at {options.run / 'report.html'}")
    return 0


if __name__ == "__main__":
    with _cli.one_line_errors():
        sys.exit(main(tyro.cli(Options, description=__doc__)))
