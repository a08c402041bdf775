"""The methods that draw posterior samples, and what they cost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import guidance, kernels, posterior
from jaxdiff.runs import loading, memory, require
from jaxdiff.runs.tasks import LARGEST, Task, require_matrix

MethodName = Literal[
    "twisted", "mcgdiff", "tilted", "importance", "twisted_mmps", "dps", "pigdm", "tmpd", "mmps", "split_gibbs",
    "repaint",
]  # fmt: skip
SchemeName = Literal["systematic", "stratified", "residual", "multinomial"]
MMPS_ITERATIONS, REPAINT_RESAMPLES, GIBBS_STEPS = 3, 4, 10


@dataclass(frozen=True)
class Particles:
    """How samples are drawn."""

    particles: int = 64
    """Particles N an image (of twisted, where methods are compared at equal calls)."""
    steps: int = 50
    """Steps of the grid."""
    start: float = -8.0
    """Log-SNR at which the grid begins, of noise alone: further up, guidance divides by next to no signal."""
    scheme: SchemeName = "systematic"
    """How particles are resampled."""
    threshold: float = 0.5
    """Resample when the effective sample size falls below this share of N; above 1 always, 0 never."""
    prior_std: float | None = None
    """Standard deviation of a pixel, for the twists' spread; the training data's if not given."""
    belief: Literal["data", "flat"] = "data"
    """What mcgdiff knows of the data before the network is asked: mean and width of the training data, or nothing."""
    at_once: int = 1
    """Images at a time on a device; more is faster on a GPU."""


@dataclass(frozen=True)
class Problem:
    """What every method needs of the run and its data: their moments, the covariance only of small images."""

    task: Task
    schedule: jd.Schedule
    options: Particles
    prior_std: float
    mean: jax.Array
    std: jax.Array
    covariance: jax.Array | None

    @property
    def ts(self) -> jax.Array:
        """The grid: the model whose posterior is asked for is the ancestral chain on it."""
        return jd.grids.uniform(
            self.options.steps, start=float(self.schedule.time(self.options.start))
        )


def make_problem(task: Task, run: loading.Run, options: Particles) -> Problem:
    """The problem, with the training data's moments."""
    require.counts(options, particles=2, steps=2, at_once=1)
    if options.start > -4:
        raise ValueError(
            f"start: expected a log-SNR of at most -4, where nearly all is noise, got {options.start}"
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
    return Problem(task, run.trained.schedule, options, std, mean, stds, covariance)


class Method(NamedTuple):
    """How posterior samples are drawn.

    Fields:
      make: (problem, denoiser, likelihood) -> Kernel.
      calls: network calls a step and particle; a vector-Jacobian product counts as one more.
      weighted: whether it has weights, so evidence too.
      needs: "any" likelihood, a "linear" observation, or a "mask".
      uses: what it depends on beside the task, the grid and, with weights, the resampling.
    """

    make: Callable[[Problem, Any, Any], jd.Kernel]
    calls: float
    weighted: bool = False
    needs: str = "any"
    uses: tuple[str, ...] = ()


def _mcgdiff(problem: Problem, denoiser: Any, seen: Any) -> jd.Kernel:
    """In pixels where those are seen, else in the basis of the operator's singular vectors."""
    belief, y = None, seen.y
    floor = 0.05  # of a width: some pixels are never lit
    if problem.task.masked:
        if problem.options.belief == "data":
            std = jnp.maximum(problem.std, floor)
            belief = posterior.gaussian_belief(
                problem.schedule, problem.mean.reshape(y.shape), std.reshape(y.shape)
            )
        return posterior.inpaint(
            denoiser, problem.schedule, y, seen.observed, noise_std=seen.noise_std, belief=belief
        )
    event, size = problem.task.hidden.shape, problem.mean.size
    require_matrix("mcgdiff", size)
    covariance = problem.covariance
    assert covariance is not None  # of an image this small
    matrix = jax.vmap(lambda x: seen.operator(x.reshape(event)).reshape(-1), out_axes=1)(
        jnp.eye(size)
    )
    if problem.options.belief == "data":
        right = jnp.linalg.svd(matrix, full_matrices=False)[2]  # mcgdiff's own
        std = jnp.maximum(jnp.sqrt(jnp.sum((right @ covariance) * right, axis=1)), floor)
        belief = posterior.gaussian_belief(problem.schedule, right @ problem.mean, std)
    return posterior.mcgdiff(
        denoiser, problem.schedule, matrix, y.reshape(-1), seen.noise_std, belief=belief
    )


def _share(noise_std: Any, schedule: jd.Schedule, t: Any) -> jax.Array:
    """noise_std^2 / (noise_std^2 + sigma_t^2 / alpha_t^2): as much of r as the noise of the state leaves."""
    return jnp.where(t > 0, noise_std**2 / (noise_std**2 + jnp.exp(-schedule.log_snr(t))), 1.0)


def _at_end(t: Any) -> jax.Array:
    return jnp.where(t > 0, 0.0, 1.0)


def _tilted(problem: Problem, denoiser: Any, likelihood: Any) -> jd.Kernel:
    power = Partial(_share, problem.task.noise_std, problem.schedule)
    return posterior.tilted(denoiser, problem.schedule, likelihood, power=power)


def _twisted(problem: Problem, denoiser: Any, likelihood: Any, proposal: Any = None) -> jd.Kernel:
    return posterior.twisted(
        denoiser, problem.schedule, likelihood, prior_std=problem.prior_std, proposal=proposal
    )


def _mmps(problem: Problem, denoiser: Any, seen: Any) -> Any:
    return guidance.mmps(denoiser, problem.schedule, seen, num_iterations=MMPS_ITERATIONS)


def _guided(guide: Callable) -> Callable[[Problem, Any, Any], jd.Kernel]:
    return lambda p, d, r: kernels.ancestral(guide(p, d, r), p.schedule)


METHODS = {
    "twisted": Method(_twisted, 2, True, uses=("prior_std",)),
    "mcgdiff": Method(_mcgdiff, 1, True, "linear", ("belief",)),
    "tilted": Method(_tilted, 1, True),
    "importance": Method(
        lambda p, d, r: posterior.tilted(d, p.schedule, r, power=_at_end), 1, True
    ),
    "twisted_mmps": Method(
        lambda p, d, r: _twisted(p, d, r, posterior.through(_mmps(p, d, r), p.schedule)),
        4 + MMPS_ITERATIONS, True, "linear", ("prior_std",),
    ),
    "dps": Method(_guided(lambda p, d, r: guidance.dps(d, p.schedule, r)), 2),
    "pigdm": Method(
        _guided(lambda p, d, r: guidance.pigdm(d, p.schedule, r, prior_std=p.prior_std)),
        2, needs="linear", uses=("prior_std",),
    ),
    "tmpd": Method(_guided(lambda p, d, r: guidance.tmpd(d, p.schedule, r)), 3, needs="linear"),
    "mmps": Method(_guided(_mmps), 2 + MMPS_ITERATIONS, needs="linear"),
    "split_gibbs": Method(
        lambda p, d, r: posterior.split_gibbs(d, p.schedule, r, num_denoising=GIBBS_STEPS), 2, needs="linear"
    ),
    "repaint": Method(
        lambda p, d, r: guidance.repaint(d, p.schedule, r.y, r.observed, num_resamples=REPAINT_RESAMPLES),
        REPAINT_RESAMPLES, needs="mask",
    ),
}  # fmt: skip


def fitting(task: Task) -> list[str]:
    """The methods that the task's likelihood allows; those worth comparing come first."""
    too_large = (
        {"mcgdiff"} if task.hidden.size > LARGEST and not task.masked else set()
    )  # of its operator's matrix
    return [name for name in METHODS if _fits(METHODS[name], task) and name not in too_large]


def _fits(method: Method, task: Task) -> bool:
    return {"any": True, "linear": task.linear, "mask": task.name in ("inpaint", "half")}[
        method.needs
    ]


def check_method(name: str, task: Task) -> None:
    """Say which methods there are, where this one does not fit."""
    if not _fits(METHODS[name], task):
        raise ValueError(
            f"method: expected one of {', '.join(fitting(task))} with --task {task.name}, got {name}"
        )


def grid_of(name: str, problem: Problem) -> jax.Array:
    """The times a method visits: of split Gibbs they are levels, each so many steps of denoising."""
    if name != "split_gibbs":
        return problem.ts
    levels = max(2, int(2 * problem.options.steps / GIBBS_STEPS))
    ratios = jnp.geomspace(1.5, 0.1, levels + 1)  # sigma / alpha
    return jnp.clip(problem.schedule.time(-2 * jnp.log(ratios)), 0, 1)


def calls_of(name: str, problem: Problem, particles: int) -> int:
    """Network calls an image: particles x steps x calls a step, a vector-Jacobian product being one more call."""
    if name == "split_gibbs":
        return particles * (len(grid_of(name, problem)) - 1) * GIBBS_STEPS
    return int(particles * problem.options.steps * METHODS[name].calls)


def equal_particles(name: str, problem: Problem) -> int:
    """As many particles as cost what the chosen number costs in twisted."""
    one, budget = (
        calls_of(name, problem, 1),
        calls_of("twisted", problem, problem.options.particles),
    )
    return max(2, budget // one)
