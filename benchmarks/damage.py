"""Damage to a run's folder: to every file of a checkpoint, and by the file system it lies on."""

import logging
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tiny_runs
from tqdm import tqdm

from jaxdiff import training
from jaxdiff.training import checkpoints

RUN = {"seed": 0, "dataset": "digits"}
KIB = 1024


def state(value: int) -> dict[str, Any]:
    """A small state of several kinds of leaves."""
    return {
        "params": {"w": jax.random.normal(jax.random.key(value), (40, 30)), "b": jnp.ones(3)},
        "key": jax.random.key(value),
        "step": jnp.asarray(value, jnp.int32),
    }


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    """Damage that makes other bytes of a file's bytes."""
    return lambda path, _: path.write_bytes(change(path.read_bytes()))  # type: ignore[return-value]


def flipped(place: float) -> Callable[[bytes], bytes]:
    """One bit is flipped, at a place in [0, 1)."""

    def change(content: bytes) -> bytes:
        n = int(place * len(content))
        return content[:n] + bytes([content[n] ^ 1 << int(place * 997) % 8]) + content[n + 1 :]

    return change


def kinds(seed: int) -> dict[str, Callable[[Path, Path], None]]:
    """Damage by name: a function of a file and of the same file in another checkpoint."""
    rng = random.Random(seed)
    places = [0.0, 0.5, 1 - 1e-9, *(rng.random() for _ in range(5))]
    found: dict[str, Callable[[Path, Path], None]] = {
        f"bit flipped, {n}": rewritten(flipped(place)) for n, place in enumerate(places)
    }
    return found | {
        "cut to half": rewritten(lambda content: content[: len(content) // 2]),
        "last byte cut": rewritten(lambda content: content[:-1]),
        "emptied": rewritten(lambda content: b""),
        "lengthened": rewritten(lambda content: content + b"\0" * 100),
        "zeros": rewritten(lambda content: bytes(len(content))),
        "missing": lambda path, _: path.unlink(),
        "another checkpoint's": lambda path, other: None if other is path else swap(path, other),
    }


def swap(path: Path, other: Path) -> None:
    """The file of another checkpoint takes this one's place."""
    path.write_bytes(other.read_bytes())


class Said(logging.Handler):
    """The warnings about checkpoints."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> "Said":
        checkpoints.logger.addHandler(self)
        checkpoints.logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        checkpoints.logger.removeHandler(self)
        checkpoints.logger.propagate = True


def outcome(folder: Path) -> str:
    """What a restore makes of checkpoints 1 and 2, of which the second one is damaged."""
    expected = {step: checkpoints.digest(state(step)) for step in (1, 2)}
    with Said() as said, training.Checkpoints(folder, run=RUN) as manager:
        tree: Any = manager.restore(state(0))
        step = int(tree["step"])
        if checkpoints.digest(tree) != expected[step]:
            return f"WRONG VALUES of step {step}"
        if step == 2:
            return "harmless"
        if not any(f"{folder / '2'} " in line and "passed over" in line for line in said.lines):
            return "NO WARNING"
        manager.save(2, state(2), loss=1.0)
        again: Any = manager.restore(state(0))
        return "passed over" if int(again["step"]) == 2 else "NOT SAVED AGAIN"


def corruptions(output: Path, *, seed: int, most: int | None = None) -> dict[str, Any]:
    """Do every kind of damage to every file of the newer of two checkpoints, one at a time.

    Args:
      output: folder for the checkpoints.
      seed: of the places.
      most: number of files; all if None.
    Returns:
      How often the older one was used with a warning, the damage did not matter, or neither.
    """
    sound, work = output / "corruptions" / "sound", output / "corruptions" / "work"
    shutil.rmtree(sound.parent, ignore_errors=True)
    with training.Checkpoints(sound, run=RUN) as manager:
        for step in (1, 2):
            manager.save(step, state(step), loss=1.0)
    files = sorted(p.relative_to(sound) for p in (sound / "2").rglob("*") if p.is_file())[:most]
    rows = []
    jobs = [(file, name, change) for file in files for name, change in kinds(seed).items()]
    for file, name, change in tqdm(jobs, desc="damage", unit="checkpoint"):
        tiny_runs.copy(sound, work)
        content = (work / file).read_bytes()
        other = work / "1" / file.relative_to("2")
        if not other.exists():  # its name is random: the next one of its folder
            other = max(other.parent.iterdir(), key=lambda p: p.stat().st_size)
        if not content and name != "missing" and name != "lengthened":
            continue  # nothing to damage
        change(work / file, other)
        try:
            found = outcome(work)
        except Exception as error:
            found = f"RAISED {type(error).__name__}: {training.first_line(error)}"
        rows.append((str(file), name, found))
    bad = [row for row in rows if row[2] not in ("passed over", "harmless")]
    return {
        "files": len(files),
        "damaged checkpoints": len(rows),
        "outcomes": Counter(found for _, _, found in rows),
        "harmless": Counter(file for file, _, found in rows if found == "harmless"),
        "bad": bad,
        "good": not bad,
    }


@contextmanager
def mounted(folder: Path) -> Iterator[Callable[[str], None]]:
    """A file system in memory; the function that is given mounts it again with other options."""

    def mount(options: str) -> None:
        arguments = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise PermissionError(f"disk: expected root, who may mount, got {done.stderr.strip()}")

    folder.mkdir(parents=True, exist_ok=True)
    mount(f"size={64 * KIB}k")
    try:
        yield lambda options: mount("remount," + options)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, timeout=60)


def disks(output: Path, shares: tuple[float, ...] = (0.3, 0.6)) -> dict[str, Any]:
    """Train on disks that hold a share of a run; then make them larger, and go on.

    Args:
      output: folder of the run in peace, which is made if it is missing, and of the disks.
      shares: sizes of the disks, as shares of the run's size.
    Returns:
      What each start said, and whether the run that went on is that in peace, bit for bit.
    """
    peace = output / "peace" / "train" / "run"
    if not (peace / "samples.png").exists():
        tiny_runs.finish(tiny_runs.command("train", peace))
    whole = sum(path.stat().st_size for path in peace.rglob("*")) // KIB
    expected, rows = tiny_runs.fingerprint(peace), []
    for share in tqdm(shares, desc="disks", unit="disk"):
        with mounted(output.absolute() / "disk") as again:
            run = output.absolute() / "disk" / "run"
            again(f"size={max(64, int(share * whole))}k")
            full, text = tiny_runs.finish(tiny_runs.command("train", run))
            kept = [line for line in training.read_log(run) if "held_out_loss" in line]
            halves = tiny_runs.halves(run)
            again(f"size={64 * KIB}k,ro")
            unwritable, said = tiny_runs.finish(tiny_runs.command("train", run))
            again(f"size={64 * KIB}k,rw")
            status, last = tiny_runs.finish(tiny_runs.command("train", run))
            differ = tiny_runs.differences(tiny_runs.fingerprint(run), expected)
        statuses, texts = [full, unwritable, status], [text, said, last]
        lines = [[x for x in each.splitlines() if x.startswith("error:")] for each in texts]
        clear = [len(each) for each in lines] == [1, 1, 0] and "Traceback" not in "".join(texts)
        rows.append(
            {
                "share": share,
                "evaluations before": len(kept),
                "full": lines[0],
                "read-only": lines[1],
                "halves": halves,
                "differences": differ,
                "good": statuses == [1, 1, 0] and clear and not differ and not halves,
            }
        )
        print(rows[-1])
    return {"KiB of a run": whole, "disks": rows, "good": all(row["good"] for row in rows)}
