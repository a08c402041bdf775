"""The folder of a run: its configuration, its log, and files that are whole or not there."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the final name only when the block has ended well.

    Args:
      path: the final name.
    Returns:
      A context manager over a path in the same folder, with the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, atomically.

    Args:
      path: the file.
      value: anything that json can write.
    """
    with atomic(path) as draft:
        draft.write_text(json.dumps(value, indent=2) + "\n")


class Log:
    """Scalars by step, as JSON lines and as TensorBoard events.

    Args:
      folder: the run's folder; metrics.jsonl and the events lie there.
      step: the step the run goes on from: later lines, of work that was lost and will be done again, are dropped.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_log(folder) if line["step"] <= step]
        with atomic(self._path) as draft:
            draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a")
        self._events = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, **scalars: float) -> None:
        """Add the scalars of a step.

        Args:
          step: number of updates done.
          **scalars: name = value.
        """
        self._file.write(json.dumps({"step": step} | scalars) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._events.close()


def read_log(folder: Path) -> list[dict[str, float]]:
    """Read metrics.jsonl.

    Args:
      folder: the run's folder.
    Returns:
      The lines, oldest first; none if there is no file. A last line cut short by a kill is left out.
    """
    path = folder / "metrics.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
