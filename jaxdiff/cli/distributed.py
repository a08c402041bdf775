"""Several processes, on one host or many: their options, and how a program starts and ends.

This module imports nothing that is heavy, because it is read before the process is set up.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

HELP = """
Every command runs on several processes too, one a host or more, over the devices of all of them:
  --distributed            find the others by the environment of SLURM, GKE or a TPU pod
  --coordinator HOST:PORT  or at this address of the first process, with
  --num-processes N        the number of processes, and
  --process-id I           the number of this one, 0 to N - 1
Each process is given the same command. The first one alone writes. When a process dies, JAX ends
the others within a minute and says so. The same command on all of them then goes on from what was
saved.

  --patience SECONDS       end with status 75 when a step, a save, a read or another process does
                           not answer for so long, or nothing is computed (default: 3600)

A command that Ctrl-C or SIGTERM stops saves its work and ends with status 130.
"""

PATIENCE = 3600.0
HEARTBEAT = 60  # seconds of silence after which JAX ends the others: threads of its own answer


class Processes(NamedTuple):
    """The options of this module."""

    distributed: bool
    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    patience: float


def take(arguments: list[str]) -> tuple[Processes, list[str]]:
    """Take this module's options out of a command line.

    Args:
      arguments: the command's.
    Returns:
      (the options, the other arguments).
    Raises:
      ValueError: the options do not fit together.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    parser.add_argument("--patience", type=float, default=PATIENCE)
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    options = Processes(**vars(found))
    given = [value is not None for value in options[1:4]]
    if any(given) and not all(given):
        raise ValueError(
            "coordinator, num-processes, process-id: expected all three of them or none"
        )
    if options.coordinator is not None:
        host, _, port = options.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"coordinator: expected HOST:PORT, got {options.coordinator!r}")
        num, own = options.num_processes, options.process_id
        if num is None or own is None or not 0 <= own < num:
            raise ValueError(f"process-id: expected 0 to {num} - 1 of num-processes, got {own}")
    if not options.patience > 0:
        raise ValueError(f"patience: expected seconds above 0, got {options.patience}")
    return options._replace(distributed=options.distributed or any(given)), rest


@contextmanager
def joined(options: Processes) -> Iterator[None]:
    """Join the other processes for the time of a command.

    All but the first process print nothing but errors. A process that fails ends at once, without
    waiting for the others, which then see that it is gone.

    Args:
      options: as `take` returns them.
    Returns:
      A context manager.
    Raises:
      ConnectionError: the others do not answer.
      ValueError: the environment does not say who the others are.
    """
    if not options.distributed:
        yield
        return
    _join(options)
    import jax

    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        yield
    except SystemExit as end:
        if end.code not in (None, 0):
            _end_at_once(end.code)
        raise
    except BaseException:
        import traceback

        traceback.print_exc()
        _end_at_once(1)
    _leave()


def _join(options: Processes) -> None:
    import jax

    seconds = max(1, int(options.patience))
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=seconds,
        )
    except ValueError as error:  # JAX has found no cluster
        raise ValueError(
            "distributed: the environment names no other processes (SLURM, GKE, TPU pod); give "
            "--coordinator HOST:PORT --num-processes N --process-id I"
        ) from error
    except Exception as error:  # of the connection
        where = options.coordinator or "the address that the environment gives"
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConnectionError(f"distributed: no answer from {where}: {line}") from error


def _leave() -> None:
    """Wait for the others, and end without JAX's second wait."""
    import jax

    from jaxdiff.training import Watch

    sys.stdout.flush()
    with Watch("the other processes to finish"):
        jax.distributed.shutdown()


def _end_at_once(status: object) -> None:
    """End this process without waiting for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)
