"""Hostile files: whatever the bytes are, a reader returns or says in one line what is wrong with the file.

Nothing is unpickled or executed, and nothing is allocated because a header claims it.
"""

import copy
import gzip
import io
import json
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pytest
from helpers import slow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxdiff import _archive, data, zoo
from jaxdiff.data import idx, tfds
from jaxdiff.runs import cache, folders
from jaxdiff.runs.config import PRESETS, as_json

TERA = 10**12
WHERE = st.integers(0, 2**16)
EXTREMES = [
    struct.pack(f, n) for f in ("<H", "<I", ">I", "<Q") for n in (0, 1, 255, 2**15, 2**16 - 1)
]
EXTREMES += [b"\xff" * n for n in (1, 2, 4, 8)] + [b"\x7f" + b"\xff" * n for n in (3, 7)]
EXTREMES += [b"9" * n for n in (1, 12, 400, 5000)] + [
    b"-",
    b"1e999",
    b"NaN",
    b"[" * 2000,
    b"\0",
    b'"',
    b"{}",
]


@st.composite
def harmed(draw: st.DrawFn, wholes: list[bytes]) -> bytes:
    """A whole file with up to four edits: bits flipped, cut short, a piece moved or deleted, numbers changed."""
    content = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 4))):
        place, other = (draw(WHERE) % (len(content) + 1) for _ in range(2))
        match draw(st.sampled_from(["flip", "cut", "splice", "delete", "put", "insert"])):
            case "flip" if place < len(content):
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[place:]
            case "splice":
                piece = content[other : other + draw(st.integers(1, 40))]
                content[place:place] = piece
            case "delete":
                del content[place : place + draw(st.integers(1, 40))]
            case "put":
                extreme = draw(st.sampled_from(EXTREMES))
                content[place : place + len(extreme)] = extreme
            case "insert":
                content[place:place] = draw(st.sampled_from(EXTREMES))
    return bytes(content)


STRANGE = st.sampled_from([
    None, True, False, 0, -1, 1, 2**31, TERA, 10**400, -(10**400), 0.0, -0.5, 1e308, float("inf"), float("nan"),
    "", "x", "\ud800", "\0", "../../x", "/", "mnist", "cosine", "levels", [], [0], [-1], [TERA] * 3, [[]], {}, {"x": 1},
    ["x"], [None], "9" * 50,
])  # fmt: skip


@st.composite
def edited(draw: st.DrawFn, wholes: list[bytes]) -> bytes:
    """A JSON file in which some values are strange, missing, or under another name."""
    whole = json.loads(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 3))):
        node, path = whole, []
        while isinstance(node, dict) and node and (not path or draw(st.booleans())):
            path.append(draw(st.sampled_from(sorted(node))))
            node = node[path[-1]]
        if not path:
            break
        parent = whole
        for name in path[:-1]:
            parent = parent[name]
        match draw(st.sampled_from(["put", "put", "put", "delete", "rename"])):
            case "put":
                parent[path[-1]] = copy.deepcopy(draw(STRANGE))
            case "delete":
                del parent[path[-1]]
            case "rename":
                parent[draw(st.text(max_size=8))] = parent.pop(path[-1])
    return json.dumps(whole).encode()


def hostile(name: str) -> st.SearchStrategy[bytes]:
    wholes = fuzz.READERS[name][1]
    kinds = [harmed(wholes), st.binary(max_size=300)]
    return (
        st.one_of(*kinds, edited(wholes))
        if name in ("config", "facts", "about")
        else st.one_of(*kinds)
    )


@pytest.mark.parametrize("num", [100, slow(10_000)])
@pytest.mark.parametrize("name", fuzz.READERS)
def test_only_clear_errors_come_out(name: str, num: int) -> None:
    read, wholes = fuzz.READERS[name]
    for whole in wholes:
        read(whole)

    @settings(max_examples=num, suppress_health_check=list(HealthCheck))
    @given(hostile(name))
    def run(content: bytes) -> None:
        read(content)

    run()


# What the fuzzers found.
def header(shape: bytes) -> bytes:
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape + b"), }"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


FOUND: list[tuple[str, bytes]] = [
    ("weight", header(b"9" * 200)),  # without end, where a number can be taken apart in many ways
    ("weight", header(b"1, " * 2000 + b"x")),
    ("scale", fuzz.member(np.full((1, 1, 4), 1e38, np.float32))),  # times 127 it is infinite
    ("scale", fuzz.member(np.full((1, 1, 4), 1e300))),
    ("spread", fuzz.member(np.full(3, np.nan))),
    ("config", as_json(PRESETS["toy"][1]).replace('"run"', '"a\\nb"').encode()),
    (
        "config",
        as_json(PRESETS["toy"][1])
        .replace('"sigma_data": 0.5', f'"sigma_data": {10**400}')
        .encode(),
    ),
    (
        "config",
        as_json(PRESETS["toy"][1])
        .replace('"steps": 1500', '"steps": ' + "[" * 900 + "]" * 900)
        .encode(),
    ),
    ("facts", b'{"event_shape": [2], "num_classes": null, "a\\nb": 3}'),
    ("log", b'{"step": ' + b"9" * 5000 + b"}"),
    ("log", b'{"step": ' + b"[" * 100_000),
    ("json", b"[" * 100_000),
    ("about", json.dumps(fuzz.ABOUT | {"unet": {"a\nb": 3}}).encode()),
    ("about", json.dumps(fuzz.ABOUT | {"unet": {"multipliers": 3}}).encode()),
    ("about", b"[" * 100_000),
    (
        "weight",
        b"\x93NUMPY\x01\0\x60\0{'descr': '<U1', 'fortran_order': False, 'shape': (0,), }"
        + b" " * 40,
    ),
]


@pytest.mark.parametrize(("name", "content"), FOUND)
def test_what_was_found(name: str, content: bytes) -> None:
    fuzz.READERS[name][0](content)


def test_whole_files_are_read() -> None:
    """The fuzzed readers get beyond their first line."""
    assert zoo.read("whole", fuzz.READERS["network"][1][0]).spread is not None
    for content in fuzz.READERS["idx"][1]:
        (fuzz.FOLDER / "whole").write_bytes(content)
        idx.read(fuzz.FOLDER / "whole")


# What only claims to be large.


def claims(shape: str, compression: int, size: int | None = None) -> bytes:
    """An archive of 16 bytes whose header claims a shape, and whose directory claims a size."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    content = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(16)
    whole = bytearray(fuzz.archive({"x": content}, compression))
    if size is not None:
        place = whole.index(b"PK\x01\x02")
        whole[place + 24 : place + 28] = struct.pack("<I", size)
    return bytes(whole)


HUGE: dict[str, tuple[Callable[[Path], Any], bytes, str]] = {
    "idx": (idx.read, b"\0\0\x08\x02" + b"\xff" * 8 + b"abc", "cut short"),
    "idx in gzip": (idx.read, gzip.compress(b"\0\0\x0e\x02" + b"\xff" * 8 + b"abc"), "cut short"),
    "idx of many axes": (idx.read, b"\0\0\x08\xff" + bytes(4 * 255), "at most 64 axes, got 255"),
    "idx without length": (idx.read, b"\0\0\x08\x04" + bytes(4) + b"\xff" * 12, "the shape of an array"),
    "more than was claimed": (
        idx.read, gzip.compress(b"\0\0\x08\x01\0\0\0\x03" + bytes(10**8)), "got 12 .trailing bytes"
    ),
    "archive": (lambda path: zoo.read(str(path), path.read_bytes()), claims(f"({TERA},)", 0), "16 bytes are no array"),
    "archive, compressed": (
        lambda path: zoo.read(str(path), path.read_bytes()), claims(f"({TERA},)", 8), "16 bytes are no array"
    ),
    "directory": (
        lambda path: zoo.read(str(path), path.read_bytes()), claims("(4,)", 0, 2**32 - 2), "cannot hold 4294967294"
    ),
    "directory, compressed": (
        lambda path: zoo.read(str(path), path.read_bytes()), claims("(4,)", 8, 2**32 - 2), "cannot hold 4294967294"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_claims_allocate_nothing(name: str, tmp_path: Path) -> None:
    read, content, message = HUGE[name]
    path = tmp_path / "huge"
    path.write_bytes(content)
    read_once = pytest.raises(ValueError, match=message)
    tracemalloc.start()
    try:
        with read_once as caught:
            read(path)
        # The file itself, a piece of a megabyte and its double.
        assert tracemalloc.get_traced_memory()[1] < 4e6 + 3 * len(content)
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_a_weight_is_not_broadcast() -> None:
    """A column times a row of scales would be a matrix of any size."""
    arrays = {"w": np.ones((100_000, 1), np.int8), "w:scale": np.ones((1, 100_000), np.float32)}
    with pytest.raises(ValueError, match=r"w:scale: expected \(1, 1\), got \(1, 100000\)"):
        zoo.unpack(arrays)


def test_members_that_overlap_are_refused() -> None:
    """Each claims the same bytes: a small file would become a large number of arrays."""
    content = fuzz.member(np.zeros(1000))
    one = fuzz.archive({"x": content})
    start, end = one.index(b"PK\x01\x02"), one.index(b"PK\x05\x06")
    entry, last = one[start:end], bytearray(one[end:])
    last[8:12] = struct.pack("<HH", 100, 100)
    last[12:16] = struct.pack("<I", 100 * len(entry))
    with pytest.raises(ValueError, match=r"own: expected a NumPy archive.*members overlap"):
        _archive.read(io.BytesIO(one[:start] + 100 * entry + bytes(last)), "own")


@pytest.mark.parametrize(
    ("name", "value"),
    [("event_shape", []), ("event_shape", [28, 0, 1]), ("num_classes", 0), ("levels", 1)],
)
def test_facts_that_mean_nothing(name: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(fuzz.FACTS | {name: value}))
    with pytest.raises(ValueError, match=rf"data.json: {name}: expected at least \d, got"):
        folders.load_facts(tmp_path)


# Nothing is executed.


class Bomb:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> tuple:
        return (open, (str(fuzz.FOLDER / "executed"), "w"))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([Bomb()]), allow_pickle=True)
    for content in (
        fuzz.archive({"about": file.getvalue()}),
        pickle.dumps(Bomb()),
        file.getvalue(),
    ):
        fuzz.network(content)
        path = tmp_path / "part.npz"
        path.write_bytes(content)
        assert cache.read(path) is None
        assert tfds._read_cache(path, "") is None
    assert not (fuzz.FOLDER / "executed").exists()


@pytest.mark.parametrize("name", ["jax", "from_betas", "Schedule", "__doc__", "ddpm"])
def test_a_schedule_is_one_of_the_list(name: str) -> None:
    """The name of any other attribute would be called."""
    content = json.dumps(fuzz.ABOUT | {"schedule": name}).encode()
    arrays = {each: fuzz.member(array) for each, array in fuzz.arrays().items()}
    arrays["about"] = fuzz.member(np.array(content.decode()))
    with pytest.raises(
        ValueError, match=rf"own: schedule: expected one of 'cosine'.*, got '{name}'"
    ):
        zoo.read("own", fuzz.archive(arrays))


@pytest.mark.parametrize(
    "name", ["mnist/..", "mnist/..:1.0.0", "a:..", "../x", "a/../b", "/etc", "a/.", ".."]
)
def test_no_name_leaves_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "sets" / "mnist").mkdir(parents=True)
    assert tfds.find(name, tmp_path / "sets") is None
    with pytest.raises(ValueError, match="name: no data set"):
        data.load(name, tmp_path / "sets")


# An archive is read as NumPy reads it.


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_is_what_numpy_wrote(save: Callable) -> None:
    arrays = {
        "scalar": np.float32(3), "text": np.array("caf\u00e9"), "empty": np.zeros((0, 3)), "bool": np.array([True]),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "big": np.arange(3, dtype=">i2"),
        "none": np.array(""), "half": np.ones((2, 2, 2), np.float16), "inner/name": np.arange(3, dtype=np.uint64),
    }  # fmt: skip
    file = io.BytesIO()
    save(file, **arrays)
    found = _archive.read(file, "own")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_a_large_array_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_archive, "CHUNK", 7)
    file = io.BytesIO()
    np.savez(file, x=np.arange(100))
    np.testing.assert_array_equal(_archive.read(file, "own")["x"], np.arange(100))
    content = bytearray(file.getvalue())
    content[content.index(np.arange(100).tobytes()) + 99] ^= 1
    with pytest.raises(ValueError, match=r"own: expected a NumPy archive, got .*CRC"):
        _archive.read(io.BytesIO(bytes(content)), "own")
