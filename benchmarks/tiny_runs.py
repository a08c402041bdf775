"""Tiny runs as a user starts them, killed at a chosen moment, and what their folders then hold."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 900  # seconds, of one command
DRAFT = re.compile(r"^\.\w+.*\.[0-9a-f]{32}\.\w+$|orbax-checkpoint-tmp")  # not whole yet

NETWORK = "--network.channels 8 --network.multipliers 1 --network.num-blocks 1 --network.attention"
# The options of every command under test. Each runs in a few seconds once it is compiled.
COMMANDS = {
    "train": "--steps 60 --batch-size 8 --log-every 1 --eval-every 5 " + NETWORK,
    "sample": "--num 64 --batch-size 16 --steps 10",
    "evaluate": "--num-times 2 --examples 64 --samples 40 --steps 3 --classifier-steps 60 "
    "--probability.examples 8 --probability.steps 3 --probability.times 2 --probability.paths 2 "
    "--probability.path-examples 4 --probability.ode-steps 2 --probability.ode-examples 4 "
    "--probability.no-baselines",
    "posterior": "--images 4 --calibration 10 --draws 2 --rows 4 --steps 5",
}


def command(kind: str, run: Path, options: str = "") -> list[str]:
    """The command line of a kind; later options replace those of COMMANDS."""
    place = ["digits", "--run", str(run)] if kind == "train" else [str(run)]
    return [sys.executable, "-m", "jaxdiff", kind, *place, *f"{COMMANDS[kind]} {options}".split()]


class Said:
    """What a command writes to stderr, read while it runs."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed by `started`)

    def text(self) -> str:
        # The command shares the place in the file, so that is not moved.
        return os.pread(self.file.fileno(), 2**26, 0).decode(errors="replace")


@contextmanager
def started(arguments: list[str]) -> Iterator[tuple[subprocess.Popen, Said]]:
    """Start a command; it is killed if it still runs when the block ends."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("JAXDIFF_PROCESS_IS_SET_UP", None)  # it is set up as a user's is
    said = Said()
    with (
        said.file,
        subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=said.file
        ) as process,
    ):
        try:
            yield process, said
        finally:
            if process.poll() is None:
                process.kill()


def finish(arguments: list[str]) -> tuple[int, str]:
    """Run a command to its end; return its exit status and what it wrote to stderr."""
    with started(arguments) as (process, said):
        process.wait(timeout=LIMIT)
        return process.returncode, said.text()


def kill_when(due: Callable[[], bool], arguments: list[str]) -> tuple[float, int | None, str]:
    """Start a command and kill it in cold blood when it is due.

    Args:
      due: whether, asked every millisecond.
      arguments: the command line.
    Returns:
      (seconds from the start, its exit status or None if it was killed, its stderr).
    """
    with started(arguments) as (process, said):
        began = time.monotonic()
        while process.poll() is None and not due():
            if time.monotonic() > began + LIMIT:
                raise TimeoutError(f"a command ran for more than {LIMIT} s: {arguments}")
            time.sleep(0.001)
        status = process.poll()
        process.kill()
        process.wait()
        return time.monotonic() - began, status, said.text()


def drafts(folder: Path) -> list[str]:
    """Names of what is being written in a folder, or what a kill has left of that."""
    found = []
    for place, folders, files in os.walk(folder):
        found += [str(Path(place) / name) for name in (*folders, *files) if DRAFT.search(name)]
    return sorted(found)


def is_final(path: Path, run: Path) -> bool:
    """Whether it is a file that lies in a run under its final name."""
    return path.is_file() and not any(DRAFT.search(part) for part in path.relative_to(run).parts)


def halves(run: Path) -> list[str]:
    """Files under their final names that are not whole. The last line of a log may be cut short."""
    found = []
    for path in sorted(run.rglob("*")):
        if not is_final(path, run):
            continue
        try:
            if path.suffix == ".json" or (path.name, path.parent.name) == ("metadata", "about"):
                json.loads(path.read_text())
            elif path.suffix == ".npz":
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        found.append(str(path))
            elif path.suffix in (".png", ".gif"):
                with Image.open(path) as image:
                    image.seek(getattr(image, "n_frames", 1) - 1)
                    image.load()
        except FileNotFoundError:  # the command still runs and has replaced it
            continue
        except (ValueError, OSError, EOFError, zipfile.BadZipFile):
            found.append(str(path))
    return found


def fingerprint(run: Path) -> dict[str, str]:
    """A digest of every result in a run's folder. Times, rates and its own place do not count.

    Checkpoints count by their own digest of the state: parameters, average, optimiser, key, step.
    """
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if not is_final(path, run):
            continue
        if (path.name, path.parent.name) == ("metadata", "about"):
            found[name] = json.loads(path.read_text())["sha256"]
        elif path.suffix == ".jsonl":
            found[name] = _of_values([json.loads(line) for line in path.read_text().splitlines()])
        elif path.suffix == ".json":
            found[name] = _of_values(json.loads(path.read_text()))
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                shown = {n: [str(a.dtype), a.shape, _sha(a.tobytes())] for n, a in arrays.items()}
                found[name] = _of_values(shown)
        elif path.suffix in (".png", ".gif"):
            found[name] = _sha(path.read_bytes())
    return found


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of the results that are not the same, or that only one has."""
    return sorted(name for name in one | other if one.get(name) != other.get(name))


def copy(source: Path, target: Path) -> Path:
    """A new copy of a run's folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def _of_values(value: Any) -> str:
    return _sha(json.dumps(_without_own(value), sort_keys=True).encode())


def _without_own(value: Any) -> Any:
    if isinstance(value, dict):
        own = ("seconds", "seconds_an_image", "examples_per_second", "run", "command")
        return {name: _without_own(v) for name, v in value.items() if name not in own}
    return [_without_own(v) for v in value] if isinstance(value, list) else value


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
