"""The set-up of a script's process, in processes of its own."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROCESS = Path(__file__).parents[1] / "experiments" / "_process.py"
OURS = ("JAXDIFF_PROCESS_IS_SET_UP", "GLIBC_TUNABLES", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES")
SCRIPT = """
import json, os, sys
import _process
_process.configure()
print(json.dumps([dict(os.environ), sys.argv[1:], sys.flags.utf8_mode]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A folder that looks like the repository, so that its script may be started again."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    shutil.copy(PROCESS, folder)
    return folder / "script.py"


def run(script: Path, *arguments: str, **environment: str) -> tuple[dict, list, int]:
    script.write_text(SCRIPT)
    inherited = {name: value for name, value in os.environ.items() if name not in OURS}
    command = [sys.executable, "-X", "utf8", str(script), *arguments]
    result = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert len(result.stdout.splitlines()) == 1  # started again before it printed, and only once
    return json.loads(result.stdout)


def test_a_script_is_started_again_with_its_arguments(script: Path) -> None:
    environment, arguments, utf8_mode = run(script, "--steps", "3", "a b")
    assert arguments == ["--steps", "3", "a b"]
    assert utf8_mode == 1
    assert ("hugetlb=1" in environment.get("GLIBC_TUNABLES", "")) == (platform.libc_ver()[0] == "glibc")
    assert Path(environment["JAX_COMPILATION_CACHE_DIR"]) == script.resolve().parents[1] / ".cache" / "jax"


def test_what_the_user_has_set_stays(script: Path) -> None:
    mine = {
        "GLIBC_TUNABLES": "glibc.malloc.check=0",
        "JAX_COMPILATION_CACHE_DIR": "/somewhere",
        "JAX_NUM_CPU_DEVICES": "3",
        "XLA_FLAGS": "--xla_cpu_collective_call_terminate_timeout_seconds=7",
    }
    environment, _, _ = run(script, **mine)
    assert {name: environment[name] for name in mine} == mine


def test_the_largest_power_of_two_of_devices_that_the_cores_allow(script: Path) -> None:
    devices, cores = int(run(script)[0]["JAX_NUM_CPU_DEVICES"]), os.cpu_count() or 1
    assert devices in (1, 2, 4, 8)
    assert devices <= cores
    assert devices == 8 or 2 * devices > cores


def test_other_flags_of_xla_are_kept(script: Path) -> None:
    flags = run(script, XLA_FLAGS="--xla_cpu_enable_fast_math=false")[0]["XLA_FLAGS"].split()
    assert flags[0] == "--xla_cpu_enable_fast_math=false"


def test_jax_accepts_the_flags(script: Path) -> None:
    """An option that XLA does not know ends the process: so this one must be known, or not be asked for."""
    environment, _, _ = run(script)
    command = [sys.executable, "-c", "import jax; print(jax.jit(lambda: 1 + 1)())"]
    assert (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
        == "2\n"
    )
