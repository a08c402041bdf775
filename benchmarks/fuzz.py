"""Fuzz the readers of files, guided by coverage: whatever the bytes are, an error is a clear one.

python benchmarks/fuzz.py idx --runs 100000        (after pip install atheris)
"""

import contextlib
import io
import json
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

guided: Any = contextlib.nullcontext()
if __name__ == "__main__":
    import atheris  # before jaxdiff, whose modules it instruments

    modules = ["jaxdiff._archive", "jaxdiff.data.idx", "jaxdiff.runs", "jaxdiff.zoo", "json"]
    guided = atheris.instrument_imports(include=[*modules, "zipfile"])

with guided:
    from jaxdiff import training, zoo
    from jaxdiff.cli import errors
    from jaxdiff.data import idx
    from jaxdiff.runs import cache, folders
    from jaxdiff.runs.config import PRESETS, as_json

FOLDER = Path(tempfile.mkdtemp(prefix="jaxdiff-fuzz-"))
ABOUT = {
    "unet": {"channels": 8, "multipliers": [1], "num_heads": 2, "attention": [], "num_classes": 10},
    "schedule": "cosine",
    "prediction": "v",
    "sigma_data": 0.5,
    "event_shape": [4, 4, 1],
    "levels": 256,
    "step": 3,
    "config": {"dataset": "digits"},
}


def on_file(name: str, read: Callable[[Path], Any], *, silent: bool = False) -> Callable:
    """A reader of bytes, through a file of a name; silent if it may not raise at all."""

    def call(content: bytes) -> None:
        path = FOLDER / name
        path.write_bytes(content)
        only_clear_errors(lambda: read(path), path, silent=silent)

    return call


def only_clear_errors(call: Callable[[], Any], name: Any, *, silent: bool = False) -> None:
    """Let a reader end with a value, or with an error in one line that names the file."""
    try:
        call()
    except (ValueError, OSError) as error:
        if silent or str(name) not in str(error) or "\n" in str(error):
            raise AssertionError(f"{type(error).__name__}: {error}") from error


def network(content: bytes) -> None:
    """Read bytes as a network's file."""
    only_clear_errors(lambda: zoo.read("hostile", content), "hostile")


def arrays() -> dict[str, np.ndarray]:
    """The arrays of a small network's file."""
    random = np.random.default_rng(0)
    params = {
        "inner": {"kernel": random.normal(size=(3, 2, 4)), "bias": random.normal(size=4)},
        "last": {"kernel": random.normal(size=(4, 1))},
    }
    spread = {
        "axes": random.normal(size=(2, 4, 4, 1)).astype(np.float16),
        "scale": np.ones(3, np.float32),
        "log_snr": np.arange(3, dtype=np.float32),
        "fraction": np.ones((3, 3), np.float32),
    }
    about: dict[str, np.ndarray] = {zoo.ABOUT: np.array(json.dumps(ABOUT))}
    packed = {f"spread:{name}": np.asarray(each) for name, each in spread.items()}
    return about | zoo.pack(params) | packed


def member(array: Any) -> bytes:
    """An array as the bytes of a member of an archive."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive whose sums are right, whatever its members are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as target:
        for name, content in members.items():
            target.writestr(zipfile.ZipInfo(f"{name}.npy"), content, compression)
    return file.getvalue()


def with_member(name: str) -> Callable[[bytes], None]:
    """Read bytes as one member of a network's file that is whole otherwise."""
    members = {each: member(array) for each, array in arrays().items()}
    return lambda content: network(archive(members | {name: content}))


def with_about(content: bytes) -> None:
    """Read bytes as the text of a network's file that is whole otherwise."""
    text = np.array(content.decode("latin-1"))
    network(
        archive({name: member(each) for name, each in arrays().items()} | {"about": member(text)})
    )


def idx_files() -> list[bytes]:
    """Whole IDX files, plain and compressed."""
    found = []
    shapes: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3), (0, 5), (2, 1, 2, 2))
    for code, dtype in idx.DTYPES.items():
        for shape in shapes:
            header = struct.pack(f">4B{len(shape)}I", 0, 0, code, len(shape), *shape)
            found.append(header + np.ones(shape, ">" + dtype).tobytes())
    return [*found, *(idx.gzip.compress(each, mtime=0) for each in found[:8])]


FACTS = {"event_shape": [28, 28, 1], "num_classes": 10, "levels": 256}
LOG = b'{"step": 1, "time": 2.5, "loss": 0.5}\n{"step": 2, "time": 3.5, "held_out_loss": 0.25}\n'
# Name: the reader, and whole files to begin with.
READERS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "idx": (on_file("file-idx", idx.read), idx_files()),
    "config": (
        on_file("config.json", lambda path: folders.load_config(path.parent)),
        [as_json(config).encode() for _, config in PRESETS.values()],
    ),
    "facts": (
        on_file("data.json", lambda path: folders.load_facts(path.parent)),
        [json.dumps(FACTS).encode()],
    ),
    "log": (
        on_file("metrics.jsonl", lambda path: training.read_log(path.parent), silent=True),
        [LOG],
    ),
    "part": (
        on_file("part.npz", cache.read, silent=True),
        [
            archive({"x": member(np.arange(3))}),
            archive({"x": member(np.eye(2))}, zipfile.ZIP_DEFLATED),
        ],
    ),
    "json": (on_file("part.json", cache.read, silent=True), [b'{"x": [1, 2.5, null]}']),
    "network": (
        network,
        [archive({name: member(each) for name, each in arrays().items()}, n) for n in (0, 8)],
    ),
    "about": (with_about, [json.dumps(ABOUT).encode()]),
    "weight": (with_member("inner/kernel"), [member(arrays()["inner/kernel"])]),
    "scale": (with_member("inner/kernel:scale"), [member(arrays()["inner/kernel:scale"])]),
    "spread": (with_member("spread:log_snr"), [member(arrays()["spread:log_snr"])]),
}


@dataclass(frozen=True)
class Options:
    """What to fuzz."""

    reader: Annotated[Literal[tuple(READERS)], tyro.conf.Positional]  # type: ignore[valid-type]
    """Which reader."""
    runs: int = 100_000
    """Number of cases."""
    seed: int = 1
    """Seed of the mutations, at least 1."""


def main(options: Options) -> None:
    """Run until the number is reached or a case fails. The process then ends."""
    read, seeds = READERS[options.reader]
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds):
        (corpus / str(number)).write_bytes(content)
    arguments = [f"-runs={options.runs}", f"-seed={options.seed}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *arguments, "-max_len=8192", str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
