"""Posterior methods on an oracle that looks like images: a mixture fitted to the embedded digits.

The law is a mixture of 40 normals with full covariances in 64 dimensions, so that the denoiser, the
posterior and the evidence are exact. The middle or the lower half of an image is hidden. Every
method has the same number of network calls for an image; a vector-Jacobian product counts as one.
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxdiff as jd
from jaxdiff import observations, posterior, training
from jaxdiff.cli import errors
from jaxdiff.runs import cache, calibration, machine, methods

ROOT = Path(__file__).resolve().parents[1]
SCHEDULE, NOISE_STD, START, SIDE = jd.schedules.cosine(), 0.1, -8.0, 8

TaskName = Literal["middle", "half"]
MethodName = Literal[
    "exact", "twisted", "particle_gibbs", "one_system", "twisted_gradient", "conditioned", "pigdm",
    "mmps", "tmpd", "dps_step", "daps", "diffpir",
    "mgdm",
]  # fmt: skip
OTHERS = {"one_system": "twisted"}  # all rows of one system, with their weights


@dataclass(frozen=True)
class Options:
    """What to measure."""

    tasks: tuple[TaskName, ...] = typing.get_args(TaskName)
    """What is hidden."""
    methods: tuple[MethodName, ...] = typing.get_args(MethodName)
    """Methods to compare; exact are draws of the exact posterior."""
    images: int = 100
    """Draws of the law that are observed."""
    draws: int = 16
    """Independent systems for an image."""
    calls: int = 3200
    """Network calls for an image."""
    steps: int = 25
    """Steps of the grid."""
    seed: int = 0
    """Seed of everything random."""
    output: Path = ROOT / "runs" / "digits-oracle"
    """Folder of digits-oracle.json and parts. An interrupted run goes on from parts."""


def law() -> jd.oracles.GaussianMixture:
    """The mixture of forty normals, fitted to the digits in [-1, 1]."""
    digits = jd.data.load("digits")
    x_0 = jd.data.to_unit(jnp.asarray(digits.train.images), digits.levels)
    return jax.jit(jd.oracles.fitted, static_argnames="num_components")(jax.random.key(0), x_0, 40)


def hidden(task: TaskName) -> np.ndarray:
    """True where a pixel is hidden, [64]."""
    row, column = np.mgrid[:SIDE, :SIDE]
    middle = (row >= 2) & (row < 6) & (column >= 2) & (column < 6)
    return (middle if task == "middle" else row >= SIDE // 2).ravel()


def size_of(method: methods.Method, setting: methods.Setting, options: Options) -> tuple[int, int]:
    """Systems and rows that cost the calls."""
    one = options.steps * method.calls(setting) * (1 + method.sweeps)
    if not method.weighted:
        return max(2, int(options.calls / one)), 1
    return options.draws, max(2, int(options.calls / one) // options.draws)


def measure(name: str, task: TaskName, options: Options) -> dict[str, Any]:
    """Draw for every image, and compare with the exact posterior."""
    mixture = law()
    keys = jax.random.split(jax.random.key(options.seed), 4)
    truths = mixture.sample(keys[0], (options.images,))
    ys = truths + NOISE_STD * jax.random.normal(keys[1], truths.shape)
    seen = ~hidden(task)
    rows, noise = jnp.eye(SIDE**2)[np.flatnonzero(seen)], NOISE_STD**2 * jnp.eye(int(seen.sum()))
    std = float(jnp.sqrt(jnp.mean(jnp.var(mixture.sample(keys[2], (1000,)), axis=0))))
    samples = mixture.sample(keys[3], (1000,))

    @jax.jit
    def spread_of(mixture: Any) -> posterior.Spread:
        return posterior.spread_of(keys[2], mixture.denoiser(SCHEDULE), SCHEDULE, samples)

    measured = spread_of(mixture)
    setting = methods.Setting(SCHEDULE, prior_std=std, num_iterations=3, variance="optimal")
    ts = jd.grids.uniform(options.steps, start=float(SCHEDULE.time(START)))
    method = methods.METHODS.get(OTHERS.get(name, name))

    def given(mixture: Any, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        exact = mixture.posterior(rows, rows @ y, noise)
        weights = jax.nn.softmax(exact.log_weights)
        mean = weights @ exact.means
        within = jnp.diagonal(exact.covariances, axis1=1, axis2=2)
        variance = weights @ (within + (exact.means - mean[None]) ** 2)
        return mean, jnp.sqrt(variance), mixture.log_evidence(rows, rows @ y, noise)

    def drawn(law: Any, key: jax.Array, y: jax.Array) -> tuple[Any, ...]:
        mixture, wide, told = law
        if method is None:
            exact = mixture.posterior(rows, rows @ y, noise).sample(key, (options.draws,))
            return exact, jnp.zeros(options.draws), jnp.asarray(0.0), jnp.asarray(options.draws)
        observed = observations.mask(y, jnp.asarray(seen), NOISE_STD)
        kernel = method.make(told, wide, observed)
        systems, num = size_of(method, told, options)
        if method.weighted and name != "one_system":
            out = posterior.draw(
                key, kernel, SCHEDULE, (systems, SIDE**2), ts=ts, rows=num, sweeps=method.sweeps
            )
            return out.x, jnp.zeros(systems), out.log_evidence, jnp.asarray(systems)
        key_prior, key_run = jax.random.split(key)
        x_init = jd.prior_sample(key_prior, SCHEDULE, (systems * num, SIDE**2))
        resample = jd.resampling.systematic() if method.weighted else None
        found = jd.sample(key_run, kernel, x_init, ts, resample=resample)
        return found.x, found.log_weights, found.log_evidence, found.lineages[-1]

    keys = jax.random.split(jax.random.key(options.seed + 1), options.images)

    @jax.jit
    def run(mixture: Any, measured: Any, keys: jax.Array, ys: jax.Array) -> Any:
        wide = posterior.widened(mixture.denoiser(SCHEDULE), SCHEDULE, measured)
        law = mixture, wide, setting._replace(spread=measured)
        found = jax.lax.map(lambda pair: drawn(law, *pair), (keys, ys))
        return found, jax.vmap(given, (None, 0))(mixture, ys)

    found, exact = run(mixture, measured, keys, ys)
    weighted = method is not None and method.weighted
    arrays = [np.asarray(v) for v in found]
    return figures(np.asarray(truths), hidden(task), arrays, exact=exact, weighted=weighted)


def figures(
    truths: np.ndarray, place: np.ndarray, found: list[np.ndarray], *, exact: Any, weighted: bool
) -> dict[str, Any]:
    """Coverage, and the errors of mean, deviation and evidence, over the hidden pixels."""
    x, log_weights, log_z, lineages = found
    mean, std, log_evidence = (np.asarray(v, np.float64) for v in exact)
    shares, far, wide = [], [], []
    for i, truth in enumerate(truths):
        weights, draws = calibration.normalised(log_weights[i]), x[i][:, place]
        shares.append(calibration.ranks(truth[place], draws, log_weights[i], 0.5))
        centre = weights @ draws
        spread = weights @ (draws - centre) ** 2 / max(1 - np.sum(weights**2), 1e-9)
        far.append(np.mean(((centre - mean[i][place]) / std[i][place]) ** 2))
        wide.append(np.mean(np.sqrt(spread) / std[i][place]))
    errors = log_z - log_evidence
    return {
        **{f"holds_{round(100 * level)}": calibration.coverage(np.stack(shares), level)._asdict()
           for level in calibration.LEVELS},
        "mean_error": float(np.sqrt(np.mean(far))), "deviation": float(np.mean(wide)),
        "evidence_error": [float(np.mean(errors)), float(np.std(errors))] if weighted else None,
        "lineages": float(np.mean(lineages)), "samples": x.shape[1],
    }  # fmt: skip


def main(options: Options) -> list[dict[str, Any]]:
    """Measure the missing parts; print and save the table."""
    if options.images < 2 or options.draws < 2 or options.steps < 2 or options.calls < 1:
        raise ValueError("images, draws, steps: expected at least 2, and calls at least 1")
    chosen = [options.images, options.draws, options.calls, options.steps, options.seed]
    cases = [(task, name) for task in options.tasks for name in options.methods]
    digest = cache.digest(chosen)
    paths = [options.output / "parts" / f"{task}-{name}-{digest}.json" for task, name in cases]
    parts = cache.resumable(
        paths, lambda numbers: [measure(cases[n][1], cases[n][0], options) for n in numbers],
        name="methods",
    )  # fmt: skip
    rows = [
        {"task": task, "method": name, **part}
        for (task, name), part in zip(cases, parts, strict=True)
    ]
    print(machine.describe())
    print("| hidden | method | samples | lineages | 50% | 90% | mean error | sd / exact | log Z |")
    print("|---" * 9 + "|")
    for row in rows:
        half, most = row["holds_50"], row["holds_90"]
        error = row["evidence_error"]
        evidence = "-" if error is None else f"{error[0]:+.2f} +- {error[1]:.2f}"
        print(
            f"| {row['task']} | {row['method']} | {row['samples']} | {row['lineages']:.0f} | "
            f"{half['value']:.2f} | {most['value']:.2f} +- {most['standard_error']:.2f} | "
            f"{row['mean_error']:.2f} | {row['deviation']:.2f} | {evidence} |"
        )
    found = {"machine": machine.describe(), "rows": rows}
    training.write_json(options.output / "digits-oracle.json", found)
    return rows


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
