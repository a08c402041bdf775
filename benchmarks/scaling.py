"""Memory a device, and bytes that the devices send, of a training step on 1 to 16 devices.

python benchmarks/scaling.py

The devices are simulated on the CPU. The step is compiled and not run: XLA says how much memory the
program needs, and its text says what is sent. In a ring of d devices an all-reduce of n bytes sends
2 n (d - 1) / d bytes from each device, an all-gather or a reduce-scatter n (d - 1) / d.
"""

import os

if __name__ == "__main__":
    os.environ["JAX_NUM_CPU_DEVICES"] = "16"
    from jaxdiff.cli import set_up

    set_up()  # before jax is imported, because it may start the process again

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

from jaxdiff import training
from jaxdiff.cli import errors
from jaxdiff.runs import build, datasets
from jaxdiff.runs.config import PRESETS, Config

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "f64": 8, "u8": 1, "pred": 1}
SENT = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}

# Bytes a second that one device sends, by the makers' data sheets.
LINKS = {
    "NVLink of an H100 (450 GB/s)": 450e9,
    "TPU v5p (600 GB/s)": 600e9,
    "100 Gbit Ethernet (12.5 GB/s)": 12.5e9,
}


@dataclass(frozen=True)
class Options:
    """What to compile."""

    devices: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of devices."""
    rows: int = 8
    """Rows of the batch on each device."""
    channels: int = 32
    """Channels of the UNet at full resolution."""
    side: int = 32
    """Side of the colour images."""
    page: Path = ROOT / "docs" / "scaling.md"
    """Where the table is written."""


# The ways to save memory, as they are set in the configuration of a run.
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "--shard-state": {"shard_state": True},
    "--accumulate 4": {"accumulate": 4},
    "--network.remat": {"remat": True},
    "--network.dtype bfloat16": {"dtype": "bfloat16"},
}


def compiled(config: Config, dataset: datasets.Dataset, num_devices: int, rows: int) -> Any:
    """Compile an update for shapes alone."""
    model, devices = build.make_model(config, dataset), jax.devices()[:num_devices]
    step = training.make_step(
        build.make_loss(config, model, dataset), build.make_optimizer(config),
        ema_decay=0.999, accumulate=config.accumulate,
    )  # fmt: skip
    state = build.abstract_state(config, model, dataset.event_shape)
    places = training.placements(state, devices, sharded=config.shard_state)
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state, places,
    )  # fmt: skip
    images = np.zeros((rows * num_devices, *dataset.event_shape), np.float32)
    batch = training.shard((images, None), devices)
    update: Any = training.map_step(step, devices, sharded=config.shard_state)
    return update.lower(state, batch).compile()


def sent(text: str, num_devices: int) -> float:
    """Bytes that a device sends in a step, by the collectives in a program's text."""
    total = 0.0
    text = re.sub(r"/\*.*?\*/", "", text)  # comments hold an equals sign
    for shapes, name in re.findall(
        r"= (\(?[^=]*?\)?) (all-reduce|all-gather|reduce-scatter)\(", text
    ):
        size = sum(
            SIZES.get(kind, 4) * math.prod(int(side) for side in sides.split(",") if side)
            for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        )
        whole = size * num_devices if name == "reduce-scatter" else size
        total += SENT[name] * whole * (num_devices - 1) / num_devices
    return total


def measure(options: Options) -> list[dict[str, Any]]:
    """A line for each way on the largest number of devices, and for two ways on the others."""
    shape = (options.side, options.side, 3)
    dataset = datasets.Dataset("colour", shape, None, 256, lambda: {})
    base = PRESETS["mnist"][1]
    rows = []
    jobs = [
        (way, n)
        for n in options.devices
        for way in WAYS
        if n == max(options.devices) or way in ("whole", "--shard-state")
    ]
    for way, n in tqdm(jobs, desc="compiling"):
        given = dict(WAYS[way])
        network = {key: given.pop(key) for key in ("remat", "dtype") if key in given}
        config = dataclasses.replace(
            base, conditional=False, **given,
            network=dataclasses.replace(
                base.network, channels=options.channels, multipliers=(1, 2, 2), attention=(8,),
                patch=1, **network,
            ),
        )  # fmt: skip
        program = compiled(config, dataset, n, options.rows)
        stats = program.memory_analysis()
        rows.append(
            {
                "way": way,
                "devices": n,
                "state": stats.argument_size_in_bytes / MIB,
                "temporary": stats.temp_size_in_bytes / MIB,
                "sent": sent(program.as_text(), n) / MIB,
            }
        )
    return rows


def page(options: Options, rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "# Training on more devices",
        "",
        "`python benchmarks/scaling.py` writes this page. The network is the U-Net of "
        f"`models.unet` with {options.channels} channels and images of {options.side}x"
        f"{options.side}x3, {options.rows} rows a device. The devices are simulated: the step is "
        f"compiled by XLA for CPUs (jax {jax.__version__}) and not run.",
        "",
        "- *State*: what lies on a device between two steps: parameters, their average, two moments"
        " of Adam, and its rows of the batch.",
        "- *Temporary*: what a step needs besides, mostly what the forward pass keeps for the "
        "backward pass.",
        "- *Sent*: what a device sends in a step, with collectives in rings. The time is that of "
        "sending alone, by the makers' figures for one device.",
        "",
        "| way | devices | state, MiB | temporary, MiB | sent, MiB | "
        + " | ".join(f"{name}, ms" for name in LINKS)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(LINKS),
    ]
    for row in rows:
        times = [1000 * row["sent"] * MIB / rate for rate in LINKS.values()]
        cells = [row["way"], str(row["devices"])]
        cells += [f"{row[name]:.1f}" for name in ("state", "temporary", "sent")]
        cells += [f"{time:.2f}" for time in times]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Links: H100 data sheet (NVLink 900 GB/s in both directions together); Google Cloud's page"
        " on TPU v5p (4,800 Gbit/s a chip). On the CPU XLA removes the barriers of `remat`, so the "
        "temporary memory there does not show what it saves; `tests/test_models.py` counts what "
        "the forward pass keeps. The CPU computes bfloat16 in float32, so its temporary memory "
        "does not shrink either.",
        "",
    ]
    return "\n".join(lines)


def main(options: Options) -> list[dict[str, Any]]:
    """Compile, print the table and write the page."""
    if max(options.devices) > jax.device_count():
        raise ValueError(
            f"devices: expected at most {jax.device_count()}, got {max(options.devices)}"
        )
    rows = measure(options)
    text = page(options, rows)
    print(text)
    options.page.parent.mkdir(parents=True, exist_ok=True)
    with training.atomic(options.page) as draft:
        draft.write_text(text)
    return rows


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
