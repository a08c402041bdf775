"""The commands of jaxdiff. `jaxdiff COMMAND --help` shows every option with its default.

This module imports nothing that is heavy: the process is set up before jax is imported.
"""

import importlib
import os
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

from jaxdiff._extras import needs
from jaxdiff.cli import distributed
from jaxdiff.cli.process import set_up

__all__ = ["COMMANDS", "main", "set_up"]

INTERRUPTED = 130  # the exit status

COMMANDS = {
    "train": "train a diffusion model; the same command again goes on with a stopped run",
    "sample": "draw samples from a run or from a network that ships: a sheet, a GIF, the arrays",
    "evaluate": "measure a run on held-out data: probability, denoising error, sample quality",
    "posterior": "draw images given a part of them, or a blurred or noisy view; with evidence",
    "interpolate": "make strips from one image to another, through the latents of the ODE",
    "compare": "compare the samplers: error against number of network calls",
    "prepare": "prepare MNIST or a relative from its four IDX files",
    "export": "pack a run of images into one small file, or a sampler as a StableHLO program",
    "play": "open a page to play with a network: samples, and hidden parts of a picture",
    "report": "write a run's pictures and figures as one HTML page",
    "demo": "train on the embedded digits, sample, evaluate, report: minutes on two cores",
    "env": "print the versions, the devices and the memory",
}


def main(command: str | None = None) -> None:
    """Run a command, and end the program with its exit status.

    Args:
      command: its name; the first argument of the program if None.
    """
    arguments = sys.argv[1:]
    prog = Path(sys.argv[0]).name
    if command is None:
        command, *arguments = arguments or ["--help"]
        prog = f"jaxdiff {command}"
    if command in ("-h", "--help"):
        print(usage())
        return
    if command not in COMMANDS:
        print(f"error: there is no command {command!r}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    try:
        processes, arguments = distributed.take(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if processes.distributed and processes.process_id != 0:
        os.environ.setdefault("TQDM_DISABLE", "1")  # tqdm reads it when it is imported
    set_up()
    run(command, arguments, prog=prog, processes=processes)


def run(
    command: str,
    arguments: list[str],
    *,
    prog: str,
    processes: distributed.Processes | None = None,
) -> None:
    """Run a command in a process that is set up.

    Args:
      command: its name.
      arguments: its options, as they were typed.
      prog: what the help calls the program.
      processes: the options of several processes, and the patience.
    """
    processes = distributed.take([])[0] if processes is None else processes
    try:
        tyro = needs("tyro", extra="cli")
        from jaxdiff.cli.errors import one_line_errors
        from jaxdiff.training import Watch
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}")
    with distributed.joined(processes), one_line_errors(processes.patience):
        module = importlib.import_module(f"jaxdiff.cli.{command}")
        if hasattr(module, "parse"):
            options = module.parse(arguments, prog)
        else:
            options = tyro.cli(
                module.Options, prog=prog, description=module.__doc__, args=arguments
            )
        # If XLA loses a result, all threads sleep. The page of `play` has to wait for its reader.
        waits = nullcontext() if command == "play" else Watch("a result", idle=True)
        with waits:
            done = module.main(options)
        if done is False:  # stopped on the way
            sys.exit(INTERRUPTED)


def usage() -> str:
    """List the commands, a line each.

    Returns:
      Text.
    """
    lines = [f"  {name:12} {text}" for name, text in COMMANDS.items()]
    head = "usage: jaxdiff COMMAND [OPTIONS]\n\nDiffusion models, proved against exact answers.\n"
    foot = "\njaxdiff COMMAND --help shows the options of a command."
    return "\n".join([head, *lines, foot, distributed.HELP])


def typed() -> str:
    """Return the command line of this program, to be typed again.

    Returns:
      Text, quoted for a shell.
    """
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        return shlex.join([sys.executable, "-m", "jaxdiff", *sys.argv[1:]])
    start = [name] if name == "jaxdiff" else [sys.executable, sys.argv[0]]
    return shlex.join([*start, *sys.argv[1:]])
