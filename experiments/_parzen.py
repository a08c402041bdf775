"""The 2015 paper's MNIST figure, the Parzen-window log-likelihood of a run's samples; and the run's bound K."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _cli
import _options
import _pictures
import _probability
import _samplers
import _sampling
import numpy as np

from jaxdiff import metrics, training

BIT = math.log(2)
# Table 2 of the paper, in bits: its own figures, and those of others that it quotes.
PAPER = {
    "stacked CAE": (174.0, 2.3),
    "DBN": (199.0, 2.9),
    "deep GSN": (309.0, 1.6),
    "diffusion, the 2015 paper": (317.0, 2.7),
    "adversarial nets": (325.0, 2.9),
    "perfect model, the 2015 paper": (349.0, 3.3),
}


@dataclass(frozen=True)
class Mnist:
    """MNIST by its Parzen-window log-likelihood, as the paper has it, and by its bound."""

    run: Path = Path("mnist")
    """Folder of a trained run; or mnist, the network that ships with the package."""
    num: int = 10_000
    """Samples in the window; the protocol has 10,000."""
    sampler: _samplers.SamplerName = "unipc_2"
    """How they are drawn."""
    steps: int = 20
    """Steps of the sampler."""
    guidance: float = 1.0
    """Guidance scale of the samples, of every class as many."""
    examples: int = 200
    """Held-out examples for the bound K."""
    chain_steps: int = 100
    """T, steps of the chain whose bound it is."""
    seed: int = 0
    """Seed of the samples and of the bound."""


def parzen(x: np.ndarray, dataset: Any) -> metrics.Comparison:
    """The protocol, in nats: data in [0, 1], width by 1,000 held-out training images, 10,000 test images.

    The training images that choose the width are the first of the last sixth (of MNIST: 10,000); of
    the others as many as there are samples stand for those of a perfect model.
    """
    (others, last), (test, _) = others_and_last(dataset), dataset.examples("test")

    def metric(generated: np.ndarray, real: np.ndarray) -> metrics.Estimate:
        return metrics.parzen_log_likelihood(generated, real, validation=_unit(last[:1000]))

    return metrics.compare(metric, _unit(x), _unit(test), _unit(others))


def others_and_last(dataset: Any) -> list[np.ndarray]:
    """The training images, without the last sixth, and that."""
    train, _ = dataset.examples("train")
    return np.split(train, [len(train) - len(train) // 6])


def _unit(x: np.ndarray) -> np.ndarray:
    """[-1, 1] to [0, 1]; what lies outside takes the nearest end."""
    return (np.clip(x, -1, 1) + 1) / 2


def mnist(options: Mnist) -> bool:
    """Draw, measure, print, and leave the samples' picture."""
    _options.seed(options.seed)
    _options.counts(options, num=2, examples=2, steps=1, chain_steps=1)
    _options.numbers(options, guidance=_options.FINITE)
    run = _sampling.load_run(options.run)
    if len(run.dataset.event_shape) != 3:
        raise ValueError(f"run: expected one of images, got {run.config.dataset}")
    most = len(others_and_last(run.dataset)[0])
    if most < 10 or len(run.dataset.splits["test"].images) < 2:
        raise ValueError(
            "run: expected a set of at least 12 training images and 2 held out, for widths and densities"
        )
    if options.num > most:
        raise ValueError(
            f"num: expected at most {most}, as many as a perfect model has, got {options.num}"
        )
    if run.model.num_classes is None and options.guidance != 1:
        raise ValueError(
            f"guidance: expected 1, because the run has no classes, got {options.guidance}"
        )
    labels = (
        None if run.model.num_classes is None else np.arange(options.num) % run.model.num_classes
    )
    x = _sampling.generate(
        run,
        options.num,
        seed=options.seed,
        labels=labels,
        guidance=options.guidance,
        sampler=options.sampler,
        steps=options.steps,
        keep=True,
        batch_size=run.config.batch_size,
    ).x
    ours, floor = parzen(x, run.dataset)
    rows = {"this model": (ours.value / BIT, ours.standard_error / BIT)}
    rows |= {"perfect model, here": (floor.value / BIT, floor.standard_error / BIT)} | PAPER
    print(f"{'Parzen-window log-likelihood, bits':44} {options.num} samples, data in [0, 1]")
    for name, (value, error) in rows.items():
        print(f"{name:44} {value:8.1f} +- {error:.1f}")
    estimators = _probability.Estimators(
        run,
        _probability.Probability(examples=options.examples, steps=options.chain_steps),
        seed=options.seed,
    )
    held_out, _ = run.dataset.head("test", options.examples)
    bound = _probability.bound(estimators, held_out)
    null = _probability.null(estimators, held_out)
    k, error, base = bound.nats / BIT, bound.nats_se / BIT, null.nats / BIT
    print(
        f"K, {bound.name}: {k:.0f} +- {error:.0f} bits an image, {bound.bits_per_dim:.3f} bits/dim"
    )
    print(f"L_null {base:.0f} bits, K - L_null {k - base:.0f} bits (the paper has no K of MNIST)")
    result = {
        "machine": _cli.machine(),
        "parzen_bits": rows,
        "K": {
            "value": k,
            "standard_error": error,
            "L_null": base,
            "bits_per_dim": bound.bits_per_dim,
        },
        "options": {name: str(value) for name, value in vars(options).items()},
    }
    training.write_json(run.folder / "parzen.json", result)
    real, _ = run.dataset.head("train", 64)
    _pictures.samples(run.dataset, x[:64], real, run.folder / "parzen.png")
    return True
