"""A trained run and samples from it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.runs import cache, require, samplers
from jaxdiff.runs.seeds import key_of
from jaxdiff.zoo import Trained


class Generated(NamedTuple):
    """Samples [N, *D], and the trajectory of the first chunk, [S, up to batch_size, *D]."""

    x: np.ndarray
    trajectory: np.ndarray


def classes_in_turn(trained: Trained, num: int) -> np.ndarray | None:
    """The labels 0, 1, ... and again from 0, [num]; None for a network without classes."""
    return None if trained.num_classes is None else np.arange(num) % trained.num_classes


def generate(
    trained: Trained,
    num: int,
    *,
    seed: int = 0,
    labels: np.ndarray | None = None,
    guidance: float = 1.0,
    sampler: str = samplers.DEFAULT,
    noise: float = 0.0,
    steps: int = samplers.STEPS,
    grid: str = "uniform",
    threshold: Any = None,
    batch_size: int = 256,
    save_every: int | None = None,
    variance: str | None = None,
    ts: jax.Array | None = None,
    keep: Path | None = None,
) -> Generated:
    """Draw samples in chunks over all devices.

    Sample i depends on (seed, i) alone. All chunks have the same shape, so one compiled program is
    enough. The surplus of the last chunk is cut off.

    Args:
      trained: the network.
      num: number of samples.
      seed: of the samples.
      labels: the class of each, [num]; None for all classes together.
      guidance: classifier-free guidance.
      sampler: its name, of `samplers.SAMPLERS`.
      noise: the sampler's own option, 0 for the probability-flow ODE.
      steps: number of steps.
      grid: the name of their spacing.
      threshold: as `make_denoiser` takes it.
      batch_size: samples of a chunk, over all devices.
      save_every: keep every so many states of the first chunk; the last one if None.
      variance: of the ancestral sampler; the network's own, the learned one, or small, if None.
      ts: the times themselves, instead of steps and grid.
      keep: a folder for the chunks, each in a file whose name is a digest of everything that it
        depends on. A chunk that exists is read instead of drawn.
    Returns:
      Generated: the samples, and the trajectory of the first chunk.
    Raises:
      ValueError: a number is out of range, or a name is unknown.
      FloatingPointError: a sample is not finite.
    """
    require.counts(
        SimpleNamespace(num=num, batch_size=batch_size, steps=steps), num=1, batch_size=1, steps=1
    )
    ts = samplers.make_grid(trained.schedule, grid, steps) if ts is None else ts
    num_devices, event = jax.local_device_count(), trained.event_shape
    per_device = -(-min(batch_size, num) // num_devices)
    whole = per_device * num_devices
    mapped = program(
        trained, per_device, ts, seed=seed, guidance=guidance, sampler=sampler, noise=noise,
        threshold=threshold, variance=variance, save_every=save_every,
    )  # fmt: skip
    settings = [seed, guidance, sampler, noise, threshold, variance, whole, save_every]
    settings += [*trained.settings, labels is None]
    made_of = cache.digest(settings, (trained.params, trained.schedule, ts))
    starts = range(0, num, whole)
    chunks = [np.minimum(np.arange(start, start + whole), num - 1) for start in starts]
    given = [None if labels is None else jnp.asarray(labels[chunk]) for chunk in chunks]
    names = (
        f"{start}-{cache.digest([made_of, start], label)}.npz"
        for start, label in zip(starts, given, strict=True)
    )

    def make(numbers: list[int]) -> list[dict[str, np.ndarray]]:
        (n,) = numbers
        first = jnp.arange(starts[n], starts[n] + whole, per_device)
        trajectory = mapped(trained.params, first, training.split(given[n], num_devices))
        states = np.asarray(trajectory).reshape(-1, whole, *event)
        require_finite(states[-1])
        return [{"x": states if n == 0 else states[-1:]}]

    files = [None if keep is None else keep / name for name in names]
    pieces = [part["x"] for part in cache.resumable(files, make, name="sampling")]
    return Generated(np.concatenate([piece[-1] for piece in pieces])[:num], pieces[0][:, :num])


def require_finite(x: np.ndarray) -> None:
    """Refuse samples [N, *D] that hold NaN or infinity, before they are saved or measured."""
    bad = int(np.sum(~np.isfinite(x).reshape(len(x), -1).all(axis=1)))
    if bad:
        raise FloatingPointError(
            f"samples: {bad} of {len(x)} are not finite; take more steps, another sampler, or "
            "--threshold static"
        )


def reverse_variance(trained: Trained) -> str:
    """The variance of a network's own ancestral steps."""
    return trained.variance or ("learned" if trained.learned_variance else "small")


def states(
    trained: Trained,
    key: jax.Array,
    num: int,
    ts: jax.Array,
    *,
    label: Any = None,
    guidance: Any = 1.0,
    sampler: str = samplers.DEFAULT,
    noise: float = 0.0,
    threshold: Any = None,
    variance: str | None = None,
    save_every: int | None = None,
    first: Any = 0,
) -> jax.Array:
    """The saved states of samples by a sampler's name, [S, num, *D], to be compiled."""

    def kernel(denoiser: Any, schedule: jd.Schedule) -> jd.Kernel:
        steps = variance or reverse_variance(trained)
        return samplers.make_kernel(sampler, denoiser, schedule, noise, variance=steps)

    trajectory = jd.draw(
        key,
        trained.denoiser(label, guidance, threshold=threshold),
        trained.schedule,
        (num, *trained.event_shape),
        kernel=kernel,
        ts=ts,
        first=first,
        save_every=len(ts) - 1 if save_every is None else save_every,
    ).trajectory
    assert trajectory is not None  # asked for
    return trajectory


def program(
    trained: Trained,
    per_device: int,
    ts: jax.Array,
    *,
    seed: int = 0,
    guidance: float = 1.0,
    sampler: str = samplers.DEFAULT,
    noise: float = 0.0,
    threshold: Any = None,
    variance: str | None = None,
    save_every: int | None = None,
) -> Callable[[Any, jax.Array, jax.Array | None], Any]:
    """The compiled sampler of (params, first [devices], labels [devices, per_device] or None).

    `first` holds the number of each device's first sample. The sampler returns the saved states,
    [S, devices, per_device, *D].
    """
    key = key_of(seed, "samples")

    def chunk(params: Any, first: jax.Array, label: jax.Array | None) -> jax.Array:
        return states(
            trained.with_params(params), key, per_device, ts, label=label, guidance=guidance,
            sampler=sampler, noise=noise, threshold=threshold, variance=variance,
            save_every=save_every, first=first,
        )  # fmt: skip

    return jax.pmap(chunk, in_axes=(None, 0, 0), out_axes=1, devices=jax.local_devices())
