"""Print the versions, the devices and the memory: what a report of a fault should hold."""

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

import jaxdiff
from jaxdiff import _machine
from jaxdiff.runs import memory

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


@dataclass(frozen=True)
class Options:
    """No options."""


def main(options: Options) -> None:
    """Print what this process has."""
    print("\n".join(lines()))


def lines(root: Path = Path("/")) -> Iterator[str]:
    """The lines that are printed.

    Args:
      root: where the system's files lie.
    """
    yield f"jaxdiff {jaxdiff.__version__} in {Path(jaxdiff.__file__).parent}"
    yield f"Python {platform.python_version()} on {platform.platform()}"
    yield ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    for device in jax.local_devices():
        yield f"device {device.id}: {device.device_kind} ({device.platform}), {left(device)}"
    folder = jax.config.values["jax_compilation_cache_dir"]
    yield f"{_machine.cores()} cores; compiled programs are kept in {folder}"
    names = unused_gpus(root)
    if names and jax.default_backend() == "cpu":
        yield (
            f"warning: {names} is not used: jax runs on the CPU; install "
            'pip install "jaxdiff[cuda12]" (or cuda13, as the driver has it)'
        )


def version(name: str) -> str:
    """The version of a package, or that it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def left(device: jax.Device) -> str:
    """The memory that a device has left, in words."""
    num_bytes = memory.available(device)
    return "memory unknown" if num_bytes is None else f"{num_bytes / memory.GIB:.1f} GiB left"


def unused_gpus(root: Path) -> str:
    """The names of the NVIDIA devices that the driver knows, "" if none."""
    found = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    models = (
        line.partition(":")[2].strip()
        for path in found
        for line in _machine.read(path).splitlines()
        if line.startswith("Model:")
    )
    names = list(models)
    if not names and (root / "proc/driver/nvidia/version").exists():
        names = ["an NVIDIA GPU"]
    return ", ".join(names)
