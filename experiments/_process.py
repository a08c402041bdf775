"""Set the process up for speed, before JAX is imported: the compilation cache, and XLA's options for the CPU."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "jax"
SCRIPTS = (ROOT / "experiments", ROOT / "benchmarks")

# XLA's default runs each convolution on one core: right with a device a core, slow with one device for all of them.
# Experimental by name, so it is asked for only of versions it was tried on; libtpu reads the same variable, and an
# XLA that does not know an option stops the process.
FUSION = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"
TRIED = ("0.10.", "0.12.")

# XLA allocates all of a step's temporaries anew each step. Huge pages, taken from one heap that is kept, spare the
# kernel from clearing them again and again; the process then holds on to the most memory it ever used.
TUNABLES = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**36, "arena_max": 1}

MARK = "JAXDIFF_PROCESS_IS_SET_UP"


def configure(num_devices: int | None = None) -> None:
    """Set what was measured to be fastest and the user has not set; start the process again where that is needed.

    glibc reads its tunables when a process starts: on Linux a script is started again, once, to keep its large arrays
    in huge pages. Everything here is without effect on GPU and TPU programs.

    Args:
      num_devices: CPU devices, None for JAX's default of one; one a core is the faster way to train with pmap.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if num_devices is not None:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(num_devices))
    flags = os.environ.get("XLA_FLAGS", "")
    if _fusion_helps() and "xla_cpu_experimental_ynn_fusion_type" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FUSION}".strip()
    _keep_huge_pages()


def training_devices() -> int:
    """One device a core, down to a power of two and at most 8, so that the usual batch sizes divide evenly."""
    return min(8, 2 ** ((os.cpu_count() or 1).bit_length() - 1))


def _fusion_helps() -> bool:
    one_device = os.environ.get("JAX_NUM_CPU_DEVICES", "1") in ("1", "-1")
    tried = importlib.metadata.version("jaxlib").startswith(TRIED)
    return one_device and tried and importlib.util.find_spec("libtpu") is None


def _keep_huge_pages() -> None:
    again = MARK in os.environ
    os.environ[MARK] = "1"  # inherited, so that no child starts again either
    is_script = Path(sys.argv[0]).resolve().parent in SCRIPTS  # and not a test or a notebook
    if again or not is_script or platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items())
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
