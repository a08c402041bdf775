"""Evaluate a trained run on held-out data: its probability, denoising error, recognised classes, two-sample test."""

import _process

_process.configure()

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import _cli
import _memory
import _options
import _pictures
import _probability
import _quality
import _samplers
import _sampling
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import training


@dataclass(frozen=True)
class Options:
    """What to measure."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, as train.py left it; or mnist, the network that ships with the package."""
    num_times: int = 12
    """Noise levels at which the denoising error is measured."""
    examples: int = 1000
    """Held-out examples for it, at most."""
    samples: int = 500
    """Samples to classify and compare, at most as many as there are held-out examples; 0 for none."""
    sampler: _samplers.SamplerName = "unipc_2"
    """How they are drawn."""
    steps: int = 20
    """Steps of the sampler."""
    guidance: float = 1.0
    """Guidance scale of the samples."""
    classifier_steps: int | None = None
    """Updates of the independent classifier, trained on the real training images; 1200 or 60 epochs if not given."""
    seed: int = 0
    """Seed of noise and samples."""
    best: bool = False
    """Use the checkpoint of the lowest held-out loss instead of the newest."""
    probability: _probability.Probability = field(default_factory=_probability.Probability)


def denoising_errors(run: _sampling.Run, options: Options) -> list[dict[str, float]]:
    """Mean squared error of x_0, by time, with its standard error over examples.

    Two denoisers that need no network stand beside it: the data's mean, and the best linear one,
    which is the exact denoiser of a normal distribution with the data's mean and covariance.
    """
    x_0, label = run.dataset.head("test", options.examples)
    if run.model.num_classes is None:
        label = None
    train, _ = run.dataset.head("train", _memory.affordable(10_000, run.dataset.event_shape))
    key = jax.random.key(options.seed)  # of the noise, the same for both
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x_0)))
    linear = best_linear(train)

    @jax.jit
    def errors(
        linear: Any,
        params: Any,
        t: jax.Array,
        key: jax.Array,
        x_0: jax.Array,
        label: jax.Array | None,
    ) -> tuple[jax.Array, ...]:
        network, vectors = run.with_params(params).denoiser(label), x_0.reshape(len(x_0), -1)
        pairs = ((network, x_0), (Partial(linear, run.schedule), vectors))
        return tuple(
            jd.losses.denoising_error(key, d, run.schedule, x, t) / vectors.shape[1]
            for d, x in pairs
        )

    mean_error = float(np.mean((x_0.reshape(len(x_0), -1) - np.asarray(linear.args[0])) ** 2))
    rows = []
    for t in tqdm(np.linspace(0, 1, options.num_times + 1)[1:], desc="denoising", unit="time"):
        at = Partial(errors, linear, run.params, jnp.asarray(t, jnp.float32))
        ours, best = _memory.in_chunks(at, run.config.batch_size, keys, x_0, label)
        rows.append(
            {
                "t": float(t),
                "log_snr": float(run.schedule.log_snr(float(t))),
                "x_0_error": float(np.mean(ours)),
                "x_0_error_se": float(np.std(ours) / np.sqrt(len(x_0))),
                "gaussian_error": float(np.mean(best)),
                "mean_error": mean_error,
            }
        )
    return rows


def best_linear(x_0: np.ndarray, *, ridge: float = 1e-6) -> Partial:
    """The exact denoiser of a normal law with the mean and covariance of examples [N, *D], (schedule, x_t [B, d], t).

        D(x_t) = m + sum_i g(l_i) v_i v_i^T (x_t - alpha m),   g(l) = alpha l / (alpha^2 l + sigma^2)

    The covariance has min(N - 1, d) directions v_i with variance, and of few examples no d x d
    matrix is made: the v_i come of the examples' inner products. In all other directions the
    variance is the ridge, which is added to all.
    """
    flat = x_0.reshape(len(x_0), -1).astype(np.float64)
    mean = flat.mean(0)
    centred = (flat - mean) / np.sqrt(len(flat) - 1)
    few = len(flat) < flat.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    kept = values > 1e-12 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    vectors = centred.T @ vectors / np.sqrt(values) if few else vectors
    return Partial(
        _linear, *(jnp.asarray(v, jnp.float32) for v in (mean, values + ridge, vectors, ridge))
    )


def _linear(
    mean: jax.Array, values: jax.Array, vectors: jax.Array, ridge: jax.Array, schedule: jd.Schedule,
    x_t: jax.Array, t: Any,
) -> jax.Array:  # fmt: skip
    alpha, sigma = schedule.alpha_sigma(t)
    centred = x_t - alpha * mean[None]
    gains, rest = (alpha * v / (alpha**2 * v + sigma**2) for v in (values, ridge))
    return mean[None] + rest * centred + (((gains - rest)[None] * (centred @ vectors)) @ vectors.T)


def sample_quality(run: _sampling.Run, options: Options) -> dict[str, Any]:
    """What an independent classifier, two-sample metrics and a search for copies say of samples."""
    num = min(
        options.samples, *(len(split.images) for split in run.dataset.splits.values())
    )  # as many real ones
    labels = None if run.model.num_classes is None else np.arange(num) % run.model.num_classes
    x = _sampling.generate(
        run, num, seed=options.seed, labels=labels, guidance=options.guidance,
        sampler=options.sampler, steps=options.steps, keep=True, batch_size=run.config.batch_size,
    ).x  # fmt: skip
    return _quality.measure(
        run, x, labels, seed=options.seed, classifier_steps=options.classifier_steps
    )


def probability(run: _sampling.Run, options: Options) -> list[dict[str, Any]]:
    """The table of the model's probability and its pictures; parts that are done already are not done again."""
    rows, shown = _probability.estimate(run, options.probability, seed=options.seed)
    _probability.print_table(rows)
    _pictures.bound_terms(shown["terms"], run.folder / "terms.png")
    if "works" in shown:
        size = int(np.prod(run.dataset.event_shape))
        _pictures.crooks(shown["works"], run.folder / "crooks.png")
        _pictures.bound_by_paths(shown["paths"], shown["works"], size, run.folder / "paths.png")
    if "acceptance" in shown:
        print(
            f"annealing accepted {shown['acceptance']:.0%} of its moves (--probability.ais-step-size)"
        )
    return [dataclasses.asdict(row) for row in rows]


def print_table(rows: list[dict[str, float]]) -> None:
    """The denoising errors, a line for each time."""
    print(
        f"{'t':>6} {'log SNR':>9} {'x_0 error':>18} {'best linear':>12} {'mean':>9}   (mean squared, data in [-1, 1])"
    )
    for row in rows:
        error = f"{row['x_0_error']:.5f} +- {row['x_0_error_se']:.5f}"
        print(
            f"{row['t']:6.3f} {row['log_snr']:9.2f} {error:>18} {row['gaussian_error']:12.5f} {row['mean_error']:9.5f}"
        )


def check(options: Options) -> None:
    """Refuse what cannot be measured, before anything is read."""
    _options.seed(options.seed)
    _options.counts(options, num_times=1, examples=2, samples=0, steps=1, classifier_steps=1)
    if 0 < options.samples < 10:
        raise ValueError(f"samples: expected at least 10, or 0 for none, got {options.samples}")
    _options.numbers(
        options, guidance=_options.FINITE, probability__ais_step_size=_options.POSITIVE
    )
    _options.counts(
        options, probability__examples=0, probability__term_examples=2, probability__steps=1, probability__times=2,
        probability__paths=1, probability__path_examples=0, probability__ode_steps=1, probability__ode_examples=0,
        probability__ais_examples=0, probability__ais_temperatures=1,
    )  # fmt: skip
    for name in ("examples", "path_examples", "ode_examples", "ais_examples"):
        value = getattr(options.probability, name)
        if value == 1:
            raise ValueError(
                f"probability.{name}: expected at least 2 for a standard error, or 0 for none, got 1"
            )


def possible(run: _sampling.Run, options: Options) -> Options:
    """The options without what so few examples do not allow, each left out with a line; said before any work."""
    num_train, num_held_out = (len(run.dataset.splits[name].images) for name in ("train", "test"))
    if min(num_train, num_held_out) < 2:
        got = f"{num_train} and {num_held_out}"
        raise ValueError(
            f"run: expected at least 2 training and 2 held-out examples of {run.dataset.name}, got {got}"
        )
    if options.samples and min(num_train, num_held_out) < 10:
        print(
            "no samples: they are compared with at least 10 training and 10 held-out examples, "
            f"and there are {num_train} and {num_held_out}"
        )
        return dataclasses.replace(options, samples=0)
    return options


def evaluate(options: Options) -> dict[str, Any]:
    """Measure, print and save."""
    check(options)
    run = _sampling.load_run(options.run, best=options.best)
    options = possible(run, options)
    rows = denoising_errors(run, options)
    print_table(rows)
    _pictures.error_by_time(rows, run.folder / "denoising.png")
    result: dict[str, Any] = {"step": run.step, "denoising": rows}
    if options.probability.examples:
        result["probability"] = probability(run, options)
    if options.samples:
        quality = sample_quality(run, options)
        result |= quality
        _quality.print_table(quality)
    training.write_json(run.folder / "evaluation.json", result)
    return result


if __name__ == "__main__":
    with _cli.one_line_errors():
        evaluate(tyro.cli(Options, description=__doc__))
