"""The posterior problem of a run's images: sampling options, methods that fit, and their cost."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import posterior
from jaxdiff.runs import cache, loading, memory, require
from jaxdiff.runs.methods import METHODS, Method, Setting
from jaxdiff.runs.seeds import key_of
from jaxdiff.runs.tasks import LARGEST, Task, require_matrix

SchemeName = Literal["systematic", "stratified", "residual", "multinomial"]
MMPS_ITERATIONS, REPAINT_RESAMPLES, GIBBS_STEPS = 3, 4, 10


@dataclass(frozen=True)
class Particles:
    """How samples are drawn."""

    draws: int = 16
    """Posterior samples of an image: each from a particle system of its own. 1 reads all rows of
    one system instead, which share ancestors."""
    rows: int = 8
    """Particles of each system."""
    steps: int = 25
    """Steps of the grid."""
    start: float = -8.0
    """Log-SNR at which the grid begins, where the state is nearly all noise. At a lower one
    guidance divides by almost zero signal."""
    scheme: SchemeName = "systematic"
    """How particles are resampled."""
    threshold: float = 0.5
    """Resample when the effective sample size is below this share of N; above 1 always, 0 never."""
    spread: Literal["measured", "isotropic"] = "measured"
    """How far x_0 may lie from its denoised state: measured once on training images, by noise level
    and direction; or the same in all directions, from the width of the data."""
    prior_std: float | None = None
    """Standard deviation of a pixel, for an isotropic spread; the training data's if not given."""
    belief: Literal["data", "flat"] = "data"
    """What mcgdiff knows of the data before it calls the network: mean and width of the training
    data, or nothing."""
    at_once: int = 1
    """Images at a time on a device; more is faster on a GPU."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What every method needs of a run and its data; covariance is None for large images."""

    task: Task
    schedule: jd.Schedule
    options: Particles
    prior_std: float
    mean: jax.Array
    std: jax.Array
    covariance: jax.Array | None
    spread: posterior.Spread | None = None

    @property
    def variance(self) -> str:
        """The reverse variance of the model's steps: as wide as the spread, if there is one."""
        return "small" if self.spread is None else "optimal"

    def widened(self, denoiser: Any) -> Any:
        """The denoiser with the variance that the model's steps need."""
        if self.spread is None:
            return denoiser
        return posterior.widened(denoiser, self.schedule, self.spread)

    @property
    def ts(self) -> jax.Array:
        """The grid. The prior of the posterior is the ancestral chain on it."""
        return jd.grids.uniform(
            self.options.steps, start=float(self.schedule.time(self.options.start))
        )


def make_problem(task: Task, run: loading.Run, options: Particles) -> Problem:
    """The problem, with the training data's moments."""
    require.counts(options, draws=1, rows=2, steps=2, at_once=1)
    if options.start > -4:
        raise ValueError(
            "start: expected a log-SNR of at most -4, where nearly all is noise, "
            f"got {options.start}"
        )
    train, _ = run.dataset.head("train", memory.affordable(10_000, run.dataset.event_shape))
    if len(train) < 2:
        raise ValueError(
            f"run: expected at least 2 training images, for their moments, got {len(train)}"
        )
    flat = train.reshape(len(train), -1).astype(np.float64)
    std = float(np.sqrt(np.mean(flat.var(0)))) if options.prior_std is None else options.prior_std
    mean, stds = (jnp.asarray(v, jnp.float32) for v in (flat.mean(0), flat.std(0, ddof=1)))
    small = flat.shape[1] <= LARGEST
    covariance = jnp.asarray(np.cov(flat, rowvar=False), jnp.float32) if small else None
    spread = spread_of(run) if options.spread == "measured" else None
    return Problem(task, run.trained.schedule, options, std, mean, stds, covariance, spread)


SPREAD_IMAGES = 1000


def spread_of(run: loading.Run) -> posterior.Spread:
    """The network's own spread, or that of a run, measured once and kept in its folder."""
    if run.trained.spread is not None:
        return run.trained.spread
    x = jnp.asarray(run.dataset.head("train", SPREAD_IMAGES)[0])
    trained = run.trained
    made_of = cache.digest(["spread", 1, trained.settings], (trained.params, trained.schedule, x))

    @jax.jit
    def measure(params: Any, x: jax.Array) -> posterior.Spread:
        denoiser = trained.with_params(params).denoiser()
        size = memory.affordable(256, run.dataset.event_shape)
        key = key_of(0, "spread")
        return posterior.spread_of(key, denoiser, trained.schedule, x, batch_size=size)

    def make(_: list[int]) -> list[dict[str, np.ndarray]]:
        found = measure(trained.params, x)
        return [{name: np.asarray(getattr(found, name)) for name in FIELDS}]

    path = run.folder / "posterior" / f"spread-{made_of}.npz"
    part = cache.resumable([path], make)[0]
    return posterior.Spread(**{name: jnp.asarray(part[name]) for name in FIELDS})


FIELDS = ("axes", "scale", "log_snr", "fraction")


def setting_of(name: str, problem: Problem, seen: Any = None) -> Setting:
    """The options of a method for a problem; for mcgdiff they depend on the observation too."""
    power = Partial(_share, problem.task.noise_std, problem.schedule)
    setting = Setting(
        problem.schedule,
        prior_std=problem.prior_std,
        num_iterations=MMPS_ITERATIONS if "mmps" in name else None,
        num_resamples=REPAINT_RESAMPLES,
        num_denoising=GIBBS_STEPS,
        power=power,
        spread=problem.spread,
        variance=problem.variance,
        normal=problem.task.normal,
    )
    return setting if name != "mcgdiff" or seen is None else _with_belief(setting, problem, seen)


def _with_belief(setting: Setting, problem: Problem, seen: Any) -> Setting:
    """Add the belief: of pixels if those are seen, else of the operator's singular vectors."""
    known, floor = problem.options.belief == "data", 0.05  # of a width: some pixels are never lit
    if problem.task.masked:
        if not known:
            return setting
        std = jnp.maximum(problem.std, floor)
        moments = (value.reshape(seen.y.shape) for value in (problem.mean, std))
        return setting._replace(belief=posterior.gaussian_belief(problem.schedule, *moments))
    event, size = problem.task.hidden.shape, problem.mean.size
    require_matrix("mcgdiff", size)
    covariance = problem.covariance
    assert covariance is not None  # of an image this small
    matrix = jax.vmap(lambda x: seen.operator(x.reshape(event)).reshape(-1), out_axes=1)(
        jnp.eye(size)
    )
    if not known:
        return setting._replace(matrix=matrix)
    right = jnp.linalg.svd(matrix, full_matrices=False)[2]  # mcgdiff's own
    std = jnp.maximum(jnp.sqrt(jnp.sum((right @ covariance) * right, axis=1)), floor)
    belief = posterior.gaussian_belief(problem.schedule, right @ problem.mean, std)
    return setting._replace(matrix=matrix, belief=belief)


def _share(noise_std: Any, schedule: jd.Schedule, t: Any) -> jax.Array:
    """The tilt's power noise_std^2 / (noise_std^2 + sigma_t^2 / alpha_t^2), and 1 at t = 0."""
    return jnp.where(t > 0, noise_std**2 / (noise_std**2 + jnp.exp(-schedule.log_snr(t))), 1.0)


def fitting(task: Task, options: Particles) -> list[str]:
    """The methods that the task's likelihood allows; those worth comparing come first."""
    # mcgdiff needs the matrix of the operator, except for masks.
    out = {"mcgdiff"} if task.hidden.size > LARGEST and not task.masked else set()
    if options.spread != "measured":
        out |= {name for name, method in METHODS.items() if method.needs == "spread"}
    return [name for name in METHODS if _fits(METHODS[name], task) and name not in out]


def _fits(method: Method, task: Task) -> bool:
    linear, mask = task.linear, task.name in ("inpaint", "half")
    return {"any": True, "linear": linear, "spread": linear, "mask": mask}[method.needs]


def check_method(name: str, task: Task, options: Particles) -> None:
    """Refuse a method that does not fit the task, and name those that fit."""
    if METHODS[name].needs == "spread" and options.spread != "measured":
        raise ValueError(f"spread: expected measured with --method {name}, got {options.spread}")
    if not _fits(METHODS[name], task):
        raise ValueError(
            f"method: expected one of {', '.join(fitting(task, options))} with --task {task.name}, "
            f"got {name}"
        )


def grid_of(name: str, problem: Problem) -> jax.Array:
    """The times a method visits. For split Gibbs they are noise levels, each with several steps."""
    if name != "split_gibbs":
        return problem.ts
    levels = max(2, int(2 * problem.options.steps / GIBBS_STEPS))
    ratios = jnp.geomspace(1.5, 0.1, levels + 1)  # sigma / alpha
    return jnp.clip(problem.schedule.time(-2 * jnp.log(ratios)), 0, 1)


class Size(NamedTuple):
    """How many independent systems an image has, and how many rows each; 1 row has no weight."""

    systems: int
    rows: int


def calls_of(name: str, problem: Problem, size: Size) -> int:
    """Network calls for an image: systems x rows x steps x calls a step x runs.

    A vector-Jacobian product counts as one more call.
    """
    method, steps = METHODS[name], len(grid_of(name, problem)) - 1
    one = steps * method.calls(setting_of(name, problem)) * (1 + method.sweeps)
    return int(size.systems * size.rows * one)


def size_of(name: str, problem: Problem, *, equal: bool) -> Size:
    """The size that is asked for; or one that costs as much as that does in twisted."""
    chosen, weighted = Size(problem.options.draws, problem.options.rows), METHODS[name].weighted
    if not equal:
        return chosen if weighted else Size(chosen.systems, 1)
    one, budget = calls_of(name, problem, Size(1, 1)), calls_of("twisted", problem, chosen)
    if not weighted:
        return Size(max(2, budget // one), 1)
    return Size(chosen.systems, max(2, budget // (one * chosen.systems)))
