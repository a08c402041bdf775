"""Annealed split Gibbs: levels against their densities, exact moves with unbiased evidence, and what chains do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import asymmetric_mixture, moment_z_scores, rejects, slow, z_scores
from test_posterior import scattered

import jaxdiff as jd
from jaxdiff import _rows, observations, posterior, resampling
from jaxdiff._tree import pytree
from jaxdiff.forward import level
from jaxdiff.kernels._kernel import lift
from jaxdiff.posterior._annealed import AnnealedGibbs

# Without signal at t = 1: there the start says nothing of the data, and an exact draw is one of the prior.
SCHEDULE = jd.schedules.cosine(log_snr_min=-np.inf)


@pytree
class Exact(AnnealedGibbs):
    """The sampler with exact draws of x_0 given x_t, for a mixture with diagonal covariances."""

    mixture: Any = None

    def denoise(self, key: jax.Array, x_t: jax.Array, t: Any) -> jax.Array:
        log_weights, means, covariances = (
            getattr(self.mixture, name) for name in ("log_weights", "means", "covariances")
        )
        alpha, sigma, _ = level(self.schedule, t, x_t)
        total = alpha**2 * covariances + sigma**2
        residual = x_t[:, None] - (alpha * means)[None]
        squared = residual**2 / total[None] + jnp.log(total)[None]
        key_component, key_noise = _rows.split(key)
        joint = log_weights[None] - jnp.sum(squared, axis=2) / 2
        component = jax.vmap(jax.random.categorical)(key_component, joint)
        moved = means[None] + (alpha * covariances / total)[None] * residual
        mean = jnp.take_along_axis(moved, component[:, None, None], axis=1)[:, 0]
        std = jnp.sqrt(sigma**2 * covariances / total)[component]
        return mean + std * _rows.normal(key_noise, x_t)


def observed(
    mixture: jd.oracles.GaussianMixture, rows: int, std: float
) -> tuple[jax.Array, jax.Array]:
    """A matrix whose rows are not orthogonal, and an observation of a draw of the smallest component."""
    random, size = np.random.default_rng(7), mixture.means.shape[1]
    matrix = jnp.asarray(random.normal(size=(rows, size)) / np.sqrt(size))
    x_0 = mixture.means[2] + jnp.sqrt(mixture.covariances[2]) * random.normal(size=size)
    return matrix, matrix @ x_0 + std * random.normal(size=rows)


def grid(num_levels: int, start: float, end: float) -> jax.Array:
    """From noise over levels that are even in log rho to the data."""
    times = SCHEDULE.time(-2 * jnp.log(jnp.geomspace(start, end, num_levels)))
    return jnp.concatenate([jnp.ones(1), times, jnp.zeros(1)])


def ratios(algorithm: Any, log_z: float, ts: jax.Array, *, num: int, times: int) -> np.ndarray:
    """Z of independent runs over its exact value, [times]."""
    size = algorithm.observation.operator.matrix.shape[1]

    def one(key: jax.Array) -> jax.Array:
        key_prior, key_run = jax.random.split(key)
        x = jd.prior_sample(key_prior, SCHEDULE, (num, size))
        resample = resampling.systematic()
        return jd.sample(key_run, lift(algorithm), x, ts, resample=resample).log_evidence

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), times))
    return np.exp(np.asarray(found, np.float64) - log_z)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "rows"), [(2, 1), slow(8, 3), slow(80, 3)])
def test_evidence_is_unbiased_with_exact_moves_at_sixteen_particles(size: int, rows: int) -> None:
    """2000 runs with a standard error below .03: the mean of Z is within 4 of them of its exact value."""
    mixture, std = scattered(size), 0.1
    matrix, y = observed(mixture, rows, std)
    seen = observations.linear(matrix, y, std)
    exact = Exact(mixture.denoiser(SCHEDULE), SCHEDULE, seen, mixture=mixture)
    log_z = float(mixture.log_evidence(matrix, y, std**2 * jnp.eye(rows)))
    found = ratios(exact, log_z, grid(6, 8.0, 0.1), num=16, times=2000)
    assert found.std() / np.sqrt(2000) < 0.03
    assert np.abs(z_scores(found, np.array(1.0))) < 4
    assert np.log(found).std() > 0.1  # a run by itself is not exact


@pytest.mark.slow
@pytest.mark.parametrize("rho", [1.5, slow(0.2)])
def test_a_move_leaves_its_level_as_it_is(rho: float) -> None:
    """20,000 exact draws of pi_rho, moved once, are draws of it: moments and mode masses. Nothing is weighted."""
    mixture = scattered(2)
    matrix, y = observed(mixture, 1, 0.4)
    seen = observations.linear(matrix, y, 0.4)
    exact = Exact(mixture.denoiser(SCHEDULE), SCHEDULE, seen, mixture=mixture)
    law = mixture.posterior(matrix, y, 0.16 * jnp.eye(1) + rho**2 * matrix @ matrix.T)
    x, t = law.sample(jax.random.key(0), (20_000,)), SCHEDULE.time(-2 * jnp.log(rho))
    key, clean = jax.random.key(1), jnp.ones(len(x), bool)
    _, moved, increment = jax.jit(lift(exact).step)(key, clean, x, t, t)
    assert np.abs(moment_z_scores(moved, law)).max() < 4.5
    np.testing.assert_allclose(increment, 0, atol=1e-6)
    assert np.abs(np.corrcoef(x[:, 0], moved[:, 0])[0, 1]) < 0.98  # it has moved


IMAGE = (4, 4, 1)
SEEN = {
    "matrix": lambda: observations.linear(
        jnp.asarray(np.random.default_rng(1).normal(size=(5, 16))), jnp.arange(5.0), 0.3
    ),
    "repeated rows": lambda: observations.linear(
        jnp.stack([jnp.ones(16), jnp.ones(16)]), jnp.array([0.5, 0.7]), 0.3
    ),
    "mask": lambda: observations.mask(
        jnp.ones(IMAGE), jnp.arange(16.0).reshape(IMAGE) % 3 > 0, jnp.linspace(0.1, 1, 16).reshape(IMAGE)
    ),
    "noisy": lambda: observations.noisy(jnp.ones(IMAGE), 0.3),
    "downsample": lambda: observations.downsample(jnp.ones((2, 2, 1)), 2, 0.3),
    "blur": lambda: observations.blur(jnp.ones(IMAGE), 1.0, 0.3),
    "function": lambda: observations.linear(lambda x: x[:2] + x[1:3], jnp.ones((2, 4, 1)), 0.3),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in ("mask", "function") else slow(name) for name in SEEN]
)
def test_levels_are_normal_densities(name: str, x64: None) -> None:
    """log N(y; A x, noise^2 + rho^2 A A^T) with a dense covariance, and the likelihood itself at t = 0."""
    from scipy.stats import multivariate_normal

    seen, x = SEEN[name](), jax.random.normal(jax.random.key(0), (3, *IMAGE))
    sampler = AnnealedGibbs(lambda x, t: x, SCHEDULE, seen)
    matrix = np.asarray(jax.vmap(seen.operator)(jnp.eye(16).reshape(16, *IMAGE))).reshape(16, -1).T
    shown = np.broadcast_to(seen.observed, seen.y.shape).ravel()
    noise = np.diag(np.broadcast_to(np.asarray(seen.noise_std) ** 2, seen.y.shape).ravel()[shown])
    part = matrix[shown]
    residual, gain = sampler.observe(x)
    for rho in (20.0, 0.5):
        found = sampler.log_r(residual, gain, SCHEDULE.time(-2 * jnp.log(rho)))
        law = multivariate_normal(cov=noise + rho**2 * part @ part.T)
        centred = np.asarray(seen.y).ravel()[shown] - np.asarray(x).reshape(3, -1) @ part.T
        np.testing.assert_allclose(found, law.logpdf(centred), rtol=1e-6)
    at_end = sampler.log_r(residual, gain, 0.0)
    np.testing.assert_allclose(at_end, jax.vmap(seen)(x), rtol=1e-9)


@pytest.mark.slow
def test_the_first_step_is_the_models_chain(x64: None) -> None:
    """From noise to data, weighted with the whole of the level's density."""
    denoiser, x = (
        asymmetric_mixture().denoiser(SCHEDULE),
        jax.random.normal(jax.random.key(0), (6, 2)),
    )
    seen = observations.mask(jnp.array([0.9, 0.0]), jnp.array([1.0, 0.0]), 0.3)
    kernel = posterior.annealed_gibbs(denoiser, SCHEDULE, seen, variance="small", num_denoising=10)
    t, s = jnp.asarray(1.0), SCHEDULE.time(-2 * jnp.log(0.7))
    carry, moved, increment = kernel.step(jax.random.key(1), kernel.init(x, t), x, t, s)
    assert carry.all()
    keys = _rows.split(_rows.keys(jax.random.key(1), 6), 3)[2]
    chain = jd.sampling.run(keys, jd.kernels.ancestral(denoiser, SCHEDULE), x, jd.grids.uniform(10))
    np.testing.assert_allclose(moved, chain.x, rtol=1e-9)
    exact = -0.5 * ((0.9 - moved[:, 0]) ** 2 / 0.58 + jnp.log(2 * jnp.pi * 0.58))
    np.testing.assert_allclose(increment, exact, rtol=1e-6)


def test_one_step_draws_from_a_normal_posterior() -> None:
    """Independent normal data: one step of the variance "optimal" is p(x_0 | x_t) itself."""
    data = jd.oracles.gaussian(jnp.array([0.5, -1.0]), jnp.array([0.6, 0.2]))
    denoiser, t = data.denoiser(SCHEDULE, variance=True), SCHEDULE.time(0.0)
    seen = observations.noisy(jnp.zeros(2), 0.3)
    sampler = AnnealedGibbs(denoiser, SCHEDULE, seen, "optimal", num_denoising=1)
    x_t = jnp.broadcast_to(jnp.array([1.0, -0.5]), (20_000, 2))
    keys = _rows.keys(jax.random.key(0), len(x_t))
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    law = data.posterior(alpha * jnp.eye(2), x_t[0], sigma**2 * jnp.eye(2))
    assert np.abs(moment_z_scores(sampler.denoise(keys, x_t, t), law)).max() < 4.5


def test_without_an_observation_nothing_is_weighted() -> None:
    denoiser, nothing = asymmetric_mixture().denoiser(SCHEDULE), jnp.zeros(2)
    seen = observations.mask(nothing, nothing, 0.3)
    kernel = posterior.annealed_gibbs(denoiser, SCHEDULE, seen, num_denoising=2)
    x = jd.prior_sample(jax.random.key(0), SCHEDULE, (5, 2))
    samples = jd.sample(jax.random.key(1), kernel, x, grid(3, 3.0, 0.3))
    np.testing.assert_array_equal(samples.log_weights, 0)


@pytest.mark.slow
def test_narrow_moves_raise_the_evidence_and_wide_ones_lower_it() -> None:
    """Five steps of each chain: small 2.2, large -.2, optimal .1 off; a mean over 100 runs has an error of .04."""
    mixture, rows, std = scattered(8), 4, 0.1
    random = np.random.default_rng(7)
    matrix = jnp.asarray(np.linalg.qr(random.normal(size=(8, rows)))[0].T)
    x_0 = mixture.means[2] + jnp.sqrt(mixture.covariances[2]) * random.normal(size=8)
    y = matrix @ x_0 + 0.4 * random.normal(size=rows)
    seen, log_z = (
        observations.linear(matrix, y, std),
        float(mixture.log_evidence(matrix, y, std**2 * jnp.eye(rows))),
    )
    found = {}
    for variance in ("small", "large", "optimal"):
        denoiser = mixture.denoiser(SCHEDULE, variance=True)
        sampler = AnnealedGibbs(denoiser, SCHEDULE, seen, variance, num_denoising=5)
        ratio = ratios(sampler, log_z, grid(11, 8.0, 0.1), num=64, times=100)
        found[variance] = np.log(ratio).mean()
    assert found["small"] > 1.5
    assert -0.6 < found["large"] < 0
    assert abs(found["optimal"]) < 0.3


def _make(**options: Any) -> Any:
    seen = observations.noisy(jnp.zeros(2), 0.3)
    return posterior.annealed_gibbs(lambda x, t: x, SCHEDULE, seen, **options)


BAD = {
    "steps": (lambda: _make(num_denoising=0), ValueError, "num_denoising: expected a positive int"),
    "iterations": (lambda: _make(num_iterations=0), ValueError, "num_iterations: expected a positive"),
    "variance": (lambda: _make(variance="smal"), ValueError, "variance: expected one of"),
    "likelihood": (lambda: posterior.annealed_gibbs(lambda x, t: x, SCHEDULE, lambda x: x), TypeError, "observation: expected an Observation, got function"),
    "denoiser": (lambda: posterior.annealed_gibbs(3, SCHEDULE, observations.noisy(jnp.zeros(2), 0.3)), TypeError, "denoiser: expected a function, got int"),
}  # fmt: skip
test_bad_input = rejects(BAD)
