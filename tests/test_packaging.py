"""What is installed: light imports, extras named where they are missing, a wheel that works in an empty environment."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
HEAVY = {
    "PIL", "chex", "diffrax", "flax", "matplotlib", "optax", "orbax", "sklearn", "tensorboardX", "tensorflow",
    "tensorflow_datasets", "tyro",
}  # fmt: skip


def python(code: str, *, program: str = sys.executable, **environment: str) -> str:
    """Run code in a process of its own, warnings as errors; what it printed."""
    result = subprocess.run(
        [program, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


# --- what is imported when ------------------------------------------------------------------------


def test_a_command_sets_its_process_up_before_jax_is_there() -> None:
    """It may start the process again, and what it had imported by then would be imported twice."""
    out = python("""
import sys, jaxdiff, jaxdiff.cli
print({"jax", "numpy", "scipy"} & set(sys.modules))
""")
    assert out == "set()\n"


def test_every_name_of_the_first_level_has_its_home() -> None:
    out = python("""
import importlib, types, jaxdiff as jd
for name in [*jd.__all__, *jd.EXTRA]:
    found = getattr(jd, name)
    home = importlib.import_module(f"jaxdiff.{jd.HOMES.get(name, name)}")
    assert found is (getattr(home, name) if name in jd.HOMES else home), name
    assert isinstance(found, types.ModuleType) == (name not in jd.HOMES), name
""")
    assert out == ""


def test_packages_are_there_after_import_and_imported_where_they_are_used() -> None:
    out = python(f"""
import sys, jaxdiff as jd
heavy = {HEAVY}
print(sorted(heavy & set(sys.modules)))
print({{"data", "models", "runs", "testing", "training", "draw"}} <= set(dir(jd)))
jd.data, jd.testing
print(sorted(heavy & set(sys.modules)))
jd.models.mlp
print(sorted(heavy & set(sys.modules)))
jd.training.Checkpoints, jd.runs
print({{"optax", "orbax"}} <= set(sys.modules), hasattr(jd, "nothing"))
from jaxdiff import *
""")
    assert out.splitlines() == ["[]", "True", "[]", "['flax']", "True False"]


# A library that is hidden, and where it is first asked for.
MISSING = {
    "tensorflow_datasets": ("data", 'jd.data.load("mnist")'),
    "optax": ("train", "jd.training"),
    "orbax": ("train", "from jaxdiff.training import Checkpoints"),
    "filelock": ("train", "import jaxdiff.training.run"),
    "tensorboardX": ("train", "jd.training"),
    "diffrax": ("ode", "s = jd.schedules.cosine(); jd.kernels.adaptive(lambda x, t: x, s)"),
    "chex": ("testing", "jd.testing.check_schedule(jd.schedules.cosine())"),
    "sklearn": ("cli", "from jaxdiff.runs import tasks; tasks._classifier(None, 0)"),
}


def test_what_is_missing_is_named_with_its_extra() -> None:
    """One process, forked for each library."""
    out = python(f"""
import os, sys
import jaxdiff as jd
for library, (_, use) in {MISSING}.items():
    if os.fork() == 0:
        sys.modules[library] = None
        try:
            exec(use)
        except ModuleNotFoundError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
""")
    lines = [
        f'{library} is not installed: pip install "jaxdiff[{extra}]"'
        for library, (extra, _) in MISSING.items()
    ]
    assert out.splitlines() == lines


def test_a_command_says_it_in_one_line() -> None:
    code = 'import sys; sys.modules["tyro"] = None; from jaxdiff.cli import run; '
    code += 'run("env", [], prog="jaxdiff env")'
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    said = 'error: tyro is not installed: pip install "jaxdiff[cli]"\n'
    assert (result.returncode, result.stdout, result.stderr) == (1, "", said)


# --- what is declared -----------------------------------------------------------------------------

NAMES = {"sklearn": "scikit-learn", "PIL": "pillow", "orbax": "orbax-checkpoint", "tensorflow_datasets": "tensorflow-datasets"}  # fmt: skip


def names(requirements: list[str]) -> set[str]:
    """Names of packages, with those of the extras of jaxdiff that are asked for."""
    found: set[str] = set()
    for requirement in requirements:
        name = re.split(r"[\[><=;~ ]", requirement)[0]
        if name != "jaxdiff":
            found.add(name.lower().replace("_", "-"))
            continue
        for extra in re.search(r"\[(.*)\]", requirement)[1].split(","):
            found |= names(EXTRAS[extra])
    return found


def imports(folder: str) -> set[str]:
    """Packages that the files of a folder import, by their names on the index."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "needs":
                found.add(ast.unparse(node.args[0]).strip("f'\"").split(".")[0])
    own = found - set(sys.stdlib_module_names)
    return {NAMES.get(name, name).lower().replace("_", "-") for name in own}


def test_what_is_imported_is_declared() -> None:
    core = names(PROJECT["dependencies"])
    everything = core | names(EXTRAS["all"]) | names(EXTRAS["play"]) | {"jaxdiff"}
    # optimistix comes with diffrax; _library is a loop over the libraries of `train`.
    assert imports("jaxdiff") - everything <= {"optimistix", "-library"}
    assert imports("experiments") <= everything | {"reproduce-2015"}
    for part in ("data", "interop", "models", "zoo"):
        lazy = {"tensorflow-datasets", "datasets", "pillow"} if part == "data" else set()
        assert imports(f"jaxdiff/{part}") - lazy <= core | {"jaxdiff"}


def test_the_pins_have_everything_that_the_suite_needs() -> None:
    pinned = {
        re.split(r"[=; ]", line)[0].lower()
        for line in (ROOT / "requirements.lock").read_text().splitlines()
    }
    assert names(PROJECT["dependencies"]) | names(EXTRAS["dev"]) <= pinned


def test_the_package_is_typed_and_describes_itself() -> None:
    assert (ROOT / "jaxdiff" / "py.typed").exists()
    assert PROJECT["authors"] == [{"name": "jaxdiff developers"}]
    import jaxdiff

    assert jaxdiff.__version__ == PROJECT["version"] == importlib.metadata.version("jaxdiff")


# --- the wheel ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an sdist that was built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    shutil.copytree(
        ROOT / "jaxdiff", source / "jaxdiff", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import os, sys; from setuptools import build_meta as b; os.chdir(sys.argv[1]); "
    for kind, where in (("sdist", source), ("wheel", None)):
        if where is None:
            (archive,) = folder.glob("*.tar.gz")
            shutil.unpack_archive(archive, folder)
            where = archive.with_name(archive.name.removesuffix(".tar.gz"))
        subprocess.run(
            [sys.executable, "-c", f"{build} b.build_{kind}(sys.argv[2])", str(where), str(folder)],
            timeout=300,
            check=True,
            capture_output=True,
        )
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_has_the_package_and_its_files(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "jaxdiff").rglob("*")
        if path.suffix in (".py", ".npz", ".typed")
    }
    assert expected <= held
    assert {name.split("/")[0] for name in held} == {"jaxdiff", "jaxdiff-0.1.0.dist-info"}
    assert wheel.stat().st_size < 6e6


def pip(program: str, *arguments: str, timeout: float = 1800) -> subprocess.CompletedProcess:
    """Run pip; skip where the machine has no index."""
    result = subprocess.run(
        [program, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if re.search("No matching distribution|Connection|Temporary failure", result.stderr):
        probe = ["install", "--dry-run", "--ignore-installed", "--no-deps", "tqdm"]
        reached = subprocess.run(
            [program, "-m", "pip", *probe], capture_output=True, text=True, timeout=300, check=False
        )
        if "No matching distribution" in reached.stderr:
            pytest.skip(f"there is no package index: {result.stderr.strip().splitlines()[-1]}")
    return result


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    result = pip(str(folder / "bin" / "python"), "install", str(wheel))
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_a_bare_installation_draws_scores_and_conditions(bare: Path) -> None:
    """Import, draw from the network that ships, likelihood, posterior, the digits; no library of an extra is there."""
    out = python(
        """
import importlib.util, jax, jax.numpy as jnp, jaxdiff as jd
print([n for n in ("tensorflow_datasets", "matplotlib", "sklearn", "tyro", "chex") if importlib.util.find_spec(n)])
mnist = jd.pretrained("mnist")
x = jd.draw(jax.random.key(0), mnist.denoiser(jnp.arange(2)), mnist.schedule, (2, 28, 28, 1), ts=jd.grids.uniform(4)).x
print(x.shape, bool(jnp.isfinite(x).all()))
oracle = jd.oracles.gaussian(jnp.zeros(2), jnp.ones(2))
schedule = jd.schedules.cosine()
denoiser = oracle.denoiser(schedule)
chain = jd.Chain(denoiser, schedule, jd.grids.uniform(5), decoder=jd.decoders.normal())
print(jd.likelihood.elbo(jax.random.key(0), chain, jnp.zeros((3, 2))).shape)
kernel = jd.posterior.twisted(denoiser, schedule, lambda x: -jnp.sum(x**2))
print(jd.draw(jax.random.key(0), denoiser, schedule, (8, 2), kernel=lambda *_: kernel).ess.shape)
print(jd.data.load("digits").train.images.shape)
try:
    jd.data.load("mnist")
except ModuleNotFoundError as error:
    print(error)
""",
        program=str(bare / "bin" / "python"),
    )
    assert out.splitlines() == [
        "[]",
        "(2, 28, 28, 1) True",
        "(3,)",
        "(20,)",
        "(1437, 8, 8, 1)",
        'tensorflow_datasets is not installed: pip install "jaxdiff[data]"',
    ]
    said = subprocess.run(
        [bare / "bin" / "jaxdiff", "env"], capture_output=True, text=True, timeout=300, check=False
    )
    assert said.stderr == 'error: tyro is not installed: pip install "jaxdiff[cli]"\n'


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(wheel: Path, bare: Path, tmp_path: Path) -> None:
    """With the extra `cli`, outside of a checkout, without scikit-learn's digits or TFDS."""
    result = pip(str(bare / "bin" / "python"), "install", f"{wheel}[cli]")
    assert result.returncode == 0, result.stderr
    run = [bare / "bin" / "jaxdiff", "demo", "--run", "demo", "--steps", "20"]
    done = subprocess.run(
        run, capture_output=True, text=True, timeout=1800, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("extra", sorted(set(EXTRAS)))
def test_every_extra_resolves(extra: str, wheel: Path, bare: Path) -> None:
    if extra in ("cuda12", "cuda13", "tpu") and not sys.platform.startswith("linux"):
        pytest.skip(f"there are no wheels of {extra} for {sys.platform}")
    program = str(bare / "bin" / "python")
    result = pip(program, "install", "--dry-run", f"jaxdiff[{extra}] @ {wheel.as_uri()}")
    assert result.returncode == 0, result.stderr
