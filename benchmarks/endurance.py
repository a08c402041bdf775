"""Memory and files of a long training run, and the most memory of commands with many images."""

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tiny_runs
from matplotlib import pyplot as plt
from tqdm import tqdm

from jaxdiff import training
from jaxdiff.cli import pictures
from jaxdiff.runs import cache

MIB = 2**20
MOST = 4096  # MiB, of a command with its default options


def resident(process: int, name: str = "VmRSS") -> float:
    """Resident memory of a process in MiB, now or (VmHWM) at most so far; 0 if it has ended."""
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


def look(process: int, run: Path) -> dict[str, float]:
    """What a training process holds now: memory, open files and threads; and files of its run."""
    log = run / "metrics.jsonl"
    return {
        "resident": resident(process),
        "open": len(os.listdir(f"/proc/{process}/fd")),
        "threads": len(os.listdir(f"/proc/{process}/task")),
        "files": sum(len(files) for _, _, files in os.walk(run)),
        "log": log.stat().st_size / MIB if log.exists() else 0.0,
    }


def rate(output: Path) -> float:
    """Updates a second of the tiny run, by a run of a few hundred of them."""
    run = output / "soak" / "rate"
    if not training.read_log(run):
        options = "--steps 400 --eval-every 400 --log-every 100"
        tiny_runs.finish(tiny_runs.command("train", run, options))
    lines = [line for line in training.read_log(run) if "examples_per_second" in line]
    return float(np.median([line["examples_per_second"] for line in lines[1:]])) / 8


def soak(output: Path, *, minutes: float, every: float) -> dict[str, Any]:
    """Train for so long with a checkpoint every so many seconds, and look every two seconds.

    Args:
      output: folder of the run, and of soak.png.
      minutes: length.
      every: seconds between two checkpoints, about: it is set by the rate of a short run.
    Returns:
      Figures of the second half: how much resident memory and the number of files have grown.
    """
    run = output / "soak" / f"run-{time.time():.0f}"
    steps = max(1, round(every * rate(output)))
    options = f"--steps 1000000000 --eval-every {steps} --log-every {max(1, steps // 4)}"
    rows: list[dict[str, float]] = []
    with tiny_runs.started(tiny_runs.command("train", run, options)) as (process, said):
        while not (run / "checkpoints").exists() or not training.read_log(run):
            if process.poll() is not None:
                raise RuntimeError(f"training ended: {said.text()[-2000:]}")
            time.sleep(0.1)
        began = time.monotonic()
        with tqdm(total=round(minutes * 60), desc="soak", unit="s") as bar:
            while (now := time.monotonic() - began) < 60 * minutes:
                rows.append({"seconds": now} | look(process.pid, run))
                bar.update(min(round(now), bar.total) - bar.n)
                time.sleep(min(2.0, 60 * minutes / 10))
                if process.poll() is not None:
                    raise RuntimeError(f"training ended: {said.text()[-2000:]}")
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=tiny_runs.LIMIT)
    saves = [line["step"] for line in training.read_log(run) if "held_out_loss" in line]
    picture(rows, output / "soak.png", saves=len(saves))
    second = rows[len(rows) // 2 :]
    hours = np.array([row["seconds"] for row in second]) / 3600
    grown = np.polyfit(hours, [row["resident"] for row in second], 1)[0] * np.ptp(hours)
    files = [row["files"] for row in second]
    return {
        "minutes": minutes,
        "updates": saves[-1],
        "checkpoints": len(saves),
        "seconds between two": 60 * minutes / max(1, len(saves)),
        "exit status after SIGTERM": status,
        "resident, MiB, median": float(np.median([row["resident"] for row in second])),
        "resident, MiB, growth over the second half": float(grown),
        "files, least and most": [min(files), max(files)],
        "open files, least and most": [f([row["open"] for row in second]) for f in (min, max)],
        "threads, least and most": [f([row["threads"] for row in second]) for f in (min, max)],
        "rows": rows,
        "good": status == 130 and bool(abs(grown) < 10 + 0.02 * second[0]["resident"]),
    }


def picture(rows: list[dict[str, float]], path: Path, *, saves: int) -> None:
    """Draw resident memory and the number of files against time."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True, layout="constrained")
    minutes = [row["seconds"] / 60 for row in rows]
    axes[0].plot(minutes, [row["resident"] for row in rows])
    axes[0].set(ylabel="resident memory, MiB")
    axes[0].set_title(f"a training process and its folder, {saves} checkpoints", fontsize=10)
    for name, label in (("files", "files of the run"), ("threads",) * 2, ("open", "open files")):
        axes[1].plot(minutes, [row[name] for row in rows], lw=1, label=label)
    axes[1].set(xlabel="minutes", ylabel="number")
    axes[1].legend(fontsize=8, loc="upper center", ncols=3)
    for axis in axes:
        axis.set_ylim(0, 1.3 * axis.get_ylim()[1])
        axis.grid(alpha=0.3)
    pictures.save(figure, path)


def most_memory(arguments: list[str]) -> dict[str, Any]:
    """Run a command; return the most resident memory that it had, its time and its end."""
    began, most = time.monotonic(), 0.0
    with tiny_runs.started(arguments) as (process, said):
        while process.poll() is None:
            # Of the program itself: what the kernel says at its end counts the one that started it.
            most = max(most, resident(process.pid, "VmHWM"))
            time.sleep(0.02)
        text = said.text()
    return {
        "command": " ".join(["jaxdiff", *arguments[3:]]),
        "MiB": most,
        "seconds": time.monotonic() - began,
        "status": process.returncode,
        "end": text.splitlines()[-1:] if process.returncode else [],
    }


def memory(output: Path, source: Path, images: int) -> dict[str, Any]:
    """Measure commands with many images of 28x28 and a tiny network, the rest by default.

    Args:
      output: folder of the run and of the prepared data.
      source: MNIST's four IDX files.
      images: number of images.
    Returns:
      The most resident memory of each command.
    """
    base, run = [sys.executable, "-m", "jaxdiff"], output / "memory" / "run"
    here = f"--data-dir {output / 'memory' / 'data'}"
    typed = {
        "prepare": f"prepare --source {source} {here}",
        "train": f"train mnist --run {run} --steps 20 --batch-size 64 --eval-every 20 {here} "
        + f"{tiny_runs.NETWORK} --network.patch 4",
        "sample": f"sample {run} --num {images}",
        "evaluate": f"evaluate {run} --examples {images} --samples {images}",
        "posterior": f"posterior {run} --images {images} --calibration 0 "
        "--draws 2 --rows 2 --steps 2",
    }
    jobs = {name: text.split() for name, text in typed.items()}
    rows = {}
    for name, arguments in tqdm(jobs.items(), desc="memory", unit="command"):
        path = output / "parts" / f"memory-{name}-{cache.digest([arguments])}.json"
        rows[name] = cache.read(path) or cache.write(path, most_memory(base + arguments))
        tqdm.write(f"{name}: {rows[name]['MiB']:.0f} MiB, {rows[name]['seconds']:.0f} s")
        if rows[name]["status"]:
            path.unlink()  # to be tried again
    good = all(row["status"] == 0 and row["MiB"] < MOST for row in rows.values())
    return {"images": images, "commands": rows, "good": good}
