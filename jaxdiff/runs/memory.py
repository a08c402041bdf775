"""Memory of the machine: rows in chunks, an estimate before training, and clear errors."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff import _machine

ANYWAY = "JAXDIFF_ANYWAY"
GIB = 2**30
# Values of examples, as float64, that one figure holds at once: the first 20,000 images of MNIST.
NUMBERS = 2**24
SMALLER = (
    "lower --batch-size, --network.channels or --network.multipliers, or use --network.patch 2"
)


def in_chunks(function: Callable[..., Any], size: int, *rows: Any) -> Any:
    """Apply a function to chunks of rows, and join the results on the host.

    All chunks have the same shape, so one compiled program is enough. Copies of the last row fill
    the last chunk, and their results are cut off. An argument may be None instead of rows.
    """
    num = max(len(part) for part in rows if part is not None)
    size, parts = min(size, num), []
    for start in range(0, num, size):
        index = np.minimum(np.arange(start, start + size), num - 1)
        out = function(*(None if part is None else part[index] for part in rows))
        parts.append(jax.tree.map(lambda leaf, start=start: np.asarray(leaf)[: num - start], out))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def affordable(num: int, event_shape: tuple[int, ...]) -> int:
    """Number of examples, at most num, that together hold at most NUMBERS numbers."""
    return max(2, min(num, NUMBERS // int(np.prod(event_shape))))


def available(device: jax.Device, *, root: Path = Path("/")) -> int | None:
    """Return the bytes that a device has left; None if unknown.

    For a CPU this is the memory left on the machine, or under a container's limit if that is less.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    return _machine.memory_left(root)


def fitting(
    function: Any, *arguments: Any, devices: list[jax.Device], change: str = SMALLER
) -> Any:
    """Compile a mapped function for these arguments, and refuse it if it needs too much memory.

    The compiler knows how much memory the program needs besides its arguments. The function is
    compiled once: the returned program is the one that was checked. The devices of a CPU share the
    machine's memory.

    Raises:
      ValueError: it needs more memory than is left, and JAXDIFF_ANYWAY=1 is not set.
    """
    compiled = function.lower(*arguments).compile()
    needed, left = _needed(compiled, devices), available(devices[0])
    if needed is None or left is None:
        return compiled
    if needed > left and os.environ.get(ANYWAY, "0") in ("", "0"):
        raise ValueError(
            f"memory: an update takes {needed / GIB:.2f} GiB, and {left / GIB:.2f} GiB are left: "
            f"{change}; {ANYWAY}=1 tries it all the same"
        )
    return compiled


def _needed(compiled: Any, devices: list[jax.Device]) -> int | None:
    """The bytes that a compiled program takes besides its arguments; None if unknown."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    new = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return new * (len(devices) if devices[0].platform == "cpu" else 1)


def in_use(compiled: Any, devices: list[jax.Device]) -> str:
    """Say how much memory an update takes, and how much is left."""
    needed, left = _needed(compiled, devices), available(devices[0])
    takes = "an unknown amount of memory" if needed is None else f"{needed / GIB:.2f} GiB"
    return f"an update takes {takes}" + (f" of {left / GIB:.1f} GiB left" if left else "")


@contextmanager
def in_words() -> Iterator[None]:
    """Turn any out-of-memory error into one that says what to lower."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        text = str(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and not _is_memory(text):
            raise
        first = text.splitlines()[0] if text else "no more is left"
        change = "lower the batch size, the number of examples or the size of the network"
        raise OSError(f"out of memory ({first}): {change}") from error


def _is_memory(text: str) -> bool:
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
