"""NumPy archives (.npz) from anywhere: nothing is unpickled, and sizes are checked first."""

import math
import re
import struct
import zipfile
import zlib
from typing import IO, Any

import numpy as np

# The header of a member as NumPy writes it: magic, version 1.0, length, and a dictionary, which is
# matched and not evaluated. Its values are booleans, integers, floating numbers or text. A text
# matches in one way at most: otherwise a long number would be tried in all of its parts.
MAGIC = b"\x93NUMPY\x01\x00"
HEADER = re.compile(
    rb"\{'descr': '([<>|][biufU]\d{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,18},|\d{1,18}(?:, \d{1,18})+)\), \}\s*"
)
DEFLATE = 1032  # bytes that a byte of deflated data becomes at most
CHUNK = 2**24
# What zipfile and NumPy raise where bytes are not what they should be.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, ValueError, TypeError, LookupError, EOFError,
    RuntimeError, OverflowError,
)  # fmt: skip


def read(stream: IO[bytes], name: Any) -> dict[str, np.ndarray]:
    """Read the arrays of an archive that `np.savez` or `np.savez_compressed` wrote.

    An array is allocated when its header, the archive's directory and the length of the file agree
    on its size.

    Args:
      stream: the archive; it can seek.
      name: what errors call it.
    Returns:
      Array by name, of booleans, integers, floating numbers or text.
    Raises:
      ValueError: it is damaged, or no such archive.
    """
    try:
        size = stream.seek(0, 2)
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if sum(member.compress_size for member in members) > size:
                raise ValueError("members overlap")
            return {each.filename.removesuffix(".npy"): _array(archive, each) for each in members}
    except DAMAGE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{name}: expected a NumPy archive, got a damaged one or none ({reason})"
        ) from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    most = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE}.get(member.compress_type, 0)
    if member.file_size > most * member.compress_size:
        raise ValueError(f"{member.compress_size} bytes cannot hold {member.file_size}")
    with archive.open(member) as stream:
        start = stream.read(len(MAGIC) + 2)
        if len(start) != len(MAGIC) + 2 or not start.startswith(MAGIC):
            raise ValueError("a member is no array")
        (length,) = struct.unpack("<H", start[-2:])
        header = HEADER.fullmatch(stream.read(length))
        if header is None:
            raise ValueError("a member is no array of numbers or text")
        dtype, shape = np.dtype(header[1].decode()), tuple(map(int, re.findall(rb"\d+", header[3])))
        size, left = dtype.itemsize * math.prod(shape), member.file_size - len(start) - length
        if size != left or not dtype.itemsize:
            raise ValueError(f"{left} bytes are no array of {dtype} {shape}")
        content = np.empty(size, np.uint8)
        for first in range(0, size, CHUNK):  # the last read compares the check sum
            part = stream.read(min(CHUNK, size - first))
            if len(part) != min(CHUNK, size - first):
                raise ValueError("a member is cut short")
            content[first : first + CHUNK] = np.frombuffer(part, np.uint8)
    return content.view(dtype).reshape(shape, order="F" if header[2] == b"True" else "C")
