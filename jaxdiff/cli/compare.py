"""Compare the samplers: error against network calls, on a closed-form mixture and on a trained run.

The denoiser of the mixture is exact, so the whole error is the sampler's. Samples of a trained run
are compared with samples of the same network in many small steps, so the network's own error does
not count.
"""

import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import pictures
from jaxdiff.runs import loading, machine, memory, records, require, samplers, sampling
from jaxdiff.runs.samplers import SamplerName
from jaxdiff.runs.seeds import another

SCHEDULES = {
    "cosine": jd.schedules.cosine,
    "linear": jd.schedules.linear,
    "edm": jd.schedules.edm,
    "rectified_flow": jd.schedules.rectified_flow,
}
GridName = Literal[samplers.GridName, "optimised"]
REFERENCE_STEPS = 200


@dataclass(frozen=True)
class Options:
    """What to compare."""

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """Folder of a run that `jaxdiff train` has made, or of a network from elsewhere; if not given,
    only the mixture is compared."""
    samplers: tuple[SamplerName, ...] = typing.get_args(SamplerName)
    """Samplers to compare."""
    grids: tuple[GridName, ...] = typing.get_args(GridName)
    """Grids to compare; optimised is fitted to the denoiser's error."""
    calls: tuple[int, ...] = (6, 10, 20, 50)
    """Numbers of network calls."""
    schedule: Literal["cosine", "linear", "edm", "rectified_flow"] = "cosine"
    """Schedule of the mixture."""
    num: int = 10_000
    """Samples of the mixture."""
    run_num: int = 512
    """Samples of the run."""
    orders: bool = True
    """Whether to draw the orders of convergence too, in float64."""
    seed: int = 0
    """Seed of everything random."""
    dataset: str | None = None
    """Data set to measure on, as `jaxdiff train` takes it; the one that the network was trained on
    if not given."""
    data_dir: Path | None = None
    """Where TFDS keeps it; the run's own place if not given."""
    output: Path = Path("runs/compare")
    """Folder for compare.json and the pictures."""


def mixture(seed: int) -> jd.oracles.GaussianMixture:
    """Six unequal, tilted components in four dimensions."""
    random = np.random.default_rng(seed)
    turns = np.linalg.qr(random.normal(size=(6, 4, 4)))[0]
    covariances = np.einsum("kij,kj,klj->kil", turns, random.uniform(0.01, 0.25, (6, 4)), turns)
    arrays = (
        np.log(random.dirichlet(np.full(6, 3.0))),
        random.normal(scale=1.2, size=(6, 4)),
        covariances,
    )
    return jd.oracles.GaussianMixture(*(jnp.asarray(array, jnp.float32) for array in arrays))


def moments(law: jd.oracles.GaussianMixture) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and covariance."""
    weights = np.asarray(jax.nn.softmax(law.log_weights), np.float64)
    means = np.asarray(law.means, np.float64)
    mean = weights @ means
    second = np.einsum(
        "k,kij->ij", weights, np.asarray(law.covariances) + means[:, :, None] * means[:, None, :]
    )
    return mean, second - np.outer(mean, mean)


def sample_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a sample."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    return flat.mean(0), np.cov(flat, rowvar=False)


def grids(
    options: Options, error: Callable[[jax.Array], float], schedule: jd.Schedule
) -> Callable[[str, int], jax.Array]:
    """Return a grid by name and number of steps; the optimised one needs the denoiser's error."""
    best = (
        optimised(error, schedule, max(80, 2 * max(options.calls)))
        if "optimised" in options.grids
        else None
    )

    def grid_of(grid: str, steps: int) -> jax.Array:
        return (
            best(steps)
            if best and grid == "optimised"
            else samplers.make_grid(schedule, grid, steps)
        )

    return grid_of


def optimised(
    error: Callable[[jax.Array], float], schedule: jd.Schedule, size: int
) -> Callable[[int], jax.Array]:
    """The grid with the smallest variational gap, from a table of the denoiser's error."""
    low, high = (float(np.clip(schedule.log_snr(t), -14, 12)) for t in (1.0, 0.0))
    log_snr = np.linspace(low, high, size)
    times = schedule.time(jnp.asarray(log_snr, jnp.float32))
    errors = np.minimum.accumulate([error(t) for t in times])
    # Strictly falling, even where the measured error is constant.
    errors = errors * (1 - 1e-6 * np.arange(len(errors)))
    return lambda steps: jd.grids.optimised(
        schedule, steps, jnp.asarray(log_snr), jnp.asarray(errors)
    )


def cases(options: Options) -> Iterator[tuple[str, str, int]]:
    """Every sampler, grid and number of calls that allows at least three steps."""
    for name in options.samplers:
        for grid in options.grids:
            for calls in options.calls:
                # One step at each steep end, and one between.
                if calls // samplers.SAMPLERS[name].calls >= 3:
                    yield name, grid, calls


def measure(
    options: Options,
    label: str,
    draw: Callable[[str, jax.Array], np.ndarray],
    grid_of: Callable[[str, int], jax.Array],
    *,
    reference: np.ndarray,
    moments_error: Callable[[np.ndarray], float],
) -> list[dict[str, Any]]:
    """Measure every case against reference samples, moments, and the ODE from the same noise."""
    rows, todo = [], list(cases(options))
    converged = draw("unipc_2", grid_of("log_snr", REFERENCE_STEPS))
    for name, grid, calls in tqdm(todo, desc=label, unit="run"):
        x = draw(name, grid_of(grid, calls // samplers.SAMPLERS[name].calls))
        distance = float(np.sqrt(np.mean((x - converged) ** 2)))
        rows.append({
            "sampler": name, "grid": grid, "calls": calls,
            "sliced_wasserstein": jd.metrics.sliced_wasserstein(x, reference, num_slices=200).value,
            "moments": moments_error(x),
            "same_noise": distance if samplers.SAMPLERS[name].ode else None,
        })  # fmt: skip
        # Every case is a program of its own, which is used once. Hundreds of them would fill the
        # process's memory map.
        jax.clear_caches()
    return rows


def on_mixture(options: Options) -> dict[str, Any]:
    """All samplers on the closed-form mixture."""
    law, schedule = mixture(options.seed), SCHEDULES[options.schedule]()
    keys = jax.random.split(jax.random.key(options.seed), 5)
    reference, other, data = (np.asarray(law.sample(key, (options.num,))) for key in keys[:3])
    denoiser, x_init = law.denoiser(schedule), jd.prior_sample(keys[3], schedule, (options.num, 4))

    def draw(name: str, ts: jax.Array) -> np.ndarray:
        return np.asarray(
            jd.sample(keys[4], samplers.SAMPLERS[name].make(denoiser, schedule, 0.0), x_init, ts).x
        )

    @jax.jit
    def errors(t: jax.Array) -> jax.Array:
        return jd.losses.denoising_error(
            jax.random.key(0), denoiser, schedule, jnp.asarray(data[:2000]), t=t
        ).mean()

    exact, grid_of = moments(law), grids(options, lambda t: float(errors(t)), schedule)

    def moments_error(x: np.ndarray) -> float:
        return jd.metrics.normal_wasserstein(*sample_moments(x), *exact)

    return {
        "title": f"exact denoiser of a mixture in 4 dimensions, {options.schedule} schedule",
        "floor": jd.metrics.sliced_wasserstein(other, reference, num_slices=200).value,
        "moments_floor": moments_error(other),
        "rows": measure(
            options, "mixture", draw, grid_of, reference=reference, moments_error=moments_error
        ),
    }


def error_by_time(run: loading.Run) -> Callable[[jax.Array], float]:
    """The network's denoising error on held-out data, as a function of time."""
    x_0, label = run.dataset.head("test", 256)
    given = None if run.trained.num_classes is None else label
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(len(x_0)))

    @jax.jit
    def errors(params: Any, t: jax.Array, rows: tuple) -> jax.Array:
        key, x_0, label = rows
        denoiser = run.trained.with_params(params).denoiser(label)
        return jd.losses.denoising_error(key, denoiser, run.trained.schedule, x_0, t=t)

    def error(t: jax.Array) -> float:
        def at(*rows: Any) -> jax.Array:
            return errors(run.trained.params, t, rows)

        return float(np.mean(memory.in_chunks(at, run.config.batch_size, keys, x_0, given)))

    return error


def on_run(options: Options, run: loading.Run) -> dict[str, Any]:
    """All samplers on a trained network, against many steps of the same network."""
    num = options.run_num
    labels = sampling.classes_in_turn(run.trained, num)
    reference, other = (
        sampling.generate(
            run.trained,
            num,
            seed=another(options.seed, 1 + i),
            labels=labels,
            sampler="unipc_2",
            steps=REFERENCE_STEPS,
            grid="log_snr",
            batch_size=run.config.batch_size,
        ).x
        for i in range(2)
    )
    grid_of = grids(options, error_by_time(run), run.trained.schedule)

    def draw(name: str, ts: jax.Array) -> np.ndarray:
        return sampling.generate(
            run.trained,
            num,
            seed=options.seed,
            labels=labels,
            sampler=name,
            ts=ts,
            batch_size=run.config.batch_size,
        ).x

    def moments_error(x: np.ndarray) -> float:
        return jd.metrics.frechet_distance(x, reference).value

    return {
        "title": f"{run.dataset.name}, a trained network, step {run.trained.step}",
        "floor": jd.metrics.sliced_wasserstein(other, reference, num_slices=200).value,
        "moments_floor": moments_error(other),
        "rows": measure(
            options,
            run.dataset.name,
            draw,
            grid_of,
            reference=reference,
            moments_error=moments_error,
        ),
    }


def orders(seed: int) -> list[dict[str, Any]]:
    """Errors of the solvers of the probability-flow ODE by number of steps, from log-SNR -8 to 6.

    All is in float64, with one schedule of each family; the reference is UniPC-2 at 4096 steps.
    Errors are medians, because a few trajectories pass between two basins, where any small error
    grows. The slope is that of the last three numbers of steps.
    """
    counts, rows = (8, 16, 32, 64, 128, 256, 512), []
    deterministic = [name for name, sampler in samplers.SAMPLERS.items() if sampler.ode]
    with jax.enable_x64(True):
        law = jax.tree.map(lambda leaf: leaf.astype(float), mixture(seed))
        for family in tqdm(("linear", "edm", "rectified_flow"), desc="orders", unit="family"):
            schedule = SCHEDULES[family]()
            start = law.diffuse(schedule, schedule.time(-8.0)).sample(jax.random.key(seed), (64,))

            def solve(
                name: str, steps: int, schedule: jd.Schedule = schedule, start: jax.Array = start
            ) -> np.ndarray:
                kernel = samplers.SAMPLERS[name].make(law.denoiser(schedule), schedule, 0.0)
                ts = schedule.time(jnp.linspace(-8.0, 6.0, steps + 1))
                return np.asarray(jd.sample(jax.random.key(0), kernel, start, ts).x)

            exact = solve("unipc_2", 4096)
            for name in deterministic:
                errors = [float(np.median(np.abs(solve(name, steps) - exact))) for steps in counts]
                slope = -float(np.polyfit(np.log(counts[-3:]), np.log(errors[-3:]), 1)[0])
                jax.clear_caches()
                rows.append(
                    {
                        "family": family,
                        "sampler": name,
                        "steps": counts,
                        "errors": errors,
                        "slope": slope,
                    }
                )
    return rows


def table(result: dict[str, Any]) -> str:
    """For each sampler and number of calls, the best grid and its error."""
    calls = sorted({row["calls"] for row in result["rows"]})
    lines = [result["title"]]
    for figure, what in (
        (
            "sliced_wasserstein",
            f"sliced Wasserstein-2; {result['floor']:.4f} between two sets of exact samples",
        ),
        (
            "same_noise",
            "root mean square distance from the solution of the ODE from the same noise",
        ),
    ):
        lines += [what, f"{'':16}" + "".join(f"{f'{c} calls':>20}" for c in calls)]
        for name in dict.fromkeys(
            row["sampler"] for row in result["rows"] if row[figure] is not None
        ):
            cells = []
            for c in calls:
                here = [
                    row for row in result["rows"] if row["sampler"] == name and row["calls"] == c
                ]
                best = min(here, key=lambda row: row[figure], default=None)
                cells.append("-" if best is None else f"{best[figure]:.4f} {best['grid']}")
            lines.append(f"{name:16}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def main(options: Options) -> list[dict[str, Any]]:
    """Measure, print, draw and save, part by part."""
    require.seed(options.seed)
    require.counts(options, num=2, run_num=2)
    if min(options.calls, default=0) < 3:
        raise ValueError(f"calls: expected numbers of at least 3, got {options.calls}")
    run = None
    if options.run is not None:
        run = loading.load_run(options.run, dataset=options.dataset, data_dir=options.data_dir)
    found: dict[str, Any] = {"machine": machine.describe(), "options": records.for_json(options)}
    if options.orders:
        found["orders"] = orders(options.seed)
        pictures.orders(found["orders"], options.output / "orders.png")
    found["results"] = results = []
    for measured in (
        lambda: on_mixture(options),
        None if run is None else lambda: on_run(options, run),
    ):
        if measured is not None:
            results.append(measured())
            print(table(results[-1]), end="\n\n")
            training.write_json(options.output / "compare.json", found)
            pictures.samplers(results, options.output / "compare.png")
    return results
