"""Training batches as a pure function of the step: no iterator has a state to save or divide."""

import dataclasses
import functools
import operator
import threading
from typing import SupportsIndex

import jax
import numpy as np

from jaxdiff import _checks
from jaxdiff.data.images import Split

# Examples of an order that is kept as a table: at most 64 MiB, and 400 MiB while it is sorted.
LARGEST_TABLE = 2**24
ROUNDS = 8


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
    flip: bool = False

    def __getitem__(self, step: SupportsIndex) -> Batch:
        """Return this process's rows of the batch of a step; ValueError where step is negative."""
        number = operator.index(step)
        if number < 0:
            raise ValueError(f"step: expected an int >= 0, got {number}")
        rows = self.batch_size // self.world
        samples = number * self.batch_size + self.rank * rows + np.arange(rows)
        examples = example_indices(samples, seed=self.seed, num_examples=self.split.num_examples)
        images = self.split.images[examples]
        if self.flip:
            mirrored = images[:, :, ::-1]
            images = np.where(_coins(samples, self.seed)[:, None, None, None], mirrored, images)
        labels = None if self.split.labels is None else self.split.labels[examples]
        return Batch(images, labels, samples.astype(np.uint32))


def batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    flip: bool = False,
) -> Batches:
    """Describe an endless run of batches, shuffled anew every epoch.

        sample i = example permutation(seed, i // N)[i mod N]
        batch of a step = samples step * batch_size .. (step + 1) * batch_size - 1

    So every epoch visits each of the N examples once (a batch may straddle two epochs), training
    resumes anywhere from the step number alone, and the batch is the same over any number of
    processes: rank r has the r-th part of its rows.

    Up to 2^24 examples a permutation is a table of 4 N bytes. Of more it is computed for the rows
    of a batch alone, and takes no memory.

    Args:
      split: the examples, [N, *D], in memory or on disk.
      batch_size: rows of the whole batch, over all processes, at most N.
      seed: chooses the permutations, in 0..2^64 - 1.
      rank: this process, in 0..world - 1.
      world: number of processes, a divisor of batch_size.
      flip: mirror each image from left to right, or leave it, by a fair coin of (seed, i).
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
    if flip and split.images.ndim != 4:
        raise ValueError(f"flip: expected images, [N, H, W, C], got {list(split.images.shape)}")
    _check_examples(split)
    return Batches(split, batch_size, seed, rank, world, flip)


def example_indices(samples: np.ndarray, *, seed: int, num_examples: int) -> np.ndarray:
    """Map numbers of samples since the start, ascending int [b], to examples, int64 [b]."""
    epochs, positions = np.divmod(samples, num_examples)
    parts = [
        _ordered(positions[epochs == epoch], seed, epoch, num_examples)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
    ]
    return np.concatenate(parts)


def _ordered(positions: np.ndarray, seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The examples at some positions of an epoch's order, int64 [b]."""
    if num_examples > LARGEST_TABLE:
        return _computed(positions, seed, epoch, num_examples)
    with _sorting:  # of two threads that need an order one makes it
        order = _permutation(seed, epoch, num_examples)
    return order[positions].astype(np.int64)


_sorting = threading.Lock()


@functools.lru_cache(maxsize=2)  # a batch lies in two epochs at most
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of one epoch, uint32 [N].

    Sorting raw draws of a counter-based generator keeps runs repeatable: NumPy promises the stream
    of a bit generator for all versions, but not that of `Generator.permutation`. Stable, so that
    even equal draws have one order.
    """
    return np.argsort(_draws(seed, epoch, num_examples), kind="stable").astype(np.uint32)


def _computed(positions: np.ndarray, seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The examples at some positions of an order that is no table, int64 [b].

    A Feistel network with keys of (seed, epoch) permutes 0..4^k - 1, the smallest such range that
    holds all N. Where it leaves 0..N - 1 it is applied again until it comes back (cycle walking),
    four times at most on average. So it permutes 0..N - 1.

    Source: Luby and Rackoff 1988; Black and Rogaway 2002, Ciphers with arbitrary finite domains.
    """
    half = np.uint64((int(num_examples - 1).bit_length() + 1) // 2)
    mask, keys = (np.uint64(1) << half) - np.uint64(1), _draws(seed, epoch, ROUNDS)
    found, outside = positions.astype(np.uint64), np.ones(len(positions), bool)
    while outside.any():
        left, right = found[outside] >> half, found[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        found[outside] = left << half | right
        outside = found >= num_examples
    return found.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Hash numbers, uint64: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def _draws(seed: int, epoch: int, num: int) -> np.ndarray:
    """Raw draws of an epoch, uint64 [num]."""
    return np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num)


def _coins(samples: np.ndarray, seed: int) -> np.ndarray:
    """A coin for each sample, bool [b]: no epoch has the number of their draws."""
    return _mixed(samples.astype(np.uint64) ^ _draws(seed, 2**64 - 1, 1)) >> np.uint64(63) == 1


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
