"""Error against network calls, beside the solvers of k-diffusion and diffusers.

pip install torch diffusers k-diffusion
python benchmarks/calls.py

The probability-flow ODE of an exact denoiser, from the same noise, in every library with its best
solver and grid. The error is the root mean square distance to the exact end of the ODE. A network
call is one evaluation of the denoiser. A library that is not installed is left out.
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import digits_oracle
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib import pyplot as plt
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import kernels, training
from jaxdiff.cli import errors, pictures
from jaxdiff.runs import machine, records, require

ROOT = Path(__file__).resolve().parents[1]
NUM_STEPS = 1000
SCHEDULE = jd.schedules.from_betas(jd.schedules.linear_betas(NUM_STEPS))  # DDPM's; diffusers' too
EXACT_STEPS = 1000  # an error below 1e-5: halved steps say so
Law = Literal["mixture", "digits"]


@dataclass(frozen=True)
class Options:
    """What to compare."""

    laws: tuple[Law, ...] = ("mixture", "digits")
    """mixture: three normals in the plane. digits: forty normals fitted to the 8x8 digits."""
    calls: tuple[int, ...] = (6, 10, 20, 40)
    """Network calls of a sample."""
    samples: int = 500
    """Samples."""
    seed: int = 0
    """Seed of the noise."""
    output: Path = ROOT / "runs" / "calls"
    """Folder for calls.json and calls.png."""


def law_of(name: Law) -> jd.oracles.GaussianMixture:
    """The data."""
    if name == "digits":
        return digits_oracle.law()
    means = jnp.array([[-1.5, 0.4], [0.9, 1.6], [1.2, -1.1]])
    covariances = [[0.20, 0.08, 0.10], [0.06, -0.03, 0.15], [0.12, 0.0, 0.05]]
    return jd.oracles.GaussianMixture(
        jnp.log(jnp.array([0.5, 0.3, 0.2])),
        means,
        jnp.array([[[a, b], [b, c]] for a, b, c in covariances]),
    )


def exact_end(law: jd.oracles.GaussianMixture, x_init: jax.Array) -> np.ndarray:
    """The end of the ODE: Heun's method in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), law)
        kernel = kernels.heun(wide.denoiser(SCHEDULE), SCHEDULE)
        ts = jd.grids.log_snr(SCHEDULE, EXACT_STEPS)
        x = jnp.asarray(x_init, jnp.float64)
        return np.asarray(jax.jit(jd.sample)(jax.random.key(0), kernel, x, ts).x)


# Solvers. Each yields (name, function of the initial state), at a number of network calls. --------

Solvers = Iterator[tuple[str, Callable[[jax.Array], np.ndarray]]]


def ours(law: jd.oracles.GaussianMixture, calls: int) -> Solvers:
    """The deterministic kernels on the grids that need no table."""
    denoiser = law.denoiser(SCHEDULE)
    solvers = {
        "ddim": (kernels.ddim(denoiser, SCHEDULE), 1),
        "heun": (kernels.heun(denoiser, SCHEDULE), 2),
        "dpmpp_2s": (kernels.dpmpp_2s(denoiser, SCHEDULE), 2),
        "dpmpp_2m": (kernels.dpmpp_2m(denoiser, SCHEDULE), 1),
        "dpmpp_3m": (kernels.dpmpp_3m(denoiser, SCHEDULE), 1),
        "unipc_2": (kernels.unipc(denoiser, SCHEDULE, 2), 1),
        "unipc_3": (kernels.unipc(denoiser, SCHEDULE, 3), 1),
    }
    grids = {
        "uniform": jd.grids.uniform,
        "quadratic": jd.grids.quadratic,
        "log_snr": lambda steps: jd.grids.log_snr(SCHEDULE, steps),
        "karras": lambda steps: jd.grids.karras(SCHEDULE, steps),
    }
    for name, (kernel, cost) in solvers.items():
        for grid, times in grids.items():
            yield f"{name}, {grid}", sampler(kernel, times(calls // cost))


def sampler(kernel: kernels.Kernel, ts: jax.Array) -> Callable[[jax.Array], np.ndarray]:
    """Samples as a function of the initial state."""
    draw = jax.jit(lambda x: jd.sample(jax.random.key(0), kernel, x, ts).x)
    return lambda x: np.asarray(draw(x))


def in_k_diffusion(law: jd.oracles.GaussianMixture, calls: int) -> Solvers:
    """k-diffusion's deterministic solvers, on its grids between the ends of the table."""
    torch, solve = importlib.import_module("torch"), k_diffusion_sampling()
    denoiser = jax.jit(law.denoiser(SCHEDULE))
    low, high = (
        float(jnp.exp(-SCHEDULE.log_snr(1 / NUM_STEPS) / 2)),
        float(jnp.exp(-SCHEDULE.log_snr(1.0) / 2)),
    )
    alpha_1 = float(SCHEDULE.alpha(1.0))

    def model(z: Any, sigma: Any) -> Any:
        """E[x_0 | z], z = x_0 + sigma eps."""
        t = SCHEDULE.time(-2 * jnp.log(jnp.asarray(sigma.numpy())))
        x_t = SCHEDULE.alpha(t)[:, None] * jnp.asarray(z.numpy())
        return torch.tensor(np.asarray(denoiser(x_t, t)))

    grids = {
        "karras": solve.get_sigmas_karras,
        "exponential": solve.get_sigmas_exponential,
        "polyexponential": lambda n, low, high: solve.get_sigmas_polyexponential(n, low, high, 0.7),
    }
    costs = {"euler": 1, "heun": 2, "dpm_2": 2, "lms": 1, "dpmpp_2m": 1}
    for name, cost in costs.items():
        for grid, sigmas in grids.items():
            # The last step, to sigma = 0, takes one call in every method.
            steps = calls if cost == 1 else (calls + 1) // 2

            def run(x: jax.Array, name: str = name, sigmas: Any = sigmas, n: int = steps) -> Any:
                z = torch.tensor(np.asarray(x) / alpha_1)
                solver = getattr(solve, f"sample_{name}")
                return solver(model, z, sigmas(n, low, high), disable=True).numpy()

            yield f"{name}, {grid}", run
    yield (
        "dpm_fast",
        lambda x: solve.sample_dpm_fast(
            model, torch.tensor(np.asarray(x) / alpha_1), low, high, calls, disable=True
        ).numpy(),
    )


def k_diffusion_sampling() -> Any:
    """Its solvers alone: the rest of the package imports what trains networks."""
    name = "k_diffusion"
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(name=name)
        sys.modules[name] = importlib.util.module_from_spec(spec)  # and it is not run
    return importlib.import_module(f"{name}.sampling")


def in_diffusers(law: jd.oracles.GaussianMixture, calls: int) -> Solvers:
    """diffusers' deterministic schedulers, on all grids that each of them knows."""
    importlib.import_module("torch")
    library = importlib.import_module("diffusers")
    denoiser = jax.jit(law.denoiser(SCHEDULE))
    table = {
        "num_train_timesteps": NUM_STEPS, "beta_start": 1e-4, "beta_end": 2e-2,
        "beta_schedule": "linear", "prediction_type": "epsilon",
    }  # fmt: skip
    grids: dict[str, dict[str, Any]] = {
        "trailing": {"timestep_spacing": "trailing"},
        "linspace": {"timestep_spacing": "linspace"},
        "karras": {"use_karras_sigmas": True},
        "exponential": {"use_exponential_sigmas": True},
        "beta": {"use_beta_sigmas": True},
        "lu": {"use_lu_lambdas": True},
    }
    zero = {"final_sigmas_type": "zero"}
    solvers: dict[str, tuple[Any, dict[str, Any], int]] = {
        "ddim": (library.DDIMScheduler, {"clip_sample": False}, 1),
        "euler": (library.EulerDiscreteScheduler, {}, 1),
        "heun": (library.HeunDiscreteScheduler, {}, 2),
        "dpmpp_2m": (library.DPMSolverMultistepScheduler, zero, 1),
        "dpmpp_3m": (library.DPMSolverMultistepScheduler, zero | {"solver_order": 3}, 1),
        "unipc_2": (library.UniPCMultistepScheduler, zero | {"solver_order": 2}, 1),
        "unipc_3": (library.UniPCMultistepScheduler, zero | {"solver_order": 3}, 1),
        "deis_2": (library.DEISMultistepScheduler, {"solver_order": 2}, 1),
    }
    for name, (make, settings, cost) in solvers.items():
        for grid, chosen in grids.items():
            try:
                scheduler = make(**table, **settings, **chosen)
                known = all(key in scheduler.config for key in chosen)
                scheduler.set_timesteps(calls if cost == 1 else (calls + 1) // 2)
            except (ImportError, TypeError, ValueError, IndexError, NotImplementedError):
                continue
            if known:
                yield f"{name}, {grid}", partial(run_scheduler, scheduler, denoiser)


def run_scheduler(scheduler: Any, denoiser: Callable, x_init: jax.Array) -> np.ndarray:
    """Samples by a scheduler of diffusers, with an exact denoiser for a network.

    It asks for eps at a step i, which may be a fraction: our time (i + 1) / NUM_STEPS.
    """
    torch = importlib.import_module("torch")
    state = torch.tensor(np.asarray(x_init)) * float(scheduler.init_noise_sigma)
    for step in scheduler.timesteps:
        t = jnp.asarray((float(step) + 1) / NUM_STEPS, jnp.float32)
        x_t = jnp.asarray(scheduler.scale_model_input(state, step).numpy())
        eps = jd.prediction.from_x_0(SCHEDULE, denoiser(x_t, t), x_t, t, prediction="eps")
        state = scheduler.step(torch.tensor(np.asarray(eps)), step, state).prev_sample
    return state.numpy()


LIBRARIES = {"jaxdiff": ours, "k-diffusion": in_k_diffusion, "diffusers": in_diffusers}


def best(solvers: Solvers, x_init: jax.Array, exact: np.ndarray) -> dict[str, float]:
    """The error of every solver, least first; those that end in NaN are left out."""
    found = {name: float(np.sqrt(np.mean((solve(x_init) - exact) ** 2))) for name, solve in solvers}
    return dict(
        sorted(((n, e) for n, e in found.items() if np.isfinite(e)), key=lambda item: item[1])
    )


def main(options: Options) -> dict[str, Any]:
    """Compare, print the table, draw it and write both."""
    require.counts(options, samples=1, calls=2)
    require.seed(options.seed)
    rows, missing = [], set()
    for name in options.laws:
        law = law_of(name)
        shape = law.sample(jax.random.key(options.seed), (options.samples,)).shape
        x_init = jd.prior_sample(jax.random.key(options.seed), SCHEDULE, shape)
        exact = exact_end(law, x_init)
        for calls in tqdm(options.calls, desc=name, unit="budget"):
            row: dict[str, Any] = {"law": name, "calls": calls}
            for library, solvers in LIBRARIES.items():
                try:
                    row[library] = best(solvers(law, calls), x_init, exact)
                except ModuleNotFoundError as error:
                    missing.add(f"{library}: {error.name} is not installed")
            rows.append(row)
    found = [library for library in LIBRARIES if library in rows[0]]
    print("\n".join([machine.describe(), *sorted(missing), ""]))
    print("| law | calls |" + "".join(f" {library} |" for library in found))
    print("|---" * (len(found) + 2) + "|")
    for row in rows:
        cells = [next(iter(row[library].items())) for library in found]
        text = "".join(f" {error:.2g} ({name}) |" for name, error in cells)
        print(f"| {row['law']} | {row['calls']} |{text}")
    result = {"machine": machine.describe(), "options": records.for_json(options), "rows": rows}
    training.write_json(options.output / "calls.json", result)
    picture(rows, found, options)
    return result


def picture(rows: list[dict[str, Any]], libraries: list[str], options: Options) -> None:
    """Draw the least errors."""
    figure, axes = plt.subplots(
        1, len(options.laws), figsize=(4.5 * len(options.laws), 3.6), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axis, law in zip(axes[0], options.laws, strict=True):
        for library in libraries:
            least = [next(iter(row[library].values())) for row in rows if row["law"] == law]
            axis.plot(options.calls, least, "o-", label=library)
        axis.set(xscale="log", yscale="log", xlabel="network calls", title=law)
        axis.set_xticks(options.calls, [str(calls) for calls in options.calls], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("RMS distance to the exact end")
    axes[0][0].legend()
    pictures.save(figure, options.output / "calls.png")


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
