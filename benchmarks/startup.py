"""Where the time goes from the start of a process to the end of its first update.

python benchmarks/startup.py

A process trains the network of benchmarks/speed.py for one update and says how long each stage
took: without compiled programs in its cache, and with them.
"""

import time

BEGAN = time.time()

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKER = "JAXDIFF_STARTUP_BEGAN"  # when the process was started, seconds


@dataclass(frozen=True)
class Options:
    """How often to start."""

    rounds: int = 3
    """Starts without a cache, and as many with it."""
    output: Path = ROOT / "runs" / "startup"
    """Folder for startup.json."""


def worker() -> None:
    """Do one update; print the seconds of each stage as one line of JSON."""
    began, stages = float(os.environ[WORKER]), dict[str, float]()
    stages["the interpreter, and its second start"] = BEGAN - began

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        before = time.time()
        yield
        stages[name] = time.time() - before

    with stage("imports"):
        import jax
        import pair
        import speed
    with stage("the network's parameters"):
        model, params = pair.jax_model(speed.WORK)
        jax.block_until_ready(params)
    with stage("the state and a batch, to the devices"):
        update, state, batch = pair.update_of(speed.WORK, model, params)
        jax.block_until_ready((state, batch))
    with stage("tracing the update"):
        traced = update.trace(state, batch)
    with stage("lowering it to StableHLO"):
        lowered = traced.lower()
    with stage("compiling it, or reading it from the cache"):
        compiled = lowered.compile()
    with stage("the first update"):
        jax.block_until_ready(compiled(state, batch))
    stages["all"] = time.time() - began
    print(json.dumps(stages))


def start(cache: str) -> dict[str, float]:
    """Start a worker with a folder of compiled programs; its stages."""
    import pair

    environment = pair.from_a_shell(cache) | {WORKER: str(time.time())}
    done = subprocess.run(
        [sys.executable, __file__], check=True, env=environment, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(options: Options) -> dict[str, dict[str, float]]:
    """Start a number of processes and print the medians."""
    from tqdm import tqdm

    from jaxdiff import training
    from jaxdiff.runs import machine, require

    require.counts(options, rounds=1)
    found: dict[str, list[dict[str, float]]] = {"cold": [], "cached": []}
    for _ in tqdm(range(options.rounds), desc="starts", leave=False):
        with tempfile.TemporaryDirectory() as cache:
            for rows in found.values():
                rows.append(start(cache))
    medians = {
        kind: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for kind, rows in found.items()
    }
    print(f"{machine.describe()}; seconds, medians of {options.rounds}\n")
    print("| stage | cold | cached |\n|---|---|---|")
    for name in medians["cold"]:
        print(f"| {name} | {medians['cold'][name]:.2f} | {medians['cached'][name]:.2f} |")
    training.write_json(
        options.output / "startup.json", {"machine": machine.describe(), "seconds": medians}
    )
    return medians


if __name__ == "__main__":
    if WORKER in os.environ:
        worker()
    else:
        import tyro

        from jaxdiff.cli import errors

        with errors.one_line_errors():
            main(tyro.cli(Options, description=__doc__))
