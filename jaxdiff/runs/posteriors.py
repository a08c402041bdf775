"""Posterior samples of many images with one compiled program: figures and calibration."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

import jaxdiff as jd
from jaxdiff import resampling
from jaxdiff.observations import log_likelihoods
from jaxdiff.runs import cache, calibration, loading, memory, sampling, tasks
from jaxdiff.runs.methods import METHODS
from jaxdiff.runs.problems import (
    GIBBS_STEPS,
    MMPS_ITERATIONS,
    REPAINT_RESAMPLES,
    Problem,
    grid_of,
    setting_of,
)
from jaxdiff.runs.seeds import another, key_of


@dataclass(frozen=True)
class Observed:
    """Images [K, *D], their labels and what was observed of them."""

    x_0: np.ndarray
    labels: np.ndarray
    ys: list[np.ndarray]


def observe(
    task: tasks.Task, x_0: np.ndarray, labels: np.ndarray | None, *, seed: int, what: str
) -> Observed:
    """Draw an observation of each image; one without a label has -1."""
    labels = np.full(len(x_0), -1) if labels is None else labels
    key = key_of(seed, what)
    ys = [
        np.asarray(task.draw(jax.random.fold_in(key, i), jnp.asarray(x), jnp.asarray(label)))
        for i, (x, label) in enumerate(zip(x_0, labels, strict=True))
    ]
    return Observed(x_0, labels, ys)


def from_the_model(
    run: loading.Run, task: tasks.Task, ts: jax.Array, *, num: int, seed: int
) -> Observed:
    """Draw images from the model on the posterior's grid; their exact prior is the model."""
    seed = another(seed)
    x_0 = sampling.generate(
        run.trained,
        num,
        seed=seed,
        sampler="ancestral",
        variance="small",
        ts=ts,
        batch_size=run.config.batch_size,
    ).x
    return observe(task, x_0, None, seed=seed, what=f"observe {task.name}")


class Drawn(NamedTuple):
    """Weighted samples of K images.

    Fields:
      x: samples, [K, N, *D].
      log_weights: their log-weights, [K, N].
      log_evidence: log p(y) of each image, [K].
      ess: effective sample size of each image after every step, [K, S].
      seconds: time for an image.
    """

    x: np.ndarray
    log_weights: np.ndarray
    log_evidence: np.ndarray
    ess: np.ndarray
    seconds: float


def draw(
    run: loading.Run, problem: Problem, name: str, ys: list[np.ndarray], *,
    seed: int, what: str, particles: int | None = None, labels: np.ndarray | None = None,
) -> Drawn:  # fmt: skip
    """Draw posterior samples for every observation, spread over the devices.

    Image i depends on (seed, i) alone. Finished images are kept in files. A file's name is a digest
    of everything that its image depends on, so more images, or another option of another method,
    leave the file valid. Labels, one for each image, select the class-conditional model.
    """
    number = problem.options.particles if particles is None else particles
    likelihoods = [problem.task.likelihood(jnp.asarray(y)) for y in ys]
    made_of = _digest(run, problem, name, [number, seed, what])
    folder = run.folder / "posterior" / "parts"
    paths = []
    for i, y in enumerate(ys):
        label = None if labels is None else labels[i]
        digest = cache.digest([made_of, i], (likelihoods[i], label, y))
        paths.append(folder / f"{name}-{i}-{digest}.npz")
    make = _maker(
        run, problem, name, number, likelihoods=likelihoods, key=key_of(seed, what), labels=labels
    )
    at_once = jax.local_device_count() * problem.options.at_once
    parts = cache.resumable(paths, make, at_once=at_once, name=name)
    fields = {
        f: np.stack([part[f] for part in parts])
        for f in ("x", "log_weights", "log_evidence", "ess")
    }
    # The median leaves out the compilation, which only the first part waits for.
    return Drawn(**fields, seconds=float(np.median([part["seconds"] for part in parts])))


def _maker(
    run: loading.Run,
    problem: Problem,
    name: str,
    number: int,
    *,
    likelihoods: list[Any],
    key: jax.Array,
    labels: np.ndarray | None,
) -> Callable[[list[int]], list[dict[str, np.ndarray]]]:
    """Return the function that draws the images of some numbers, at most one for each place."""
    num_devices, at_once = jax.local_device_count(), problem.options.at_once
    program = _program(run, problem, name, number)
    size = num_devices * at_once

    def make(numbers: list[int]) -> list[dict[str, np.ndarray]]:
        index = np.resize(numbers, size)  # few numbers fill the places again and again

        def spread(leaves: Any) -> Any:
            stacked = jnp.stack([jnp.asarray(leaves[i]) for i in index])
            return stacked.reshape(num_devices, at_once, *stacked.shape[1:])

        keys = spread([jax.random.fold_in(key, i) for i in range(max(numbers) + 1)])
        label = None if labels is None else spread(labels)
        given = jax.tree.map(lambda *leaves: spread(leaves), *likelihoods)
        began = time.monotonic()
        out = jax.tree.map(np.asarray, program(run.trained.params, keys, given, label))
        sampling.require_finite(out["x"].reshape(-1, *run.dataset.event_shape))
        seconds = np.asarray((time.monotonic() - began) / len(numbers))
        rows = {field: value.reshape(size, *value.shape[2:]) for field, value in out.items()}
        return [
            {field: value[place] for field, value in rows.items()} | {"seconds": seconds}
            for place in range(len(numbers))
        ]

    return make


@lru_cache(maxsize=1)  # for the images seen, those of the calibration and those of every class
def _program(run: loading.Run, problem: Problem, name: str, number: int) -> Any:
    """The compiled program of (params, keys, likelihoods, labels).

    The last three have leading axes [devices, at_once].
    """
    method, ts, options = METHODS[name], grid_of(name, problem), problem.options
    resample = getattr(resampling, options.scheme)(options.threshold) if method.weighted else None

    def one(params: Any, key: jax.Array, likelihood: Any, label: Any) -> dict[str, jax.Array]:
        key_prior, key_run = jax.random.split(key)
        given = None if label is None else jnp.full(number, label)
        denoiser = run.trained.with_params(params).denoiser(given)
        x_init = sampling.pure_noise(
            key_prior, run.trained.schedule, (number, *run.dataset.event_shape), ts
        )
        kernel = method.make(setting_of(name, problem, likelihood), denoiser, likelihood)
        out = jd.sample(key_run, kernel, x_init, ts, resample=resample)
        return {
            "x": out.x,
            "log_weights": out.log_weights,
            "log_evidence": out.log_evidence,
            "ess": out.ess,
        }

    return jax.pmap(jax.vmap(one, in_axes=(None, 0, 0, 0)), in_axes=(None, 0, 0, 0))


def _digest(run: loading.Run, problem: Problem, name: str, settings: list[Any]) -> str:
    """A digest of everything that all images of a method depend on."""
    method, options = METHODS[name], problem.options
    settings = [name, *settings, problem.task.name, problem.task.noise_std]
    settings += [
        MMPS_ITERATIONS,
        REPAINT_RESAMPLES,
        GIBBS_STEPS,
        dataclasses.asdict(run.config.diffusion),
    ]
    if method.weighted:
        settings += [options.scheme, options.threshold]
    arrays: list[Any] = [run.trained.params, run.trained.schedule, grid_of(name, problem)]
    if "prior_std" in method.uses:
        settings.append(problem.prior_std)
    if "belief" in method.uses:
        settings.append(options.belief)
        arrays += [problem.mean, problem.covariance] if options.belief == "data" else []
    return cache.digest(settings, arrays)


def figures(task: tasks.Task, seen: Observed, drawn: Drawn) -> list[dict[str, float]]:
    """The figures of each image: evidence, effective sample size, distances to the truth and to y.

    The energy score is E|X - x_0| - E|X - X'| / 2, per pixel. On average the true posterior has the
    smallest one.
    """
    rows = []
    for i, (truth, y) in enumerate(zip(seen.x_0, seen.ys, strict=True)):
        x, weights = drawn.x[i], calibration.normalised(drawn.log_weights[i])
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
    run: loading.Run,
    problem: Problem,
    name: str,
    seen: Observed,
    *,
    particles: int,
    seed: int,
) -> dict[str, Any]:
    """Rank images of the model among their posterior samples; return the tests of the ranks."""
    train, _ = run.dataset.head("train", memory.affordable(10_000, run.dataset.event_shape))
    functions = calibration.Functions(train, problem.task.hidden)
    other, what = another(seed), f"calibrate {problem.task.name}"
    drawn = draw(run, problem, name, seen.ys, seed=other, what=what, particles=particles)
    uniform = np.random.default_rng(seed).random(len(seen.ys))

    @jax.jit
    def log_r(likelihood: Any, x: jax.Array) -> jax.Array:
        return log_likelihoods(likelihood, x)

    shares = []
    for i, (truth, y) in enumerate(zip(seen.x_0, seen.ys, strict=True)):
        both = np.concatenate([truth[None], drawn.x[i]])
        values = functions(
            both, np.asarray(log_r(problem.task.likelihood(jnp.asarray(y)), jnp.asarray(both)))
        )
        shares.append(calibration.ranks(values[0], values[1:], drawn.log_weights[i], uniform[i]))
    return calibration.summary(np.stack(shares), functions.names)
