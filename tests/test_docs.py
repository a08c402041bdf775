"""The site: its code runs, its commands parse, and its table of equations is complete."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import public
import pytest
import sources
import tyro

import jaxdiff as jd
from jaxdiff import cli
from jaxdiff.cli import distributed

DOCS = Path(__file__).parents[1] / "docs"
UNET2D = DOCS.parent / "tests" / "data" / "interop"
# Pages whose networks take more than a few seconds to compile.
SLOW = {"how-to/bits", "how-to/kernel", "how-to/observation"}
PAGES = {
    str(path.relative_to(DOCS).with_suffix("")): path.read_text()
    for path in sorted(DOCS.rglob("*.md"))
    if "reference" not in path.parts
}


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """The blocks of code in one language, each with the number of its first line."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])
        for page, text in PAGES.items()
        if blocks(text, "python")
    ],
)
def test_the_code_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page continue each other, in a folder that holds a network of diffusers."""
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(UNET2D, tmp_path / "unet2d")
    names: dict = {"__name__": page}
    for line, code in blocks(PAGES[page], "python"):
        # An error names the page and the line.
        exec(compile("\n" * line + code, str(DOCS / f"{page}.md"), "exec"), names)


README = DOCS.parent / "README.md"


@pytest.mark.slow
def test_the_code_of_the_readme_runs(tmp_path: Path) -> None:
    """As one script, compiled as for users, in a folder that holds a run and a network of diffusers."""
    shutil.copytree(UNET2D, tmp_path / "ddpm-cifar10-32")
    jd.interop.save(jd.pretrained("mnist"), tmp_path / "runs" / "mine", data="MNIST", licence="-")
    script = "".join(code for _, code in blocks(README.read_text(), "python"))
    script += "assert draws.x.shape == (10, 28, 28, 1) and density.shape == (2,)\n"
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=1800,
        env=os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


def test_the_readme_leads_to_pages_that_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert len(links) > 30
    assert [link for link in links if not (DOCS.parent / link).exists()] == []


@pytest.mark.parametrize(
    "page",
    [
        "README",
        *(page for page, text in PAGES.items() if re.search(r"^jaxdiff ", text, re.MULTILINE)),
    ],
)
def test_the_commands_of_a_page_parse(page: str) -> None:
    """Each command has the options that the page gives it."""
    whole = README.read_text() if page == "README" else PAGES[page]
    for _, text in blocks(whole, "(?:bash|console)"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["jaxdiff"]:
                continue
            _, arguments = distributed.take(words[2:])
            module = importlib.import_module(f"jaxdiff.cli.{words[1]}")
            assert words[1] in cli.COMMANDS, line
            if hasattr(module, "parse"):
                module.parse(arguments, line)
            else:
                tyro.cli(module.Options, args=arguments, prog=line)


SCHEDULE = jd.schedules.cosine()
X, KEY = jnp.zeros((4, 2)), jax.random.key(0)
DENOISER = jd.oracles.gaussian(jnp.zeros(2), jnp.ones(())).denoiser(SCHEDULE)
KERNEL = jd.kernels.ddim(DENOISER, SCHEDULE)
MISTAKES: list[Callable] = [
    lambda: jd.draw(jax.random.PRNGKey(0), DENOISER, SCHEDULE, (4, 2)),
    lambda: jd.sample(KEY, KERNEL, X, jnp.arange(999, 0, -20)),
    lambda: jd.sample(KEY, KERNEL, X, jnp.linspace(0, 1, 5)),
    lambda: jd.q_sample(SCHEDULE, X, 500, X),
    lambda: jd.q_sample(SCHEDULE, X.astype("uint8"), 0.5, X),
    lambda: jd.q_sample(SCHEDULE, X, 0.5, X[:2]),
    lambda: jd.draw(KEY, jd.pretrained("mnist").denoiser(), SCHEDULE, (4, 1, 28, 28)),
    lambda: jd.make_denoiser(lambda x, t: x, SCHEDULE, "epsilon"),
    lambda: jd.prediction.check_start(jd.schedules.rectified_flow(), "eps"),
    lambda: jd.draw(KEY, DENOISER, "cosine", (4, 2)),
    lambda: jd.draw(KEY, DENOISER, SCHEDULE, (4, 2), kernel=KERNEL),
    lambda: jd.pretrained("mnist").denoiser(guidance=2.0),
    lambda: jd.pretrained("mnist").denoiser(jnp.array([11])),
    lambda: jd.load("runs/none"),
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_page_of_errors_has_the_messages(mistake: Callable) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as raised:
        mistake()
    assert str(raised.value).partition("\n")[0] in PAGES["errors"]


def test_each_public_name_says_what_it_is() -> None:
    assert [name for name in set(public.homes().values()) if not public.summary(name)] == []


def test_each_function_has_its_equation_and_its_test() -> None:
    """What `make docs` refuses too, where Sphinx is installed."""
    assert len(sources.origins()) > 250


def structure(text: str) -> list[str]:
    """What a translation keeps: levels of headings, code, links, pictures and rows of tables."""
    code = re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+", rest, re.MULTILINE)
    links = sorted(re.findall(r"\]\(([^)]+)\)", rest.replace("README.zh-CN.md", "README.md")))
    rows = re.findall(r"^\|", rest, re.MULTILINE)
    bullets = re.findall(r"^- ", rest, re.MULTILINE)
    words = sorted(re.findall(r"`[^`\n]+`", rest))
    return [*code, *headings, *links, *rows, *bullets, *words]


def test_the_chinese_readme_is_in_step() -> None:
    chinese = README.with_name("README.zh-CN.md").read_text()
    assert structure(chinese) == structure(README.read_text())
