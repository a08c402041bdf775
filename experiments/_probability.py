"""The probability of held-out data under a run's model: every estimator, with its standard error."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _config
import _memory
import _parts
import _sampling
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import likelihood, work


@dataclass(frozen=True)
class Probability:
    """What to estimate of the model's probability."""

    examples: int = 256
    """Held-out examples for the bound in continuous time and the baselines, at most; 0 for no estimates at all."""
    term_examples: int = 256
    """Held-out examples for the terms of the finite chain's bound."""
    steps: int | None = None
    """Steps T of the finite chain; if not given, those the run was trained with, 100 where it was trained with none."""
    times: int = 32
    """Times an example for the bound in continuous time."""
    paths: int = 16
    """Forward paths an example for the importance-weighted bound."""
    path_examples: int = 64
    """Held-out, and again simulated, examples for what takes that many paths; 0 for none of it."""
    ode_steps: int = 25
    """Runge-Kutta steps of the probability-flow ODE."""
    ode_examples: int = 64
    """Held-out examples for its density; 0 for none."""
    ais_examples: int = 0
    """Held-out, and again simulated, examples for annealed importance sampling, which takes minutes for a few of them
    at T = 100; 0 for none."""
    ais_temperatures: int = 32
    """Its temperatures, each with one Hamiltonian move of all latents."""
    ais_step_size: float = 0.1
    """Step of the move's integrator, in units of the paths' noises; some two thirds of the moves should be accepted."""
    baselines: bool = True
    """Whether densities fitted without a network stand beside it, for data of at most 256 dimensions."""


LARGEST = 256  # dimensions of data whose full covariances, 40 at a time, are fitted in seconds


# Rows of one compiled call, on each device: these, or a batch of the run's training if that is
# smaller. The randomness of a row depends on it, and not on the number of devices. Annealing has
# all latents of its rows in one batch.
CHUNK, AIS_CHUNK = 64, 8
LEAST_FITTED = 20  # training examples of a density that is fitted without a network
AIS_LEAPFROG = 5  # gradients a move
VERSION = 2  # of all that the parts are made by: those of another version are not read


@dataclass(frozen=True)
class Row:
    """One line of the table; bits are per dimension, calls are of the network, per example."""

    name: str
    kind: str
    data: str
    nats: float
    nats_se: float
    bits_per_dim: float
    bits_per_dim_se: float
    calls: int
    examples: int
    seconds: float


class Estimators:
    """The estimators of one run, their parts kept in files as they are done.

    A part's file is named by a digest of what it depends on: the parameters, its rows of the data,
    the seed, and the options of its own estimator. Another option leaves the other parts, and parts
    of its earlier values, as they are.
    """

    def __init__(self, run: _sampling.Run, options: Probability, *, seed: int) -> None:
        trained = run.config.diffusion.num_steps if run.config.diffusion.finite else 100
        self.steps = trained if options.steps is None else options.steps
        self.run, self.options, self.seed = (
            run,
            dataclasses.replace(options, steps=self.steps),
            seed,
        )
        self.size = math.prod(run.dataset.event_shape)
        self.levels = run.dataset.levels
        self.width = None if self.levels is None else 2 / (self.levels - 1)
        self.without_denoiser = _config.make_chain(
            run.config, run.schedule, levels=self.levels, num_steps=self.steps
        )
        self.chunk = min(CHUNK, run.config.batch_size)
        self.rows: list[Row] = []
        network = [dataclasses.asdict(part) for part in (run.config.diffusion, run.config.network)]
        self.made_of = _sampling.digest(
            [VERSION, seed, self.levels, network], (run.params, run.schedule)
        )

    def chain(self, denoiser: Any) -> jd.Chain:
        """The finite chain of as many steps as asked for."""
        return dataclasses.replace(self.without_denoiser, denoiser=denoiser)

    def mapped(
        self,
        name: str,
        function: Callable,
        x_0: np.ndarray | None,
        num: int,
        *,
        settings: Any,
        size: int | None = None,
    ) -> tuple[dict, float]:
        """A function of (denoiser, key, x_0 [size, *D]) on all rows, over all devices; its parts are kept in files.

        The settings are all that the function depends on beside the run, its data and the seed.
        """
        num_devices, size = jax.local_device_count(), self.chunk if size is None else size
        key = jax.random.fold_in(
            jax.random.key(self.seed), int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)
        )
        compiled = self.compiled(function)
        parts: list[dict[str, np.ndarray]] = []
        numbers = range(0, -(-num // size), num_devices)
        for first in tqdm(numbers, desc=name, unit="batch", disable=len(numbers) < 2):
            group = [n for n in range(first, first + num_devices) if n * size < num]
            paths = [self.path(name, n, x_0, num, size, settings) for n in group]
            kept = [_parts.read(path) for path in paths]
            if any(part is None for part in kept):
                began = time.monotonic()
                index = [
                    np.arange(n * size, (n + 1) * size) for n in range(first, first + num_devices)
                ]
                x = np.stack([_rows(x_0, i, num, self.run.dataset.event_shape) for i in index])
                keys = jnp.stack(
                    [jax.random.fold_in(key, n) for n in range(first, first + num_devices)]
                )
                out = jax.tree.map(np.asarray, compiled(self.run.params, keys, x))
                seconds = np.asarray([(time.monotonic() - began) / len(group)])
                for place, n in enumerate(group):
                    if kept[place] is None:
                        made = {
                            field: value[place][: num - n * size] for field, value in out.items()
                        }
                        kept[place] = _parts.write(paths[place], made | {"seconds": seconds})
            parts += [part for part in kept if part is not None]
        joined = {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
        return joined, float(joined.pop("seconds").sum())

    def compiled(self, function: Callable) -> Callable:
        """The function of (params, keys, x_0), the last two with an axis of devices."""

        def chunk(params: Any, key: jax.Array, x: jax.Array) -> Any:
            return function(self.run.with_params(params).denoiser(), key, x)

        return jax.pmap(chunk, in_axes=(None, 0, 0))

    def path(
        self, name: str, n: int, x_0: np.ndarray | None, num: int, size: int, settings: Any
    ) -> Path:
        """Where part n is kept: more rows leave the whole parts as they are."""
        count = min(size, num - n * size)
        rows = None if x_0 is None else x_0[n * size : n * size + count]
        digest = _sampling.digest([self.made_of, name, n, size, count, settings], rows)
        return self.run.folder / "probability" / f"{name}-{n}-{digest}.npz"

    def add(
        self,
        name: str,
        kind: str,
        data: str,
        log_prob: np.ndarray,
        calls: int,
        seconds: float,
        *,
        density: bool,
    ) -> None:
        """A line of the table from the log-probabilities of the examples."""
        nats, nats_se = (
            float(np.mean(log_prob)),
            float(np.std(log_prob, ddof=1) / np.sqrt(len(log_prob))),
        )
        width = self.width if density else None
        bits = float(likelihood.bits_per_dim(nats, self.size, bin_width=width))
        if density and width is not None:
            nats = -bits * self.size * math.log(2)  # of the levels, so that all lines compare
        bits_se = nats_se / (self.size * math.log(2))
        self.rows.append(
            Row(name, kind, data, nats, nats_se, bits, bits_se, calls, len(log_prob), seconds)
        )


def _rows(
    x_0: np.ndarray | None, index: np.ndarray, num: int, event_shape: tuple[int, ...]
) -> np.ndarray:
    """Rows by number, the last one again where they have come to an end; zeros where nothing is given."""
    return (
        np.zeros((len(index), *event_shape), np.float32)
        if x_0 is None
        else x_0[np.minimum(index, num - 1)]
    )


def estimate(
    run: _sampling.Run, options: Probability, *, seed: int
) -> tuple[list[Row], dict[str, Any]]:
    """All estimates, and what the pictures show of them."""
    estimators = Estimators(run, options, seed=seed)
    held_out, _ = run.dataset.head("test", options.examples)
    shown: dict[str, Any] = {}
    if not estimators.without_denoiser.ends_clean:  # it asks for noise left at t = 0
        _continuous(estimators, held_out)
    shown["terms"] = _terms(estimators, held_out[: options.term_examples])
    if options.path_examples:
        shown["paths"] = _paths(estimators, held_out[: options.path_examples])
        shown["works"] = _works(estimators)
    if options.ais_examples:
        shown["acceptance"] = _annealing(estimators, held_out[: options.ais_examples])
    if options.ode_examples:
        _flow(estimators, held_out[: options.ode_examples])
    num_train = len(run.dataset.splits["train"].images)
    if options.baselines and num_train < LEAST_FITTED:
        print(
            f"no baselines: they are fitted to at least {LEAST_FITTED} training examples, and there are {num_train}"
        )
    elif options.baselines and estimators.size > LARGEST:
        print(
            f"no densities without a network: their covariances of {estimators.size}^2 entries would take too long"
        )
    elif options.baselines:
        _baselines(estimators, held_out)
    _parts.trim(run.folder / "probability")
    return estimators.rows, shown


def bound(estimators: Estimators, held_out: np.ndarray) -> Row:
    """The bound that costs least to know: in continuous time, or by terms where t = 0 has no noise."""
    (_terms if estimators.without_denoiser.ends_clean else _continuous)(estimators, held_out)
    return estimators.rows[-1]


def _continuous(estimators: Estimators, held_out: np.ndarray) -> None:
    run, options, levels = estimators.run, estimators.options, estimators.levels
    decoder = jd.decoders.normal() if levels is None else jd.decoders.categorical(levels)

    def bound(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        value = likelihood.continuous_elbo(
            key, denoiser, run.schedule, x_0, decoder=decoder, num_times=options.times
        )
        return {"log_prob": value}

    out, seconds = estimators.mapped(
        "continuous", bound, held_out, len(held_out), settings=[options.times]
    )
    name = "bound in continuous time"
    estimators.add(
        name, "lower", "held out", out["log_prob"], options.times, seconds, density=levels is None
    )


def _terms(estimators: Estimators, held_out: np.ndarray) -> dict[str, np.ndarray]:
    def terms(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        return {"terms": likelihood.vlb_terms(key, estimators.chain(denoiser), x_0).T}

    out, seconds = estimators.mapped(
        "terms", terms, held_out, len(held_out), settings=[estimators.steps]
    )
    density = estimators.levels is None
    log_prob = -out["terms"].sum(1)
    estimators.add(
        f"bound by terms, T = {estimators.steps}",
        "lower",
        "held out",
        log_prob,
        estimators.steps,
        seconds,
        density=density,
    )
    chain = estimators.chain(lambda x, t: x)
    return {
        "log_snr": np.asarray(estimators.run.schedule.log_snr(chain.times)),
        "bits": out["terms"].mean(0) / (estimators.size * math.log(2)),
        "bits_se": out["terms"].std(0) / math.sqrt(len(held_out)) / (estimators.size * math.log(2)),
    }


def _paths(estimators: Estimators, held_out: np.ndarray) -> dict[str, np.ndarray]:
    options, density = estimators.options, estimators.levels is None

    def paths(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        return {
            "log_w": likelihood.paths_log_weights(
                key, estimators.chain(denoiser), x_0, options.paths
            ).T
        }

    out, seconds = estimators.mapped(
        "paths", paths, held_out, len(held_out), settings=[estimators.steps, options.paths]
    )
    log_w = out["log_w"]
    tight = np.logaddexp.reduce(log_w, axis=1) - math.log(options.paths)
    calls = estimators.steps * options.paths
    name = f"paths, T = {estimators.steps}, K = "
    estimators.add(
        name + "1",
        "lower",
        "held out",
        log_w[:, 0],
        estimators.steps,
        seconds / options.paths,
        density=density,
    )
    estimators.add(
        f"{name}{options.paths}", "lower", "held out", tight, calls, seconds, density=density
    )
    return {"log_w": log_w}


def _works(estimators: Estimators) -> dict[str, np.ndarray]:
    options, density = estimators.options, estimators.levels is None

    def both(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        bounds = work.bidirectional_bounds(
            key, estimators.chain(denoiser), x_0.shape, num_paths=options.paths
        )
        works = {"forward": bounds.forward_work.T, "reverse": bounds.reverse_work}
        return {"lower": bounds.lower, "upper": bounds.upper} | works

    settings = [estimators.steps, options.paths]
    out, seconds = estimators.mapped("works", both, None, options.path_examples, settings=settings)
    calls = estimators.steps * (options.paths + 1)
    for kind in ("lower", "upper"):
        name = f"paths both ways, K = {options.paths}"
        estimators.add(name, kind, "simulated", out[kind], calls, seconds, density=density)
    return out


def _annealing(estimators: Estimators, held_out: np.ndarray) -> float:
    """Annealing of held-out data from below, of simulated data from both sides; the share of moves accepted."""
    options, density = estimators.options, estimators.levels is None
    annealing: dict[str, Any] = {
        "num_temperatures": options.ais_temperatures,
        "step_size": options.ais_step_size,
        "num_leapfrog": AIS_LEAPFROG,
    }

    def lower(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        run = work.ais_run(key, estimators.chain(denoiser), x_0, save_every=1, **annealing)
        assert run.trajectory is not None  # asked for
        moved = jnp.any(
            jnp.diff(run.trajectory, axis=0) != 0, axis=tuple(range(2, run.trajectory.ndim))
        )
        return {"log_prob": run.log_weights, "accepted": jnp.mean(moved, axis=0)}

    def both(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        bounds = work.ais_bounds(key, estimators.chain(denoiser), x_0.shape, **annealing)
        return {"lower": bounds.lower, "upper": bounds.upper}

    size = max(1, AIS_CHUNK * estimators.chunk // CHUNK)
    num, name = len(held_out), f"annealing, {options.ais_temperatures} temperatures"
    chunks: dict[str, Any] = {"size": size, "settings": [estimators.steps, *annealing.values()]}
    calls = (
        estimators.steps * options.ais_temperatures * (AIS_LEAPFROG + 5)
    )  # a gradient counts as one
    out, seconds = estimators.mapped("ais", lower, held_out, num, **chunks)
    estimators.add(name, "lower", "held out", out["log_prob"], calls, seconds, density=density)
    bounds, seconds = estimators.mapped("ais-both", both, None, num, **chunks)
    for kind in ("lower", "upper"):
        estimators.add(
            f"{name}, both ways",
            kind,
            "simulated",
            bounds[kind],
            2 * calls,
            seconds,
            density=density,
        )
    return float(out["accepted"].mean())


def _flow(estimators: Estimators, held_out: np.ndarray) -> None:
    """The ODE's density of data spread over their bins; of data on the levels alone it has none (a network that gives
    logits knows no others), and there it is the prior of the state at t = 0, which the decoder
    turns into levels."""
    run, options, levels = estimators.run, estimators.options, estimators.levels
    by_levels = run.config.diffusion.prediction == "levels"

    def flow(denoiser: Any, key: jax.Array, x: jax.Array) -> jax.Array:
        ts = jd.grids.log_snr(run.schedule, options.ode_steps)
        return likelihood.ode_log_prob(denoiser, run.schedule, ts, x, key=key, num_probes=1)

    def density(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        key_spread, key_probe = jax.random.split(key)
        x = x_0 if levels is None else jd.decoders.uniform_dequantise(key_spread, x_0, levels)
        return {"log_prob": flow(denoiser, key_probe, x)}

    def bound(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        key_state, key_probe = jax.random.split(key)
        alpha, sigma = run.schedule.alpha_sigma(0.0)
        q = jd.Normal(alpha * x_0, jnp.broadcast_to(sigma**2, x_0.shape))
        x = jd.decoders.normal().sample(key_state, q)
        last = jd.forward.q_likelihood(run.schedule, x, 0.0)
        reconstruction = jd.decoders.categorical(levels or 2).log_prob(x_0, last)
        return {"log_prob": flow(denoiser, key_probe, x) + reconstruction - q.log_prob(x)}

    function, settings = bound if by_levels else density, [options.ode_steps]
    out, seconds = estimators.mapped("flow", function, held_out, len(held_out), settings=settings)
    how = "decoded" if by_levels else "as it is" if levels is None else "dequantised"
    name, kind = f"probability-flow ODE, Hutchinson, {how}", "lower" if by_levels else "density"
    calls = 4 * options.ode_steps
    estimators.add(name, kind, "held out", out["log_prob"], calls, seconds, density=not by_levels)


def null(estimators: Estimators, held_out: np.ndarray) -> Row:
    """L_null of the 2015 paper: a normal law of the training data's mean and one variance, added to the table."""
    train, _ = _train(estimators)
    train, held_out = _spread(estimators, 1, train), _spread(estimators, 2, held_out)
    variance = train.var(0).mean()
    squared = np.sum(np.square(held_out - train.mean(0)), axis=1) / variance
    log_prob = -(squared + estimators.size * np.log(2 * np.pi * variance)) / 2
    estimators.add("isotropic Gaussian", "density", "held out", log_prob, 0, 0.0, density=True)
    return estimators.rows[-1]


def _train(estimators: Estimators) -> tuple[np.ndarray, np.ndarray | None]:
    """Training examples and labels: 20,000 of them, or as many as fit."""
    dataset = estimators.run.dataset
    return dataset.head("train", _memory.affordable(20_000, dataset.event_shape))


def _spread(estimators: Estimators, seed: int, x: np.ndarray) -> np.ndarray:
    """Vectors, float64; of levels, spread over their bins."""
    levels, key = estimators.levels, jax.random.key(estimators.seed + seed)
    x = (
        x
        if levels is None
        else np.asarray(jd.decoders.uniform_dequantise(key, jnp.asarray(x), levels))
    )
    return x.reshape(len(x), -1).astype(np.float64)


def _baselines(estimators: Estimators, held_out: np.ndarray) -> None:
    """Densities without a network, of the data spread over their bins; they are chosen on training data alone."""
    from sklearn.mixture import GaussianMixture
    from sklearn.neighbors import KernelDensity

    train, _ = _train(estimators)

    null(estimators, held_out)
    train, held_out = _spread(estimators, 1, train), _spread(estimators, 2, held_out)
    part = np.random.default_rng(estimators.seed).random(len(train)) < 0.9
    part[0] &= not part.all()  # of few examples, one at least
    fit, validate = train[part], train[~part]

    def best(models: list[Any]) -> Any:
        return max(models, key=lambda model: model.fit(fit).score_samples(validate).mean())

    def mixture(number: int) -> Any:
        return GaussianMixture(
            number, covariance_type="full", reg_covar=1e-3, random_state=estimators.seed
        )

    chosen = best([mixture(number) for number in (5, 10, 20, 40) if number <= len(fit)])
    kernel = best([KernelDensity(bandwidth=width) for width in np.geomspace(0.1, 0.8, 8)])
    models = {
        "full Gaussian": mixture(1).fit(train).score_samples,
        f"mixture of {chosen.n_components} Gaussians": chosen.fit(train).score_samples,
        f"kernel density, width {kernel.bandwidth:.2g}": kernel.fit(train).score_samples,
    }
    for name, log_prob in models.items():
        began = time.monotonic()
        estimators.add(
            name,
            "density",
            "held out",
            log_prob(held_out),
            0,
            time.monotonic() - began,
            density=True,
        )


def print_table(rows: list[Row]) -> None:
    """The table, a line an estimator."""
    print(
        f"{'log p(x)':<45} {'kind':<8} {'data':<10} {'nats':>20} {'bits/dim':>18} {'calls':>7} {'n':>6} {'s':>7}"
    )
    for row in rows:
        nats = f"{row.nats:.2f} +- {row.nats_se:.2f}"
        bits = f"{row.bits_per_dim:.4f} +- {row.bits_per_dim_se:.4f}"
        end = f"{row.calls:>7} {row.examples:>6} {row.seconds:7.1f}"
        print(f"{row.name:<45} {row.kind:<8} {row.data:<10} {nats:>20} {bits:>18} {end}")
