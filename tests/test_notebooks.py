"""The notebooks run, and each .ipynb is the pair of its .py."""

from pathlib import Path

import jupytext
import nbclient
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pairs_agree(name: str) -> None:
    script, notebook = (jupytext.read(FOLDER / f"{name}.{suffix}") for suffix in ("py", "ipynb"))
    cells = [[(cell.cell_type, cell.source.strip()) for cell in book.cells] for book in (script, notebook)]
    assert cells[0] == cells[1], f"run: jupytext --sync notebooks/{name}.py"


# The kernel's own process and messaging may warn as they please: the test is about the cells.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_executes(name: str) -> None:
    book = jupytext.read(FOLDER / f"{name}.py")
    nbclient.NotebookClient(
        book, timeout=1800, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
    ).execute()
    if name != "quickstart":
        return
    printed = [out.get("text", "") for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]
    recognised = next(text for text in printed if "recognised:" in text)
    drawn = float(recognised.split("digits, ")[1].split("%")[0])
    assert drawn >= 80  # 40 digits after a minute of training: the claim is "digits", not a record
