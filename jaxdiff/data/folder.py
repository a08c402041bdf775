"""A folder of pictures as an image set: prepared once, and kept in a cache.

    PHOTOS/cat/1.jpg  PHOTOS/cat/2.png  PHOTOS/dog/3.webp      a folder a class
    PHOTOS/1.jpg      PHOTOS/2.png                             or none

A folder that the `datasets` library has saved is read by its columns (`saved_set`).

The cache holds parts of PART pictures each. A part that is written stays, so that preparing goes on
where it was stopped, and a file that is added is the only one to be read.
"""

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxdiff import _checks
from jaxdiff.data import pictures, saved_set, tfds
from jaxdiff.data.held_out import HELD_OUT, TRAIN, by_content
from jaxdiff.data.images import ImageDataset, Split
from jaxdiff.data.on_disk import OnDisk
from jaxdiff.data.parts import Entry, Found, Stamp, prepared

Colour = Literal["auto", "grey", "rgb"]

VERSION = 1  # of the rules by which a picture becomes pixels
LUMA = (19595, 38470, 7471)  # of R, G and B, in 2^16ths (ITU-R BT.601); they sum to one


class Folder(NamedTuple):
    """A folder of pictures that was prepared.

    Fields:
      dataset: the splits train and test, uint8 [N, S, S, C].
      classes: the names of the classes, in the order of their labels; () without classes.
      fingerprint: 16 hexadecimal digits that change with any picture, its name, size or colours.
      skipped: the reason for each file that was skipped, by its name in the folder.
      others: how many files are no pictures by their names.
      cache: where the prepared pictures lie.
    """

    dataset: ImageDataset
    classes: tuple[str, ...]
    fingerprint: str
    skipped: dict[str, str]
    others: int
    cache: Path


def load(
    path: str | os.PathLike,
    size: int = 32,
    *,
    colour: Colour = "auto",
    fit: pictures.Fit = "crop",
    data_dir: str | os.PathLike | None = None,
    in_memory: bool | None = None,
) -> Folder:
    """Load the pictures of a folder and of the folders in it, brought to one size.

    A picture's class is the first folder on its way. There are classes where every picture lies in
    a folder, and there are at least two of them. The pictures are in the order of their digests,
    which mixes the classes.

    Held out are those whose content has a hash in the lowest tenth. So a file keeps its side when
    others are added, and copies of a picture are on one side.

    A set that `datasets.save_to_disk` has written has the classes of its labels, and its own
    held-out split.

    Links are followed to files inside of the folder alone. A file that cannot be read, that is too
    small or too large, is skipped. Hidden files, and files with other endings, are passed over.

    Args:
      path: the folder.
      size: side S of the pictures; smaller ones are skipped.
      colour: "grey" or "rgb"; "auto" is grey where all pictures are.
      fit: "crop", the largest square in the middle, or "stretch".
      data_dir: where prepared folders are kept; None for $JAXDIFF_DATA_DIR, or jaxdiff in
        $XDG_CACHE_HOME or ~/.cache.
      in_memory: whether the pictures are held in memory; None as of `data.load`.
    Returns:
      Folder.
    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: fewer than two pictures can be read, an option is not known, or a set of
        `datasets` is damaged or has another number of columns of pictures than one.
      ModuleNotFoundError: `datasets` is not installed, and the folder needs it.
    """
    _checks.positive_int("size", size)
    _checks.choice("colour", colour, ("auto", "grey", "rgb"))
    _checks.choice("fit", fit, ("crop", "stretch"))
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected a folder of pictures, got {root}")
    found = (saved_set.find if saved_set.is_saved(root) else _find)(root, size, fit)
    cache = _cache(root, size, fit, data_dir)
    entries = prepared(root.name, found, cache, size) if found.stamps else {}
    skipped = found.skipped | {
        name: entry.reason for name, entry in entries.items() if entry.reason
    }
    names = [name for name, entry in entries.items() if not entry.reason]
    # In the order of names the first ones, which many figures take, would be of one class.
    names.sort(key=lambda name: (entries[name].content, name))
    if len(names) < 2:
        raise ValueError(_too_few(root, len(names), skipped, found.others))
    kept = [entries[name] for name in names]
    contents = [entry.content for entry in kept]
    if len(set(contents)) == 1:
        raise ValueError(
            f"{root}: expected at least 2 pictures that differ, one of them to hold out, "
            f"got {len(names)} of one kind"
        )
    classes, labels = found.classes(names)
    grey = colour == "grey" or (colour == "auto" and all(entry.grey for entry in kept))
    marks = [[name, content] for name, content in zip(names, contents, strict=True)]
    labelled = [found.labels[name] for name in names if found.labels]
    fingerprint = _digest([VERSION, size, fit, grey, *marks, *labelled])
    images = _images(kept, (size, size, 1 if grey else 3), fingerprint)
    whole, test = Split(images, labels), _held_out(found.held_out, names, contents)
    parts = {"train": whole.take(np.flatnonzero(~test)), "test": whole.take(np.flatnonzero(test))}
    if tfds.fits(in_memory, images.nbytes):
        parts = {name: Split(part.images[:], part.labels) for name, part in parts.items()}
    dataset = ImageDataset(root.resolve().name, parts, num_classes=len(classes) or None)
    return Folder(dataset, classes, fingerprint, skipped, found.others, cache)


def _held_out(own: frozenset[str], names: list[str], contents: list[str]) -> np.ndarray:
    """Whether each picture is held out: by a part of its own if there is one, or by its content."""
    test = np.array([name in own for name in names])
    return by_content(contents) if test.all() or not test.any() else test


def shown(name: str) -> str:
    """Return a file's name as one line can show it, whatever its letters.

    Args:
      name: as the system has it.
    Returns:
      The name; with escapes where a letter cannot be printed.
    """
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)


def _digest(values: Sequence) -> str:
    total = hashlib.sha256(repr(values).encode("utf-8", "backslashreplace"))
    return total.hexdigest()[:16]


def _cache(root: Path, size: int, fit: str, data_dir: str | os.PathLike | None) -> Path:
    """Where the prepared pictures of a folder lie."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = Path(data_dir or os.environ.get("JAXDIFF_DATA_DIR") or Path(home) / "jaxdiff")
    whole = root.resolve()
    return place.expanduser().absolute() / "folders" / _digest([VERSION, str(whole), size, fit])


def _find(root: Path, size: int, fit: pictures.Fit) -> Found:
    """The picture files of a folder, without reading them."""
    files: dict[str, Stamp] = {}
    skipped, others = {}, 0

    def read(name: str) -> pictures.Picture:
        return pictures.read(root / name, size, fit)

    def failed(error: OSError) -> None:
        skipped[os.path.relpath(error.filename, root)] = f"cannot be listed ({error.strerror})"

    for folder, folders, names in os.walk(root, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [each for each in folders if (Path(folder) / each).is_symlink()]:
            place = (Path(folder) / name).relative_to(root).as_posix()
            skipped[place] = "a link to a folder, which is not followed"
        for name in names:
            path = Path(folder) / name
            if name.startswith(".") or path.suffix.lower() not in pictures.SUFFIXES:
                others += 1
                continue
            place = path.relative_to(root).as_posix()
            try:
                if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                    skipped[place] = "a link that leads out of the folder"
                    continue
                status = path.stat()
                files[place] = (status.st_size, status.st_mtime_ns)
            except (OSError, RuntimeError) as error:  # a link to nothing, or to itself
                skipped[place] = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return Found(dict(sorted(files.items())), read, skipped, others, partial(_classes, root))


def _too_few(root: Path, num: int, skipped: dict[str, str], others: int) -> str:
    """What is wrong with a folder of fewer than two pictures."""
    got = [f"{num} that can be read"]
    if skipped:
        name, reason = next(iter(skipped.items()))
        got.append(f"{len(skipped)} skipped (the first is {shown(name)}: {reason})")
    if others:
        got.append(f"{others} other files")
    return (
        f"{root}: expected at least 2 pictures (PNG, JPEG, WebP or BMP), one of them to hold out, "
        f"got {', '.join(got)}"
    )


def _classes(root: Path, names: list[str]) -> tuple[tuple[str, ...], np.ndarray | None]:
    """The classes by the first folder of each name, and the label of each picture."""
    firsts = [name.partition("/")[0] if "/" in name else None for name in names]
    found = sorted({first for first in firsts if first is not None})
    if {first.lower() for first in found} & set(TRAIN) and {each.lower() for each in found} <= {
        *TRAIN,
        *HELD_OUT,
    }:
        raise ValueError(
            f"{root}: expected a folder a class, got the parts {', '.join(found)}: give the "
            f"folder of one part, such as {root / found[-1]}"
        )
    if None in firsts or len(found) < 2:
        return (), None
    number = {name: label for label, name in enumerate(found)}
    return tuple(found), np.array([number[first] for first in firsts if first], np.int32)


def _images(entries: list[Entry], shape: tuple[int, int, int], identity: str) -> OnDisk:
    """The pictures by index, from the parts of the cache."""
    arrays = list({id(entry.pixels): entry.pixels for entry in entries}.values())
    number = {id(pixels): n for n, pixels in enumerate(arrays)}
    part = np.array([number[id(entry.pixels)] for entry in entries])
    row = np.array([entry.row for entry in entries])

    def read(rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *shape), np.uint8)
        for place, n in enumerate(rows.tolist()):
            pixels = arrays[part[n]][row[n]]
            found[place] = pixels if shape[-1] == 3 else luminance(pixels)
        return found

    return OnDisk(read, len(entries), shape, identity)


def luminance(pixels: np.ndarray) -> np.ndarray:
    """Turn colours into grey levels; a grey keeps its level.

        0.299 R + 0.587 G + 0.114 B, rounded

    Args:
      pixels: RGB, uint8 [..., 3].
    Returns:
      uint8 [..., 1].
    """
    total = pixels.astype(np.uint32) @ np.array(LUMA, np.uint32)
    return ((total + 2**15) >> 16).astype(np.uint8)[..., None]
