"""Data: the embedded digits, toy densities, image sets prepared by TFDS, pictures, tables.

dataset = data.load("digits")
batches = data.batches(dataset.train, batch_size=128, seed=0)
x_0 = data.to_unit(batches[step].images, dataset.levels)
"""

import os

from jaxdiff.data import digits, folder, idx, mnist, pictures, table, tfds, toy
from jaxdiff.data.held_out import Parts, by_content, hold_out
from jaxdiff.data.images import ImageDataset, Split, from_unit, to_unit
from jaxdiff.data.mnist import prepare
from jaxdiff.data.on_disk import OnDisk
from jaxdiff.data.pipeline import Batch, Batches, batches
from jaxdiff.data.reading import Ahead, ahead

__all__ = [
    "Ahead",
    "Batch",
    "Batches",
    "ImageDataset",
    "OnDisk",
    "Parts",
    "Split",
    "ahead",
    "batches",
    "by_content",
    "digits",
    "folder",
    "from_unit",
    "hold_out",
    "idx",
    "load",
    "mnist",
    "pictures",
    "prepare",
    "table",
    "tfds",
    "to_unit",
    "toy",
]


def load(
    name: str, data_dir: str | os.PathLike | None = None, *, in_memory: bool | None = None
) -> ImageDataset:
    """Load an image set by name: into memory, or by index from its files if it is large.

    Args:
      name: "digits", which is embedded, or any image set as TFDS names it: "mnist",
        "fashion_mnist", "cifar10", ...
      data_dir: folder of the prepared sets; None for $JAXDIFF_DATA_DIR, $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      in_memory: whether the images are held in memory. None for $JAXDIFF_IN_MEMORY, 1 or 0; without
        it they are where they take at most 8 GiB and at most a quarter of the memory that is left.
        The digits always are.
    Returns:
      ImageDataset: splits of uint8 images, [N, H, W, C], an array or `OnDisk`, and int32 labels,
      [N], or None.
    Raises:
      FileNotFoundError: the set is not prepared in data_dir; the error says how to do it.
      ValueError: no set has this name (the error lists near names), or its images are not of 8
        bits and one size.
    """
    if name in toy.names():
        raise ValueError(
            f"name: expected a set of images, got {name}, a 2-D density: draw it by data.toy.sample"
        )
    return digits.load() if name == "digits" else tfds.load(name, data_dir, in_memory=in_memory)
