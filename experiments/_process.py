"""Set the process up for speed, before JAX is imported: the compilation cache, CPU devices and memory."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "jax"
SCRIPTS = (ROOT / "experiments", ROOT / "benchmarks")

# XLA allocates all of a step's temporaries anew each step. Huge pages, taken from heaps that are
# kept (one a device), spare the kernel from clearing them again and again; the process then holds
# on to the most memory it ever used.
TUNABLES = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**36}

# Devices wait for each other once a step. XLA ends the process after 40 s of that, which a busy
# machine or Ctrl-Z reaches. An XLA that does not know an option ends the process too, and libtpu
# reads the same variable: so it is asked for only of versions it was tried on.
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=86400"
TRIED = ("0.10.", "0.11.", "0.12.")

MARK = "JAXDIFF_PROCESS_IS_SET_UP"


def configure() -> None:
    """Set what was measured to be fastest and the user has not set; start the process again where that is needed.

    One XLA device a core, over which the scripts pmap: XLA runs each convolution on one core. glibc
    reads its tunables when a process starts: on Linux a script is started again, once, to keep its
    large arrays in huge pages. GPU and TPU programs are cached too; the rest concerns the host
    alone.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(_cpu_devices()))
    # Rows need keys whose draws do not depend on the batch: those of rbg, another common default,
    # do.
    os.environ["JAX_DEFAULT_PRNG_IMPL"] = "threefry2x32"
    flags = os.environ.get("XLA_FLAGS", "")
    if _knows_patience() and PATIENCE.split("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {PATIENCE}".strip()
    _keep_huge_pages()


def _knows_patience() -> bool:
    return (
        importlib.metadata.version("jaxlib").startswith(TRIED)
        and importlib.util.find_spec("libtpu") is None
    )


def _cpu_devices() -> int:
    """One a core, down to a power of two and at most 8, so that the usual batch sizes divide evenly."""
    return min(8, 2 ** (cores().bit_length() - 1))


def cores(root: Path = Path("/")) -> int:
    """The cores that this process may use: by its affinity, and by the quotas of its control groups (v1 and v2).

    A quota of part of a core is left out: devices wait for each other, for the slowest one.
    """
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        allowed = float(len(os.sched_getaffinity(0)))
    else:
        allowed = float(os.cpu_count() or 1)
    return max(1, int(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The cores that each control group above this process allows."""
    for group, version in groups("cpu", root):
        files = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        limit = [word for name in files for word in read(group / name).split()]
        if len(limit) == 2 and all(
            word.isdecimal() and int(word) for word in limit
        ):  # -1 or max is no limit
            yield int(limit[0]) / int(limit[1])


def groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """The control groups that this process lies in, inner ones first, each with its version, 1 or 2.

    Inside a container a group's own path is often not there, and the container's group is the root
    of the mount.
    """
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        here = mount / path.lstrip("/")
        for group in (here, *here.parents):
            if not group.is_relative_to(mount):
                break
            yield group, 1 if controllers else 2


def read(path: Path) -> str:
    """A file's text, none where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _keep_huge_pages() -> None:
    again = MARK in os.environ
    os.environ[MARK] = "1"  # inherited, so that no child starts again either
    is_script = Path(sys.argv[0]).resolve().parent in SCRIPTS  # and not a test or a notebook
    if (
        again
        or not is_script
        or platform.libc_ver()[0] != "glibc"
        or "GLIBC_TUNABLES" in os.environ
    ):
        return
    tunables = TUNABLES | {"arena_max": 1 + int(os.environ["JAX_NUM_CPU_DEVICES"])}
    os.environ["GLIBC_TUNABLES"] = ":".join(
        f"glibc.malloc.{name}={value}" for name, value in tunables.items()
    )
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
