"""Several processes on loopback: the same losses, checkpoints and samples as one process."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import distributed
from jaxdiff.runs import cache
from jaxdiff.training import hosts

LIMIT = 300  # seconds, for what takes ten on idle cores
SCHEDULE = jd.schedules.cosine()
OPTIMIZER = training.make_optimizer(1e-2, num_steps=20, warmup=3)


def network(params: dict, x: jax.Array, t: jax.Array, label: Any = None, **_: Any) -> jax.Array:
    return x @ params["w"] + t[:, None] * params["b"][None]


def initial() -> training.TrainState:
    params = {"w": jax.random.normal(jax.random.key(5), (4, 4)) / 2, "b": jnp.ones(4) / 10}
    return training.init_state(jax.random.key(1), params, OPTIMIZER)


def batch(step: int, rank: int = 0, world: int = 1) -> tuple[np.ndarray, None]:
    rows = np.random.default_rng(step).normal(size=(16, 4)).astype(np.float32)
    return rows[rank * 16 // world : (rank + 1) * 16 // world], None


def losses(state: Any, num_steps: int, *, sharded: bool = False) -> tuple[Any, list[float]]:
    """Train on all devices of all processes."""
    step = training.make_step(training.denoising_loss(network, SCHEDULE), OPTIMIZER)
    found: list[float] = []

    def after(progress: training.Progress) -> None:
        found.append(float(progress.metrics["loss"]))

    def own(n: int) -> tuple[np.ndarray, None]:
        return batch(n, jax.process_index(), jax.process_count())

    state = training.fit(step, state, own, num_steps, after=after, sharded=sharded)
    return state, found


def of_process(folder: Path) -> None:
    """What each of two processes does; the first one leaves what it found in a file."""
    rank, world = jax.process_index(), jax.process_count()
    assert (world, len(jax.devices()), len(jax.local_devices())) == (2, 4, 2)
    with training.lock(folder), training.Checkpoints(folder / "checkpoints") as checkpoints:
        assert checkpoints.restore(jax.eval_shape(initial)) is None
        state, found = losses(initial(), 4)
        checkpoints.save(4, state, loss=1.0)
        _, divided = losses(initial(), 4, sharded=True)
        after = checkpoints.restore(jax.eval_shape(initial))
    assert training.checkpoints.digest(after) == training.checkpoints.digest(state)
    assert hosts.from_first({"rank": rank}) == {"rank": 0}
    assert hosts.gather(b"ab" * (1 + rank)) == [b"ab", b"abab"]
    assert hosts.any_of(rank == 1)
    assert not hosts.any_of(False)

    def make(numbers: list[int]) -> list[dict[str, np.ndarray]]:
        (folder / f"made-{rank}-{numbers[0]}").touch()
        return [{"x": np.full(2 + n, n)} for n in numbers]

    paths = [folder / "parts" / f"{n}.npz" for n in range(5)]
    for _ in range(2):  # the second time all are there
        parts = cache.resumable(paths, make)
        assert [part["x"].tolist() for part in parts] == [[n] * (2 + n) for n in range(5)]
    with training.Log(folder) as log:
        log.write(1, rank=float(rank))
    training.write_json(folder / "found.json", {"rank": rank, "losses": found, "sharded": divided})


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment() -> dict[str, str]:
    here = Path(__file__).resolve()
    paths = [str(here.parents[1]), str(here.parent), *sys.path]
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": os.pathsep.join(paths)}


def options(port: int, rank: int) -> list[str]:
    where = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2"]
    return [*where, "--process-id", str(rank)]


OWN = """
import sys
from pathlib import Path
from jaxdiff.cli import distributed
options, (folder,) = distributed.take(sys.argv[1:])
with distributed.joined(options):
    import test_hosts
    test_hosts.of_process(Path(folder))
"""


def start(command: list[str]) -> list[subprocess.Popen]:
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *command, *options(port, rank)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each; a hang is a failure."""
    try:
        return [(*reversed(p.communicate(timeout=LIMIT)), p.returncode)[::-1] for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=60)


@pytest.mark.usefixtures("plain_programs")
def test_two_processes_are_one_program(tmp_path: Path) -> None:
    """Two processes of two devices against four devices here: losses, checkpoints, shares of work, files."""
    for status, _, errors in finish(start(["-c", OWN, str(tmp_path)])):
        assert status == 0, errors
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rank"] == 0  # it alone writes
    assert [line["rank"] for line in training.read_log(tmp_path)] == [0]
    state, expected = losses(initial(), 4)
    np.testing.assert_allclose(found["losses"], expected, rtol=1e-6)  # the order of a sum
    np.testing.assert_allclose(found["sharded"], expected, rtol=1e-6)
    made = sorted(path.name for path in tmp_path.glob("made-*"))
    assert made == ["made-0-0", "made-0-2", "made-0-4", "made-1-1", "made-1-3"]
    assert len(list((tmp_path / "parts").iterdir())) == 5
    with training.Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        saved = checkpoints.restore(jax.eval_shape(initial))
    for leaf, here in zip(*map(jax.tree.leaves, (saved.params, state.params)), strict=True):
        np.testing.assert_allclose(leaf, here, atol=1e-6)
    # One process on four devices and on one goes on from what two processes have saved.
    for devices in (jax.devices(), jax.devices()[:1]):
        step = training.make_step(training.denoising_loss(network, SCHEDULE), OPTIMIZER)
        assert training.fit(step, saved, batch, 6, devices=devices).step == 6


def test_parts_go_through_bytes() -> None:
    """Arrays beside scalars of NumPy, as posterior parts have them; and values of JSON."""
    parts = [{"x": np.arange(6.0).reshape(2, 3), "seconds": np.float64(0.5)}, {"a": [1, "b"]}]
    arrays, values = hosts.unpacked(hosts.packed(parts))
    np.testing.assert_array_equal(arrays["x"], parts[0]["x"])
    assert arrays["x"].dtype == np.float64
    assert (arrays["seconds"].shape, float(arrays["seconds"])) == ((), 0.5)
    assert values == parts[1]
    assert hosts.unpacked(hosts.packed([])) == hosts.unpacked(b"") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinator", "here:1234"], "expected all three of them or none"),
        (["--coordinator", "here", "--num-processes", "2", "--process-id", "0"], "expected HOST:PORT, got 'here'"),
        (["--coordinator", "h:99999", "--num-processes", "2", "--process-id", "0"], "expected HOST:PORT"),
        (["--coordinator", "h:1", "--num-processes", "2", "--process-id", "2"], "process-id: expected 0 to 2 - 1"),
        (["--num-processes", "two"], "num-processes: invalid int value"),
        (["--patience", "0"], "patience: expected seconds above 0, got 0.0"),
    ],
)  # fmt: skip
def test_bad_options_of_several_processes(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distributed.take(arguments)


def test_options_of_several_processes_are_taken_out() -> None:
    found, rest = distributed.take(["digits", "--patience", "5", *options(1234, 1), "--steps", "3"])
    assert found == (True, "127.0.0.1:1234", 2, 1, 5.0)
    assert rest == ["digits", "--steps", "3"]
    assert not distributed.take([])[0].distributed


STEPS = 60
TRAIN = [
    "-m", "jaxdiff", "train", "digits", "--network.channels", "8", "--network.multipliers", "1",
    "--batch-size", "16", "--log-every", "1", "--eval-every", "4", "--steps", str(STEPS),
]  # fmt: skip


def alone(run: Path, devices: int) -> list[float]:
    """The losses of a run that one process ends."""
    done = subprocess.run(
        [sys.executable, *TRAIN, "--run", str(run)],
        env={**environment(), "JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line["loss"] for line in training.read_log(run) if "loss" in line]


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_run_goes_on(tmp_path: Path) -> None:
    """Two processes train, one is killed, the other ends; one process goes on, on one device or on four."""
    whole = alone(tmp_path / "whole", 4)
    for victim, devices in ((1, 1), (0, 4)):
        run = tmp_path / f"killed-{victim}"
        processes = start([*TRAIN, "--run", str(run)])
        until = time.monotonic() + LIMIT
        while not (run / "checkpoints" / "4").exists():
            assert time.monotonic() < until
            assert processes[0].poll() is None, finish(processes)
            time.sleep(0.1)
        processes[victim].kill()
        status, _, errors = finish(processes)[1 - victim]
        assert status not in (0, None)
        assert "task died" in errors or "another process" in errors
        assert len(training.read_log(run)) < STEPS  # it was killed on the way
        np.testing.assert_allclose(alone(run, devices), whole, rtol=1e-3)  # sums in other orders


@pytest.mark.slow
def test_samples_and_measures_are_those_of_one_process(tmp_path: Path) -> None:
    """Two processes of two devices draw, evaluate and draw posteriors like one process of two devices."""
    small = [*TRAIN, "--run", str(tmp_path / "one"), "--steps", "8"]
    environment_of_one = environment()
    commands = {
        "sample": ["--num", "70", "--steps", "4"],
        "evaluate": [
            "--samples", "20", "--steps", "4", "--examples", "32", "--num-times", "2",
            "--classifier-steps", "10", "--probability.examples", "32",
            "--probability.term-examples", "8", "--probability.steps", "4",
            "--probability.path-examples", "0", "--probability.ode-examples", "8",
            "--probability.ode-steps", "4", "--probability.ais-examples", "0",
        ],
        "posterior": [
            "--images", "3", "--calibration", "10", "--draws", "4", "--rows", "2", "--steps", "4",
        ],
    }  # fmt: skip

    def one(arguments: list[str]) -> None:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, env=environment_of_one, capture_output=True, text=True, timeout=LIMIT, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    one(small)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    found = {}
    for command, given in commands.items():
        one(["-m", "jaxdiff", command, str(tmp_path / "one"), *given])
        for status, _, errors in finish(
            start(["-m", "jaxdiff", command, str(tmp_path / "two"), *given])
        ):
            assert status == 0, errors
    for name in ("one", "two"):
        run = tmp_path / name
        with np.load(next(run.rglob("samples.npz"))) as file:
            x = file["x"] if "x" in file.files else file[file.files[0]]
        figures = [
            json.loads(next(run.rglob(f"{each}.json")).read_text())
            for each in ("evaluation", "posterior")
        ]
        found[name] = (x, figures)
    np.testing.assert_allclose(found["two"][0], found["one"][0], atol=1e-5)
    for two, whole in zip(found["two"][1], found["one"][1], strict=True):
        assert_near(two, whole)


def assert_near(found: Any, expected: Any, where: str = "") -> None:
    """Numbers agree but for times and rates."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            if "seconds" not in name and "machine" not in name and "run" not in name:
                assert_near(found[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for n, each in enumerate(expected):
            assert_near(found[n], each, f"{where}[{n}]")
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3, err_msg=where)
    else:
        assert found == expected, where
