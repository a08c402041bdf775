"""Prepare MNIST or a related set for TFDS from four IDX files, without TensorFlow or a network.

jaxdiff prepare --name mnist --source FOLDER
"""

from dataclasses import dataclass
from pathlib import Path

from jaxdiff import data


@dataclass(frozen=True)
class Options:
    """Where the files are and where the set goes."""

    source: Path
    """Folder of the four IDX files, plain or .gz."""
    name: str = "mnist"
    """mnist, fashion_mnist, kmnist, or emnist/CONFIG."""
    data_dir: Path | None = None
    """Folder of the prepared sets; if not given, $JAXDIFF_DATA_DIR, $TFDS_DATA_DIR or
    ~/tensorflow_datasets."""


def main(options: Options) -> None:
    path, new, num_examples = data.prepare(options.name, options.source, options.data_dir)
    counts = ", ".join(f"{count} {split}" for split, count in num_examples.items())
    print(f"{options.name}: {'prepared' if new else 'already prepared'} in {path} ({counts})")
