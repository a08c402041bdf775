"""The structure: imports point up the list, and modules and functions stay small."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import FunctionType

import pytest

import jaxdiff

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxdiff"

# Each module imports only modules above it.
CORE = [
    "_machine",
    "_checks", "_extras", "_archive", "_tree", "_functions", "_operators", "_rows", "normal", "schedules", "grids", "forward", "decoders", "prediction", "categorical",
    "kernels", "chain", "losses", "binomial", "oracles", "resampling", "_lineages", "_progress", "sampling", "drawing", "observations", "guidance", "flow_density",
    "likelihood", "moves", "work", "posterior", "metrics",
]  # fmt: skip
# These stand on the core; data and models know nothing of each other, and training of neither.
# A run stands on all of them, and the commands stand on runs.
PACKAGES = {"models", "data", "training", "zoo", "interop"}
OUTER: dict[str, set] = {
    "models": set(),
    "data": set(),
    "training": set(),
    "zoo": {"models"},
    "interop": {"models", "zoo"},
    "testing": set(),
    "runs": PACKAGES,
    "cli": PACKAGES | {"runs"},
}

# Their functions are methods.
CLASSES_ONLY = {"chain"}


def imported(path: Path) -> set[str]:
    """First names below jaxdiff that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("jaxdiff.")
            }
        elif isinstance(node, ast.ImportFrom) and node.module == "jaxdiff":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxdiff."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
    return names


def files(module: str) -> list[Path]:
    """The files of a core module, which may be a package."""
    single = PACKAGE / f"{module}.py"
    return [single] if single.exists() else sorted((PACKAGE / module).glob("*.py"))


CORE_FILES = [path for module in CORE for path in files(module)]


def test_every_module_is_on_the_list() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert modules | packages == set(CORE) | set(OUTER)


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_only_upwards(module: str) -> None:
    allowed = set(CORE[: CORE.index(module)])
    for path in files(module):
        assert imported(path) <= allowed | ({module} if path.parent != PACKAGE else set()), path


@pytest.mark.parametrize("package", OUTER)
def test_packages_stand_on_the_core(package: str) -> None:
    allowed = set(CORE) | OUTER[package] | {package}
    for path in (PACKAGE / package).glob("*.py"):
        assert imported(path) <= allowed, path


def test_the_core_needs_no_network_or_data_library() -> None:
    for path in CORE_FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.split(".")[0] for name in names}
            assert tops.isdisjoint(
                {"flax", "optax", "orbax", "tensorflow_datasets", "sklearn", "matplotlib"}
            ), path


def test_one_scan_and_one_jit_in_the_core() -> None:
    """The driver is the only lax.scan and the only thing jitted inside the library's core."""
    source = {path.stem: path.read_text() for path in CORE_FILES}
    assert [name for name, text in source.items() if "lax.scan" in text] == ["sampling"]
    assert [name for name, text in source.items() if "jax.jit" in text] == ["sampling"]


def test_size() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") < 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                doc = ast.get_docstring(node, clean=False) or ""
                lines = (
                    node.end_lineno - node.body[0].lineno + 1 - (doc.count("\n") + 1 if doc else 0)
                )
                assert lines <= 50, f"{path}:{node.lineno} {node.name} has {lines} lines"


# Functions of the API that take five: the transition from t to s, and an observation y = A x + noise.
FIVE = {"q_step", "q_posterior", "p_mean_variance", "p_given", "mcgdiff"}


@pytest.mark.parametrize("module", CORE)
def test_at_most_four_positional_arguments(module: str) -> None:
    """The rest have names. A step is called as Kernel has it: (key, carry, x_t, t, s)."""
    for path in files(module):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.Lambda):
                continue
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            names = [name for name in names if name not in ("self", "cls")]
            name = getattr(node, "name", "lambda")
            most = 5 if name in FIVE or names[:2] == ["key", "carry"] else 4
            assert len(names) <= most, f"{path}:{node.lineno} {name}({', '.join(names)})"


def test_what_a_test_starts_has_a_limit() -> None:
    """A program that hangs would take the suite with it."""
    for path in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "subprocess.run",
                "subprocess.check_output",
            ):
                assert any(keyword.arg == "timeout" for keyword in node.keywords), (
                    f"{path}:{node.lineno}"
                )


def public_functions() -> dict[str, FunctionType]:
    """What users call: the functions of a module that lists no names, and what a package's __all__ lists."""
    found = {}
    for info in pkgutil.iter_modules(jaxdiff.__path__, "jaxdiff."):
        module = importlib.import_module(info.name)
        listed = getattr(module, "__all__", None)
        for name in vars(module) if listed is None else listed:
            value = inspect.unwrap(getattr(module, name))
            here = isinstance(value, FunctionType) and (listed or value.__module__ == info.name)
            if here and not (name.startswith("_") or info.name.startswith("jaxdiff._")):
                found[f"{info.name}.{name}"] = value
    return found


PUBLIC = public_functions()


def test_every_listed_name_is_there() -> None:
    """The docstring test looks at all of them: each core module and package offers something."""
    modules = {name.split(".")[1] for name in PUBLIC}
    assert modules >= {name for name in CORE if not name.startswith("_")} - CLASSES_ONLY
    assert len(PUBLIC) > 150


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_have_the_documented_docstring(name: str) -> None:
    doc, signature = inspect.getdoc(PUBLIC[name]) or "", inspect.signature(PUBLIC[name])
    first = doc.partition("\n")[0]
    assert first.endswith("."), f"{name}: no first line that is a sentence"
    assert not signature.parameters or "Args:" in doc, f"{name}: no Args"
    assert "Returns:" in doc or signature.return_annotation in (None, "None"), f"{name}: no Returns"
    undocumented = [p for p in signature.parameters if f"{p}:" not in doc]
    assert not undocumented, f"{name}: {undocumented} undocumented"
