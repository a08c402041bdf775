"""Speed of jaxdiff's UNet beside the same network in PyTorch, on this machine.

The two run the same work in turn. A ratio is PyTorch's time divided by jaxdiff's: above 1, jaxdiff
is faster.
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.tree_util import Partial
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import _machine, models, training
from jaxdiff.cli import errors, process
from jaxdiff.runs import machine

ROOT = Path(__file__).resolve().parents[1]

SHAPE = (28, 28, 1)
NETWORK: dict[str, Any] = {
    "channels": 32,
    "multipliers": (1, 2, 2),
    "num_blocks": 2,
    "attention": (7,),
    "num_heads": 4,
    "norm_groups": 8,
}
BATCH, STEPS, RATE = 64, 50, 1e-3
SCHEDULE = jd.schedules.cosine()


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


def jax_model() -> tuple[models.Model, Any]:
    """The network and its parameters."""
    model = models.unet(**NETWORK)
    return model, model.init(jax.random.key(0), SHAPE)


def torch_network(params: Any = None) -> Any:
    """The same function in PyTorch, in its fastest memory layout. Without params it has its own."""
    import torch
    from torch_unet import TorchUNet, copy_weights

    torch.set_num_threads(_machine.cores())
    net = TorchUNet(SHAPE, **NETWORK)
    if params is not None:
        copy_weights(net, params)
    return net.to(memory_format=torch.channels_last)


def check_equal(model: models.Model, params: Any) -> float:
    """Largest relative difference of the two outputs; noise moves the parameters away from zero."""
    import torch

    noisy = jax.tree.map(
        lambda leaf: leaf + 0.05 * np.random.default_rng(0).normal(size=leaf.shape), params
    )
    x = np.random.default_rng(1).normal(size=(4, *SHAPE)).astype(np.float32)
    t = np.linspace(0.1, 0.9, 4, dtype=np.float32)
    ours = np.asarray(jax.jit(model.apply)(noisy, x, t))
    with torch.no_grad():
        output = torch_network(noisy)(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t))
    theirs = output.permute(0, 2, 3, 1).numpy()
    error = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(ours)))
    if error > 1e-4:
        raise ValueError(
            f"the networks differ by {error:.1e} of the largest output, so their times cannot be "
            "compared"
        )
    return error


def jax_train() -> Callable[[], None]:
    """`training.make_step` on all devices: noise, forward, backward, Adam, parameter average."""
    model, params = jax_model()
    optimizer, devices = optax.adam(RATE), jax.local_devices()

    def loss(params: Any, rows: training.Rows, x_0: jax.Array) -> jax.Array:
        return jd.losses.simple(rows.keys, Partial(model.apply, params), SCHEDULE, x_0)

    compiled = training.map_step(training.make_step(loss, optimizer))
    box = [training.replicate(training.init_state(jax.random.key(1), params, optimizer), devices)]
    x_0 = np.random.default_rng(0).uniform(-1, 1, (BATCH, *SHAPE)).astype(np.float32)
    batch = training.shard(x_0, devices)

    def run() -> None:
        box[0], metrics = compiled(box[0], batch)
        jax.block_until_ready((box[0], metrics))

    return run


def torch_train() -> Callable[[], None]:
    """The same update in PyTorch, eager."""
    from torch_unet import training_step

    return training_step(torch_network(), SHAPE, BATCH, RATE)


def jax_sample(batch: int) -> Callable[[], None]:
    """DDIM through the driver of the library, on at most one device for each sample."""
    model, params = jax_model()
    num_devices = min(batch, jax.local_device_count())
    ts, rows = jd.grids.uniform(STEPS), batch // num_devices

    def draw(params: Any, first: jax.Array) -> jax.Array:
        kernel = jd.kernels.ddim(
            jd.make_denoiser(Partial(model.apply, params), SCHEDULE, "eps"), SCHEDULE
        )
        x_init = jd.prior_sample(jax.random.key(0), SCHEDULE, (rows, *SHAPE), first=first)
        return jd.sample(jax.random.key(1), kernel, x_init, ts, first=first).x

    mapped = jax.pmap(draw, in_axes=(None, 0), devices=jax.local_devices()[:num_devices])

    def run() -> None:
        jax.block_until_ready(mapped(params, jnp.arange(num_devices) * rows))

    return run


def torch_sample(batch: int) -> Callable[[], None]:
    """The same DDIM in PyTorch: a loop over the times."""
    import torch

    net = torch_network().eval()
    x_init = torch.randn(batch, SHAPE[2], *SHAPE[:2]).contiguous(memory_format=torch.channels_last)
    ts = torch.linspace(1, 0, STEPS + 1)
    alphas, sigmas = torch.cos(ts * 0.9996 * np.pi / 2), torch.sin(ts * 0.9996 * np.pi / 2)

    def run() -> None:
        x = x_init
        with torch.no_grad():
            for n in range(STEPS):
                eps = net(x, ts[n].expand(batch))
                x = alphas[n + 1] * (x - sigmas[n] * eps) / alphas[n] + sigmas[n + 1] * eps

    return run


def race(
    name: str, ours: Callable[[], None], theirs: Callable[[], None], rounds: int
) -> dict[str, Any]:
    """Time both sides in turn, after two runs that do not count."""
    sides = (ours, theirs)
    for side in sides * 2:
        side()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in tqdm(range(rounds), desc=name, leave=False):
        for side, kept in zip(sides, times, strict=True):
            began = time.perf_counter()
            side()
            kept.append(time.perf_counter() - began)
    return summary(name, *times)


def summary(name: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Medians, and the median and range of the paired ratios."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "name": name,
        "jaxdiff_seconds": statistics.median(ours),
        "torch_seconds": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def start_up(rounds: int) -> list[dict[str, Any]]:
    """Time a process from its start to the end of its first update, without a cache and with it."""
    sides = {
        "jaxdiff": [__file__, "--first-step"],
        "torch": [
            str(Path(__file__).with_name("torch_unet.py")),
            json.dumps({"shape": SHAPE, "network": NETWORK, "batch": BATCH, "rate": RATE}),
        ],
    }

    def seconds(side: str, cache: str) -> float:
        environment = {
            name: value for name, value in os.environ.items() if name != process.MARK
        } | {"JAX_COMPILATION_CACHE_DIR": cache}
        began = time.perf_counter()
        subprocess.run([sys.executable, *sides[side]], check=True, env=environment)
        return time.perf_counter() - began

    cold, warm, theirs = [], [], []
    for _ in tqdm(range(rounds), desc="start-up", leave=False):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(seconds("jaxdiff", cache))
            warm.append(seconds("jaxdiff", cache))
            theirs.append(seconds("torch", cache))
    return [summary("start-up, cold", cold, theirs), summary("start-up, cached", warm, theirs)]


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
        jax_train()()
        return
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError(
            "torch is not installed: run `make bench`, or pip install 'jaxdiff[bench]'"
        ) from None
    model, params = jax_model()
    error = check_equal(model, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{machine.describe()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"one network, {count:,} parameters; outputs agree to {error:.0e}")
    rows = [race(f"training, batch {BATCH}", jax_train(), torch_train(), options.rounds)]
    for batch in (1, 16, 64):
        rounds = max(3, options.rounds // (1 if batch < 64 else 3))
        rows.append(
            race(f"DDIM-{STEPS}, batch {batch}", jax_sample(batch), torch_sample(batch), rounds)
        )
    rows += start_up(options.start_rounds) if options.start_rounds else []
    print(f"{'':22}{'jaxdiff s':>10}{'torch s':>10}{'ratio':>8}   range")
    for row in rows:
        span = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
        seconds = f"{row['jaxdiff_seconds']:10.3f}{row['torch_seconds']:10.3f}"
        print(f"{row['name']:22}{seconds}{row['ratio']:8.2f}   {span}")
    print(f"training: {BATCH / rows[0]['jaxdiff_seconds']:.0f} images/s")
    training.write_json(
        options.output / "speed.json", {"machine": machine.describe(), "rows": rows}
    )
    picture(rows, options.output / "speed.png")


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
