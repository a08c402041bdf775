"""Two samplers that need no tuned proposal, on the oracle of digits: how exact, at what price.

python benchmarks/references.py

Annealed split Gibbs: the error of log p(y) against the steps of the chain that draws each move, for
three variances of that chain. Replica exchange: accepted swaps, and how many starts come down. The
middle of an image is hidden, as in digits_oracle.py.
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import digits_oracle
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import observations, posterior, training
from jaxdiff.cli import errors
from jaxdiff.runs import machine, require

ROOT = Path(__file__).resolve().parents[1]
# No signal at t = 1: a start says nothing of the data, so that it has the law p.
SCHEDULE = jd.schedules.cosine(log_snr_min=-np.inf)
VARIANCES = ("small", "large", "optimal")
LEVELS = 13


@dataclass(frozen=True)
class Options:
    """What to measure."""

    denoising: tuple[int, ...] = (1, 5, 20)
    """Steps of the chain in a move of annealed split Gibbs."""
    rows: int = 16
    """Its rows."""
    runs: int = 20
    """Its independent runs."""
    rounds: int = 300
    """Rounds of replica exchange."""
    steps: int = 25
    """Its levels."""
    seed: int = 0
    """Seed of everything random."""
    output: Path = ROOT / "runs" / "references"
    """Folder for references.json."""


class Problem(NamedTuple):
    """A digit of the mixture whose middle is hidden.

    Fields:
      mixture: the law of the data.
      seen: the observation.
      log_z: log p(y), exact.
      spread: measured, for the twist.
    """

    mixture: jd.oracles.GaussianMixture
    seen: Any
    log_z: float
    spread: posterior.Spread


def problem(seed: int) -> Problem:
    """Draw the digit and its noise."""
    mixture = digits_oracle.law()
    keys = jax.random.split(jax.random.key(seed), 4)
    x_0, std = mixture.sample(keys[0], (1,))[0], digits_oracle.NOISE_STD
    y = x_0 + std * jax.random.normal(keys[1], x_0.shape)
    place = ~digits_oracle.hidden("middle")
    rows = jnp.eye(len(place))[np.flatnonzero(place)]
    log_z = mixture.log_evidence(rows, rows @ y, std**2 * jnp.eye(len(rows)))
    data = mixture.sample(keys[2], (1000,))
    spread = posterior.spread_of(keys[3], mixture.denoiser(SCHEDULE), SCHEDULE, data)
    seen = observations.mask(y, jnp.asarray(place), std)
    return Problem(mixture, seen, float(log_z), spread)


def annealed(case: Problem, variance: str, denoising: int, options: Options) -> list[float]:
    """Errors of log Z of independent runs."""
    times = SCHEDULE.time(-2 * jnp.log(jnp.geomspace(10.0, digits_oracle.NOISE_STD, LEVELS - 1)))
    ts = jnp.concatenate([jnp.ones(1), times, jnp.zeros(1)])
    kernel = posterior.annealed_gibbs(
        case.mixture.denoiser(SCHEDULE, variance=True), SCHEDULE, case.seen,
        variance=variance, num_denoising=denoising,
    )  # fmt: skip

    def one(key: jax.Array) -> jax.Array:
        key_prior, key_run = jax.random.split(key)
        x = jd.prior_sample(key_prior, SCHEDULE, (options.rows, case.mixture.means.shape[1]))
        resample = jd.resampling.systematic()
        return jd.sample(key_run, kernel, x, ts, resample=resample).log_evidence

    keys = jax.random.split(jax.random.key(options.seed + 1), options.runs)
    found = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(keys), np.float64)
    return [float(error) for error in found - case.log_z]


def exchange(case: Problem, options: Options) -> dict[str, Any]:
    """Accepted swaps, separate starts, and the error of log Z."""
    kernel = posterior.twisted(
        case.mixture.denoiser(SCHEDULE), SCHEDULE, case.seen, spread=case.spread
    )
    ts = jd.grids.uniform(options.steps, start=float(SCHEDULE.time(digits_oracle.START)))
    keys = jax.random.split(jax.random.key(options.seed + 2))
    x = jd.prior_sample(keys[0], SCHEDULE, (options.rounds, case.mixture.means.shape[1]))
    found = jax.jit(lambda key, x: posterior.replica_exchange(key, kernel, x, ts))(keys[1], x)
    accepted = np.asarray(found.accepted)
    return {
        "accepted": float(accepted.mean()), "worst_pair": float(accepted.min()),
        "starts": len(np.unique(found.start)), "rounds": options.rounds,
        "evidence_error": float(found.log_evidence) - case.log_z,
    }  # fmt: skip


def main(options: Options) -> dict[str, Any]:
    """Print both, and save them."""
    require.counts(options, denoising=1, rows=2, runs=2, rounds=1, steps=2)
    require.seed(options.seed)
    case = problem(options.seed)
    print(machine.describe())
    print(
        f"{'variance':10}"
        + "".join(f"{n:>18}" for n in options.denoising)
        + "   steps of the chain"
    )
    cells = list(itertools.product(VARIANCES, options.denoising))
    errors_of = {
        (variance, n): annealed(case, variance, n, options)
        for variance, n in tqdm(cells, desc="annealed", leave=False)
    }
    for variance in VARIANCES:
        row = [errors_of[variance, n] for n in options.denoising]
        texts = (f"{np.mean(cell):+.2f} +- {np.std(cell):.2f}" for cell in row)
        print(f"{variance:10}" + "".join(f"{text:>18}" for text in texts))
    swaps = exchange(case, options)
    print(
        f"replica exchange: {swaps['accepted']:.2f} of the swaps accepted, "
        f"{swaps['worst_pair']:.2f} in the worst pair, "
        f"{swaps['starts']} starts in {swaps['rounds']} rounds, "
        f"log Z {swaps['evidence_error']:+.2f} off"
    )
    rows = [
        {"variance": variance, "denoising": n, "evidence_errors": errors}
        for (variance, n), errors in errors_of.items()
    ]
    found = {"machine": machine.describe(), "annealed": rows, "exchange": swaps}
    training.write_json(options.output / "references.json", found)
    return found


if __name__ == "__main__":
    with errors.one_line_errors():
        main(tyro.cli(Options, description=__doc__))
