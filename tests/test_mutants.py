"""The table of mutants: each entry still applies, and no public function is without one. `make mutants` runs them."""

import ast
import importlib
import inspect
from collections import Counter
from pathlib import Path

import pytest
from mutants import MUTANTS, PLUMBING, Mutant
from run_mutants import Outcome, copy_tree, planted, run_tests, verdict

ROOT = Path(__file__).parents[1]
# What is proved: every public function of these modules has a mutant.
COVERED = (
    "binomial", "categorical", "chain", "decoders", "drawing", "flow_density", "forward", "grids", "guidance", "interop", "kernels",
    "likelihood", "losses", "losses.weights", "metrics", "moves", "normal", "observations", "oracles", "posterior",
    "prediction", "resampling",
    "sampling", "schedules", "testing", "training", "work", "zoo",
    "data.digits", "data.folder", "data.held_out", "data.idx", "data.images", "data.mnist", "data.on_disk", "data.parts", "data.pictures",
    "data.pipeline", "data.reading", "data.saved_set", "data.table", "data.tfds", "data.toy",
)  # fmt: skip


def public(module: str) -> set[str]:
    """Functions that a module offers, its own or its package's."""
    loaded = importlib.import_module(f"jaxdiff.{module}")
    exported = getattr(loaded, "__all__", None)
    functions = {
        name: inspect.unwrap(value)
        for name, value in vars(loaded).items()
        if not name.startswith("_")
        and callable(value)
        and inspect.isfunction(inspect.unwrap(value))
    }
    return {
        name
        for name, function in functions.items()
        if (name in exported if exported else function.__module__ == loaded.__name__)
    }


@pytest.mark.parametrize("module", COVERED)
def test_every_public_function_has_a_mutant(module: str) -> None:
    # A package may offer what another one defines.
    loaded = importlib.import_module(f"jaxdiff.{module}")
    homes = {inspect.unwrap(getattr(loaded, name)).__module__ for name in public(module)}
    files = {home.replace(".", "/") + ".py" for home in homes}
    mutants = [mutant for mutant in MUTANTS if mutant.module == module or mutant.file in files]
    covered = {name for mutant in mutants for name in mutant.covers}
    spared = set(PLUMBING.get(module, ()))
    assert public(module) - covered - spared == set(), "give them a mutant in tests/mutants.py"
    assert not spared & covered, "they have a mutant and need not be spared"
    assert spared <= public(module), "there is no such function"


def test_every_mutant_applies() -> None:
    """The text stands in its file once; what it becomes is Python; what it breaks and what rejects it exist."""
    tests = {path.name: path.read_text() for path in Path(__file__).parent.glob("test_*.py")}
    for mutant in MUTANTS:
        source = (ROOT / mutant.file).read_text()
        assert len(mutant.places(source)) == 1, (
            f"{mutant}: {mutant.find!r} stands {len(mutant.places(source))} times"
        )
        compile(mutant.in_place(source), mutant.file, "exec")
        file, name = mutant.test.split("[")[0].split("::")
        made = f"def {name}(" in tests[file] or f"\n{name} = rejects(" in tests[file]
        assert made, f"{mutant}: there is no {mutant.test}"
        module = ast.dump(ast.parse(source))
        for covered in mutant.covers:
            assert f"'{covered}'" in module or hasattr(
                importlib.import_module(f"jaxdiff.{mutant.module}"), covered
            ), mutant
    assert [name for name, count in Counter(map(str, MUTANTS)).items() if count > 1] == []


def test_a_mutant_is_planted_and_taken_out_again(tmp_path: Path) -> None:
    path = tmp_path / "jaxdiff" / "forward.py"
    path.parent.mkdir()
    path.write_text("x = alpha + sigma\n")
    with planted(
        Mutant(
            "jaxdiff/forward.py",
            ("level",),
            "sign",
            "+ sigma",
            "- sigma",
            "test_forward.py::test_x",
        ),
        tmp_path,
    ):
        assert path.read_text() == "x = alpha - sigma\n"
    assert path.read_text() == "x = alpha + sigma\n"


@pytest.mark.slow
def test_the_runner_runs_the_suite_s_own_tests(tmp_path: Path) -> None:
    """With the suite's hooks and without its plugins: otherwise every mutant is broken, and none rejected."""
    copy_tree(tmp_path)
    outcome = run_tests(tmp_path, ["tests/test_mutants.py::test_verdicts"], 120)
    assert outcome.status == 0, outcome.said


def test_verdicts() -> None:
    """Only a test that fails rejects: no error of the table's own, no test that was not found, no hanging one."""
    for outcome, expected in (
        (Outcome(1, "FAILED tests/test_x.py::test_y - AssertionError"), "rejected"),
        (Outcome(0, "1 passed"), "lives"),
        (Outcome(None, "out of time"), "hangs"),
        (
            Outcome(1, "FAILED tests/test_x.py::test_y - NameError: name 'x' is not defined"),
            "broken",
        ),
        (Outcome(4, "ERROR: not found: tests/test_x.py"), "broken"),
        (Outcome(5, "no tests ran"), "broken"),
    ):
        assert verdict(outcome) == expected
