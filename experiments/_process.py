"""Set the process up for speed, before JAX is imported: the compilation cache, and XLA's options for the CPU."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "jax"
SCRIPTS = (ROOT / "experiments", ROOT / "benchmarks")

# Fused reductions of XLA's CPU backend: experimental by name, so it is asked for only of versions it was tried on.
FUSION = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"
TRIED = ("0.10.", "0.12.")

MARK = "JAXDIFF_PROCESS_IS_SET_UP"


def configure() -> None:
    """Set what was measured to be fastest and the user has not set; start the process again where that is needed.

    glibc reads its tunables when a process starts: on Linux a script is started again, once, to have its large arrays
    in huge pages. Everything here is without effect on GPU and TPU programs.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_experimental_ynn_fusion_type" not in flags and _jaxlib().startswith(TRIED):
        os.environ["XLA_FLAGS"] = f"{flags} {FUSION}".strip()
    _use_huge_pages()


def _jaxlib() -> str:
    return importlib.metadata.version("jaxlib")


def _use_huge_pages() -> None:
    again = MARK in os.environ
    os.environ[MARK] = "1"  # inherited, so that no child starts again either
    is_script = Path(sys.argv[0]).resolve().parent in SCRIPTS  # and not a test or a notebook
    if again or not is_script or platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.argv])
