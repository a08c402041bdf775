"""Files of other people: JSON, options by name, and weights that are no pickles."""

import dataclasses
import json
import shlex
import types
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
CONVERT = (
    'python -c "import sys, torch; from safetensors.torch import save_file; '
    "save_file({k: v.contiguous() for k, v in torch.load(sys.argv[1], weights_only=True, "
    "map_location='cpu').items()}, sys.argv[2])\""
)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; the error names the file."""
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # not text, not JSON, or nested too deep
        what = str(error) or type(error).__name__
        raise ValueError(f"{path}: expected JSON, got {what}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected an object, got {shown(value)}")
    return value


def read_options(kind: type[T], fields: dict[str, Any], path: Path) -> T:
    """A dataclass from options of its names and types; the others must be unset.

    An option that the file lacks has its default. Names that begin with _ are left out: they say
    which class wrote the file.
    """
    hints = typing.get_type_hints(kind)
    found = {}
    for name, value in fields.items():
        if name.startswith("_"):
            continue
        if name not in hints:
            if value is None:
                continue
            raise ValueError(
                f"{path}: {name}: expected an option that is known here, got {shown(value)}"
            )
        found[name] = _typed(hints[name], value, f"{path}: {name}")
    missing = [
        each.name
        for each in dataclasses.fields(kind)  # type: ignore[arg-type]
        if each.name not in found and each.default is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{path}: {missing[0]}: expected a value, got none")
    return kind(**found)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """A value of JSON as one of a type: int, float, bool, str, tuple, or one of them or None."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    kinds = arguments if origin in (types.UnionType, typing.Union) else (hint,)
    for kind in kinds:
        if kind is type(None) and value is None:
            return None
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(kind)[0]
            return tuple(_typed(inner, each, where) for each in value)
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is kind:
            return value
    expected = str(hint) if origin or len(kinds) > 1 else hint.__name__
    raise ValueError(f"{where}: expected {expected}, got {shown(value)}")


def require_choice(path: Path, name: str, value: Any, options: Iterable[Any]) -> None:
    """Require one of the named values of an option."""
    names = tuple(options)  # a value of JSON need not have a hash
    if value not in names:
        raise ValueError(
            f"{path}: {name}: expected one of {', '.join(map(repr, names))}, got {shown(value)}"
        )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the name of a file before an error of what it says."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def require_safetensors(path: Path) -> Path:
    """Require the name of a weights file that is no pickle, and a file that exists."""
    if path.suffix in PICKLED:
        names = (shlex.quote(str(each)) for each in (path, path.with_suffix(".safetensors")))
        raise ValueError(
            f"{path}: expected a .safetensors file, because reading a pickle can run code; "
            f"where torch is installed, this converts it: {CONVERT} {' '.join(names)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    return path


def weights_in(folder: Path, name: str) -> Path:
    """The weights of a folder; where they are a pickle, the error says how to convert it."""
    path = folder / f"{name}.safetensors"
    if path.is_file():
        return path
    others = sorted(folder.glob(f"{name}*"))
    for other in others:
        if other.suffix in PICKLED:
            require_safetensors(other)
    there = ", ".join(shown(other.name) for other in others) or "nothing of this name"
    raise FileNotFoundError(f"{folder}: expected {path.name}, in one file, got {there}")


def shown(value: Any) -> str:
    """A value in a few characters of one line."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
