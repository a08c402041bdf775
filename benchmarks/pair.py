"""One U-Net in jaxdiff and in PyTorch: the same work on both sides, timed in turn.

This module imports without torch.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import _machine, models, training
from jaxdiff.cli import process

RATE = 1e-3
SCHEDULE = jd.schedules.cosine()
Run = Callable[[], None]


@dataclass(frozen=True)
class Work:
    """What both sides compute.

    Fields:
      shape: of an image, [H, W, C].
      network: options of `models.unet`.
      batch: images of an update, or samples at a time.
      dtype: in which the layers compute, float32 or bfloat16.
      updates: number of updates in one timed run. The host waits at their end.
      accumulate: parts in which jaxdiff takes a device's images of an update.
      num_devices: of jaxdiff; all of this process if None.
      device: of PyTorch.
      compiled: whether PyTorch compiles its network.
    """

    shape: tuple[int, int, int]
    network: dict[str, Any] = field(hash=False)
    batch: int = 64
    dtype: str = "float32"
    updates: int = 1
    accumulate: int = 1
    num_devices: int | None = None
    device: str = "cpu"
    compiled: bool = False

    @property
    def devices(self) -> list[jax.Device]:
        """The devices of jaxdiff."""
        return jax.local_devices()[: self.num_devices]


def from_a_shell(cache: str) -> dict[str, str]:
    """The environment of a new process that sets itself up, with a folder of compiled programs."""
    kept = {name: value for name, value in os.environ.items() if name != process.MARK}
    return kept | {"JAX_COMPILATION_CACHE_DIR": cache}


def jax_model(work: Work) -> tuple[models.Model, Any]:
    """The network and its parameters."""
    model = models.unet(**work.network, dtype=work.dtype)
    return model, model.init(jax.random.key(0), work.shape)


def torch_network(work: Work, params: Any = None) -> Any:
    """The same function in PyTorch, in its fastest memory layout. Without params it has its own."""
    import torch
    from torch_unet import TorchUNet, copy_weights

    torch.set_num_threads(_machine.cores())
    torch.set_float32_matmul_precision("high")  # TF32 where the card has it, as jax does
    net = TorchUNet(work.shape, **work.network)
    if params is not None:
        copy_weights(net, params)
    net = net.to(work.device, memory_format=torch.channels_last)
    return torch.compile(net) if work.compiled else net


def check_equal(work: Work) -> float:
    """Largest relative difference of the two outputs; noise moves the parameters away from zero."""
    import torch

    model, params = jax_model(work)
    noisy = jax.tree.map(
        lambda leaf: leaf + 0.05 * np.random.default_rng(0).normal(size=leaf.shape), params
    )
    x = np.random.default_rng(1).normal(size=(4, *work.shape)).astype(np.float32)
    t = np.linspace(0.1, 0.9, 4, dtype=np.float32)
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.jit(model.apply)(noisy, x, t))
    with torch.no_grad():
        net = torch_network(work, noisy).cpu()
        output = net(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t))
    theirs = output.permute(0, 2, 3, 1).numpy()
    error = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(ours)))
    if error > 1e-4:
        raise ValueError(
            f"the networks differ by {error:.1e} of the largest output, so their times cannot be "
            "compared"
        )
    return error


def flops(program: Any, *arguments: Any) -> float:
    """Operations of a function by XLA's cost analysis, before XLA changes the program.

    XLA's backends for GPUs do not count, so the arguments lie on a CPU.
    """
    return float(program.lower(*arguments).cost_analysis()["flops"])


def forward_flops(work: Work) -> float:
    """Operations of one network call for a batch."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        model, params = jax_model(work)
        x, t = jnp.zeros((work.batch, *work.shape)), jnp.full(work.batch, 0.5)
        return flops(jax.jit(model.apply), params, x, t)


def update_flops(work: Work) -> float:
    """Operations of one update: the output, the gradient of what goes in, and that of the weights.

    A layer takes as many for each. XLA counts a loop once, so the update's own program says less.
    """
    return 3 * forward_flops(work)


def update_of(
    work: Work, model: models.Model, params: Any, devices: list[jax.Device] | None = None
) -> tuple[Any, Any, Any]:
    """`training.make_step` on devices, its state and a batch: Adam, and a parameter average.

    The devices are those of the work if not given.
    """
    devices = work.devices if devices is None else devices
    optimizer = optax.adam(RATE)

    def loss(params: Any, rows: training.Rows, x_0: jax.Array) -> jax.Array:
        return jd.losses.simple(rows.keys, Partial(model.apply, params), SCHEDULE, x_0)

    step = training.make_step(loss, optimizer, accumulate=work.accumulate)
    update = training.map_step(step, devices)
    state = training.init_state(jax.random.key(1), params, optimizer)
    x_0 = np.random.default_rng(0).uniform(-1, 1, (work.batch, *work.shape)).astype(np.float32)
    return update, training.replicate(state, devices), training.shard(x_0, devices)


def jax_train(work: Work) -> Run:
    """Updates: noise, forward, backward, Adam, parameter average."""
    update, state, batch = update_of(work, *jax_model(work))
    box = [state]

    def run() -> None:
        for _ in range(work.updates):
            box[0], metrics = update(box[0], batch)
        jax.block_until_ready((box[0], metrics))

    return run


def torch_train(work: Work) -> Run:
    """The same updates in PyTorch, without the average."""
    from torch_unet import training_step, wait

    step = training_step(torch_network(work), work.shape, work.batch, RATE, work.dtype)

    def run() -> None:
        for _ in range(work.updates):
            step()
        wait(work.device)

    return run


def jax_sample(work: Work, kernel: Callable, num_steps: int) -> Run:
    """Samples by the driver of the library, on at most one device for each of them."""
    model, params = jax_model(work)
    devices = work.devices[: work.batch]
    ts, rows = jd.grids.uniform(num_steps), work.batch // len(devices)

    def draw(params: Any, first: jax.Array) -> jax.Array:
        denoiser = jd.make_denoiser(Partial(model.apply, params), SCHEDULE, "eps")
        x_init = jd.prior_sample(jax.random.key(0), SCHEDULE, (rows, *work.shape), first=first)
        return jd.sample(jax.random.key(1), kernel(denoiser, SCHEDULE), x_init, ts, first=first).x

    mapped = jax.pmap(draw, in_axes=(None, 0), devices=devices)

    def run() -> None:
        jax.block_until_ready(mapped(params, jnp.arange(len(devices)) * rows))

    return run


def torch_sample(work: Work, name: str, num_steps: int) -> Run:
    """The same sampler in PyTorch: a loop over the times. The name is that of a kernel here."""
    from torch_unet import SAMPLERS, wait

    sample = SAMPLERS[name](torch_network(work).eval(), work.shape, work.batch, num_steps)

    def run() -> None:
        sample(work.dtype)
        wait(work.device)

    return run


def race(
    sides: dict[str, Run], rounds: int, *, name: str, until: float = float("inf")
) -> dict[str, list[float]]:
    """Time the sides in turn, after two runs that do not count (one where time is short).

    Args:
      sides: functions by name.
      rounds: how often each runs.
      name: of the progress bar.
      until: the time.monotonic() after which no further round begins; the first one always does.
    Returns:
      The seconds of each side.
    """
    for n in range(2):
        if not n or time.monotonic() < until:
            for side in sides.values():
                side()
    times: dict[str, list[float]] = {each: [] for each in sides}
    for n in tqdm(range(rounds), desc=name, leave=False):
        if n and time.monotonic() > until:
            break
        for each, side in sides.items():
            began = time.perf_counter()
            side()
            times[each].append(time.perf_counter() - began)
    return times


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
