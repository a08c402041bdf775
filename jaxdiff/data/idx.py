"""The IDX file format: MNIST and its relatives are published in it.

    00 00 | dtype, 1 byte | number of axes, 1 byte | size of each axis, 4 bytes each | values, C
    order

All numbers are big-endian. A file may be compressed with gzip: its first bytes say so, not its
name.

Source: LeCun, Cortes and Burges, The MNIST database, section "file formats".
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

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
    """Read a file and undo gzip; ValueError for damaged gzip data and for an empty file."""
    content = Path(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path}: expected a whole gzip file, got a damaged one ({error})"
            ) from error
    if not content:
        raise ValueError(f"{path}: expected an IDX file, got no bytes")
    return content


def parse(content: bytes, path: str | os.PathLike) -> np.ndarray:
    """Decode the bytes of an IDX file; path only names them in errors."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in DTYPES:
        codes = ", ".join(f"{code:02x}" for code in DTYPES)
        raise ValueError(
            f"{path}: expected an IDX file (00 00, one of {codes}, axes), "
            f"got {content[:4].hex(' ')}"
        )
    dtype, ndim = np.dtype(">" + DTYPES[content[2]]), content[3]
    start = 4 + 4 * ndim
    if len(content) < start:
        raise ValueError(
            f"{path}: expected {start} bytes of header for {ndim} axes, got {len(content)}"
        )
    shape = struct.unpack(f">{ndim}I", content[4:start])
    expected = start + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        problem = "cut short" if len(content) < expected else "trailing bytes"
        raise ValueError(
            f"{path}: expected {expected} bytes for shape {shape}, got {len(content)} ({problem})"
        )
    return (
        np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
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
