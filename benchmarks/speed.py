"""Speed of jaxdiff's UNet beside the same network in PyTorch, on this machine.

The two run the same work in turn. A ratio is PyTorch's time divided by jaxdiff's: above 1, jaxdiff
is faster. A likelihood and a posterior have no counterpart there. They run in turn with their bare
network calls: what is above 1 in that ratio is what the library adds.
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pair
import tyro
from jax.tree_util import Partial
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
SECOND = pair.Work((32, 32, 3), NETWORK | {"channels": 64, "attention": (8,)}, batch=32)
STEPS = 50
ODE_STEPS = 10  # of four calls
PARTICLES = 64
MATRIX = 2048  # side of the product that shows the peak
SIDES = ("jaxdiff", "torch")
OVERHEAD_ROUNDS = 3


@dataclass(frozen=True)
class Options:
    """What to time."""

    rounds: int = 10
    """How often each side runs, in turn."""
    start_rounds: int = 3
    """How often the start-up of each side is timed; 0 leaves start-up out."""
    output: Path = ROOT / "runs" / "speed"
    """Folder for speed.json, speed.png and overhead.png."""
    first_step: bool = False
    """Do one training step and nothing else. The timing of start-up calls this."""


def race(
    name: str, sides: tuple[pair.Run, pair.Run], rounds: int, operations: float
) -> dict[str, Any]:
    """Time jaxdiff and PyTorch in turn; operations are those of one run."""
    times = pair.race({"jaxdiff": sides[0], "torch": sides[1]}, rounds, name=name)
    row = pair.summary(name, times["jaxdiff"], times["torch"])
    rates = {f"{side}_flops": operations / row[f"{side}_seconds"] for side in times}
    return row | rates


def peak(rounds: int) -> float:
    """FLOP/s of a product of matrices, in the faster library: the most that a network can reach."""
    import torch

    devices = jax.local_devices()
    sides = {
        "jaxdiff": jax.pmap(lambda n: jnp.ones((MATRIX, MATRIX)).at[0, 0].set(n)),
        "torch": torch.ones(MATRIX, MATRIX),
    }
    a = jax.block_until_ready(sides["jaxdiff"](jnp.arange(1.0, 1 + len(devices))))
    product, b = jax.pmap(lambda a: a @ a), sides["torch"]
    times = pair.race(
        {"jaxdiff": lambda: jax.block_until_ready(product(a)), "torch": lambda: b @ b},
        rounds, name="peak",
    )  # fmt: skip
    one = 2 * MATRIX**3
    return max(one * len(devices) / min(times["jaxdiff"]), one / min(times["torch"]))


def on_all_devices(
    work: pair.Work, compute: Callable[[Any, jax.Array, jax.Array], Any]
) -> pair.Run:
    """Run compute(net, key, x) on every device, x a share of the batch."""
    model, params = pair.jax_model(work)
    count = len(work.devices)
    x = jax.random.uniform(jax.random.key(0), (work.batch, *work.shape), minval=-1.0)
    x, keys = x.reshape(count, -1, *work.shape), jax.random.split(jax.random.key(1), count)

    def one(params: Any, key: jax.Array, x: jax.Array) -> Any:
        return compute(Partial(model.apply, params), key, x)

    mapped = jax.pmap(one, in_axes=(None, 0, 0), devices=work.devices)
    return lambda: jax.block_until_ready(mapped(params, keys, x))


def calls(num: int, call: Callable, net: Any, key: jax.Array, x: jax.Array) -> jax.Array:
    """Nothing but network calls, each on what the one before returned."""
    ts = jnp.linspace(1, 0, num)
    return jax.lax.scan(lambda x, t: (call(lambda x: net(x, t), x), None), x, ts)[0]


def plain(net: Callable, x: jax.Array) -> jax.Array:
    """One call."""
    return net(x)


def pulled(net: Callable, x: jax.Array) -> jax.Array:
    """One call, and one vector-Jacobian product."""
    y, pull = jax.vjp(net, x)
    return y + pull(x)[0]


def by_terms(net: Any, key: jax.Array, x: jax.Array) -> jax.Array:
    """The bound by its terms."""
    denoiser = jd.make_denoiser(net, pair.SCHEDULE, "eps")
    ts, levels = jd.grids.uniform(STEPS), 256
    chain = jd.Chain(
        denoiser, pair.SCHEDULE, ts, decoder=jd.decoders.discretised_normal(levels), ends_clean=True
    )
    x_0 = jd.data.to_unit(jd.data.from_unit(x, levels), levels)
    return jd.likelihood.vlb_terms(key, chain, x_0)


def density(net: Any, key: jax.Array, x: jax.Array) -> jax.Array:
    """The density of the probability-flow ODE, with one probe."""
    denoiser = jd.make_denoiser(net, pair.SCHEDULE, "eps")
    ts = jd.grids.log_snr(pair.SCHEDULE, ODE_STEPS)
    return jd.likelihood.ode_log_prob(denoiser, pair.SCHEDULE, ts, x, key=key, num_probes=1)


def posterior(spread: Any, net: Any, key: jax.Array, x: jax.Array) -> jax.Array:
    """One system of PARTICLES rows given the upper half of an image."""
    denoiser = jd.make_denoiser(net, pair.SCHEDULE, "eps")
    seen = jd.observations.mask(x[0], jd.observations.half(x.shape[1:]), 0.1)
    kernel = jd.posterior.twisted(denoiser, pair.SCHEDULE, seen, spread=spread)
    return jd.posterior.draw(
        key, kernel, pair.SCHEDULE, (1, *x.shape[1:]), ts=jd.grids.uniform(STEPS), rows=PARTICLES
    ).x


def overheads(rounds: int) -> Iterator[dict[str, Any]]:
    """Time likelihoods and a posterior in turn with as many bare network calls."""
    model, params = pair.jax_model(WORK)
    denoiser = jd.make_denoiser(Partial(model.apply, params), pair.SCHEDULE, "eps")
    data = jax.random.uniform(jax.random.key(2), (512, *WORK.shape), minval=-1.0)
    spread = jd.posterior.spread_of(jax.random.key(3), denoiser, pair.SCHEDULE, data)
    systems = replace(WORK, batch=PARTICLES * len(WORK.devices))
    once = functools.partial(calls, STEPS, plain)
    jobs: list[tuple[str, pair.Work, Callable, Callable, int]] = [
        (f"bound by {STEPS} terms", WORK, by_terms, once, WORK.batch),
        (
            f"ODE, {ODE_STEPS} steps, a probe", WORK, density,
            functools.partial(calls, 4 * ODE_STEPS, pulled), WORK.batch,
        ),
        (
            f"twisted, {PARTICLES} x {STEPS}", systems, functools.partial(posterior, spread),
            once, len(WORK.devices),
        ),
    ]  # fmt: skip
    for name, work, ours, bare, images in jobs:
        sides = {"jaxdiff": on_all_devices(work, ours), "bare": on_all_devices(work, bare)}
        times = pair.race(sides, rounds, name=name)
        row = pair.summary(name, times["bare"], times["jaxdiff"])
        ratios = {key: row[key] for key in ("ratio", "ratio_min", "ratio_max")}
        rate = images / statistics.median(times["jaxdiff"])
        yield {"name": name, "images_per_second": rate} | ratios


def start_up(rounds: int) -> Iterator[dict[str, Any]]:
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
    if rounds:
        yield pair.summary("start-up, cold", cold, theirs)
        yield pair.summary("start-up, cached", warm, theirs)


def picture(rows: list[dict[str, Any]], label: str, path: Path) -> None:
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
    axis.set_xlabel(label)
    with training.atomic(path) as draft:
        figure.savefig(draft, dpi=120)


def beside_torch(rounds: int) -> Iterator[dict[str, Any]]:
    """Training of both networks, and samples."""
    for name, work in (("", WORK), (", second network", SECOND)):
        sides = (pair.jax_train(work), pair.torch_train(work))
        yield race(f"training{name}, batch {work.batch}", sides, rounds, pair.update_flops(work))
    for batch in (1, 16, 64):
        work = replace(WORK, batch=batch)
        sides = (
            pair.jax_sample(work, jd.kernels.ddim, STEPS), pair.torch_sample(work, "ddim", STEPS),
        )  # fmt: skip
        operations = STEPS * pair.forward_flops(work)
        few = max(3, rounds // (1 if batch < 64 else 3))
        yield race(f"DDIM-{STEPS}, batch {batch}", sides, few, operations)


def text(row: dict[str, Any], most: float) -> str:
    """A line of the table; most is the machine's peak."""
    if "images_per_second" in row:
        return (
            f"{row['name']:36}{row['images_per_second']:10.3g} images/s, {row['ratio']:.3f} times "
            f"its bare network calls ({row['ratio_min']:.3f} to {row['ratio_max']:.3f})"
        )
    span = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
    shares = ", ".join(
        f"{row[f'{side}_flops'] / most:.0%}" for side in SIDES if f"{side}_flops" in row
    )
    seconds = "".join(f"{row[f'{side}_seconds']:10.3f}" for side in SIDES)
    return f"{row['name']:36}{seconds}{row['ratio']:8.2f}   {span:15}{shares}"


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
    error = max(map(pair.check_equal, (WORK, SECOND)))
    print(f"{machine.describe()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    for work in (WORK, SECOND):
        count = sum(leaf.size for leaf in jax.tree.leaves(pair.jax_model(work)[1]))
        print(f"{count:,} parameters, {'x'.join(map(str, work.shape))}")
    print(f"outputs agree to {error:.0e}")
    most = peak(options.rounds)
    print(f"peak: {most / 1e9:.0f} GFLOP/s, the faster library's product of matrices")
    print(f"{'':36}{'jaxdiff s':>10}{'torch s':>10}{'ratio':>8}   range          share of the peak")
    rows = []
    for row in itertools.chain(
        beside_torch(options.rounds), overheads(OVERHEAD_ROUNDS), start_up(options.start_rounds)
    ):
        print(text(row, most), flush=True)
        rows.append(row)
        training.write_json(
            options.output / "speed.json",
            {"machine": machine.describe(), "peak": most, "rows": rows},
        )
    for label, file, kind in (
        ("PyTorch's time / jaxdiff's (above 1: jaxdiff is faster)", "speed.png", False),
        ("time / that of the bare network calls", "overhead.png", True),
    ):
        shown = [row for row in rows if ("images_per_second" in row) == kind]
        picture(shown, label, options.output / file)


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
