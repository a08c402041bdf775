"""The machine's resources that this process may use: control groups, cores and memory."""

import os
from collections.abc import Iterator
from pathlib import Path


def cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use: affinity, and quotas of its control groups.

    A part of a core does not count, because devices wait for the slowest one.

    Args:
      root: where the system's files lie.
    Returns:
      A number of at least 1.
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
        # -1 and max mean unlimited.
        if len(limit) == 2 and all(word.isdecimal() and int(word) for word in limit):
            yield int(limit[0]) / int(limit[1])


def memory_left(root: Path = Path("/")) -> int | None:
    """Count the bytes of memory left: on the machine, or under a container's limit if that is less.

    Args:
      root: where the system's files lie.
    Returns:
      Bytes, or None where the system does not say.
    """
    return min([*_of_machine(root), *_of_groups(root)], default=None)


def _of_machine(root: Path) -> Iterator[int]:
    for line in read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])


def _of_groups(root: Path) -> Iterator[int]:
    """The bytes left under the limit of each control group of this process."""
    for group, version in groups("memory", root):
        names = (
            ("memory.max", "memory.current")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        limit, used = (read(group / name).strip() for name in names)
        if limit.isdigit() and used.isdigit():
            files = dict(entry.split() for entry in read(group / "memory.stat").splitlines())
            # The system frees pages of files that were not read lately when memory is short.
            idle = int(files.get("total_inactive_file", files.get("inactive_file", 0)))
            yield max(0, int(limit) - int(used) + idle)


def groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """List the control groups of this process, inner ones first, each with its version, 1 or 2.

    Inside a container a group's own path is often not there. The container's group is then the
    root of the mount.

    Args:
      controller: "cpu" or "memory".
      root: where the system's files lie.
    Returns:
      An iterator of (folder of the group, version).
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
    """Read a file's text; it is empty where the file cannot be read.

    Args:
      path: the file.
    Returns:
      Text.
    """
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
