"""A trained run and samples from it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import models, training, zoo
from jaxdiff.runs import build, cache, datasets, folders, require, samplers
from jaxdiff.runs.config import Config, from_fields
from jaxdiff.runs.seeds import key_of


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    folder: Path
    config: Config
    dataset: datasets.Dataset
    schedule: jd.Schedule
    model: models.Model
    params: Any
    step: int

    def with_params(self, params: Any) -> "Run":
        """The same run with other parameters, such as a program's traced argument."""
        return dataclasses.replace(self, params=params)

    def denoiser(
        self, label: jax.Array | None = None, *, guidance: Any = 1.0, threshold: Any = None
    ) -> Partial:
        """The denoiser of the averaged parameters; a label [B] conditions it, a guidance other than 1 guides it."""
        self.model.check_label(label)
        make = partial(
            build.make_denoiser(self.config, self.model, self.dataset.levels),
            self.params,
            self.schedule,
        )
        if label is None:
            return make(threshold=threshold)
        given = make(label=label, threshold=threshold)
        if guidance == 1:
            return given
        return jd.guidance.classifier_free(given, make(threshold=threshold), guidance)


def load_run(folder: Path, *, best: bool = False) -> Run:
    """Read a run folder: its newest sound checkpoint, or that of the lowest held-out loss.

    The name of a network that ships with the package stands for it, where no folder has that name.
    """
    if str(folder) in zoo.SHA256 and not (folder / "config.json").exists():
        return shipped(str(folder))
    config = folders.load_config(folder)
    dataset = datasets.load(config)
    model = build.make_model(config, dataset)
    with training.Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(
            build.abstract_state(config, model, dataset.event_shape), best=best
        )
    if state is None:
        raise FileNotFoundError(
            f"run: {folder} has no checkpoint yet; train it with `jaxdiff train`"
        )
    params = state.ema_params
    schedule = build.make_schedule(config, params["schedule"])
    return Run(folder, config, dataset, schedule, model, params["network"], int(state.step))


def shipped(name: str) -> Run:
    """A network that ships with the package, as the run it came from; its folder is runs/NAME-pretrained."""
    net = jd.pretrained(name)
    folder = Path("runs") / f"{name}-pretrained"
    config = from_fields(net.about["config"], folder)
    dataset = datasets.later(config.dataset, net.event_shape, net.num_classes, net.levels)
    return Run(folder, config, dataset, net.schedule, net.model, net.params, net.about["step"])


def digest(settings: Any, arrays: Any) -> str:
    """A name for what was made from settings, anything JSON writes, and a pytree of arrays."""
    total = hashlib.sha256(json.dumps(settings).encode())
    for leaf in jax.tree.leaves(arrays):
        total.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return total.hexdigest()[:16]


class Generated(NamedTuple):
    """Samples [N, *D], and the trajectory of the first chunk of them, [S, up to batch_size, *D]."""

    x: np.ndarray
    trajectory: np.ndarray


def generate(
    run: Run,
    num: int,
    *,
    seed: int = 0,
    labels: np.ndarray | None = None,
    guidance: float = 1.0,
    sampler: str = "ddim",
    noise: float = 0.0,
    steps: int = 50,
    grid: str = "uniform",
    threshold: Any = None,
    batch_size: int = 256,
    save_every: int | None = None,
    variance: str | None = None,
    ts: jax.Array | None = None,
    keep: bool = False,
) -> Generated:
    """Draw samples in chunks over all devices: sample i depends on (seed, i) alone.

    Every chunk has the same shape, so that one program serves them all; what the last one has too
    much is cut off. Chunks are kept in files where asked for, each by what it depends on, and read
    instead of being drawn again.
    """
    require.counts(
        SimpleNamespace(num=num, batch_size=batch_size, steps=steps), num=1, batch_size=1, steps=1
    )
    ts = samplers.make_grid(run.schedule, grid, steps) if ts is None else ts  # a grid of one's own
    num_devices, event = jax.local_device_count(), run.dataset.event_shape
    per_device = -(-min(batch_size, num) // num_devices)
    whole = per_device * num_devices
    mapped = program(
        run, per_device, ts, seed=seed, guidance=guidance, sampler=sampler, noise=noise,
        threshold=threshold, variance=variance, save_every=save_every,
    )  # fmt: skip
    settings = [seed, guidance, sampler, noise, threshold, variance, whole, save_every]
    settings += [dataclasses.asdict(run.config.diffusion), labels is None]
    made_of = digest(settings, (run.params, run.schedule, ts))
    pieces: list[np.ndarray] = []
    for start in tqdm(range(0, num, whole), unit="chunk", desc="sampling", disable=num <= whole):
        index = np.arange(start, start + whole)
        label = None if labels is None else jnp.asarray(labels[np.minimum(index, num - 1)])
        part = run.folder / "samples" / "parts" / f"{start}-{digest([made_of, start], label)}.npz"
        kept = cache.read(part) if keep else None
        if kept is not None:
            pieces.append(kept["x"])
            continue
        trajectory = mapped(
            run.params, jnp.asarray(index[::per_device]), training.shard(label, num_devices)
        )
        states = np.asarray(trajectory).reshape(-1, whole, *event)
        require_finite(states[-1])
        pieces.append(states if not pieces else states[-1:])
        if keep:
            cache.write(part, {"x": pieces[-1]})
    if keep:
        cache.trim(run.folder / "samples" / "parts")
    return Generated(np.concatenate([piece[-1] for piece in pieces])[:num], pieces[0][:, :num])


def require_finite(x: np.ndarray) -> None:
    """Refuse samples [N, *D] that hold NaN or infinity, before they are saved or measured."""
    bad = int(np.sum(~np.isfinite(x).reshape(len(x), -1).all(axis=1)))
    if bad:
        raise FloatingPointError(
            f"samples: {bad} of {len(x)} are not finite; take more steps, another sampler, or --threshold static"
        )


def pure_noise(
    key: jax.Array, schedule: jd.Schedule, shape: tuple[int, ...], ts: jax.Array, *, first: Any = 0
) -> jax.Array:
    """What the model has at the start of a grid: normal, of the noise's width there."""
    return (
        schedule.sigma(ts[0])
        / schedule.sigma(1.0)
        * jd.prior_sample(key, schedule, shape, first=first)
    )


def program(
    run: Run,
    per_device: int,
    ts: jax.Array,
    *,
    seed: int = 0,
    guidance: float = 1.0,
    sampler: str = "ddim",
    noise: float = 0.0,
    threshold: Any = None,
    variance: str | None = None,
    save_every: int | None = None,
) -> Callable[[Any, jax.Array, jax.Array | None], Any]:
    """The compiled sampler of (params, number of each device's first sample, labels [devices, per_device] or None).

    It returns the states it saves, [S, devices, per_device, *D].
    """
    event = run.dataset.event_shape
    variance = variance or ("learned" if run.config.diffusion.finite else "small")
    key_prior, key_run = jax.random.split(key_of(seed, "samples"))

    def chunk(params: Any, first: jax.Array, label: jax.Array | None) -> jax.Array | None:
        denoiser = run.with_params(params).denoiser(label, guidance=guidance, threshold=threshold)
        kernel = samplers.make_kernel(sampler, denoiser, run.schedule, noise, variance=variance)
        x_init = pure_noise(key_prior, run.schedule, (per_device, *event), ts, first=first)
        every = len(ts) - 1 if save_every is None else save_every
        return jd.sample(key_run, kernel, x_init, ts, first=first, save_every=every).trajectory

    return jax.pmap(chunk, in_axes=(None, 0, 0), out_axes=1)
