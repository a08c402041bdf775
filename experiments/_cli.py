"""What every script does with its errors: one clear line, and an exit code that is not zero."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import _memory
import jax


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print what the user can mend in one line; JAXDIFF_TRACEBACK=1 shows where it was raised."""
    try:
        with _memory.in_words():
            yield
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, ArithmeticError, jax.errors.JaxRuntimeError) as error:
        if os.environ.get("JAXDIFF_TRACEBACK"):
            raise
        print(f"error: {str(error).splitlines()[0] if str(error) else type(error).__name__}", file=sys.stderr)
        sys.exit(1)


def machine() -> str:
    """The machine in words, for the figures it made."""
    device = jax.devices()[0].device_kind
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return f"{os.cpu_count()} cores of {cpu}; {jax.local_device_count()} x {device}; jax {jax.__version__}"
