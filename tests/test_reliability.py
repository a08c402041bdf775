"""The reliability benchmark on itself, in small; and what it has found."""

import gc
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import damage
import endurance
import numpy as np
import pytest
import reliability
import tiny_runs
from PIL import Image

from jaxdiff import data, training
from jaxdiff.runs import datasets, recogniser

WRITER = """
import os, sys, time
for n in range(1000):
    draft = f"{sys.argv[1]}/.{n}.{n:032x}.json"
    with open(draft, "w") as file:
        time.sleep(0.05)
        file.write("{}")
    os.replace(draft, f"{sys.argv[1]}/{n}.json")
"""


def results(folder: Path) -> Path:
    """A folder with one file of every kind."""
    folder.mkdir()
    training.write_json(folder / "evaluation.json", {"loss": 1.5, "rows": [{"seconds": 1.0}]})
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "examples_per_second": 3.0}\n')
    np.savez(folder / "samples.npz", x=np.arange(100.0), seconds=np.ones(()))
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(folder / "samples.png")
    (folder / "checkpoints" / "3" / "about").mkdir(parents=True)
    training.write_json(folder / "checkpoints" / "3" / "about" / "metadata", {"sha256": "abc"})
    return folder


def test_the_fingerprint_sees_results_and_no_times(tmp_path: Path) -> None:
    one, other = (tiny_runs.fingerprint(results(tmp_path / name)) for name in "ab")
    assert len(one) == 5
    assert tiny_runs.differences(one, other) == []
    for draft in (f".samples.{0:032x}.npz", f"checkpoints/.part.{0:032x}.json"):
        (tmp_path / "a" / draft).touch()  # as a kill leaves it
    training.write_json(tmp_path / "a" / "evaluation.json", {"loss": 1.5, "rows": [{"seconds": 2}]})
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert tiny_runs.differences(tiny_runs.fingerprint(tmp_path / "a"), other) == []
    np.savez(tmp_path / "a" / "samples.npz", x=np.arange(100.0) + 1e-9, seconds=np.ones(()))
    training.write_json(tmp_path / "a" / "checkpoints" / "3" / "about" / "metadata", {"sha256": ""})
    training.write_json(tmp_path / "a" / "new.json", {})
    found = tiny_runs.differences(tiny_runs.fingerprint(tmp_path / "a"), other)
    assert found == ["checkpoints/3/about/metadata", "new.json", "samples.npz"]


@pytest.mark.parametrize("name", ["evaluation.json", "samples.npz", "samples.png"])
def test_half_a_file_is_found(tmp_path: Path, name: str) -> None:
    folder = results(tmp_path / "run")
    assert tiny_runs.halves(folder) == []
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert tiny_runs.halves(folder) == [str(path)]


def test_a_command_is_killed_while_it_writes(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", WRITER, str(tmp_path)]
    with training.atomic(tmp_path / "own.json") as draft:
        draft.write_text("{}")
        assert tiny_runs.drafts(tmp_path) == [str(draft)]
    after, status, text = tiny_runs.kill_when(lambda: bool(tiny_runs.drafts(tmp_path)), arguments)
    assert status is None, text
    assert after > 0
    assert len(tiny_runs.drafts(tmp_path)) == 1
    assert tiny_runs.halves(tmp_path) == []
    _, status, text = tiny_runs.kill_when(lambda: False, [sys.executable, "-c", "1 / 0"])
    assert status == 1
    assert "ZeroDivisionError" in text


def test_damage_is_harmless_or_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: change for name, change in damage.kinds(0).items() if name in ("missing", "zeros")}
    monkeypatch.setattr(damage, "kinds", lambda seed: few)
    found = damage.corruptions(tmp_path, seed=0, most=4)
    assert found["good"], found["bad"]
    assert set(found["outcomes"]) == {"harmless", "passed over"}


# Where a read fails, orbax leaves its event loop to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
def test_a_damaged_classifier_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only checkpoint is a cache: where it is damaged, an evaluation goes on without it."""
    trained: list[int] = []

    def fit(network: Any, dataset: Any, state: Any, **_: Any) -> Any:
        trained.append(1)
        return state

    monkeypatch.setattr(recogniser, "fit", fit)
    images = data.Split(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2)
    dataset = datasets.Dataset("few", (8, 8, 1), 2, 256, lambda: {"train": images})
    run = SimpleNamespace(folder=tmp_path, dataset=dataset)
    recogniser.trained(run, steps=3)
    recogniser.trained(run, steps=3)
    assert len(trained) == 1
    for path in tmp_path.rglob("state/**/d/*"):
        path.unlink()
    recogniser.trained(run, steps=3)
    recogniser.trained(run, steps=3)
    assert len(trained) == 2
    gc.collect()


@pytest.mark.slow
def test_chains_of_kills_end_as_in_peace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted themselves, they go on: a finished chain is read again."""
    options = reliability.Options("kills", kills=4, kinds=("train", "sample"), output=tmp_path)
    monkeypatch.setattr(reliability, "A_CHAIN", 2)
    found = reliability.main(options)
    assert found["good"], found
    assert found["kills"] == 4
    assert found["results that differ"] == 0
    parts = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("kills-*.json")}
    assert len(parts) == 2
    assert reliability.main(options)["kills"] == 4
    assert {p: p.stat().st_mtime_ns for p in parts} == parts
    assert json.loads((tmp_path / "kills.json").read_text())["good"]


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_one(tmp_path: Path) -> None:
    try:
        with damage.mounted(tmp_path / "mine"):
            pass
    except (PermissionError, FileNotFoundError):
        pytest.skip("only root may mount")
    found = damage.disks(tmp_path, shares=(0.3,))
    assert found["good"], found


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path) -> None:
    found = endurance.soak(tmp_path, minutes=0.2, every=1.0)
    assert found["exit status after SIGTERM"] == 130
    assert found["checkpoints"] > 1
    assert (tmp_path / "soak.png").stat().st_size > 5000


def test_the_most_memory_of_a_command() -> None:
    found = endurance.most_memory(
        [sys.executable, "-c", "import time; x = bytearray(50 * 2**20); time.sleep(0.2)"]
    )
    assert found["status"] == 0
    assert 50 < found["MiB"] < 200
    assert endurance.most_memory([sys.executable, "-c", "1 / 0"])["end"] == [
        "ZeroDivisionError: division by zero"
    ]
