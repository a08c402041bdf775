"""One picture file as a square of 8-bit colours.

Files are PNG, JPEG, WebP or BMP, whatever their names say, of any mode that Pillow reads. The
orientation in EXIF is applied. What is transparent shows white. Levels of 16 bits are rounded to 8.
Of an animation the first frame counts.
"""

import contextlib
import hashlib
import io
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxdiff._extras import needs

Fit = Literal["crop", "stretch"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MOST_BYTES = 2**30
MOST_PIXELS = 2**27  # 134 million: a decompression bomb has more, a telephone's photo fewer
ORIENTATION = 0x0112  # a tag of EXIF
# What undoes each orientation, by Pillow's name.
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
    6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip


class Picture(NamedTuple):
    """A picture that was read.

    Fields:
      pixels: RGB, uint8 [S, S, 3].
      content: SHA-256 of the file, in hexadecimal digits.
    """

    pixels: np.ndarray
    content: str


def read(path: Path, size: int, fit: Fit = "crop") -> Picture:
    """Read a picture file, and bring it to a square.

    "crop" takes the largest square in the middle, "stretch" the whole picture. Either is then
    resized by an antialiased bicubic filter. A JPEG of more than twice the size is decoded at a
    half, a quarter or an eighth of it first.

    Args:
      path: the file.
      size: side S of the square; no side of the picture may be smaller.
      fit: "crop" or "stretch".
    Returns:
      Picture: pixels, uint8 [S, S, 3], and the digest of the file.
    Raises:
      ValueError: it is no picture, damaged, cut short, too small or too large; the error names it.
      OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: expected a file, got a folder, a pipe or a device")
    if not 0 < status.st_size <= MOST_BYTES:
        raise ValueError(f"{path}: expected 1 byte to 1 GiB, got {status.st_size} bytes")
    return decoded(path.read_bytes(), path, size, fit)


def decoded(content: bytes, name: str | Path, size: int, fit: Fit = "crop") -> Picture:
    """Read the content of a picture file, as `read` does.

    Args:
      content: of the file.
      name: of the file, for errors.
      size: side S of the square.
      fit: "crop" or "stretch".
    Returns:
      Picture.
    Raises:
      ValueError: as in `read`.
    """
    with _readable(name):
        pixels = _pixels(content, size, fit)
    return Picture(pixels, hashlib.sha256(content).hexdigest())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back Pillow's warnings: what it warns of is read all the same, or refused by us."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


class _Refused(ValueError):
    """What is wrong with a picture, without the name of its file."""


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Turn any error of decoding into one that names the file."""
    try:
        yield
    except (MemoryError, ImportError):
        raise
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # each format has errors of its own
        kind = type(error).__name__
        if kind == "DecompressionBombError":
            raise ValueError(f"{path}: {_too_large('more')}") from error
        if kind == "UnidentifiedImageError":
            raise ValueError(
                f"{path}: expected a PNG, JPEG, WebP or BMP file, got none of them, "
                "or its first bytes alone"
            ) from error
        reason = str(error).strip().partition("\n")[0] or kind
        raise ValueError(f"{path}: expected a whole picture, got a damaged one ({reason})") from (
            error
        )


def _too_large(pixels: Any) -> str:
    return f"expected at most {MOST_PIXELS} pixels, got {pixels}"


def _pixels(content: bytes, size: int, fit: Fit) -> np.ndarray:
    """The square of a picture, uint8 [S, S, 3]."""
    library = needs("PIL.Image", extra="data")
    with library.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise _Refused(_too_large(f"{width} x {height}"))
        if min(width, height) < size:
            raise _Refused(f"expected at least {size} x {size} pixels, got {width} x {height}")
        image.draft(None, (2 * size, 2 * size))  # of JPEG alone
        image.load()
        colours, orientation = _rgb(image), _orientation(image)
    if orientation in UPRIGHT:
        colours = colours.transpose(library.Transpose[UPRIGHT[orientation]])
    if fit == "crop":
        width, height = colours.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        colours = colours.crop((left, top, left + side, top + side))
    return np.asarray(colours.resize((size, size), library.Resampling.BICUBIC))


def _orientation(image: Any) -> int:
    """The orientation in EXIF; 1, upright, where that cannot be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the picture itself is whole
        return 1


def _rgb(image: Any) -> Any:
    """A picture of any mode as RGB of 8 bits, on white."""
    library = needs("PIL.Image", extra="data")
    if image.mode.startswith("I"):  # Pillow's own conversion would cut levels off at 255
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = library.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = library.new("RGBA", image.size, "white")
        image = library.alpha_composite(white, image)
    return image.convert("RGB")
