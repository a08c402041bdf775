"""Data for the scripts: images with their grey levels, and 2-D densities, behind one face."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxdiff import data

TOY_EXAMPLES = {"train": 50_000, "test": 10_000}


@dataclass(frozen=True)
class Dataset:
    """What a script needs to know of a data set; examples come as the process sees them, images in [-1, 1]."""

    name: str
    event_shape: tuple[int, ...]
    num_classes: int | None
    levels: int | None
    splits: dict[str, Any]

    def examples(self, split: str, index: Any = slice(None)) -> tuple[np.ndarray, np.ndarray | None]:
        """Examples and labels of a split, [N, *D] float32 and [N] int32 or None."""
        part = self.splits[split]
        return self.unit(part.images[index]), None if part.labels is None else part.labels[index]

    def head(self, split: str, num: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The first examples of a split."""
        return self.examples(split, slice(num))

    def batches(self, batch_size: int, seed: int) -> Callable[[int], tuple[np.ndarray, np.ndarray | None]]:
        """The batch of each step, a function of (seed, step) alone: a resumed run sees what it would have seen."""
        batches = data.batches(
            self.splits["train"], batch_size=batch_size, seed=seed, rank=jax.process_index(), world=jax.process_count()
        )

        def batch(step: int) -> tuple[np.ndarray, np.ndarray | None]:
            rows = batches[step]
            return self.unit(rows.images), rows.labels

        return batch

    def unit(self, images: np.ndarray) -> np.ndarray:
        """Images in [-1, 1]; vectors as they are."""
        return images if self.levels is None else data.to_unit(images, self.levels)


def load(config: Any) -> Dataset:
    """The data set of a run."""
    if config.dataset in data.toy.names():
        keys = jax.random.split(jax.random.key(2015))  # the set is one and the same, whatever a run's seed
        splits = {
            name: data.Split(np.asarray(data.toy.sample(key, config.dataset, num)), None)
            for key, (name, num) in zip(keys, TOY_EXAMPLES.items(), strict=True)
        }
        return Dataset(config.dataset, (2,), None, None, splits)
    images = data.load(config.dataset, data_dir=config.data_dir)
    splits = {"train": images.train, "test": images.test}
    return Dataset(config.dataset, images.event_shape, images.num_classes, images.levels, splits)
