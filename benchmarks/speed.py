"""Speed of jaxdiff's UNet beside the same network in PyTorch, on this machine.

The two run the same work in turn. A ratio is PyTorch's time divided by jaxdiff's: above 1, jaxdiff
is faster.
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pair
import tyro
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import errors
from jaxdiff.runs import machine

ROOT = Path(__file__).resolve().parents[1]

NETWORK: dict[str, Any] = {
    "channels": 32,
    "multipliers": (1, 2, 2),
    "num_blocks": 2,
    "attention": (7,),
    "num_heads": 4,
    "norm_groups": 8,
}
WORK = pair.Work((28, 28, 1), NETWORK, batch=64)
STEPS = 50


@dataclass(frozen=True)
class Options:
    """What to time."""

    rounds: int = 10
    """How often each side runs, in turn."""
    start_rounds: int = 3
    """How often the start-up of each side is timed; 0 leaves start-up out."""
    output: Path = ROOT / "runs" / "speed"
    """Folder for speed.json and speed.png."""
    first_step: bool = False
    """Do one training step and nothing else. The timing of start-up calls this."""


def race(name: str, sides: tuple[pair.Run, pair.Run], rounds: int) -> dict[str, Any]:
    """Time jaxdiff and PyTorch in turn."""
    times = pair.race({"jaxdiff": sides[0], "torch": sides[1]}, rounds, name=name)
    return pair.summary(name, times["jaxdiff"], times["torch"])


def start_up(rounds: int) -> list[dict[str, Any]]:
    """Time a process from its start to the end of its first update, without a cache and with it."""
    sides = {
        "jaxdiff": [__file__, "--first-step"],
        "torch": [
            str(Path(__file__).with_name("torch_unet.py")),
            json.dumps(
                {"shape": WORK.shape, "network": NETWORK, "batch": WORK.batch, "rate": pair.RATE}
            ),
        ],
    }

    def seconds(side: str, cache: str) -> float:
        environment = pair.from_a_shell(cache)
        began = time.perf_counter()
        subprocess.run([sys.executable, *sides[side]], check=True, env=environment)
        return time.perf_counter() - began

    cold, warm, theirs = [], [], []
    for _ in tqdm(range(rounds), desc="start-up", leave=False):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(seconds("jaxdiff", cache))
            warm.append(seconds("jaxdiff", cache))
            theirs.append(seconds("torch", cache))
    return [
        pair.summary("start-up, cold", cold, theirs),
        pair.summary("start-up, cached", warm, theirs),
    ]


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the ratios as bars with their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ratio = np.array([row["ratio"] for row in rows])
    spread = np.array(
        [[row["ratio"] - row["ratio_min"], row["ratio_max"] - row["ratio"]] for row in rows]
    ).T
    figure, axis = plt.subplots(figsize=(7, 0.5 * len(rows) + 1.2), layout="constrained")
    axis.barh([row["name"] for row in rows], ratio, xerr=spread, color="C0", alpha=0.8, capsize=3)
    axis.axvline(1, color="k", linewidth=1)
    axis.invert_yaxis()
    axis.set_xlabel("PyTorch's time / jaxdiff's (above 1: jaxdiff is faster)")
    with training.atomic(path) as draft:
        figure.savefig(draft, dpi=120)


def main(options: Options) -> None:
    if options.first_step:
        pair.jax_train(WORK)()
        return
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError(
            "torch is not installed: run `make bench`, or pip install 'jaxdiff[bench]'"
        ) from None
    error = pair.check_equal(WORK)
    _, params = pair.jax_model(WORK)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{machine.describe()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"one network, {count:,} parameters; outputs agree to {error:.0e}")
    sides = (pair.jax_train(WORK), pair.torch_train(WORK))
    rows = [race(f"training, batch {WORK.batch}", sides, options.rounds)]
    for batch in (1, 16, 64):
        rounds, work = (
            max(3, options.rounds // (1 if batch < 64 else 3)),
            replace(WORK, batch=batch),
        )
        sides = (
            pair.jax_sample(work, jd.kernels.ddim, STEPS), pair.torch_sample(work, "ddim", STEPS),
        )  # fmt: skip
        rows.append(race(f"DDIM-{STEPS}, batch {batch}", sides, rounds))
    rows += start_up(options.start_rounds) if options.start_rounds else []
    print(f"{'':22}{'jaxdiff s':>10}{'torch s':>10}{'ratio':>8}   range")
    for row in rows:
        span = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
        seconds = f"{row['jaxdiff_seconds']:10.3f}{row['torch_seconds']:10.3f}"
        print(f"{row['name']:22}{seconds}{row['ratio']:8.2f}   {span}")
    print(f"training: {WORK.batch / rows[0]['jaxdiff_seconds']:.0f} images/s")
    training.write_json(
        options.output / "speed.json", {"machine": machine.describe(), "rows": rows}
    )
    picture(rows, options.output / "speed.png")


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
