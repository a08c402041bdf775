"""Write the pages that are made of the library itself: the reference and the command line.

The pages of docs/reference and the notebooks of docs/course are written at each build; git ignores
them. A page that has not changed is left alone, so that Sphinx does not read it again.
"""

import contextlib
import importlib
import inspect
import io
import os
import re
import shutil
from pathlib import Path

import public
import sources
from docstrings import inline
from sphinx.application import Sphinx

from jaxdiff import cli

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
WIDTH = 112  # columns of a help text: as many as a page shows in the small type of `columns`


def write(path: Path, text: str) -> Path:
    """Write a page where it is new or has changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def reference() -> set[Path]:
    """Write a page for each public module, and the list of them.

    Returns:
      The pages.
    """
    folder = DOCS / "reference"
    modules = public.modules()
    pages = {write(folder / f"{name}.rst", module_page(name, modules[name])) for name in modules}
    lines = [
        *heading("Reference"),
        "Everything that the library offers, a page for each module, made from the docstrings.",
        "In all examples ``jd`` stands for ``jaxdiff``.",
        "",
        "- :doc:`command-line`: what ``jaxdiff COMMAND --help`` prints.",
        "- :doc:`sources`.",
        "",
        *table([(f":doc:`{name}`", first_line(name)) for name in modules]),
        "",
        ".. toctree::",
        "   :hidden:",
        "",
        "   command-line",
        "   sources",
        *(f"   {name}" for name in modules),
        "",
    ]
    return pages | {write(folder / "index.rst", "\n".join(lines))}


def heading(text: str) -> list[str]:
    """A title and its line."""
    return [text, "=" * len(text), ""]


def table(rows: list[tuple[str, str]]) -> list[str]:
    """A table of two columns."""
    lines = [".. list-table::", "   :class: names", ""]
    for first, second in rows:
        lines += [f"   * - {first}", f"     - {second}"]
    return lines


def first_line(module: str) -> str:
    """The first line of a module's docstring, marked."""
    return inline((importlib.import_module(module).__doc__ or "").partition("\n")[0])


def module_page(module: str, names: list[str]) -> str:
    """The page of a module: its docstring, its names with their first lines, and each in full.

    Args:
      module: its full name.
      names: what it offers.
    Returns:
      reStructuredText.
    """
    homes = public.homes()
    rows = [(f"`~{homes[f'{module}.{n}']}`", f"{module}.{n}") for n in names]
    rows = [(name, inline(public.summary(full))) for name, full in rows]
    lines = [*heading(module), f".. automodule:: {module}", "   :no-members:", "", *table(rows), ""]
    for name in names:
        full = f"{module}.{name}"
        if homes[full] == full:
            lines += [f".. {directive(public.value(full))}:: {full}", ""]
    return "\n".join(lines)


def directive(value: object) -> str:
    """The directive of autodoc that documents a value."""
    if inspect.isclass(value):
        return "autoclass"
    return "autofunction" if callable(value) else "autodata"


def sources_page() -> set[Path]:
    """Write the table of all public functions with their equations, papers and tests.

    Returns:
      The page.
    """
    lines = [
        *heading("Every function, its equation, paper and test"),
        "The number leads to the equation. The test rejects a mistake that is planted in the",
        "function. Where none is planted, it calls the function.",
        "",
    ]
    origins = sources.origins()
    for module in dict.fromkeys(name.rpartition(".")[0] for name in origins):
        lines += [module, "-" * len(module), "", ".. list-table::", "   :class: sources"]
        lines += ["   :header-rows: 1", "", "   * - function", "     - equation", "     - paper"]
        lines.append("     - test")
        for name in (name for name in origins if name.rpartition(".")[0] == module):
            equation, paper, tests = origins[name]
            files = (f":download:`{test} <../../tests/{test}>`" for test in tests)
            lines += [
                f"   * - `~{name}`",
                f"     - :eq:`{equation}`" if equation else "     -",
                f"     - {inline(paper)}" if paper else "     -",
                f"     - {', '.join(files)}",
            ]
        lines.append("")
    return {write(DOCS / "reference" / "sources.rst", "\n".join(lines))}


def command_line() -> set[Path]:
    """Write the help of every command on one page.

    Returns:
      The page.
    """
    parts = [
        "# The command line",
        "The extra `cli` brings the command `jaxdiff`. This page is what `jaxdiff COMMAND --help` "
        "prints.",
        code(cli.usage()),
    ]
    for command, what in cli.COMMANDS.items():
        parts += [f"## {command}", f"{what[0].upper()}{what[1:]}.", code(help_of(command))]
        if command == "train":
            parts += ["With a preset it shows every option, here those of `digits`:"]
            parts += [code(help_of(command, "digits"))]
    return {write(DOCS / "reference" / "command-line.md", "\n\n".join(parts) + "\n")}


def code(text: str) -> str:
    """A block of plain text in columns."""
    return f"```{{code-block}} text\n:class: columns\n\n{text.rstrip()}\n```"


def help_of(command: str, *arguments: str) -> str:
    """What `jaxdiff COMMAND --help` prints."""
    printed = io.StringIO()
    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.run(command, [*arguments, "--help"], prog=f"jaxdiff {command}")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def notebooks() -> set[Path]:
    """Copy the notebooks with the outputs that they hold.

    Returns:
      The copies.
    """
    folder, home = DOCS / "course", ROOT / "notebooks"
    copies = set()
    for source in sorted([*home.glob("*.ipynb"), *home.glob("zh/*.ipynb")]):
        copy = folder / source.relative_to(home)
        copy.parent.mkdir(exist_ok=True)
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            shutil.copyfile(source, copy)
        copies.add(copy)
    return copies


def generate(app: Sphinx) -> None:
    """Write all pages, and remove those of what is there no more."""
    made = reference() | sources_page() | command_line() | notebooks()
    old = {*(DOCS / "reference").iterdir(), *(DOCS / "course").rglob("*.ipynb")}
    for path in old - made:
        path.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
