"""The estimates of the probability of data under a run's model, for its table."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import likelihood, work
from jaxdiff._extras import needs
from jaxdiff.runs import loading, memory
from jaxdiff.runs.probability import CHUNK, Estimators, Probability, Row

LARGEST = 256  # dimensions of data whose full covariances, 40 at a time, are fitted in seconds
LEAST_FITTED = 20  # training examples of a density that is fitted without a network
AIS_CHUNK = 8  # rows of a call; all their latents are in one batch
AIS_LEAPFROG = 5  # gradients of a move


def estimate(
    run: loading.Run, options: Probability, *, seed: int
) -> tuple[list[Row], dict[str, Any]]:
    """Return all estimates, and the values that the pictures show."""
    estimators = Estimators(run, options, seed=seed)
    held_out, _ = run.dataset.head("test", options.examples)
    shown: dict[str, Any] = {}
    if not estimators.without_denoiser.ends_clean:  # it asks for noise left at t = 0
        _continuous(estimators, held_out)
    shown["terms"] = _terms(estimators, held_out[: options.term_examples])
    if options.path_examples:
        shown["paths"] = _paths(estimators, held_out[: options.path_examples])
    simulated = options.simulated_examples
    if simulated is None:
        simulated = options.path_examples
    if simulated:
        shown["works"] = _works(estimators, simulated)
    if options.ais_examples:
        shown["acceptance"] = _annealing(estimators, held_out[: options.ais_examples])
    if options.ode_examples:
        _flow(estimators, held_out[: options.ode_examples])
    num_train = len(run.dataset.splits["train"].images)
    if options.baselines and num_train < LEAST_FITTED:
        print(
            f"no baselines: they are fitted to at least {LEAST_FITTED} training examples, "
            f"and there are {num_train}"
        )
    elif options.baselines and estimators.size > LARGEST:
        print(
            f"no densities without a network: their covariances of {estimators.size}^2 entries "
            "would take too long"
        )
    elif options.baselines:
        _baselines(estimators, held_out)
    return estimators.rows, shown


def bound(estimators: Estimators, held_out: np.ndarray) -> Row:
    """Add the cheapest bound: in continuous time, or by terms if t = 0 is free of noise."""
    (_terms if estimators.without_denoiser.ends_clean else _continuous)(estimators, held_out)
    return estimators.rows[-1]


def _continuous(estimators: Estimators, held_out: np.ndarray) -> None:
    run, options, levels = estimators.run, estimators.options, estimators.levels
    decoder = jd.decoders.normal() if levels is None else jd.decoders.categorical(levels)

    def bound(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        value = likelihood.continuous_lower_bound(
            key, denoiser, run.trained.schedule, x_0, decoder=decoder, num_times=options.times
        )
        return {"log_prob": value}

    out, seconds = estimators.mapped(
        "continuous", bound, held_out, len(held_out), settings=[options.times]
    )
    name = "bound in continuous time"
    estimators.add(
        name,
        "lower",
        "held out",
        out["log_prob"],
        calls=options.times,
        seconds=seconds,
        density=levels is None,
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
        calls=estimators.steps,
        seconds=seconds,
        density=density,
    )
    chain = estimators.chain(lambda x, t: x)
    return {
        "log_snr": np.asarray(estimators.run.trained.schedule.log_snr(chain.times)),
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
        calls=estimators.steps,
        seconds=seconds / options.paths,
        density=density,
    )
    estimators.add(
        f"{name}{options.paths}",
        "lower",
        "held out",
        tight,
        calls=calls,
        seconds=seconds,
        density=density,
    )
    return {"log_w": log_w}


def _works(estimators: Estimators, num: int) -> dict[str, np.ndarray]:
    options, density = estimators.options, estimators.levels is None

    def both(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        bounds = work.bidirectional_bounds(
            key, estimators.chain(denoiser), x_0.shape, num_paths=options.paths
        )
        works = {"forward": bounds.forward_work.T, "reverse": bounds.reverse_work}
        return {"lower": bounds.lower, "upper": bounds.upper} | works

    settings = [estimators.steps, options.paths]
    out, seconds = estimators.mapped("works", both, None, num, settings=settings)
    calls = estimators.steps * (options.paths + 1)
    for kind in ("lower", "upper"):
        name = f"paths both ways, K = {options.paths}"
        estimators.add(
            name, kind, "simulated", out[kind], calls=calls, seconds=seconds, density=density
        )
    return out


def _annealing(estimators: Estimators, held_out: np.ndarray) -> float:
    """Add the bounds of annealed importance sampling; return the acceptance rate of its moves.

    Held-out data get a lower bound, simulated data a lower and an upper one.
    """
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
    # A gradient counts as one call.
    calls = estimators.steps * options.ais_temperatures * (AIS_LEAPFROG + 5)
    out, seconds = estimators.mapped("ais", lower, held_out, num, **chunks)
    estimators.add(
        name, "lower", "held out", out["log_prob"], calls=calls, seconds=seconds, density=density
    )
    bounds, seconds = estimators.mapped("ais-both", both, None, num, **chunks)
    for kind in ("lower", "upper"):
        estimators.add(
            f"{name}, both ways",
            kind,
            "simulated",
            bounds[kind],
            calls=2 * calls,
            seconds=seconds,
            density=density,
        )
    return float(out["accepted"].mean())


def _flow(estimators: Estimators, held_out: np.ndarray) -> None:
    """Add the density of the probability-flow ODE.

    It is the density of data that are spread over the bins of their levels. A network that gives
    logits knows only the levels themselves, and such data do not have a density. There the ODE
    gives the prior of the state at t = 0, which the decoder turns into levels.
    """
    run, options, levels = estimators.run, estimators.options, estimators.levels
    by_levels = run.config.diffusion.prediction == "levels"

    def flow(denoiser: Any, key: jax.Array, x: jax.Array) -> jax.Array:
        ts = jd.grids.log_snr(run.trained.schedule, options.ode_steps)
        return likelihood.ode_log_prob(denoiser, run.trained.schedule, ts, x, key=key, num_probes=1)

    def density(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        key_spread, key_probe = jax.random.split(key)
        x = x_0 if levels is None else jd.decoders.uniform_dequantise(key_spread, x_0, levels)
        return {"log_prob": flow(denoiser, key_probe, x)}

    def bound(denoiser: Any, key: jax.Array, x_0: jax.Array) -> dict[str, jax.Array]:
        key_state, key_probe = jax.random.split(key)
        alpha, sigma = run.trained.schedule.alpha_sigma(0.0)
        q = jd.Normal(alpha * x_0, jnp.broadcast_to(sigma**2, x_0.shape))
        x = jd.decoders.normal().sample(key_state, q)
        last = jd.forward.q_likelihood(run.trained.schedule, x, 0.0)
        reconstruction = jd.decoders.categorical(levels or 2).log_prob(x_0, last)
        return {"log_prob": flow(denoiser, key_probe, x) + reconstruction - q.log_prob(x)}

    function, settings = bound if by_levels else density, [options.ode_steps]
    out, seconds = estimators.mapped("flow", function, held_out, len(held_out), settings=settings)
    how = "decoded" if by_levels else "as it is" if levels is None else "dequantised"
    name, kind = f"probability-flow ODE, Hutchinson, {how}", "lower" if by_levels else "density"
    calls = 4 * options.ode_steps
    estimators.add(
        name, kind, "held out", out["log_prob"], calls=calls, seconds=seconds, density=not by_levels
    )


def null(estimators: Estimators, held_out: np.ndarray) -> Row:
    """Add L_null of the 2015 paper: a normal law with the training mean and a single variance."""
    train, _ = _train(estimators)
    train, held_out = _spread(estimators, 1, train), _spread(estimators, 2, held_out)
    variance = train.var(0).mean()
    squared = np.sum(np.square(held_out - train.mean(0)), axis=1) / variance
    log_prob = -(squared + estimators.size * np.log(2 * np.pi * variance)) / 2
    estimators.add(
        "isotropic Gaussian", "density", "held out", log_prob, calls=0, seconds=0.0, density=True
    )
    return estimators.rows[-1]


def _train(estimators: Estimators) -> tuple[np.ndarray, np.ndarray | None]:
    """Training examples and labels: 20,000, or as many as fit into memory."""
    dataset = estimators.run.dataset
    return dataset.head("train", memory.affordable(20_000, dataset.event_shape))


def _spread(estimators: Estimators, seed: int, x: np.ndarray) -> np.ndarray:
    """Return vectors in float64; data with levels are spread over their bins."""
    levels, key = estimators.levels, jax.random.key(estimators.seed + seed)
    x = (
        x
        if levels is None
        else np.asarray(jd.decoders.uniform_dequantise(key, jnp.asarray(x), levels))
    )
    return x.reshape(len(x), -1).astype(np.float64)


def _baselines(estimators: Estimators, held_out: np.ndarray) -> None:
    """Add densities without a network, of data spread over their bins.

    They are chosen on training data alone.
    """
    mixtures = needs("sklearn.mixture", extra="cli")
    neighbors = needs("sklearn.neighbors", extra="cli")
    train, _ = _train(estimators)

    null(estimators, held_out)
    train, held_out = _spread(estimators, 1, train), _spread(estimators, 2, held_out)
    part = np.random.default_rng(estimators.seed).random(len(train)) < 0.9
    part[0] &= not part.all()  # at least one example to validate on
    fit, validate = train[part], train[~part]

    def best(models: list[Any]) -> Any:
        return max(models, key=lambda model: model.fit(fit).score_samples(validate).mean())

    def mixture(number: int) -> Any:
        return mixtures.GaussianMixture(
            number, covariance_type="full", reg_covar=1e-3, random_state=estimators.seed
        )

    chosen = best([mixture(number) for number in (5, 10, 20, 40) if number <= len(fit)])
    kernel = best([neighbors.KernelDensity(bandwidth=width) for width in np.geomspace(0.1, 0.8, 8)])
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
            calls=0,
            seconds=time.monotonic() - began,
            density=True,
        )
