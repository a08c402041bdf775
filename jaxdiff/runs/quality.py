"""The quality of samples: read by a classifier, compared with real data, searched for copies."""

from typing import Any, NamedTuple

import numpy as np

import jaxdiff as jd
from jaxdiff._extras import needs
from jaxdiff.metrics import Comparison
from jaxdiff.runs import loading, memory, recogniser
from jaxdiff.runs.datasets import Dataset

REAL = "_real_vs_real"  # ends the name of a figure's floor


class Measured(NamedTuple):
    """Figures of samples; distance [N] and index [N] of their nearest training examples."""

    figures: dict[str, Any]
    distance: np.ndarray
    nearest: np.ndarray


def measure(
    run: loading.Run,
    x: np.ndarray,
    labels: np.ndarray | None,
    *,
    seed: int,
    classifier_steps: int | None,
) -> Measured:
    """All figures of samples. Each has a floor: the same figure for real data in place of samples.

    Samples are compared with held-out examples. The floor is that of training examples. The
    classifier knows those too well: for its features, one half of the held-out examples is compared
    with the other half.
    """
    num = len(x)
    random = np.random.default_rng(seed)
    held_out, train = run.dataset.splits["test"], run.dataset.splits["train"]
    real, _ = run.dataset.examples("test", random.permutation(held_out.num_examples)[:num])
    other, _ = run.dataset.examples("train", random.permutation(train.num_examples)[:num])
    found: dict[str, Any] = {"num_samples": num}
    _note(
        found,
        "nearest_neighbour_accuracy",
        jd.metrics.compare(jd.metrics.nearest_neighbour_accuracy, x, real, other),
    )
    distance, index = nearest(run.dataset, _shown(x))
    found |= copies(run.dataset, distance, real)
    if train.labels is None or held_out.labels is None or x.ndim != 4:
        return Measured(found, distance, index)
    read = recogniser.trained(run, steps=classifier_steps)
    held_out_features, classes = read.read(run.dataset, "test")
    found["classifier_held_out_accuracy"] = float(np.mean(classes == held_out.labels))
    features, classes = read(x)
    if labels is not None:
        hits = classes == labels
        found |= {
            "recognised": float(np.mean(hits)),
            "recognised_se": float(np.std(hits) / np.sqrt(num)),
        }
    halves = np.array_split(held_out_features[random.permutation(held_out.num_examples)], 2)
    seen = [part[: min(num, len(halves[1]))] for part in (features, *halves)]
    found["num_features"] = len(seen[0])
    for metric in (jd.metrics.frechet_distance, jd.metrics.precision, jd.metrics.recall):
        _note(found, f"features_{metric.__name__}", jd.metrics.compare(metric, *seen))
    return Measured(found, distance, index)


def _note(found: dict[str, Any], name: str, comparison: Comparison) -> None:
    for ending, estimate in (("", comparison.estimate), (REAL, comparison.floor)):
        found |= {f"{name}{ending}": estimate.value, f"{name}{ending}_se": estimate.standard_error}


def copies(dataset: Dataset, distance: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Compare the distances of samples and of held-out data to the nearest training example.

        ratio = median_i min_j |x_i - train_j| / median_i min_j |real_i - train_j|

    The ratio of a model that copies is far below 1, and many of its samples are nearer than all but
    1% of the held-out data.
    """
    usual, _ = nearest(dataset, real)
    return {
        "training_distance_ratio": float(np.median(distance) / np.median(usual)),
        "nearer_than_1_percent_of_held_out": float(np.mean(distance < np.quantile(usual, 0.01))),
    }


def _shown(x: np.ndarray) -> np.ndarray:
    """Images as a picture shows them; vectors as they are."""
    return np.clip(x, -1, 1) if x.ndim == 4 else x


def nearest(dataset: Dataset, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance [N] and index [N] of each example's nearest training example.

    The training examples are searched in chunks.
    """
    step = memory.affordable(50_000, dataset.event_shape)
    distance, index = np.full(len(x), np.inf), np.zeros(len(x), int)
    for start in range(0, dataset.splits["train"].num_examples, step):
        train, _ = dataset.examples("train", slice(start, start + step))
        search = (
            needs("sklearn.neighbors", extra="cli")
            .NearestNeighbors(n_neighbors=1, algorithm="brute")
            .fit(train.reshape(len(train), -1))
        )
        here, place = (a[:, 0] for a in search.kneighbors(x.reshape(len(x), -1)))
        distance, index = np.where(here < distance, (here, start + place), (distance, index))
    return distance, index.astype(int)
