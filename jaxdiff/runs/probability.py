"""Estimators of the probability of data under a run's model: options, table rows, cached parts."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import likelihood
from jaxdiff.runs import build, cache, loading

# Rows of one compiled call on each device; a training batch of the run if that is smaller. The
# randomness of a row depends on this number, but not on the number of devices.
CHUNK = 64


@dataclass(frozen=True)
class Probability:
    """What to estimate of the model's probability."""

    examples: int = 256
    """At most so many held-out examples for the bound in continuous time and the baselines; 0 for
    no estimates at all."""
    term_examples: int = 256
    """Held-out examples for the terms of the finite chain's bound."""
    steps: int | None = None
    """Steps T of the finite chain. If not given: the number that the run was trained with, or 100
    if it was trained without a finite chain."""
    times: int = 32
    """Times an example for the bound in continuous time."""
    paths: int = 16
    """Forward paths an example for the importance-weighted bound."""
    path_examples: int = 64
    """Held-out examples for this bound; 0 for none."""
    simulated_examples: int | None = None
    """Examples that the model draws, for the path bounds from below and from above; as many as
    path_examples if not given; 0 for none."""
    ode_steps: int = 25
    """Runge-Kutta steps of the probability-flow ODE."""
    ode_examples: int = 64
    """Held-out examples for its density; 0 for none."""
    ais_examples: int = 0
    """Held-out examples, and as many simulated ones, for annealed importance sampling; 0 for none.
    At T = 100 a few of them take minutes."""
    ais_temperatures: int = 32
    """Its temperatures, each with one Hamiltonian move of all latents."""
    ais_step_size: float = 0.1
    """Step of the move's integrator, in units of the paths' noises. About two thirds of the moves
    should be accepted."""
    baselines: bool = True
    """Whether to compare densities without a network, for data of at most 256 dimensions."""


VERSION = 2  # of the code that makes the parts: parts of another version are not read


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

    The name of a part's file is a digest of what the part depends on: the parameters, its rows of
    the data, the seed, and the options of its own estimator. So a new value of an option leaves the
    parts of other estimators, and the parts of its old values, valid.
    """

    def __init__(self, run: loading.Run, options: Probability, *, seed: int) -> None:
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
        self.without_denoiser = build.make_chain(
            run.config,
            run.trained.schedule,
            levels=self.levels,
            num_steps=self.steps,
            variance=run.trained.variance,
        )
        self.chunk = min(CHUNK, run.config.batch_size)
        self.rows: list[Row] = []
        network = [dataclasses.asdict(part) for part in (run.config.diffusion, run.config.network)]
        self.made_of = cache.digest(
            [VERSION, seed, self.levels, network, run.trained.settings],
            (run.trained.params, run.trained.schedule),
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
        """Map a function of (denoiser, key, x_0 [size, *D]) over all rows, on all devices.

        Its parts are kept in files. The settings are everything that the function depends on
        besides the run, its data and the seed.
        """
        num_devices, size = jax.local_device_count(), self.chunk if size is None else size
        key = jax.random.fold_in(
            jax.random.key(self.seed), int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)
        )
        compiled = self.compiled(function)

        def make(numbers: list[int]) -> list[dict[str, np.ndarray]]:
            began = time.monotonic()
            places = np.resize(numbers, num_devices)  # few numbers fill the devices again and again
            index = [np.arange(n * size, (n + 1) * size) for n in places]
            x = np.stack([_rows(x_0, i, num, self.run.dataset.event_shape) for i in index])
            keys = jnp.stack([jax.random.fold_in(key, n) for n in places])
            out = jax.tree.map(np.asarray, compiled(self.run.trained.params, keys, x))
            seconds = np.asarray([(time.monotonic() - began) / len(numbers)])
            return [
                {field: value[place][: num - n * size] for field, value in out.items()}
                | {"seconds": seconds}
                for place, n in enumerate(numbers)
            ]

        paths = [
            self.path(name, n, x_0=x_0, num=num, size=size, settings=settings)
            for n in range(-(-num // size))
        ]
        parts = cache.resumable(paths, make, at_once=num_devices, name=name)
        joined = {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
        return joined, float(joined.pop("seconds").sum())

    def compiled(self, function: Callable) -> Callable:
        """The function of (params, keys, x_0), the last two with an axis of devices."""

        def chunk(params: Any, key: jax.Array, x: jax.Array) -> Any:
            return function(self.run.trained.with_params(params).denoiser(), key, x)

        return jax.pmap(chunk, in_axes=(None, 0, 0), devices=jax.local_devices())

    def path(
        self, name: str, n: int, *, x_0: np.ndarray | None, num: int, size: int, settings: Any
    ) -> Path:
        """The file of part n. More rows leave full parts valid."""
        count = min(size, num - n * size)
        rows = None if x_0 is None else x_0[n * size : n * size + count]
        digest = cache.digest([self.made_of, name, n, size, count, settings], rows)
        return self.run.folder / "probability" / f"{name}-{n}-{digest}.npz"

    def add(
        self,
        name: str,
        kind: str,
        data: str,
        log_prob: np.ndarray,
        *,
        calls: int,
        seconds: float,
        density: bool,
    ) -> None:
        """Add a line to the table from the log-probabilities of the examples."""
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
    """Rows by number; past the end the last row again. Zeros if x_0 is None."""
    return (
        np.zeros((len(index), *event_shape), np.float32)
        if x_0 is None
        else x_0[np.minimum(index, num - 1)]
    )
