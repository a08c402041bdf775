"""Write each .ipynb from its .py: run the English chapters, copy outputs to the others.

python notebooks/tools/pair.py 01_forward 02_reverse
python notebooks/tools/pair.py --zh 01_forward

The first command runs the chapters and keeps their outputs. The second one pairs the
chapters in zh/, which have the same code: it copies the outputs and runs nothing.
"""

import argparse
from pathlib import Path

import jupytext
import nbclient
import nbformat

FOLDER = Path(__file__).resolve().parents[1]


def run(name: str) -> nbformat.NotebookNode:
    """Run a chapter in its folder and return it with its outputs."""
    book = jupytext.read(FOLDER / f"{name}.py")
    resources = {"metadata": {"path": FOLDER}}
    nbclient.NotebookClient(
        book,
        timeout=1800,
        kernel_name="python3",
        resources=resources,
        record_timing=False,
    ).execute()
    for cell in book.cells:
        if cell.cell_type == "code":
            # Progress bars and warnings of one machine are no part of the page.
            cell.outputs = [
                out for out in cell.outputs if out.get("name", "stdout") == "stdout"
            ]
    return book


def copied(name: str) -> nbformat.NotebookNode:
    """Return a translated chapter with the outputs of the English one."""
    book = jupytext.read(FOLDER / "zh" / f"{name}.py")
    english = jupytext.read(FOLDER / f"{name}.ipynb")
    for cell, origin in zip(book.cells, english.cells, strict=True):
        if cell.cell_type == "code":
            if cell.source != origin.source:
                raise ValueError(
                    f"{name}: expected the code of the English chapter, "
                    f"got\n{cell.source}"
                )
            cell.outputs = origin.outputs
            cell.execution_count = origin.execution_count
    return book


def main() -> None:
    """Pair the chapters that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", help="chapters, without a suffix")
    parser.add_argument("--zh", action="store_true", help="pair the chapters in zh/")
    options = parser.parse_args()
    for name in options.names:
        book = copied(name) if options.zh else run(name)
        target = FOLDER / "zh" if options.zh else FOLDER
        # A cell's place is its name, so that a new run changes outputs alone.
        for i, cell in enumerate(book.cells):
            cell.id = f"cell-{i}"
        jupytext.write(book, target / f"{name}.ipynb")


if __name__ == "__main__":
    main()
