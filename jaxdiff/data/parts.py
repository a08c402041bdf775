"""The parts of a prepared folder of pictures: two files each, written when they are complete.

    PART.npy   pixels, uint8 [n, S, S, 3]; they are read by index
    PART.npz   of each file its name, size and time, digest, whether it is grey, why it was skipped

A part counts when its .npz is there, which is written last. A damaged part is made again.
"""

import contextlib
import hashlib
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jaxdiff import _archive, _machine
from jaxdiff.data import pictures

PART = 512  # files; so many are read again at most after a kill
HOUR = 3600.0  # what is younger may be another program's
REFUSED = "cannot be read"

Stamp = tuple[int, int]  # a file's size and its time in nanoseconds


class Found(NamedTuple):
    """Pictures that may be read, wherever they lie.

    Fields:
      stamps: name of each picture -> what changes when it does, such as its size and time.
      read: (name) -> Picture; raises ValueError or OSError where it cannot be read.
      skipped: the reason for each name that is not to be read.
      others: how many files are no pictures.
      classes: (names) -> the names of the classes in the order of their labels, and the label of
        each picture, int32; () and None without classes.
      held_out: the names of a held-out part of their own; empty if there is none.
      labels: name of each picture -> its label, where its name does not say it; else empty.
    """

    stamps: dict[str, Stamp]
    read: Callable[[str], pictures.Picture]
    skipped: dict[str, str]
    others: int
    classes: Callable[[list[str]], tuple[tuple[str, ...], np.ndarray | None]]
    held_out: frozenset[str] = frozenset()
    labels: Mapping[str, int] = MappingProxyType({})


class Entry(NamedTuple):
    """A file as it was prepared: a row of a part's pixels, or the reason why it was skipped."""

    stamp: Stamp
    reason: str
    content: str
    grey: bool
    part: Path
    pixels: np.ndarray
    row: int


def prepared(title: str, found: Found, cache: Path, size: int) -> dict[str, Entry]:
    """Read the files that are new or have changed; the others come from the cache.

    Args:
      title: what is prepared, for the progress bar.
      found: the pictures.
      cache: the folder of the parts.
      size: side S of the pictures.
    Returns:
      Entry of each name, in the order of its stamps.
    Raises:
      OSError: the cache cannot be written.
    """
    files, known = found.stamps, _known(cache, size)
    fresh = [name for name, stamp in files.items() if _is_fresh(known.get(name), stamp)]
    workers = ThreadPoolExecutor(_machine.cores())  # Pillow decodes and resizes without Python
    try:
        with (
            pictures.quiet(),
            tqdm(total=len(files), initial=len(files) - len(fresh), unit="pictures",
                 desc=f"preparing {title}", delay=1, disable=None) as progress,
        ):  # fmt: skip
            for start in range(0, len(fresh), PART):
                names = fresh[start : start + PART]
                made = []
                for one in workers.map(lambda name: _one(name, found.read, size), names):
                    made.append(one)
                    progress.update()
                part = _write(cache, {name: files[name] for name in names}, made)
                known |= _entries(part, size)
    finally:
        workers.shutdown(cancel_futures=True)
    entries = {name: known[name] for name in files}
    _trim(cache, {entry.part for entry in entries.values()})
    return entries


def _is_fresh(entry: Entry | None, stamp: Stamp) -> bool:
    """Whether a file is to be read: it is new, it has changed, or the system refused it."""
    return entry is None or entry.stamp != stamp or entry.reason.startswith(REFUSED)


class _Made(NamedTuple):
    """What became of one file."""

    pixels: np.ndarray
    content: str
    reason: str


def _one(name: str, read: Callable[[str], pictures.Picture], size: int) -> _Made:
    """Read one file; what cannot be read has a reason."""
    try:
        return _Made(*read(name), "")
    except ValueError as error:
        reason = str(error).partition(f"{name}: ")[2] or str(error)
    except OSError as error:  # it vanished, or may not be read
        reason = f"{REFUSED} ({error.strerror or type(error).__name__})"
    return _Made(np.zeros((size, size, 3), np.uint8), "", reason)


def _write(cache: Path, files: dict[str, Stamp], made: list[_Made]) -> Path:
    """Write a part; two programs that make the same one write the same."""
    pixels = np.stack([one.pixels for one in made])
    index = {
        "names": np.array(list(files)),
        "stamps": np.array(list(files.values()), np.int64),
        "contents": np.array([one.content for one in made]),
        "reasons": np.array([one.reason for one in made]),
        "grey": (pixels == pixels[..., :1]).all((1, 2, 3)),
    }
    name = hashlib.sha256(repr(files).encode("utf-8", "backslashreplace")).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    _whole(cache / f"{name}.npy", lambda draft: np.save(draft, pixels))
    path = cache / f"{name}.npz"
    _whole(path, lambda draft: np.savez(draft, **index))
    return path


def _whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under another name first."""
    draft = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        write(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _known(cache: Path, size: int) -> dict[str, Entry]:
    """What the whole parts hold, by the name of the file; of two entries the newest."""
    found: dict[str, Entry] = {}
    for path in sorted(cache.glob("[!.]*.npz"), key=lambda path: path.stat().st_mtime_ns):
        with contextlib.suppress(OSError, ValueError, KeyError):  # damaged: it is made again
            found |= _entries(path, size)
    return found


def _entries(path: Path, size: int) -> dict[str, Entry]:
    """What one part holds."""
    with path.open("rb") as stream:
        index = _archive.read(stream, path)
    columns = [index[name].tolist() for name in ("stamps", "reasons", "contents", "grey")]
    pixels = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    expected = (len(index["names"]), size, size, 3)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise ValueError(f"{path}: expected pixels {expected}, got {pixels.dtype} {pixels.shape}")
    rows = zip(index["names"].tolist(), *columns, range(len(pixels)), strict=True)
    return {
        name: Entry((stamp[0], stamp[1]), reason, content, grey, path, pixels, row)
        for name, stamp, reason, content, grey, row in rows
    }


def _trim(cache: Path, used: set[Path]) -> None:
    """Delete the parts of which no picture is there any more, and drafts of killed programs."""
    for path in (*cache.glob("*.npz"), *cache.glob(".*.npy")):
        with contextlib.suppress(OSError):  # another program was faster
            if path not in used and time.time() - path.stat().st_mtime > HOUR:
                path.unlink()
                path.with_suffix(".npy").unlink(missing_ok=True)
