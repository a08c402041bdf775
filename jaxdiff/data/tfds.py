"""Image sets prepared by TensorFlow Datasets (TFDS), read without TensorFlow."""

import contextlib
import difflib
import json
import logging
import math
import os
import re
import shlex
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxdiff import _archive, _machine
from jaxdiff._extras import needs
from jaxdiff.data import toy
from jaxdiff.data.images import ImageDataset, Split
from jaxdiff.data.on_disk import OnDisk

# What `jaxdiff prepare` builds from IDX files; for any other set, TFDS itself has to do it.
EMNIST = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
FROM_IDX = ("mnist", "fashion_mnist", "kmnist", *(f"emnist/{part}" for part in EMNIST))

KEPT = "jaxdiff-"  # begins the names of the files that we keep beside a set's own
CACHE = f"{KEPT}decoded.npz"
LABELS = f"{KEPT}labels.npz"
CACHE_VERSION = 1
READ_AT_ONCE = 1024
IN_MEMORY = "JAXDIFF_IN_MEMORY"
MOST_BYTES, MOST_SHARE = 8 * 2**30, 1 / 4  # of decoded images in memory; of the memory left


def data_root(data_dir: str | os.PathLike | None = None) -> Path:
    """Return the folder of the prepared sets.

    Args:
      data_dir: the folder; None for $JAXDIFF_DATA_DIR, $TFDS_DATA_DIR or ~/tensorflow_datasets.
    Returns:
      An absolute path.
    """
    environment = os.environ.get("JAXDIFF_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return (
        Path(data_dir if data_dir is not None else environment or "~/tensorflow_datasets")
        .expanduser()
        .absolute()
    )


def load(
    name: str, data_dir: str | os.PathLike | None = None, *, in_memory: bool | None = None
) -> ImageDataset:
    """Load a prepared image set: every split into memory, or by index from its files.

    In memory: the first call decodes the records and keeps the arrays beside them, in one file that
    holds until a file of the set changes; later calls read that file. By index: an image is read
    and decoded whenever it is asked for, and nothing but the labels is kept. The examples and their
    numbers are the same.

    Labels are the ClassLabel feature named `label`, or else the only one; a split has no labels if
    all of them are -1, the mark of TFDS for hidden labels.

    Args:
      name: as TFDS names it: set, set/config, set:version.
      data_dir: folder of the prepared sets; None for the default of `data_root`.
      in_memory: whether the images are held in memory. None for $JAXDIFF_IN_MEMORY, 1 or 0; without
        it they are where they take at most 8 GiB and at most a quarter of the memory that is left.
    Returns:
      ImageDataset: images uint8, [N, H, W, C], an array or `OnDisk`; labels int32, [N], or None.
    Raises:
      FileNotFoundError: the set is not prepared in data_dir.
      ValueError: no such set, not one image feature of 8 bits and one size, or damaged files.
    """
    root = data_root(data_dir)
    builder = find(name, root)
    if builder is None:
        raise _not_found(name, root)
    image, label = _features(name, builder.info.features)
    num = sum(split.num_examples for split in builder.info.splits.values())
    nbytes = num * math.prod(builder.info.features[image].shape)
    if fits(in_memory, nbytes):
        arrays = _kept(builder, CACHE, lambda split: _decode_split(builder, split, image, label))
    else:
        arrays = _on_disk(builder, image)
        if label:
            arrays |= _kept(
                builder, LABELS, lambda split: _read_labels(builder, split, image, label)
            )
    splits = {
        split: Split(arrays[f"{split}/images"], arrays.get(f"{split}/labels"))
        for split in builder.info.splits
    }
    return ImageDataset(
        name, splits, num_classes=builder.info.features[label].num_classes if label else None
    )


def fits(asked: bool | None, nbytes: int) -> bool:
    """Say whether a set is held in memory: as asked, as the environment says, or as it fits.

    Args:
      asked: whether it is to be; None for $JAXDIFF_IN_MEMORY or, without it, the size.
      nbytes: how much memory it takes.
    Returns:
      bool.
    Raises:
      ValueError: $JAXDIFF_IN_MEMORY is neither 1 nor 0.
    """
    given = os.environ.get(IN_MEMORY, "")
    if given not in ("", "0", "1"):
        raise ValueError(f"{IN_MEMORY}: expected 1 or 0, got {given!r}")
    if asked is not None or given:
        return given == "1" if asked is None else asked
    left = _machine.memory_left()
    return nbytes <= (MOST_BYTES if left is None else min(MOST_BYTES, MOST_SHARE * left))


def find(name: str, root: Path) -> Any:
    """Return the TFDS builder that reads a prepared set, or None if root does not hold the set.

    It reads the files only: the stock code of many sets needs TensorFlow even to describe them.

    Args:
      name: the set, as TFDS names it, with or without a configuration and a version.
      root: folder of the prepared sets.
    Returns:
      A TFDS builder, or None.
    Raises:
      ValueError: the set's files are damaged or in another format than array_record.
    """
    tfds = needs("tensorflow_datasets", extra="data")

    # No part of a name may be "..", which leaves the folder.
    if not re.fullmatch(r"\w+(/\w[\w.+-]*)?(:\d+(\.\d+)*)?", name):
        return None
    with quiet():
        try:
            builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=root)
        except tfds.core.DatasetNotFoundError:
            return None
        except Exception as error:  # JSON, protocol buffers and TFDS have errors of their own
            raise _damaged(root / name.split(":")[0], "a readable description", error) from error
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"{builder.data_path}: expected array_record files, "
            f"got {builder.info.file_format.value}, which needs TensorFlow; "
            "prepare the set again in another folder"
        )
    return builder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the log lines of TFDS (OpenCV is missing, a folder is empty): errors are raised."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _not_found(name: str, root: Path) -> Exception:
    """The error for a set that is not prepared, with the command for it, or that does not exist."""
    tfds = needs("tensorflow_datasets", extra="data")

    key = name.split(":")[0]
    family = key.split("/")[0]
    known = tfds.list_builders(with_community_datasets=False)
    if family in known and key != family:
        with contextlib.suppress(
            ImportError
        ):  # a set's code may ask for a package that is not installed
            known = [
                *known,
                *(f"{family}/{config}" for config in tfds.builder_cls(family).builder_configs),
            ]
    folder = shlex.quote(str(root))
    if key in FROM_IDX:
        how = f"run `jaxdiff prepare --name {key} --source FOLDER_OF_IDX_FILES --data-dir {folder}`"
    else:
        how = (
            f"where TensorFlow is installed, run `tfds build {key} --data_dir {folder} "
            "--file_format array_record`"
        )
    if key in known:
        return FileNotFoundError(f"{name} is not prepared in {root}: {how}")
    prepared = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    near = _near(name, ["digits", *toy.names(), *prepared, *known])
    hint = (
        f"did you mean {', '.join(near)}?"
        if near
        else "expected digits, or an image set as TFDS names it"
    )
    return ValueError(f"name: no data set {name!r}; {hint}")


def _near(name: str, known: list[str]) -> list[str]:
    """At most five similar names, whatever their case and hyphens; the nearest come first."""

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9/]", "", name.lower())

    names: dict[str, list[str]] = {}
    for each in dict.fromkeys(known):
        names.setdefault(plain(each), []).append(each)
    wanted = plain(name)
    close = difflib.get_close_matches(wanted, names, n=5)
    parts = [
        each
        for each in names
        if len(wanted) > 2 and (each.startswith(wanted) or each.endswith(wanted))
    ]
    order = dict.fromkeys([each for each in close if each == wanted] + parts[:3] + close)
    return [each for key in order for each in names[key]][:5]


def _damaged(where: Any, expected: str, error: Exception) -> ValueError:
    reason = str(error).strip().split("\n")[0]
    got = f"{type(error).__name__} ({reason})"
    return ValueError(
        f"{where}: expected {expected}, got {got}; delete the folder and prepare the set again"
    )


def _features(name: str, features: Any) -> tuple[str, str | None]:
    """The names of the image feature and of the label feature, if any."""
    tfds = needs("tensorflow_datasets", extra="data")

    # Labelled images (segmentation maps) derive from Image, but are no pictures.
    images = [key for key, feature in features.items() if type(feature) is tfds.features.Image]
    if len(images) != 1:
        raise ValueError(
            f"{name}: expected one image feature, got {len(images)} among {', '.join(features)}"
        )
    image = features[images[0]]
    if len(image.shape) != 3 or None in image.shape or image.np_dtype != np.uint8:
        raise ValueError(
            f"{name}: expected uint8 images of one size, got {image.np_dtype} {image.shape}"
        )
    classes = [
        key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)
    ]
    label = "label" if "label" in classes else classes[0] if len(classes) == 1 else None
    return images[0], label


@contextlib.contextmanager
def _readable(builder: Any, split: str) -> Iterator[None]:
    """Turn any error of reading records into one that names the set."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # records, protocol buffers and PNG each have errors of their own
        raise _damaged(builder.data_path, f"readable records of split {split}", error) from error


def _source(builder: Any, split: str, **options: Any) -> Any:
    """The records of a split by number, as many as the description says."""
    with quiet():
        source = builder.as_data_source(split=split, **options)
    num = builder.info.splits[split].num_examples
    if len(source) != num:
        raise ValueError(f"{num} expected, {len(source)} there")
    return source


def _chunks(builder: Any, split: str, what: str) -> Iterator[range]:
    """The rows of a split, READ_AT_ONCE at a time, with a progress bar."""
    num = builder.info.splits[split].num_examples
    description = f"{what} {builder.name} {split}"
    with tqdm(total=num, desc=description, delay=1, leave=False, disable=None) as progress:
        for start in range(0, num, READ_AT_ONCE):
            rows = range(start, min(start + READ_AT_ONCE, num))
            yield rows
            progress.update(len(rows))


def _image(example: dict[str, Any], image: str, row: int, shape: tuple[int, ...]) -> np.ndarray:
    # An assignment would broadcast one channel to three.
    if example[image].shape != shape:
        raise ValueError(f"image {row}: {shape} expected, {example[image].shape} there")
    return example[image]


def _decode_split(builder: Any, split: str, image: str, label: str | None) -> dict[str, np.ndarray]:
    source, shape = _source(builder, split), builder.info.features[image].shape
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.full(len(source), -1, np.int32)
    for rows in _chunks(builder, split, "decoding"):
        for row, example in zip(rows, source.__getitems__(rows), strict=True):
            images[row] = _image(example, image, row, shape)
            labels[row] = example[label] if label else -1
    return {"images": images} | _labels(labels)


def _read_labels(builder: Any, split: str, image: str, label: str) -> dict[str, np.ndarray]:
    """The labels of a split, without decoding its images."""
    skip = needs("tensorflow_datasets", extra="data").decode.SkipDecoding()
    source = _source(builder, split, decoders={image: skip})
    labels = np.empty(len(source), np.int32)
    for rows in _chunks(builder, split, "reading the labels of"):
        labels[rows.start : rows.stop] = [each[label] for each in source.__getitems__(rows)]
    return _labels(labels)


def _labels(labels: np.ndarray) -> dict[str, np.ndarray]:
    return {"labels": labels} if (labels != -1).any() else {}


def _on_disk(builder: Any, image: str) -> dict[str, Any]:
    """The images of every split, by index."""
    shape, identity = builder.info.features[image].shape, _fingerprint(Path(builder.data_path))

    def images(split: str) -> OnDisk:
        with _readable(builder, split):
            source = _source(builder, split)

        def read(rows: np.ndarray) -> np.ndarray:
            found, numbers = np.empty((len(rows), *shape), np.uint8), rows.tolist()
            with _readable(builder, split):
                # All at once: a call costs array_record some 10 ns for every record of the file.
                for place, example in enumerate(source.__getitems__(numbers)):
                    found[place] = _image(example, image, numbers[place], shape)
            return found

        return OnDisk(read, len(source), shape, f"{split} {identity}")

    return {f"{split}/images": images(split) for split in builder.info.splits}


def _kept(
    builder: Any, file: str, read: Callable[[str], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays of all splits: from a file beside the set, or read now and kept there."""
    folder = Path(builder.data_path)
    fingerprint = _fingerprint(folder)
    arrays = _read_cache(folder / file, fingerprint)
    if arrays is None:
        arrays = {}
        for split in builder.info.splits:
            with _readable(builder, split):
                arrays |= {f"{split}/{name}": array for name, array in read(split).items()}
        _write_cache(folder / file, fingerprint, arrays)
    return arrays


def _fingerprint(folder: Path) -> str:
    """The names, sizes and times of all files: it changes whenever a file of the set changes."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith(KEPT))
    return json.dumps(
        [
            CACHE_VERSION,
            *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files),
        ]
    )


def _read_cache(path: Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    """The cached arrays; None if they are missing, stale or damaged (the file has checksums)."""
    try:
        with path.open("rb") as stream:
            arrays = _archive.read(stream, path)
        if str(arrays.pop("fingerprint")) == fingerprint:
            return arrays
    except (OSError, ValueError, KeyError):
        pass
    return None


def _write_cache(path: Path, fingerprint: str, arrays: dict[str, np.ndarray]) -> None:
    """Write the cache under another name first, then rename it; skip a read-only folder."""
    content: dict[str, Any] = {"fingerprint": fingerprint, **arrays}
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        try:
            with temporary.open("xb") as file:
                np.savez(file, **content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
