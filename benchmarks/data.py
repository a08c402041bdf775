"""Images a second of a set that is read by index beside the same set in memory, on this machine.

python benchmarks/data.py --gigabytes 2
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import io
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from jaxdiff import data, training
from jaxdiff._extras import needs
from jaxdiff.cli import errors
from jaxdiff.data import tfds
from jaxdiff.runs import build, datasets, machine
from jaxdiff.runs.config import Config, Network

NAME, CLASSES, HELD_OUT = "blocks", 10, 512


@dataclass(frozen=True)
class Options:
    """What to time."""

    folder: Path = Path("runs/data-benchmark")
    """Where the set is made. One that is there already is used again."""
    gigabytes: float = 2.0
    """Size of the decoded set."""
    side: int = 64
    """Side of its images, a multiple of 4, in pixels."""
    batch_size: int = 32
    """Images in an update."""
    network: Network = field(default_factory=lambda: Network(channels=16, patch=2, attention=()))
    """The network that is trained."""
    steps: int = 20
    """Updates in a round."""
    rounds: int = 5
    """How often each side runs, in turn."""


def examples(num: int, side: int, seed: int) -> Iterator[dict[str, Any]]:
    """Images of 4x4 blocks in random colours, as PNG files, and labels in turn."""
    image_library = needs("PIL.Image", extra="data")
    random = np.random.default_rng(seed)
    for number in range(num):
        blocks = random.integers(0, 256, (4, 4, 3), np.uint8)
        file = io.BytesIO()
        image = image_library.fromarray(blocks.repeat(side // 4, 0).repeat(side // 4, 1))
        image.save(file, "png", compress_level=1)
        yield {"image": file.getvalue(), "label": number % CLASSES}


def make_set(folder: Path, num: int, side: int) -> None:
    """Prepare the set for TFDS, unless it is there."""
    library = needs("tensorflow_datasets", extra="data")
    if tfds.find(NAME, folder) is not None:
        return

    generator: Any = library.core.GeneratorBasedBuilder

    with library.core.registered.skip_registration():

        class Blocks(generator):
            name = NAME
            VERSION = library.core.Version("1.0.0")
            pkg_dir_path = folder  # metadata would be looked for beside the source file

            def _info(self) -> Any:
                features = {
                    "image": library.features.Image(shape=(side, side, 3)),
                    "label": library.features.ClassLabel(num_classes=CLASSES),
                }
                return library.core.DatasetInfo(
                    builder=self, features=library.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                sizes = {"train": num, "test": HELD_OUT}
                return {
                    split: enumerate(examples(size, side, seed))
                    for seed, (split, size) in enumerate(sizes.items())
                }

            def _generate_examples(self) -> None: ...

    with tfds.quiet():
        Blocks(data_dir=folder, file_format="array_record").download_and_prepare()


def both(config: Config) -> dict[str, datasets.Dataset]:
    """The set by index and in memory, as runs take it."""
    found = {}
    for name, in_memory in (("by index", False), ("in memory", True)):
        images = data.load(config.dataset, config.data_dir, in_memory=in_memory)
        splits = {"train": images.train, "test": images.test}
        found[name] = datasets.Dataset(
            config.dataset, images.event_shape, CLASSES, images.levels, partial(dict, splits)
        )
    return found


def reading_rate(dataset: datasets.Dataset, batch_size: int, seconds: float = 5.0) -> float:
    """Images a second of the batches alone."""
    batch, began, step = dataset.batches(batch_size, seed=1), time.monotonic(), 0
    while time.monotonic() - began < seconds:
        batch(step)
        step += 1
    return step * batch_size / (time.monotonic() - began)


def trainer(config: Config, dataset: datasets.Dataset) -> Callable[[Callable, int], float]:
    """A function that does updates on batches from a step on, and returns images a second."""
    model, devices = build.make_model(config, dataset), jax.local_devices()
    step = training.make_step(
        build.make_loss(config, model, dataset), build.make_optimizer(config), ema_decay=0.99
    )
    update = training.map_step(step, devices)
    state = jax.jit(lambda: build.initial_state(config, model, dataset.event_shape))()
    box = [training.replicate(state, devices)]

    def train(batch: Callable, first: int) -> float:
        steps = range(first, first + config.steps)
        began = time.monotonic()
        box[0] = training.run_updates(update, box[0], batch, steps, devices=devices)
        return config.steps * config.batch_size / (time.monotonic() - began)

    return train


def main(options: Options) -> dict[str, float]:
    """Time reading alone, then training on both sides in turn, and print a table."""
    num = max(HELD_OUT, round(options.gigabytes * 1e9 / (3 * options.side**2)))
    make_set(options.folder, num, options.side)
    config = replace(
        Config(), dataset=NAME, data_dir=options.folder, batch_size=options.batch_size,
        steps=options.steps, network=options.network,
    )  # fmt: skip
    sets = both(config)
    found = {f"read {name}": reading_rate(each, options.batch_size) for name, each in sets.items()}
    batches = {name: each.batches(config.batch_size, seed=0) for name, each in sets.items()}
    train = trainer(config, sets["in memory"])
    for batch in batches.values():  # compile, and open the files
        train(batch, 0)
    rates: dict[str, list[float]] = {name: [] for name in sets}
    for n in range(options.rounds):
        order = list(batches) if n % 2 else list(batches)[::-1]
        for name in order:
            rates[name].append(train(batches[name], (n + 1) * config.steps))
    ratios = [a / b for a, b in zip(rates["by index"], rates["in memory"], strict=True)]
    found |= {f"train {name}": statistics.median(each) for name, each in rates.items()}
    found["ratio"] = statistics.median(ratios)
    print(f"{machine.describe()}; {num} images of {options.side}x{options.side}x3, PNG")
    for name in sets:
        print(
            f"{name}: {found[f'read {name}']:.0f} images/s read alone, "
            f"{found[f'train {name}']:.1f} images/s trained"
        )
    print(
        f"by index / in memory: {found['ratio']:.3f}, rounds {min(ratios):.3f}..{max(ratios):.3f}"
    )
    return found


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
