"""Errors of a command: one clear line, and an exit status that is not zero."""

import dis
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import distributed
from jaxdiff.runs import memory
from jaxdiff.training import watch

PACKAGE = Path(jd.__file__).resolve().parent
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else PACKAGE
OURS = (PACKAGE, CHECKOUT / "experiments", CHECKOUT / "benchmarks")
NOT_YOURS = "this is a fault of jaxdiff and not yours: please report it with the lines above"


@contextmanager
def one_line_errors(patience: float = distributed.PATIENCE) -> Iterator[None]:
    """Print what the user can mend in one line, and any other error with its traceback.

    The program ends as well where it waits for longer than `patience` seconds.

    JAXDIFF_TRACEBACK=1 shows the traceback of every error.
    """
    watch.patience = patience
    try:
        with memory.in_words():
            yield
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # what a shell calls SIGPIPE
    except Exception as error:
        if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
            error = ConnectionError(
                f"another process has ended or does not answer: {training.first_line(error)}"
            )
        if not is_the_users(error):
            error.add_note(NOT_YOURS)
            raise
        if os.environ.get("JAXDIFF_TRACEBACK"):
            raise
        print(
            f"error: {training.first_line(error)} (JAXDIFF_TRACEBACK=1 shows where)",
            file=sys.stderr,
        )
        sys.exit(1)


def is_the_users(error: BaseException) -> bool:
    """Whether the user can mend an error: the machine's errors, and those of our own checks.

    A check is a `raise` statement in jaxdiff or in a script; a missing extra is reported that way
    too. Errors that the interpreter raises there (`None + 1`), and those of other packages, are not
    foreseen.
    """
    if isinstance(error, OSError):
        return True
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(
        error, ValueError | TypeError | ArithmeticError | ImportError
    ) and raised_by_us(error)


def raised_by_us(error: BaseException) -> bool:
    """Whether the innermost frame of the traceback is one of ours, at a `raise` statement."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    path = Path(code.co_filename).resolve()
    return (
        any(map(path.is_relative_to, OURS))
        and code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    )
