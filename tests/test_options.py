"""Numbers that mean nothing are refused by name, wherever a number is asked for, before anything is computed."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts.kernels import KERNELS, names
from contracts.posterior import POSTERIORS
from contracts.posterior import names as posterior_names
from helpers import asymmetric_mixture

import jaxdiff as jd
from jaxdiff import models, training

SCHEDULE = jd.schedules.cosine()
DENOISER = asymmetric_mixture().denoiser(SCHEDULE)
KEY, X, TS = jax.random.key(0), jnp.zeros((4, 2)), jd.grids.uniform(3)
CHAIN = jd.Chain(DENOISER, SCHEDULE, TS)
SEEN = jd.observations.noisy(jnp.zeros(2), 0.1)
IMAGE = jnp.zeros((4, 4, 1))
RANDOM = np.random.default_rng(0)
POINTS, OTHERS = RANDOM.normal(size=(2, 8, 2))


def quadratic(x: jax.Array) -> jax.Array:
    return -jnp.sum(x**2) / 2


def a(function: Callable, *args: Any, **options: Any) -> tuple[Callable, tuple, dict[str, Any]]:
    """A call that is right but for the one option that is put in its place, by name."""
    return function, args, options


# (the call, the option, values that mean nothing besides NaN)
HUGE, NEGATIVE, ZERO = math.inf, -1.0, 0.0
CASES: list[tuple[tuple[Callable, tuple, dict], str, tuple]] = [
    (a(jd.schedules.cosine), "log_snr_min", (HUGE,)),
    (a(jd.schedules.cosine), "log_snr_max", (-HUGE,)),
    (a(jd.schedules.linear), "beta_min", (ZERO, NEGATIVE, HUGE)),
    (a(jd.schedules.linear), "beta_max", (NEGATIVE, HUGE)),
    (a(jd.schedules.sigmoid), "start", (HUGE, -HUGE)),
    (a(jd.schedules.sigmoid), "end", (HUGE, -HUGE)),
    (a(jd.schedules.sigmoid), "tau", (ZERO, NEGATIVE, HUGE)),
    (a(jd.schedules.sigmoid), "clip_min", (ZERO, 1.0)),
    (a(jd.schedules.edm), "sigma_min", (ZERO, NEGATIVE, HUGE)),
    (a(jd.schedules.edm), "sigma_max", (ZERO, HUGE)),
    (a(jd.schedules.linear_betas, 10), "start", (ZERO, NEGATIVE, 1.5)),
    (a(jd.schedules.linear_betas, 10), "end", (ZERO, NEGATIVE, 1.5)),
    (a(jd.schedules.cosine_betas, 10), "s", (NEGATIVE, HUGE)),
    (a(jd.schedules.learned_parameters), "log_snr_min", (HUGE, -HUGE, 99.0)),
    (a(jd.schedules.learned_parameters), "log_snr_max", (HUGE, -HUGE, -99.0)),
    (a(jd.grids.uniform, 3), "start", (ZERO, 2.0)),
    (a(jd.grids.uniform, 3), "end", (1.0, NEGATIVE)),
    (a(jd.grids.quadratic, 3), "start", (ZERO, 2.0)),
    (a(jd.grids.karras, SCHEDULE, 3), "rho", (ZERO, HUGE)),
    (a(jd.grids.karras, SCHEDULE, 3), "margin", (ZERO, NEGATIVE, 1.0)),
    (a(jd.grids.log_snr, SCHEDULE, 3), "margin", (ZERO, NEGATIVE, 1.0)),
    (a(jd.kernels.ddim, DENOISER, SCHEDULE), "eta", (NEGATIVE, 2.0)),
    (a(jd.kernels.ancestral, DENOISER, SCHEDULE), "variance", (NEGATIVE, 2.0)),
    (a(jd.kernels.heun, DENOISER, SCHEDULE), "churn", (NEGATIVE, HUGE)),
    (a(jd.kernels.heun, DENOISER, SCHEDULE), "churn_noise", (NEGATIVE, HUGE)),
    (a(jd.kernels.dpmpp_1s, DENOISER, SCHEDULE), "tau", (NEGATIVE, HUGE)),
    (a(jd.kernels.dpmpp_2m, DENOISER, SCHEDULE), "tau", (NEGATIVE, HUGE)),
    (a(jd.kernels.dpmpp_3m, DENOISER, SCHEDULE), "tau", (NEGATIVE, HUGE)),
    (a(jd.kernels.adaptive, DENOISER, SCHEDULE), "tolerance", (ZERO, NEGATIVE, HUGE)),
    (a(jd.kernels.adaptive, DENOISER, SCHEDULE), "log_snr_range", ((1.0, -1.0), (-HUGE, HUGE))),
    (
        a(jd.kernels.corrected, jd.kernels.ddim(DENOISER, SCHEDULE), DENOISER, SCHEDULE),
        "snr",
        (ZERO, NEGATIVE, HUGE),
    ),
    (a(jd.guidance.classifier_free, DENOISER, DENOISER), "scale", (HUGE,)),
    (a(jd.guidance.classifier_free, DENOISER, DENOISER, 1.0), "rescale", (NEGATIVE, 2.0, HUGE)),
    (a(jd.guidance.classifier, DENOISER, SCHEDULE, lambda x, t: -(x**2).sum(1)), "scale", (HUGE,)),
    (a(jd.guidance.dps, DENOISER, SCHEDULE, quadratic), "scale", (HUGE,)),
    (a(jd.guidance.dps_step, DENOISER, SCHEDULE, SEEN), "scale", (HUGE,)),
    (a(jd.losses.weights.edm), "sigma_data", (ZERO, NEGATIVE, HUGE)),
    (a(jd.losses.weights.min_snr), "gamma", (ZERO, NEGATIVE, HUGE)),
    (a(jd.losses.weights.sigmoid), "bias", (HUGE,)),
    (a(jd.losses.log_normal_times, KEY, 4, SCHEDULE), "mean", (HUGE,)),
    (a(jd.losses.log_normal_times, KEY, 4, SCHEDULE), "std", (ZERO, NEGATIVE, HUGE)),
    (a(jd.losses.loss_aware_terms, KEY, jd.losses.term_history(3), 4), "uniform", (NEGATIVE, 2.0)),
    (a(jd.losses.hybrid, KEY, CHAIN, X), "vlb_weight", (NEGATIVE, HUGE)),
    (a(jd.prediction.clip), "limit", (ZERO, NEGATIVE)),
    (a(jd.prediction.dynamic_threshold), "quantile", (NEGATIVE, 2.0)),
    (a(jd.prediction.dynamic_threshold), "limit", (ZERO, NEGATIVE)),
    (a(jd.prediction.dynamic_threshold), "most", (ZERO, 0.5)),
    (a(jd.likelihood.bits_per_dim, 1.0, 2), "bin_width", (ZERO, NEGATIVE, HUGE)),
    (a(jd.likelihood.ode_log_prob, DENOISER, SCHEDULE, TS, X), "tolerance", (ZERO, NEGATIVE, HUGE)),
    (
        a(jd.likelihood.ode_log_prob, DENOISER, SCHEDULE, TS, X),
        "log_snr_range",
        ((1.0, -1.0), (-HUGE, HUGE)),
    ),
    (a(jd.decoders.discretised_normal, 4), "low", (HUGE, -HUGE, 2.0)),
    (a(jd.decoders.categorical, 4), "high", (HUGE, -HUGE, -2.0)),
    (a(jd.categorical.on_log_snr, lambda x, t: x, SCHEDULE), "low", (HUGE, -HUGE)),
    (a(jd.categorical.on_log_snr, lambda x, t: x, SCHEDULE), "high", (HUGE, -HUGE)),
    (a(jd.moves.ula, KEY, lambda x: -x, X), "step_size", (ZERO, NEGATIVE, HUGE)),
    (a(jd.moves.mala, KEY, quadratic, X), "step_size", (ZERO, NEGATIVE, HUGE)),
    (a(jd.moves.hmc, KEY, quadratic, X), "step_size", (ZERO, NEGATIVE, HUGE)),
    (a(jd.work.ais, KEY, CHAIN, X, num_temperatures=2), "step_size", (ZERO, NEGATIVE, HUGE)),
    (a(jd.posterior.composed, [DENOISER], [1.0], SCHEDULE), "prior_std", (ZERO, NEGATIVE, HUGE)),
    (
        a(jd.posterior.composed, [DENOISER, DENOISER], schedule=SCHEDULE),
        "exponents",
        ((1.0, math.nan), (1.0, HUGE)),
    ),
    (
        a(jd.posterior.mixed, [DENOISER, DENOISER], schedule=SCHEDULE),
        "log_weights",
        ((0.0, math.nan), (0.0, HUGE)),
    ),
    (a(jd.posterior.twisted, DENOISER, SCHEDULE, quadratic), "prior_std", (ZERO, NEGATIVE, HUGE)),
    (a(jd.posterior.daps, DENOISER, SCHEDULE, quadratic), "prior_std", (ZERO, NEGATIVE)),
    (a(jd.posterior.daps, DENOISER, SCHEDULE, quadratic), "step_size", (ZERO, NEGATIVE, HUGE)),
    (a(jd.posterior.diffpir, DENOISER, SCHEDULE, SEEN), "zeta", (NEGATIVE, 2.0)),
    (a(jd.posterior.diffpir, DENOISER, SCHEDULE, SEEN), "weight", (ZERO, NEGATIVE, HUGE)),
    (a(jd.posterior.diffpir, DENOISER, SCHEDULE, SEEN), "prior_std", (ZERO, NEGATIVE)),
    (a(jd.posterior.mgdm, DENOISER, SCHEDULE, quadratic), "learning_rate", (ZERO, NEGATIVE, HUGE)),
    (a(jd.posterior.midpoint, DENOISER, SCHEDULE, quadratic), "fraction", (ZERO, NEGATIVE, 2.0)),
    (a(jd.posterior.midpoint, DENOISER, SCHEDULE, quadratic), "step_size", (ZERO, NEGATIVE, 2.0)),
    (a(jd.posterior.midpoint, DENOISER, SCHEDULE, quadratic), "prior_std", (ZERO, NEGATIVE, HUGE)),
    (a(jd.posterior.langevin, [DENOISER], [1.0], SCHEDULE), "snr", (ZERO, NEGATIVE, HUGE)),
    (a(jd.posterior.metropolis, lambda x, t: x.sum(1), SCHEDULE), "snr", (ZERO, NEGATIVE, HUGE)),
    (a(jd.posterior.hamiltonian, lambda x, t: x.sum(1), SCHEDULE), "snr", (ZERO, NEGATIVE, HUGE)),
    (a(jd.posterior.gaussian_belief, SCHEDULE, 0.0), "std", (ZERO, NEGATIVE, HUGE)),
    (a(jd.posterior.noise_level, SCHEDULE), "noise_std", (ZERO, NEGATIVE, HUGE)),
    (a(jd.observations.noisy, IMAGE), "noise_std", (ZERO, NEGATIVE, HUGE)),
    (a(jd.observations.blur, IMAGE, noise_std=1.0), "width", (ZERO, NEGATIVE, HUGE)),
    (a(jd.observations.poisson, jnp.ones(4)), "peak", (ZERO, NEGATIVE, HUGE)),
    (a(jd.observations.poisson, jnp.ones(4), 3.0), "floor", (ZERO, NEGATIVE, HUGE)),
    (a(jd.resampling.systematic), "threshold", (NEGATIVE, HUGE)),
    (a(jd.resampling.residual), "threshold", (NEGATIVE, HUGE)),
    (a(jd.metrics.wasserstein, POINTS, OTHERS), "order", (ZERO, 0.5, HUGE)),
    (a(jd.metrics.mmd, POINTS, OTHERS), "bandwidth", (ZERO, NEGATIVE, HUGE)),
    (a(jd.oracles.empirical, POINTS), "bandwidth", (NEGATIVE, HUGE)),
    (a(training.make_optimizer, num_steps=10, warmup=2), "learning_rate", (ZERO, NEGATIVE, HUGE)),
    (a(training.make_optimizer, num_steps=10, warmup=2), "final_scale", (NEGATIVE, HUGE)),
    (a(training.make_optimizer, num_steps=10, warmup=2), "clip_norm", (ZERO, NEGATIVE)),
    (a(training.make_optimizer, num_steps=10, warmup=2), "weight_decay", (NEGATIVE, HUGE)),
    (a(training.make_optimizer, num_steps=10, warmup=2), "b1", (NEGATIVE, 1.0)),
    (a(training.make_optimizer, num_steps=10, warmup=2), "b2", (NEGATIVE, 1.0)),
    (a(training.make_step, quadratic, optax.sgd(1.0)), "ema_decay", (NEGATIVE, 1.0)),
    (a(training.denoising_loss, quadratic, SCHEDULE), "label_drop", (NEGATIVE, 2.0)),
    (a(models.unet), "dropout", (NEGATIVE, 1.0)),
    (a(jd.sampling.slerp, X, X), "weight", (HUGE,)),
]


@pytest.mark.parametrize(
    ("call", "option", "value"),
    [(call, option, value) for call, option, values in CASES for value in (math.nan, *values)],
    ids=lambda v: v[0].__qualname__ if isinstance(v, tuple) and callable(v[0]) else str(v),
)
def test_a_number_that_means_nothing_is_refused_by_name(
    call: tuple, option: str, value: Any
) -> None:
    function, args, options = call
    if isinstance(value, tuple) and option != "log_snr_range":
        value = jnp.array(value)
    if option == "log_snr_range" and not isinstance(value, tuple):
        value = (value, value)
    with pytest.raises((ValueError, TypeError), match=rf"\b{option}\b"):
        function(*args, **options | {option: value})


WRONG_SHAPES = {
    "one row for all": lambda x, t: x[:1],
    "no channels": lambda x, t: x[:, :1],
    "a number": lambda x, t: 0.0,
    "a batch of vectors": lambda x, t: x[:, None],
}


@pytest.mark.parametrize("shape", WRONG_SHAPES)
@pytest.mark.parametrize("name", [*names(), *posterior_names()])
def test_what_a_denoiser_returns_is_not_broadcast(name: str, shape: str) -> None:
    """One row's answer for all rows would give samples, and wrong ones."""
    wrong = WRONG_SHAPES[shape]
    kernel = (
        KERNELS[name].make(wrong, SCHEDULE)
        if name in KERNELS
        else POSTERIORS[name](wrong, SCHEDULE, None)
    )
    with pytest.raises(
        ValueError, match=r"denoiser\(x_t, t\): expected the shape of x_t, \(4, 2\), got"
    ):
        jax.eval_shape(lambda x: jd.sample(KEY, kernel, x, TS).x, X)


@pytest.mark.parametrize("schedule", [0.3, jd.schedules.cosine, None])
def test_what_is_no_schedule_is_named(schedule: Any) -> None:
    with pytest.raises(
        TypeError, match=r"schedule: expected a Schedule such as schedules.cosine\(\), got"
    ):
        jd.q_sample(schedule, X, 0.5, X)


NOT_MIXTURES = {
    "log_weights": (jnp.array([0.0, jnp.nan]), jnp.zeros((2, 2)), jnp.ones(2)),
    "means": (jnp.zeros(2), jnp.full((2, 2), jnp.inf), jnp.ones(2)),
    "covariances": (jnp.zeros(2), jnp.zeros((2, 2)), jnp.array([1.0, -1.0])),
    "covariances ": (jnp.zeros(1), jnp.zeros((1, 2)), jnp.array([[[1.0, 0.9], [0.0, 1.0]]])),
    "covariances  ": (
        jnp.zeros(1),
        jnp.zeros((1, 2)),
        jnp.array([[[1.0, jnp.nan], [jnp.nan, 1.0]]]),
    ),
}


@pytest.mark.parametrize("name", NOT_MIXTURES)
def test_what_is_no_mixture_is_refused(name: str) -> None:
    """A matrix that is not symmetric gave the density of another one, in silence."""
    with pytest.raises(ValueError, match=rf"^{name.strip()}: expected"):
        jd.oracles.GaussianMixture(*NOT_MIXTURES[name])


def test_a_mixture_is_a_pytree_of_anything() -> None:
    """Gradients and shapes go through it, which are no mixtures; a component of weight 0 is one."""
    mixture = jd.oracles.GaussianMixture(
        jnp.array([0.0, -jnp.inf]), jnp.ones((2, 2)), jnp.stack([jnp.eye(2)] * 2)
    )
    slope = jax.grad(lambda m: m.log_prob(jnp.zeros((1, 2))).sum())(asymmetric_mixture())
    assert jax.tree.map(jnp.shape, slope).means == (3, 2)
    assert jax.tree.map(lambda leaf: -leaf, mixture).covariances.min() < 0
