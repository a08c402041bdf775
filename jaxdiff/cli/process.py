"""Set the process up for speed: the compilation cache, CPU devices and memory."""

import glob
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from jaxdiff import _machine

# XLA allocates all temporaries of a step anew in each step. Huge pages from heaps that are kept
# (one a device) spare the kernel from clearing them again and again. The process then holds on to
# the most memory that it ever used.
TUNABLES = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**36}

# Devices wait for each other once a step. XLA ends the process after 40 s of that, and a busy
# machine or Ctrl-Z reaches them. An XLA that does not know an option ends the process too, and
# libtpu reads the same variable. So the option is given only to versions that it was tried on.
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=86400"
TRIED = ("0.10.", "0.11.", "0.12.")

DAMAGED = r"Error reading persistent compilation cache entry for '(.+?)'"

CLOSED = "Event loop is closed"

MARK = "JAXDIFF_PROCESS_IS_SET_UP"


def set_up() -> None:
    """Set what was measured to be fastest and what the user has not set.

    One XLA device a core, because XLA runs each convolution on one core. The compiled programs of
    any device are kept in the user's cache folder. glibc reads its tunables when a process starts:
    on Linux the process is started again, once, so call this before anything heavy is imported.
    Whether jax is imported already does not matter, but none of its devices may be in use.
    """
    _keep_huge_pages()
    flags = os.environ.get("XLA_FLAGS", "")
    if _knows_patience() and PATIENCE.split("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {PATIENCE}".strip()
    import jax

    settings = {
        "jax_compilation_cache_dir": cache_folder(),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_num_cpu_devices": _cpu_devices(),
    }
    for name, value in settings.items():
        if name.upper() not in os.environ and value is not None:
            jax.config.update(name, value)
    _mend_cache()
    _pass_over_closed_loops()
    # Rows need keys whose draws do not depend on the batch. Those of rbg do, which is another
    # common default.
    jax.config.update("jax_default_prng_impl", "threefry2x32")


def cache_folder() -> str | None:
    """Return the folder of compiled programs in the user's cache; None if it cannot be made."""
    try:
        folder = _user_cache() / "jaxdiff" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that is read-only, or none
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def _mend_cache() -> None:
    """Delete a damaged compiled program when JAX warns of it; JAX then writes it again.

    JAX writes these files in place. A kill or a full disk leaves half of one, which JAX would read
    in vain at every start, because it does not replace a file that exists.
    """
    import jax

    shown = warnings.showwarning

    def show(message: Any, *place: Any, **options: Any) -> None:
        damaged = re.match(DAMAGED, str(message))
        folder = jax.config.values["jax_compilation_cache_dir"]
        if damaged is None or folder is None:
            shown(message, *place, **options)
            return
        for path in Path(folder).glob(f"{glob.escape(damaged[1])}-*"):
            path.unlink(missing_ok=True)

    warnings.showwarning = show


def _pass_over_closed_loops() -> None:
    """Do not show what comes too late after a failed save.

    On a full disk one part of a checkpoint fails first, and Orbax closes its event loop. The
    failures of the other parts have no loop to go to, and each would print a traceback before the
    one line that says it all.
    """
    shown = sys.unraisablehook

    def show(late: Any) -> None:
        if not (isinstance(late.exc_value, RuntimeError) and CLOSED in str(late.exc_value)):
            shown(late)

    sys.unraisablehook = show


def _user_cache() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(chosen):  # the specification has others ignored
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _knows_patience() -> bool:
    version = importlib.metadata.version("jaxlib")
    return version.startswith(TRIED) and importlib.util.find_spec("libtpu") is None


def _cpu_devices() -> int:
    """One device for each core, rounded down to a power of two, at most 8.

    So the usual batch sizes divide evenly.
    """
    return min(8, 2 ** (_machine.cores().bit_length() - 1))


def _keep_huge_pages() -> None:
    again = MARK in os.environ
    os.environ[MARK] = "1"  # inherited, so that no child starts again either
    if again or platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    heaps = 1 + int(os.environ.get("JAX_NUM_CPU_DEVICES", _cpu_devices()))
    tunables = TUNABLES | {"arena_max": heaps}
    os.environ["GLIBC_TUNABLES"] = ":".join(
        f"glibc.malloc.{name}={value}" for name, value in tunables.items()
    )
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
