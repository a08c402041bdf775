"""Throughput of one accelerator, beside PyTorch on the same card, in less than ten minutes.

python benchmarks/accelerator.py

Training images a second and the share of the card's peak that they use, samples a second, and
network calls a second of a likelihood and of a posterior. Each job is timed in turn with PyTorch
(channels_last, autocast, torch.compile) where both have it. What no longer fits into the minutes is
left out, and named. Results are written after each job.
"""

import os

if __name__ == "__main__":
    # PyTorch needs memory of the same card.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    from jaxdiff.cli import set_up

    set_up()  # before jax is imported, because it may start the process again

import importlib
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import pair
import tyro
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import errors
from jaxdiff.runs import machine, require

ROOT = Path(__file__).resolve().parents[1]
Part = Literal["training", "DDIM-50", "UniPC-20", "likelihood", "posterior"]
ODE_STEPS, POSTERIOR_STEPS, PARTICLES = 10, 20, 8


class Peak(NamedTuple):
    """Dense TFLOP/s of a card; None where it has no such unit. TF32 is what float32 runs in."""

    bfloat16: float | None
    tf32: float | None
    float32: float


# NVIDIA's data sheets of the H100, H200, A100, L4, V100 and T4, and its Ada white paper for the RTX
# 4090 (sums in float32). Figures that they give with sparsity are halved. The first that fits the
# card's name counts.
PEAKS: dict[str, Peak] = {
    r"H100 PCIe": Peak(756, 378, 51),
    r"H[12]00 NVL": Peak(835, 418, 60),
    r"H100|H200": Peak(989, 495, 67),
    r"A100": Peak(312, 156, 19.5),
    r"\bL4\b": Peak(121, 60, 30.3),
    r"V100-PCIE": Peak(None, None, 14.0),
    r"V100": Peak(None, None, 15.7),
    r"\bT4\b": Peak(None, None, 8.1),
    r"RTX 4090\b(?! D)": Peak(165.2, 82.6, 82.6),
}


@dataclass(frozen=True)
class Options:
    """What to time."""

    minutes: float = 10.0
    """Time for all of it. A job that would not fit is left out."""
    parts: tuple[Part, ...] = ("training", "DDIM-50", "UniPC-20", "likelihood", "posterior")
    """Jobs."""
    side: int = 32
    """Side of the colour images, in pixels."""
    channels: int = 128
    """Channels of the UNet at full resolution."""
    batch: int = 256
    """Images in an update, and samples at a time."""
    updates: int = 10
    """Updates between two waits of the host."""
    rounds: int = 5
    """How often each side runs, in turn."""
    output: Path = ROOT / "runs" / "accelerator"
    """Folder for accelerator.json and accelerator.md."""


class Job(NamedTuple):
    """Something to time.

    Fields:
      name: of the part.
      work: the network and its dtype.
      images: in one run.
      calls: network calls of one image in one run.
      ours: makes the function to time.
      theirs: makes that of PyTorch, where it has one.
      flops: counts the operations of one run, where somebody does.
    """

    name: str
    work: pair.Work
    images: int
    calls: int
    ours: Callable[[], pair.Run]
    theirs: Callable[[], pair.Run] | None = None
    flops: Callable[[], float] | None = None

    def __str__(self) -> str:
        return f"{self.name} in {self.work.dtype}"


def peak_of(card: str, dtype: str) -> float | None:
    """FLOP/s of a card by its data sheet; None for a card or a dtype that is not in the table."""
    found = next((peak for name, peak in PEAKS.items() if re.search(name, card)), None)
    if found is None:
        return None
    tera = found.bfloat16 if dtype == "bfloat16" else found.tf32 or found.float32
    return None if tera is None else tera * 1e12


def torch_device() -> tuple[str | None, str]:
    """Where PyTorch runs, or None and why it does not."""
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        return (
            None,
            "torch is not installed: its columns are empty (pip install 'jaxdiff[bench]')",
        )
    if jax.default_backend() == "cpu":
        return "cpu", f"torch {torch.__version__}, on the CPU"
    if not torch.cuda.is_available():
        return None, f"torch {torch.__version__} does not see the card, so its columns are empty"
    return "cuda", f"torch {torch.__version__}, channels_last, autocast, torch.compile"


def work_of(options: Options, device: str | None) -> pair.Work:
    """The network and the sizes."""
    network = {
        "channels": options.channels,
        "multipliers": (1, 2, 2),
        "num_blocks": 2,
        "attention": (options.side // 2,),
        "num_heads": 4,
        "norm_groups": 8,
    }
    return pair.Work(
        (options.side, options.side, 3), network, batch=options.batch, updates=options.updates,
        num_devices=1, device=device or "cpu", compiled=device == "cuda",
    )  # fmt: skip


def training_job(work: pair.Work) -> Job:
    """Updates of the parameters."""
    return Job(
        "training", work, work.batch * work.updates, 1,
        partial(pair.jax_train, work), partial(pair.torch_train, work),
        lambda: pair.update_flops(work) * work.updates,
    )  # fmt: skip


def sampling_job(name: str, kernel: Callable, theirs: str, steps: int) -> Callable[..., Job]:
    """Samples by a kernel here, and by the one of that name in PyTorch."""
    return lambda work: Job(
        name, work, work.batch, steps,
        partial(pair.jax_sample, work, kernel, steps),
        partial(pair.torch_sample, work, theirs, steps),
        lambda: pair.forward_flops(work) * steps,
    )  # fmt: skip


def likelihood_job(work: pair.Work) -> Job:
    """Densities of images by the probability-flow ODE, with one probe."""

    def ours() -> pair.Run:
        model, params = pair.jax_model(work)
        x_0 = jax.random.uniform(jax.random.key(1), (work.batch, *work.shape), minval=-1.0)
        ts = jd.grids.log_snr(pair.SCHEDULE, ODE_STEPS)

        @jax.jit
        def density(params: Any) -> jax.Array:
            denoiser = jd.make_denoiser(Partial(model.apply, params), pair.SCHEDULE, "eps")
            return jd.likelihood.ode_log_prob(
                denoiser, pair.SCHEDULE, ts, x_0, key=jax.random.key(0), num_probes=1
            )

        return lambda: jax.block_until_ready(density(params))

    return Job("likelihood", work, work.batch, 4 * ODE_STEPS, ours)


def posterior_job(work: pair.Work) -> Job:
    """Draws given the upper half of an image, each from a system of PARTICLES guided rows."""
    draws = work.batch // PARTICLES

    def ours() -> pair.Run:
        model, params = pair.jax_model(work)
        y = jax.random.uniform(jax.random.key(1), work.shape, minval=-1.0)
        seen = jd.observations.mask(y, jd.observations.half(work.shape), 0.1)
        ts = jd.grids.uniform(POSTERIOR_STEPS)

        @jax.jit
        def draw(params: Any) -> jax.Array:
            denoiser = jd.make_denoiser(Partial(model.apply, params), pair.SCHEDULE, "eps")
            kernel = jd.posterior.twisted(denoiser, pair.SCHEDULE, seen)
            return jd.posterior.draw(
                jax.random.key(0), kernel, pair.SCHEDULE, (draws, *work.shape), ts=ts,
                rows=PARTICLES,
            ).x  # fmt: skip

        return lambda: jax.block_until_ready(draw(params))

    return Job("posterior", work, draws, PARTICLES * POSTERIOR_STEPS, ours)


BOTH = ("float32", "bfloat16")
JOBS: dict[str, tuple[tuple[str, ...], Callable[[pair.Work], Job]]] = {
    "training": (BOTH, training_job),
    "DDIM-50": (BOTH, sampling_job("DDIM-50", jd.kernels.ddim, "ddim", 50)),
    "UniPC-20": (BOTH, sampling_job("UniPC-20", jd.kernels.unipc, "unipc", 20)),
    "likelihood": (("float32",), likelihood_job),
    "posterior": (("float32",), posterior_job),
}


def measure(job: Job, rounds: int, until: float, *, with_torch: bool) -> dict[str, Any]:
    """Time a job; its line of the table."""
    operations = None if job.flops is None else job.flops()
    sides = {"jaxdiff": job.ours()}
    if with_torch and job.theirs is not None:
        sides["torch"] = job.theirs()
    times = pair.race(sides, rounds, name=str(job), until=until)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    row: dict[str, Any] = {"name": job.name, "dtype": job.work.dtype, "seconds": times}
    for name, each in seconds.items():
        row[f"{name}_images_per_second"] = job.images / each
    row["calls_per_second"] = job.images * job.calls / seconds["jaxdiff"]
    if "torch" in times:
        row |= pair.summary(job.name, times["jaxdiff"], times["torch"])
    if operations is not None:
        peak = peak_of(jax.devices()[0].device_kind, job.work.dtype)
        row["flops_per_second"] = operations / seconds["jaxdiff"]
        row["share_of_peak"] = None if peak is None else row["flops_per_second"] / peak
    return row


def page(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        "# Throughput of an accelerator",
        "",
        f"`python benchmarks/accelerator.py`. {result['machine']}; {result['torch']}. "
        f"{result['work']}. float32 is computed in TF32 where the card has it. A ratio is "
        "PyTorch's time divided by jaxdiff's: above 1, jaxdiff is faster.",
        "",
        "| job | dtype | images/s | calls/s | PyTorch images/s | ratio | TFLOP/s | of peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [row["name"], row["dtype"]]
        cells += [f"{row[name]:.1f}" for name in ("jaxdiff_images_per_second", "calls_per_second")]
        for name, scale, form in (
            ("torch_images_per_second", 1, ".1f"), ("ratio", 1, ".2f"),
            ("flops_per_second", 1e-12, ".3g"), ("share_of_peak", 1, ".1%"),
        ):  # fmt: skip
            value = row.get(name)
            cells.append("" if value is None else format(value * scale, form))
        lines.append("| " + " | ".join(cells) + " |")
    if result["left_out"]:
        lines += ["", f"Left out, for lack of time: {', '.join(result['left_out'])}."]
    return "\n".join([*lines, ""])


def save(options: Options, result: dict[str, Any]) -> None:
    """Write both files."""
    training.write_json(options.output / "accelerator.json", result)
    with training.atomic(options.output / "accelerator.md") as draft:
        draft.write_text(page(result))


def main(options: Options) -> dict[str, Any]:
    """Do the jobs that fit into the time, print the table and write it."""
    require.counts(options, side=4, channels=8, batch=PARTICLES, updates=1, rounds=1)
    require.numbers(options, minutes=require.POSITIVE)
    if options.channels % 8 or options.batch % PARTICLES:
        raise ValueError(
            f"channels, batch: expected multiples of 8 and {PARTICLES}, "
            f"got {options.channels} and {options.batch}"
        )
    end = time.monotonic() + 60 * options.minutes
    device, about = torch_device()
    work = work_of(options, device)
    print(f"{machine.describe()}; {about}")
    if device is not None:
        error = pair.check_equal(replace(work, compiled=False))
        print(f"one network on both sides: outputs agree to {error:.0e}")
    count = sum(leaf.size for leaf in jax.tree.leaves(pair.jax_model(work)[1]))
    size = f"{count:,} parameters, {options.side}x{options.side}x3, batch {options.batch}"
    result: dict[str, Any] = {
        "machine": machine.describe(), "torch": about, "work": size, "rows": [], "left_out": [],
    }  # fmt: skip
    longest = 0.0
    jobs = [
        make(replace(work, dtype=dtype))
        for dtypes, make in map(JOBS.__getitem__, options.parts)
        for dtype in dtypes
    ]
    for job in jobs:
        began = time.monotonic()
        # A job takes about as long as the longest one so far; the first is always done.
        if result["rows"] and began + longest > end:
            print(f"no time is left for {job} (--minutes {options.minutes:g})")
            result["left_out"].append(str(job))
        else:
            until = began + (end - began) / 4
            row = measure(job, options.rounds, until, with_torch=device is not None)
            result["rows"].append(row)
            longest = max(longest, time.monotonic() - began)
        save(options, result)
    print(page(result))
    return result


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
