"""The examples that a set holds out: its test split, its validation split, or a part of train."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxdiff.data.images import ImageDataset, Split
from jaxdiff.data.pipeline import example_indices

TRAIN = ("train", "training")
HELD_OUT = ("test", "testing", "validation", "valid", "val", "dev", "eval")
ONE_IN, MOST = 5, 10_000  # of train, where a part is cut off
SHARE = 0.1  # of examples that are told apart by their content


class Parts(NamedTuple):
    """Examples to train on and examples held out, disjoint.

    Fields:
      train: what is trained on.
      held_out: what is measured on.
      source: where the latter come from, in words.
    """

    train: Split
    held_out: Split
    source: str


def hold_out(dataset: ImageDataset) -> Parts:
    """Name the examples to train on and those held out; the same ones always, for any program.

    Train is the split `train`, or the only one there is. Held out is `test`; without it
    `validation` (or valid, val, dev, eval); without that every fifth image of train, at most
    10,000, in a fixed random order: of each class its share, and never its only image. If train has
    labels, a labelled split comes before one with hidden labels. No image is read for it. Cutting a
    part off takes some 40 bytes an example for a moment, and 8 from then on.

    Args:
      dataset: the set, with any splits.
    Returns:
      Parts: train, held_out, and the source of the latter in words.
    Raises:
      ValueError: the set has no split train, or a single image and no other split.
    """
    name = next((name for name in TRAIN if name in dataset.splits), None)
    if name is None and len(dataset.splits) > 1:
        raise ValueError(f"{dataset.name}: expected a split train, got {', '.join(dataset.splits)}")
    train = dataset.splits[next(iter(dataset.splits)) if name is None else name]
    others = [
        other
        for other in HELD_OUT
        if other in dataset.splits and dataset.splits[other] is not train
    ]
    if train.labels is not None:
        # The sort is stable: among equals the order above stays.
        others.sort(key=lambda other: dataset.splits[other].labels is None)
    if others:
        return Parts(train, dataset.splits[others[0]], f"the split {others[0]}")
    rows = _cut(train, dataset.name)
    rest = np.setdiff1d(np.arange(train.num_examples), rows)
    source = (
        f"{len(rows)} of the {train.num_examples} images, cut off by a fixed seed: "
        "there is no split test"
    )
    return Parts(train.take(rest), train.take(rows), source)


def by_content(contents: Sequence[str]) -> np.ndarray:
    """Hold out about a tenth of examples, by the digests of their contents.

        the first 8 digits / 16^8 < 0.1

    So an example keeps its side when others are added, and equal ones are on one side. If that
    leaves none on a side, the ones with the lowest or the highest digest go there.

    Args:
      contents: hexadecimal digests, N of them, at least two that differ.
    Returns:
      Whether each is held out, bool [N].
    Raises:
      ValueError: all of them are equal, or there are fewer than two.
    """
    if len(set(contents)) < 2:
        raise ValueError(
            "contents: expected at least 2 examples that differ, one of them to hold out, "
            f"got {len(contents)} of {len(set(contents))} kind"
        )
    held = np.array([int(content[:8], 16) < SHARE * 16**8 for content in contents])
    if not held.any():
        held = np.array([content == min(contents) for content in contents])
    return held if not held.all() else np.array([each != max(contents) for each in contents])


def _cut(split: Split, name: str) -> np.ndarray:
    """The rows held out, in a random order: of the shuffled rows, sorted by class, every fifth.

    The first of each class stays. Where that leaves none, the last row of all is taken.
    """
    num = split.num_examples
    if num < 2:
        raise ValueError(f"{name}: expected at least 2 images, one of them to hold out, got {num}")
    order = example_indices(np.arange(num), seed=0, num_examples=num)
    labels = np.zeros(num, int) if split.labels is None else split.labels[order]
    by_class = np.argsort(labels, kind="stable")
    spare = by_class[1:][np.diff(labels[by_class]) == 0]
    step = max(ONE_IN, -(-num // MOST))
    chosen = spare[min(step, len(spare)) - 1 :: step] if len(spare) else by_class[-1:]
    return order[np.sort(chosen)]
