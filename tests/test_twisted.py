"""The twisted sampler with a spread, and likelihoods that are smoothed: exact weights, evidence, limits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.posterior import observation
from helpers import asymmetric_mixture, correlated_gaussian, slow, spread_of_gaussian, z_scores
from jax.scipy.special import gammaln, logsumexp
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import kernels, observations, posterior, resampling
from jaxdiff.posterior._smoothing import smoothed, standard_nodes

SCHEDULE = jd.schedules.cosine()
# Without signal at t = 1: there the start says nothing of y, and the prior is the posterior.
SILENT = jd.schedules.cosine(log_snr_min=-np.inf)


def run(
    kernel: jd.Kernel, shape: tuple[int, ...], ts: jax.Array, schedule: jd.Schedule = SCHEDULE,
    *, key: jax.Array, threshold: float = 0.5,
) -> jd.Samples:  # fmt: skip
    key_prior, key_run = jax.random.split(key)
    x = jd.prior_sample(key_prior, schedule, shape)
    return jd.sample(key_run, kernel, x, ts, resample=resampling.systematic(threshold))


# --- Doob's transform ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_independent_normal_data_leave_nothing_to_the_weights(x64: None) -> None:
    """Their spread and a mask: q(x_s | x_t) is p(x_s | x_t, y) at any step, r_t is p(y | x_t). Rounding alone.

    Two entries have axes of their own, the other two are what lies beside. The last step takes the mean of x_0, which
    changes the likelihood by the variance that is left: 1e-9 of the noise.
    """
    data = jd.oracles.gaussian(jnp.array([0.5, -1.0, 0.2, 0.4]), jnp.array([0.6, 1.5, 0.3, 0.3]))
    spread = posterior.Spread(
        jnp.eye(4)[:2], jnp.array([0.6, 1.5, 0.3]), jnp.array([-8.0, 8.0]), jnp.ones((2, 3))
    )
    y, std = jnp.array([1.0, 0.3, -0.7, 9.0]), jnp.array([0.4, 0.2, 0.3, 1.0])
    seen = observations.mask(y, jnp.array([1, 1, 1, 0]), std)
    ts = jnp.append(jnp.linspace(1, 1e-5, 8), 0)
    kernel = posterior.twisted(data.denoiser(SILENT), SILENT, seen, spread=spread)
    samples = run(kernel, (20, 4), ts, SILENT, key=jax.random.key(0), threshold=0.0)
    exact = data.log_evidence(jnp.eye(4)[:3], y[:3], jnp.diag(std[:3] ** 2))
    assert abs(float(samples.log_evidence - exact)) < 1e-7
    assert np.all(samples.ess > 20 - 1e-6)


@pytest.mark.slow
def test_correlated_data_are_nearly_so() -> None:
    """Steps have independent entries, data have not: that matters less in each step as the grid gets finer."""
    data = correlated_gaussian()
    seen = observations.mask(jnp.array([1.2, 0.0]), jnp.array([1, 0]), 0.3)
    kernel = posterior.twisted(data.denoiser(SILENT), SILENT, seen, spread=spread_of_gaussian(data))
    exact = float(data.log_evidence(jnp.eye(2)[:1], seen.y[:1], 0.09 * jnp.eye(1)))
    size = []
    for num_steps in (50, 400):
        ts = jd.grids.uniform(num_steps)
        samples = run(kernel, (1000, 2), ts, SILENT, key=jax.random.key(0), threshold=0.0)
        size.append(float(samples.ess[-1]) / 1000)
        assert abs(float(samples.log_evidence) - exact) < 2 / num_steps + 0.05
    assert size[1] > 0.95
    assert size[1] > size[0]


# --- evidence ------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A model, its posterior's kernel, its own kernel, and the likelihood."""

    kernel: jd.Kernel
    model: jd.Kernel
    likelihood: Any
    size: int


def mixture_2d() -> jd.oracles.GaussianMixture:
    """25 narrow components of unequal weights on a lattice, as wide as one normal number."""
    places = np.stack(np.meshgrid(*2 * [np.arange(-2.0, 3.0)], indexing="ij"), -1).reshape(25, 2)
    weights = np.random.default_rng(0).uniform(0.1, 1, 25)
    weights = weights / weights.sum()
    width = np.sqrt((weights @ places**2).mean() + 1 / 64)
    return jd.oracles.GaussianMixture(
        jnp.log(jnp.asarray(weights)), jnp.asarray(places / width), jnp.full(25, 1 / (8 * width) ** 2)
    )  # fmt: skip


ROW, SEEN_AT, NOISE = np.array([[0.6, -0.8]]), np.array([0.9]), 0.2


def lattice() -> tuple[jd.oracles.GaussianMixture, observations.Observation]:
    return mixture_2d(), observations.linear(jnp.asarray(ROW), jnp.asarray(SEEN_AT), NOISE)


def tilted_three() -> tuple[jd.oracles.GaussianMixture, observations.Observation]:
    return asymmetric_mixture(), observation()


def measured(mixture: jd.oracles.GaussianMixture, denoiser: Any) -> posterior.Spread:
    key, size = jax.random.key(5), (1000,)
    found = jax.jit(
        lambda: posterior.spread_of(
            key, denoiser, SCHEDULE, mixture.sample(key, size), num_levels=7
        )
    )
    return found()


def case_of(kind: str, mixture: jd.oracles.GaussianMixture, seen: observations.Observation) -> Case:
    denoiser = mixture.denoiser(SCHEDULE)
    spread = measured(mixture, denoiser) if "spread" in kind else None
    likelihood = Partial(lambda seen, x: seen(x), seen) if "function" in kind else seen
    kernel = posterior.twisted(denoiser, SCHEDULE, likelihood, spread=spread)
    if spread is None:
        return Case(kernel, kernels.ancestral(denoiser, SCHEDULE), seen, 2)
    wide = posterior.widened(denoiser, SCHEDULE, spread)
    return Case(kernel, kernels.ancestral(wide, SCHEDULE, variance="optimal"), seen, 2)


@pytest.mark.parametrize("kind", [slow("function"), slow("function, spread"), slow("spread")])
def test_evidence_is_unbiased_at_sixteen_particles(kind: str) -> None:
    """1000 runs against the same chain's evidence from 100,000 free draws: within 4 standard errors of each other."""
    case, ts = case_of(kind, *tilted_three()), jd.grids.uniform(15)

    @jax.jit
    def both(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, 1000)
        few = jax.vmap(lambda key: run(case.kernel, (16, case.size), ts, key=key).log_evidence)
        free = jd.prior_sample(key, SCHEDULE, (100_000, case.size))
        free = jd.sample(jax.random.fold_in(key, 1), case.model, free, ts).x
        return few(keys), jax.vmap(case.likelihood)(free)

    log_z, log_r = both(jax.random.key(3))
    ratio, brute = (np.exp(np.asarray(v, np.float64) + 1) for v in (log_z, log_r))
    error = np.hypot(brute.std() / np.sqrt(len(brute)), ratio.std() / np.sqrt(len(ratio)))
    assert abs(ratio.mean() - brute.mean()) < 4 * error
    assert error < 0.05 * brute.mean()  # what it can see


@pytest.mark.parametrize(
    ("kind", "num_steps", "times"),
    [
        slow("function", 200, 4),
        slow("spread", 200, 4),
        slow("function, spread", 200, 4),
        slow("function", 800, 4),
        slow("spread", 800, 4),
    ],
)
def test_evidence_is_near_at_two_thousand_particles(kind: str, num_steps: int, times: int) -> None:
    """Within 0.1 nat of the mixture's own, the steps' bias included; a run's own error is about 0.05."""
    mixture, seen = lattice()
    exact = float(mixture.log_evidence(jnp.asarray(ROW), seen.y, NOISE**2 * jnp.eye(1)))
    assert abs(exact + 1.0) < 0.01
    kernel, ts = case_of(kind, mixture, seen).kernel, jd.grids.uniform(num_steps)
    if kind == "function, spread":
        # With 32 points some places between them are rarely visited, and then weigh much.
        kernel = kernel.replace(num_nodes=256)
    runs = jax.jit(
        lambda keys: jax.lax.map(lambda key: run(kernel, (2000, 2), ts, key=key).log_evidence, keys)
    )
    found = runs(jax.random.split(jax.random.key(1), times))
    assert abs(float(found.mean()) - exact) < 0.1


@pytest.mark.slow
def test_evidence_of_counts_is_that_of_the_chain() -> None:
    """Normal data and a Poisson likelihood, conditioned as its normal one: unbiased, against two integrals."""
    data = jd.oracles.gaussian(jnp.array([0.3, -0.4]), jnp.array([0.3, 0.15]))
    counts, peak = np.array([9.0, 2.0]), 10.0
    seen, ts = observations.poisson(jnp.asarray(counts), peak), jd.grids.uniform(15)
    kernel = posterior.twisted(
        data.denoiser(SCHEDULE), SCHEDULE, seen, spread=spread_of_gaussian(data)
    )
    runs = jax.jit(jax.vmap(lambda key: run(kernel, (16, 2), ts, key=key).log_evidence))
    ratio = np.asarray(runs(jax.random.split(jax.random.key(3), 2000)), np.float64)
    law = jd.oracles.affine_chain(data, SCHEDULE, ts, variance="optimal")
    mean, std = np.asarray(law.means[0]), np.sqrt(np.diag(law.covariances[0]))
    x = mean + std * np.linspace(-9, 9, 20_001)[:, None]
    rate = peak * np.maximum((x + 1) / 2, 1e-3)
    terms = np.exp(counts * np.log(rate) - rate - np.asarray(gammaln(counts + 1)))
    normal = np.exp(-0.5 * ((x - mean) / std) ** 2) / np.sqrt(2 * np.pi)
    exact = np.prod(np.sum(terms * normal, axis=0) * 18 / 20_000)
    assert np.abs(z_scores(np.exp(ratio) / exact, np.array(1.0))) < 4
    assert np.std(np.exp(ratio) / exact) < 0.6  # of one run of 16


def test_counts_are_nearly_normal(x64: None) -> None:
    """The likelihood of counts is largest where its normal one is, and nearly as curved: c to c + 1."""
    counts = jnp.array([400.0, 100.0, 4.0])
    seen = observations.poisson(counts, 500.0)
    slope, curvature = (
        jax.vmap(f)(seen.normal().y, counts)
        for f in (jax.grad(lambda x, c: observations.poisson(c[None], 500.0)(x[None])),
                  jax.grad(jax.grad(lambda x, c: observations.poisson(c[None], 500.0)(x[None]))))
    )  # fmt: skip
    np.testing.assert_allclose(slope, 0, atol=1e-9)
    np.testing.assert_allclose(-curvature * seen.normal().noise_std ** 2, (counts + 1) / counts)


# --- smoothing -----------------------------------------------------------------------------------------------------------


def test_nodes_are_fixed_pairs_of_mean_zero() -> None:
    for num, shape in ((32, (2,)), (7, (2, 2, 1)), (1, (3,)), (4, (30_000,))):
        nodes = standard_nodes(num, shape)
        assert nodes.shape == (num, *shape)
        assert nodes.dtype == np.float32
        np.testing.assert_allclose(nodes.sum(0), 0, atol=1e-5)  # the order of a sum
        np.testing.assert_array_equal(nodes[: num // 2], -nodes[num // 2 : 2 * (num // 2)])
        np.testing.assert_array_equal(nodes, standard_nodes(num, shape))
    many = standard_nodes(4096, (2,))
    np.testing.assert_allclose(many.T @ many / 4096, np.eye(2), atol=0.01)


def curved(x: jax.Array) -> jax.Array:
    return -jnp.sum((x - 0.4) ** 4) + jnp.sin(3 * x[0] * x[1])


def log_twist(x_0: jax.Array, t: float, log_likelihood: Any, **options: Any) -> jax.Array:
    """log r_t at denoised states."""
    denoiser = correlated_gaussian().denoiser(SCHEDULE)
    kernel: Any = posterior.twisted(denoiser, SCHEDULE, log_likelihood, **options)
    return kernel.step.log_twist(x_0, jnp.asarray(t, x_0.dtype))


def test_one_node_at_zero_is_the_likelihood_there(x64: None) -> None:
    x_0, nodes = jax.random.normal(jax.random.key(0), (5, 2)), jnp.zeros((1, 2))
    spread = spread_of_gaussian(correlated_gaussian())
    for options in ({"nodes": nodes, "spread": spread}, {"num_nodes": 1}):
        found = log_twist(x_0, 0.6, curved, **options)
        np.testing.assert_array_equal(found, jax.vmap(curved)(x_0))


def test_many_nodes_are_the_convolution(x64: None) -> None:
    """A linear observation as a plain function: N(y; A D, noise^2 + A V A^T), V isotropic or a spread."""
    data, t = correlated_gaussian(), 0.4
    x_0 = data.means + 0.3 * jax.random.normal(jax.random.key(0), (5, 2))
    seen = observations.linear(jnp.array([[1.0, 0.5]]), jnp.array([0.6]), 0.4)
    snr = jnp.exp(SCHEDULE.log_snr(t))
    V = jnp.linalg.inv(jnp.linalg.inv(data.covariances[0]) + snr * jnp.eye(2))
    spread = spread_of_gaussian(data)
    for options, covariance in (({}, jnp.eye(2) / (1 + snr)), ({"spread": spread}, V)):
        found = log_twist(x_0, t, Partial(lambda x: seen(x)), num_nodes=4096, **options)
        row = jnp.array([1.0, 0.5])
        total = 0.16 + row @ covariance @ row
        exact = -0.5 * ((0.6 - x_0 @ row) ** 2 / total + jnp.log(2 * jnp.pi * total))
        np.testing.assert_allclose(found, exact, atol=0.01)  # the points: 4096 of them


def test_terms_are_averaged_one_by_one(x64: None) -> None:
    """The sum over pixels of the log of each one's mean, with the diagonal of the spread."""
    data, t = correlated_gaussian(), 0.4
    counts = observations.poisson(jnp.array([6.0, 1.0]), 8.0)
    x_0, nodes = (
        jax.random.normal(jax.random.key(0), (5, 2)),
        jax.random.normal(jax.random.key(1), (3, 2)),
    )
    snr = float(jnp.exp(SCHEDULE.log_snr(t)))
    V = np.linalg.inv(np.linalg.inv(data.covariances[0]) + snr * np.eye(2))
    for x in np.asarray(x_0):
        values = np.asarray([counts.terms(jnp.asarray(x + np.sqrt(np.diag(V)) * z)) for z in nodes])
        exact = np.sum(np.log(np.mean(np.exp(values), axis=0)))
        shifts = jnp.asarray(np.sqrt(np.diag(V)) * np.asarray(nodes))
        np.testing.assert_allclose(smoothed(counts, jnp.asarray(x)[None], shifts)[0], exact)
    # A twist of its own keeps the counts from being conditioned as normal ones.
    kernel: Any = posterior.twisted(
        data.denoiser(SCHEDULE), SCHEDULE, Partial(jnp.sum), nodes=nodes, spread=spread_of_gaussian(data)
    )  # fmt: skip
    assert kernel.step.seen is None


def test_a_likelihood_of_nowhere_is_zero_where_it_is_smoothed() -> None:
    """-inf and NaN at some points count as 0, and -inf at all of them stays."""

    def half(x: jax.Array) -> jax.Array:
        return jnp.where(x[0] < 0, jnp.nan, 0.0)

    x_0, shifts = jnp.array([[0.5], [-3.0]]), jnp.array([[-1.0], [1.0]])
    found = smoothed(half, x_0, shifts)
    np.testing.assert_allclose(found, [np.log(0.5), -np.inf], rtol=1e-6)


def test_the_twist_is_one_function_of_the_state(x64: None) -> None:
    """The same points in every row, at every call and under another key: gradients and weights read one r_t."""
    x_0 = jnp.tile(jax.random.normal(jax.random.key(0), (1, 2)), (3, 1))
    first, again = (log_twist(x_0, 0.6, curved) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, first[0])
    shift = standard_nodes(32, (2,)) / np.sqrt(1 + np.exp(SCHEDULE.log_snr(0.6)))
    values = jax.vmap(curved)(jnp.asarray(np.asarray(x_0[0]) + shift))
    np.testing.assert_allclose(
        first[0], logsumexp(values) - np.log(32), rtol=1e-7
    )  # float32 points
