"""Arrays on several devices: nothing but mapped functions runs on them, so that no run hangs."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ProgramsOnSeveralDevices

from jaxdiff import training
from jaxdiff.training import Watch

LEAVES = 30


def tree() -> dict[str, jax.Array]:
    """Leaves of their own shapes: an operation on each is a program of its own."""
    return {f"p{i}": jnp.arange(i + 1.0) for i in range(LEAVES)} | {"key": jax.random.key(3)}


def test_replicas_are_taken_off_their_devices_without_a_program_on_several() -> None:
    before = tree()
    with ProgramsOnSeveralDevices() as found:
        replicated = training.replicate(before, jax.devices())
        after = training.unreplicate(replicated)
    assert not found
    for leaf, expected in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert leaf.devices() == {jax.devices()[0]}
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(plain(leaf), plain(expected))


def plain(leaf: jax.Array) -> np.ndarray:
    return np.asarray(
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    )


def test_a_donated_state_takes_no_copy_along() -> None:
    """The update may reuse the state's memory: neither what it was made of nor what was taken of it goes with it."""

    def step(state: dict, batch: jax.Array) -> tuple[dict, jax.Array]:
        total = jax.lax.psum(batch.sum(), training.AXIS)
        return jax.tree.map(
            lambda leaf: leaf + total if leaf.dtype == jnp.float32 else leaf, state
        ), total

    update, before = training.map_step(step), tree()
    state = training.replicate(before, jax.devices())
    taken = training.unreplicate(state)
    after, total = update(state, np.ones(2 * len(jax.devices()), np.float32))
    assert all(
        leaf.is_deleted() for leaf in jax.tree.leaves(state)
    )  # donated, or the test shows nothing
    assert float(total) == 2 * len(jax.devices())
    for leaf, expected, moved in zip(*map(jax.tree.leaves, (taken, before, after)), strict=True):
        np.testing.assert_array_equal(plain(leaf), plain(expected))
        if leaf.dtype == jnp.float32:
            np.testing.assert_array_equal(moved, plain(leaf) + float(total))


@pytest.mark.parametrize(
    "operation", [lambda x: x[0], lambda x: x + 1, lambda x: float(x.mean()), jnp.stack]
)
def test_an_operation_on_several_devices_is_seen(operation) -> None:
    """What the whole suite is watched with (conftest) sees what it should."""
    array = jax.pmap(lambda x: 2 * x)(np.ones((len(jax.devices()), 3), np.float32))
    jax.clear_caches()
    with ProgramsOnSeveralDevices() as found:
        np.asarray(array)
        assert not found
        operation(array)
    assert found
    assert __file__ in found[0]


HANG = """
import sys
import time
import time
import jax, jax.numpy as jnp, numpy as np
from jaxdiff import training

def update(tree, x):
    h = x
    for _ in range(40):
        h = jnp.tanh(h @ x)
    change = jax.lax.pmean(h.sum(), training.AXIS)
    return jax.tree.map(lambda leaf: leaf + change, tree), change

devices = jax.local_devices()
assert len(devices) == 4
mapped = training.map_step(update, devices)
state = training.replicate({f"p{i}": jnp.zeros((32, 32)) + i for i in range(300)}, devices)
x = np.random.default_rng(0).normal(size=(4 * 256, 256)).astype(np.float32) / 16
for _ in range(int(sys.argv[1])):
    state, change = mapped(state, x)
    training.unreplicate(state)
print("done")
"""


@pytest.mark.slow
def test_states_taken_while_updates_are_under_way_do_not_hang_busy_cores() -> None:
    """300 leaves, 4 devices, all cores busy: with `leaf[0]` in `unreplicate` this stops for ever within 100 rounds.

    That `unreplicate` runs no program on several devices, which could hang, is proved above.
    """
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = (
        "--xla_cpu_collective_call_terminate_timeout_seconds=300"  # slow is not stuck
    )
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(training.__file__).parents[2]), *sys.path]
    )
    try:
        command = [sys.executable, "-c", HANG, "400"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=True
        )
    finally:
        for process in busy:
            process.kill()
            process.wait(timeout=60)
    assert done.stdout == "done\n"


GAVE_UP = 75  # the exit status


def test_a_long_wait_says_what_it_waits_for(capsys: pytest.CaptureFixture) -> None:
    with Watch(news=0.2) as watch:
        watch("the quick step")
        watch("step 3 of 8 on 4 devices")
        time.sleep(0.5)
        watch("the step after it")
    out, err = capsys.readouterr()
    assert not out
    assert re.match(r"still waiting for step 3 of 8 on 4 devices: 0 s so far\n", err)
    assert set(re.findall(r"for (.*):", err)) == {"step 3 of 8 on 4 devices"}


def test_a_wait_without_an_end_ends_the_program() -> None:
    """From its own thread: the main one may be in a call that never returns."""
    text = "import time; from jaxdiff.training import Watch\nwith Watch('a peer', limit=0.3): time.sleep(60)"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == GAVE_UP
    line = r"error: gave up after 0 s of waiting for a peer; what was saved is whole: .*--patience"
    assert re.search(line, done.stderr)


def watched(work: str, options: str) -> subprocess.Popen:
    """A program that does some work under a watch, and says when it begins."""
    text = f"import time; from jaxdiff.training import Watch\nwith Watch('it', {options}):\n    print('on', flush=True)\n    {work}"
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


def test_work_is_no_wait_where_only_idle_time_counts() -> None:
    busy = "end = time.monotonic() + 2\n    while time.monotonic() < end: pass"
    with watched(busy, "limit=0.5, idle=True") as worker:
        assert worker.wait(timeout=60) == 0
    with watched(busy, "limit=0.5") as worker:
        assert worker.wait(timeout=60) == GAVE_UP
    with watched("time.sleep(60)", "limit=0.5, idle=True") as sleeper:
        assert sleeper.wait(timeout=60) == GAVE_UP


def test_a_stopped_program_has_not_waited() -> None:
    """Ctrl-Z for longer than the limit."""
    with watched("time.sleep(2)", "limit=4.0") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "on\n"
        program.send_signal(signal.SIGSTOP)
        time.sleep(6)
        program.send_signal(signal.SIGCONT)
        assert program.wait(timeout=60) == 0


def test_a_command_that_computes_nothing_ends() -> None:
    """A result that XLA never delivers leaves no thread at work: the watch of `cli.run` ends the command."""
    text = (
        "import time, jaxdiff.cli.env as env; from jaxdiff import cli\n"
        "env.main = lambda options: time.sleep(60)\n"
        "cli.run('env', [], prog='jaxdiff env', processes=cli.distributed.take(['--patience', '0.5'])[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == GAVE_UP
    assert "gave up after" in done.stderr
    assert "of waiting for a result" in done.stderr


@pytest.mark.slow
def test_a_test_that_hangs_ends_with_its_stack(tmp_path: Path) -> None:
    """By the suite's own configuration, with a shorter limit, in a worker as `make test` has them."""
    (tmp_path / "test_it.py").write_text(
        "import time\n\n\ndef test_stuck():\n    time.sleep(600)\n"
    )
    configuration = Path(__file__).parents[1] / "pyproject.toml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "1",
        "-p",
        "no:cacheprovider",
        "-c",
        str(configuration),
    ]
    command += [
        "--override-ini",
        "faulthandler_timeout=1",
        "--rootdir",
        str(tmp_path),
        str(tmp_path / "test_it.py"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
    assert re.search(r"test_it\.py\D+5 in test_stuck", done.stdout + done.stderr)
