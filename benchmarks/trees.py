"""The training step of two checkouts of jaxdiff, side by side.

git worktree add ../before COMMIT
python benchmarks/trees.py ../before .

A process for each checkout and round, in turn, so that no tree profits from what another left
behind. The work is that of this file's own folder for both. A ratio is the second tree's time
divided by the first's: below 1, the second is faster.
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pair
import speed
import tyro
from tqdm import tqdm

from jaxdiff import training
from jaxdiff.cli import errors
from jaxdiff.runs import machine, require

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1800  # seconds for one process

SMALL = {"channels": 32, "multipliers": (1, 2), "attention": (4,)}

Job = Literal["first", "second", "accumulate"]
JOBS: dict[Job, pair.Work] = {
    "first": speed.WORK,
    "second": speed.SECOND,
    "accumulate": pair.Work((8, 8, 1), speed.NETWORK | SMALL, batch=128, accumulate=4),
}


@dataclass(frozen=True)
class Options:
    """Which trees, and what of them."""

    trees: tyro.conf.Positional[tuple[Path, Path]]
    """Two checkouts: before and after."""
    jobs: tuple[Job, ...] = ("first", "second", "accumulate")
    """first and second are the networks of benchmarks/speed.py. accumulate is a small one on images
    of 8x8, 128 in four parts."""
    rounds: int = 3
    """Processes of each tree."""
    steps: int = 12
    """Training steps that a process times; the median counts."""
    output: Path = ROOT / "runs" / "trees"
    """Folder for trees.json."""
    worker: bool = False
    """Time the jaxdiff that is imported, and print the median. The other processes call this."""


def worker(job: Job, steps: int) -> None:
    """Time the imported jaxdiff: print its folder and the median of a step."""
    times = pair.race({"": pair.jax_train(JOBS[job])}, steps, name=job)[""]
    print(json.dumps({"tree": training.__file__, "seconds": statistics.median(times)}))


def seconds(tree: Path, job: Job, steps: int, cache: str) -> float:
    """The median of a step, in a process that imports jaxdiff from the tree."""
    environment = pair.from_a_shell(cache)
    paths = [str(tree), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, __file__, str(tree), str(tree)]
    command += ["--jobs", job, "--steps", str(steps), "--worker"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{tree} did not do the job {job} in {LIMIT} s") from None
    if done.returncode:
        raise ValueError(f"{tree} did not do the job {job}: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not Path(found["tree"]).is_relative_to(tree):
        raise ValueError(f"the process for {tree} imported {found['tree']}")
    return float(found["seconds"])


def main(options: Options) -> list[dict[str, Any]]:
    """Time both trees in turn, and print a line for each job."""
    require.counts(options, rounds=1, steps=1)
    if options.worker:
        worker(options.jobs[0], options.steps)
        return []
    trees = [tree.resolve() for tree in options.trees]
    for tree in trees:
        if not (tree / "jaxdiff" / "__init__.py").is_file():
            raise ValueError(f"trees: expected checkouts of jaxdiff, got {tree}")
    print(machine.describe())
    rows = []
    for job in options.jobs:
        with tempfile.TemporaryDirectory() as cache:
            times = [
                [seconds(tree, job, options.steps, cache) for tree in trees]
                for _ in tqdm(range(options.rounds), desc=job, leave=False)
            ]
        ratios = [after / before for before, after in times]
        middle = [statistics.median(each) for each in zip(*times, strict=True)]
        print(f"{job:12}{middle[0]:8.3f} s{middle[1]:8.3f} s   ratios: "
              + ", ".join(f"{ratio:.2f}" for ratio in ratios))  # fmt: skip
        rows.append({"job": job, "seconds": times, "ratios": ratios})
        training.write_json(
            options.output / "trees.json", {"machine": machine.describe(), "rows": rows}
        )
    return rows


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
