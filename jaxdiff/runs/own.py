"""Your own data for a run: a folder of pictures, or a table in a file."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxdiff import data
from jaxdiff.runs.config import FOLDER, Config
from jaxdiff.runs.source import Source

SHOWN = 10  # skipped files, a line each


class Own(NamedTuple):
    """What a folder or a table holds, and the lines that say so."""

    name: str
    event_shape: tuple[int, ...]
    num_classes: int | None
    levels: int | None
    splits: dict[str, data.Split]
    source: Source
    lines: list[str]


def check(config: Config) -> Path:
    """The folder of a configuration; an error where it names another set, none, or is not there."""
    if config.dataset != FOLDER:
        raise ValueError(
            f"folder: expected none beside --dataset {config.dataset}, got {config.folder} "
            "(`jaxdiff train images --folder FOLDER` takes it)"
        )
    if config.folder is None:
        raise ValueError(
            "folder: expected a folder of pictures, or a table of .npy, .npz or .csv "
            "(--folder FOLDER), got none"
        )
    path = config.folder.expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"folder: expected a folder of pictures, or a table, got {path}, which does not exist"
        )
    return path


def read(config: Config, *, known: Any = None) -> Own:
    """Read a folder of pictures or a table.

    Args:
      config: the configuration of a run.
      known: facts of a run that exists: its colours and its scale are taken. None for a new run.
    Returns:
      Own.
    Raises:
      FileNotFoundError: it is not there.
      ValueError: it holds no data, or others than the run was begun with.
    """
    path = check(config)
    found = _pictures(path, config, known) if path.is_dir() else _table(path, known)
    if known is not None:
        same = (found.event_shape, found.num_classes) == (known.event_shape, known.num_classes)
        if not same:
            raise ValueError(
                f"{path}: expected examples of {known.event_shape} and {known.num_classes} "
                f"classes, as when the run began, got {found.event_shape} and {found.num_classes}"
            )
    return found


def _pictures(path: Path, config: Config, known: Any) -> Own:
    colour = config.colour
    if known is not None:
        colour = "grey" if known.event_shape[-1] == 1 else "rgb"
    found = data.folder.load(
        path, config.size, colour=colour, fit=config.fit, data_dir=config.data_dir
    )
    dataset, skipped = found.dataset, found.skipped
    lines = [
        f"skipped {path / data.folder.shown(name)}: {reason}"
        for name, reason in list(skipped.items())[:SHOWN]
    ]
    if len(skipped) > SHOWN:
        lines.append(f"skipped {len(skipped) - SHOWN} more")
    height, width, channels = dataset.event_shape
    classes = f"{len(found.classes)} classes" if found.classes else "no classes"
    lines.append(
        f"{path}: {_counts(dataset.splits)} pictures of {height}x{width}, "
        f"{'grey' if channels == 1 else 'colour'}, {classes}; {len(skipped)} skipped, "
        f"{found.others} other files; prepared in {found.cache}"
    )
    return Own(
        dataset.name,
        dataset.event_shape,
        dataset.num_classes,
        dataset.levels,
        dict(dataset.splits),
        Source(found.fingerprint, found.classes),
        lines,
    )


def _table(path: Path, known: Any) -> Own:
    standard = (known.source.centre, known.source.scale) if known is not None else None
    found = data.table.load(path, standard=standard)
    kind = "images" if found.levels else "standardised vectors"
    shape = "x".join(map(str, found.event_shape))
    line = f"{path}: {_counts(found.splits)} {kind} of {shape}"
    return Own(
        path.stem,
        found.event_shape,
        found.num_classes,
        found.levels,
        found.splits,
        Source(found.fingerprint, (), found.centre, found.scale),
        [line],
    )


def _counts(splits: Any) -> str:
    train, test = (splits[name].num_examples for name in ("train", "test"))
    return f"{train} training and {test} held-out"
