"""Posteriors beside the exact ones at equal network calls: MCGdiff's Gaussian-mixture benchmark.

A mixture of 25 unit normals is observed through a random matrix with noise. The samples of each
method are compared with exact ones by the sliced Wasserstein-2 distance. The denoiser is exact, so
all error is the sampler's.

A network call is one evaluation of the denoiser on one row. Its vector-Jacobian product is one more
call. Every method has rows x calls of them. The number of steps follows from the cost of a step.
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import dataclasses
import functools
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial
from observed_mixture import Problem, exact_samples, log_evidence, make_denoiser, make_problem
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import guidance, observations, posterior, resampling, training
from jaxdiff.cli import errors
from jaxdiff.runs import cache, machine, methods
from jaxdiff.runs.methods import Setting

ROOT = Path(__file__).resolve().parents[1]

SIGMA_MIN = 5e-3
DPS_SCALE = 1.0
"""The scale of dps must be chosen. Seeds 1000 to 1003 at d = 8 chose it; no table uses them."""


def _observation(problem: Problem) -> observations.Observation:
    return observations.linear(
        *(jnp.asarray(v, jnp.float32) for v in (problem.A, problem.y, problem.noise_std))
    )


def _power(ratio: Any, schedule: jd.Schedule, t: Any) -> jax.Array:
    """The power of r at time t, 1 at t = 0. A larger one would push the steps beyond the data."""
    least, now = (1 + (ratio * schedule.sigma(s)) ** 2 for s in (jnp.zeros_like(t), t))
    return least / now


def _norm(seen: Any, x_0: jax.Array) -> jax.Array:
    return -jnp.linalg.norm(seen.y - seen.operator(x_0))


def _dps(setting: Setting, denoiser: Any, seen: Any) -> Any:
    """The step of the paper's code: along the gradient of the norm of the residual."""
    return guidance.dps(denoiser, setting.schedule, Partial(_norm, seen), DPS_SCALE)


NAMES = (
    "twisted", "twisted_gradient", "twisted_mmps", "mcgdiff", "tilted", "conditioned", "pigdm",
    "dps_step", "tmpd", "mmps", "daps", "diffpir", "mgdm", "split_gibbs",
)  # fmt: skip
SPREAD_SAMPLES = 1000
METHODS = {name: methods.METHODS[name] for name in NAMES} | {
    "mcgdiff_belief": methods.METHODS["mcgdiff"],
    "dps": methods.METHODS["dps"]._replace(make=methods.guided(_dps)),
}
GIBBS_DENOISING = 10


def setting_of(name: str, problem: Problem, schedule: jd.Schedule) -> Setting:
    """What a method is told of the problem: conjugate gradients are exact after d_y iterations."""
    ratio = float(np.linalg.norm(problem.A, 2)) / problem.noise_std
    matrix = jnp.asarray(problem.A, jnp.float32)
    setting = Setting(
        schedule,
        prior_std=problem.std,
        num_iterations=len(problem.y) + (name == "split_gibbs"),
        num_denoising=GIBBS_DENOISING,
        power=Partial(_power, ratio, schedule),
        matrix=matrix,
    )
    if name in ("twisted", "conditioned"):
        random = np.random.default_rng(0)  # draws of the data, as a network's training set is
        chosen = random.choice(len(problem.means), SPREAD_SAMPLES, p=np.exp(problem.log_weights))
        x_0 = problem.means[chosen] + random.normal(size=(SPREAD_SAMPLES, problem.means.shape[1]))
        denoiser, data = make_denoiser(problem, schedule), jnp.asarray(x_0, jnp.float32)
        spread = jax.jit(posterior.spread_of)(jax.random.key(0), denoiser, schedule, data)
        return setting._replace(spread=spread, variance="optimal")
    if name != "mcgdiff_belief":
        return setting
    # The mean and width of the data, in the coordinates of the kernel's decomposition.
    right = np.asarray(jnp.linalg.svd(matrix, full_matrices=False)[2], np.float64)
    mean, spread = problem.moments
    std = np.sqrt(1 + np.sum((spread @ right.T) ** 2, axis=0))
    moments = (jnp.asarray(v, jnp.float32) for v in (right @ mean, std))
    return setting._replace(belief=posterior.gaussian_belief(schedule, *moments))


MethodName = Literal[
    "twisted", "twisted_gradient", "twisted_mmps", "mcgdiff", "mcgdiff_belief", "tilted",
    "conditioned", "dps", "dps_step", "pigdm", "tmpd", "mmps", "daps", "diffpir", "mgdm",
    "split_gibbs",
]  # fmt: skip
FLOOR = "exact"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    dims: tuple[int, ...] = (8, 80, 800)
    """Dimensions of x, even."""
    observed: tuple[int, ...] = (1, 2, 4)
    """Dimensions of y."""
    methods: tuple[MethodName, ...] = typing.get_args(MethodName)
    """Methods to compare."""
    seeds: int = 20
    """Problems of each size."""
    first_seed: int = 0
    """Seed of the first problem."""
    rows: int = 1000
    """Number of particles, and of the samples that are compared."""
    calls: int = 100
    """Network calls for each row."""
    slices: int = 10_000
    """Directions of the sliced Wasserstein distance."""
    output: Path = ROOT / "runs" / "posterior"
    """Folder for posterior.json, the picture and parts. An interrupted run goes on from parts."""


class Slices:
    """`metrics.sliced_wasserstein` to one reference sample, which is projected only once."""

    def __init__(self, reference: np.ndarray, num: int) -> None:
        theta = np.random.default_rng(0).normal(size=(num, reference.shape[1]))
        self.theta = (theta / np.linalg.norm(theta, axis=1, keepdims=True)).astype(np.float32)
        self.sorted = self._project(reference)

    def _project(self, x: np.ndarray) -> np.ndarray:
        return np.sort(self.theta @ x.astype(np.float32).T, axis=1)

    def __call__(self, x: np.ndarray) -> float:
        return float(np.sqrt(np.mean((self._project(x) - self.sorted) ** 2, dtype=np.float64)))


def run(name: str, problem: Problem, seed: int, options: Options) -> dict[str, Any]:
    """Run one method on one problem: its samples, its steps, and its error and sample sizes."""
    method, schedule = METHODS[name], jd.schedules.edm(SIGMA_MIN, problem.sigma_max)
    setting = setting_of(name, problem, schedule)
    kernel = method.make(setting, make_denoiser(problem, schedule), _observation(problem))
    keys = jax.random.split(jax.random.key(seed), 3)
    shape = (options.rows, problem.means.shape[1])
    zeros = name == "split_gibbs"
    x_init = jnp.zeros(shape) if zeros else jd.prior_sample(keys[0], schedule, shape)
    steps = max(2, options.calls // int(method.calls(setting)))
    ts = jd.grids.karras(schedule, steps)
    resample = resampling.systematic() if method.weighted else None
    found = jd.sample(keys[1], kernel, x_init, ts, resample=resample)
    x = found.x
    figures: dict[str, Any] = {"steps": steps}
    if method.weighted:
        x = resampling.draw(keys[2], found.log_weights, found.x, options.rows)
        ess = np.asarray(found.ess) / options.rows
        error = float(found.log_evidence) - log_evidence(problem)
        sizes = {"ess_last": float(ess[-1]), "ess_least": float(ess.min())}
        figures |= {"evidence_error": error, **sizes}
    return {"x": np.asarray(x), **figures}


def measure(seed: int, d: int, d_y: int, options: Options) -> dict[str, dict[str, Any]]:
    """Measure every method on one problem; each is kept in a file of its own."""
    names = [FLOOR, *options.methods]
    digest = cache.digest([options.rows, options.calls, options.slices])
    folder = options.output / "parts"
    paths = [folder / f"{d}-{d_y}-{seed}-{name}-{digest}.json" for name in names]

    @functools.cache
    def prepared() -> tuple[Problem, Slices]:
        problem = make_problem(seed, d, d_y)
        reference = exact_samples([seed, d, d_y, 1], problem, options.rows)
        return problem, Slices(reference, options.slices)

    def make(numbers: list[int]) -> list[dict[str, Any]]:
        (n,) = numbers
        problem, distance = prepared()
        if names[n] == FLOOR:
            found: dict[str, Any] = {"x": exact_samples([seed, d, d_y, 2], problem, options.rows)}
        else:
            found = run(names[n], problem, seed, options)
        x = found.pop("x")
        value = distance(x) if np.all(np.isfinite(x)) else None
        return [{"sliced_wasserstein": value, **found}]

    return dict(zip(names, cache.resumable(paths, make), strict=True))


def summary(values: list[float | None]) -> dict[str, Any]:
    """Median, quartiles, mean and its 95% interval (1.96 standard errors), of the finite runs."""
    finite = np.array([value for value in values if value is not None])
    if not len(finite):
        return {"num": 0, "diverged": len(values)}
    low, median, high = np.quantile(finite, [0.25, 0.5, 0.75])
    error = np.std(finite, ddof=1) / np.sqrt(len(finite)) if len(finite) > 1 else np.nan
    figures = {"median": median, "low": low, "high": high}
    figures |= {"mean": finite.mean(), "interval": 1.96 * error}
    counts = {"num": len(finite), "diverged": len(values) - len(finite)}
    return counts | {name: float(value) for name, value in figures.items()}


def summarise(
    parts: dict[tuple[int, int], list[dict[str, dict[str, Any]]]],
) -> list[dict[str, Any]]:
    """Make one row for each method and size."""
    rows = []
    for (d, d_y), found in parts.items():
        for name in found[0]:
            here = [part[name] for part in found if name in part]
            row = {"d": d, "d_y": d_y, "method": name, "steps": here[0].get("steps")}
            row["sliced_wasserstein"] = summary([one["sliced_wasserstein"] for one in here])
            if "evidence_error" in here[0]:
                errors = np.array([one["evidence_error"] for one in here])
                row["evidence_error"] = summary(np.abs(errors[np.isfinite(errors)]).tolist())
                row["ess_least"] = float(np.median([one["ess_least"] for one in here]))
                row["ess_last"] = float(np.median([one["ess_last"] for one in here]))
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Three tables: mean distances, median distances, and errors of log p(y) with sample sizes."""
    sizes = list(dict.fromkeys((row["d"], row["d_y"]) for row in rows))
    names = list(dict.fromkeys(row["method"] for row in rows))
    at = {(row["d"], row["d_y"], row["method"]): row for row in rows}

    def mean(row: dict[str, Any]) -> str:
        figures = row["sliced_wasserstein"]
        lost = f" ({figures['diverged']} lost)" if figures["diverged"] else ""
        return (
            f"{figures['mean']:.2f} +- {figures['interval']:.2f}{lost}"
            if figures["num"]
            else "diverged"
        )

    def median(row: dict[str, Any]) -> str:
        figures = row["sliced_wasserstein"]
        return (
            f"{figures['median']:.2f} ({figures['low']:.2f}-{figures['high']:.2f})"
            if figures["num"]
            else "diverged"
        )

    def evidence(row: dict[str, Any]) -> str:
        if not row.get("evidence_error", {}).get("num"):
            return "-"
        return f"{row['evidence_error']['median']:.2f}, {row['ess_least']:.2f}"

    titles = {
        mean: "sliced Wasserstein-2 to exact samples, mean +- 95% interval of the mean",
        median: "the same, median (quartiles)",
        evidence: "median over problems: |error| of log p(y), nats; least ESS / rows of a run",
    }
    lines = []
    for cell, title in titles.items():
        lines += [
            "",
            title,
            "",
            "| method | " + " | ".join(f"{d}, {d_y}" for d, d_y in sizes) + " |",
        ]
        lines.append("|---" * (len(sizes) + 1) + "|")
        for name in names:
            cells = [cell(at[*size, name]) for size in sizes]
            if cell is not evidence or set(cells) != {"-"}:
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw medians and quartiles of the distances by method, a panel for each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    dims, observed = (sorted({row[name] for row in rows}) for name in ("d", "d_y"))
    shape = (len(dims), len(observed))
    figure, axes = plt.subplots(
        *shape,
        figsize=(3 * shape[1] + 1, 2 * shape[0] + 0.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (d, d_y) in zip(axes.flat, ((d, d_y) for d in dims for d_y in observed), strict=True):
        here = [row for row in rows if (row["d"], row["d_y"]) == (d, d_y)]
        for row in here:
            if not row["sliced_wasserstein"]["num"]:
                continue
            figures, color = row["sliced_wasserstein"], "k" if row["method"] == FLOOR else "C0"
            span = [[figures["median"] - figures["low"]], [figures["high"] - figures["median"]]]
            style = {"fmt": "o", "color": color, "markersize": 3, "capsize": 2}
            axis.errorbar(figures["median"], row["method"], xerr=span, **style)
        axis.set(xscale="log", title=f"d = {d}, d_y = {d_y}")
        axis.tick_params(labelsize=7)
    axes[0, 0].invert_yaxis()
    figure.supxlabel(
        "sliced Wasserstein-2 to exact posterior samples: median and quartiles", fontsize=9
    )
    with training.atomic(path) as draft:
        figure.savefig(draft, dpi=100)
    plt.close(figure)


def main(options: Options) -> list[dict[str, Any]]:
    """Measure the missing parts, seed by seed over all sizes; print, draw and save."""
    if any(d < 2 or d % 2 for d in options.dims):
        raise ValueError(f"dims: expected even numbers, got {options.dims}")
    if any(d_y > d for d in options.dims for d_y in options.observed):
        raise ValueError(f"observed: expected no more entries than x has, got {options.observed}")
    sizes = [(d, d_y) for d in options.dims for d_y in options.observed]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    parts: dict[tuple[int, int], list[Any]] = {size: [] for size in sizes}
    with tqdm(total=len(seeds) * len(sizes), desc="problems", unit="problem") as bar:
        for seed in seeds:
            for size in sizes:
                parts[size].append(measure(seed, *size, options))
                bar.update()
    rows = summarise(parts)
    print(f"{machine.describe()}\n{table(rows)}")
    chosen = dataclasses.asdict(options) | {"output": str(options.output)}
    found = {"machine": machine.describe(), "options": chosen, "rows": rows}
    training.write_json(options.output / "posterior.json", found)
    picture(rows, options.output / "posterior.png")
    return rows


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
