"""Posteriors: what every kernel keeps, exact evidence, exact posteriors, the 2015 paper's bias, and mutants."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.posterior import MASK, MASK_STD, POSTERIORS, SHOWN, STD, WEIGHTED, A, Y, names
from helpers import (
    SCHEDULES,
    asymmetric_mixture,
    correlated_gaussian,
    rejects,
    responsibilities,
    slow,
    z_scores,
)
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import guidance, kernels, observations, posterior, resampling, testing

SCHEDULE = jd.schedules.cosine()
every_kernel = pytest.mark.parametrize("name", names())


@every_kernel
def test_it_keeps_the_contract(name: str) -> None:
    """The one that a user's kernel is put through; moves and repeats add noise in any step."""
    kernel = POSTERIORS[name](asymmetric_mixture().denoiser(SCHEDULE), SCHEDULE, "float32")
    testing.check_kernel(kernel, (2,), continuous=False, differentiable=False)


def sampler(kernel: jd.Kernel) -> Any:
    """The algorithm whose methods a kernel is made of."""
    return kernel.step


@pytest.mark.parametrize(
    "name", sorted(set(POSTERIORS) - {"dps", "pigdm", "tmpd", "mmps", "repaint"})
)
def test_fields_have_names_and_are_replaced(name: str) -> None:
    """`dataclasses.replace` gives the algorithm with another field, and checks it; its repr is one line."""
    kernel = POSTERIORS[name](asymmetric_mixture().denoiser(SCHEDULE), SCHEDULE, "float32")
    algorithm, other = sampler(kernel), jd.schedules.linear()
    assert algorithm.schedule is SCHEDULE
    changed = dataclasses.replace(algorithm, schedule=other)
    assert changed.schedule is other
    assert type(changed) is type(algorithm)
    assert jax.tree.structure(dataclasses.replace(algorithm)) == jax.tree.structure(algorithm)
    assert repr(algorithm).startswith(f"{type(algorithm).__name__}(")
    assert "\n" not in repr(algorithm)


def test_what_is_replaced_is_checked() -> None:
    d = asymmetric_mixture().denoiser(SCHEDULE)
    observed = observations.noisy(jnp.zeros(2), 0.3)
    for kernel, field, value, message in (
        (posterior.tilted(d, SCHEDULE, observed), "power", lambda t: t, "power: expected 1 at t = 0"),
        (posterior.twisted(d, SCHEDULE, observed), "prior_std", -1.0, "prior_std: expected a positive"),
        (posterior.split_gibbs(d, SCHEDULE, observed), "num_denoising", 0, "num_denoising: expected"),
        (posterior.composed([d], jnp.ones(1), SCHEDULE), "exponents", jnp.ones(2), "exponents: expected one"),
        (posterior.mixed([d], jnp.ones(1), SCHEDULE), "log_weights", jnp.ones(2), "log_weights: expected one"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(sampler(kernel), **{field: value})


# A tilt looks at the state as if it were the data, which says nothing where that is 80 times as wide.
QUICK = ("twisted", "composed")
RUNS = [(name, "zero_terminal") for name in QUICK] + [
    slow(name, family)
    for name in POSTERIORS
    for family in ("edm", "rectified_flow", "zero_terminal")
    if (name, family) != ("tilted", "edm") and (name not in QUICK or family != "zero_terminal")
]


@pytest.mark.parametrize(("name", "family"), RUNS)
def test_a_run_is_finite(name: str, family: str) -> None:
    """Over infinite log-SNRs at either end, in every family, resampled."""
    zero = jd.schedules.cosine(log_snr_min=-np.inf)
    schedule = zero if family == "zero_terminal" else SCHEDULES[family]()
    kernel = POSTERIORS[name](asymmetric_mixture().denoiser(schedule), schedule, "float32")
    x = jd.prior_sample(jax.random.key(0), schedule, (40, 2))
    ts = jd.grids.log_snr(schedule, 12)
    samples = jd.sample(jax.random.key(1), kernel, x, ts, resample=resampling.systematic(0.5))
    assert np.all(np.isfinite(samples.x))
    assert np.abs(samples.x).max() < (
        1000 if name == "dps" else 20
    )  # dps overshoots where it knows little
    assert np.isfinite(samples.log_evidence)
    assert np.all(np.isfinite(samples.ess))


def test_a_new_observation_does_not_compile_again() -> None:
    count = 0

    def denoiser(x: jax.Array, t: jax.Array) -> jax.Array:
        nonlocal count
        count += 1
        return 0.9 * x

    x, network = jnp.ones((3, 2)), Partial(denoiser)

    def run(y: float, std: float) -> None:
        seen = observations.mask(jnp.array([y, 0.0]), jnp.array([1.0, 0.0]), std)
        jd.sample(
            jax.random.key(0), posterior.twisted(network, SCHEDULE, seen), x, jd.grids.uniform(4)
        )

    run(0.1, 0.1)
    traced = count
    run(0.2, 0.3)
    assert count == traced


@pytest.mark.slow
def test_problems_are_vmapped_and_devices_pmapped() -> None:
    """Every problem of a vmap, and of a pmap, is the problem by itself."""
    mixture = asymmetric_mixture()
    denoiser, x = mixture.denoiser(SCHEDULE), jd.prior_sample(jax.random.key(0), SCHEDULE, (20, 2))
    ts = jd.grids.uniform(6)

    def solve(y: jax.Array) -> jd.Samples:
        kernel = posterior.mcgdiff(denoiser, SCHEDULE, jnp.array(A), y, STD)
        return jd.sample(jax.random.key(1), kernel, x, ts, resample=resampling.systematic())

    ys = jnp.array([[0.3], [-1.0], [1.5], [0.0]])
    alone = [solve(y) for y in ys]
    evidences = np.array([samples.log_evidence for samples in alone])
    for mapped in (jax.vmap(solve)(ys), jax.pmap(solve)(ys)):
        np.testing.assert_allclose(
            mapped.log_evidence, evidences, rtol=1e-4
        )  # float32, another order of sums


# --- Doob's transform: the exact look ahead leaves nothing to the weights -----------------------------------------------


class Doob:
    """Independent normal data seen with noise, through a finite chain: everything about it in closed form.

    The chain is affine, x_s = F x_t + b + sqrt(v) eps, so that p(y | x_t) = N(y; a x_t + o, noise^2 + w) by recursion.
    """

    def __init__(self, num_steps: int = 20) -> None:
        # Without signal at t = 1: there the start says nothing of y, and the prior is the posterior.
        self.schedule, self.ts = (
            jd.schedules.cosine(log_snr_min=-np.inf),
            jd.grids.uniform(num_steps),
        )
        self.mean, variance = jnp.array([0.5, -1.0, 0.2]), jnp.array([0.6, 0.1, 1.5])
        self.denoiser = jd.oracles.gaussian(self.mean, variance).denoiser(self.schedule)
        self.y, self.noise_std, self.num_steps = jnp.array([1.0, -0.7, 0.4]), 0.4, num_steps
        slope, offset, variance = jnp.ones(3), jnp.zeros(3), jnp.zeros(3)
        rows = [(slope, offset, variance)]
        for t, s in zip(self.ts[:-1][::-1], self.ts[1:][::-1], strict=True):
            at, v = jd.p_mean_variance(
                self.denoiser, self.schedule, jnp.stack([jnp.zeros(3), jnp.ones(3)]), t, s
            )
            gain, shift = at[1] - at[0], at[0]
            offset, variance = offset + slope * shift, variance + slope**2 * v[0]
            slope = slope * gain
            rows.append((slope, offset, variance))
        self.table = posterior.Belief(
            *(jnp.stack(column) for column in zip(*rows[::-1], strict=True))
        )
        total = self.noise_std**2 + self.table.variance[0]  # the slope is 0 there
        residual = self.y - self.table.offset[0]
        self.log_evidence = float(-0.5 * jnp.sum(residual**2 / total + jnp.log(2 * jnp.pi * total)))

    def belief(self, t: Any) -> posterior.Belief:
        index = jnp.argmin(jnp.abs(self.ts - t))
        return posterior.Belief(*(column[index] for column in self.table))

    def proposal(self, x_t: jax.Array, t: Any, s: Any) -> jd.Normal:
        """p(x_s | x_t, y): conjugate."""
        (mean, v), seen = (
            jd.p_mean_variance(self.denoiser, self.schedule, x_t, t, s),
            self.belief(s),
        )
        added = self.noise_std**2 + seen.variance[None]
        slope = seen.slope[None]
        total = added + slope**2 * v
        moved = mean + v * slope / total * ((self.y - seen.offset)[None] - slope * mean)
        return jd.Normal(moved, v * added / total)

    def twist(self, x_0: jax.Array, spread: Any) -> jax.Array:
        """The exact log p(y | x_t), as a function of the denoised state and of the spread, which tells the time."""
        spreads = guidance.isotropic_spread(self.schedule, self.ts, self.ts, 1.0)
        n = jnp.argmin(jnp.abs(spreads - spread))
        probes = jnp.stack([jnp.zeros(3), jnp.ones(3)])
        at = jax.vmap(lambda t: self.denoiser(probes, t))(self.ts)[n]
        gain = at[1] - at[0]
        x_t = jnp.where(gain > 1e-12, (x_0 - at[0]) / jnp.where(gain > 1e-12, gain, 1), 0)
        seen = jax.tree.map(lambda column: column[n], self.table)
        total = self.noise_std**2 + seen.variance
        return jnp.sum(
            -0.5
            * ((self.y - seen.offset - seen.slope * x_t) ** 2 / total + jnp.log(2 * jnp.pi * total))
        )

    def twisted(self) -> jd.Kernel:
        seen = observations.noisy(self.y, self.noise_std)
        return posterior.twisted(
            self.denoiser, self.schedule, seen, twist=self.twist, proposal=self.proposal
        )

    def conjugate(self) -> jd.Kernel:
        return posterior.denoise(
            self.denoiser, self.schedule, self.y, self.noise_std, belief=self.belief
        )

    def run(self, kernel: jd.Kernel) -> jd.Samples:
        x = jd.prior_sample(jax.random.key(0), self.schedule, (50, 3))
        return jd.sample(jax.random.key(1), kernel, x, self.ts)

    def is_exact(self, samples: jd.Samples) -> bool:
        """Evidence to 1e-10 and equal weights at every step: rounding, and nothing else."""
        ess = np.asarray(samples.ess)
        return bool(
            abs(float(samples.log_evidence) - self.log_evidence) < 1e-10
            and np.all(np.abs(ess - 50) < 1e-6)
        )


@pytest.mark.parametrize("method", ["twisted", "conjugate"])
def test_a_perfect_twist_leaves_nothing_to_the_weights(method: str, x64: None) -> None:
    doob = Doob()
    assert doob.is_exact(doob.run(getattr(doob, method)()))


def one_step_late(kernel: jd.Kernel) -> jd.Kernel:
    """Every increment is that of another row."""

    def step(key: Any, carry: Any, x: Any, t: Any, s: Any) -> tuple:
        carry, x, increment = kernel.step(key, carry, x, t, s)
        return jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), carry), x, increment

    return jd.Kernel(kernel.init, step)


@pytest.mark.slow
def test_the_perfect_twist_rejects_mutants(x64: None) -> None:
    doob = Doob()
    assert not doob.is_exact(doob.run(one_step_late(doob.twisted())))
    assert not doob.is_exact(doob.run(one_step_late(doob.conjugate())))
    wrong = Doob()
    wrong.table = wrong.table._replace(
        variance=1.01 * wrong.table.variance
    )  # a belief that is a little too wide
    assert not doob.is_exact(doob.run(wrong.conjugate()))
    wrong.table = doob.table._replace(
        offset=jnp.roll(doob.table.offset, 1, axis=0)
    )  # that of the next time
    assert not doob.is_exact(doob.run(wrong.twisted()))
    seen = observations.noisy(doob.y, doob.noise_std)
    bare = lambda x_0: seen(x_0) + 1.5 * jnp.log(2 * jnp.pi * 0.16)  # without its normaliser  # noqa: E731
    kernel = posterior.twisted(
        doob.denoiser, doob.schedule, bare, twist=doob.twist, proposal=doob.proposal
    )
    assert not doob.is_exact(doob.run(kernel))


# --- evidence and moments against the mixture's exact posterior ----------------------------------------------------------


def scattered(size: int) -> jd.oracles.GaussianMixture:
    """Three unequal components in any number of dimensions, with diagonal covariances."""
    random = np.random.default_rng(5)
    means = random.normal(scale=1.0, size=(3, size))
    covariances = random.uniform(0.1, 0.4, (3, size))
    arrays = np.log([0.5, 0.3, 0.2]), means, covariances
    return jd.oracles.GaussianMixture(*(jnp.asarray(array) for array in arrays))


def observed(
    mixture: jd.oracles.GaussianMixture, rows: int = 1
) -> tuple[jax.Array, jax.Array, float]:
    """A linear map of unit gain, and an observation of a draw of the smallest component."""
    size = mixture.means.shape[1]
    random = np.random.default_rng(7)
    matrix = jnp.asarray(np.linalg.qr(random.normal(size=(size, rows)))[0].T)
    x_0 = mixture.means[2] + jnp.sqrt(mixture.covariances[2]) * random.normal(size=size)
    return matrix, matrix @ x_0 + 0.4 * random.normal(size=rows), 0.4


def spread_on(mixture: jd.oracles.GaussianMixture) -> posterior.Spread:
    """The spread of the exact model, measured on 1000 draws."""

    @jax.jit
    def measured(key: jax.Array) -> posterior.Spread:
        points, denoiser = mixture.sample(key, (1000,)), mixture.denoiser(SCHEDULE)
        return posterior.spread_of(key, denoiser, SCHEDULE, points, num_levels=7)

    return measured(jax.random.key(5))


def model_of(method: str, mixture: jd.oracles.GaussianMixture) -> jd.Kernel:
    """The finite chain whose evidence a method estimates."""
    denoiser = mixture.denoiser(SCHEDULE)
    if method != "twisted_spread":
        return kernels.ancestral(denoiser, SCHEDULE)
    wide = posterior.widened(denoiser, SCHEDULE, spread_on(mixture))
    return kernels.ancestral(wide, SCHEDULE, variance="optimal")


def method_of(
    name: str, mixture: jd.oracles.GaussianMixture, matrix: jax.Array, y: jax.Array, std: float
) -> jd.Kernel:
    denoiser, seen = mixture.denoiser(SCHEDULE), observations.linear(matrix, y, std)
    if name == "twisted":
        return posterior.twisted(denoiser, SCHEDULE, seen)
    if name == "twisted_spread":
        return posterior.twisted(denoiser, SCHEDULE, seen, spread=spread_on(mixture))
    # The basis of a row of unit length is the row, up to its sign.
    sign = jnp.sign(jnp.linalg.svd(matrix, full_matrices=False)[2] @ matrix[0])
    mean = sign * (matrix @ jnp.mean(mixture.means, axis=0))
    believing = name == "mcgdiff_believing"
    belief = posterior.gaussian_belief(SCHEDULE, mean, 1.0) if believing else None
    return posterior.mcgdiff(denoiser, SCHEDULE, matrix, y, std, belief=belief)


def repeat(
    kernel: jd.Kernel,
    size: int,
    num: int,
    times: int,
    *,
    num_steps: int = 40,
    threshold: float = 0.5,
) -> Any:
    """Runs of `num` particles, each with its own key: (samples, shares of the rows)."""

    def one(key: jax.Array) -> tuple[jd.Samples, jax.Array]:
        key_prior, key_run = jax.random.split(key)
        x = jd.prior_sample(key_prior, SCHEDULE, (num, size))
        ts = jd.grids.uniform(num_steps)
        samples = jd.sample(key_run, kernel, x, ts, resample=resampling.systematic(threshold))
        return samples, jax.nn.softmax(samples.log_weights)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(11), times))


CASES = [
    ("twisted", 2),
    slow("mcgdiff_believing", 2),
    slow("mcgdiff", 2),
    slow("twisted", 8),
    slow("mcgdiff_believing", 8),
    slow("twisted", 80),
    slow("mcgdiff_believing", 80),
    slow("twisted_spread", 2),
    slow("twisted_spread", 8),
    slow("twisted_spread", 80),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "size"), CASES)
def test_evidence_is_unbiased_at_sixteen_particles(method: str, size: int) -> None:
    """2000 runs against the same chain's evidence from 200,000 free draws: within 4 standard errors of each other.

    However few the steps: it is the finite chain's evidence that is unbiased.
    """
    mixture, num_steps = scattered(size), 15
    matrix, y, std = observed(mixture)
    samples, _ = repeat(
        method_of(method, mixture, matrix, y, std), size, 16, 2000, num_steps=num_steps
    )
    free, _ = repeat(
        model_of(method, mixture),
        size,
        20_000,
        10,
        num_steps=num_steps,
    )
    exact = float(mixture.log_evidence(matrix, y, std**2 * jnp.eye(1)))
    log_r = jax.vmap(observations.linear(matrix, y, std))(free.x.reshape(-1, size))
    brute, ratio = (
        np.exp(np.asarray(v, np.float64) - exact) for v in (log_r, samples.log_evidence)
    )
    error = np.hypot(brute.std() / np.sqrt(len(brute)), ratio.std() / np.sqrt(len(ratio)))
    assert abs(ratio.mean() - brute.mean()) < 4 * error
    assert error < 0.05  # what it can see
    assert abs(brute.mean() - 1) < 0.5  # and the chain is near the data's law


@pytest.mark.parametrize(("method", "size"), CASES)
def test_moments_and_modes_of_the_posterior(method: str, size: int) -> None:
    """Weighted means and mode weights over 20 independent runs within 4 standard errors, and log Z within 0.1."""
    mixture, num_steps = scattered(size), 60 if size == 2 else 200
    matrix, y, std = observed(mixture)
    exact = mixture.posterior(matrix, y, std**2 * jnp.eye(1))
    num = 2000 if size == 80 else 500
    samples, shares = repeat(
        method_of(method, mixture, matrix, y, std), size, num, 20, num_steps=num_steps
    )
    modes = np.asarray(jax.nn.softmax(exact.log_weights))
    means = np.einsum("rn,rnd->rd", shares, samples.x)
    weights = np.stack(
        [w @ responsibilities(exact, x) for w, x in zip(shares, samples.x, strict=True)]
    )
    error = np.concatenate(
        [means.mean(0) - modes @ np.asarray(exact.means), weights.mean(0) - modes]
    )
    spread = np.concatenate([means.std(0, ddof=1), weights.std(0, ddof=1)]) / np.sqrt(20)
    assert np.all(
        np.abs(error) < 4 * spread + 1 / num_steps
    )  # Monte Carlo, and the steps' own bias
    log_z = np.asarray(samples.log_evidence) - float(
        mixture.log_evidence(matrix, y, std**2 * jnp.eye(1))
    )
    assert abs(log_z.mean()) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme", [slow("multinomial"), slow("stratified"), "systematic", slow("residual")]
)
def test_evidence_under_every_resampling(scheme: str) -> None:
    mixture = asymmetric_mixture()
    matrix, y = jnp.array(A), jnp.array(Y)
    kernel = posterior.twisted(
        mixture.denoiser(SCHEDULE), SCHEDULE, observations.linear(matrix, y, STD)
    )
    exact = float(mixture.log_evidence(matrix, y, STD**2 * jnp.eye(1)))

    def one(key: jax.Array) -> jax.Array:
        key_prior, key_run = jax.random.split(key)
        x, ts = jd.prior_sample(key_prior, SCHEDULE, (16, 2)), jd.grids.uniform(60)
        return jd.sample(
            key_run, kernel, x, ts, resample=getattr(resampling, scheme)(0.7)
        ).log_evidence

    log_z = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 600))
    assert np.abs(z_scores(np.exp(np.asarray(log_z, np.float64) - exact), np.array(1.0))) < 4


@pytest.mark.slow
def test_tilted_converges_slowly_where_there_are_several_modes() -> None:
    """The mean of Z / Z* is 1 at any N, but log Z is far off at the N at which twisted particles are near."""
    mixture, matrix, y = asymmetric_mixture(), jnp.array(A), jnp.array(Y)
    exact = float(mixture.log_evidence(matrix, y, STD**2 * jnp.eye(1)))
    denoiser = mixture.denoiser(SCHEDULE)
    errors = {}
    for name in ("tilted", "twisted"):
        kernel = WEIGHTED[name](denoiser, SCHEDULE, None)
        errors[name] = [
            np.abs(np.asarray(repeat(kernel, 2, num, 12)[0].log_evidence) - exact).mean()
            for num in (50, 800)
        ]
    assert errors["twisted"][1] < 0.08
    assert errors["tilted"][1] > 3 * errors["twisted"][1]
    assert errors["tilted"][1] < errors["tilted"][0]


# --- the 2015 procedure, with and without weights ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("power", "mean", "variance"),
    [slow(lambda t: jnp.ones_like(t), 0.666, 0.334), (None, 0.596, 0.377)],
)
def test_the_unweighted_bias_of_2015(power: Callable | None, mean: float, variance: float) -> None:
    """Data N(0, 1), r = N(1; x, 1): the posterior is N(.5, .5). Without weights 1000 steps do not come near it."""
    schedule = jd.schedules.from_betas(jd.schedules.linear_betas(1000))
    denoiser = jd.oracles.gaussian(jnp.zeros(1), jnp.ones(1)).denoiser(schedule)
    seen = observations.noisy(jnp.ones(1), 1.0)
    kernel = posterior.tilted(denoiser, schedule, seen, power=power)
    x = jd.prior_sample(jax.random.key(0), schedule, (8_000, 1))
    samples = jd.sample(jax.random.key(1), kernel, x, jd.grids.uniform(1000))
    # Monte Carlo: standard errors .007 and .006.
    np.testing.assert_allclose([samples.x.mean(), samples.x.var()], [mean, variance], atol=0.025)
    if power is None:
        weights = jax.nn.softmax(samples.log_weights)
        first = weights @ samples.x[:, 0]
        np.testing.assert_allclose(
            [first, weights @ (samples.x[:, 0] - first) ** 2], [0.5, 0.5], atol=0.05
        )
        np.testing.assert_allclose(samples.log_evidence, -0.25 - 0.5 * np.log(4 * np.pi), atol=0.08)


# --- limits and identities -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_an_observation_it_is_ancestral(x64: None) -> None:
    """A constant likelihood: the same draws as DDPM's, and no weights."""
    denoiser, x = (
        asymmetric_mixture().denoiser(SCHEDULE),
        jax.random.normal(jax.random.key(0), (6, 2)),
    )
    ts, key = jd.grids.uniform(15), jax.random.key(1)
    plain = jd.sample(key, kernels.ancestral(denoiser, SCHEDULE), x, ts).x
    nothing = jnp.zeros(2)
    for kernel in (
        posterior.twisted(denoiser, SCHEDULE, lambda x_0: jnp.zeros(())),
        posterior.tilted(denoiser, SCHEDULE, lambda x_0: jnp.zeros(())),
        posterior.inpaint(denoiser, SCHEDULE, nothing, nothing, noise_std=0.1),
    ):
        samples = jd.sample(key, kernel, x, ts)
        np.testing.assert_allclose(samples.x, plain, atol=1e-12)
        np.testing.assert_allclose(samples.log_weights, 0, atol=1e-12)


def test_bases_and_matrices_agree(x64: None) -> None:
    """Inpainting in pixels is mcgdiff with rows of the identity, to the last digits but for the sign of a basis."""
    denoiser, x = (
        asymmetric_mixture().denoiser(SCHEDULE),
        jax.random.normal(jax.random.key(0), (6, 2)),
    )
    pixels = posterior.inpaint(
        denoiser, SCHEDULE, jnp.array(SHOWN), jnp.array(MASK), noise_std=MASK_STD
    )
    rows = posterior.mcgdiff(denoiser, SCHEDULE, jnp.eye(2)[:1], jnp.array(SHOWN[:1]), MASK_STD)
    one, two = (
        jd.sample(jax.random.key(1), kernel, x, jd.grids.uniform(10)) for kernel in (pixels, rows)
    )
    np.testing.assert_allclose(one.x, two.x, atol=1e-10)
    np.testing.assert_allclose(one.log_weights, two.log_weights, atol=1e-9)


@pytest.mark.slow
def test_repeated_and_surplus_observations_count(x64: None) -> None:
    """Three observations of two coordinates: the evidence of what lies outside A's range is there too."""
    mixture = asymmetric_mixture()
    matrix, y = jnp.array([[1.0, 0.5], [1.0, 0.5], [0.3, -1.0]]), jnp.array([0.3, 0.5, 0.2])
    exact = float(mixture.log_evidence(matrix, y, STD**2 * jnp.eye(3)))
    kernel = posterior.mcgdiff(mixture.denoiser(SCHEDULE), SCHEDULE, matrix, y, STD)
    samples, _ = repeat(kernel, 2, 500, 40, num_steps=80)
    ratio = np.exp(np.asarray(samples.log_evidence) - exact)
    assert np.abs(z_scores(ratio, np.array(1.0))) < 4


@pytest.mark.slow
def test_denoising_is_the_reverse_process_from_the_noise_level() -> None:
    """y is x_t / alpha_t where the process is as noisy: exact without weights, and the same with them."""
    mixture, std, y = asymmetric_mixture(), 0.7, jnp.array([0.4, 0.3])
    exact = mixture.posterior(jnp.eye(2), y, std**2 * jnp.eye(2))
    t = posterior.noise_level(SCHEDULE, std)
    np.testing.assert_allclose(SCHEDULE.sigma(t) / SCHEDULE.alpha(t), std, rtol=1e-4)
    start = jnp.broadcast_to(SCHEDULE.alpha(t) * y, (4000, 2))
    kernel = kernels.ancestral(mixture.denoiser(SCHEDULE), SCHEDULE)
    x = jd.sample(jax.random.key(0), kernel, start, jd.grids.uniform(200, start=float(t))).x
    mean = np.asarray(jax.nn.softmax(exact.log_weights) @ exact.means)
    assert np.abs(z_scores(x, mean)).max() < 4
    weighted, shares = repeat(
        posterior.denoise(mixture.denoiser(SCHEDULE), SCHEDULE, y, std), 2, 300, 20, num_steps=100
    )
    assert np.abs(z_scores(np.einsum("rn,rnd->rd", shares, weighted.x), mean)).max() < 4
    log_z = float(mixture.log_evidence(jnp.eye(2), y, std**2 * jnp.eye(2)))
    assert np.abs(z_scores(np.exp(np.asarray(weighted.log_evidence) - log_z), np.array(1.0))) < 4


@pytest.mark.slow
def test_split_gibbs_on_a_gaussian() -> None:
    """Levels down to a small one, kept for a while: the chain's law is the posterior but for rho^2 and the steps."""
    data = correlated_gaussian()
    matrix, y = jnp.array(A), jnp.array([1.2])
    exact = data.posterior(matrix, y, STD**2 * jnp.eye(1))
    seen = observations.linear(matrix, y, STD)
    kernel = posterior.split_gibbs(data.denoiser(SCHEDULE), SCHEDULE, seen, num_denoising=20)
    low = float(posterior.noise_level(SCHEDULE, 0.15))
    ts = jnp.concatenate(
        [jnp.linspace(0.9, low, 10, endpoint=False), low * (1 - 1e-3 * jnp.arange(60))]
    )
    x = np.asarray(jd.sample(jax.random.key(0), kernel, jnp.zeros((1500, 2)), ts).x)
    np.testing.assert_allclose(x.mean(0), exact.means[0], atol=0.06)  # Monte Carlo .02, rho^2 = .02
    np.testing.assert_allclose(np.cov(x.T), exact.covariances[0], atol=0.06)


@pytest.mark.slow
def test_evidence_picks_the_class_and_the_operator() -> None:
    """Log odds of classes (components of the data) and of forward operators, beside the oracle's."""
    mixture, matrix, y = asymmetric_mixture(), jnp.array(A), jnp.array(Y)
    classes = [jd.oracles.gaussian(mixture.means[k], mixture.covariances[k]) for k in range(3)]
    noise = STD**2 * jnp.eye(1)

    @partial(jax.jit, static_argnums=2)
    def log_z(
        data: jd.oracles.GaussianMixture, matrix: jax.Array, num_steps: int = 60
    ) -> jax.Array:
        kernel = posterior.twisted(
            data.denoiser(SCHEDULE), SCHEDULE, observations.linear(matrix, y, STD)
        )
        x = jd.prior_sample(jax.random.key(0), SCHEDULE, (4000, 2))
        ts = jd.grids.uniform(num_steps)
        return jd.sample(
            jax.random.key(1), kernel, x, ts, resample=resampling.systematic()
        ).log_evidence

    found = np.array([log_z(data, matrix) for data in classes])
    laws = [jd.oracles.affine_chain(data, SCHEDULE, jd.grids.uniform(60)) for data in classes]
    chains = np.array([law.log_evidence(matrix, y, noise) for law in laws])
    np.testing.assert_allclose(found, chains, atol=0.1)  # Monte Carlo of 4000 particles
    exact = np.array([data.log_evidence(matrix, y, noise) for data in classes])
    odds = [jax.nn.softmax(v + mixture.log_weights) for v in (found, exact)]
    np.testing.assert_allclose(*odds, atol=0.03)  # and the chain's own bias
    operators = [matrix, jnp.array([[0.2, -1.0]])]
    ratio = log_z(mixture, operators[0], 240) - log_z(mixture, operators[1], 240)
    true = [float(mixture.log_evidence(operator, y, noise)) for operator in operators]
    np.testing.assert_allclose(
        ratio, true[0] - true[1], atol=0.15
    )  # the steps' bias is .07, falling as 1/T


# --- calibration ---------------------------------------------------------------------------------------------------------


def ranks(make: Callable, weighted: bool, times: int = 320, num: int = 64) -> np.ndarray:
    """Ranks of truths drawn from the prior among 15 posterior draws, of the first coordinate."""
    mixture = asymmetric_mixture()
    denoiser = mixture.denoiser(SCHEDULE)

    def one(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 5)
        x_0 = mixture.sample(keys[0], (1,))[0]
        y = jnp.array(A) @ x_0 + STD * jax.random.normal(keys[1], (1,))
        kernel = make(denoiser, observations.linear(jnp.array(A), y, STD))
        x = jd.prior_sample(keys[2], SCHEDULE, (num, 2))
        resample = resampling.systematic() if weighted else None
        samples = jd.sample(keys[3], kernel, x, jd.grids.uniform(25), resample=resample)
        # Independent picks: the ranks ask for exchangeable draws.
        rows = jax.random.choice(keys[4], num, (15,), p=jax.nn.softmax(samples.log_weights))
        return jnp.sum(samples.x[rows, 0] < x_0[0])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(21), times)))


def chi_square_p(counts: np.ndarray) -> float:
    from scipy.stats import chisquare

    return float(chisquare(np.bincount(counts, minlength=16)).pvalue)


@pytest.mark.slow
def test_calibration_of_weighted_particles_and_not_of_a_heuristic() -> None:
    """Ranks are uniform for the sampler that converges, and not for diffusion posterior sampling."""

    def twisted(denoiser: Partial, seen: observations.Observation) -> jd.Kernel:
        return posterior.twisted(denoiser, SCHEDULE, seen)

    def dps(denoiser: Partial, seen: observations.Observation) -> jd.Kernel:
        return kernels.ancestral(guidance.dps(denoiser, SCHEDULE, seen), SCHEDULE)

    assert chi_square_p(ranks(twisted, True)) > 1e-3
    assert chi_square_p(ranks(dps, False)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("sweeps", [0, 1])
def test_calibration_of_independent_draws_in_eight_dimensions(sweeps: int) -> None:
    """Ranks of 480 truths among 15 draws, each of a system of 12 rows: an entry, what is seen, and how likely a draw is."""
    mixture = scattered(8)
    matrix, _, std = observed(mixture)
    denoiser, spread = mixture.denoiser(SCHEDULE), spread_on(mixture)

    def one(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        x_0 = mixture.sample(keys[0], (1,))[0]
        y = matrix @ x_0 + std * jax.random.normal(keys[1], (1,))
        seen = observations.linear(matrix, y, std)
        kernel = posterior.twisted(denoiser, SCHEDULE, seen, spread=spread)
        draws = posterior.draw(
            keys[2], kernel, SCHEDULE, (15, 8), ts=jd.grids.uniform(40), rows=12, sweeps=sweeps
        ).x
        both = jnp.concatenate([x_0[None], draws])
        values = jnp.stack([both[:, 0], both @ matrix[0], mixture.log_prob(both)])
        return jnp.sum(values[:, 1:] < values[:, :1], axis=1)

    counts = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(21), 480)))
    for column in counts.T:
        assert chi_square_p(column) > 1e-3


# --- mutants of the driver -----------------------------------------------------------------------------------------------


def never_at_the_end(kernel: jd.Kernel) -> jd.Kernel:
    """The last likelihood is not applied."""

    def step(key: Any, carry: Any, x: Any, t: Any, s: Any) -> tuple:
        carry, x, increment = kernel.step(key, carry, x, t, s)
        return carry, x, jnp.where(s > 0, increment, 0)

    return jd.Kernel(kernel.init, step)


def broken_driver(kernel: jd.Kernel, x: jax.Array, key: jax.Array, fault: str) -> jax.Array:
    """`sample` written out, with a fault: resampling that forgets the weights, or leaves the carry behind."""
    scheme, ts = resampling.systematic(2.0), jd.grids.uniform(60)

    def step(state: tuple, inputs: tuple) -> tuple:
        carry, x, log_z = state
        n, t, s = inputs
        key_step, key_resample = jax.random.split(jax.random.fold_in(key, n))
        carry, x, log_w = kernel.step(key_step, carry, x, t, s)
        ancestors, _ = scheme(key_resample, log_w)
        gained = jax.nn.logsumexp(log_w) - jnp.log(len(x))
        log_z = log_z + (jnp.where(s > 0, 0, gained) if fault == "forgets" else gained)
        if fault != "leaves the carry":
            carry = jax.tree.map(lambda leaf: leaf[ancestors], carry)
        return (carry, x[ancestors], log_z), None

    start = (kernel.init(x, ts[0]), x, jnp.zeros(()))
    return jax.lax.scan(step, start, (jnp.arange(60), ts[:-1], ts[1:]))[0][2]


@pytest.mark.parametrize(
    ("fault", "sound"),
    [
        slow("none", True),
        slow("forgets", False),
        slow("leaves the carry", False),
        ("only at the end", True),
        slow("never at the end", False),
    ],
)
def test_mutants_of_the_driver_are_rejected(fault: str, sound: bool) -> None:
    mixture, matrix, y = asymmetric_mixture(), jnp.array(A), jnp.array(Y)
    # Without a look ahead all of the likelihood comes at the end.
    blind = (lambda x_0, spread: jnp.zeros(())) if fault.endswith("at the end") else None
    seen = observations.linear(matrix, y, STD)
    kernel = posterior.twisted(mixture.denoiser(SCHEDULE), SCHEDULE, seen, twist=blind)
    kernel = never_at_the_end(kernel) if fault == "never at the end" else kernel
    exact = float(mixture.log_evidence(matrix, y, STD**2 * jnp.eye(1)))

    def one(key: jax.Array) -> jax.Array:
        key_prior, key_run = jax.random.split(key)
        return broken_driver(kernel, jd.prior_sample(key_prior, SCHEDULE, (32, 2)), key_run, fault)

    log_z = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), 400))
    z = z_scores(np.exp(np.asarray(log_z, np.float64) - exact), np.array(1.0))
    assert (np.abs(z) < 4).all() == sound


# --- likelihoods that are zero somewhere, rows that fail -----------------------------------------------------------------

NORMAL_1 = jd.oracles.gaussian(jnp.zeros(1), jnp.ones(1))
HALVES: dict[str, Callable] = {  # zero on the left; none of them matters there
    "inf": lambda v: jnp.where(v[0] < 0, -jnp.inf, 0.0),
    "nan": lambda v: jnp.where(v[0] < 0, jnp.nan, 0.0),
    "nan slope": lambda v: jnp.where(v[0] < 0, -jnp.inf, -(v[0] ** 1.5)),
}


def steered(kind: str, log_r: Callable, **options: Any) -> jd.Kernel:
    return getattr(posterior, kind)(NORMAL_1.denoiser(SCHEDULE), SCHEDULE, log_r, **options)


def evidences(
    kernel: jd.Kernel, num_rows: int, times: int, *, num_steps: int = 2, threshold: float = 0.9
) -> np.ndarray:
    """Evidences of independent runs, [times]."""

    def one(key: jax.Array) -> jax.Array:
        key_prior, key_run = jax.random.split(key)
        x, ts = jd.prior_sample(key_prior, SCHEDULE, (num_rows, 1)), jd.grids.uniform(num_steps)
        return jd.sample(
            key_run, kernel, x, ts, resample=resampling.systematic(threshold)
        ).log_evidence

    log_z = np.asarray(
        jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), times)), np.float64
    )
    assert not np.isnan(log_z).any()
    return np.exp(log_z)


def half_evidence(name: str, num_steps: int) -> float:
    """E[r(x_0)] under the finite chain, by quadrature."""
    law = jd.oracles.affine_chain(NORMAL_1, SCHEDULE, jd.grids.uniform(num_steps))
    std = float(np.sqrt(np.asarray(law.covariances).ravel()[0]))
    v = (np.arange(200_000) + 0.5) * 10 * std / 200_000
    density = np.exp(-0.5 * (v / std) ** 2) / np.sqrt(2 * np.pi * std**2)
    return float(
        np.sum(density * (np.exp(-(v**1.5)) if name == "nan slope" else 1)) * (v[1] - v[0])
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["twisted", "tilted"])
@pytest.mark.parametrize("name", ["inf", slow("nan"), slow("nan slope")])
def test_a_likelihood_that_is_zero_on_one_side(kind: str, name: str) -> None:
    """Four rows and two steps, 4000 times: unbiased, with the runs in which no row is left (Monte Carlo: 4 errors)."""
    z = evidences(steered(kind, HALVES[name]), 4, 4000)
    assert (z == 0).any()
    exact = half_evidence(name, 2)
    assert name == "nan slope" or abs(exact - 0.5) < 1e-6
    assert np.abs(z_scores(z, np.array(exact))) < 4
    assert z.std() / np.sqrt(4000) < 0.01  # what it can see


@pytest.mark.slow
def test_a_zero_likelihood_rejects_mutants() -> None:
    """Rows that are killed by what is no more than a twist; weights that are subtracted as they come."""
    killed = steered(
        "twisted", HALVES["inf"], twist=lambda x_0, spread: jnp.where(x_0[0] < 0, -1e4, 0.0)
    )
    z = evidences(killed, 4, 1000, num_steps=8)
    assert z_scores(z, np.array(0.5)) < -20
    assert np.isnan(-jnp.inf - HALVES["inf"](-jnp.ones(1)))


@pytest.mark.parametrize(("kind", "threshold"), [("twisted", 2.0), slow("tilted", 0.0)])
def test_one_run_of_many_rows_with_a_zero_likelihood(kind: str, threshold: float) -> None:
    # A twist at one point is zero at half of the states on the way.
    options = {"nodes": jnp.zeros((1, 1))} if kind == "twisted" else {}
    kernel = steered(kind, HALVES["inf"], **options)
    z = evidences(kernel, 4000, 1, num_steps=10, threshold=threshold)
    np.testing.assert_allclose(z, 0.5, atol=5 * 0.5 / np.sqrt(4000))  # Monte Carlo


@pytest.mark.parametrize("kind", ["twisted", "tilted"])
def test_a_slope_that_is_not_finite_leaves_the_models_step(kind: str) -> None:
    """A row whose likelihood is zero, with a gradient of NaN, goes on as without it; the other one is steered."""
    x, ts = jnp.array([[-2.0], [2.0]]), jnp.array([0.5, 0.25])
    plain, found = (
        jd.sample(jax.random.key(0), kernel, x, ts).x
        for kernel in (
            kernels.ancestral(NORMAL_1.denoiser(SCHEDULE), SCHEDULE),
            steered(kind, HALVES["nan slope"]),
        )
    )
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-6)  # rounding
    assert abs(found[1, 0] - plain[1, 0]) > 1e-3


def run_of(kernel: jd.Kernel, size: int = 1, *, num_steps: int = 4) -> jd.Samples:
    x = jd.prior_sample(jax.random.key(0), SCHEDULE, (8, size))
    return jd.sample(
        jax.random.key(1), kernel, x, jd.grids.uniform(num_steps), resample=resampling.systematic()
    )


def test_no_row_is_left() -> None:
    """Evidence -inf and an effective size of 0, not NaN; what comes afterwards changes nothing."""
    nowhere = lambda v: jnp.full((), -jnp.inf)  # noqa: E731
    far = jnp.full(1, 1e25)  # its square is beyond float32
    for kernel in (
        steered("twisted", nowhere),
        steered("tilted", nowhere),
        posterior.denoise(NORMAL_1.denoiser(SCHEDULE), SCHEDULE, far, 0.1),
    ):
        samples = run_of(kernel)
        assert samples.log_evidence == -np.inf
        assert samples.ess[-1] == 0
        assert not (samples.log_weights > -jnp.inf).any()
        with pytest.raises(ValueError, match="log_weights: expected a row of positive weight"):
            resampling.draw(jax.random.key(0), samples.log_weights, samples.x, 2)

    def step(key: Any, carry: Any, x: Any, t: Any, s: Any) -> tuple:
        return (
            carry,
            x,
            jnp.where(t > 0.6, jnp.where(t > 0.9, 0.0, -jnp.inf), 5.0) * jnp.ones(len(x)),
        )

    samples = run_of(jd.Kernel(Partial(lambda x, t: ()), Partial(step)))
    np.testing.assert_allclose(samples.ess, [8, 0, 0, 0], rtol=1e-6)
    assert samples.log_evidence == -np.inf


@pytest.mark.parametrize("kind", ["twisted", slow("tilted"), slow("inpaint"), slow("composed")])
def test_rows_that_fail_are_dropped(kind: str) -> None:
    """A denoiser that is NaN to the right of 4: its rows are gone at the end, and the others' weights are as they were."""
    sound = NORMAL_1.denoiser(SCHEDULE)

    def denoiser(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.where(x > 4, jnp.nan, sound(x, t))

    def kernel(denoiser: Callable) -> jd.Kernel:
        y = jnp.array([0.2])
        return {
            "twisted": lambda: posterior.twisted(denoiser, SCHEDULE, observations.noisy(y, 0.5)),
            "tilted": lambda: posterior.tilted(denoiser, SCHEDULE, observations.noisy(y, 0.5)),
            "inpaint": lambda: posterior.inpaint(
                denoiser, SCHEDULE, y, jnp.ones(1, bool), noise_std=0.5
            ),
            "composed": lambda: posterior.composed(
                [denoiser, denoiser], jnp.array([0.5, 0.5]), SCHEDULE
            ),
        }[kind]()

    x, ts = jnp.array([[0.1], [6.0], [-0.4], [0.6]]), jnp.array([0.5, 0.25, 0.0])
    failed, whole = (
        jd.sample(jax.random.key(0), kernel(Partial(d)), x, ts) for d in (denoiser, sound)
    )
    left = np.array([0, 2, 3])
    assert not failed.log_weights[1] > -jnp.inf
    np.testing.assert_allclose(failed.log_weights[left], whole.log_weights[left], rtol=1e-5)
    weights = np.exp(np.asarray(whole.log_weights, np.float64)[left])
    np.testing.assert_allclose(failed.log_evidence, np.log(weights.sum() / 4), rtol=1e-4)
    np.testing.assert_allclose(failed.ess[-1], weights.sum() ** 2 / (weights**2).sum(), rtol=1e-4)
    resampled = jd.sample(
        jax.random.key(0), kernel(Partial(denoiser)), x, ts, resample=resampling.systematic(2.0)
    )
    assert np.isfinite(resampled.x).all()


@pytest.mark.slow
def test_a_mixture_with_a_model_of_no_weight() -> None:
    models = [
        jd.oracles.gaussian(jnp.full(1, m), jnp.full(1, 0.01)).denoiser(SCHEDULE)
        for m in (-2.0, 3.0)
    ]
    only = posterior.mixed(models, jnp.array([-jnp.inf, 0.0]), SCHEDULE)
    np.testing.assert_allclose(run_of(only, num_steps=20).x, 3, atol=1)
    traced = jax.jit(lambda w: run_of(posterior.mixed(models, w, SCHEDULE)).x)
    for nothing in (jnp.full(2, -jnp.inf), jnp.array([0.0, jnp.nan]), jnp.full(2, jnp.inf)):
        assert np.isnan(traced(nothing)).all()


# --- masks ---------------------------------------------------------------------------------------------------------------

NORMAL_4 = jd.oracles.gaussian(jnp.zeros(4), jnp.ones(4))
MASK_Y, MASK_4 = jnp.array([1.0, -1.0, 0.5, 0.0]), np.array([1, 1, 0, 0])


def masked_run(kind: str, mask: Any) -> jd.Samples:
    denoiser = NORMAL_4.denoiser(SCHEDULE)
    if kind == "twisted":
        seen = (
            mask
            if isinstance(mask, observations.Observation)
            else observations.mask(MASK_Y, mask, 0.3)
        )
        kernel = posterior.twisted(denoiser, SCHEDULE, seen)
    else:
        belief = posterior.gaussian_belief(SCHEDULE, 0.0, 1.0)
        kernel = posterior.inpaint(denoiser, SCHEDULE, MASK_Y, mask, noise_std=0.3, belief=belief)
    x, ts = jd.prior_sample(jax.random.key(0), SCHEDULE, (4000, 4)), jd.grids.uniform(60)
    return jd.sample(jax.random.key(1), kernel, x, ts, resample=resampling.systematic())


def is_exact(samples: jd.Samples) -> bool:
    """The posterior's mean and evidence, within Monte Carlo and the steps' bias."""
    mean = jax.nn.softmax(samples.log_weights) @ samples.x
    off = np.abs(mean - np.array([1, -1, 0, 0]) / 1.09).max()
    return bool(off < 0.08 and abs(samples.log_evidence + 2.841) < 0.1)


@pytest.mark.parametrize("kind", ["twisted", "inpaint"])
def test_a_mask_is_exact(kind: str) -> None:
    assert is_exact(masked_run(kind, MASK_4 > 0))


def test_masks_of_any_kind_are_the_same() -> None:
    """Bool, integers and floats make the same kernels, leaf by leaf; so does 255 under tracing, where it counts as 1."""
    denoiser = NORMAL_4.denoiser(SCHEDULE)

    def everywhere(mask: Any) -> list:
        seen = observations.mask(MASK_Y, mask, 0.3)
        return [
            posterior.twisted(denoiser, SCHEDULE, seen),
            posterior.split_gibbs(denoiser, SCHEDULE, seen),
            posterior.inpaint(denoiser, SCHEDULE, MASK_Y, mask, noise_std=0.3),
            guidance.repaint(denoiser, SCHEDULE, MASK_Y, mask),
            guidance.mmps(denoiser, SCHEDULE, seen),
        ]

    first = everywhere(MASK_4 > 0)
    for mask in (MASK_4.astype(np.uint8), jnp.array(MASK_4, jnp.float32), jnp.array(MASK_4, bool)):
        chex.assert_trees_all_equal(everywhere(mask), first)
    traced = jax.jit(lambda mask: jax.tree.leaves(everywhere(mask)))(255 * MASK_4)
    chex.assert_trees_all_equal(traced, jax.tree.map(jnp.asarray, jax.tree.leaves(first)))


def test_masks_reject_mutants() -> None:
    """255 as the operator, the gain and the weight at once."""
    raw = jnp.array(255.0 * MASK_4)
    mutant = observations.Observation(Partial(jnp.multiply, raw), MASK_Y * MASK_4, 0.3, raw, MASK_4)
    assert not is_exact(masked_run("twisted", mutant))


# --- gains of operators --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_function_has_the_evidence_of_its_matrix() -> None:
    """y = sum of 64 entries: as wide as 64 of them. The mutant takes the twist to be as wide as one."""
    data, matrix, y = (
        jd.oracles.gaussian(jnp.zeros(64), jnp.ones(64)),
        jnp.ones((1, 64)),
        jnp.array([4.0]),
    )
    assert abs(float(data.log_evidence(matrix, y, 0.09 * jnp.eye(1))) + 3.124) < 1e-3
    law = jd.oracles.affine_chain(data, SCHEDULE, jd.grids.uniform(25))
    exact = float(law.log_evidence(matrix, y, 0.09 * jnp.eye(1)))
    x = jd.prior_sample(jax.random.key(0), SCHEDULE, (256, 64))

    def total(v: jax.Array) -> jax.Array:
        return jnp.sum(v, keepdims=True)

    def log_z(seen: observations.Observation) -> float:
        kernel = posterior.twisted(data.denoiser(SCHEDULE), SCHEDULE, seen)
        samples = jd.sample(
            jax.random.key(1), kernel, x, jd.grids.uniform(25), resample=resampling.systematic()
        )
        return float(samples.log_evidence)

    by_matrix = log_z(observations.linear(matrix, y, 0.3))
    assert abs(by_matrix - exact) < 0.15  # Monte Carlo of 256 rows
    np.testing.assert_allclose(
        log_z(observations.linear(total, y, 0.3)), by_matrix, atol=1e-3
    )  # float32
    assert log_z(observations.linear(total, y, 0.3, gain=1.0)) < exact - 5


D = jd.oracles.gaussian(jnp.zeros(2), jnp.ones(2)).denoiser(SCHEDULE)
Z, SEEN = jnp.zeros(2), observations.noisy(jnp.zeros(2), 0.1)
BAD = {
    "power": (lambda: posterior.tilted(D, SCHEDULE, SEEN, power=lambda t: t), ValueError, "power: expected 1 at t = 0, got 0"),
    "variance": (lambda: posterior.twisted(D, SCHEDULE, SEEN, variance="tiny"), ValueError, "variance: expected one of"),
    "prior_std": (lambda: posterior.twisted(D, SCHEDULE, SEEN, prior_std=0.0), ValueError, "prior_std: expected a positive"),
    "likelihood": (lambda: posterior.twisted(D, SCHEDULE, 3.0), TypeError, "log_likelihood: expected a function, got float"),
    "likelihood per pixel": (
        lambda: jd.sample(jax.random.key(0), posterior.twisted(D, SCHEDULE, lambda x: -(x**2)), jnp.zeros((3, 2)), jd.grids.uniform(2)),
        ValueError, r"log_likelihood: expected one value an example, shape \(\), got \(2,\)"),
    "A": (lambda: posterior.mcgdiff(D, SCHEDULE, jnp.eye(2), jnp.zeros(3), 0.1), ValueError, r"A, y: expected shapes \[m, d\] and \[m\], got \(2, 2\) and \(3,\)"),
    "no noise": (lambda: posterior.mcgdiff(D, SCHEDULE, jnp.eye(2), Z, 0.0), ValueError, "noise_std: expected a positive standard deviation, got 0"),
    "mask": (lambda: posterior.inpaint(D, SCHEDULE, Z, jnp.zeros(3), noise_std=0.1), ValueError, "observed: expected the shape of y"),
    "mask of 255": (lambda: posterior.inpaint(D, SCHEDULE, Z, jnp.array([255, 0]), noise_std=0.1), ValueError, r"observed: expected a mask of 0 and 1 \(for any other array: `mask > 0`\), got 255 at index 0 of 2"),
    "mask of NaN": (lambda: posterior.inpaint(D, SCHEDULE, Z, jnp.array([1.0, jnp.nan]), noise_std=0.1), ValueError, "observed: expected a mask of 0 and 1"),
    "own mask": (lambda: observations.Observation(Partial(jnp.asarray), Z, 0.1, observed=jnp.array([255, 0])), ValueError, "observed: expected a mask of 0 and 1"),
    "replaced mask": (lambda: dataclasses.replace(SEEN, observed=jnp.array([255, 0])), ValueError, "observed: expected a mask of 0 and 1"),
    "y": (lambda: posterior.denoise(D, SCHEDULE, jnp.array([jnp.nan, 0.0]), 0.1), ValueError, "y: expected finite entries where it is observed, got nan"),
    "y of mcgdiff": (lambda: posterior.mcgdiff(D, SCHEDULE, jnp.eye(2), jnp.array([jnp.inf, 0.0]), 0.1), ValueError, "y: expected finite entries, got inf"),
    "models": (lambda: posterior.mixed([D, D], jnp.full(2, -jnp.inf), SCHEDULE), ValueError, "log_weights: expected a model of positive weight"),
    "a model": (lambda: posterior.mixed([D, D], jnp.array([0.0, jnp.nan]), SCHEDULE), ValueError, "log_weights: expected log weights below infinity, got nan"),
    "exponents": (lambda: posterior.composed([D, D], jnp.array([jnp.nan, 1.0]), SCHEDULE), ValueError, "exponents: expected a finite number"),
    "integers": (lambda: posterior.denoise(D, SCHEDULE, jnp.zeros(2, int), 0.1), TypeError, "y: expected a floating dtype"),
    "gibbs": (lambda: posterior.split_gibbs(D, SCHEDULE, lambda x: 0.0), TypeError, "observation: expected an Observation such as"),
    "belief": (lambda: posterior.gaussian_belief(SCHEDULE, 0.0, -1.0), ValueError, "std: expected a positive standard deviation"),
}  # fmt: skip
test_bad_input = rejects(BAD)
