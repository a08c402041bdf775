"""An independent classifier of a labelled image set, which reads samples and gives features."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import data, training
from jaxdiff.runs import cache, loading, memory
from jaxdiff.runs.datasets import Dataset
from jaxdiff.runs.seeds import key_of

BATCH, READ, LEARNING_RATE = 256, 1000, 2e-3
NUMBERS = 2**22  # values in a batch of images: at least 256 images of 64x64x3, or 21 of 256x256x3
MOST_STEPS, MOST_EPOCHS = 1200, 60  # whichever is less
VERSION = 2  # of the code that makes the classifier: one of another version is not read
FEATURES = 128


class Network(nn.Module):
    """Three convolutions and two layers, for images of any size and number of channels."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.relu(nn.Conv(32, (5, 5), 2 if x.shape[1] >= 16 else 1, name="conv_1")(x))
        x = nn.relu(nn.Conv(64, (3, 3), name="conv_2")(x))
        x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
        x = nn.relu(nn.Conv(128, (3, 3), name="conv_3")(x))
        x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
        features = nn.relu(nn.Dense(FEATURES, name="features")(x.reshape(len(x), -1)))
        return features, nn.Dense(self.num_classes, name="head")(features)


class Recogniser:
    """The trained classifier: classes and features of images in [-1, 1]."""

    def __init__(self, network: Network, params: Any) -> None:
        self._apply = jax.jit(lambda x: network.apply({"params": params}, x))

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features [N, FEATURES] and most probable class [N] of images, which are first clipped."""
        features, logits = memory.in_chunks(
            lambda part: self._apply(np.clip(part, -1, 1)), at_once(READ, x), x
        )
        return features, logits.argmax(1)

    def log_probabilities(self, x: np.ndarray) -> np.ndarray:
        """Log-probabilities of the classes of images, [N, C], which are first clipped."""
        _, logits = memory.in_chunks(
            lambda part: self._apply(np.clip(part, -1, 1)), at_once(READ, x), x
        )
        return np.asarray(jax.nn.log_softmax(jnp.asarray(logits), axis=1))

    def read(self, dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Features and classes of a whole split; its images become floats in chunks."""
        images = dataset.splits[split].images
        step = at_once(READ, images)
        parts = [
            self(dataset.examples(split, slice(start, start + step))[0])
            for start in range(0, len(images), step)
        ]
        features, classes = zip(*parts, strict=True)
        return np.concatenate(features), np.concatenate(classes)


def _identity(images: np.ndarray | data.OnDisk) -> Any:
    """Arrays that change when the images do; those on disk are not read for it."""
    if not isinstance(images, data.OnDisk):
        return images
    return np.frombuffer(images.identity.encode(), np.uint8), images.rows


def at_once(most: int, images: np.ndarray | data.OnDisk) -> int:
    """Number of images that the classifier takes at a time: fewer if the images are large."""
    return max(1, min(most, NUMBERS // int(np.prod(images.shape[1:]))))


def shifted(key: jax.Array, image: jax.Array) -> jax.Array:
    """Move an image by at most 1/14 of its side, or by a pixel; -1 fills the free rim."""
    most = max(1, image.shape[0] // 14)
    padded = jnp.pad(image, ((most, most), (most, most), (0, 0)), constant_values=-1.0)
    row, column = jax.random.randint(key, (2,), 0, 2 * most + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def trained(run: loading.Run, *, steps: int | None = None) -> Recogniser:
    """Train the classifier on the run's training images, or read one that was trained before."""
    dataset, labels = run.dataset, run.dataset.splits["train"].labels
    assert labels is not None  # the caller has seen to it
    if steps is None:
        steps = min(MOST_STEPS, MOST_EPOCHS * max(1, len(labels) // BATCH))
    network = Network(int(labels.max()) + 1)
    folder = (
        run.folder
        / "recogniser"
        / cache.digest([VERSION, steps], (_identity(dataset.splits["train"].images), labels))
    )
    optimizer = training.make_optimizer(LEARNING_RATE, num_steps=steps, warmup=min(100, steps // 2))

    def initial() -> training.TrainState:
        keys = [key_of(0, f"recogniser's {what}") for what in ("parameters", "training")]
        params = network.init(keys[0], jnp.zeros((1, *dataset.event_shape)))["params"]
        return training.init_state(keys[1], params, optimizer)

    # Of two processes one trains it, and the other waits.
    with training.lock(folder, wait=True), training.Checkpoints(folder) as checkpoints:
        try:
            state = checkpoints.restore(jax.eval_shape(initial))
        except ValueError:  # it has been warned of; training takes a minute
            state = None
        if state is None:
            state = fit(network, dataset, jax.jit(initial)(), optimizer=optimizer, steps=steps)
            checkpoints.save(steps, state, loss=0.0)
    return Recogniser(network, state.ema_params)


def fit(
    network: Network, dataset: Dataset, state: training.TrainState, *, optimizer: Any, steps: int
) -> training.TrainState:
    """Train the classifier on all devices."""

    def loss(params: Any, rows: training.Rows, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, label = batch
        _, logits = network.apply({"params": params}, jax.vmap(shifted)(rows.keys, x))
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    images = dataset.splits["train"].images
    devices = jax.local_devices()[: len(images)]  # at least one image for each
    size = max(1, min(at_once(BATCH, images), len(images)) // len(devices)) * len(devices)
    step = training.make_step(loss, optimizer, ema_decay=0.995)
    batch = dataset.batches(size, 0, rank=0, world=1)  # each process trains its own, the same
    return training.fit(step, state, batch, steps, devices=devices, name="classifier")
