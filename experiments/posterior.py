"""Posterior samples of a trained run's images, given an observation of them, with evidence and calibration.

python experiments/posterior.py RUN --task inpaint
python experiments/posterior.py RUN --task inpaint --compare     # every method at equal network calls

Held-out images are observed (a part of them, blurred, in noise, ...), and particles are drawn from
p(x_0 | y) of the model. Calibration asks whether they are: images drawn from the model itself are
observed, and their ranks among posterior samples have to be uniform. A call is one of the network
on one image; a vector-Jacobian product is one more.
"""

import _process

_process.configure()

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import _calibration
import _cli
import _config
import _memory
import _observing
import _options
import _posterior
import _posterior_pictures as _pictures
import _sampling
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.spatial.distance import cdist

from jaxdiff import training
from jaxdiff.observations import as_likelihood, log_likelihoods


@dataclass(frozen=True)
class Options:
    """What is observed of which images, and how the posterior is drawn."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, as train.py left it; or mnist, the network that ships with the package."""
    task: _observing.TaskName = "inpaint"
    """What is observed: all but the middle, the top half, everything in noise, blurred, in blocks, a random projection,
    photon counts, or the class."""
    method: _posterior.MethodName = "twisted"
    """How the posterior is drawn; the README says which to use when."""
    compare: bool = False
    """All methods that the task allows, side by side at equal network calls."""
    classes: bool = False
    """Ask each class's own model for its evidence, of a class-conditional run: which class is it?"""
    images: int = 8
    """Held-out images."""
    calibration: int = 60
    """Images drawn from the model for the calibration; 0 leaves it out."""
    noise: float | None = None
    """Standard deviation of the observation's noise, images in [-1, 1]; each task has its own if not given."""
    peak: float = 8.0
    """Mean count of a white pixel, for --task poisson."""
    sampling: tyro.conf.OmitArgPrefixes[_posterior.Particles] = field(
        default_factory=_posterior.Particles
    )
    """How samples are drawn."""
    seed: int = 0
    """Image i depends on (seed, i) alone."""
    best: bool = False
    """Use the checkpoint of the lowest held-out loss instead of the newest."""


@dataclass(frozen=True)
class Observed:
    """Images [K, *D], their labels and what was observed of them."""

    x_0: np.ndarray
    labels: np.ndarray
    ys: list[np.ndarray]


def observe(
    task: _observing.Task, x_0: np.ndarray, labels: np.ndarray | None, *, seed: int, what: str
) -> Observed:
    """Draw an observation of each image; one without a label has -1."""
    labels = np.full(len(x_0), -1) if labels is None else labels
    key = _config.key_of(seed, what)
    ys = [
        np.asarray(task.draw(jax.random.fold_in(key, i), jnp.asarray(x), jnp.asarray(label)))
        for i, (x, label) in enumerate(zip(x_0, labels, strict=True))
    ]
    return Observed(x_0, labels, ys)


def held_out(run: _sampling.Run, task: _observing.Task, options: Options) -> Observed:
    """The first held-out images, observed."""
    x_0, labels = run.dataset.head("test", options.images)
    return observe(task, x_0, labels, seed=options.seed, what=f"observe {task.name}")


def from_the_model(
    run: _sampling.Run, task: _observing.Task, ts: jax.Array, options: Options
) -> Observed:
    """Images of the model itself, on the grid that the posterior is drawn on: its prior is exact for them."""
    num, seed = options.calibration, _options.another(options.seed)
    x_0 = _sampling.generate(
        run,
        num,
        seed=seed,
        sampler="ancestral",
        variance="small",
        ts=ts,
        batch_size=run.config.batch_size,
    ).x
    return observe(task, x_0, None, seed=seed, what=f"observe {task.name}")


def figures(
    task: _observing.Task, seen: Observed, drawn: _posterior.Drawn
) -> list[dict[str, float]]:
    """What each image's samples say: evidence, effective sample size, and how near they are to the truth and to y.

    The energy score is E|X - x_0| - E|X - X'| / 2, per pixel: the least for the truth's own
    posterior, on average.
    """
    rows = []
    for i, (truth, y) in enumerate(zip(seen.x_0, seen.ys, strict=True)):
        x, weights = drawn.x[i], _calibration.normalised(drawn.log_weights[i])
        mean = np.tensordot(weights, x, 1)
        flat = x.reshape(len(x), -1) / np.sqrt(truth.size)
        far = np.linalg.norm(flat - truth.reshape(1, -1) / np.sqrt(truth.size), axis=1)
        apart = cdist(flat, flat)
        row = {
            "log_evidence": float(drawn.log_evidence[i]),
            "ess": float(1 / np.sum(weights**2)),
            "least_ess": float(drawn.ess[i].min()),
            "psnr_of_mean": float(20 * np.log10(2 / np.sqrt(np.mean((mean - truth) ** 2)))),
            "energy_score": float(weights @ far - weights @ apart @ weights / 2),
        }
        if task.residuals is not None:
            row["residual"] = float(weights @ np.mean(task.residuals(y, x) ** 2, axis=1))
        rows.append(row)
    return rows


def calibrate(
    run: _sampling.Run,
    problem: _posterior.Problem,
    name: str,
    seen: Observed,
    options: Options,
    particles: int,
) -> dict[str, Any]:
    """Ranks of the model's own images among their posterior samples, and what they say."""
    train, _ = run.dataset.head("train", _memory.affordable(10_000, run.dataset.event_shape))
    functions = _calibration.Functions(train, problem.task.hidden)
    seed, what = _options.another(options.seed), f"calibrate {problem.task.name}"
    drawn = _posterior.draw(run, problem, name, seen.ys, seed=seed, what=what, particles=particles)
    uniform = np.random.default_rng(options.seed).random(len(seen.ys))

    @jax.jit
    def log_r(likelihood: Any, x: jax.Array) -> jax.Array:
        return log_likelihoods(as_likelihood("likelihood", likelihood), x)

    shares = []
    for i, (truth, y) in enumerate(zip(seen.x_0, seen.ys, strict=True)):
        both = np.concatenate([truth[None], drawn.x[i]])
        values = functions(
            both, np.asarray(log_r(problem.task.likelihood(jnp.asarray(y)), jnp.asarray(both)))
        )
        shares.append(_calibration.ranks(values[0], values[1:], drawn.log_weights[i], uniform[i]))
    return _calibration.summary(np.stack(shares), functions.names)


def one_method(
    run: _sampling.Run,
    problem: _posterior.Problem,
    name: str,
    options: Options,
    seen: Observed,
    own: Observed | None,
) -> tuple[_posterior.Drawn, dict[str, Any]]:
    """Draw, measure and calibrate with one method, at the calls that are given to it."""
    particles = (
        _posterior.equal_particles(name, problem) if options.compare else options.sampling.particles
    )
    what = f"posterior {problem.task.name}"
    drawn = _posterior.draw(
        run, problem, name, seen.ys, seed=options.seed, what=what, particles=particles
    )
    rows = figures(problem.task, seen, drawn)
    found: dict[str, Any] = {
        "method": name,
        "particles": particles,
        "calls": _posterior.calls_of(name, problem, particles),
        "seconds_an_image": drawn.seconds,
        "weighted": _posterior.METHODS[name].weighted,
        "images": rows,
        "mean": {field: float(np.mean([row[field] for row in rows])) for field in rows[0]},
    }
    if own is not None:
        found["calibration"] = calibrate(run, problem, name, own, options, particles)
    return drawn, found


def by_class(
    run: _sampling.Run, problem: _posterior.Problem, options: Options, seen: Observed
) -> dict[str, Any]:
    """The evidence of each class's own model, image by image: Bayes' rule makes a classifier of it."""
    num_classes = run.model.num_classes
    if num_classes is None or not _posterior.METHODS[options.method].weighted:
        raise ValueError("classes: expected a class-conditional run, and a method with evidence")
    log_evidence = []
    for number in range(num_classes):
        labels = np.full(len(seen.ys), number)
        what = f"class {number} of {problem.task.name}"
        drawn = _posterior.draw(
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


def print_table(found: list[dict[str, Any]], task: _observing.Task) -> None:
    """A line a method, means over the images."""
    head = (
        "log p(y)",
        "ESS",
        "least ESS",
        "PSNR",
        "energy score",
        "residual^2",
        "50%",
        "90%",
        "p of ranks",
    )
    print(
        f"{task.name}: 1 of residual^2 is the noise; 50% and 90% are what credible intervals of that level hold"
    )
    print(f"{'':14}{'N':>6}{'calls':>8}{'s':>7}" + "".join(f"{name:>14}" for name in head))
    for row in found:
        mean, calibration = row["mean"], row.get("calibration")
        evidence = f"{mean['log_evidence']:.4g}" if row["weighted"] else "-"
        cells = [
            evidence,
            *(
                f"{mean[field]:.4g}"
                for field in ("ess", "least_ess", "psnr_of_mean", "energy_score")
            ),
        ]
        cells.append(f"{mean['residual']:.4g}" if "residual" in mean else "-")
        if calibration is None:
            cells += ["-"] * 3
        else:
            cells += [f"{calibration[f'coverage_{level}']['value']:.2f}" for level in (50, 90)]
            cells += [f"{calibration['p_value']:.2g}"]
        line = f"{row['method']:14}{row['particles']:>6}{row['calls']:>8}{row['seconds_an_image']:7.1f}"
        print(line + "".join(f"{cell:>14}" for cell in cells))


def check(options: Options) -> None:
    """Refuse what cannot be drawn, before anything is read."""
    _options.seed(options.seed)
    _options.counts(options, images=1, calibration=0)
    _options.counts(options.sampling, particles=2, steps=2, at_once=1)
    if 0 < options.calibration < 10:
        raise ValueError(
            f"calibration: expected 0, or at least 10 images, got {options.calibration}"
        )
    width = ("a positive standard deviation", _options.POSITIVE[1])
    _options.numbers(options, noise=width, peak=("a positive mean count", _options.POSITIVE[1]))
    _options.numbers(
        options.sampling, start=_options.FINITE, threshold=_options.NOT_NEGATIVE, prior_std=width
    )


def main(options: Options) -> dict[str, Any]:
    """Observe, draw, measure, print, draw pictures and save."""
    check(options)
    run = _sampling.load_run(options.run, best=options.best)
    task = _observing.make_task(
        options.task, run.dataset, noise=options.noise, peak=options.peak, seed=options.seed
    )
    if not options.compare:
        _posterior.check_method(options.method, task)
    problem = _posterior.make_problem(task, run, options.sampling)
    names = _posterior.fitting(task) if options.compare else [options.method]
    folder = (
        run.folder / "posterior" / f"{task.name}-{'compare' if options.compare else options.method}"
    )
    seen = held_out(run, task, options)
    own = from_the_model(run, task, problem.ts, options) if options.calibration else None
    found, draws = [], {}
    for name in names:
        draws[name], row = one_method(run, problem, name, options, seen, own)
        found.append(row)
    print_table(found, task)
    result: dict[str, Any] = {
        "machine": _cli.machine(),
        "step": run.step,
        "task": task.name,
        "methods": found,
    }
    result["options"] = dataclasses.asdict(options) | {"run": str(options.run)}
    if options.classes:
        result["classes"] = by_class(run, problem, options, seen)
    _pictures.samples(
        task, seen, draws, folder / "posterior.png", key=_config.key_of(options.seed, "pictures")
    )
    if own is not None:
        _pictures.calibration(found, folder / "calibration.png")
    training.write_json(folder / "posterior.json", result)
    print(f"look at {folder / 'posterior.png'}")
    return result


if __name__ == "__main__":
    with _cli.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
