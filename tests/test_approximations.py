"""Posterior methods of the field: where each is exact, how each is biased, and a proposal that weights correct."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.posterior import STD, A, Y
from helpers import SCHEDULES, asymmetric_mixture, correlated_gaussian, rejects, slow, z_scores
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import guidance, kernels, observations, posterior, resampling
from jaxdiff.posterior._midpoint import bridge_gain

SCHEDULE = jd.schedules.cosine()
# Without signal at t = 1: there the prior is the posterior, and a method that is exact has no start to forget.
NO_SIGNAL = jd.schedules.cosine(log_snr_min=-np.inf)
MATRIX, PRIOR_STD = jnp.array(A), 0.7
NOTHING = observations.mask(jnp.zeros(2), jnp.zeros(2), 1.0)


def seen(std: float = STD) -> observations.Observation:
    return observations.linear(MATRIX, jnp.array(Y), std)


def isotropic() -> jd.oracles.GaussianMixture:
    return jd.oracles.gaussian(jnp.array([0.5, -0.8]), PRIOR_STD**2 * jnp.eye(2))


def given_y(data: jd.oracles.GaussianMixture) -> jd.oracles.GaussianMixture:
    return data.posterior(MATRIX, jnp.array(Y), STD**2 * jnp.eye(1))


def states(num: int = 5) -> jax.Array:
    return jax.random.normal(jax.random.key(3), (num, 2))


def drawn(kernel: jd.Kernel, schedule: jd.Schedule, num: int, ts: jax.Array) -> np.ndarray:
    x = jd.prior_sample(jax.random.key(0), schedule, (num, 2))
    return np.asarray(jd.sample(jax.random.key(1), kernel, x, ts).x)


def moments(x: np.ndarray) -> np.ndarray:
    """Each row's entries and their products."""
    return np.concatenate([x, (x[:, :, None] * x[:, None, :]).reshape(-1, 4)[:, [0, 1, 3]]], axis=1)


def moment_errors(x: np.ndarray, exact: jd.oracles.GaussianMixture) -> np.ndarray:
    """z-scores of first and second moments against a normal law."""
    mean, covariance = np.asarray(exact.means[0]), np.asarray(exact.covariances[0])
    second = (covariance + np.outer(mean, mean)).ravel()[[0, 1, 3]]
    return np.abs(z_scores(moments(x), np.concatenate([mean, second])))


# --- the authors' step of diffusion posterior sampling ---------------------------------------------------------------


def test_a_dps_step_is_algorithm_1(x64: None) -> None:
    """The ancestral draw, and zeta grad |y - A D|^2 / |y - A D| taken from it; a row that is seen is left alone."""
    denoiser, x, t, s = asymmetric_mixture().denoiser(SCHEDULE), states(), 0.6, 0.5
    observation = dataclasses.replace(seen(), y=MATRIX @ denoiser(x[:1], t)[0])
    key, zeta = jax.random.key(4), jnp.array([0.2, 0.3, 0.4, 0.5, 0.6])
    plain, found = (
        jax.jit(kernel.step)(key, (), x, t, s)[1]
        for kernel in (
            kernels.ancestral(denoiser, SCHEDULE),
            guidance.dps_step(denoiser, SCHEDULE, observation, zeta),
        )
    )

    def squared(x: jax.Array) -> jax.Array:
        return jnp.sum((observation.y - MATRIX @ denoiser(x[None], t)[0]) ** 2)

    value, slope = jax.jit(jax.vmap(jax.value_and_grad(squared)))(x)
    expected = plain - zeta[:, None] * slope / jnp.sqrt(value)[:, None]
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-10)
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-12)


def test_a_dps_step_is_the_same_in_every_family(x64: None) -> None:
    """At the same log-SNRs x / sqrt(alpha^2 + sigma^2) is the same: EDM's, a flow's, and one that preserves variance."""
    scaled = []
    for name in ("cosine", "edm", "rectified_flow"):
        schedule = SCHEDULES[name]()
        ts = schedule.time(jnp.array([-3.0, -0.5, 2.0]))
        kernel = guidance.dps_step(isotropic().denoiser(schedule), schedule, seen(), 0.3)
        size = [np.hypot(*schedule.alpha_sigma(t)) for t in (ts[0], ts[-1])]
        scaled.append(jd.sample(jax.random.key(0), kernel, size[0] * states(), ts).x / size[1])
    np.testing.assert_allclose(scaled[1], scaled[0], rtol=1e-8)
    np.testing.assert_allclose(scaled[2], scaled[0], rtol=1e-8)


FAMILIES = ["edm", slow("cosine"), slow("rectified_flow")]


@pytest.mark.parametrize("family", FAMILIES)
def test_dps_steps_land_near_the_observation(family: str) -> None:
    """As near as a step is long, 2 zeta |A|^2 = .25. As a shift of the denoiser |y - A x| is too weak or flies off."""
    schedule = SCHEDULES[family]()
    ts, y = jd.grids.log_snr(schedule, 25), jnp.array(Y)

    def off(kernel: jd.Kernel) -> float:
        residual = drawn(kernel, schedule, 400, ts) @ np.asarray(MATRIX)[0] - Y[0]
        return float(np.sqrt(np.mean(residual**2)))

    def distance(x_0: jax.Array) -> jax.Array:
        return -jnp.linalg.norm(MATRIX @ x_0 - y)

    for data in (correlated_gaussian(), asymmetric_mixture()):
        denoiser = data.denoiser(schedule)
        assert off(guidance.dps_step(denoiser, schedule, seen(0.05), 0.1)) < 0.25
    shifted = [
        off(kernels.ancestral(guidance.dps(denoiser, schedule, distance, scale), schedule))
        for scale in (1.0, 10.0, 100.0)
    ]
    assert min(shifted) > 0.6
    assert shifted[2] > 2


# --- a sweep through an earlier time ---------------------------------------------------------------------------------

STANDARD = jd.oracles.gaussian(jnp.zeros(2), jnp.eye(2))


@pytest.mark.parametrize("num_sweeps", [1, slow(3)])
def test_a_sweep_without_an_observation_keeps_the_law(num_sweeps: int) -> None:
    """Data N(0, I), whose reverse steps of the large variance are exact: x_u, x_0 and x_s are a Gibbs sampler."""
    kernel = posterior.mgdm(
        STANDARD.denoiser(SCHEDULE), SCHEDULE, NOTHING, num_sweeps=num_sweeps,
        num_gradients=1, num_denoising=20, variance="large",  # the last of them returns a mean
    )  # fmt: skip
    x_0, eps = jax.random.normal(jax.random.key(0), (2, 20_000, 2))
    x_t, s = jd.q_sample(SCHEDULE, x_0, 0.7, eps), jnp.asarray(0.4)
    after, x_s, _ = jax.jit(kernel.step)(jax.random.key(1), x_0, x_t, jnp.asarray(0.7), s)
    alpha = float(SCHEDULE.alpha(0.4))
    products = np.stack([after**2, x_s**2, after * x_s], axis=1).reshape(-1, 6)
    assert np.abs(z_scores(products, np.array([1, 1, 1, 1, alpha, alpha]))).max() < 4.5
    assert np.abs(np.corrcoef(after[:, 0], x_0[:, 0])[0, 1]) < 0.98  # it has moved


def test_the_law_of_x_u_is_fitted_to_the_product() -> None:
    """Isotropic data: D is affine, so N(m, v) times the likelihood of D(x_u) is normal, with known moments."""
    x_u_mean, std, u = jnp.array([[0.3, -0.2]]), jnp.full((1, 2), 0.8), 0.4
    kernel = posterior.mgdm(
        isotropic().denoiser(SCHEDULE), SCHEDULE, observations.noisy(jnp.array([1.0, 0.4]), 0.5),
        num_gradients=3000, learning_rate=0.003,
    )  # fmt: skip
    algorithm: Any = kernel.step
    keys = jax.random.split(jax.random.key(0), 1)
    shift, log_scale = jax.jit(algorithm.fitted)(keys, x_u_mean, std, u)
    at, by = (isotropic().denoiser(SCHEDULE)(x, jnp.asarray(u)) for x in (x_u_mean, x_u_mean + 1))
    gain = by - at  # D(x) = at + gain (x - x_u_mean)
    precision = 1 / std**2 + gain**2 / 0.5**2
    mean = x_u_mean + gain * (jnp.array([[1.0, 0.4]]) - at) / 0.5**2 / precision
    np.testing.assert_allclose(x_u_mean + std * shift, mean, atol=0.05)  # noise of the last steps
    np.testing.assert_allclose(std * jnp.exp(log_scale), precision**-0.5, rtol=0.03)


@pytest.mark.slow
def test_mixture_guided_draws_are_near_the_observation() -> None:
    kernel = posterior.mgdm(isotropic().denoiser(SCHEDULE), SCHEDULE, seen(0.1), num_gradients=10)
    residual = drawn(kernel, SCHEDULE, 200, jd.grids.uniform(20)) @ np.asarray(MATRIX).T - Y
    away = np.asarray(isotropic().sample(jax.random.key(0), (200,))) @ np.asarray(MATRIX).T - Y
    assert np.abs(residual).mean() < 0.5 * np.abs(away).mean()


# --- clean data near the state ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [slow(1), 6])
def test_daps_is_exact_on_isotropic_data(num_steps: int) -> None:
    """One denoising step and r_t of the data: the posterior at any number of steps (Monte Carlo: 4.5 errors)."""
    kernel = posterior.daps(
        isotropic().denoiser(NO_SIGNAL), NO_SIGNAL, seen(), prior_std=PRIOR_STD, num_denoising=1
    )
    x = drawn(kernel, NO_SIGNAL, 20_000, jd.grids.uniform(num_steps))
    assert moment_errors(x, given_y(isotropic())).max() < 4.5
    wrong = drawn(kernel.replace(prior_std=1.0), NO_SIGNAL, 20_000, jd.grids.uniform(num_steps))
    assert moment_errors(wrong, given_y(isotropic())).max() > 6


def test_daps_counts_the_noise_of_the_ode_twice() -> None:
    """Nothing is seen: each step adds r_t^2 to the variance of the ODE's end, so that samples are too wide."""
    data = isotropic()
    denoiser, ts = data.denoiser(NO_SIGNAL), jd.grids.uniform(8)
    kernel = posterior.daps(denoiser, NO_SIGNAL, NOTHING, prior_std=PRIOR_STD, num_denoising=10)
    x = drawn(kernel, NO_SIGNAL, 20_000, ts)
    solver, variance = kernels.ddim(denoiser, NO_SIGNAL), 1.0
    for t, s in itertools.pairwise(ts):
        way = t * jnp.linspace(1, 0, 11)
        ends = jd.sampling.run(None, solver, jnp.array([[1.0, 1.0], [0.0, 0.0]]), way).x
        spread = guidance.isotropic_spread(NO_SIGNAL, t, t, PRIOR_STD)
        variance = float((ends[0] - ends[1])[0]) ** 2 * variance + float(spread)
        alpha, sigma = NO_SIGNAL.alpha_sigma(s)
        variance = float(alpha**2 * variance + sigma**2) if s > 0 else variance
    assert variance > 1.3 * PRIOR_STD**2
    squares = (x - np.asarray(data.means)) ** 2
    assert np.abs(z_scores(squares, np.full(2, variance))).max() < 4.5


def test_daps_by_langevin_moves_is_daps() -> None:
    """An observation that is given as a plain function: the same law of x_0, after enough moves."""
    function = Partial(lambda seen, x_0: seen(x_0), seen())
    kernel = posterior.daps(
        isotropic().denoiser(NO_SIGNAL),
        NO_SIGNAL,
        function,
        prior_std=PRIOR_STD,
        num_denoising=1,
        num_moves=60,
        step_size=STD**2,
    )
    x = drawn(kernel, NO_SIGNAL, 5000, jd.grids.uniform(3))
    assert moment_errors(x, given_y(isotropic())).max() < 4.5


@pytest.mark.parametrize("family", ["edm", slow("cosine"), slow("rectified_flow")])
def test_diffpir_without_new_noise_is_ddim_of_the_posterior(family: str, x64: None) -> None:
    """On isotropic data, with their r_t: the run of the exact posterior's denoiser."""
    schedule = SCHEDULES[family]()
    exact = kernels.ddim(given_y(isotropic()).denoiser(schedule), schedule)
    kernel = posterior.diffpir(
        isotropic().denoiser(schedule), schedule, seen(), 0.0, prior_std=PRIOR_STD
    )
    x, ts = schedule.sigma(1.0) * states(), jd.grids.uniform(6)
    found, expected = (jd.sample(jax.random.key(0), k, x, ts).x for k in (kernel, exact))
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_diffpir_is_algorithm_1(x64: None) -> None:
    """rho_t = lambda noise^2 alpha^2 / sigma^2, the solution written out; old and new noise by zeta."""
    denoiser, x, t, s = isotropic().denoiser(SCHEDULE), states(), 0.6, 0.5
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (SCHEDULE.alpha_sigma(v) for v in (t, s))
    kernel = posterior.diffpir(denoiser, SCHEDULE, seen(), 0.4, weight=3.0, prior_std=jnp.inf)
    rho = 3 * STD**2 * (alpha_t / sigma_t) ** 2
    left = MATRIX.T @ MATRIX + rho * jnp.eye(2)
    x_0 = jnp.linalg.solve(left, (MATRIX.T @ jnp.array([Y]) + rho * denoiser(x, t).T)).T
    old, key = (x - alpha_t * x_0) / sigma_t, jax.random.key(5)
    p = jd.p_mean_variance(denoiser, SCHEDULE, x, t, s)
    plain, found = (
        jax.jit(k.step)(key, (), x, t, s)[1]
        for k in (kernels.ancestral(denoiser, SCHEDULE), kernel)
    )
    new = (plain - p.mean) / jnp.sqrt(p.variance)
    expected = alpha_s * x_0 + sigma_s * (jnp.sqrt(0.6) * old + jnp.sqrt(0.4) * new)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_new_noise_narrows_diffpir() -> None:
    """With zeta = 1 the mean of x_0 stands for a draw: less than half of the posterior's variance is left."""
    kernel = posterior.diffpir(
        isotropic().denoiser(NO_SIGNAL), NO_SIGNAL, seen(), 1.0, prior_std=PRIOR_STD
    )
    x = drawn(kernel, NO_SIGNAL, 2000, jd.grids.uniform(20))
    assert np.trace(np.cov(x.T)) < 0.5 * float(jnp.trace(given_y(isotropic()).covariances[0]))


# --- midpoint guidance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["cosine", "edm", "rectified_flow"])
def test_the_bridge_is_bayes(family: str, x64: None) -> None:
    """E[x_s | x_l, x_t] of the forward chain x_l -> x_s -> x_t, conditioned by hand."""
    schedule, x = SCHEDULES[family](), jnp.ones((1, 1))
    low, s, t = 0.2, 0.3, 0.7
    nothing, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
    up, noise_s = (
        jd.forward.q_step(schedule, a, low, s, b)[0, 0] for a, b in ((one, nothing), (nothing, one))
    )
    on, noise_t = (
        jd.forward.q_step(schedule, a, s, t, b)[0, 0] for a, b in ((one, nothing), (nothing, one))
    )
    gain = 1 / (1 + (on * noise_s / noise_t) ** 2) * up  # precision of the way from l, over both
    levels = [jd.forward.level(schedule, v, x) for v in (t, s, low)]
    np.testing.assert_allclose(bridge_gain(*levels), gain, rtol=1e-9)
    np.testing.assert_allclose(bridge_gain(levels[0], levels[1], levels[1]), 1, rtol=1e-12)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("family", ["cosine", slow("edm"), slow("rectified_flow")])
def test_the_midpoints_mean_is_that_of_its_normal_law(
    family: str, fraction: float, x64: None
) -> None:
    """Bayes' rule for x_l ~ N(m_l, v_l) and the exact p(y | x_l), brought to s: where the steps have converged."""
    schedule, t, s = SCHEDULES[family](), 0.6, 0.5
    low, denoiser, x = fraction * s, isotropic().denoiser(schedule), states(1) * schedule.sigma(0.6)
    proposal = posterior.midpoint(
        denoiser, schedule, seen(), fraction=fraction, num_gradients=80, prior_std=PRIOR_STD
    )
    q = jax.jit(proposal)(x, t, s)
    prior = jd.p_mean_variance(denoiser, schedule, x, t, low)
    offset, one = denoiser(jnp.zeros((1, 2)), low)[0], denoiser(jnp.ones((1, 2)), low)[0]
    slope, spread = one - offset, guidance.isotropic_spread(schedule, x, low, PRIOR_STD)
    noise = (STD**2 + spread * jnp.sum(MATRIX**2)) * jnp.eye(1)
    law = jd.oracles.gaussian(prior.mean[0], jnp.diag(prior.variance[0]))
    moved = law.posterior(MATRIX * slope[None], jnp.array(Y) - MATRIX @ offset, noise).means[0]
    p = jd.p_mean_variance(denoiser, schedule, x, t, s)
    gain = bridge_gain(*(jd.forward.level(schedule, v, x) for v in (t, s, low)))
    np.testing.assert_allclose(q.mean[0], p.mean[0] + gain * (moved - prior.mean[0]), rtol=1e-7)
    np.testing.assert_allclose(q.variance, p.variance, rtol=1e-12)


@pytest.mark.parametrize("family", ["cosine", slow("edm"), slow("rectified_flow")])
def test_a_small_step_by_a_midpoint_is_exact(family: str, x64: None) -> None:
    """fraction = 1: the shift is that of E[x_s | x_t, y], with an error in proportion to the step."""
    schedule, t = SCHEDULES[family](), 0.6
    data, x = isotropic(), states() * schedule.sigma(0.6)
    proposal = posterior.midpoint(
        data.denoiser(schedule),
        schedule,
        seen(),
        fraction=1.0,
        num_gradients=40,
        prior_std=PRIOR_STD,
    )
    errors = []
    for step in (0.01, 0.001):
        shift, exact = (
            v.mean - jd.p_mean_variance(data.denoiser(schedule), schedule, x, t, t - step).mean
            for v in (
                proposal(x, t, t - step),
                jd.p_mean_variance(given_y(data).denoiser(schedule), schedule, x, t, t - step),
            )
        )
        errors.append(float(jnp.max(jnp.abs(shift - exact)) / jnp.max(jnp.abs(exact))))
    assert errors[0] < 0.15
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.1)


def test_a_midpoint_that_tells_nothing_is_the_models_step(x64: None) -> None:
    """A constant likelihood; and one whose gradient is not finite."""
    denoiser, x = asymmetric_mixture().denoiser(SCHEDULE), states()
    plain = jd.p_mean_variance(denoiser, SCHEDULE, x, 0.6, 0.5, variance=0.3)
    for log_r in (lambda x_0: 0 * x_0[0], lambda x_0: jnp.nan * x_0[0]):
        q = posterior.midpoint(denoiser, SCHEDULE, log_r, variance=0.3)(x, 0.6, 0.5)
        np.testing.assert_allclose(q.mean, plain.mean, rtol=1e-12)
        np.testing.assert_allclose(q.variance, plain.variance, rtol=1e-12)


def evidences(kernel: jd.Kernel, num: int, times: int, num_steps: int) -> np.ndarray:
    """log Z of independent runs, less the exact one."""

    def one(key: jax.Array) -> jax.Array:
        key_prior, key_run = jax.random.split(key)
        x, ts = jd.prior_sample(key_prior, SCHEDULE, (num, 2)), jd.grids.uniform(num_steps)
        return jd.sample(key_run, kernel, x, ts, resample=resampling.systematic()).log_evidence

    log_z = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), times))
    exact = asymmetric_mixture().log_evidence(MATRIX, jnp.array(Y), STD**2 * jnp.eye(1))
    return np.asarray(log_z, np.float64) - float(exact)


def by_midpoint(**options: Any) -> jd.Kernel:
    denoiser = asymmetric_mixture().denoiser(SCHEDULE)
    proposal = posterior.midpoint(denoiser, SCHEDULE, seen(), **options)
    return posterior.twisted(denoiser, SCHEDULE, seen(), proposal=proposal)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [slow(0.5), 0.1, slow(1.0)])
def test_evidence_by_midpoints_is_unbiased_at_sixteen_particles(fraction: float) -> None:
    """600 runs of 60 steps, against the mixture's exact evidence."""
    z = np.exp(evidences(by_midpoint(fraction=fraction), 16, 600, 60))
    assert np.abs(z_scores(z, np.array(1.0))) < 4
    assert z.std() / np.sqrt(600) < 0.05  # what it can see


@pytest.mark.slow
def test_only_the_weights_make_midpoints_exact() -> None:
    """Evidence of a proposal that moves twice as far is the same: unbiased whatever the proposal is."""
    far = by_midpoint()
    proposal = far.step.proposal

    def twice(x_t: jax.Array, t: Any, s: Any) -> jd.Normal:
        q, p = proposal(x_t, t, s), jd.p_mean_variance(far.step.denoiser, SCHEDULE, x_t, t, s)
        return jd.Normal(2 * q.mean - p.mean, q.variance)

    z = np.exp(evidences(far.replace(proposal=Partial(twice)), 16, 600, 60))
    assert np.abs(z_scores(z, np.array(1.0))) < 4


D = jd.oracles.gaussian(jnp.zeros(2), jnp.ones(2)).denoiser(SCHEDULE)
test_bad_input = rejects({
    "a function for dps": (lambda: guidance.dps_step(D, SCHEDULE, lambda x: 0.0), TypeError, "observation: expected an Observation such as"),
    "a function for diffpir": (lambda: posterior.diffpir(D, SCHEDULE, lambda x: 0.0), TypeError, "observation: expected an Observation such as"),
    "a number for daps": (lambda: posterior.daps(D, SCHEDULE, 3.0), TypeError, "log_likelihood: expected a function, got float"),
    "denoising": (lambda: posterior.daps(D, SCHEDULE, seen(), num_denoising=0), ValueError, "num_denoising: expected a positive int"),
    "moves": (lambda: posterior.daps(D, SCHEDULE, seen(), num_moves=0), ValueError, "num_moves: expected a positive int"),
    "iterations": (lambda: posterior.diffpir(D, SCHEDULE, seen(), num_iterations=0), ValueError, "num_iterations: expected a positive int"),
    "gradients": (lambda: posterior.midpoint(D, SCHEDULE, seen(), num_gradients=0), ValueError, "num_gradients: expected a positive int"),
    "a number for midpoint": (lambda: posterior.midpoint(D, SCHEDULE, 3.0), TypeError, "log_likelihood: expected a function, got float"),
})  # fmt: skip
