"""Chains of discrete data whose p_theta(x_0) is known exactly: it sums to one, and every estimator has it, image by image."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow
from scipy import stats

import jaxdiff as jd
from jaxdiff import chain as chains
from jaxdiff import likelihood, losses, work
from jaxdiff.decoders import levels

SCHEDULE = jd.schedules.cosine()
LEVELS = 5
IMAGES = np.linspace(-1, 1, LEVELS)[:, None]  # all images of one pixel
PATHS = 10_000


def one_pixel_chain(variance: object = "large", end: float = 0.0, num_steps: int = 4) -> jd.Chain:
    """A few steps with a denoiser that is far from linear, and asymmetric."""

    def logits(x: jax.Array, t: jax.Array) -> jax.Array:
        values = levels(LEVELS).astype(x.dtype)[None, None]
        return (0.8 + jnp.sin(2 * x))[..., None] * values - values**2 * t[:, None, None]

    denoiser = jd.make_categorical_denoiser(logits, SCHEDULE, LEVELS)
    decoder = jd.decoders.discretised_normal(LEVELS)
    return jd.Chain(
        denoiser, SCHEDULE, jd.grids.uniform(num_steps, end=end), variance=variance, decoder=decoder
    )


def bin_mass(
    mean: np.ndarray, std: np.ndarray, num_levels: int, *, open_ends: bool = True
) -> np.ndarray:
    """A normal distribution's mass in each level's bin, [..., num_levels], the outermost ones without end."""
    half = 1 / (num_levels - 1)
    edges = np.linspace(-1 - half, 1 + half, num_levels + 1)
    if open_ends:
        edges[[0, -1]] = -np.inf, np.inf
    return np.diff(stats.norm.cdf(edges, mean[..., None], std[..., None]))


def exact(chain: jd.Chain, *, open_ends: bool = True, size: int = 1201) -> np.ndarray:
    """p_theta of every one-pixel image: each transition applied to the density of the latents on a fine grid.

    The trapezoidal rule on smooth functions that vanish at the ends has no error but rounding.
    """
    x = np.linspace(-7, 7, size)
    at, ts = jnp.asarray(x)[:, None], chain.times
    density = stats.norm.pdf(x, scale=float(SCHEDULE.sigma(ts[0])))
    for t, s in itertools.pairwise(ts):
        mean, variance = (np.broadcast_to(v, (size, 1)) for v in chain.p_step(at, t, s))
        density = (density * (x[1] - x[0])) @ stats.norm.pdf(x, mean, np.sqrt(variance))
    last = chain.p_last(at)
    masses = bin_mass(
        np.asarray(last.mean)[:, 0],
        np.sqrt(np.asarray(last.variance))[:, 0],
        LEVELS,
        open_ends=open_ends,
    )
    return (density * (x[1] - x[0])) @ masses


def repeated(estimate: Callable, chain: jd.Chain, num: int = PATHS) -> np.ndarray:
    """Independent repetitions for every image, [num, images]: the rows of one large batch."""
    batch = jnp.repeat(IMAGES, num, axis=0)
    return (
        np.asarray(jax.jit(estimate)(jax.random.key(0), chain, batch)).reshape(len(IMAGES), num).T
    )


def z(values: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Standard errors between the means of repetitions and what is expected, by image."""
    return (values.mean(0) - expected) / (values.std(0, ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize(("variance", "end"), [("large", 0.0), slow(0.9, 0.0), slow("large", 0.3)])
def test_every_estimator_has_the_exact_probability(variance: object, end: float, x64: None) -> None:
    """A grid that ends with noise must leave about as much as a bin is wide: the model's last latent lies anywhere in its
    bin, and forward paths that stay near the level's middle would meet the weights' mean only by the rarest of draws."""
    chain = one_pixel_chain(variance, end)
    p = exact(chain)
    np.testing.assert_allclose(p.sum(), 1, atol=1e-10)  # rounding
    np.testing.assert_allclose(exact(chain, size=2401), p, atol=1e-10)  # and no discretisation
    assert p.max() > 1.8 * p.min()  # no symmetry or uniformity to hide behind
    log_w = repeated(likelihood.path_log_weights, chain)
    assert np.abs(z(np.exp(log_w), p)).max() < 4.5  # Monte Carlo, 5 images: Jarzynski
    assert abs(z(np.exp(log_w).sum(1, keepdims=True), 1.0)).max() < 4.5
    # The bounds: of one and the same value by image, below log p, and their sum below 1.
    terms = repeated(lambda k, c, x: -likelihood.vlb_terms(k, c, x).sum(0), chain)
    single = repeated(lambda k, c, x: -losses.vlb(k, c, x), chain)
    for bound in (log_w, terms, single):
        assert z(bound, np.log(p)).max() < 4.5
        assert np.exp(bound.mean(0)).sum() < 1
        error = np.hypot(bound.std(0), log_w.std(0)) / np.sqrt(PATHS)
        assert (np.abs(bound.mean(0) - log_w.mean(0)) < 4.5 * error).all()
    tight = repeated(
        lambda k, c, x: likelihood.importance_log_prob(k, c, x, num_paths=64), chain, 500
    )
    assert z(tight, np.log(p)).max() < 4.5
    # Its bias is about half of its variance, more where weights are skewed.
    assert (np.abs(tight.mean(0) - np.log(p)) < 0.01 + 0.5 * tight.std(0)).all()


@pytest.mark.slow
def test_annealing_and_simulated_data_have_it_too(x64: None) -> None:
    chain = one_pixel_chain()
    p = exact(chain)
    annealed = repeated(
        lambda k, c, x: work.ais(k, c, x, num_temperatures=4, step_size=0.4, num_leapfrog=2),
        chain,
        2000,
    )
    assert np.abs(z(np.exp(annealed), p)).max() < 4.5  # without bias, whatever the moves
    plain = repeated(likelihood.path_log_weights, chain, 2000)
    assert annealed.mean() > plain.mean()  # and nearer to it
    bounds = jax.jit(lambda k, c: work.bidirectional_bounds(k, c, (PATHS, 1), num_paths=4))(
        jax.random.key(1), chain
    )
    level = np.rint((np.asarray(bounds.x_0)[:, 0] + 1) / 2 * (LEVELS - 1)).astype(int)
    drawn = np.bincount(level, minlength=LEVELS) / PATHS
    assert (
        np.abs(drawn - p) < 4.5 * np.sqrt(p * (1 - p) / PATHS)
    ).all()  # the model draws what it says
    for k in range(LEVELS):
        lower, upper = (np.asarray(b)[level == k, None] for b in (bounds.lower, bounds.upper))
        assert z(lower, np.log(p[k]))[0] < 4.5
        assert z(upper, np.log(p[k]))[0] > -4.5


@pytest.mark.slow
def test_mutants_are_rejected(x64: None) -> None:
    """One transition too few, no prior, a decoder without its open ends: by the sum, and by the images."""
    chain = one_pixel_chain()
    p = exact(chain)
    eps = jax.random.normal(jax.random.key(0), (len(chain.times), PATHS * LEVELS, 1))
    x_0 = jnp.repeat(IMAGES, PATHS, axis=0)
    xs, ts = chains.path(chain, x_0, eps), chain.times[::-1]
    log_w = chains.log_weight_of_path(chain, x_0, xs)
    prior = jax.scipy.stats.norm.logpdf(xs[-1], scale=SCHEDULE.sigma(ts[-1])).sum(1)

    def weights(log_w: jax.Array) -> np.ndarray:
        return np.exp(np.asarray(log_w)).reshape(LEVELS, PATHS).T

    def sums_to_one(w: np.ndarray) -> bool:
        return bool(abs(z(w.sum(1, keepdims=True), 1.0)).max() < 4.5)

    assert np.abs(z(weights(log_w), p)).max() < 4.5
    assert sums_to_one(weights(log_w))
    mutants = {
        "a transition too few": log_w - chain.log_step_ratio(xs[0], xs[1], ts[0], ts[1]),
        "no prior": log_w - prior,
        "the density in place of the mass": log_w
        - chain.decoder.log_prob(x_0, chain.p_last(xs[0]))
        + jd.decoders.normal().log_prob(x_0, chain.p_last(xs[0])),
    }
    for name, mutant in mutants.items():
        assert not sums_to_one(weights(mutant)) or np.abs(z(weights(mutant), p)).max() > 5, name
    assert exact(chain, open_ends=False).sum() < 0.99
    assert np.abs(z(weights(log_w), exact(chain, open_ends=False))).max() > 5
    # T - 1 steps are a chain as well, whose sum is one: only the images tell it from the one of T.
    fewer = exact(one_pixel_chain(num_steps=3))
    np.testing.assert_allclose(fewer.sum(), 1, atol=1e-10)  # rounding
    assert np.abs(z(weights(log_w), fewer)).max() > 5


@pytest.mark.slow
def test_gaussian_data_on_levels_in_closed_form(x64: None) -> None:
    """Affine steps keep the latents Gaussian: p_theta of an image of two pixels is a product of differences of Phi."""
    data = jd.oracles.gaussian(jnp.array([0.3, -0.6]), jnp.array([0.3, 0.05]))
    decoder, num = jd.decoders.discretised_normal(7), 4000
    chain = jd.Chain(
        data.denoiser(SCHEDULE), SCHEDULE, jd.grids.uniform(6), variance="large", decoder=decoder
    )
    law = jd.oracles.chain_law(data, chain)
    std = np.sqrt(np.diagonal(np.asarray(law.covariances[0])))
    p = np.multiply.outer(*bin_mass(np.asarray(law.means[0]), std, 7)).ravel()
    np.testing.assert_allclose(p.sum(), 1, atol=1e-12)  # rounding
    images = jnp.asarray(list(itertools.product(np.asarray(levels(7)), repeat=2)))
    log_w = jax.jit(lambda k, c, x: likelihood.paths_log_weights(k, c, x, num))(
        jax.random.key(0), chain, images
    )
    w = np.exp(np.asarray(log_w))
    seen = p > 1e-6  # rarer images have weights whose standard error says little
    assert seen.sum() > 30
    assert np.abs(z(w, p))[seen].max() < 5  # Monte Carlo, of some 40 images
    assert abs(z(w.sum(1, keepdims=True), 1.0)).max() < 4.5
    assert np.exp(np.asarray(log_w).mean(0)).sum() < 1
