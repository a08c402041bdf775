"""The observations of the posterior script: tasks with their likelihood, noise and picture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxdiff import observations
from jaxdiff._extras import needs
from jaxdiff.runs import memory
from jaxdiff.runs.datasets import Dataset

TaskName = Literal["inpaint", "half", "denoise", "deblur", "superres", "linear", "poisson", "class"]
# Standard deviations of the noise, images in [-1, 1].
NOISE = {"inpaint": 0.1, "half": 0.1, "denoise": 0.5, "deblur": 0.1, "superres": 0.1, "linear": 0.1}
LARGEST = 4096  # values of an image whose matrices, size x size, are decomposed in a minute
LEAST_CLASSIFIED = 5  # training images of a class; early stopping takes a tenth of all
NEVER = -30.0  # logit of a class without training images
# Noise in the classifier's training images: its gradients are smooth and it is not over-confident.
CLASSIFIER_NOISE = 0.3


@dataclass(frozen=True)
class Task:
    """One kind of observation.

    Fields:
      name: of the task.
      draw: (key, x_0 [*D], label) -> y, a draw of p(y | x_0); a label of -1 is unknown.
      likelihood: y -> the log-likelihood of one x_0, a pytree that is an argument of the compiled
        program.
      picture: y -> an image [H, W, C] in [-1, 1] to look at.
      residuals: (y, x [N, *D]) -> residuals in units of their standard deviation, [N, M]; None
        where y is a class.
      noise_std: the standard deviation of y's noise, or about that.
      hidden: [*D], 1 where the observation leaves the image open.
      linear: whether the likelihood is an `Observation`, with a linear operator.
    """

    name: str
    draw: Callable[[jax.Array, jax.Array, Any], jax.Array]
    likelihood: Callable[[jax.Array], Any]
    picture: Callable[[np.ndarray], np.ndarray]
    residuals: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
    noise_std: float
    hidden: np.ndarray
    linear: bool = True

    @property
    def normal(self) -> bool:
        """Whether the likelihood is an `Observation`, or has one that is near it."""
        return self.linear or self.name == "poisson"

    @property
    def masked(self) -> bool:
        """Whether some pixels are seen and others not at all."""
        return self.name in ("inpaint", "half", "denoise")


def make_task(name: str, dataset: Dataset, *, noise: float | None, peak: float, seed: int) -> Task:
    """The task of a name, for images of this data set."""
    if len(dataset.event_shape) != 3:
        raise ValueError(
            f"run: expected one of images, got {dataset.name} of shape {dataset.event_shape}"
        )
    if noise is not None and noise <= 0:
        raise ValueError(f"noise: expected a positive standard deviation, got {noise}")
    if noise is not None and name not in NOISE:
        raise ValueError(f"noise: expected none with --task {name}, which has none of its own")
    if peak <= 0:
        raise ValueError(f"peak: expected a positive mean count, got {peak}")
    if name == "class":
        return _class(dataset, seed)
    if name == "poisson":
        return _poisson(dataset, peak)
    return _linear(name, dataset, NOISE[name] if noise is None else noise, seed)


def _linear(name: str, dataset: Dataset, noise: float, seed: int) -> Task:
    """Linear observations with Gaussian noise; the operator is the observation's own."""
    shape = dataset.event_shape
    height, width, _ = shape
    factor = next((f for f in (max(2, height // 7), 2) if height % f == width % f == 0), 1)
    shown = _shown(name, shape)
    seen = jnp.asarray(shown)
    matrix = _projection(int(np.prod(shape)), seed) if name == "linear" else jnp.zeros((1, 1))
    inverse = np.asarray(matrix).T
    make = {
        "inpaint": lambda y: observations.mask(y, seen, noise),
        "half": lambda y: observations.mask(y, seen, noise),
        # A mask of everything: the same pytree as inpainting's, and `noisy` by another name.
        "denoise": lambda y: observations.mask(y, seen, noise),
        "deblur": lambda y: observations.blur(y, height / 8, noise),
        "superres": lambda y: observations.downsample(y, factor, noise),
        "linear": lambda y: observations.linear(matrix, y, noise),
    }[name]
    sizes = {"superres": (height // factor, width // factor, shape[2]), "linear": (len(matrix),)}
    operator = make(jnp.zeros(sizes.get(name, shape))).operator

    def draw(key: jax.Array, x_0: jax.Array, label: Any) -> jax.Array:
        seen = operator(x_0)
        return seen + noise * jax.random.normal(key, seen.shape)

    def residuals(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        out = (np.asarray(jax.vmap(operator)(jnp.asarray(x))) - y) / noise
        return out[:, shown > 0] if out.shape[1:] == shown.shape else out.reshape(len(x), -1)

    pictures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "superres": lambda y: y.repeat(factor, 0).repeat(factor, 1),
        "linear": lambda y: (inverse @ y).reshape(shape),
        "inpaint": lambda y: np.where(shown > 0, y, 0),
        "half": lambda y: np.where(shown > 0, y, 0),
    }
    hidden = 1 - shown if name in ("inpaint", "half") else np.ones(shape)
    return Task(name, draw, make, pictures.get(name, lambda y: y), residuals, noise, hidden)


def require_matrix(what: str, size: int) -> None:
    """Refuse a matrix over all pairs of an image's values if it is too large."""
    if size > LARGEST:
        raise ValueError(
            f"{what}: expected images of at most {LARGEST} values, because its matrix would have "
            f"{size}^2 entries, {4 * size**2 / 2**30:.1f} GiB, and be decomposed; take another "
            "method or task"
        )


def _projection(size: int, seed: int) -> jax.Array:
    """Random orthonormal directions, [size / 4, size]."""
    require_matrix("linear", size)
    directions = np.random.default_rng([seed, 2015]).normal(size=(size, size // 4))
    return jnp.asarray(np.linalg.qr(directions)[0].T, jnp.float32)


def _shown(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """1 where a pixel is seen: around a square in the middle, in the upper half, or everywhere."""
    shown = np.ones(shape, np.float32)
    height, width, _ = shape
    if name == "inpaint":
        shown[height // 4 : height - height // 4, width // 4 : width - width // 4] = 0
    if name == "half":
        shown = np.array(observations.half(shape, "top"), np.float32)
    return shown


def _poisson(dataset: Dataset, peak: float) -> Task:
    def rate(x_0: Any) -> jax.Array:
        return peak * jnp.maximum((x_0 + 1) / 2, 1e-3)

    def draw(key: jax.Array, x_0: jax.Array, label: Any) -> jax.Array:
        return jax.random.poisson(key, rate(x_0)).astype(x_0.dtype)

    def residuals(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        expected = np.asarray(rate(x))
        return ((y[None] - expected) / np.sqrt(expected)).reshape(len(x), -1)

    return Task(
        "poisson", draw, lambda y: observations.poisson(y, peak), lambda y: 2 * y / peak - 1,
        residuals, 2 * (0.5 / peak) ** 0.5, np.ones(dataset.event_shape), linear=False,
    )  # fmt: skip


def _class(dataset: Dataset, seed: int) -> Task:
    """A label, seen by a classifier that is trained here; its picture is the class mean."""
    logits, means = _classifier(dataset, seed)

    def draw(key: jax.Array, x_0: jax.Array, label: Any) -> jax.Array:
        drawn = jax.random.categorical(key, logits(x_0))
        return jnp.where(label < 0, drawn, label)

    return Task(
        "class", draw, lambda y: observations.classified(logits, y), lambda y: means[int(y)], None,
        1.0, np.ones(dataset.event_shape), linear=False,
    )  # fmt: skip


def _classifier(dataset: Dataset, seed: int) -> tuple[Partial, np.ndarray]:
    """Train a perceptron on noisy images; return its logits of one image, and each class's mean."""
    neural_network = needs("sklearn.neural_network", extra="cli")
    x, label = dataset.head("train", memory.affordable(10_000, dataset.event_shape))
    if label is None or dataset.num_classes is None:
        raise ValueError(f"task: expected a data set with labels for class, got {dataset.name}")
    seen, num_classes = np.unique(label), dataset.num_classes
    if len(seen) < 2 or len(x) < LEAST_CLASSIFIED * len(seen):
        raise ValueError(
            f"task: expected at least 2 classes and {LEAST_CLASSIFIED} training images for each "
            f"with --task class, got {len(seen)} and {len(x)} in all"
        )
    random = np.random.default_rng(seed)
    noisy = np.concatenate([x, x + CLASSIFIER_NOISE * random.normal(size=x.shape)]).reshape(
        2 * len(x), -1
    )
    network = neural_network.MLPClassifier(
        (64,), alpha=1e-2, early_stopping=True, random_state=seed
    )
    network.fit(noisy, np.concatenate([label, label]))
    hidden, last = zip(network.coefs_, network.intercepts_, strict=True)
    layers = [hidden, _of_all_classes(last, network.classes_, num_classes)]
    layers = [(jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)) for w, b in layers]
    means = np.stack(
        [
            x[label == number].mean(0) if number in seen else x.mean(0)
            for number in range(num_classes)
        ]
    )
    return Partial(_perceptron, layers), means


def _of_all_classes(
    layer: tuple[np.ndarray, np.ndarray], seen: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The last layer with a logit for every class.

    scikit-learn has one logit for two classes, and leaves out classes that it did not see.
    """
    weights, bias = layer
    if len(seen) == 2:
        weights, bias = np.hstack([0 * weights, weights]), np.array([0, bias[0]])
    every, shift = np.zeros((len(weights), num_classes)), np.full(num_classes, NEVER)
    every[:, seen], shift[seen] = weights, bias
    return every, shift


def _perceptron(layers: list[tuple[jax.Array, jax.Array]], x_0: jax.Array) -> jax.Array:
    (first, bias), (last, shift) = layers
    return jax.nn.relu(x_0.reshape(-1) @ first + bias) @ last + shift
