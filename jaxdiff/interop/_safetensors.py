"""Read and write safetensors files: a length, JSON, raw arrays. Nothing in them can run."""

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

MOST_HEADER = 100_000_000  # bytes; the format's own limit
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
# How a zip archive and a bare pickle begin: what torch.save writes, now and before.
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Entry(NamedTuple):
    """Where an array lies: its bytes are start .. stop of the data."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def read(path: str | PathLike) -> dict[str, np.ndarray]:
    """Read all arrays of a safetensors file.

    The header is checked against the size of the file before any array is allocated: no header
    makes this function take more memory than the file has bytes.

    Args:
      path: the file.
    Returns:
      Name -> array, of the file's dtypes, in the order of the data.
    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not one; the message names it, and what is wrong with it.
    Source: the format's description, https://github.com/huggingface/safetensors.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        arrays = {}
        for entry in _header(path, file, size):  # in order, without gaps: no seeking
            array = np.empty(entry.shape, entry.dtype)
            if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                raise ValueError(f"{path}: expected {size} bytes, and the file became shorter")
            arrays[entry.name] = array
    return arrays


def write(path: str | PathLike, arrays: Mapping[str, Any]) -> None:
    """Write arrays to a safetensors file.

    Args:
      path: the file.
      arrays: name -> array, of the dtypes of DTYPES.
    Raises:
      TypeError: an array has another dtype.
      ValueError: an array has the name that the format keeps for itself.
    """
    found = {name: np.asarray(value) for name, value in arrays.items()}
    for name, array in found.items():
        if name == METADATA:
            raise ValueError(f"arrays: expected other names than {METADATA}, got it")
        if array.dtype not in NAMES:
            raise TypeError(f"{name}: expected one of {', '.join(DTYPES)}, got dtype {array.dtype}")
    header: dict[str, Any] = {METADATA: {"format": "pt"}}  # the axes are named as torch has them
    end = 0
    # The widest first: then each array lies at a multiple of its own width.
    order = sorted(found, key=lambda name: (-found[name].dtype.itemsize, name))
    for name in order:
        array, start = found[name], end
        end += array.nbytes
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(np.ascontiguousarray(found[name]).tobytes())


def _header(path: Path, file: BinaryIO, size: int) -> list[Entry]:
    """The checked header, in the order of the data; the file then stands where the data begin."""
    first = file.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
    if not 0 < length <= min(size - 8, MOST_HEADER):
        if first.startswith(PICKLES):
            raise ValueError(
                f"{path}: expected a safetensors file, got a pickle, which can run code"
            )
        raise ValueError(
            f"{path}: expected a safetensors file, "
            f"got a header of {length} bytes in a file of {size}"
        )
    entries = [_entry(path, name, value) for name, value in _json(path, file.read(length))]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    end = 0
    for entry in entries:
        if entry.start != end:
            raise ValueError(
                f"{path}: {_shown(entry.name)}: expected data from byte {end} on, right after the "
                f"array before it, got {entry.start}"
            )
        end = entry.stop
    if end != size - 8 - length:
        raise ValueError(f"{path}: expected {end} bytes of data, got {size - 8 - length}")
    return entries


def _json(path: Path, text: bytes) -> list[tuple[str, Any]]:
    """The pairs of a JSON object, without the metadata; no name may come twice."""
    try:
        pairs = json.loads(text.decode(), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:  # not text, not JSON, or nested too deep
        what = str(error) or type(error).__name__
        raise ValueError(f"{path}: expected a header of JSON, got {what}") from error
    if not isinstance(pairs, _Pairs):
        raise ValueError(f"{path}: expected a header that is an object, got {_shown(pairs)}")
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: {_shown(twice[0])}: expected one array of this name, got more")
    return [(name, value) for name, value in pairs if name != METADATA]


class _Pairs(list):
    """A JSON object as it was written, with names that come twice."""


def _entry(path: Path, name: str, value: Any) -> Entry:
    where = f"{path}: {_shown(name)}"
    fields = dict(value) if isinstance(value, _Pairs) else {}
    if set(fields) != {"dtype", "shape", "data_offsets"} or len(value) != 3:
        raise ValueError(f"{where}: expected dtype, shape and data_offsets, got {_shown(value)}")
    kind, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"{where}: expected a dtype of {', '.join(DTYPES)}, got {_shown(kind)}")
    # NumPy counts the bytes of an empty array too, as if it had none of its zeros.
    if not _counts(shape) or len(shape) > 32 or 8 * math.prod(n or 1 for n in shape) >= 2**63:
        raise ValueError(f"{where}: expected a shape that an array can have, got {_shown(shape)}")
    if not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{where}: expected two offsets, got {_shown(offsets)}")
    start, stop = offsets
    size = math.prod(shape) * DTYPES[kind].itemsize
    if stop - start != size:
        raise ValueError(
            f"{where}: expected {_shown(size)} bytes for {kind} {_shown(shape)}, "
            f"got offsets {_shown(offsets)}"
        )
    return Entry(name, DTYPES[kind], tuple(shape), start, stop)


def _counts(value: Any) -> bool:
    """Whether a value is a list of integers of at least 0."""
    return type(value) is list and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _shown(value: Any) -> str:
    """A value of the header in a few characters of one line."""
    text = ascii(dict(value) if isinstance(value, _Pairs) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
