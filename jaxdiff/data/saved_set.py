"""A set that the `datasets` library has saved to disk (`save_to_disk`), as pictures by name.

The columns are one of pictures, and perhaps one of class labels; others are passed over. A row's
name is its split and its number. Pictures lie in the set's own files: a row that names a file
elsewhere is skipped.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff._extras import needs
from jaxdiff.data import pictures
from jaxdiff.data.held_out import HELD_OUT, TRAIN
from jaxdiff.data.parts import Found, Stamp

MARKS = ("dataset_dict.json", "state.json")


def is_saved(root: Path) -> bool:
    """Whether a folder is a set that `datasets` has saved.

    Args:
      root: any path.
    Returns:
      Whether its marks are there.
    """
    return any((root / mark).is_file() for mark in MARKS)


def find(root: Path, size: int, fit: pictures.Fit) -> Found:
    """Look at a set without reading its pictures.

    The splits are train (or the only one there is) and the first of test, validation, valid, val,
    dev and eval. Others are passed over.

    Args:
      root: the folder of the set.
      size: side S of the pictures.
      fit: how they are brought to it, as in `pictures.read`.
    Returns:
      Found; a row without a label is skipped if the set has classes.
    Raises:
      ValueError: the folder is damaged, or it holds no column of pictures or more than one.
      ModuleNotFoundError: `datasets` is not installed (extra `datasets`).
    """
    library = needs("datasets", extra="datasets")
    try:
        found = library.load_from_disk(str(root))
    except Exception as error:  # the library's readers have errors of their own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{root}: expected a set that datasets has saved ({reason})") from error
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    train = next((name for name in TRAIN if name in splits), next(iter(splits)))
    held = next((name for name in HELD_OUT if name in splits and name != train), None)
    used = {name: splits[name] for name in (train, held) if name is not None}
    picture, label = _columns(root, library, splits[train])
    rows = {
        name: part.cast_column(picture, library.Image(decode=False)) for name, part in used.items()
    }
    stamps: dict[str, Stamp] = {}
    skipped, labels = {}, {}
    for name, part in used.items():
        mark = int(hashlib.sha256(part._fingerprint.encode()).hexdigest()[:12], 16)
        for n, number in enumerate(part[label] if label else [0] * len(part)):
            row = f"{name}/{n:08d}"
            if number is None or number < 0:
                skipped[row] = "has no label, in a set with classes"
                continue
            stamps[row], labels[row] = (n, mark), number

    def read(name: str) -> pictures.Picture:
        split, _, n = name.rpartition("/")
        content = (rows[split][int(n)][picture] or {}).get("bytes")
        if not content:
            raise ValueError(f"{name}: expected a picture in the set itself, got none")
        return pictures.decoded(content, name, size, fit)

    def classes(names: list[str]) -> tuple[tuple[str, ...], np.ndarray | None]:
        if label is None:
            return (), None
        found = splits[train].features[label].names
        return tuple(found), np.array([labels[name] for name in names], np.int32)

    own = frozenset(name for name in stamps if name.startswith(f"{held}/"))
    return Found(stamps, read, skipped, 0, classes, own, labels if label else {})


def _columns(root: Path, library: Any, part: Any) -> tuple[str, str | None]:
    """The columns of pictures and of labels."""
    images = [name for name, kind in part.features.items() if isinstance(kind, library.Image)]
    if len(images) != 1:
        raise ValueError(
            f"{root}: expected one column of pictures (an Image feature), got {len(images)} among "
            f"{', '.join(part.features) or 'no columns'}"
        )
    labels = [name for name, kind in part.features.items() if isinstance(kind, library.ClassLabel)]
    if len(labels) > 1:
        raise ValueError(
            f"{root}: expected at most one column of class labels, got {', '.join(labels)}: "
            "remove_columns takes the others away"
        )
    return images[0], labels[0] if labels else None
