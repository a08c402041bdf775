"""Image data sets as arrays of integer levels, and their scaling to [-1, 1]."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff import _checks, _rows
from jaxdiff.data.on_disk import OnDisk


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples, [N, *D], and their labels, int32 [N], or None where there are none.

    The examples lie in memory, or on disk and are read by index (`OnDisk`). Labels lie in memory.
    """

    images: np.ndarray | OnDisk
    labels: np.ndarray | None = None

    @property
    def num_examples(self) -> int:
        """How many examples the split holds."""
        return len(self.images)

    def take(self, rows: np.ndarray) -> "Split":
        """Return some of the examples; those on disk are not read.

        Args:
          rows: int [n], each in 0..N - 1.
        Returns:
          Split of n examples.
        """
        on_disk = isinstance(self.images, OnDisk)
        images = self.images.take(rows) if on_disk else self.images[rows]
        return Split(images, None if self.labels is None else self.labels[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """A named set of images of one size, checked when it is made.

    Args:
      name: what `load` was asked for.
      splits: split name to Split: images, integers in 0..levels - 1, [N, H, W, C]; labels in
        0..num_classes - 1, [N].
      levels: grey levels a channel can take, at least 2: 256 for 8-bit images.
      num_classes: how many labels there are, None for a set without labels.
    Raises:
      TypeError: images or labels are not integers.
      ValueError: a split is empty, of another shape, out of range, or has not as many labels as
        images.
    """

    name: str
    splits: Mapping[str, Split]
    levels: int = 256
    num_classes: int | None = None

    def __post_init__(self) -> None:
        _check_levels(self.levels)
        if not self.splits:
            raise ValueError(f"{self.name}: expected at least one split, got none")
        for name, split in self.splits.items():
            _check_images(f"{self.name}, {name} images", split.images, self.levels)
            _check_labels(f"{self.name}, {name} labels", split, self.num_classes)
        shapes = {name: split.images.shape[1:] for name, split in self.splits.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"{self.name}: expected one event shape for all splits, got {shapes}")

    @property
    def train(self) -> Split:
        """The split `train`."""
        return self.split("train")

    @property
    def validation(self) -> Split:
        """The split `validation`."""
        return self.split("validation")

    @property
    def test(self) -> Split:
        """The split `test`."""
        return self.split("test")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one image, (H, W, C)."""
        return next(iter(self.splits.values())).images.shape[1:]

    def split(self, name: str) -> Split:
        """Return a split by name; ValueError lists the names there are."""
        if name not in self.splits:
            raise ValueError(
                f"{self.name}: expected a split of {', '.join(map(repr, self.splits))}, "
                f"got {name!r}"
            )
        return self.splits[name]


def to_unit(images: Any, levels: int) -> Any:
    """Scale integer levels to [-1, 1].

        2 x / (levels - 1) - 1

    Args:
      images: integers in 0..levels - 1, any shape, NumPy or JAX.
      levels: number of grey levels, at least 2.
    Returns:
      float32 in [-1, 1], the shape and the library of images.
    Raises:
      TypeError: images are not integers.
      ValueError: levels < 2.
    """
    _check_levels(levels)
    _check_integers("images", images)
    # The numerator is an exact integer and the division comes last: one rounding, symmetric about
    # 0, never above 1.
    span = np.float32(levels - 1)
    return (2 * images.astype(np.float32) - span) / span


def from_unit(x: Any, levels: int) -> Any:
    """Map [-1, 1] to the nearest integer level; what lies outside takes the nearest end.

        round((x + 1) (levels - 1) / 2), clipped to 0..levels - 1

    Args:
      x: floating, any shape, NumPy or JAX.
      levels: number of grey levels, at least 2.
    Returns:
      uint8 where levels <= 256, else int32, the shape and the library of x.
    Raises:
      TypeError: x is not floating.
      ValueError: x holds a NaN (where its values are known), or levels < 2.
    """
    _check_levels(levels)
    _checks.floating("x", x)
    _checks.values("x", x, "numbers", lambda now: ~np.isnan(now), finite=False)
    # Half precision cannot hold the larger levels.
    level = (x.astype(_rows.state_dtype(x.dtype)) + 1) * ((levels - 1) / 2)
    return level.round().clip(0, levels - 1).astype(np.uint8 if levels <= 256 else np.int32)


def _check_levels(levels: Any) -> None:
    _checks.positive_int("levels", levels)
    if levels < 2:
        raise ValueError(f"levels: expected at least 2, got {levels}")


def _check_integers(name: str, x: Any) -> None:
    dtype = getattr(x, "dtype", None)
    if dtype is None or not np.issubdtype(dtype, np.integer):
        raise TypeError(
            f"{name}: expected an integer array, got {type(x).__name__ if dtype is None else dtype}"
        )


def _check_range(name: str, x: np.ndarray, size: int) -> None:
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= size:
        raise ValueError(f"{name}: expected values in 0..{size - 1}, got {low}..{high}")


def _check_images(name: str, images: np.ndarray | OnDisk, levels: int) -> None:
    _check_integers(name, images)
    if images.ndim != 4 or not math.prod(images.shape):
        raise ValueError(
            f"{name}: expected [N, H, W, C] with at least one image, got shape {images.shape}"
        )
    _checks.channels_last(name, images.shape[1:], "images (H, W, C)")
    if not isinstance(images, OnDisk):
        _check_range(name, images, levels)
    elif levels != 256:
        raise ValueError(f"{name}: expected 256 levels of images on disk, got {levels}")


def _check_labels(name: str, split: Split, num_classes: int | None) -> None:
    if split.labels is None:
        return
    _check_integers(name, split.labels)
    if split.labels.shape != (split.num_examples,):
        raise ValueError(
            f"{name}: expected one an image, shape ({split.num_examples},), "
            f"got {split.labels.shape}"
        )
    if num_classes is None:
        raise ValueError(f"{name}: expected num_classes with labels, got None")
    _check_range(name, split.labels, num_classes)
