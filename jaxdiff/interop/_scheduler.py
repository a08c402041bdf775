"""A scheduler's configuration in this library's words: schedule, prediction, threshold, grid."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff import grids, schedules
from jaxdiff import prediction as predictions
from jaxdiff.interop import _files
from jaxdiff.schedules import Schedule

# Schedulers of one discrete process: they differ in how they sample it, which is a kernel's matter
# here. The first four clip unless they are told not to; they and PNDM's lead.
CLIPPING = ("DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler")
SOLVERS = (
    "PNDMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
)  # fmt: skip
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "learned_range": "learned",
}
# Options that would change the process, where they are set.
OTHER_PROCESS = ("use_flow_sigmas",)
MOST_STEPS = 1_000_000  # of a table


@dataclass(frozen=True)
class Scheduler:
    """What a scheduler's configuration says.

    Fields:
      schedule: the noise schedule, `schedules.from_betas`.
      prediction: as `make_denoiser` takes it.
      threshold: of x_0, None for none.
      variance: of the reverse step, as `kernels.ancestral` takes it; None if it is not said.
      total: T, the number of steps of the table.
      spacing: of the steps that are taken, as `grids.subsequence` takes it.
      offset: added to the steps of the spacing "leading".
      ends_at_data: whether the last step goes to t = 0; otherwise it goes to t = 1 / T.
    """

    schedule: Schedule
    prediction: str
    threshold: Callable | None
    variance: str | None
    total: int
    spacing: str
    offset: int
    ends_at_data: bool

    def grid(self, num_steps: int) -> jax.Array:
        """Return the times that DDPMScheduler and DDIMScheduler visit; their step i is (i + 1) / T.

        Args:
          num_steps: their num_inference_steps; where it divides T, their steps are these exactly.
        Returns:
          [num_steps + 1] times, the last one 0, or 1 / T where alpha-bar's end is not 1.
        Raises:
          ValueError: num_steps outside 1 .. T, or the offset leaves the table.
        """
        ts = grids.subsequence(self.total, num_steps, self.spacing, offset=self.offset)
        return ts if self.ends_at_data else ts.at[-1].set(1 / self.total)


@dataclass(frozen=True)
class Options:
    """The options of a scheduler that say what the process is."""

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    variance_type: str | None = None
    clip_sample: bool | None = None
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    timestep_spacing: str | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = True


def scheduler(path: Path) -> Scheduler:
    """Read scheduler_config.json.

    Args:
      path: the file.
    Returns:
      Scheduler.
    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or asks for another process; the message names it.
    """
    config = _files.read_json(path)
    kind = config.get("_class_name", "DDPMScheduler")
    if kind not in CLIPPING + SOLVERS:
        raise ValueError(
            f"{path}: _class_name: expected one of {', '.join(CLIPPING + SOLVERS)}, "
            f"got {_files.shown(kind)}"
        )
    for name in OTHER_PROCESS:
        if config.get(name):
            raise ValueError(f"{path}: {name}: expected false, got {_files.shown(config[name])}")
    known = {field.name for field in dataclasses.fields(Options)}
    # The others say how to sample.
    options = _files.read_options(Options, {k: v for k, v in config.items() if k in known}, path)
    if not 1 <= options.num_train_timesteps <= MOST_STEPS:
        raise ValueError(
            f"{path}: num_train_timesteps: expected 1 to {MOST_STEPS}, "
            f"got {options.num_train_timesteps}"
        )
    _files.require_choice(path, "prediction_type", options.prediction_type, PREDICTIONS)
    if options.variance_type is not None:
        _files.require_choice(path, "variance_type", options.variance_type, VARIANCES)
    spacing = options.timestep_spacing or ("linspace" if kind in SOLVERS[1:] else "leading")
    _files.require_choice(path, "timestep_spacing", spacing, grids.SPACINGS)
    with _files.naming(path):
        schedule = schedules.from_betas(_betas(options, path))
        threshold = _threshold(options, kind in CLIPPING)
    implied = "fixed_small" if kind.startswith("DDPM") else None  # the others have no such option
    variance = options.variance_type or implied
    return Scheduler(
        schedule=schedule,
        prediction=PREDICTIONS[options.prediction_type],
        threshold=threshold,
        variance=VARIANCES[variance] if variance else None,
        total=options.num_train_timesteps,
        spacing=spacing,
        offset=options.steps_offset,
        ends_at_data=options.set_alpha_to_one or not kind.startswith("DDIM"),
    )


def _betas(options: Options, path: Path) -> Any:
    """The table; the square root of scaled_linear's is linear."""
    total, ends = options.num_train_timesteps, (options.beta_start, options.beta_end)
    if options.trained_betas is not None:
        betas: Any = np.asarray(options.trained_betas)
        if betas.shape != (total,):
            raise ValueError(f"trained_betas: expected {total} values, got {betas.size}")
    elif options.beta_schedule == "linear":
        betas = schedules.linear_betas(total, *ends)
    elif options.beta_schedule == "scaled_linear":
        betas = np.asarray(schedules.linear_betas(total, *np.sqrt(ends)), np.float64) ** 2
    elif options.beta_schedule == "squaredcos_cap_v2":
        betas = schedules.cosine_betas(total)
    else:
        raise ValueError(
            "beta_schedule: expected 'linear', 'scaled_linear' or 'squaredcos_cap_v2', "
            f"got {_files.shown(options.beta_schedule)}"
        )
    return schedules.zero_terminal_snr(betas) if options.rescale_betas_zero_snr else betas


def _threshold(options: Options, clips: bool) -> Callable | None:
    """Dynamic thresholding goes before clipping. Up to a size of 1 it is clipping."""
    if options.thresholding and options.sample_max_value > 1:
        return predictions.dynamic_threshold(
            options.dynamic_thresholding_ratio, most=options.sample_max_value
        )
    if options.thresholding:
        return predictions.clip()
    clips = clips if options.clip_sample is None else options.clip_sample
    return predictions.clip(options.clip_sample_range) if clips else None
