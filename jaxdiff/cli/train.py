"""Train a diffusion model; the same command again goes on with a run that was stopped.

A run whose updates need more memory than is left is refused before its first step.
JAXDIFF_ANYWAY=1 runs it anyway.
"""

import tyro

from jaxdiff import training
from jaxdiff.cli import pictures, typed
from jaxdiff.runs import datasets, loading, loop, sampling
from jaxdiff.runs.config import PRESETS, Config

PICTURES = ("loss.png", "forward.png", "samples.png", "reverse.gif")


def main(config: Config) -> bool:
    """Bring a run to its last step and draw its pictures; False if it was stopped on the way."""
    config, dataset, model = loop.prepare(config)
    with training.lock(config.run):
        first, last = loop.go_on(config, dataset, model)
        if last > first:  # the pictures show the shorter run
            for name in PICTURES:
                (config.run / name).unlink(missing_ok=True)
        else:
            print(f"{config.run} is trained already ({last} steps)")
        if last < config.steps:
            print(
                f"stopped at step {last} of {config.steps}, saved; to go on, repeat:\n  {typed()}"
            )
            return False
        if not all((config.run / name).exists() for name in PICTURES):
            draw_pictures(config, dataset)
        return True


def draw_pictures(config: Config, dataset: datasets.Dataset) -> None:
    """Leave what a person looks at first."""
    pictures.loss_curve(training.read_log(config.run), config.run / "loss.png")
    real, _ = dataset.head("train", 64)
    run = loading.load_run(config.run)
    pictures.forward(run.trained.schedule, dataset, real, config.run / "forward.png")
    labels = sampling.classes_in_turn(run.trained, 64)
    samples = sampling.generate(
        run.trained, 64, labels=labels, save_every=1, batch_size=config.batch_size
    )
    pictures.samples(dataset, samples.x, real, config.run / "samples.png")
    pictures.reverse(dataset, samples.trajectory, config.run / "reverse.gif")


def parse(arguments: list[str], prog: str) -> Config:
    """Read a preset and its overrides from the command line."""
    return tyro.extras.overridable_config_cli(
        PRESETS, prog=prog, description=__doc__, args=arguments
    )
