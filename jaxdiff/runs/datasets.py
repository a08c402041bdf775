"""Data for the scripts: images with grey levels, and 2-D densities, as one type."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import jax
import numpy as np

from jaxdiff import data
from jaxdiff.runs import own
from jaxdiff.runs.config import FOLDER
from jaxdiff.runs.source import Source

TOY_EXAMPLES = {"train": 50_000, "test": 10_000}


@dataclass(frozen=True)
class Facts:
    """What a network knows of its data: enough to draw samples without the data."""

    event_shape: tuple[int, ...]
    num_classes: int | None
    levels: int | None
    source: Source = field(default_factory=Source)


@dataclass(frozen=True)
class Dataset:
    """A data set as a script needs it; its examples are images in [-1, 1], or vectors.

    The examples are read when they are first asked for.
    """

    name: str
    event_shape: tuple[int, ...]
    num_classes: int | None
    levels: int | None
    read: Callable[[], dict[str, data.Split]]
    source: Source = field(default_factory=Source)

    @property
    def facts(self) -> Facts:
        """What a network needs to know of the set, without its examples."""
        return Facts(self.event_shape, self.num_classes, self.levels, self.source)

    @cached_property
    def splits(self) -> dict[str, data.Split]:
        """The examples, by the name of their split."""
        return self.read()

    @property
    def is_here(self) -> bool:
        """Whether the examples can be read on this machine."""
        try:
            return bool(self.splits)
        except (OSError, ValueError):  # missing, or in a form that cannot be read
            return False

    def examples(
        self, split: str, index: Any = slice(None)
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Examples and labels of a split, [N, *D] float32 and [N] int32 or None."""
        part = self.splits[split]
        return self.unit(part.images[index]), None if part.labels is None else part.labels[index]

    def head(self, split: str, num: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The first examples of a split."""
        return self.examples(split, slice(num))

    def batches(
        self,
        batch_size: int,
        seed: int,
        *,
        rank: int | None = None,
        world: int | None = None,
        flip: bool = False,
    ) -> Callable[[int], tuple[np.ndarray, np.ndarray | None]]:
        """The batch of each step, a function of (seed, step) alone, so a run can be resumed.

        A process has its own rows of it: the part `rank` of `world`, by default of all processes.
        Those of a set that stays on disk are read ahead.
        """
        train = self.splits["train"]
        batches = data.batches(
            train,
            batch_size=batch_size,
            seed=seed,
            rank=jax.process_index() if rank is None else rank,
            world=jax.process_count() if world is None else world,
            flip=flip,
        )

        def batch(step: int) -> tuple[np.ndarray, np.ndarray | None]:
            rows = batches[step]
            return self.unit(rows.images), rows.labels

        return data.ahead(batch) if isinstance(train.images, data.OnDisk) else batch

    def unit(self, images: np.ndarray) -> np.ndarray:
        """Images in [-1, 1]; vectors as they are."""
        return images if self.levels is None else data.to_unit(images, self.levels)

    def in_units(self, x: np.ndarray) -> np.ndarray | None:
        """Vectors in the units of their table; None for other data."""
        if not self.source.scale:
            return None
        return x * np.array(self.source.scale) + np.array(self.source.centre)


def of(config: Any) -> Dataset:
    """Return the data set of a run.

    Args:
      config: the configuration of the run.
    Returns:
      Dataset, whose examples are read when they are first asked for.
    Raises:
      ValueError: the set does not exist, or it lacks held-out examples.
    """
    if config.dataset == FOLDER or config.folder is not None:
        mine = own.read(config)
        for line in mine.lines:
            _say(line)
        return Dataset(*mine[:4], lambda: mine.splits, mine.source)
    if config.dataset in data.toy.names():
        return Dataset(config.dataset, (2,), None, None, partial(_toy, config.dataset))
    images = data.load(config.dataset, data_dir=config.data_dir)
    parts = data.hold_out(images)  # refuses a set without held-out examples at once
    return Dataset(
        config.dataset,
        images.event_shape,
        images.num_classes,
        images.levels,
        lambda: _splits(images.name, parts),
    )


def later(config: Any, facts: Facts) -> Dataset:
    """A data set whose facts are known: its examples are loaded only when they are needed.

    So a network draws samples on a machine that does not have its data.
    """
    name = config.dataset
    if name == FOLDER and config.folder is not None:
        name, read = config.folder.stem, partial(_read_own, config, facts)
    elif name in data.toy.names():
        read = partial(_toy, name)
    else:
        read = partial(_read_images, name, config.data_dir)
    return Dataset(name, facts.event_shape, facts.num_classes, facts.levels, read, facts.source)


def _read_own(config: Any, facts: Facts) -> dict[str, data.Split]:
    mine = own.read(config, known=facts)
    if mine.source.fingerprint != facts.source.fingerprint:
        _say(f"{config.folder} has changed since the run began: this is what it holds now")
    return mine.splits


def _read_images(name: str, data_dir: Any) -> dict[str, data.Split]:
    return _splits(name, data.hold_out(data.load(name, data_dir=data_dir)))


def _splits(name: str, parts: data.Parts) -> dict[str, data.Split]:
    """The examples by their use: `test` is the held-out split, whatever the set calls it."""
    if parts.source != "the split test":
        _say(f"{name}: held out: {parts.source}")
    if isinstance(parts.train.images, data.OnDisk):
        _say(f"{name}: {parts.train.images.nbytes / 1e9:.2f} GB of images are read by index")
    return {"train": parts.train, "test": parts.held_out}


@cache
def _say(line: str) -> None:
    """Print a line, once in a program."""
    print(line)


def _toy(name: str) -> dict[str, data.Split]:
    keys = jax.random.split(jax.random.key(2015))  # the set does not depend on the run's seed
    return {
        split: data.Split(np.asarray(data.toy.sample(key, name, num)), None)
        for key, (split, num) in zip(keys, TOY_EXAMPLES.items(), strict=True)
    }
