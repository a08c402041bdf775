"""The structure: imports point up the list, and modules and functions stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxdiff"

# Each module imports only modules above it.
CORE = [
    "_machine",
    "_checks", "_extras", "_tree", "_functions", "_operators", "_rows", "normal", "schedules", "grids", "forward", "decoders", "prediction", "categorical",
    "kernels", "chain", "losses", "binomial", "oracles", "resampling", "sampling", "drawing", "observations", "guidance", "flow_density",
    "likelihood", "moves", "work", "posterior", "metrics",
]  # fmt: skip
# These stand on the core; data and models know nothing of each other, and training of neither.
# A run stands on all of them, and the commands stand on runs.
PACKAGES = {"models", "data", "training", "zoo"}
OUTER: dict[str, set] = {
    "models": set(),
    "data": set(),
    "training": set(),
    "zoo": {"models"},
    "testing": set(),
    "runs": PACKAGES,
    "cli": PACKAGES | {"runs"},
}


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


def offered(path: Path) -> set[str]:
    """Names a module offers to users: all public ones in the core, what a package's __init__ names elsewhere."""
    tree = ast.parse(path.read_text())
    public = {
        n.name for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")
    }
    return public if path.parent == PACKAGE else public & exported(path.parent)


def exported(package: Path) -> set[str]:
    """The entries of a package's __all__, and what its __init__ defines itself."""
    tree = ast.parse((package / "__init__.py").read_text())
    names = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return names | {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_public_functions_have_the_documented_docstring() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.stem.startswith("_") and path.stem != "__init__":
            continue
        if path.parent.name == "cli" and path.stem != "__init__":
            continue  # commands, each called by its name
        names = offered(path)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in names:
                doc = ast.get_docstring(node) or ""
                arguments = node.args.args + node.args.kwonlyargs
                place = f"{path}:{node.lineno} {node.name}"
                assert not arguments or "Args:" in doc, f"{place}: no Args"
                assert (
                    "Returns:" in doc or ast.unparse(node.returns or ast.Constant(None)) == "None"
                ), f"{place}: no Returns"
                for argument in arguments:
                    assert f"{argument.arg}:" in doc, f"{place}: {argument.arg} undocumented"
