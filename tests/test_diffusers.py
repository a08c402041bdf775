"""Beside an independent implementation: diffusers' schedulers on the mixture oracle (where diffusers is installed)."""

from typing import Any

import calls
import jax
import numpy as np
import pytest
from helpers import asymmetric_mixture

import jaxdiff as jd
from jaxdiff import kernels, metrics

diffusers = pytest.importorskip(
    "diffusers", reason="an optional comparison: pip install diffusers torch"
)
pytest.importorskip("torch")

CALLS, NUM, T = 10, 20_000, calls.NUM_STEPS
BETAS = {
    "num_train_timesteps": T,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}
THEIRS = {
    "ddim": lambda: diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing"),
    "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing", final_sigmas_type="zero"),
    "dpmpp_2m karras": lambda: diffusers.DPMSolverMultistepScheduler(
        **BETAS, use_karras_sigmas=True, final_sigmas_type="zero"
    ),
    "dpmpp_2m lu": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, use_lu_lambdas=True, final_sigmas_type="zero"),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**BETAS, solver_order=2, timestep_spacing="trailing"),
    "heun (two calls a step)": lambda: diffusers.HeunDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
}  # fmt: skip
OURS = {
    "ddim": (kernels.ddim, 1),
    "dpmpp_2m": (kernels.dpmpp_2m, 1),
    "dpmpp_3m": (kernels.dpmpp_3m, 1),
    "unipc_2": (kernels.unipc, 1),
    "unipc_3": (lambda d, s: kernels.unipc(d, s, 3), 1),
    "heun": (kernels.heun, 2),
}
SCHEDULE = calls.SCHEDULE
GRIDS = {
    "uniform": jd.grids.uniform,
    "quadratic": jd.grids.quadratic,
    "log_snr": lambda steps: jd.grids.log_snr(SCHEDULE, steps),
    "karras": lambda steps: jd.grids.karras(SCHEDULE, steps),
}


def theirs(scheduler: Any, x: np.ndarray) -> np.ndarray:
    """A run of theirs with the oracle for a network."""
    two_calls = isinstance(scheduler, diffusers.HeunDiscreteScheduler)
    scheduler.set_timesteps(CALLS // 2 if two_calls else CALLS)
    return calls.run_scheduler(scheduler, jax.jit(asymmetric_mixture().denoiser(SCHEDULE)), x)


@pytest.mark.filterwarnings("default")  # theirs are theirs
def test_the_best_here_is_no_worse_at_ten_calls(capsys: pytest.CaptureFixture) -> None:
    """Sliced Wasserstein-2 to exact samples after 10 network calls: the best kernel and grid on either side."""
    mixture = asymmetric_mixture()
    exact, other = (np.asarray(mixture.sample(jax.random.key(seed), (NUM,))) for seed in (0, 1))
    x_init = jd.prior_sample(jax.random.key(2), SCHEDULE, (NUM, 2))
    found: dict[str, dict[str, float]] = {"diffusers": {}, "jaxdiff": {}}
    for name, make in THEIRS.items():
        found["diffusers"][name] = metrics.sliced_wasserstein(
            theirs(make(), np.asarray(x_init)), exact
        ).value
    denoiser = mixture.denoiser(SCHEDULE)
    for name, (make, cost) in OURS.items():
        for grid, times in GRIDS.items():
            x = jd.sample(
                jax.random.key(3), make(denoiser, SCHEDULE), x_init, times(CALLS // cost)
            ).x
            found["jaxdiff"][f"{name}, {grid}"] = metrics.sliced_wasserstein(x, exact).value
    with capsys.disabled():
        print(f"\nexact samples: {metrics.sliced_wasserstein(other, exact).value:.4f}")
        for library, errors in found.items():
            for name, error in sorted(errors.items(), key=lambda item: item[1]):
                print(f"{library:10} {name:24} {error:.4f}")
    assert min(found["jaxdiff"].values()) <= min(found["diffusers"].values())
    for name, ours in (
        ("ddim", "ddim, uniform"),
        ("dpmpp_2m", "dpmpp_2m, uniform"),
        ("dpmpp_2m lu", "dpmpp_2m, log_snr"),
    ):
        # The same method at the same times, up to how the two treat the end of the table.
        np.testing.assert_allclose(found["jaxdiff"][ours], found["diffusers"][name], rtol=0.02)
