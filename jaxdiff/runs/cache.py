"""Do long work in parts and keep each finished part in a file.

A file's name is a digest of everything that its part depends on.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxdiff import _archive, training
from jaxdiff.training import hosts, run

MOST_BYTES = 2**32  # of one folder of parts: beyond it the oldest are deleted


def resumable(
    paths: Sequence[Path | None],
    make: Callable[[list[int]], Sequence[dict[str, Any]]],
    *,
    at_once: int = 1,
    name: str = "",
) -> list[dict[str, Any]]:
    """Map over parts: read those that exist, make the others, and keep each one when it is done.

    Args:
      paths: the file of each part, .npz or .json; None for a part that is not kept.
      make: numbers of missing parts, at most at_once -> for each a dict of arrays; for .json a dict
        of values that JSON can hold. With several processes, each makes its share of the parts.
      at_once: how many parts are made together.
      name: of the progress bar, "" for none.
    Returns:
      The parts, in order.
    """
    first = hosts.is_first()
    parts = [None if path is None or not first else read(path) for path in paths]
    kept = hosts.from_first([i for i, part in enumerate(parts) if part is not None])
    read_here = [part for part in parts if part is not None]  # nothing but on the first process
    for i, part in zip(kept, _of_every_process(read_here)[0], strict=True):
        parts[i] = part
    missing = [i for i, part in enumerate(parts) if part is None]
    groups = [missing[n : n + at_once] for n in range(0, len(missing), at_once)]
    rank, world = jax.process_index(), jax.process_count()
    rounds = [groups[n : n + world] for n in range(0, len(groups), world)]
    quiet = not name or len(rounds) < 2 or not first
    for numbers in tqdm(rounds, desc=name, disable=quiet):
        made = make(numbers[rank]) if rank < len(numbers) else []
        for theirs, found in zip(numbers, _of_every_process(made), strict=False):
            for i, part in zip(theirs, found, strict=True):
                path = paths[i]
                parts[i] = part if path is None else write(path, part)
    for folder in {path.parent for path in paths if path is not None and missing}:
        trim(folder)
        run.sweep(folder)
    return [part for part in parts if part is not None]


def _of_every_process(made: Sequence[dict[str, Any]]) -> list[Sequence[dict[str, Any]]]:
    """The parts that each process gives, in the order of the processes."""
    if jax.process_count() == 1:
        return [made]
    return [hosts.unpacked(payload) for payload in hosts.gather(hosts.packed(made))]


def digest(settings: Any, arrays: Any = None) -> str:
    """Return a digest of settings (values that JSON can hold) and of a pytree of arrays."""
    total = hashlib.sha256(json.dumps(settings).encode())
    for leaf in jax.tree.leaves(arrays):
        total.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return total.hexdigest()[:16]


def read(path: Path) -> dict[str, Any] | None:
    """Read a part; None if it does not exist or is damaged. A damaged part is made again."""
    try:
        if path.suffix == ".json":
            part = json.loads(path.read_text())
            return part if isinstance(part, dict) else None
        with path.open("rb") as stream:
            return _archive.read(stream, path)
    except (OSError, ValueError, RecursionError):  # the last for JSON that is nested too deep
        return None


def write(path: Path, part: dict[str, Any]) -> dict[str, Any]:
    """Write a part atomically and return it.

    Two programs may write the same part. The last one to finish wins.
    """
    if path.suffix == ".json":
        training.write_json(path, part)
        return part
    with training.atomic(path) as draft:
        np.savez(draft, **part)
    return {name: np.asarray(value) for name, value in part.items()}


def trim(folder: Path, most: int = MOST_BYTES) -> None:
    """Delete the oldest parts and drafts of a folder until the rest has at most so many bytes."""
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
