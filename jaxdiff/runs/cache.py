"""Long work in parts that are kept in files as they are done; a file is named by all that its part depends on."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxdiff import training

MOST_BYTES = 2**32  # of one folder of parts: beyond it the oldest are deleted


def resumable(
    paths: Sequence[Path | None],
    make: Callable[[list[int]], Sequence[dict[str, Any]]],
    *,
    at_once: int = 1,
    name: str = "",
) -> list[dict[str, Any]]:
    """Map over parts: read those that are there, make the others, and keep each as it is done.

    Args:
      paths: the file of each part, .npz or .json; None for a part that is not kept.
      make: numbers of parts that are missing, at_once of them at most -> a dict of arrays (of what
        JSON holds, for .json) for each.
      at_once: how many parts are made together.
      name: of the progress bar, "" for none.
    Returns:
      The parts, in order.
    """
    parts = [None if path is None else read(path) for path in paths]
    missing = [i for i, part in enumerate(parts) if part is None]
    groups = [missing[n : n + at_once] for n in range(0, len(missing), at_once)]
    for numbers in tqdm(groups, desc=name, disable=not name or len(groups) < 2):
        for i, part in zip(numbers, make(numbers), strict=True):
            path = paths[i]
            parts[i] = part if path is None else write(path, part)
    for folder in {path.parent for path in paths if path is not None and missing}:
        trim(folder)
    return [part for part in parts if part is not None]


def digest(settings: Any, arrays: Any = None) -> str:
    """A name for what was made from settings, anything JSON writes, and a pytree of arrays."""
    total = hashlib.sha256(json.dumps(settings).encode())
    for leaf in jax.tree.leaves(arrays):
        total.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return total.hexdigest()[:16]


def read(path: Path) -> dict[str, Any] | None:
    """A part; None where there is none, or only a damaged one, which is then made again."""
    try:
        if path.suffix == ".json":
            part = json.loads(path.read_text())
            return part if isinstance(part, dict) else None
        # Opened here: np.load leaves the file open where it finds it damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def write(path: Path, part: dict[str, Any]) -> dict[str, Any]:
    """Keep a part, whole or not at all, and return it. Two programs may write the same one: the last has its way."""
    if path.suffix == ".json":
        training.write_json(path, part)
        return part
    with training.atomic(path) as draft:
        np.savez(draft, **part)
    return {name: np.asarray(value) for name, value in part.items()}


def trim(folder: Path, most: int = MOST_BYTES) -> None:
    """Delete the oldest parts of a folder, drafts that were left behind too, until the rest is no larger than that."""
    found = []
    for path in [*folder.rglob("*.np[yz]"), *folder.rglob("*.json")]:
        try:
            found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        except FileNotFoundError:  # deleted by another program meanwhile
            continue
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > most:
            path.unlink(missing_ok=True)
