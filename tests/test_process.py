"""The set-up of a program's process, in processes of its own."""

import json
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from jaxdiff import _machine
from jaxdiff.cli import process

OURS = (
    "JAXDIFF_PROCESS_IS_SET_UP",
    "GLIBC_TUNABLES",
    "XLA_FLAGS",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_DEFAULT_PRNG_IMPL",
    "JAX_NUM_CPU_DEVICES",
    "JAX_PLATFORMS",
    "XDG_CACHE_HOME",
)
SCRIPT = """
import json, os, sys
from jaxdiff.cli import set_up
set_up()
import jax
jax.config.update("jax_platforms", "cpu")
print(json.dumps({
    "environment": dict(os.environ), "arguments": sys.argv[1:], "utf8": sys.flags.utf8_mode,
    "cache": jax.config.values["jax_compilation_cache_dir"], "devices": jax.device_count(),
    "keys": str(jax.random.key_impl(jax.random.key(0))), "two": int(jax.jit(lambda: 1 + 1)()),
}))
"""


def run(folder: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """What a script finds after its set-up."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    inherited = {name: value for name, value in os.environ.items() if name not in OURS}
    command = [sys.executable, "-X", "utf8", str(script), *arguments]
    result = subprocess.run(
        command,
        env=inherited | {"XDG_CACHE_HOME": str(folder / "cache")} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert len(result.stdout.splitlines()) == 1  # started again before it printed, and only once
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a user who has set nothing but the cache folder, with the folder."""
    folder = tmp_path_factory.mktemp("usual")
    return run(folder, "--steps", "3", "a b") | {"folder": folder}


@pytest.mark.slow
def test_a_script_is_started_again_with_its_arguments(usual: dict[str, Any]) -> None:
    assert usual["arguments"] == ["--steps", "3", "a b"]
    assert usual["utf8"] == 1
    tunables = usual["environment"].get("GLIBC_TUNABLES", "")
    assert ("hugetlb=1" in tunables) == (platform.libc_ver()[0] == "glibc")


def test_programs_are_kept_in_the_users_cache_folder(usual: dict[str, Any]) -> None:
    """Never beside the package, and not at all where it cannot be written."""
    assert Path(usual["cache"]) == usual["folder"] / "cache" / "jaxdiff" / "jax"
    assert any(Path(usual["cache"]).iterdir())  # a program of next to no compile time too


def test_a_cache_folder_that_cannot_be_made_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxdiff.cli import process

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert process.cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification has ignored
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    expected = "Library/Caches" if sys.platform == "darwin" else ".cache"
    assert process.cache_folder() == str(tmp_path / expected / "jaxdiff" / "jax")


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    mine = {
        "GLIBC_TUNABLES": "glibc.malloc.check=0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "somewhere"),
        "JAX_NUM_CPU_DEVICES": "3",
        "XLA_FLAGS": "--xla_cpu_collective_call_terminate_timeout_seconds=7",
    }
    found = run(tmp_path, **mine)
    assert {name: found["environment"][name] for name in mine} == mine
    assert found["cache"] == mine["JAX_COMPILATION_CACHE_DIR"]
    assert found["devices"] == 3


def test_the_largest_power_of_two_of_devices_that_the_cores_allow(usual: dict[str, Any]) -> None:
    devices, cores = usual["devices"], _machine.cores()
    assert devices in (1, 2, 4, 8)
    assert devices <= cores
    assert devices == 8 or 2 * devices > cores


def test_keys_are_of_the_kind_that_rows_need_and_flags_of_xla_are_kept(tmp_path: Path) -> None:
    """XLA ends a process with an option that it does not know: ours are known, or not asked for."""
    flags = "--xla_cpu_enable_fast_math=false"
    found = run(tmp_path, JAX_DEFAULT_PRNG_IMPL="rbg", XLA_FLAGS=flags)
    assert found["keys"] == "threefry2x32"
    assert found["environment"]["XLA_FLAGS"].split()[0] == flags
    assert found["two"] == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux has an affinity")
def test_cores_are_those_of_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, [min(allowed)])
        assert _machine.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


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
    assert _machine.cores(tmp_path) == expected


def test_half_a_compiled_program_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX warns of it at every start and does not replace it; other warnings are shown as before."""
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(message))
    before = jax.config.values["jax_compilation_cache_dir"]
    process._mend_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        for name in ("jit_step-0a-cache", "jit_step_two-0b-cache"):
            (tmp_path / name).touch()
        said = "Error reading persistent compilation cache entry for 'jit_step': error: truncated"
        warnings.showwarning(said, UserWarning, "compiler.py", 1)
        assert [path.name for path in tmp_path.iterdir()] == ["jit_step_two-0b-cache"]
        warnings.showwarning("another", UserWarning, "compiler.py", 1)
        assert shown == ["another"]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_late_failures_of_a_save_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    process._pass_over_closed_loops()
    late, other = (
        SimpleNamespace(exc_value=RuntimeError(said))
        for said in ("Event loop is closed", "another")
    )
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert shown == [other]


HALF = """
from jaxdiff.cli import set_up
set_up()
import jax
import jax.numpy as jnp
print(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(5.0)))
"""


@pytest.mark.slow
def test_a_damaged_cache_of_programs_mends_itself(tmp_path: Path) -> None:
    def start() -> subprocess.CompletedProcess:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-c", HALF], env=environment, capture_output=True, text=True,
            check=True, timeout=300,
        )  # fmt: skip

    first = start()
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for n, (path, content) in enumerate(whole.items()):
        path.write_bytes(content[: n * len(content) // 2 // len(whole)])  # one is empty
    again = start()
    assert (again.stdout, again.stderr) == (first.stdout, "")
    assert {path: path.stat().st_size > 0 for path in tmp_path.iterdir()} == dict.fromkeys(
        whole, True
    )
    assert start().stderr == ""
    assert min(path.stat().st_size for path in whole) > 100
