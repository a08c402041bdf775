"""The machine in words, for the figures that it made."""

import platform
from pathlib import Path

import jax

from jaxdiff import _machine


def describe() -> str:
    """Name the cores that this process may use, the devices and the version of jax."""
    device = jax.devices()[0].device_kind
    lines = _machine.read(Path("/proc/cpuinfo")).splitlines()
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    cpu = next(names, platform.processor())
    devices = f"{jax.local_device_count()} x {device}"
    return f"{_machine.cores()} cores of {cpu}; {devices}; jax {jax.__version__}"
