"""Compositions of models against products and mixtures of normal distributions that are known exactly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    SCHEDULES,
    asymmetric_mixture,
    correlated_gaussian,
    rejects,
    responsibilities,
    slow,
    z_scores,
)

import jaxdiff as jd
from jaxdiff import kernels, posterior, resampling

SCHEDULE = jd.schedules.cosine()
ONE = (np.array([0.5, -0.2]), np.array([[0.3, 0.1], [0.1, 0.2]]))
TWO = (np.array([-0.4, 0.3]), np.array([[0.5, -0.2], [-0.2, 0.4]]))


def log_normal(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    centred = x - mean
    return -0.5 * float(
        centred @ np.linalg.solve(covariance, centred)
        + np.linalg.slogdet(2 * np.pi * covariance)[1]
    )


def product(exponents: tuple[float, ...], *laws: tuple) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, covariance and log of the integral of a product of powers of normal densities."""
    covariance = np.linalg.inv(
        sum(a * np.linalg.inv(c) for a, (_, c) in zip(exponents, laws, strict=True))
    )
    mean = covariance @ sum(
        a * np.linalg.solve(c, m) for a, (m, c) in zip(exponents, laws, strict=True)
    )
    at = sum(a * log_normal(mean, *law) for a, law in zip(exponents, laws, strict=True))
    return mean, covariance, at - log_normal(mean, mean, covariance)


def oracle(law: tuple) -> jd.oracles.GaussianMixture:
    return jd.oracles.gaussian(*(jnp.asarray(part, jnp.float32) for part in law))


def repeat(kernel: jd.Kernel, schedule: jd.Schedule, num: int, times: int, num_steps: int) -> Any:
    """Independent runs: (samples, shares of the rows)."""

    def one(key: jax.Array) -> tuple[jd.Samples, jax.Array]:
        key_prior, key_run = jax.random.split(key)
        x, ts = jd.prior_sample(key_prior, schedule, (num, 2)), jd.grids.uniform(num_steps)
        samples = jd.sample(key_run, kernel, x, ts, resample=resampling.systematic())
        return samples, jax.nn.softmax(samples.log_weights)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), times))


def summary(samples: jd.Samples, shares: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and covariance of each run, averaged, and every run's log evidence."""
    mean = np.einsum("rn,rnd->rd", shares, samples.x)
    centred = np.asarray(samples.x) - mean[:, None]
    covariance = np.einsum("rn,rni,rnj->rij", shares, centred, centred)
    return mean.mean(0), covariance.mean(0), np.asarray(samples.log_evidence)


@pytest.mark.parametrize(
    "exponents",
    [
        (2.0, -0.5),
        *map(slow, ((1.0, 1.0), (1.5, -0.5), (0.3, 0.3), (2.0, 0.0))),
    ],
)
@pytest.mark.parametrize("family", ["cosine", slow("rectified_flow")])
def test_products_powers_and_quotients_of_gaussians(
    family: str, exponents: tuple[float, ...]
) -> None:
    """Moments within 0.04 and log Z within 0.05 at 100 steps: the bias is of order 1/100, Monte Carlo's error below."""
    schedule = SCHEDULES[family]()
    denoisers = [oracle(law).denoiser(schedule) for law in (ONE, TWO)]
    mean, covariance, log_z = product(exponents, ONE, TWO)
    kernel = posterior.composed(denoisers, jnp.array(exponents), schedule)
    found = summary(*repeat(kernel, schedule, 1000, 10, 100))
    np.testing.assert_allclose(found[0], mean, atol=0.04)
    np.testing.assert_allclose(found[1], covariance, atol=0.04)
    assert abs(found[2].mean() - log_z) < 0.05


@pytest.mark.slow
def test_a_product_of_mixtures() -> None:
    """Mode masses within 0.03 and log Z within 0.05 of the nine-component product."""
    first = asymmetric_mixture()
    second = jd.oracles.GaussianMixture(
        jnp.log(jnp.array([0.6, 0.4])),
        jnp.array([[0.8, 0.5], [-1.0, 0.2]]),
        jnp.array([[0.6, 0.5], [0.4, 0.8]]),
    )
    parts = [
        (w, law)
        for w, law in zip(
            np.exp(first.log_weights), zip(first.means, first.covariances, strict=True), strict=True
        )
    ]
    others = [
        (w, (m, np.diag(c)))
        for w, m, c in zip(
            np.exp(second.log_weights), second.means, second.covariances, strict=True
        )
    ]
    joined = [
        (
            w,
            v,
            product((1.0, 1.0), *(tuple(np.asarray(p, np.float64) for p in law) for law in (a, b))),
        )
        for w, a in parts
        for v, b in others
    ]
    log_weights = np.array([np.log(w * v) + log_z for w, v, (_, _, log_z) in joined])
    exact = jd.oracles.GaussianMixture(
        jnp.asarray(log_weights, jnp.float32),
        jnp.asarray(np.stack([m for _, _, (m, _, _) in joined]), jnp.float32),
        jnp.asarray(np.stack([c for _, _, (_, c, _) in joined]), jnp.float32),
    )
    kernel = posterior.composed(
        [m.denoiser(SCHEDULE) for m in (first, second)], jnp.ones(2), SCHEDULE
    )
    samples, shares = repeat(kernel, SCHEDULE, 1000, 12, 120)
    masses = np.mean(
        [w @ responsibilities(exact, x) for w, x in zip(shares, samples.x, strict=True)], axis=0
    )
    np.testing.assert_allclose(masses, jax.nn.softmax(exact.log_weights), atol=0.03)
    assert abs(float(samples.log_evidence.mean()) - np.logaddexp.reduce(log_weights)) < 0.05


def test_unweighted_it_is_no_product() -> None:
    """Free draws of the summed scores are off by far more than what is allowed above."""
    denoisers = [oracle(law).denoiser(SCHEDULE) for law in (ONE, TWO)]
    exponents = (2.5, -1.5)
    mean, covariance, _ = product(exponents, ONE, TWO)
    kernel = posterior.composed(denoisers, jnp.array(exponents), SCHEDULE)
    x = jd.prior_sample(jax.random.key(0), SCHEDULE, (4000, 2))
    samples = jd.sample(jax.random.key(1), kernel, x, jd.grids.uniform(100))
    error = (
        np.abs(np.asarray(samples.x).mean(0) - mean).max()
        + np.abs(np.cov(samples.x.T) - covariance).max()
    )
    assert error > 0.2


@pytest.mark.slow
def test_guidance_as_a_density_is_its_product() -> None:
    """Exponents (w, 1 - w): the samples are of q_1^w q_2^(1 - w), which guided sampling alone does not give."""
    scale = 1.8
    denoisers = [oracle(law).denoiser(SCHEDULE) for law in (ONE, TWO)]
    mean, covariance, _ = product((scale, 1 - scale), ONE, TWO)
    kernel = posterior.composed(denoisers, jnp.array([scale, 1 - scale]), SCHEDULE)
    found = summary(*repeat(kernel, SCHEDULE, 1000, 8, 100))
    np.testing.assert_allclose(found[0], mean, atol=0.04)
    guided = kernels.ancestral(jd.guidance.classifier_free(*denoisers, scale), SCHEDULE)
    alone = summary(*repeat(guided, SCHEDULE, 1000, 8, 100))
    off = [
        np.abs(part - exact).max()
        for part, exact in zip(alone[:2], (mean, covariance), strict=True)
    ]
    assert max(off) > 0.08


@pytest.mark.slow
def test_one_model_is_itself(x64: None) -> None:
    """K = 1, a = 1: no weights, and a step of ancestral's mean and variance."""
    denoiser = correlated_gaussian().denoiser(SCHEDULE)
    x, ts = jax.random.normal(jax.random.key(0), (6, 2)), jd.grids.uniform(12)
    kernel = posterior.composed([denoiser], jnp.ones(1), SCHEDULE)
    samples = jd.sample(jax.random.key(1), kernel, x, ts)
    np.testing.assert_allclose(samples.log_weights, 0, atol=1e-12)
    t, s = jnp.asarray(0.6), jnp.asarray(0.4)
    same = jnp.broadcast_to(x[:1], (4000, 2))
    drawn = kernel.step(jax.random.key(2), kernel.init(same, t), same, t, s)[1]
    mean, variance = (v[0] for v in jd.p_mean_variance(denoiser, SCHEDULE, x[:1], t, s))
    assert np.abs(z_scores(drawn, mean)).max() < 4
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.1)  # of 4000 draws: .022


@pytest.mark.slow
def test_equal_normal_models_have_equal_weights() -> None:
    """The term with b: powers of N(0, prior_std^2 I) keep their weights to the steps' own error, and lose them without."""
    data = jd.oracles.gaussian(jnp.zeros(2), jnp.asarray(0.49))
    lowest = {}
    for std in (0.7, 100.0):
        kernel = posterior.composed(
            [data.denoiser(SCHEDULE)], jnp.array([3.0]), SCHEDULE, prior_std=std
        )
        samples, _ = repeat(kernel, SCHEDULE, 500, 2, 200)
        lowest[std] = float(samples.ess.min()) / 500
    assert lowest[0.7] > 0.9
    assert lowest[100.0] < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["langevin", slow("metropolis"), slow("hamiltonian")])
def test_moves_hold_the_product(kind: str) -> None:
    """Moves that leave the noisy product as it is keep moments and evidence where they were."""
    exponents, laws = jnp.array([1.0, 0.6]), [oracle(law) for law in (ONE, TWO)]
    denoisers = [law.denoiser(SCHEDULE) for law in laws]

    def log_density(x: jax.Array, t: jax.Array) -> jax.Array:
        return sum(
            a * law.diffuse(SCHEDULE, t).log_prob(x) for a, law in zip(exponents, laws, strict=True)
        )

    move = {
        "langevin": lambda: posterior.langevin(denoisers, exponents, SCHEDULE, 0.2),
        "metropolis": lambda: posterior.metropolis(log_density, SCHEDULE, 0.3),
        "hamiltonian": lambda: posterior.hamiltonian(log_density, SCHEDULE, 0.4, num_leapfrog=2),
    }[kind]()
    mean, covariance, log_z = product((1.0, 0.6), ONE, TWO)
    kernel = posterior.composed(denoisers, exponents, SCHEDULE, move=move)
    found = summary(*repeat(kernel, SCHEDULE, 600, 6, 60))
    np.testing.assert_allclose(found[0], mean, atol=0.05)
    np.testing.assert_allclose(found[1], covariance, atol=0.05)
    assert abs(found[2].mean() - log_z) < 0.1


def test_mixtures_are_exact_at_any_number_of_steps() -> None:
    """Five steps: the draws are those of the two chains, each as often as it should be, and the memory tells which."""
    laws, shares = [oracle(law) for law in (ONE, TWO)], np.array([0.3, 0.7])
    kernel = posterior.mixed(
        [law.denoiser(SCHEDULE) for law in laws], jnp.log(jnp.asarray(shares)), SCHEDULE
    )
    ts = jd.grids.uniform(5)
    x = jd.prior_sample(jax.random.key(0), SCHEDULE, (20_000, 2))
    drawn = np.asarray(jd.sample(jax.random.key(1), kernel, x, ts).x, np.float64)
    chains = [jd.oracles.affine_chain(law, SCHEDULE, ts) for law in laws]
    exact = sum(w * np.asarray(chain.means[0]) for w, chain in zip(shares, chains, strict=True))
    assert np.abs(z_scores(drawn, exact)).max() < 4
    second = sum(
        w * (np.asarray(chain.covariances[0]) + np.outer(chain.means[0], chain.means[0]))
        for w, chain in zip(shares, chains, strict=True)
    )
    assert np.abs(z_scores(drawn[:, :, None] * drawn[:, None, :], second)).max() < 4


D = oracle(ONE).denoiser(SCHEDULE)
BAD = {
    "exponents": (lambda: posterior.composed([D, D], jnp.ones(3), SCHEDULE), ValueError, r"exponents: expected one a denoiser, shape \(2,\), got \(3,\)"),
    "nothing is left": (lambda: posterior.composed([D, D], jnp.array([1.0, -1.0]), SCHEDULE), ValueError, "exponents: expected a positive sum"),
    "no models": (lambda: posterior.composed([], jnp.ones(0), SCHEDULE), ValueError, "denoisers: expected a list of at least one"),
    "no function": (lambda: posterior.composed([D, 3], jnp.ones(2), SCHEDULE), TypeError, r"denoisers\[1\]: expected a function, got int"),
    "weights": (lambda: posterior.mixed([D], jnp.zeros(2), SCHEDULE), ValueError, "log_weights: expected one a denoiser"),
    "snr": (lambda: posterior.langevin([D], jnp.ones(1), SCHEDULE, 0.0), ValueError, "snr: expected a positive ratio"),
    "moves": (lambda: posterior.metropolis(lambda x, t: x, SCHEDULE, num_moves=0), ValueError, "num_moves: expected a positive int"),
}  # fmt: skip
test_bad_input = rejects(BAD)
