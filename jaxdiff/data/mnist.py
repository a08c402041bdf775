"""MNIST and its relatives, prepared for TFDS from their IDX files: no TensorFlow, no network."""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff._extras import needs
from jaxdiff.data import idx, tfds

# SHA-256 of MNIST's files once decompressed, so that they hold for the plain and the .gz files
# alike.
MNIST_SHA256 = {
    "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class Prepared(NamedTuple):
    """Where a prepared set lies, whether it is new, and how many examples each split has."""

    path: Path
    new: bool
    num_examples: dict[str, int]


def prepare(
    name: str, source: str | os.PathLike, data_dir: str | os.PathLike | None = None
) -> Prepared:
    """Prepare a set from its four IDX files: `load` and the stock `tfds.data_source` then read it.

    The files are named as they are published, {train,t10k}-{images-idx3,labels-idx1}-ubyte, for
    EMNIST emnist-CONFIG-{train,test}-..., with or without .gz. The files of MNIST are verified by
    their SHA-256, the others by their form. The set appears under its name when it is complete: an
    interrupted run leaves no set.

    Args:
      name: mnist, fashion_mnist, kmnist, or emnist/CONFIG.
      source: folder of the IDX files.
      data_dir: folder of the prepared sets; None for the default of `data_root`.
    Returns:
      Prepared: path, whether the set is new, number of examples a split.
    Raises:
      FileNotFoundError: files are missing; the error lists which.
      ValueError: name is another set's, a file is damaged or does not fit, or the set was prepared
        for TensorFlow.
    """
    if name not in tfds.FROM_IDX:
        raise ValueError(f"name: expected one of {', '.join(tfds.FROM_IDX)}, got {name!r}")
    root = tfds.data_root(data_dir)
    builder = tfds.find(name, root)
    new = builder is None
    if new:
        with tfds.quiet():
            builder = _builder(name, Path(source), root)
            if (
                builder.data_path.exists()
            ):  # TFDS would take any folder of this name for the finished set
                raise ValueError(
                    f"{builder.data_path}: expected a whole prepared set, got a part; "
                    "delete the folder"
                )
            # The stock builder announces a download that does not take place. Its progress bars are
            # on stderr.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    return Prepared(Path(builder.data_path), new, counts)


def _builder(name: str, source: Path, root: Path) -> Any:
    """The stock builder, with examples from the IDX files in place of a download.

    Images are handed over as PNG files, which TFDS stores as they are: it would encode arrays with
    TensorFlow.
    """
    tensorflow_datasets = needs("tensorflow_datasets", extra="data")
    family, _, config = name.partition("/")
    stock: Any = tensorflow_datasets.builder_cls(family)
    options = {"config": config or None, "data_dir": root, "file_format": "array_record"}
    splits = _read_splits(name, source, stock(**options).info.features)

    with tensorflow_datasets.core.registered.skip_registration():

        class FromFiles(stock):
            name = stock.name

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

            def _generate_examples(
                self, images: np.ndarray, labels: np.ndarray
            ) -> Iterator[tuple[int, dict[str, Any]]]:
                for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                    yield number, {"image": _png(image), "label": int(label)}

    return FromFiles(**options)


def _png(image: np.ndarray) -> bytes:
    image_library = needs("PIL.Image", extra="data")
    file = io.BytesIO()
    # Level 1 is faster, and no larger for images this small.
    image_library.fromarray(image).save(file, "png", compress_level=1)
    return file.getvalue()


def _read_splits(
    name: str, source: Path, features: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    files = _find_files(name, source)
    splits = {}
    for split, part in (("train", "train"), ("test", "t10k")):
        images, labels = (
            _read(name, files[f"{part}-{kind}"], f"{part}-{kind}") for kind in ("images", "labels")
        )
        _check_images(files[f"{part}-images"], images, features["image"].shape[:2])
        _check_labels(files[f"{part}-labels"], labels, len(images), features["label"].num_classes)
        splits[split] = images, labels
    return splits


def _check_images(path: Path, images: np.ndarray, shape: tuple[int, int]) -> None:
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        got = f"{images.dtype} {images.shape}"
        raise ValueError(
            f"{path}: expected uint8 images of shape (N, {shape[0]}, {shape[1]}), got {got}"
        )


def _check_labels(path: Path, labels: np.ndarray, num: int, num_classes: int) -> None:
    if labels.dtype != np.uint8 or labels.shape != (num,):
        raise ValueError(
            f"{path}: expected uint8 labels of shape ({num},), got {labels.dtype} {labels.shape}"
        )
    if labels.max() >= num_classes:
        raise ValueError(f"{path}: expected labels in 0..{num_classes - 1}, got {labels.max()}")


def _read(name: str, path: Path, part: str) -> np.ndarray:
    content = idx.read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    array = idx.parse(content, path)
    if name == "mnist" and digest != MNIST_SHA256[part]:
        raise ValueError(
            f"{path}: expected MNIST's {part}, SHA-256 {MNIST_SHA256[part]} decompressed, "
            f"got {digest}"
        )
    if name != "mnist" and digest in MNIST_SHA256.values():
        raise ValueError(f"{path}: expected {name}, got a file of MNIST")
    return array


def _find_files(name: str, source: Path) -> dict[str, Path]:
    """The four files, under the names in use; FileNotFoundError lists those that are missing."""
    if not source.is_dir():
        raise FileNotFoundError(f"source: expected a folder of IDX files, got {source}")
    family, _, config = name.partition("/")
    found, missing = {}, []
    for part in MNIST_SHA256:
        stem = part if family != "emnist" else f"emnist-{config}-{part.replace('t10k', 'test')}"
        ending = "idx3-ubyte" if part.endswith("images") else "idx1-ubyte"
        options = [source / f"{stem}{dot}{ending}{gz}" for dot in "-." for gz in ("", ".gz")]
        present = [path for path in options if path.is_file()]
        if present:
            found[part] = present[0]
        else:
            missing.append(options[0].name)
    if missing:
        raise FileNotFoundError(
            f"source: expected IDX files in {source}, plain or .gz; missing: {', '.join(missing)}"
        )
    return found
