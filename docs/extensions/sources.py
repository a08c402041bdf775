"""Where each public function comes from: its equation, its paper and its tests.

The equations are those of the page of mathematics, where the names of the functions follow each.
Papers stand in the docstrings. Tests are those that reject a planted mistake (tests/mutants.py).
"""

import inspect
import re
import sys
from pathlib import Path
from typing import NamedTuple

import docstrings
import public

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "mathematics" / "index.md"
# Blocks of a docstring that are examples of code.
EXAMPLE = re.compile(r"\bjd\.")

sys.path.append(str(ROOT / "tests"))


class Origin(NamedTuple):
    """Where a function comes from.

    Fields:
      equation: the label of its equation, empty if it has none.
      paper: the section Source of its docstring, empty if it has none.
      tests: files of tests, without their folder.
    """

    equation: str
    paper: str
    tests: tuple[str, ...]


def labels() -> dict[str, str]:
    """The label of the equation of each function that the page of mathematics names.

    Returns:
      Labels by full name.
    """
    homes, found, label = public.homes(), {}, ""
    for line in PAGE.read_text().splitlines():
        label = line.removeprefix(":label: ") if line.startswith(":label: ") else label
        if line.startswith("Code: "):
            for name in re.findall(r"`([\w.]+)`", line):
                if f"jaxdiff.{name}" not in homes:
                    raise ValueError(f"{PAGE.name}: there is no {name}")
                found[homes[f"jaxdiff.{name}"]] = label
    return found


def tests_of(full_name: str) -> tuple[str, ...]:
    """The files of tests that reject a mistake in a function, or that call it or its module."""
    from mutants import MUTANTS

    module, _, name = full_name.removeprefix("jaxdiff.").rpartition(".")
    home = inspect.unwrap(public.value(full_name)).__module__.replace(".", "/") + ".py"
    own = [m for m in MUTANTS if name in m.covers and (m.module == module or m.file == home)]
    if own:
        return tuple(dict.fromkeys(m.test.partition("::")[0] for m in own))
    texts = {path.name: path.read_text() for path in sorted((ROOT / "tests").glob("test_*.py"))}
    last = module.rpartition(".")[2]
    calls = rf"\b{last}\.{name}\b|import .*\b{name}\b|\bjd\.{name}\b"
    for pattern in (calls, rf"\b{last}\."):  # what only its module calls is tested with it
        found = [file for file, text in texts.items() if re.search(pattern, text)]
        if found:
            return tuple(found[:2])
    return ()


def origins() -> dict[str, Origin]:
    """Where every public function comes from.

    Returns:
      Origins by full name.
    Raises:
      ValueError: a docstring has an equation that the page of mathematics lacks, or a function has
        no test.
    """
    equations, found = labels(), {}
    for name, function in public.functions().items():
        lines = (inspect.getdoc(function) or "").splitlines()
        found[name] = Origin(
            equations.get(name, ""), docstrings.part(lines, "Source"), tests_of(name)
        )
        blocks = [block for block in docstrings.equations(lines) if not EXAMPLE.search(block)]
        if blocks and not found[name].equation:
            raise ValueError(f"{PAGE.name}: {name} has an equation in its docstring, and none here")
        if not found[name].tests:
            raise ValueError(f"{name}: no test calls it")
    return found
