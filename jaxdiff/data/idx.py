"""The IDX file format: MNIST and its relatives are published in it.

    00 00 | dtype, 1 byte | number of axes, 1 byte | size of each axis, 4 bytes each | values, C
    order

All numbers are big-endian. A file may be compressed with gzip: its first bytes say so, not its
name.

Source: LeCun, Cortes and Burges, The MNIST database, section "file formats".
"""

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

MOST_AXES = 64  # as NumPy has them
CHUNK = 2**20
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}


def read(path: str | os.PathLike) -> np.ndarray:
    """Read an IDX file, plain or compressed with gzip.

    Args:
      path: the file.
    Returns:
      The array, in the machine's byte order.
    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is empty, damaged, cut short, too long, or no IDX file.
    """
    return parse(read_bytes(path), path)


def read_bytes(path: str | os.PathLike) -> bytes:
    """Read an IDX file and undo gzip; ValueError where it is damaged, or not as long as it says.

    No more is read or decompressed than the header claims, and one byte.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            return _whole(gzip.GzipFile(fileobj=file) if packed else file, path)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{path}: expected a whole gzip file, got a damaged one ({error})"
            ) from error


def parse(content: bytes, path: str | os.PathLike) -> np.ndarray:
    """Decode the bytes of an IDX file; path only names them in errors."""
    dtype, shape, start = _header(content, path)
    _check_length(len(content), path, dtype, shape)
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _whole(stream: io.BufferedIOBase, path: str | os.PathLike) -> bytes:
    """The bytes of a stream, in pieces: what the header claims is not allocated before it came."""
    content = bytearray(stream.read(4))
    if not content:
        raise ValueError(f"{path}: expected an IDX file, got no bytes")
    content += stream.read(4 * content[-1])
    dtype, shape, start = _header(bytes(content), path)
    most = start + dtype.itemsize * math.prod(shape) + 1
    while len(content) < most and (piece := stream.read(min(CHUNK, most - len(content)))):
        content += piece
    _check_length(len(content), path, dtype, shape)
    return bytes(content)


def _header(content: bytes, path: str | os.PathLike) -> tuple[np.dtype, tuple[int, ...], int]:
    """The dtype, the shape and the length of the header that begins some bytes."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in DTYPES:
        codes = ", ".join(f"{code:02x}" for code in DTYPES)
        raise ValueError(
            f"{path}: expected an IDX file (00 00, one of {codes}, axes), "
            f"got {content[:4].hex(' ')}"
        )
    dtype, ndim = np.dtype(">" + DTYPES[content[2]]), content[3]
    start = 4 + 4 * ndim
    if ndim > MOST_AXES:
        raise ValueError(f"{path}: expected at most {MOST_AXES} axes, got {ndim}")
    if len(content) < start:
        raise ValueError(
            f"{path}: expected {start} bytes of header for {ndim} axes, got {len(content)}"
        )
    shape = struct.unpack(f">{ndim}I", content[4:start])
    # Beside an axis of no length others may have any, as long as NumPy can count with them.
    if math.prod(max(1, n) for n in shape) * dtype.itemsize >= 2**63 and 0 in shape:
        raise ValueError(f"{path}: expected the shape of an array, got {shape}")
    return dtype, shape, start


def _check_length(
    length: int, path: str | os.PathLike, dtype: np.dtype, shape: tuple[int, ...]
) -> None:
    expected = 4 + 4 * len(shape) + dtype.itemsize * math.prod(shape)
    if length != expected:
        problem = "cut short" if length < expected else "trailing bytes"
        raise ValueError(
            f"{path}: expected {expected} bytes for shape {shape}, got {length} ({problem})"
        )


def write(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write an IDX file, compressed if path ends in .gz; TypeError for a dtype it cannot hold."""
    kind = array.dtype.str[1:]
    if kind not in DTYPES.values():
        raise TypeError(
            f"array: expected a dtype of {', '.join(DTYPES.values())}, got {array.dtype}"
        )
    code = next(code for code, name in DTYPES.items() if name == kind)
    header = struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    content = header + array.astype(">" + kind).tobytes()
    Path(path).write_bytes(gzip.compress(content) if str(path).endswith(".gz") else content)
