"""Reproduce the 2015 paper's cases: binary heartbeats, a Swiss roll, MNIST.

python experiments/reproduce_2015.py heartbeat      # the binomial process
python experiments/reproduce_2015.py swiss_roll     # the Gaussian process with a learned schedule
python experiments/reproduce_2015.py mnist          # Parzen windows and the bound of a trained run

K is a lower bound on the mean log-probability of the data, in bits; L_null is that of data without
structure: bits of the data's base rate, an isotropic normal law of the data's mean and variance.
The same command again goes on with a run that was stopped. (Sohl-Dickstein et al. 2015,
arXiv:1503.03585, Tables 1 and 2, Figures 1 and 2.)
"""

from jaxdiff.cli import set_up

if __name__ == "__main__":
    set_up()  # before jax is imported, because it may start the process again

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.scipy.special import logsumexp
from jax.tree_util import Partial
from matplotlib import pyplot as plt

import jaxdiff as jd
from jaxdiff import binomial, metrics, models, oracles, training
from jaxdiff.cli import errors, pictures
from jaxdiff.runs import estimates, loading, loop, machine, records, require, samplers, sampling
from jaxdiff.runs.datasets import Dataset
from jaxdiff.runs.probability import Estimators, Probability
from jaxdiff.runs.seeds import another, key_of

BIT = math.log(2)


@dataclass(frozen=True)
class Options:
    """The options of both problems."""

    run: Path
    """Folder of the run. An existing run goes on from its last checkpoint."""
    steps: int
    """Number of updates."""
    chain_steps: int
    """T, steps of the chain whose bound is K."""
    batch_size: int
    """Examples in an update."""
    width: int
    """Width of the network, a multilayer perceptron."""
    depth: int
    """Residual blocks of the network."""
    learning_rate: float
    """Peak learning rate."""
    examples: int
    """Examples, or paths for each of the five heartbeats, that K is measured on."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True)
class Heartbeat(Options):
    """Binary sequences of length 20 with a 1 at every fifth step, in five equally likely phases."""

    run: Path = Path("runs/heartbeat")
    steps: int = 6000
    chain_steps: int = 2000
    batch_size: int = 256
    width: int = 64
    depth: int = 3
    learning_rate: float = 2e-3
    examples: int = 100


@dataclass(frozen=True)
class SwissRoll(Options):
    """a (cos a, sin a) + noise, a uniform in [1.5 pi, 4.5 pi], with mean 0 and variance 1."""

    run: Path = Path("runs/swiss_roll")
    steps: int = 12_000
    chain_steps: int = 1000
    batch_size: int = 512
    width: int = 128
    depth: int = 4
    learning_rate: float = 2e-3
    examples: int = 4000
    noise: float = 0.0025
    """Standard deviation of the noise around the curve, in standard deviations of the data. We do
    not know that of the paper's roll. This one allows a gain of at most 7.0 bits; the paper's model
    has 6.45."""


# Options that may change when a run goes on; the rate is a function of the step and of steps.
MAY_CHANGE = {"steps", "learning_rate", "examples"}


class Problem(NamedTuple):
    """What training needs to know of a problem.

    Fields:
      init: () -> parameters.
      loss: (params, rows, batch) -> [b], as `training.make_step` takes it.
      batch: step -> batch, a function of the step and the run's seed alone.
    """

    init: Callable
    loss: Callable
    batch: Callable


def fit(options: Options, problem: Problem) -> Any | None:
    """Train to the last step; return the averaged parameters, or None if the user stopped it."""
    with training.lock(options.run):
        check_same(options)
        return _fit(options, problem)


def _fit(options: Options, problem: Problem) -> Any | None:
    optimizer = training.make_optimizer(
        options.learning_rate, num_steps=options.steps, warmup=min(100, options.steps)
    )
    step = training.make_step(problem.loss, optimizer, ema_decay=0.998)

    def initial() -> training.TrainState:
        key = key_of(options.seed, "training")
        return training.init_state(key, problem.init(), optimizer)

    with training.Checkpoints(options.run / "checkpoints") as checkpoints:
        state = checkpoints.restore(jax.eval_shape(initial))
        state = jax.jit(initial)() if state is None else state

        def after(progress: training.Progress) -> None:
            loss = progress.metrics["loss"]
            if progress.due(100):
                loop.require_finite(progress.step, float(loss))
                log.write(progress.step, loss=float(loss))
                progress.bar.set_postfix(loss=f"{float(loss):.4f}")
            if progress.due(2000) or progress.stopped:
                checkpoints.save(progress.step, progress.state(), loss=float(loss))

        first = int(state.step)
        with training.stopping() as stop, training.Log(options.run, step=first) as log:
            state = training.fit(
                step,
                state,
                problem.batch,
                options.steps,
                devices=jax.local_devices()[:1],  # a second device gains nothing at this size
                after=after,
                stop=stop,
                name=options.run.name,
            )
    done = int(state.step)
    if done < options.steps:
        print(f"stopped at step {done} of {options.steps}, saved; to go on, repeat the command")
        return None
    return state.ema_params


def check(options: Options) -> None:
    """Refuse numbers out of range, before any work."""
    require.seed(options.seed)
    require.counts(options, steps=1, chain_steps=2, batch_size=1, examples=2, width=8, depth=1)
    require.numbers(options, learning_rate=require.POSITIVE)


def check_same(options: Options) -> None:
    """Refuse a run that was begun with other options."""
    new = {name: value for name, value in dataclasses.asdict(options).items() if name != "run"}
    path = options.run / "options.json"
    old = records.read_json(path) if path.exists() else new
    if not isinstance(old, dict):
        raise ValueError(
            f"{path}: expected the run's options, got {type(old).__name__}; give another --run"
        )
    differing = [name for name in new if new[name] != old.get(name) and name not in MAY_CHANGE]
    if differing:
        raise ValueError(
            f"run: {options.run} was begun with another {', '.join(differing)}; give another --run"
        )
    training.write_json(path, new)


def report(
    options: Options, rows: dict[str, tuple[float, float]], null: float, paper: tuple[float, float]
) -> None:
    """Print and save K, L_null and the gain in bits, next to the paper's values.

    Args:
      options: of the run.
      rows: what a figure is of -> the figure and its standard error, bits.
      null: L_null, bits.
      paper: its K and its gain, bits.
    """
    found = {"L_null": null, "paper": {"K": paper[0], "gain": paper[1]}}
    print(f"{'bits':44} {'log-probability':>20} {'gain over null':>16}   (L_null = {null:.3f})")
    for name, (value, error) in rows.items():
        print(f"{name:44} {value:11.3f} +- {error:.3f} {value - null:16.3f}")
        found[name] = {"value": value, "standard_error": error, "gain": value - null}
    print(f"{'K, the paper':44} {paper[0]:11.3f} {'':8} {paper[1]:16.3f}")
    training.write_json(options.run / "result.json", {"machine": machine.describe(), "bits": found})


def mean_bits(nats: Any) -> tuple[float, float]:
    """Mean and standard error of independent values, in bits."""
    bits = np.asarray(nats, np.float64) / BIT
    return float(bits.mean()), float(bits.std(ddof=1) / math.sqrt(len(bits)))


def heartbeats() -> oracles.BinaryLaw:
    """The law of the data: five sequences of equal weight."""
    sequences = (jnp.arange(20)[None] - jnp.arange(5)[:, None]) % 5 == 0
    return oracles.BinaryLaw(jnp.zeros(5), sequences.astype(float))


def heartbeat(options: Heartbeat) -> bool:
    """Train on heartbeats, measure K, draw; False if stopped."""
    check(options)
    law, schedule = heartbeats(), jd.schedules.rectified_flow()  # the paper's: alpha_t = 1 - t
    ts = jd.grids.uniform(options.chain_steps)
    model = models.mlp(width=options.width, depth=options.depth)

    def denoiser_of(params: Any) -> Callable:
        return binomial.make_denoiser(Partial(model.apply, params), schedule)

    def loss(params: Any, rows: training.Rows, x_0: jax.Array) -> jax.Array:
        times = jd.losses.low_discrepancy_times(
            rows.key, len(x_0), first=rows.first, total=rows.total
        )
        index = (times * options.chain_steps).astype(int)
        denoiser = denoiser_of(params)
        return binomial.vlb(rows.keys, denoiser, schedule, x_0, ts=ts, index=index) / BIT

    def batch(step: int) -> np.ndarray:
        chosen = np.random.default_rng([options.seed, step]).integers(5, size=options.batch_size)
        return np.asarray(law.sequences)[chosen]

    key = key_of(options.seed, "parameters")
    params = fit(options, Problem(lambda: model.init(key, (20,)), loss, batch))
    if params is None:
        return False

    def bound(denoiser: Callable) -> tuple[float, float]:
        """The bound, as an exact mean over the five sequences and an estimate over paths."""
        x_0 = jnp.tile(law.sequences, (options.examples, 1))
        terms = jax.jit(binomial.vlb_terms)(
            jax.random.key(options.seed), denoiser, schedule, x_0, ts=ts
        )
        return mean_bits(-terms.sum(0).reshape(-1, 5).mean(1))

    null = -20 * float(binomial_entropy(0.2)) / BIT
    rows = {
        f"K, the trained chain of {options.chain_steps} steps": bound(denoiser_of(params)),
        "K, the same chain with the exact denoiser": bound(law.denoiser(schedule)),
        "the data's own": (float(jnp.mean(law.log_prob(law.sequences))) / BIT, 0.0),
    }
    report(options, rows, null, (-2.414, 12.024))
    kernel = binomial.ancestral(denoiser_of(params), schedule)
    x_init = binomial.prior_sample(jax.random.key(another(options.seed)), (1000, 20))
    samples = jd.sample(
        jax.random.key(another(options.seed, 2)),
        kernel,
        x_init,
        ts,
        save_every=-(-options.chain_steps // 2),
    )
    assert samples.trajectory is not None
    counts = np.exp(np.asarray(law.log_prob(samples.x))) > 0
    phases = np.argmax(np.asarray(samples.x)[counts][:, :5], axis=1)
    print(
        f"of 1000 samples {counts.sum()} are heartbeats, "
        f"by phase {np.bincount(phases, minlength=5).tolist()}"
    )
    draw_heartbeat(
        law, schedule, np.asarray(samples.trajectory)[:, :40], options.run / "heartbeat.png"
    )
    return True


def binomial_entropy(p: float) -> float:
    """Entropy of a bit that is one with probability p, in nats."""
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def draw_heartbeat(
    law: oracles.BinaryLaw, schedule: jd.Schedule, reverse: np.ndarray, path: Path
) -> None:
    """Data dissolving and samples appearing, 40 sequences each, at t = 0, 1/2, 1 and back."""
    x_0 = law.sample(jax.random.key(0), (40,))
    figure, axes = plt.subplots(2, 3, figsize=(9, 9), layout="constrained")
    for column, t in enumerate((0.0, 0.5, 1.0)):
        x_t = binomial.draw(jax.random.key(column), binomial.q_marginal(schedule, x_0, t))
        axes[0, column].set_title(f"data at t = {t:g}")
        axes[0, column].imshow(x_t, cmap="gray_r", interpolation="nearest")
        axes[1, column].set_title(f"the model at t = {t:g}")
        axes[1, column].imshow(reverse[2 - column], cmap="gray_r", interpolation="nearest")
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
    pictures.save(figure, path)


def curve(angles: np.ndarray) -> np.ndarray:
    """Points of the roll, [n, 2]; the coordinates have mean 0 and, on average, variance 1."""
    fine = 1.5 * np.pi + 3 * np.pi * (np.arange(100_000) + 0.5) / 100_000
    raw, fine = (a[:, None] * np.stack([np.cos(a), np.sin(a)], axis=1) for a in (angles, fine))
    return (raw - fine.mean(0)) / np.sqrt(fine.var(0).mean())


def roll(options: SwissRoll, stream: int, num: int) -> np.ndarray:
    """Points of the data, float32 [num, 2]."""
    random = np.random.default_rng([options.seed, stream])
    points = curve(1.5 * np.pi + 3 * np.pi * random.uniform(size=num))
    return (points + options.noise * random.normal(size=points.shape)).astype(np.float32)


def log_density(options: SwissRoll, x: np.ndarray) -> np.ndarray:
    """The data's exact log-density in nats, [n], by quadrature over the angle.

    It takes four points for each width of the noise.
    """
    num = int(4 * 13 / options.noise)  # the curve is 13 long
    centres = curve(1.5 * np.pi + 3 * np.pi * (np.arange(num) + 0.5) / num)

    @jax.jit
    def of(points: jax.Array) -> jax.Array:
        squared = jnp.sum((points[:, None] - centres[None]) ** 2, axis=-1)
        return logsumexp(-squared / (2 * options.noise**2), axis=1)

    parts = [np.asarray(of(part), np.float64) for part in np.array_split(x, -(-len(x) // 100))]
    return np.concatenate(parts) - math.log(num) - math.log(2 * math.pi * options.noise**2)


FREQUENCIES = 2.0 ** np.arange(9)


def swiss_roll(options: SwissRoll) -> bool:
    """Train on the roll, measure K, draw; False if stopped."""
    check(options)
    if not 0 < options.noise < math.inf:
        raise ValueError(
            "noise: expected a positive width (a curve without noise does not have a density), "
            f"got {options.noise}"
        )
    model = models.mlp(width=options.width, depth=options.depth)
    decoder = jd.decoders.normal()

    def network(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        angles = (x[:, :, None] * jnp.asarray(FREQUENCIES, x.dtype)[None, None]).reshape(len(x), -1)
        features = jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=1)
        return model.apply(params, features, t)[:, :2]

    def make_denoiser(params: Any, schedule: jd.Schedule, **_: Any) -> Any:
        return jd.make_denoiser(
            jd.categorical.on_log_snr(Partial(network, params), schedule), schedule, "eps"
        )

    bits = training.likelihood_loss(make_denoiser, decoder=decoder, dropout=False)  # a dimension

    def loss(params: Any, rows: training.Rows, x_0: jax.Array) -> jax.Array:
        return 2 * bits(params, rows, (x_0, None))

    def init() -> dict[str, Any]:
        event_shape = (2 + 4 * len(FREQUENCIES),)
        parameters = model.init(key_of(options.seed, "parameters"), event_shape)
        # The noise at t = 0 begins at a third of the data's own.
        ends = jd.schedules.learned_parameters(-9.0, -2 * math.log(options.noise / 3))
        return {"network": parameters, "schedule": ends}

    params = fit(options, Problem(init, loss, lambda n: roll(options, n + 1, options.batch_size)))
    if params is None:
        return False
    schedule = jd.schedules.learned(params["schedule"])
    denoiser = make_denoiser(params["network"], schedule)
    ts = jd.grids.uniform(options.chain_steps)
    chain = jd.Chain(denoiser, schedule, ts, decoder=decoder)
    x_0 = roll(options, 0, options.examples)
    key = jax.random.key(options.seed)
    rows = {
        f"K, the trained chain of {options.chain_steps} steps": mean_bits(
            jax.jit(jd.likelihood.elbo)(key, chain, x_0)
        ),
        "the data's own": mean_bits(log_density(options, x_0)),
    }
    report(options, rows, -math.log2(2 * math.pi * math.e), (2.35, 6.45))
    x_init = jd.prior_sample(jax.random.key(another(options.seed)), schedule, (2000, 2))
    samples = jd.sample(key, jd.kernels.ancestral(denoiser, schedule), x_init, ts, save_every=1)
    draw_swiss_roll(
        chain,
        roll(options, 0, 2000),
        np.asarray(samples.trajectory),
        options.run / "swiss_roll.png",
    )
    return True


def draw_swiss_roll(chain: jd.Chain, x_0: np.ndarray, reverse: np.ndarray, path: Path) -> None:
    """Draw the paper's Figure 1: data, samples and the denoiser's pull at three levels of noise.

    The levels are times of the chain: next to the data, where the shape dissolves, and where it is
    gone.
    """
    figure, axes = plt.subplots(3, 3, figsize=(9, 9.3), layout="constrained")
    places = (
        np.stack(np.meshgrid(*2 * [np.linspace(-2.4, 2.4, 17)]), axis=-1)
        .reshape(-1, 2)
        .astype(np.float32)
    )
    eps = jax.random.normal(jax.random.key(0), x_0.shape)
    log_snrs = np.asarray(chain.schedule.log_snr(chain.ts))
    for column, level in enumerate((log_snrs[-1], 3.5, -4.0)):
        n = int(np.argmin(np.abs(log_snrs - level)))
        t = float(chain.ts[n])
        axes[0, column].scatter(
            *np.asarray(jd.q_sample(chain.schedule, jnp.asarray(x_0), t, eps)).T,
            s=1,
            color="tab:blue",
        )
        axes[1, column].scatter(*reverse[n].T, s=1, color="tab:orange")
        x_t = places * float(jnp.hypot(*chain.schedule.alpha_sigma(t)))
        pull = (
            np.asarray(jd.prediction.x_0_of(chain.denoiser(jnp.asarray(x_t), t), jnp.asarray(x_t)))
            - x_t
        )
        axes[2, column].quiver(*x_t.T, *pull.T, angles="xy", width=0.004, color="tab:green")
        for row, what in enumerate(("data", "the model", "D(x, t) - x")):
            axes[row, column].set_title(
                f"{what}, t = {t:.2f} (log-SNR {log_snrs[n]:.1f})", fontsize=10
            )
            axes[row, column].set(aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    pictures.save(figure, path)


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
    """MNIST: the Parzen-window log-likelihood, as in the paper, and the bound."""

    run: Path = Path("mnist")
    """Folder of a trained run; or mnist, the network that ships with the package."""
    num: int = 10_000
    """Samples in the window; the protocol has 10,000."""
    sampler: samplers.SamplerName = "unipc_2"
    """How they are drawn."""
    steps: int = 20
    """Steps of the sampler."""
    guidance: float = 1.0
    """Guidance scale of the samples; all classes have the same number of samples."""
    examples: int = 200
    """Held-out examples for the bound K."""
    chain_steps: int = 100
    """T, steps of the chain whose bound is K."""
    seed: int = 0
    """Seed of the samples and of the bound."""


def parzen(x: np.ndarray, dataset: Dataset) -> metrics.Comparison:
    """The paper's protocol, in nats, on data in [0, 1] and all test images (10,000 for MNIST).

    1,000 training images choose the width: the first ones of the last sixth (of MNIST: 10,000). The
    other training images are the samples of a perfect model, as many as there are samples.
    """
    (others, last), (test, _) = others_and_last(dataset), dataset.examples("test")

    def metric(generated: np.ndarray, real: np.ndarray) -> metrics.Estimate:
        return metrics.parzen_log_likelihood(generated, real, validation=_unit(last[:1000]))

    return metrics.compare(metric, _unit(x), _unit(test), _unit(others))


def others_and_last(dataset: Dataset) -> list[np.ndarray]:
    """Return the training images without the last sixth, and the last sixth."""
    train, _ = dataset.examples("train")
    return np.split(train, [len(train) - len(train) // 6])


def _unit(x: np.ndarray) -> np.ndarray:
    """Map [-1, 1] to [0, 1]; values outside are clipped."""
    return (np.clip(x, -1, 1) + 1) / 2


def mnist(options: Mnist) -> bool:
    """Draw samples, measure them, print the figures, and save a picture."""
    require.seed(options.seed)
    require.counts(options, num=2, examples=2, steps=1, chain_steps=1)
    require.numbers(options, guidance=require.FINITE)
    run = loading.load_run(options.run)
    if len(run.dataset.event_shape) != 3:
        raise ValueError(f"run: expected one of images, got {run.config.dataset}")
    most = len(others_and_last(run.dataset)[0])
    if most < 10 or len(run.dataset.splits["test"].images) < 2:
        raise ValueError(
            "run: expected a set of at least 12 training images and 2 held out, for widths and "
            "densities"
        )
    if options.num > most:
        raise ValueError(
            f"num: expected at most {most}, as many as a perfect model has, got {options.num}"
        )
    if run.trained.num_classes is None and options.guidance != 1:
        raise ValueError(
            f"guidance: expected 1, because the run has no classes, got {options.guidance}"
        )
    labels = sampling.classes_in_turn(run.trained, options.num)
    x = sampling.generate(
        run.trained,
        options.num,
        seed=options.seed,
        labels=labels,
        guidance=options.guidance,
        sampler=options.sampler,
        steps=options.steps,
        keep=run.folder / "samples" / "parts",
        batch_size=run.config.batch_size,
    ).x
    ours, floor = parzen(x, run.dataset)
    rows = {"this model": (ours.value / BIT, ours.standard_error / BIT)}
    rows |= {"perfect model, here": (floor.value / BIT, floor.standard_error / BIT)} | PAPER
    print(f"{'Parzen-window log-likelihood, bits':44} {options.num} samples, data in [0, 1]")
    for name, (value, error) in rows.items():
        print(f"{name:44} {value:8.1f} +- {error:.1f}")
    estimators = Estimators(
        run,
        Probability(examples=options.examples, steps=options.chain_steps),
        seed=options.seed,
    )
    held_out, _ = run.dataset.head("test", options.examples)
    bound = estimates.bound(estimators, held_out)
    null = estimates.null(estimators, held_out)
    k, error, base = bound.nats / BIT, bound.nats_se / BIT, null.nats / BIT
    print(
        f"K, {bound.name}: {k:.0f} +- {error:.0f} bits an image, {bound.bits_per_dim:.3f} bits/dim"
    )
    print(f"L_null {base:.0f} bits, K - L_null {k - base:.0f} bits (the paper has no K of MNIST)")
    result = {
        "machine": machine.describe(),
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
    pictures.samples(run.dataset, x[:64], real, run.folder / "parzen.png")
    return True


def main() -> None:
    done = tyro.extras.subcommand_cli_from_dict(
        {"heartbeat": run_heartbeat, "swiss_roll": run_swiss_roll, "mnist": run_mnist},
        description=__doc__,
    )
    sys.exit(0 if done else 130)


def run_heartbeat(options: tyro.conf.OmitArgPrefixes[Heartbeat]) -> bool:
    """Binary heartbeats, by the binomial process."""
    return heartbeat(options)


def run_swiss_roll(options: tyro.conf.OmitArgPrefixes[SwissRoll]) -> bool:
    """A Swiss roll, by the Gaussian process."""
    return swiss_roll(options)


def run_mnist(options: tyro.conf.OmitArgPrefixes[Mnist]) -> bool:
    """MNIST, by the Parzen-window log-likelihood of samples and by the bound."""
    return mnist(options)


if __name__ == "__main__":
    with errors.one_line_errors():
        main()
