"""Parts of long work, kept in files as they are done; each is named by a digest of what it depends on alone."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import training

MOST_BYTES = 2**32  # of one folder of parts: beyond it the oldest are deleted


def read(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a part; None where there is none, or only a damaged one, which is then made again."""
    try:
        # Opened here: np.load leaves the file open where it finds it damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def write(path: Path, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """Keep a part, whole or not at all, and return it. Two programs may write the same one: the last has its way."""
    with training.atomic(path) as draft:
        np.savez(draft, **arrays)
    return {name: np.asarray(value) for name, value in arrays.items()}


def trim(folder: Path, most: int = MOST_BYTES) -> None:
    """Delete the oldest parts of a folder, drafts that were left behind too, until the rest is no larger than that."""
    found = []
    for path in folder.rglob("*.np[yz]"):
        try:
            found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        except FileNotFoundError:  # deleted by another program meanwhile
            continue
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > most:
            path.unlink(missing_ok=True)
