"""Nested dataclasses by dotted names, and back from JSON with a check of every field."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal


def flat(options: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of nested dataclasses by their dotted names, as the command line has them."""
    found: dict[str, Any] = {}
    for each in dataclasses.fields(options):
        value = getattr(options, each.name)
        name = prefix + each.name
        found |= flat(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


def for_json(options: Any) -> dict[str, Any]:
    """The options of a command as JSON can hold them: paths as text."""
    fields = dataclasses.asdict(options)
    return {name: str(v) if isinstance(v, Path) else v for name, v in fields.items()}


def read_json(path: Path) -> Any:
    """Read a JSON file; the error names the file if it is damaged."""
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # not text, not JSON, or nested too deep
        raise ValueError(
            f"{path}: expected JSON, got {str(error) or type(error).__name__}"
        ) from error


def read(kind: Any, fields: Any, where: str = "") -> Any:
    """A dataclass from a JSON object that holds its fields, with their types.

    A field that is missing has its default. So a file of an earlier version, which has fewer
    options, can be read. The object must hold the fields without a default, and the first field.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"{where or 'all of it'}: expected an object, got {_shown(fields)}")
    prefix = f"{where}." if where else ""
    hints = typing.get_type_hints(kind)
    for name in fields.keys() - hints.keys():
        shown = prefix + name if name.isidentifier() else f"{where or 'all of it'}, {_shown(name)}"
        raise ValueError(f"{shown}: expected one of {', '.join(hints)}, which is none of them")
    for n, each in enumerate(dataclasses.fields(kind)):
        if each.name not in fields and (n == 0 or _has_no_default(each)):
            raise ValueError(f"{prefix}{each.name}: expected a value, got none")
    return kind(
        **{name: _read_value(hints[name], value, prefix + name) for name, value in fields.items()}
    )


def _has_no_default(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_value(hint: Any, value: Any, where: str) -> Any:
    """A value of a type: dataclass, choice, path, tuple, number, text, or one of them or None."""
    if dataclasses.is_dataclass(hint):
        return read(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        inner = next(each for each in arguments if each is not type(None))
        return None if value is None else _read_value(inner, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(
                f"{where}: expected one of {', '.join(arguments)}, got {_shown(value)}"
            )
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_read_value(arguments[0], each, where) for each in value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if type(value) is not hint:
        expected = {tuple: "a list", Path: "a path"}.get(
            origin or hint, getattr(hint, "__name__", str(hint))
        )
        raise ValueError(f"{where}: expected {expected}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:  # it was just not too deep to be read
        return "one nested too deep"
    return text if len(text) <= 40 else f"{text[:37]}..."
