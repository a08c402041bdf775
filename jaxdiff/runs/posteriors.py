"""Posterior samples of many images with one compiled program: figures and calibration."""

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
from jaxdiff import posterior, resampling
from jaxdiff.observations import log_likelihoods
from jaxdiff.runs import cache, calibration, loading, memory, sampling, tasks
from jaxdiff.runs.methods import METHODS
from jaxdiff.runs.problems import (
    GIBBS_STEPS,
    MMPS_ITERATIONS,
    REPAINT_RESAMPLES,
    Problem,
    Size,
    grid_of,
    setting_of,
    size_of,
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


def from_the_model(run: loading.Run, problem: Problem, *, num: int, seed: int) -> Observed:
    """Draw images from the model on the posterior's grid; their exact prior is the model."""
    seed, trained, task = another(seed), run.trained, problem.task
    path = run.folder / "posterior" / "parts"
    made_of = _digest(run, problem, "model", [seed])
    paths = [path / f"model-{i}-{cache.digest([made_of, i])}.npz" for i in range(num)]
    key, size, ts = key_of(seed, "model"), min(num, run.config.batch_size), problem.ts

    @jax.jit
    def images(params: Any, numbers: jax.Array) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        denoiser = problem.widened(trained.with_params(params).denoiser())
        kernel = jd.kernels.ancestral(denoiser, problem.schedule, variance=problem.variance)

        def one(key: jax.Array) -> jax.Array:
            key_prior, key_run = jax.random.split(key)
            shape = (1, *run.dataset.event_shape)
            x_init = jd.prior_sample(key_prior, problem.schedule, shape, t=ts[0])
            return jd.sample(key_run, kernel, x_init, ts).x[0]

        return jax.vmap(one)(keys)

    def make(numbers: list[int]) -> list[dict[str, np.ndarray]]:
        x = np.asarray(images(trained.params, jnp.asarray(np.resize(numbers, size))))
        sampling.require_finite(x)
        return [{"x": x[place]} for place in range(len(numbers))]

    x_0 = np.stack([p["x"] for p in cache.resumable(paths, make, at_once=size, name="model")])
    return observe(task, x_0, None, seed=seed, what=f"observe {task.name}")


class Drawn(NamedTuple):
    """Samples of K images.

    Fields:
      x: samples, [K, N, *D].
      log_weights: their log-weights, [K, N]: 0 for draws of independent systems.
      log_evidence: log p(y) of each image, [K].
      ess: mean effective sample size of an image's systems after every step, [K, S].
      lineages: independent lineages behind an image's samples, [K].
      seconds: time for an image.
    """

    x: np.ndarray
    log_weights: np.ndarray
    log_evidence: np.ndarray
    ess: np.ndarray
    lineages: np.ndarray
    seconds: float


ARRAYS = Drawn._fields[:-1]


def draw(
    run: loading.Run, problem: Problem, name: str, ys: list[np.ndarray], *,
    seed: int, what: str, size: Size | None = None, labels: np.ndarray | None = None,
) -> Drawn:  # fmt: skip
    """Draw posterior samples for every observation, spread over the devices.

    Image i depends on (seed, i) alone. Finished images are kept in files. A file's name is a digest
    of everything that its image depends on, so more images, or another option of another method,
    leave the file valid. Labels, one for each image, select the class-conditional model.
    """
    size = size_of(name, problem, equal=False) if size is None else size
    likelihoods = [problem.task.likelihood(jnp.asarray(y)) for y in ys]
    made_of = _digest(run, problem, name, [*size, seed, what])
    folder = run.folder / "posterior" / "parts"
    paths = []
    for i, y in enumerate(ys):
        label = None if labels is None else labels[i]
        digest = cache.digest([made_of, i], (likelihoods[i], label, y))
        paths.append(folder / f"{name}-{i}-{digest}.npz")
    make = _maker(
        run, problem, name, size, likelihoods=likelihoods, key=key_of(seed, what), labels=labels
    )
    at_once = jax.local_device_count() * problem.options.at_once
    parts = cache.resumable(paths, make, at_once=at_once, name=name)
    fields = {f: np.stack([part[f] for part in parts]) for f in ARRAYS}
    # The median leaves out the compilation, which only the first part waits for.
    return Drawn(**fields, seconds=float(np.median([part["seconds"] for part in parts])))


def _maker(
    run: loading.Run,
    problem: Problem,
    name: str,
    size: Size,
    *,
    likelihoods: list[Any],
    key: jax.Array,
    labels: np.ndarray | None,
) -> Callable[[list[int]], list[dict[str, np.ndarray]]]:
    """Return the function that draws the images of some numbers, at most one for each place."""
    num_devices, at_once = jax.local_device_count(), problem.options.at_once
    program = _program(run, problem, name, size)
    places = num_devices * at_once

    def make(numbers: list[int]) -> list[dict[str, np.ndarray]]:
        index = np.resize(numbers, places)  # few numbers fill the places again and again

        def spread(rows: Any) -> jax.Array:
            return rows.reshape(num_devices, at_once, *rows.shape[1:])

        keys = spread(jax.vmap(jax.random.fold_in, (None, 0))(key, index))
        label = None if labels is None else spread(jnp.asarray(labels[index]))
        chosen = [likelihoods[i] for i in index]
        given = jax.tree.map(lambda *leaves: spread(jnp.stack(leaves)), *chosen)
        began = time.monotonic()
        out = jax.tree.map(np.asarray, program(run.trained.params, keys, given, label))
        sampling.require_finite(out["x"].reshape(-1, *run.dataset.event_shape))
        seconds = np.asarray((time.monotonic() - began) / len(numbers))
        rows = {field: value.reshape(places, *value.shape[2:]) for field, value in out.items()}
        return [
            {field: value[place] for field, value in rows.items()} | {"seconds": seconds}
            for place in range(len(numbers))
        ]

    return make


@lru_cache(maxsize=1)  # for the images seen, those of the calibration and those of every class
def _program(run: loading.Run, problem: Problem, name: str, size: Size) -> Any:
    """The compiled program of (params, keys, likelihoods, labels).

    The last three have leading axes [devices, at_once].
    """
    method, ts, options = METHODS[name], grid_of(name, problem), problem.options
    resample = getattr(resampling, options.scheme)(options.threshold) if method.weighted else None
    schedule, event = problem.schedule, run.dataset.event_shape
    # A single system is read whole, with its weights; so is one of rows that have none.
    whole = size.systems == 1 or not method.weighted

    def one(params: Any, key: jax.Array, likelihood: Any, label: Any) -> dict[str, jax.Array]:
        denoiser = problem.widened(run.trained.with_params(params).denoiser(label))
        kernel = method.make(setting_of(name, problem, likelihood), denoiser, likelihood)
        if not whole:
            out = posterior.draw(
                key, kernel, schedule, (size.systems, *event), ts=ts, rows=size.rows,
                resample=resample, sweeps=method.sweeps,
            )  # fmt: skip
            return {
                "x": out.x,
                "log_weights": jnp.zeros(size.systems),
                "log_evidence": out.log_evidence,
                "ess": jnp.mean(out.ess, axis=0),
                "lineages": jnp.asarray(size.systems),
            }
        key_prior, key_run = jax.random.split(key)
        shape = (size.systems * size.rows, *event)
        x_init = jd.prior_sample(key_prior, schedule, shape, t=ts[0])
        samples = jd.sample(key_run, kernel, x_init, ts, resample=resample)
        return {name: getattr(samples, name) for name in ARRAYS} | {
            "lineages": samples.lineages[-1]
        }

    axes = (None, 0, 0, 0)
    return jax.pmap(jax.vmap(one, in_axes=axes), in_axes=axes, devices=jax.local_devices())


def _digest(run: loading.Run, problem: Problem, name: str, settings: list[Any]) -> str:
    """A digest of everything that all images of a method depend on."""
    method, options = METHODS.get(name), problem.options
    settings = [name, *settings, problem.task.name, problem.task.noise_std]
    settings += [
        MMPS_ITERATIONS,
        REPAINT_RESAMPLES,
        GIBBS_STEPS,
        run.trained.settings,
    ]
    arrays: list[Any] = [run.trained.params, problem.schedule, problem.spread, problem.ts]
    if method is None:
        return cache.digest(settings, arrays)
    if method.weighted:
        settings += [options.scheme, options.threshold]
    arrays.append(grid_of(name, problem))
    if "prior_std" in method.uses:
        settings.append(problem.prior_std)
    if "belief" in method.uses:
        settings.append(options.belief)
        arrays += [problem.mean, problem.covariance] if options.belief == "data" else []
    return cache.digest(settings, arrays)


def figures(task: tasks.Task, seen: Observed, drawn: Drawn) -> list[dict[str, float]]:
    """The figures of each image: evidence, effective sample size, distances to the truth and to y.

    The energy score is E|X - x_0| - E|X - X'| / 2, per pixel, over pairs of different samples. On
    average the true posterior has the smallest one.
    """
    rows = []
    for i, (truth, y) in enumerate(zip(seen.x_0, seen.ys, strict=True)):
        x, weights = drawn.x[i], calibration.normalised(drawn.log_weights[i])
        mean = np.tensordot(weights, x, 1)
        flat = x.reshape(len(x), -1) / np.sqrt(truth.size)
        far = np.linalg.norm(flat - truth.reshape(1, -1) / np.sqrt(truth.size), axis=1)
        different = 1 - np.sum(weights**2)  # the weight of all pairs of different samples
        apart = weights @ cdist(flat, flat) @ weights / different if different > 1e-9 else 0.0
        row = {
            "log_evidence": float(drawn.log_evidence[i]),
            "ess": float(1 / np.sum(weights**2)),
            "least_ess": float(drawn.ess[i].min()),
            "lineages": int(drawn.lineages[i]),
            "psnr_of_mean": float(20 * np.log10(2 / np.sqrt(np.mean((mean - truth) ** 2)))),
            "energy_score": float(weights @ far - apart / 2),
        }
        if task.residuals is not None:
            row["residual"] = float(weights @ np.mean(task.residuals(y, x) ** 2, axis=1))
        rows.append(row)
    return rows


def calibrate(
    run: loading.Run, problem: Problem, name: str, seen: Observed, *,
    size: Size, seed: int, read: Callable | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure a method on images of the model: ranks, coverage, scores, and log p(y) of two seeds.

    Args:
      run: the run.
      problem: the posterior problem.
      name: of the method.
      seen: images of the model, observed.
      size: systems and rows for an image.
      seed: of the draws.
      read: images [N, *D] -> log-probabilities of the classes [N, C]; None leaves the class out.
    Returns:
      The tests of the ranks, and lists with a figure for each image.
    """
    train, _ = run.dataset.head("train", memory.affordable(10_000, run.dataset.event_shape))
    functions = calibration.Functions(train, problem.task.hidden)
    what = f"calibrate {problem.task.name}"
    drawn = draw(run, problem, name, seen.ys, seed=another(seed), what=what, size=size)
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
    found = calibration.summary(np.stack(shares), functions.names)
    found |= calibration.of_pixels(seen.x_0, drawn, problem.task.hidden)
    rows = figures(problem.task, seen, drawn)
    found["energy_score"] = [row["energy_score"] for row in rows]
    found["lineages"] = float(np.mean(drawn.lineages))
    found["seconds_an_image"] = drawn.seconds
    if read is not None:
        found["class_score"] = class_scores(read, seen.x_0, drawn)
    if METHODS[name].weighted:
        again = draw(
            run, problem, name, seen.ys, seed=another(seed), what=f"again {what}", size=size
        )
        found["log_evidence"] = [drawn.log_evidence.tolist(), again.log_evidence.tolist()]
    return found


def class_scores(read: Callable, x_0: np.ndarray, drawn: Drawn) -> list[float]:
    """log of the draws' mean probability of the class that the whole truth is read as, in nats."""
    classes = read(x_0).argmax(1)
    scores = []
    for i, number in enumerate(classes):
        weights = calibration.normalised(drawn.log_weights[i])
        scores.append(float(np.log(weights @ np.exp(read(drawn.x[i])[:, number]) + 1e-6)))
    return scores
