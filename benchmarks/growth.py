"""How the cost of an update and of samples grows: with image, network, batch and steps.

python benchmarks/growth.py

One size at a time is changed, and the others stay. The cost is fitted as a power of the size, on
the largest three sizes: the small ones are mostly overhead. All sizes of a line are timed in turn.
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pair
import tyro
from matplotlib import pyplot as plt

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import errors, pictures
from jaxdiff.runs import machine, require

ROOT = Path(__file__).resolve().parents[1]
FITTED = 3
COLORS = {"update": "C0", "samples": "C1"}


@dataclass(frozen=True)
class Options:
    """What to time."""

    side: tuple[int, ...] = (8, 16, 32, 64)
    """Sides of the images, in pixels."""
    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the UNet at full resolution."""
    batch: tuple[int, ...] = (8, 16, 32, 64)
    """Images in an update, and samples at a time."""
    steps: tuple[int, ...] = (5, 10, 20, 40)
    """Steps of the sampler."""
    rounds: int = 5
    """How often each size is timed. The quickest counts."""
    output: Path = ROOT / "runs" / "growth"
    """Folder for growth.json and growth.png."""


BASE = {"side": 16, "channels": 32, "batch": 16, "steps": 10}

# The power that the operations of a network of convolutions need. A side's is that of its pixels.
# Attention in the middle of the network takes the fourth power of the side, but a small part of it.
NEEDED = {"side": 2, "channels": 2, "batch": 1, "steps": 1}


def run_of(job: str, sizes: dict[str, int]) -> pair.Run:
    """The function to time: an update, or samples."""
    network = {
        "channels": sizes["channels"], "multipliers": (1, 2, 2), "num_blocks": 2,
        "attention": (), "num_heads": 4, "norm_groups": 8,
    }  # fmt: skip
    work = pair.Work((sizes["side"], sizes["side"], 3), network, batch=sizes["batch"])
    if job == "update":
        return pair.jax_train(work)
    return pair.jax_sample(work, jd.kernels.ddim, sizes["steps"])


def power(sizes: np.ndarray, seconds: np.ndarray) -> float:
    """The exponent p of seconds = c sizes^p, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes[-FITTED:]), np.log(seconds[-FITTED:]), 1)[0])


def line(job: str, axis: str, options: Options) -> dict[str, Any]:
    """Times along one axis, and their exponent."""
    sizes = getattr(options, axis)
    runs = {str(size): run_of(job, BASE | {axis: size}) for size in sizes}
    times = pair.race(runs, options.rounds, name=f"{job}, {axis}")
    seconds = [min(each) for each in times.values()]
    found = power(np.array(sizes, float), np.array(seconds))
    print(f"{job:8}{axis:10}{found:6.2f} (needed: {NEEDED[axis]})   {sizes}: "
          + ", ".join(f"{each:.3g} s" for each in seconds))  # fmt: skip
    return {"job": job, "axis": axis, "sizes": sizes, "seconds": seconds, "power": found}


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw one panel an axis, times against sizes, with the fitted powers."""
    axes = list(BASE)
    figure, panels = plt.subplots(
        1, len(axes), figsize=(12, 3.4), layout="constrained", sharey=True
    )
    for axis, panel in zip(axes, panels, strict=True):
        for row in (row for row in rows if row["axis"] == axis):
            label, color = f"{row['job']}: {axis}^{row['power']:.2f}", COLORS[row["job"]]
            panel.plot(row["sizes"], row["seconds"], "o-", color=color, label=label)
            last, end = row["sizes"][-1], row["seconds"][-1]
            needed = [end * (size / last) ** NEEDED[axis] for size in row["sizes"]]
            panel.plot(row["sizes"], needed, ":", color=color)
        sizes = next(row["sizes"] for row in rows if row["axis"] == axis)
        panel.set(xscale="log", yscale="log", xlabel=axis)
        panel.set_xticks(sizes, map(str, sizes))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(title=f"dotted: {axis}^{NEEDED[axis]}", fontsize="small", loc="upper left")
    panels[0].set_ylabel("seconds")
    pictures.save(figure, path)


def main(options: Options) -> list[dict[str, Any]]:
    """Time every line, print its exponent, and draw all."""
    require.counts(options, rounds=1)
    for axis in BASE:
        sizes = getattr(options, axis)
        if len(sizes) < FITTED or sorted(set(sizes)) != list(sizes):
            raise ValueError(
                f"{axis}: expected at least {FITTED} sizes in increasing order, got {sizes}"
            )
    print(machine.describe())
    print("the rest is " + ", ".join(f"{name} {size}" for name, size in BASE.items()))
    rows = [line(job, axis, options) for job in COLORS for axis in BASE
            if (job, axis) != ("update", "steps")]  # fmt: skip
    training.write_json(
        options.output / "growth.json", {"machine": machine.describe(), "base": BASE, "rows": rows}
    )
    picture(rows, options.output / "growth.png")
    return rows


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
