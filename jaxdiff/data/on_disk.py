"""Images that stay on disk and are read by index, with the face of an array."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class OnDisk:
    """The images of a split, uint8 [N, H, W, C], of which an index reads only its own rows.

        images[rows] -> uint8 [b, H, W, C],  rows: a slice, integers [b], or an integer

    It holds no image. Several threads may read at once.

    Args:
      read: int64 [b], each in 0..num - 1 -> uint8 [b, H, W, C].
      num: how many examples `read` knows.
      event_shape: (H, W, C).
      identity: text that changes when the images do.
      rows: which examples of `read` these are, int [N]; None for all of them.
    """

    read: Callable[[np.ndarray], np.ndarray]
    num: int
    event_shape: tuple[int, ...]
    identity: str
    rows: np.ndarray | None = None

    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.num if self.rows is None else len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return (len(self), *self.event_shape)

    @property
    def ndim(self) -> int:
        """Number of axes, that of N included."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the images would take in memory."""
        return len(self) * int(np.prod(self.event_shape))

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read rows; IndexError where one is outside, TypeError for another kind of index."""
        rows = self._rows(index)
        images = self.read(np.atleast_1d(rows if self.rows is None else self.rows[rows]))
        return images if rows.ndim else images[0]

    def take(self, rows: np.ndarray) -> "OnDisk":
        """Choose rows without reading them.

        Args:
          rows: int [n], each in 0..N - 1.
        Returns:
          OnDisk of n images.
        """
        return dataclasses.replace(self, rows=rows if self.rows is None else self.rows[rows])

    def _rows(self, index: Any) -> np.ndarray:
        num = len(self)
        if isinstance(index, slice):
            return np.arange(*index.indices(num))
        rows = np.asarray(index)
        if rows.ndim > 1 or not np.issubdtype(rows.dtype, np.integer):
            raise TypeError(
                f"index: expected a slice or integers, [b], got {rows.dtype} {list(rows.shape)}"
            )
        if rows.size and not (-num <= rows.min() and rows.max() < num):
            raise IndexError(
                f"index: expected rows of {num} images, got {rows.min()}..{rows.max()}"
            )
        return np.where(rows < 0, rows + num, rows).astype(np.int64)

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to become an array: it would be read as a whole, and it may not fit."""
        raise TypeError(
            f"images: expected rows of them, such as images[:100], got all {len(self)}, "
            "which stay on disk"
        )
