"""The set-up of a script's process, in processes of its own."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import _process
import pytest

PROCESS = Path(__file__).parents[1] / "experiments" / "_process.py"
OURS = (
    "JAXDIFF_PROCESS_IS_SET_UP",
    "GLIBC_TUNABLES",
    "XLA_FLAGS",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_NUM_CPU_DEVICES",
)
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
        command,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert len(result.stdout.splitlines()) == 1  # started again before it printed, and only once
    return json.loads(result.stdout)


def test_a_script_is_started_again_with_its_arguments(script: Path) -> None:
    environment, arguments, utf8_mode = run(script, "--steps", "3", "a b")
    assert arguments == ["--steps", "3", "a b"]
    assert utf8_mode == 1
    assert ("hugetlb=1" in environment.get("GLIBC_TUNABLES", "")) == (
        platform.libc_ver()[0] == "glibc"
    )
    assert (
        Path(environment["JAX_COMPILATION_CACHE_DIR"])
        == script.resolve().parents[1] / ".cache" / "jax"
    )


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
    devices, cores = int(run(script)[0]["JAX_NUM_CPU_DEVICES"]), _process.cores()
    assert devices in (1, 2, 4, 8)
    assert devices <= cores
    assert devices == 8 or 2 * devices > cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux has an affinity")
def test_cores_are_those_of_the_affinity() -> None:
    first = min(os.sched_getaffinity(0))
    program = f"import os, _process; os.sched_setaffinity(0, [{first}]); print(_process.cores(), _process._cpu_devices())"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=PROCESS.parent, capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.split() == ["1", "1"]


V1 = "4:memory:/a\n2:cpu,cpuacct:/a/b\n0::/\n"
GROUPS = {  # /proc/self/cgroup, files of the groups, cores of eight
    "none": (None, {}, 8),
    "v2": ("0::/a/b\n", {"a/b/cpu.max": "300000 100000"}, 3),
    "v2, no limit": ("0::/a/b\n", {"a/b/cpu.max": "max 100000"}, 8),
    "v2, of a parent": ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2),
    "v2, the tightest": ("0::/a/b\n", {"a/b/cpu.max": "500000 100000", "a/cpu.max": "700000 100000"}, 5),
    "v2, in a container": ("0::/\n", {"cpu.max": "200000 100000"}, 2),
    "v2, of a path that is not there": ("0::/docker/1\n", {"cpu.max": "200000 100000"}, 2),
    "v2, a name with a space": ("0::/a b: c\n", {"a b: c/cpu.max": "200000 100000"}, 2),
    "v2, less than a core": ("0::/a\n", {"a/cpu.max": "50000 100000"}, 1),
    "v2, more than there are": ("0::/a\n", {"a/cpu.max": "6400000 100000"}, 8),
    "v2, without a sense": ("0::/a\n", {"a/cpu.max": "\n"}, 8),
    "v1": (V1, {f"cpu,cpuacct/a/b/cpu.cfs_{name}_us": n for name, n in (("quota", "400000"), ("period", "100000"))}, 4),
    "v1, no limit": (V1, {f"cpu,cpuacct/a/b/cpu.cfs_{name}_us": n for name, n in (("quota", "-1"), ("period", "100000"))}, 8),
    "v1, in a container": (V1, {f"cpu,cpuacct/cpu.cfs_{name}_us": n for name, n in (("quota", "100000"), ("period", "50000"))}, 2),
    "not a line of groups": ("nonsense\n", {}, 8),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUPS)
def test_cores_are_those_of_the_control_groups(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    listed, files, expected = GROUPS[case]
    for name, text in {f"sys/fs/cgroup/{name}": text for name, text in files.items()}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    if listed is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(listed)
    assert _process.cores(tmp_path) == expected


def test_keys_are_of_the_kind_that_rows_need(script: Path) -> None:
    environment, _, _ = run(script, JAX_DEFAULT_PRNG_IMPL="rbg")
    program = "import jax; print(jax.random.key_impl(jax.random.key(0)))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout == "threefry2x32\n"


def test_other_flags_of_xla_are_kept(script: Path) -> None:
    flags = run(script, XLA_FLAGS="--xla_cpu_enable_fast_math=false")[0]["XLA_FLAGS"].split()
    assert flags[0] == "--xla_cpu_enable_fast_math=false"


def test_jax_accepts_the_flags(script: Path) -> None:
    """An option that XLA does not know ends the process: so this one must be known, or not be asked for."""
    environment, _, _ = run(script)
    command = [sys.executable, "-c", "import jax; print(jax.jit(lambda: 1 + 1)())"]
    assert (
        subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=600
        ).stdout
        == "2\n"
    )
