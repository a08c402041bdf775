"""Training batches as a pure function of the step: no iterator has a state to save or divide."""

import dataclasses
import functools
import operator
from typing import SupportsIndex

import jax
import numpy as np

from jaxdiff import _checks
from jaxdiff.data.images import Split


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one batch, a pytree.

    Args:
      images: examples as they lie in the split, [b, *D].
      labels: int32 [b], or None.
      index: number of each row's sample since the start of training, uint32 [b] (it wraps after
        2^32 samples).
    """

    images: np.ndarray
    labels: np.ndarray | None
    index: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """What `batches` returns: `batches[step]` is the batch of that step, for every step >= 0."""

    split: Split
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1

    def __getitem__(self, step: SupportsIndex) -> Batch:
        """Return this process's rows of the batch of a step; ValueError where step is negative."""
        number = operator.index(step)
        if number < 0:
            raise ValueError(f"step: expected an int >= 0, got {number}")
        rows = self.batch_size // self.world
        samples = number * self.batch_size + self.rank * rows + np.arange(rows)
        examples = example_indices(samples, seed=self.seed, num_examples=self.split.num_examples)
        labels = None if self.split.labels is None else self.split.labels[examples]
        return Batch(self.split.images[examples], labels, samples.astype(np.uint32))


def batches(split: Split, *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Batches:
    """Describe an endless run of batches, shuffled anew every epoch.

        sample i = example permutation(seed, i // N)[i mod N]
        batch of a step = samples step * batch_size .. (step + 1) * batch_size - 1

    So every epoch visits each of the N examples once (a batch may straddle two epochs), training
    resumes anywhere from the step number alone, and the batch is the same over any number of
    processes: rank r has the r-th part of its rows.

    Args:
      split: the examples, [N, *D].
      batch_size: rows of the whole batch, over all processes, at most N.
      seed: chooses the permutations, in 0..2^64 - 1.
      rank: this process, in 0..world - 1.
      world: number of processes, a divisor of batch_size.
    Returns:
      Batches: `batches[step]` is a Batch with batch_size / world rows, NumPy.
    Raises:
      ValueError: a number is out of its range, or examples hold NaN or infinity.
    """
    _checks.positive_int("batch_size", batch_size)
    _checks.positive_int("world", world)
    if batch_size > split.num_examples:
        raise ValueError(
            f"batch_size: expected at most the {split.num_examples} examples there are, "
            f"got {batch_size}"
        )
    if batch_size % world:
        raise ValueError(f"batch_size: expected a multiple of world = {world}, got {batch_size}")
    if not 0 <= rank < world:
        raise ValueError(f"rank: expected an int in 0..{world - 1}, got {rank}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected an int in 0..2**64 - 1, got {seed}")
    _check_examples(split)
    return Batches(split, batch_size, seed, rank, world)


def example_indices(samples: np.ndarray, *, seed: int, num_examples: int) -> np.ndarray:
    """Map numbers of samples since the start, ascending int [b], to examples, int64 [b]."""
    epochs, positions = np.divmod(samples, num_examples)
    parts = [
        _permutation(seed, epoch, num_examples)[positions[epochs == epoch]]
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
    ]
    return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of one epoch, int64 [N].

    Sorting raw draws of a counter-based generator keeps runs repeatable: NumPy promises the stream
    of a bit generator for all versions, but not that of `Generator.permutation`. Stable, so that
    even equal draws have one order.
    """
    draws = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    return np.argsort(draws, kind="stable")


def _check_examples(split: Split) -> None:
    if split.labels is not None and len(split.labels) != split.num_examples:
        raise ValueError(
            f"labels: expected one an example, {split.num_examples}, got {len(split.labels)}"
        )
    if np.issubdtype(split.images.dtype, np.floating):
        bad = ~np.isfinite(split.images).reshape(split.num_examples, -1).all(axis=1)
        if bad.any():
            raise ValueError(
                "images: expected finite numbers, "
                f"got NaN or infinity in {bad.sum()} of {bad.size} examples"
            )
