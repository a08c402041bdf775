"""A table of examples in one file: .npy, .npz or .csv."""

import csv
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdiff import _archive
from jaxdiff.data.held_out import by_content
from jaxdiff.data.images import Split

SUFFIXES = (".npy", ".npz", ".csv")
MAGIC = b"\x93NUMPY"


class Table(NamedTuple):
    """A table that was read.

    Fields:
      splits: train and test: vectors, float32 [N, D], of mean 0 and standard deviation 1; or
        images, uint8 [N, H, W, C].
      num_classes: how many labels there are; None for a table without labels.
      levels: 256 for images, None for vectors.
      centre: what was subtracted from the D columns, (); for images.
      scale: by what they were divided then.
      fingerprint: 16 hexadecimal digits that change with any value and label.
    """

    splits: dict[str, Split]
    num_classes: int | None
    levels: int | None
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    fingerprint: str

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.splits["train"].images.shape[1:]


def load(
    path: str | os.PathLike,
    *,
    standard: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Table:
    """Load a table; nothing in it is unpickled.

    .npy is one array. .npz holds one array, or x and, if they are known, labels. The first axis
    counts the examples. An array of bytes, [N, H, W] or [N, H, W, C], is one of images. Any other
    array of numbers is flattened to rows, [N, D]. .csv has a row a line, separated by commas,
    semicolons or tabs; a first line that is not of numbers has the names of the columns.

        x = (value - centre) / scale

    centre and scale are the mean and the standard deviation of the training rows. A column that
    does not vary has scale 1. Held out is a tenth of the rows, by their content, so that a row
    keeps its side when others are added.

    Args:
      path: the file.
      standard: centre and scale, D of each; None for those of the table.
    Returns:
      Table.
    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, no table of finite numbers, or has fewer than two rows that differ;
        the error names the file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"folder: expected a table of {', '.join(SUFFIXES)}, got {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path}: expected a folder of pictures or a table of {', '.join(SUFFIXES)}"
        )
    values, labels = _read(path)
    values = _examples(path, values)
    _check_labels(path, labels, len(values))
    contents = [hashlib.sha256(row).hexdigest() for row in np.ascontiguousarray(values)]
    if len(set(contents)) < 2:
        raise ValueError(
            f"{path}: expected at least 2 rows that differ, one of them to hold out, "
            f"got {len(values)} of {len(set(contents))} kind"
        )
    held = by_content(contents)
    marks = [values.shape, None if labels is None else labels.tolist(), contents]
    levels = 256 if values.ndim == 4 else None
    centre: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    if levels is None:
        centre, scale = _standard(values[~held]) if standard is None else standard
        if len(centre) != values.shape[1] or len(scale) != values.shape[1]:
            raise ValueError(f"{path}: expected {len(centre)} columns, got {values.shape[1]}")
        values = ((values - np.array(centre)) / np.array(scale)).astype(np.float32)
    whole = Split(values, labels)
    return Table(
        {"train": whole.take(np.flatnonzero(~held)), "test": whole.take(np.flatnonzero(held))},
        None if labels is None else int(labels.max()) + 1,
        levels,
        centre,
        scale,
        hashlib.sha256(repr(marks).encode()).hexdigest()[:16],
    )


def _standard(values: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each column."""
    mean, std = values.mean(0), values.std(0)
    # What is left of rounding is no scale.
    std = np.where(std > 1e-9 * np.abs(mean), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def _read(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The values of a file, and their labels."""
    match path.suffix.lower():
        case ".csv":
            return np.array(list(_lines(path)), np.float64), None
        case ".npy":
            return _array(path), None
    with path.open("rb") as stream:
        arrays = _archive.read(stream, path)
    if len(arrays) == 1:
        return next(iter(arrays.values())), None
    if "x" not in arrays or arrays.keys() - {"x", "labels"}:
        raise ValueError(
            f"{path}: expected one array, or x with labels, got {', '.join(arrays) or 'none'}"
        )
    return arrays["x"], arrays["labels"].astype(np.int32)


def _array(path: Path) -> np.ndarray:
    with path.open("rb") as stream:
        start = stream.read(len(MAGIC))
    if start != MAGIC:
        raise ValueError(f"{path}: expected an array that np.save wrote, got another file")
    try:
        # As a map, so that the length of the file is compared with the shape that it claims.
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: expected an array of numbers, got {reason}") from error


def _lines(path: Path) -> Iterator[list[float]]:
    """The rows of numbers of a text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        separator = max(",;\t", key=first.count)
        rows = list(csv.reader(text.splitlines(), delimiter=separator))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected lines of numbers, got {error}") from error
    width = len(rows[0]) if rows else 0
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        if len(row) != width:
            raise ValueError(
                f"{path}, line {number}: expected {width} numbers, as in line 1, got {len(row)}"
            )
        try:
            yield [float(value) for value in row]
        except ValueError:
            if number > 1:  # the first has the names of the columns
                wrong = next(value for value in row if not _is_number(value))
                raise ValueError(
                    f"{path}, line {number}: expected a number, got {wrong[:40]!r}"
                ) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _examples(path: Path, values: np.ndarray) -> np.ndarray:
    """Images, uint8 [N, H, W, C], or rows, float64 [N, D]."""
    if values.dtype.kind not in "biuf" or not values.ndim or not values.size:
        raise ValueError(
            f"{path}: expected numbers, [N, D], got {values.dtype} {list(values.shape)}"
        )
    if values.dtype == np.uint8 and values.ndim in (3, 4):
        images = np.asarray(values if values.ndim == 4 else values[..., None])
        if images.shape[-1] not in (1, 3):
            raise ValueError(
                f"{path}: expected images of 1 or 3 channels, [N, H, W, C], got shape "
                f"{list(values.shape)}"
            )
        return images
    rows = np.asarray(values, np.float64).reshape(len(values), math.prod(values.shape[1:]))
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"{path}: expected finite numbers, got {rows[row, column]} in column {column + 1} of "
            f"example {row + 1}"
        )
    return rows


def _check_labels(path: Path, labels: np.ndarray | None, num: int) -> None:
    if labels is None:
        return
    if labels.shape != (num,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"{path}: expected labels of integers from 0 on, [{num}], got {labels.dtype} "
            f"{list(labels.shape)}"
        )
