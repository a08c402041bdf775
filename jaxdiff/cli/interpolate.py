"""Interpolate between images through the latents of the probability-flow ODE.

jaxdiff interpolate RUN
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import pictures
from jaxdiff.runs import loading, memory, require, samplers, sampling
from jaxdiff.runs.seeds import key_of

END = 1e-3  # where encoding starts: at t = 0 data without noise do not determine eps


@dataclass(frozen=True)
class Options:
    """Which strips."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run that `jaxdiff train` made, or of a network from elsewhere; or mnist, the
    network that ships with jaxdiff."""
    strips: int = 6
    """Number of pairs of held-out images, and of latents that are shown in every class."""
    columns: int = 10
    """Images in a strip, the two ends included."""
    steps: int = 50
    """Steps each way."""
    seed: int = 0
    """Which held-out images, and which latents."""
    dataset: str | None = None
    """Data set to measure on, as `jaxdiff train` takes it; the one that the network was trained on
    if not given."""
    data_dir: Path | None = None
    """Where TFDS keeps it; the run's own place if not given."""


def between(run: loading.Run, x_0: jax.Array, y_0: jax.Array, options: Options) -> np.ndarray:
    """Return strips [K, columns, *D] between images [K, *D]: spherical interpolation of latents."""
    ts = jd.grids.uniform(options.steps, end=END)
    num = options.columns

    @jax.jit
    def encode(params: object, x: jax.Array) -> jax.Array:
        return jd.sampling.encode(_kernel(run, params, None), x, ts)

    @jax.jit
    def decode(params: object, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        mixed = jd.sampling.slerp(x, y, weights)
        return jd.sample(jax.random.key(0), _kernel(run, params, None), mixed, ts).x

    size = run.config.batch_size
    both = memory.in_chunks(Partial(encode, run.trained.params), size, np.concatenate([x_0, y_0]))
    ends = [np.repeat(latents, num, axis=0) for latents in np.split(both, 2)]
    weights = np.tile(np.linspace(0, 1, num, dtype=np.float32), len(x_0))
    x = memory.in_chunks(Partial(decode, run.trained.params), size, *ends, weights)
    return x.reshape(-1, num, *run.dataset.event_shape)


def through_classes(run: loading.Run, options: Options) -> np.ndarray:
    """One latent in every class, [K, num_classes, *D]."""
    num_classes, event = run.trained.num_classes, run.dataset.event_shape
    assert num_classes is not None  # the caller has seen to it
    labels = np.tile(np.arange(num_classes), options.strips)
    latents = jd.prior_sample(
        key_of(options.seed, "latents"), run.trained.schedule, (options.strips, *event)
    )

    @jax.jit
    def decode(params: object, x: jax.Array, labels: jax.Array) -> jax.Array:
        return jd.sample(
            jax.random.key(0), _kernel(run, params, labels), x, jd.grids.uniform(options.steps)
        ).x

    repeated = np.repeat(latents, num_classes, axis=0)
    x = memory.in_chunks(
        Partial(decode, run.trained.params), run.config.batch_size, repeated, labels
    )
    return x.reshape(options.strips, num_classes, *event)


def _kernel(run: loading.Run, params: object, labels: jax.Array | None) -> jd.Kernel:
    denoiser = run.trained.with_params(params).denoiser(labels)
    return samplers.make_kernel("unipc_2", denoiser, run.trained.schedule, 0.0)


def pairs(run: loading.Run, options: Options) -> tuple[jax.Array, jax.Array]:
    """Return held-out images and as many others; each pair has two classes if possible."""
    split = run.dataset.splits["test"]
    images, labels = split.images, split.labels
    if options.strips > len(images) // 20:
        raise ValueError(
            f"strips: expected at most a 20th of the {len(images)} held-out images, "
            f"got {options.strips}"
        )
    order = np.random.default_rng(options.seed).permutation(len(images))
    first, rest = order[: options.strips], order[options.strips :].tolist()
    second = []
    for i in first:
        differing = (j for j in rest if labels is None or labels[j] != labels[i])
        second.append(next(differing, rest[0]))
        rest.remove(second[-1])
    x_0, y_0 = (run.dataset.examples("test", np.asarray(index))[0] for index in (first, second))
    return jnp.asarray(x_0), jnp.asarray(y_0)


def main(options: Options) -> np.ndarray:
    """Make the strips, draw them and save them."""
    require.seed(options.seed)
    require.counts(options, strips=1, columns=2, steps=2)
    run = loading.load_run(options.run, dataset=options.dataset, data_dir=options.data_dir)
    if len(run.dataset.event_shape) != 3:
        raise ValueError(f"run: expected one of images, got {run.config.dataset}")
    run.trained.model.check_label(None)  # images are encoded without their labels
    x_0, y_0 = pairs(run, options)
    strips = between(run, x_0, y_0, options)
    sampling.require_finite(strips)
    error = np.abs(strips[:, [0, -1]] - np.stack([x_0, y_0], axis=1)).mean()
    print(
        f"the ends, encoded and decoded, differ from the images by {error:.4f} on average "
        "(images in [-1, 1])"
    )
    ends = [np.asarray(v)[:, None] for v in (x_0, y_0)]
    shown = {
        "held-out image, between latents, held-out image": np.concatenate(
            [ends[0], strips, ends[1]], axis=1
        )
    }
    if run.trained.num_classes is not None:
        shown["one latent in every class"] = through_classes(run, options)
    pictures.strips(shown, run.folder / "interpolation.png")
    with training.atomic(run.folder / "interpolation.npz") as draft:
        np.savez_compressed(draft, strips=strips)
    print(f"look at {run.folder / 'interpolation.png'}")
    return strips
