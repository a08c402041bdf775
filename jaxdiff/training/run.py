"""The folder of a run: its lock, its log, and files that are written atomically."""

import datetime
import errno
import json
import logging
import os
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxdiff.training import hosts

logger = logging.getLogger(__name__)

LONGEST_WAIT = 3600.0  # seconds, for another process
DRAFT = re.compile(r"\..*\.[0-9a-f]{32}(\.\w+)?$")
ABANDONED = 48 * 3600.0  # seconds after which nobody goes on with a draft
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep a run to one program that writes at a time; readers need no lock.

    Of a program of several processes, the first one has the lock.

    The lock is the operating system's (flock on the file .lock). It ends with the process, however
    that ends, so a crash does not leave a lock behind.

    Args:
      folder: the run's folder; made if missing.
      wait: whether to wait for it, at most an hour and with a warning, instead of an error at once.
    Returns:
      A context manager.
    Raises:
      BlockingIOError: another process, or another block of this one, holds it; the message says who
        and since when.
    Numerics: a file system without locks gets a warning, and the block runs without a lock.
    """
    if not hosts.is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    held = filelock.FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        held.acquire()
    except filelock.Timeout:
        who = path.read_text().strip() or "another process"
        try:
            if wait:
                logger.warning("waiting for %s, which uses %s", who, folder)
                held.acquire(blocking=True, timeout=LONGEST_WAIT)
        except filelock.Timeout:
            wait = False
        if not wait:
            message = f"{folder} is in use by {who}; wait for it or stop it, or use another folder"
            raise BlockingIOError(message) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning(
            "%s cannot be locked (%s): let one process at a time write to it",
            folder,
            error.strerror,
        )
        yield
        return
    try:
        now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
        path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        sweep(folder)
        yield
    finally:
        held.release()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a draft to write to. It gets the final name when the block ends without an error.

    Of several processes only the first one writes; the drafts of the others are dropped.

    Args:
      path: the final name.
    Returns:
      A context manager over a path in the same folder, with the same suffix; two that are open at
      once differ.
    Raises:
      OSError: it cannot be written; the message names the path.
    """
    draft = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    if not hosts.is_first():
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch) / draft.name
        return
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete the drafts of a folder that programs have left which were killed days ago.

    Args:
      folder: any folder that `atomic` writes to.
    """
    for path in folder.glob(".*"):
        try:
            if DRAFT.match(path.name) and time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
        except OSError:  # another program has deleted it, or it may not be deleted
            continue


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an error of the operating system without one, such as a full disk.

    Args:
      path: the file that is written to in the block.
    Returns:
      A context manager.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line.

    Args:
      error: any exception, with or without a message.
    Returns:
      The first line of the message that is not empty; the name of the error's class if all are
      empty.
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, atomically.

    Args:
      path: the file.
      value: anything that json can write.
    """
    with atomic(path) as draft:
        draft.write_text(json.dumps(value, indent=2) + "\n")


class Log:
    """Scalars by step, as JSON lines and as TensorBoard events, without a buffer.

    Of several processes only the first one writes.

    Args:
      folder: the run's folder; metrics.jsonl and the events lie there.
      step: the step from which the run goes on. Later lines are dropped, because their work was
        lost and is done again.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self._path = folder / "metrics.jsonl"
        self._writes = hosts.is_first()
        if not self._writes:
            return
        kept = [line for line in read_log(folder) if line["step"] <= step]
        with atomic(self._path) as draft:
            draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("ab", buffering=0)
        # Not SummaryWriter: a full disk ends its thread, and then `add_scalar` waits for ever.
        with naming(folder):
            self._events = EventsWriter(str(folder / "events"))
            # TensorBoard then hides what an earlier session wrote from this step on.
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=step + 1, wall_time=time.time(), session_log=start))
            self._events.flush()

    def write(self, step: int, **scalars: float) -> None:
        """Add the scalars of a step.

        Args:
          step: number of updates done.
          **scalars: name = value.
        """
        if not self._writes:
            return
        with naming(self._path):
            self._file.write((json.dumps({"step": step} | scalars) + "\n").encode())
            for name, value in scalars.items():
                self._events.write_event(
                    Event(step=step, wall_time=time.time(), summary=scalar(name, value))
                )
            self._events.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writes:
            self._file.close()
            with naming(self._path):
                self._events.close()


def read_log(folder: Path) -> list[dict[str, float]]:
    """Read metrics.jsonl.

    Args:
      folder: the run's folder.
    Returns:
      The lines, oldest first; [] without a file. A kill can cut a line short: it and all later
      lines are left out.
    """
    path = folder / "metrics.jsonl"
    lines = []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # a number too long, or nested too deep
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines
