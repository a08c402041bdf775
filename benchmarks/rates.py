"""Samples a second of a trained run on this machine, by sampler and number of steps.

python benchmarks/rates.py mnist
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib import pyplot as plt
from tqdm import tqdm

from jaxdiff import training
from jaxdiff.cli import errors, pictures
from jaxdiff.runs import loading, machine, require, samplers, sampling
from jaxdiff.runs.samplers import SamplerName


@dataclass(frozen=True)
class Options:
    """What to time."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a trained run, or mnist, the network that ships with the package."""
    samplers: tuple[SamplerName, ...] = (
        "ancestral",
        "ddim",
        "heun",
        "dpmpp_2m",
        "unipc_2",
    )
    """Samplers."""
    steps: tuple[int, ...] = (10, 20, 50)
    """Numbers of steps."""
    batch: int = 64
    """Samples at a time, over all devices."""
    guidance: float = 1.0
    """Classifier-free guidance. Any scale but 1 calls the network twice a step."""
    rounds: int = 2
    """How often each is timed. They take turns, so that other work on the machine slows all."""


def prepared(run: loading.Run, sampler: str, steps: int, options: Options) -> Any:
    """Compile a function that draws one batch and returns its samples a second."""
    devices = jax.local_device_count()
    per_device = options.batch // devices
    ts = samplers.make_grid(run.trained.schedule, "uniform", steps)
    program = sampling.program(
        run.trained, per_device, ts, sampler=sampler, guidance=options.guidance
    )
    first = jnp.arange(devices) * per_device
    classes = run.trained.num_classes
    rows = jnp.arange(devices * per_device).reshape(devices, per_device)
    labels = None if classes is None else rows % classes

    def draw() -> float:
        began = time.monotonic()
        jax.block_until_ready(program(run.trained.params, first, labels))
        return devices * per_device / (time.monotonic() - began)

    draw()
    return draw


def main(options: Options) -> list[dict[str, Any]]:
    """Time every sampler, print a table and draw it."""
    require.counts(options, batch=1, rounds=1, steps=1)
    require.numbers(options, guidance=require.FINITE)
    run = loading.load_run(options.run)
    if options.batch % jax.local_device_count():
        raise ValueError(
            f"batch: expected a multiple of {jax.local_device_count()} devices, got {options.batch}"
        )
    if run.trained.num_classes is None and options.guidance != 1:
        raise ValueError(
            f"guidance: expected 1, because the run does not have classes, got {options.guidance}"
        )
    cells = [(sampler, steps) for sampler in options.samplers for steps in options.steps]
    draws = {
        cell: prepared(run, cell[0], cell[1], options)
        for cell in tqdm(cells, desc="compiling", unit="program")
    }
    rates: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    for cell in tqdm(cells * options.rounds, desc="timing", unit="batch"):
        rates[cell].append(draws[cell]())
    passes = 1 if options.guidance == 1 else 2
    rows = [
        {
            "sampler": sampler,
            "steps": steps,
            "calls": steps * samplers.SAMPLERS[sampler].calls * passes,
            "samples_per_second": statistics.median(rates[sampler, steps]),
            "all": rates[sampler, steps],
        }
        for sampler, steps in cells
    ]
    print("samples a second" + "".join(f"{f'{steps} steps':>12}" for steps in options.steps))
    for sampler in options.samplers:
        found = [statistics.median(rates[sampler, steps]) for steps in options.steps]
        print(f"{sampler:16}" + "".join(f"{rate:12.2f}" for rate in found))
    result = {
        "machine": machine.describe(),
        "batch": options.batch,
        "guidance": options.guidance,
        "rows": rows,
    }
    training.write_json(run.folder / "rates.json", result)
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for sampler in options.samplers:
        medians = [np.median(rates[sampler, steps]) for steps in options.steps]
        axis.plot(options.steps, medians, "o-", label=sampler)
    axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="samples a second")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    pictures.save(figure, run.folder / "rates.png")
    return rows


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
