"""Write a run's pictures and figures as one HTML page, or compare several runs on one.

jaxdiff report runs/mine
jaxdiff report runs/mine runs/other

The figures are those of the last `jaxdiff evaluate`, and the posteriors those of `jaxdiff
posterior`. Pictures that do not exist are left out. The page fetches nothing.
"""

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from jaxdiff.cli import report_page as html
from jaxdiff.runs import config as configs
from jaxdiff.runs import loading, machine, records
from jaxdiff.training import atomic

FORWARD = "The forward process: real examples dissolve."
LOSS = "The loss in training, and on held-out examples."
DENOISING = (
    "The error of the denoised example on held-out data, by noise level, beside two denoisers "
    "without a network."
)
STRIPS = "Above: strips between held-out examples. Below: one latent in every class."
NEIGHBOURS = "Samples above their nearest training examples."
TERMS = "Where the bits go: the bound's terms by noise level, and their sum."
CROOKS = "Log weights of forward and reverse paths, around log p of each example."
PATHS = "The bound, by the number of paths."
POSTERIOR = {
    "posterior.png": "What is seen, samples of the posterior, their mean and their deviation.",
    "calibration.png": "Ranks of the truth among posterior samples: flat if they are right.",
    "decision.png": "Methods beside each other at equal network calls.",
}


@dataclass(frozen=True)
class Options:
    """Which runs to report."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folders of runs, or of networks from elsewhere, as `jaxdiff evaluate` left them. Several are
    compared on one page."""
    output: Path | None = None
    """The page; RUN/report.html of one run, comparison.html beside the first of several, if not
    given."""


@dataclass(frozen=True)
class Evaluated:
    """A run with what was measured of it."""

    run: loading.Run
    found: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.run.folder.name

    @property
    def lead(self) -> str:
        """What it is, in a sentence."""
        trained, config = self.run.trained, self.run.config
        size = sum(leaf.size for leaf in jax.tree.leaves(trained.params)) / 1e6
        return (
            f"A network of {size:.2f} million parameters, trained on {config.dataset} for "
            f"{trained.step} updates of {config.batch_size} examples (seed {config.seed})."
        )


def main(options: Options) -> Path:
    """Write the page."""
    if not options.runs:
        raise ValueError("runs: expected at least one folder of a run, got none")
    evaluated = [load(folder) for folder in options.runs]
    first = evaluated[0].run.folder
    if len(evaluated) == 1:
        return write(evaluated[0], options.output or first / "report.html")
    output = options.output or first.parent / "comparison.html"
    with atomic(output) as draft:
        draft.write_text(comparison(evaluated))
    print(f"look at {output}")
    return output


def load(folder: Path) -> Evaluated:
    """Load a run and its evaluation."""
    run = loading.load_run(folder)
    path = run.folder / "evaluation.json"
    if not path.exists():
        raise FileNotFoundError(
            f"run: {folder} is not evaluated yet; call `jaxdiff evaluate {folder}`"
        )
    return Evaluated(run, records.read_json(path))


def write(one: Evaluated, output: Path) -> Path:
    """Write the report of one run."""
    with atomic(output) as draft:
        draft.write_text(report(one))
    print(f"look at {output}")
    return output


def report(one: Evaluated) -> str:
    """The page of one run: pictures first."""
    folder, found, config = one.run.folder, one.found, one.run.config
    samples = html.picture(folder / "samples.png", "Left: samples. Right: real examples.")
    sections = [
        html.section(
            "Samples",
            samples,
            html.slider(folder / "reverse.gif"),
            html.picture(folder / "interpolation.png", STRIPS),
        ),
        html.section(
            "Are they good?",
            html.figures([found], [one.name]),
            html.picture(folder / "neighbours.png", NEIGHBOURS),
        ),
        html.section(
            "The probability of held-out data",
            html.probabilities([found], [one.name]),
            html.picture(folder / "terms.png", TERMS),
            html.beside(
                [
                    html.picture(folder / "crooks.png", CROOKS),
                    html.picture(folder / "paths.png", PATHS),
                ]
            ),
        ),
        html.section("Posteriors", *_posteriors(folder)),
        html.section(
            "Training",
            html.beside(
                [
                    html.picture(folder / "loss.png", LOSS),
                    html.picture(folder / "denoising.png", DENOISING),
                ]
            ),
            html.denoising(found["denoising"]),
            html.picture(folder / "forward.png", FORWARD),
        ),
        html.section(
            "Do it again",
            html.code(repeat(one)),
            html.folded("Configuration", json.dumps(json.loads(configs.as_json(config)), indent=1)),
            html.folded("Machine of the evaluation", found.get("machine", machine.describe())),
        ),
    ]
    return html.page(one.name, one.lead, sections)


def repeat(one: Evaluated) -> str:
    """The commands that make the run and measure it again."""
    trained_here = one.run.config.run == one.run.folder
    lines = [f"jaxdiff train {shlex.join(configs.arguments(one.run.config))}"] * trained_here
    return "\n".join([*lines, one.found.get("command", f"jaxdiff evaluate {one.run.folder}")])


def _posteriors(folder: Path) -> list[str]:
    """The pictures of each task and method."""
    found = []
    for place in sorted((folder / "posterior").glob("*/")):
        shown = [html.picture(place / name, words) for name, words in POSTERIOR.items()]
        if any(shown):
            found += [f"<h3>{place.name}</h3>", *shown]
    return found


def comparison(runs: list[Evaluated]) -> str:
    """The page of several runs, side by side."""
    names, found = [one.name for one in runs], [one.found for one in runs]
    if len(set(names)) < len(names):
        names = [str(one.run.folder) for one in runs]

    def all_of(file: str) -> str:
        return html.beside(
            [
                html.picture(one.run.folder / file, name)
                for one, name in zip(runs, names, strict=True)
            ]
        )

    sections = [
        html.section("Samples", all_of("samples.png")),
        html.section("Are they good?", html.figures(found, names)),
        html.section("The probability of held-out data", html.probabilities(found, names)),
        html.section("Training", all_of("loss.png"), all_of("denoising.png")),
        html.section(
            "What differs", html.table(["", *names], differences([one.run.config for one in runs]))
        ),
        html.section("Do it again", html.code("\n".join(repeat(one) for one in runs))),
    ]
    return html.page("Comparison", "; ".join(names), sections)


def differences(config: list[configs.Config]) -> list[list[str]]:
    """The options of runs that are not the same in all, a row each."""
    flat = [records.flat(dataclasses.replace(one, run=Path())) for one in config]
    return [
        [name, *(str(one[name]) for one in flat)]
        for name in flat[0]
        if len({str(one[name]) for one in flat}) > 1
    ]
