"""Simulation-based calibration of the posterior methods, and where the 2015 tilt fails.

Draw x ~ p and y ~ p(y | x). Among draws from p(x | y) the rank of the true x is uniform, by any
statistic. The statistics here are a coordinate that is seen, one that is not, and log p(y | x). The
law is a mixture of nine normals. The first quarter of the coordinates is observed, so that several
components remain possible. The denoiser is exact: ranks that are not uniform show an error of the
sampler.

The second part measures the error of log p(y) against the number of particles, on three modes.
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import functools
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import observations, posterior, resampling, training
from jaxdiff.cli import errors
from jaxdiff.runs import cache, machine, methods
from jaxdiff.runs import calibration as sbc

ROOT = Path(__file__).resolve().parents[1]

SCHEDULE = jd.schedules.cosine()
NOISE_STD = 0.3


STATISTICS = ("seen", "unseen", "likelihood")


class Task(NamedTuple):
    """A law, its exact denoiser, what is seen, the width of an entry, and the spread."""

    law: jd.oracles.GaussianMixture
    denoiser: Any
    observed: jax.Array
    std: jax.Array
    spread: posterior.Spread


def _seen(task: Task, y: jax.Array) -> observations.Observation:
    return observations.mask(y, task.observed, NOISE_STD)


UNWEIGHTED = "tilted_unweighted"  # the 2015 procedure as it stands


def kernel_of(name: str, task: Task, y: jax.Array) -> jd.Kernel:
    """The kernel of a method for y [d]."""
    iterations = num_seen(len(y)) if name == "twisted_mmps" else None
    setting = methods.Setting(SCHEDULE, prior_std=task.std, num_iterations=iterations)
    if name in ("twisted", "conditioned"):
        setting = setting._replace(spread=task.spread, variance="optimal")
    method = methods.METHODS["tilted" if name == UNWEIGHTED else name]
    return method.make(setting, task.denoiser, _seen(task, y))


MethodName = Literal[
    "exact", "twisted", "twisted_gradient", "twisted_mmps", "mcgdiff", "tilted",
    "tilted_unweighted", "conditioned", "dps", "dps_step", "pigdm", "tmpd", "mmps", "daps",
    "diffpir", "repaint",
]  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What to calibrate."""

    dims: tuple[int, ...] = (2, 8)
    """Dimensions of x, at least 2. The first quarter is observed, at least one coordinate."""
    methods: tuple[MethodName, ...] = typing.get_args(MethodName)
    """Methods to calibrate. Exact draws show what uniform looks like."""
    problems: int = 1000
    """Draws of (x, y)."""
    draws: int = 15
    """Posterior draws among which the truth is ranked. The ranks have one bin more."""
    rows: int = 256
    """Particles of the weighted methods."""
    steps: int = 100
    """Steps of every method."""
    particles: tuple[int, ...] = (8, 32, 128, 512, 2048)
    """Numbers of particles for the curve of the evidence. Without any, the curve is left out."""
    curves: tuple[Literal["tilted", "twisted", "mcgdiff"], ...] = ("tilted", "twisted", "mcgdiff")
    """Methods in the curve."""
    repeats: int = 40
    """Runs of each point of the curve."""
    seed: int = 0
    """Seed of everything random."""
    output: Path = ROOT / "runs" / "calibration"
    """Folder for calibration.json, pictures and parts. An interrupted run goes on from parts."""


def num_seen(d: int) -> int:
    """Number of coordinates that are observed: too few to identify the component for certain."""
    return max(1, d // 4)


@functools.cache
def make_task(d: int) -> Task:
    """Nine unequal components on a jittered grid in a random plane; y leaves several possible."""
    random = np.random.default_rng(d)
    grid = np.array([(3.0 * i, 3.0 * j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    plane = np.linalg.qr(random.normal(size=(d, 2)))[0]
    means = grid @ plane.T + 0.3 * random.normal(size=(9, d))
    variances = random.uniform(0.02, 0.2, (9, d))
    weights = random.dirichlet(np.full(9, 0.7))
    law = jd.oracles.GaussianMixture(
        *(jnp.asarray(v, jnp.float32) for v in (np.log(weights), means, variances))
    )
    spread = weights @ (variances + (means - weights @ means) ** 2)
    observed = (jnp.arange(d) < num_seen(d)).astype(jnp.float32)
    denoiser, keys = law.denoiser(SCHEDULE), jax.random.split(jax.random.key(d))
    measured = posterior.spread_of(keys[0], denoiser, SCHEDULE, law.sample(keys[1], (1000,)))
    std = jnp.asarray(np.sqrt(spread.mean()), jnp.float32)
    return Task(law, denoiser, observed, std, measured)


def ranks(name: str, d: int, options: Options) -> np.ndarray:
    """Ranks of the truth among the draws, as fractions, by each of STATISTICS, [problems, 3]."""
    task, ts = make_task(d), jd.grids.uniform(options.steps)

    def draw(key: jax.Array, y: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        if name == "exact":
            A = jnp.eye(d)[: num_seen(d)]
            given = task.law.posterior(A, y[: num_seen(d)], NOISE_STD**2 * jnp.eye(num_seen(d)))
            return given.sample(keys[0], (options.draws,))
        weighted = name != UNWEIGHTED and methods.METHODS[name].weighted
        x_init = jd.prior_sample(
            keys[0], SCHEDULE, (options.rows if weighted else options.draws, d)
        )
        resample = resampling.systematic() if weighted else None
        found = jd.sample(keys[1], kernel_of(name, task, y), x_init, ts, resample=resample)
        if not weighted:  # the rows are draws, even where they carry weights
            return found.x
        return found.x[jax.random.categorical(keys[2], found.log_weights, shape=(options.draws,))]

    def values(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        truth = task.law.sample(keys[0], (1,))[0]
        y = truth + NOISE_STD * jax.random.normal(keys[1], (d,))
        x, seen = draw(keys[2], y), _seen(task, y)
        likely = observations.log_likelihoods(seen, x)
        return jnp.stack(
            [
                jnp.append(x[:, 0], truth[0]),
                jnp.append(x[:, -1], truth[-1]),
                jnp.append(likely, seen(truth)),
            ],
            axis=1,
        )

    keys = jax.random.split(jax.random.key(options.seed), options.problems)
    # A few problems at a time: the particles of all problems do not fit into memory.
    found = np.asarray(
        jax.jit(lambda keys: jax.lax.map(values, keys, batch_size=min(100, options.problems)))(keys)
    )
    equal, middle = np.zeros(options.draws), 0.5
    return np.stack([sbc.ranks(each[-1], each[:-1], equal, middle) for each in found])


def calibrate(name: str, d: int, options: Options) -> dict[str, Any]:
    """Histograms of the ranks, and the chi-square p-value of each."""
    found, bins = ranks(name, d, options), options.draws + 1
    counts = [sbc.histogram(column, bins).tolist() for column in found.T]
    p = [sbc.uniformity(column, bins)[1] for column in found.T]
    return {"d": d, "method": name, "p": p} | dict(zip(STATISTICS, counts, strict=True))


def three_modes() -> tuple[jd.oracles.GaussianMixture, jax.Array]:
    """Three narrow modes in a plane, and the observation of the first coordinate."""
    means = jnp.array([[-2.0, 0.5], [0.2, -1.0], [2.0, 1.5]])
    law = jd.oracles.GaussianMixture(
        jnp.log(jnp.array([0.5, 0.3, 0.2])), means, jnp.array([0.05, 0.08, 0.04])
    )
    return law, jnp.array([1.1, 0.0])


def evidence_errors(name: str, num: int, options: Options) -> dict[str, Any]:
    """Errors of log p(y) in independent runs with num particles."""
    law, y = three_modes()
    denoiser, observed, noise_std = law.denoiser(SCHEDULE), jnp.array([1.0, 0.0]), 0.3
    exact = law.log_evidence(jnp.eye(2)[:1], y[:1], noise_std**2 * jnp.eye(1))
    seen, ts = observations.mask(y, observed, noise_std), jd.grids.uniform(options.steps)
    setting = methods.Setting(SCHEDULE, prior_std=1.5)
    kernel = methods.METHODS[name].make(setting, denoiser, seen)

    def one(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key)
        x_init = jd.prior_sample(keys[0], SCHEDULE, (num, 2))
        found = jd.sample(keys[1], kernel, x_init, ts, resample=resampling.systematic())
        return found.log_evidence - exact

    keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), num), options.repeats)
    errors = np.asarray(
        jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=max(1, 8192 // num)))(keys)
    )
    return {"method": name, "particles": num, "errors": errors.tolist()}


SETTINGS = ("problems", "draws", "rows", "steps", "repeats", "seed")


def kept(options: Options, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read a part from its file, or measure it and write the file."""
    digest = cache.digest([getattr(options, field) for field in SETTINGS])
    path = options.output / "parts" / f"{name}-{digest}.json"
    return cache.resumable([path], lambda _: [measure()])[0]


def _axes(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def _save(figure: Any, path: Path) -> None:
    with training.atomic(path) as draft:
        figure.savefig(draft, dpi=100)


def histograms(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the ranks: a column for each method, a row for each dimension, the 99% band in grey."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    dims = sorted({row["d"] for row in rows})
    columns = -(-len(names) // 2)
    figure, axes = _axes(2 * len(dims), columns, (1.75 * columns, 2.9 * len(dims)), sharex=True)
    for row in rows:
        place, half = names.index(row["method"]) % columns, names.index(row["method"]) // columns
        axis = axes[half * len(dims) + dims.index(row["d"]), place]
        total, bins = sum(row["seen"]), len(row["seen"])
        axis.axhspan(*sbc.band(total, bins), color="0.85")
        for statistic, color in zip(STATISTICS, ("C0", "C1", "C3"), strict=True):
            axis.stairs(row[statistic], np.arange(bins + 1) - 0.5, color=color, label=statistic)
        axis.set_title(f"{row['method']}, d = {row['d']}", fontsize=8)
        tallest = max(max(row[statistic]) for statistic in STATISTICS)
        axis.set(yticks=[], ylim=(0, max(2.2 * total / bins, 1.05 * min(tallest, total / 3))))
        axis.tick_params(labelsize=7)
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    axes[0, 0].legend(fontsize=7, loc="upper center", ncols=2, columnspacing=0.8, handlelength=1)
    figure.supxlabel(
        "rank of the truth among the draws (grey: 99% of the counts of a uniform rank)", fontsize=9
    )
    _save(figure, path)


def curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the root mean square error of log p(y) against the number of particles."""
    figure, axes = _axes(1, 1, (5.5, 3.6))
    for name in dict.fromkeys(row["method"] for row in rows):
        here = [row for row in rows if row["method"] == name]
        num = [row["particles"] for row in here]
        axes[0, 0].loglog(num, [rms(row["errors"]) for row in here], "o-", markersize=3, label=name)
    axes[0, 0].loglog(num, 2 / np.sqrt(num), "k:", linewidth=1, label=r"$\propto N^{-1/2}$")
    axes[0, 0].set(xlabel="particles N", ylabel="root mean square error of log p(y), nats")
    axes[0, 0].legend(fontsize=8)
    _save(figure, path)


def rms(errors: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def main(options: Options) -> dict[str, Any]:
    """Measure the missing parts, print the tables, draw the pictures and save."""
    if any(d < 2 for d in options.dims):
        raise ValueError(f"dims: expected at least 2, got {options.dims}")
    found: dict[str, Any] = {
        "machine": machine.describe(),
        "options": json.loads(json.dumps(vars(options), default=str)),
    }
    found["ranks"] = ranked = []
    for d, name in tqdm(
        [(d, name) for d in options.dims for name in options.methods], desc="ranks", unit="method"
    ):
        ranked.append(kept(options, f"ranks-{d}-{name}", partial(calibrate, name, d, options)))
        jax.clear_caches()
    print(
        f"{machine.describe()}\nchi-square p of uniform ranks, "
        f"{options.problems} problems, {options.draws + 1} bins"
    )
    print(
        "| method | " + " | ".join(f"d = {d}, {c}" for d in options.dims for c in STATISTICS) + " |"
    )
    print("|---" * (1 + len(STATISTICS) * len(options.dims)) + "|")
    for name in options.methods:
        cells = [f"{p:.2g}" for row in ranked if row["method"] == name for p in row["p"]]
        print(f"| {name} | " + " | ".join(cells) + " |")
    histograms(ranked, options.output / "calibration.png")
    found["evidence"] = errors = []
    points = [(name, num) for name in options.curves for num in options.particles]
    for name, num in tqdm(points, desc="evidence", unit="point"):
        errors.append(
            kept(options, f"evidence-{name}-{num}", partial(evidence_errors, name, num, options))
        )
    if errors:
        print("root mean square error of log p(y) by number of particles, nats")
        for name in options.curves:
            print(
                f"{name:24}"
                + "".join(f"{rms(row['errors']):9.3f}" for row in errors if row["method"] == name)
            )
        curves(errors, options.output / "tilted.png")
    training.write_json(options.output / "calibration.json", found)
    return found


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
