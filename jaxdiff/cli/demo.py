"""Train on the embedded digits, sample, evaluate, and write a report: the whole way in minutes."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from jaxdiff import training
from jaxdiff.cli import evaluate, report, train
from jaxdiff.runs import machine
from jaxdiff.runs.config import PRESETS
from jaxdiff.runs.probability import Probability


@dataclass(frozen=True)
class Options:
    """The run of the demonstration."""

    run: Path = Path("runs/demo")
    """Folder of the run. A second call goes on with the run; if it is complete, only the evaluation
    is repeated."""
    steps: int = PRESETS["digits"][1].steps
    """Number of updates."""


def main(options: Options) -> bool:
    """Train, evaluate and report; return False if the user has stopped the training."""
    began = time.monotonic()
    config = dataclasses.replace(PRESETS["digits"][1], run=options.run, steps=options.steps)
    if not train.main(config):
        return False
    trained = time.monotonic()
    # The bound is the objective of another run: the preset digits-likelihood.
    none = Probability(examples=0)
    evaluation = evaluate.main(evaluate.Options(run=options.run, probability=none))
    ended = time.monotonic()
    figures = {name: value for name, value in evaluation.items() if not isinstance(value, list)}
    summary = {
        "dataset": config.dataset,
        "steps": config.steps,
        "seed": config.seed,
        "training_seconds_this_call": round(trained - began, 1),
        "evaluation_seconds": round(ended - trained, 1),
        "machine": machine.describe(),
    } | figures
    training.write_json(options.run / "summary.json", summary)
    report.main(report.Options(runs=(options.run,)))
    return True
