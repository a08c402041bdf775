"""Plant each mutant of tests/mutants.py in a copy of the repository and report those that no test rejects.

    python tests/run_mutants.py [WORD ...] [--again] [--limit SECONDS]

A mutant runs in a process of its own, forked from one that has the libraries loaded already, with the one test that is
said to reject it. What has been rejected is kept in .cache/mutants.jsonl for as long as the file, the mutant and the
test's file stay as they are; --again runs all. Exit 0: every mutant is rejected, by a test that passes without it.
"""

import argparse
import compileall
import contextlib
import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / ".cache" / "mutants.jsonl"
COPIED = ("jaxdiff", "experiments", "tests", "benchmarks", "pyproject.toml")
# Loaded once, before the forks: nothing of jaxdiff.
LIBRARIES = [
    "pytest", "_hypothesis_pytestplugin", "absl.testing.parameterized", "chex", "flax.linen", "hypothesis.strategies",
    "jax.numpy", "numpy", "optax", "orbax.checkpoint", "PIL.Image", "scipy.optimize", "scipy.stats", "sklearn.datasets",
    "sklearn.neighbors", "tensorboardX", "tensorflow_datasets",
]  # fmt: skip
OPTIONS = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # the plugins are loaded already
# A mutant that ends so is no mistake in the mathematics but one of its table.
CARELESS = re.compile(r"\b(NameError|SyntaxError|ImportError|UnboundLocalError)\b")


class Outcome(NamedTuple):
    """How a run of the tests ended: pytest's exit status (None: out of time) and what it said last."""

    status: int | None
    said: str


def copy_tree(target: Path) -> None:
    """Copy what the tests need, and compile the library once."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, target / name)
    compileall.compile_dir(target / "jaxdiff", quiet=1)


@contextlib.contextmanager
def planted(mutant: Mutant, copy: Path) -> Iterator[None]:
    """The copy with the mutant in it."""
    path = copy / mutant.file
    source = path.read_text()
    # A compiled file is known by its source's size and second, which a mutant may share.
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
    path.write_text(mutant.in_place(source))
    try:
        yield
    finally:
        path.write_text(source)


def run_tests(copy: Path, arguments: list[str], limit: float) -> Outcome:
    """Run pytest in a fork, for `limit` seconds at most."""
    log = copy / "log.txt"
    process = multiprocessing.get_context("forkserver").Process(
        target=_pytest, args=(copy, arguments, log)
    )
    process.start()
    process.join(limit)
    if process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        return Outcome(None, "out of time")
    lines = log.read_text(errors="replace").splitlines()
    summary = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))] or lines
    return Outcome(process.exitcode, summary[-1] if summary else "")


def _pytest(copy: Path, arguments: list[str], log: Path) -> None:
    os.setpgrp()
    with log.open("w") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(copy))
    import pytest

    status = pytest.main([*OPTIONS, *arguments])
    sys.stdout.flush()
    os._exit(int(status))


def verdict(outcome: Outcome) -> str:
    """In a word: rejected, lives, or what else went wrong."""
    if outcome.status == 0:
        return "lives"
    if outcome.status is None:
        return "hangs"
    if outcome.status != 1 or CARELESS.search(outcome.said):
        return "broken"
    return "rejected"


def fingerprint(mutant: Mutant) -> str:
    """Of all that the verdict hangs on most: the mutant, its file and the file of its test."""
    texts = (
        *mutant,
        (ROOT / mutant.file).read_text(),
        (ROOT / "tests" / mutant.test.split("::")[0]).read_text(),
    )
    return hashlib.sha256(repr(texts).encode()).hexdigest()


def recorded() -> set[str]:
    """Fingerprints of what was rejected before."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    return {line["fingerprint"] for line in map(json.loads, lines) if line["verdict"] == "rejected"}


def runs_whole(test: str) -> bool:
    """Whether slow cases run too: of a test that names its case, or has no other."""
    if "[" in test:
        return True
    file, name = test.split("::")
    source = (ROOT / "tests" / file).read_text()
    return bool(re.search(rf"^@pytest\.mark\.slow\n(?:[@ )\]].*\n)*def {name}\(", source, re.M))


def arguments(*tests: str) -> list[str]:
    """What pytest is given: the quick cases of tests, or the whole of tests that have none."""
    quick = [] if runs_whole(tests[0]) else ["-m", "not slow"]
    return [*quick, *(f"tests/{test}" for test in tests)]


def sound(copy: Path, mutants: list[Mutant], limit: float) -> bool:
    """Whether all tests that are named pass without a mutant: one run of them all."""
    tests = sorted({mutant.test for mutant in mutants})
    print(f"{len(tests)} tests without a mutant ...", flush=True)
    for some in filter(
        None, ([t for t in tests if runs_whole(t) == whole] for whole in (False, True))
    ):
        outcome = run_tests(copy, arguments(*some), limit * len(some))
        if outcome.status != 0:
            log = (copy / "log.txt").read_text()[-4000:]
            print(f"They fail without a mutant: {outcome.said}\n{log}")
            return False
    return True


def main() -> int:
    """Run what is asked for; 0 where every mutant is rejected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", help="only mutants that have one of these in file, name, fault or test"
    )
    parser.add_argument("--again", action="store_true", help="run what was rejected before, too")
    parser.add_argument("--limit", type=float, default=180, help="seconds for a test [180]")
    parser.add_argument("--unsound", action="store_true", help="leave out the run without a mutant")
    options = parser.parse_args()
    words, before = options.words or [""], set() if options.again else recorded()
    asked = [
        mutant for mutant in MUTANTS if any(word in f"{mutant} {mutant.test}" for word in words)
    ]
    left = [mutant for mutant in asked if fingerprint(mutant) not in before]
    print(f"{len(asked)} mutants, {len(asked) - len(left)} of them rejected before")
    multiprocessing.get_context("forkserver").set_forkserver_preload(LIBRARIES)
    RECORD.parent.mkdir(exist_ok=True)
    failures = []
    with tempfile.TemporaryDirectory() as folder, RECORD.open("a") as record:
        copy = Path(folder).resolve()
        copy_tree(copy)
        if left and not options.unsound and not sound(copy, left, options.limit):
            return 1
        for mutant in tqdm(left, desc="mutants", unit="mutant", disable=None):
            with planted(mutant, copy):
                outcome = run_tests(copy, ["-x", *arguments(mutant.test)], options.limit)
            word = verdict(outcome)
            entry = {
                "mutant": str(mutant),
                "test": mutant.test,
                "verdict": word,
                "said": outcome.said,
            }
            record.write(json.dumps(entry | {"fingerprint": fingerprint(mutant)}) + "\n")
            record.flush()
            if word != "rejected":
                failures.append(mutant)
                tqdm.write(f"{word}: {mutant}\n    by {mutant.test}\n    {outcome.said}")
    print(f"{len(asked) - len(failures)} of {len(asked)} mutants are rejected")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
