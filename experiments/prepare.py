"""Prepare MNIST or a relative of it from its four IDX files, for TFDS and without TensorFlow or network.

python experiments/prepare.py --name mnist --source FOLDER
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from jaxdiff import data


@dataclasses.dataclass(frozen=True)
class Config:
    source: Path
    """Folder of the four IDX files, plain or .gz."""
    name: str = "mnist"
    """mnist, fashion_mnist, kmnist, or emnist/CONFIG."""
    data_dir: Path | None = None
    """Folder of the prepared sets; by default $JAXDIFF_DATA_DIR, $TFDS_DATA_DIR or ~/tensorflow_datasets."""


def main(config: Config) -> None:
    try:
        path, new, num_examples = data.prepare(config.name, config.source, config.data_dir)
    except (OSError, ValueError) as error:
        sys.exit(f"prepare: {error}")
    except KeyboardInterrupt:
        sys.exit("prepare: interrupted, nothing was kept; run it again")
    counts = ", ".join(f"{count} {split}" for split, count in num_examples.items())
    print(f"{config.name}: {'prepared' if new else 'already prepared'} in {path} ({counts})")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
