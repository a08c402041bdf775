"""Kernels: the contract all of them keep, their limits, and the oracle through the whole reverse process."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from contracts.kernels import COSTLY, KERNELS, SLOW, names
from helpers import (
    SCHEDULES,
    asymmetric_mixture,
    correlated_gaussian,
    crossed,
    every_schedule,
    mixture_samples,
    moment_z_scores,
    rejects,
    slow,
)
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import _rows, testing
from jaxdiff.forward import level

every_kernel = pytest.mark.parametrize("kernel_name", names())


def step(kernel: jd.Kernel, key: jax.Array, x_t: jax.Array, t: float, s: float) -> jax.Array:
    """One step from a fresh carry."""
    t, s = jnp.asarray(t, x_t.dtype), jnp.asarray(s, x_t.dtype)
    return kernel.step(key, kernel.init(x_t, t), x_t, t, s)[1]


def oracle_kernel(kernel_name: str, name: str = "cosine") -> jd.Kernel:
    schedule = SCHEDULES[name]()
    return KERNELS[kernel_name].make(asymmetric_mixture().denoiser(schedule), schedule)


@every_kernel
class TestContract:
    def test_it_keeps_the_contract(self, kernel_name: str) -> None:
        """The one that a user's kernel is put through."""
        continuous = KERNELS[kernel_name].continuous
        testing.check_kernel(oracle_kernel(kernel_name), (2,), continuous=continuous)

    @pytest.mark.slow  # the drivers add the weights up: a wrong one shows in every evidence
    def test_it_has_no_weight(self, kernel_name: str) -> None:
        kernel, x_t = oracle_kernel(kernel_name), jax.random.normal(jax.random.key(0), (5, 2))
        t = jnp.asarray(0.5)
        increment = kernel.step(jax.random.key(1), kernel.init(x_t, t), x_t, t, t - 0.1)[2]
        np.testing.assert_array_equal(increment, np.zeros(5))

    def test_deterministic_or_not(self, kernel_name: str) -> None:
        kernel, x_t = oracle_kernel(kernel_name), jnp.ones((4, 2))
        one, two = (step(kernel, jax.random.key(seed), x_t, 0.6, 0.4) for seed in (0, 1))
        assert np.array_equal(one, two) == KERNELS[kernel_name].deterministic


@pytest.mark.parametrize("kernel_name", names(lambda kernel: kernel.continuous))
@pytest.mark.parametrize("name", ["cosine", "edm", "rectified_flow"])
def test_a_vanishing_step_is_the_identity(kernel_name: str, name: str, x64: None) -> None:
    x_t = jax.random.normal(jax.random.key(0), (4, 2))
    kernel = oracle_kernel(kernel_name, name)
    np.testing.assert_allclose(step(kernel, jax.random.key(1), x_t, 0.5, 0.5), x_t, atol=1e-12)
    # Noise of a step of length h is of size sqrt(h), times lambda' sigma.
    schedule = SCHEDULES[name]()
    h, slope = 1e-8, abs(float(jax.grad(schedule.log_snr)(0.5)))
    near = step(kernel, jax.random.key(1), x_t, 0.5, 0.5 - h)
    np.testing.assert_allclose(near, x_t, atol=5 * float(schedule.sigma(0.5)) * np.sqrt(slope * h))


@pytest.mark.parametrize("kernel_name", names(lambda kernel: kernel.denoises))
def test_the_last_step_returns_the_data(kernel_name: str, x64: None) -> None:
    schedule, mixture = jd.schedules.linear(), asymmetric_mixture()
    kernel = KERNELS[kernel_name].make(mixture.denoiser(schedule), schedule)
    x_t = jax.random.normal(jax.random.key(0), (4, 2))
    expected = mixture.denoiser(schedule)(x_t, 0.1)
    np.testing.assert_allclose(step(kernel, jax.random.key(1), x_t, 0.1, 0.0), expected, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "zero_terminal",
        *map(slow, ("linear", "edm", "rectified_flow")),
    ],
)
@every_kernel
def test_a_whole_run_is_finite_and_near(kernel_name: str, name: str) -> None:
    """Every kernel on every family, over infinite log-SNRs at either end: 50 steps come near the Gaussian's moments."""
    schedule = (
        jd.schedules.cosine(log_snr_min=-np.inf) if name == "zero_terminal" else SCHEDULES[name]()
    )
    ts = jd.grids.log_snr(
        schedule, 400 if kernel_name.startswith("euler") else 50
    )  # t is a coarse variable for EDM
    x = mixture_samples(KERNELS[kernel_name].make, schedule, correlated_gaussian(), ts, 500)
    assert np.all(np.isfinite(x))
    exact = np.array([0.7, -0.4, 1.0, 0.7])  # means and standard deviations, here of 500 draws
    np.testing.assert_allclose(np.concatenate([x.mean(0), x.std(0)]), exact, atol=0.3)


@every_schedule()
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.98), (0.5, 0.3), (0.02, 0.01)])
def test_eta_one_is_ancestral(name: str, t: float, s: float, x64: None) -> None:
    schedule = SCHEDULES[name]()
    denoiser = asymmetric_mixture().denoiser(schedule)
    x_t = schedule.sigma(t) * jax.random.normal(jax.random.key(0), (8, 2))
    key = jax.random.key(1)
    ddim = step(jd.kernels.ddim(denoiser, schedule, 1.0), key, x_t, t, s)
    np.testing.assert_allclose(
        ddim, step(jd.kernels.ancestral(denoiser, schedule), key, x_t, t, s), rtol=1e-9, atol=1e-9
    )


def test_eta_zero_is_the_ddim_equation(x64: None) -> None:
    """Eq. (12) with alpha_bar, straight from the paper."""
    schedule = jd.schedules.from_betas(np.linspace(1e-4, 2e-2, 1000))
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))])
    denoiser = asymmetric_mixture().denoiser(schedule)
    x_t = jax.random.normal(jax.random.key(0), (8, 2))
    x_0, now, before = denoiser(x_t, 0.6), alpha_bar[600], alpha_bar[580]
    eps = (x_t - np.sqrt(now) * x_0) / np.sqrt(1 - now)
    expected = np.sqrt(before) * x_0 + np.sqrt(1 - before) * eps
    out = step(jd.kernels.ddim(denoiser, schedule), jax.random.key(1), x_t, 0.6, 0.58)
    np.testing.assert_allclose(out, expected, rtol=1e-11)


@every_schedule()
def test_p_mean_variance(name: str, x64: None) -> None:
    schedule = SCHEDULES[name]()
    x_t = jax.random.normal(jax.random.key(0), (4, 3))

    def denoiser(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.tanh(x)

    small, large = (
        jd.p_mean_variance(denoiser, schedule, x_t, 0.5, 0.4, variance=variance)
        for variance in ("small", "large")
    )
    expected = jd.q_posterior(schedule, x_t, jnp.tanh(x_t), 0.5, 0.4)
    chex.assert_trees_all_close(small, expected, rtol=1e-14)
    np.testing.assert_array_equal(large.mean, small.mean)
    assert np.all(large.variance > small.variance)
    # Unit-variance data: x_s and x_t are jointly normal, so Var(x_s | x_t) follows from their covariance.
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(0.4), schedule.alpha_sigma(0.5)
    covariance = alpha_t / alpha_s * (alpha_s**2 + sigma_s**2)
    exact = alpha_s**2 + sigma_s**2 - covariance**2 / (alpha_t**2 + sigma_t**2)
    np.testing.assert_allclose(large.variance, exact, rtol=1e-9)


def test_large_variance_is_beta_for_ddpm(x64: None) -> None:
    betas = np.linspace(1e-4, 2e-2, 1000)
    schedule = jd.schedules.from_betas(betas)
    x_t = jnp.zeros((1, 1))
    for i in (2, 500, 1000):
        _, variance = jd.p_mean_variance(
            lambda x, t: x, schedule, x_t, i / 1000, (i - 1) / 1000, variance="large"
        )
        np.testing.assert_allclose(
            variance, betas[i - 1], rtol=1e-8
        )  # 1 - alpha_bar is small at i = 2


def test_learned_variance_interpolates(x64: None) -> None:
    schedule, x_t = jd.schedules.cosine(), jnp.ones((2, 3))
    small, large = (
        jd.p_mean_variance(lambda x, t: x, schedule, x_t, 0.5, 0.4, variance=v).variance
        for v in ("small", "large")
    )
    for fraction, expected in ((0.0, small), (1.0, large), (0.5, jnp.sqrt(small * large))):
        learned = jd.p_mean_variance(
            lambda x, t, f=fraction: jd.Denoised(x, jnp.full_like(x, f)),
            schedule,
            x_t,
            0.5,
            0.4,
            variance="learned",
        )
        np.testing.assert_allclose(learned.variance, expected, rtol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["cosine", slow("linear"), "ddpm", slow("sigmoid")])
def test_gradients_through_the_sampler_are_finite(name: str, eta: float) -> None:
    """In the grid, eta and every number of the schedule, end-points included."""
    mixture, x = asymmetric_mixture(), jax.random.normal(jax.random.key(0), (4, 2))

    def total(schedule: jd.Schedule, ts: jax.Array, eta: jax.Array) -> jax.Array:
        return jd.sample(
            jax.random.key(1), jd.kernels.ddim(mixture.denoiser(schedule), schedule, eta), x, ts
        ).x.sum()

    schedule = jax.tree.map(jnp.asarray, SCHEDULES[name]())
    grads = jax.grad(total, argnums=(0, 1, 2))(schedule, jd.grids.uniform(5), jnp.asarray(eta))
    chex.assert_tree_all_finite(grads)


def test_learned_variance_samples_the_oracle() -> None:
    """A network of half the channels for the variance goes through the driver; fraction 0 is the small variance."""
    schedule, mixture = jd.schedules.linear(), asymmetric_mixture()
    oracle = mixture.denoiser(schedule)

    def network(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.concatenate([oracle(x, t), jnp.full_like(x, -1.0)], axis=-1)

    denoiser = jd.make_denoiser(network, schedule, "x0", learned_variance=True)
    guided = jd.guidance.classifier_free(denoiser, denoiser, 3.0)  # of equals: no change
    x = jax.random.normal(jax.random.key(0), (100, 2))
    runs = [
        jd.sample(jax.random.key(1), kernel, x, jd.grids.uniform(20)).x
        for kernel in (
            jd.kernels.ancestral(guided, schedule, "learned"),
            jd.kernels.ancestral(oracle, schedule),
        )
    ]
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-4)  # float32, through 20 steps


def steps_alike(variant: Callable[[Callable], Callable], kernel_name: str) -> None:
    """A step under a variant of chex is the plain one."""
    kernel = oracle_kernel(kernel_name)
    x_t = jax.random.normal(jax.random.key(0), (4, 2))
    keys = jax.random.split(jax.random.key(1), 4)
    out = variant(lambda keys, x_t: step(kernel, keys, x_t, 0.6, 0.4))(keys, x_t)
    np.testing.assert_allclose(out, step(kernel, keys, x_t, 0.6, 0.4), atol=1e-5)  # float32


class Variants(chex.TestCase, parameterized.TestCase):
    @chex.all_variants(with_pmap=True)
    @parameterized.parameters(*(name for name in KERNELS if name not in SLOW))
    def test_reverse_step(self, kernel_name: str) -> None:
        steps_alike(self.variant, kernel_name)


@pytest.mark.slow
class SlowVariants(chex.TestCase, parameterized.TestCase):
    @chex.all_variants(with_pmap=True)
    @parameterized.parameters(*sorted(SLOW - COSTLY))
    def test_reverse_step(self, kernel_name: str) -> None:
        steps_alike(self.variant, kernel_name)


# --- the whole reverse process against the oracle -------------------------------------------------------------------

TARGETS = {"mixture": asymmetric_mixture, "gaussian": correlated_gaussian}
# n = 20,000 resolves 0.7% of a standard deviation: DDPM-1000 is closer than that. DDIM-50 has a first-order error of
# about 4% of a standard deviation (measured with n = 20,000), which n = 4,000 cannot tell from zero.
RUNS = {"ddpm_1000": (jd.kernels.ancestral, 1000, 20_000), "ddim_50": (jd.kernels.ddim, 50, 4_000)}


@pytest.mark.parametrize(
    ("run", "name"),
    crossed(
        RUNS,
        ["linear", "cosine", "ddpm", "rectified_flow", "edm"],
        quick=lambda run, name: run == "ddim_50" and name in ("cosine", "edm"),
    ),
)
@pytest.mark.parametrize("target", TARGETS)
def test_sampling_reproduces_the_oracle(run: str, target: str, name: str) -> None:
    make, num_steps, num = RUNS[run]
    if name == "ddpm" and run == "ddim_50":
        num_steps = 50  # every 20th of the 1000 discrete steps
    mixture, schedule = TARGETS[target](), SCHEDULES[name]()
    x = mixture_samples(make, schedule, mixture, jd.grids.uniform(num_steps), num)
    assert np.abs(moment_z_scores(x, mixture)).max() < 5  # Monte Carlo: standard errors


# --- mutants: broken kernels that the test above must reject --------------------------------------------------------


def mutant(broken: str) -> object:
    """A kernel with one classic mistake."""

    def make(denoiser: Partial, schedule: jd.Schedule) -> jd.Kernel:
        def step(
            key: jax.Array, carry: object, x_t: jax.Array, t: jax.Array, s: jax.Array
        ) -> tuple:
            late, early = level(schedule, t, x_t), level(schedule, s, x_t)
            x_0 = denoiser(x_t, t)
            mean, variance = jd.q_posterior(schedule, x_t, x_0, t, s)
            noise = jnp.where(s > 0, jnp.sqrt(variance), 0) * _rows.normal(key, x_t)
            eps = (x_t - late.alpha * x_0) / late.sigma
            x_s = {
                "none": mean + noise,
                "variance for standard deviation": mean
                + jnp.where(s > 0, variance, 0) * _rows.normal(key, x_t),
                "alpha_t for alpha_s": late.alpha * x_0 + early.sigma * eps,
                "flipped sign of eps": early.alpha * x_0 - early.sigma * eps,
                "no noise": mean,
                "one noise for the batch": mean
                + jnp.where(s > 0, jnp.sqrt(variance), 0) * _rows.normal(key, x_t)[:1],
                "batch-coupled mean": mean + 0.05 * (x_0 - x_0.mean(0, keepdims=True)) + noise,
            }[broken]
            return carry, x_s, jd.kernels.no_weight(x_t)

        return jd.Kernel(Partial(lambda x, t: ()), Partial(step))

    return make


MUTANTS = (
    "variance for standard deviation",
    "alpha_t for alpha_s",
    "flipped sign of eps",
    "no noise",
    "one noise for the batch",
    "batch-coupled mean",
)


@pytest.mark.parametrize("broken", ["none", *MUTANTS])
def test_mutants_are_rejected(broken: str) -> None:
    schedule, mixture = jd.schedules.linear(), asymmetric_mixture()
    x = mixture_samples(mutant(broken), schedule, mixture, jd.grids.uniform(200), 5000)
    worst = np.abs(moment_z_scores(x, mixture)).max()
    assert worst < 5 if broken == "none" else worst > 50  # Monte Carlo: standard errors


COSINE = jd.schedules.cosine()
X = jnp.zeros((2, 3))
BAD = {
    "eta": (lambda: jd.kernels.ddim(lambda x, t: x, COSINE, 1.5), ValueError, r"eta: expected a fraction in \[0, 1\], got 1.5"),
    "variance": (lambda: jd.kernels.ancestral(lambda x, t: x, COSINE, "medium"), ValueError, "variance: expected one of 'small'"),
    "no denoiser": (lambda: jd.kernels.ddim(None, COSINE), TypeError, "denoiser: expected a function, got NoneType"),
    "no fraction": (
        lambda: jd.p_mean_variance(lambda x, t: x, COSINE, X, 0.5, 0.4, variance="learned"), TypeError, "denoiser: expected a Denoised"),
    "backwards": (lambda: jd.p_mean_variance(lambda x, t: x, COSINE, X, 0.4, 0.5), ValueError, "s: expected a time s <= t"),
}  # fmt: skip


test_bad_input = rejects(BAD)
