"""The notebooks run, and each .ipynb is the pair of its .py."""

import re
from pathlib import Path

import jupytext
import nbclient
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pairs_agree(name: str) -> None:
    script, notebook = (jupytext.read(FOLDER / f"{name}.{suffix}") for suffix in ("py", "ipynb"))
    cells = [
        [(cell.cell_type, cell.source.strip()) for cell in book.cells]
        for book in (script, notebook)
    ]
    assert cells[0] == cells[1], f"run: jupytext --sync notebooks/{name}.py"


def execute(text: str) -> str:
    """Run a notebook and return what its cells printed."""
    book = jupytext.reads(text, fmt="py:percent")
    resources = {"metadata": {"path": FOLDER}}
    nbclient.NotebookClient(
        book, timeout=1800, kernel_name="python3", resources=resources
    ).execute()
    return "".join(
        out.get("text", "")
        for cell in book.cells
        if cell.cell_type == "code"
        for out in cell.outputs
    )


# The kernel's own process and messaging may warn as they please: the tests are about the cells.
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("plain_programs")
def test_the_cells_of_quickstart_run() -> None:
    text = (FOLDER / "quickstart.py").read_text()
    short = text.replace("num_steps, batch_size = 600, 128", "num_steps, batch_size = 100, 16")
    assert short != text
    assert "recognised:" in execute(short)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_executes(name: str) -> None:
    printed = execute((FOLDER / f"{name}.py").read_text())
    if name == "quickstart":
        drawn = re.search(r"digits, (\S+)% of the drawn ones", printed)
        assert drawn is not None
        assert (
            float(drawn[1]) >= 80
        )  # 40 digits after a minute of training: the claim is "digits", not a record
