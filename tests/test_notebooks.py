"""The notebooks run, each .ipynb is the pair of its .py, and translations have the same code."""

import re
from pathlib import Path

import jupytext
import nbclient
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.py"))
TRANSLATED = sorted(path.stem for path in (FOLDER / "zh").glob("*.py"))


def cells_of(path: Path) -> list[tuple[str, str]]:
    """The kind and the source of each cell."""
    return [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(path).cells]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pairs_agree(name: str) -> None:
    script, notebook = (cells_of(FOLDER / f"{name}.{suffix}") for suffix in ("py", "ipynb"))
    assert script == notebook, f"run: python notebooks/tools/pair.py {name}"


@pytest.mark.parametrize("name", TRANSLATED)
def test_translations_have_the_code_and_outputs_of_the_original(name: str) -> None:
    script, notebook = (cells_of(FOLDER / "zh" / f"{name}.{suffix}") for suffix in ("py", "ipynb"))
    assert script == notebook, f"run: python notebooks/tools/pair.py --zh {name}"
    original = cells_of(FOLDER / f"{name}.py")
    assert [kind for kind, _ in script] == [kind for kind, _ in original]
    for (kind, source), (_, english) in zip(script, original, strict=True):
        assert (source == english) == (kind == "code"), source
    outputs = [
        [cell.outputs for cell in jupytext.read(path).cells if cell.cell_type == "code"]
        for path in (FOLDER / "zh" / f"{name}.ipynb", FOLDER / f"{name}.ipynb")
    ]
    assert outputs[0] == outputs[1], f"run: python notebooks/tools/pair.py --zh {name}"


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name[0].isdigit()])
def test_chapters_carry_their_outputs(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    outputs = [o for cell in jupytext.read(path).cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert all(o.output_type != "error" for o in outputs)
    assert path.stat().st_size < 400_000


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
