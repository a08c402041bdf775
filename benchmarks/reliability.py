"""What a run survives: kills, damaged checkpoints, a full disk, a long time, many images.

python benchmarks/reliability.py kills --kills 50
python benchmarks/reliability.py soak --minutes 30

kills        random kills of training, sampling, evaluation and posterior sampling, half of them
             while a file is written; the results are compared bit for bit with a run left in peace
corruptions  every kind of damage to every file of a checkpoint
disk         training on a full and on a read-only file system, which takes root to mount
soak         memory and number of files of a long training run with many checkpoints
memory       the most memory of commands that are given many images

Finished parts are kept, so that an interrupted benchmark goes on.
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import dataclasses
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import damage
import endurance
import tiny_runs
import tyro
from tqdm import tqdm

from jaxdiff import training
from jaxdiff.cli import errors
from jaxdiff.runs import cache, machine, require

A_CHAIN = 5  # kills of one run, before it is left to finish
WORDS = ("passed over", "Traceback", "error:", "damaged")  # a command after a kill says none


@dataclass(frozen=True)
class Options:
    """What to try."""

    what: Annotated[Literal["kills", "corruptions", "disk", "soak", "memory"], tyro.conf.Positional]
    """Which trial."""
    kills: int = 50
    """Number of kills."""
    kinds: tuple[Literal["train", "sample", "evaluate", "posterior"], ...] = (
        "train", "posterior", "train", "sample", "train",
        "evaluate", "train", "sample", "train", "train",
    )  # fmt: skip
    """Commands that are killed, in turn: a chain of kills each."""
    minutes: float = 30.0
    """Length of the soak."""
    every: float = 20.0
    """Seconds between two checkpoints of the soak, about."""
    images: int = 10_000
    """Images of the memory trial."""
    source: Path = Path("../shared/data/mnist")
    """Folder of MNIST's four IDX files, for the memory trial."""
    seed: int = 0
    """Seed of the moments and of the damage."""
    output: Path = Path("runs/reliability")
    """Folder of the results."""


def moment(kind: str, run: Path, whole: float, rng: random.Random) -> tuple[str, Callable]:
    """A random moment: any after the first imports, or one at which something is being written."""
    if rng.random() < 0.5:
        at = time.monotonic() + whole * rng.uniform(0.2, 0.9)
        return "any", lambda: time.monotonic() > at
    left, seen = set(tiny_runs.drafts(run)), set[str]()
    # A checkpoint is written for tens of milliseconds, a part for less than one.
    number, delay = rng.randint(1, 6), rng.uniform(0.0, 0.03) if kind == "train" else 0.0

    def due() -> bool:
        seen.update(set(tiny_runs.drafts(run)) - left)
        if len(seen) < number:
            return False
        time.sleep(delay)
        return True

    return "write", due


def chain(kind: str, number: int, kills: int, *, options: Options) -> dict[str, Any]:
    """Kill one command again and again, let it finish, and compare it with the one left in peace.

    A command that ends before its moment is compared at once, and the next kill begins anew.
    """
    peace = options.output / "peace" / kind
    facts = training_facts(peace)
    rng = random.Random(f"{options.seed} {number}")
    run = options.output / "war" / str(number) / "run"
    begin(kind, run, options)
    rows: list[dict[str, Any]] = []
    ends: list[list[str]] = []
    said: list[str] = []
    while len(rows) < kills:
        aim, due = moment(kind, run, facts["seconds"], rng)
        after, status, text = tiny_runs.kill_when(due, tiny_runs.command(kind, run))
        said += [line for line in text.splitlines() if any(word in line for word in WORDS)]
        if status is None:
            left = [Path(name).name for name in tiny_runs.drafts(run)]
            row = {"kind": kind, "aim": aim, "seconds": after, "drafts": left}
            rows.append(row | {"halves": tiny_runs.halves(run)})
        else:
            ends.append(compare(run, peace / "run"))
            begin(kind, run, options)
    status, text = tiny_runs.finish(tiny_runs.command(kind, run))
    said += [line for line in text.splitlines() if any(word in line for word in WORDS)]
    ends.append([*compare(run, peace / "run"), *([f"exit status {status}"] if status else [])])
    good = not said and not any(ends) and not any(row["halves"] for row in rows)
    if good:
        shutil.rmtree(run.parent)
    return {"kind": kind, "kills": rows, "differences": ends, "said": said, "good": good}


def compare(run: Path, peace: Path) -> list[str]:
    """What differs between two runs' results."""
    return tiny_runs.differences(tiny_runs.fingerprint(run), tiny_runs.fingerprint(peace))


def begin(kind: str, run: Path, options: Options) -> None:
    """The folder that a command starts in: nothing, or the trained run."""
    shutil.rmtree(run.parent, ignore_errors=True)
    if kind != "train":
        tiny_runs.copy(options.output / "peace" / "train" / "run", run)


def in_peace(kind: str, options: Options) -> dict[str, Any]:
    """Run a command without a kill, twice, in two processes; the second one is timed."""
    seconds, places = 0.0, [options.output / "peace" / (kind + end) for end in ("", "-again")]
    for place in places:
        begin(kind, place / "run", options)
        began = time.monotonic()
        status, text = tiny_runs.finish(tiny_runs.command(kind, place / "run"))
        seconds = time.monotonic() - began
        if status:
            raise RuntimeError(f"{kind} failed: {text[-2000:]}")
    differ = compare(*(place / "run" for place in places))
    facts = {"kind": kind, "seconds": seconds, "differences": differ}
    training.write_json(places[0] / "facts.json", facts)
    return facts


def training_facts(peace: Path) -> dict[str, Any]:
    """What `in_peace` has measured."""
    facts = cache.read(peace / "facts.json")
    assert facts is not None
    return facts


def kills(options: Options) -> dict[str, Any]:
    """All chains, each kept when it is finished."""
    wanted = sorted({*options.kinds, "train"}, key=lambda kind: kind != "train")
    bar = tqdm(wanted, desc="in peace", unit="command")
    twice = [
        cache.read(options.output / "peace" / kind / "facts.json") or in_peace(kind, options)
        for kind in bar
    ]
    sizes = [min(A_CHAIN, options.kills - n) for n in range(0, options.kills, A_CHAIN)]
    plan = [(options.kinds[n % len(options.kinds)], n, size) for n, size in enumerate(sizes)]
    paths = [
        options.output / "parts" / f"kills-{n}-{cache.digest([kind, size, options.seed])}.json"
        for kind, n, size in plan
    ]
    chains = cache.resumable(
        paths, lambda numbers: [chain(*plan[numbers[0]], options=options)], name="chains of kills"
    )
    rows = [row for each in chains for row in each["kills"]]
    return {
        "kills": len(rows),
        "by kind": Counter(row["kind"] for row in rows),
        "while a file was written": sum(bool(row["drafts"]) for row in rows),
        "inside a checkpoint's save": sum(
            any("orbax" in name for name in row["drafts"]) for row in rows
        ),
        "half-written files": sum(len(row["halves"]) for row in rows),
        "lines of damage or error": sum(len(each["said"]) for each in chains),
        "results compared": sum(len(each["differences"]) for each in chains),
        "results that differ": sum(bool(d) for each in chains for d in each["differences"]),
        "two processes in peace differ": sum(bool(each["differences"]) for each in twice),
        "good": all(each["good"] for each in chains) and not any(t["differences"] for t in twice),
    }


def main(options: Options) -> dict[str, Any]:
    """Make the trial, print it and keep it."""
    require.counts(options, kills=1, images=10)
    require.seed(options.seed)
    require.numbers(options, minutes=require.POSITIVE, every=require.POSITIVE)
    began = time.monotonic()
    options = dataclasses.replace(options, output=options.output.absolute())
    trial: dict[str, Callable[[], dict[str, Any]]] = {
        "kills": lambda: kills(options),
        "corruptions": lambda: damage.corruptions(options.output, seed=options.seed),
        "disk": lambda: damage.disks(options.output),
        "soak": lambda: endurance.soak(
            options.output, minutes=options.minutes, every=options.every
        ),
        "memory": lambda: endurance.memory(options.output, options.source, options.images),
    }
    found = trial[options.what]()
    found |= {"machine": machine.describe(), "this start took, s": time.monotonic() - began}
    for name, value in found.items():
        print(f"{name:34} {dict(value) if isinstance(value, Counter) else value}")
    training.write_json(options.output / f"{options.what}.json", found)
    return found


if __name__ == "__main__":
    with errors.one_line_errors():
        sys.exit(0 if main(tyro.cli(Options, description=__doc__))["good"] else 1)
