"""Observations: linear maps, their transposes and gains, log-densities; denoisers that follow them, and their bias."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SCHEDULES, correlated_gaussian, rejects
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import guidance, observations

SCHEDULE = jd.schedules.cosine()
IMAGE = (6, 4, 1)


def images(make: str, key: int = 0) -> observations.Observation:
    """One observation of an image [6, 4, 1] of every kind."""
    y = jax.random.normal(jax.random.key(key), IMAGE)
    return {
        "mask": lambda: observations.mask(y, observations.half(IMAGE, "left"), 0.3),
        "noisy": lambda: observations.noisy(y, 0.3),
        "downsample": lambda: observations.downsample(y[:3, :2], 2, 0.3),
        "blur": lambda: observations.blur(y, 0.8, 0.3),
        "linear": lambda: observations.linear(jax.random.normal(jax.random.key(5), (3, 24)), y.reshape(-1)[:3], 0.3),
    }[make]()


EVERY = ("mask", "noisy", "downsample", "blur", "linear")


def matrix_of(seen: observations.Observation) -> np.ndarray:
    """A as a matrix [m, d], column by column."""
    columns = jax.vmap(lambda e: seen.operator(e.reshape(IMAGE)).reshape(-1))(jnp.eye(24))
    return np.asarray(columns).T


@pytest.mark.parametrize("name", EVERY)
def test_log_density_and_gain_by_matrices(name: str, x64: None) -> None:
    """N(y; A x, noise^2 + spread diag(A A^T)), from the matrix that the operator is."""
    seen = images(name)
    matrix, x = matrix_of(seen), jax.random.normal(jax.random.key(1), IMAGE)
    y, shown = (np.broadcast_to(np.asarray(v), seen.y.shape).ravel() for v in (seen.y, seen.observed))
    predicted = matrix @ np.asarray(x).ravel()
    for spread in (0.0, 0.7):
        variance = 0.09 + spread * np.sum(matrix**2, axis=1)
        terms = -0.5 * ((y - predicted) ** 2 / variance + np.log(2 * np.pi * variance))
        np.testing.assert_allclose(seen(x, spread), (shown * terms).sum(), rtol=1e-10)
    np.testing.assert_allclose(seen(x), seen(x, 0.0))


def test_operators_are_what_they_say(x64: None) -> None:
    constant = jnp.full(IMAGE, 0.4)
    np.testing.assert_allclose(images("blur").operator(constant), constant, rtol=1e-12)  # weights add up to 1
    x = jax.random.normal(jax.random.key(0), IMAGE)
    np.testing.assert_allclose(images("downsample").operator(x)[1, 0, 0], x[2:4, 0:2].mean(), rtol=1e-12)
    for side, part in (("top", np.s_[:3]), ("bottom", np.s_[3:]), ("left", np.s_[:, :2]), ("right", np.s_[:, 2:])):
        shown = np.asarray(observations.half(IMAGE, side))
        assert shown[part].all()
        assert shown.sum() == 12
    hidden = observations.mask(jnp.where(observations.half(IMAGE) > 0, x, jnp.nan), observations.half(IMAGE), 0.3)
    np.testing.assert_allclose(hidden(x), observations.mask(x, observations.half(IMAGE), 0.3)(x), rtol=1e-12)


def test_counts_and_classes() -> None:
    from scipy.stats import poisson

    x = jnp.array([-1.0, 0.0, 1.0])
    counts = jnp.array([0.0, 3.0, 7.0])
    expected = poisson.logpmf([0, 3, 7], [10 * 1e-3, 5.0, 10.0]).sum()
    np.testing.assert_allclose(observations.poisson(counts, 10.0)(x), expected, rtol=1e-5)
    says = observations.classified(lambda x: jnp.stack([x[0], x[1], 0 * x[0]]), 1)
    np.testing.assert_allclose(says(x), jax.nn.log_softmax(jnp.array([-1.0, 0.0, 0.0]))[1], rtol=1e-6)


# --- denoisers that follow an observation --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "edm", "rectified_flow"])
def test_mmps_is_exact_on_a_correlated_gaussian(name: str, x64: None) -> None:
    """The analytic E[x_0 | x_t, y] to 1e-5, and with it the posterior's score; PiGDM and TMPD where they are exact."""
    schedule, data = SCHEDULES[name](), jax.tree.map(lambda leaf: leaf.astype(float), correlated_gaussian())
    matrix, y = jnp.array([[1.0, 0.5], [0.2, -1.0]]), jnp.array([0.3, -0.4])
    seen = observations.linear(matrix, y, 0.3)
    exact = data.posterior(matrix, y, 0.09 * jnp.eye(2)).denoiser(schedule)
    independent = jd.oracles.gaussian(jnp.array([0.7, -0.4]), jnp.array([0.5, 2.0]))
    isotropic = jd.oracles.gaussian(jnp.array([0.7, -0.4]), jnp.asarray(0.49))
    for t in (0.2, 0.5, 0.8):
        x_t = schedule.alpha(t) * 0.5 + schedule.sigma(t) * jax.random.normal(jax.random.key(0), (4, 2))
        mmps = guidance.mmps(data.denoiser(schedule), schedule, seen)
        np.testing.assert_allclose(mmps(x_t, t), exact(x_t, t), rtol=1e-5, atol=1e-9)
        score = jd.prediction.from_x_0(schedule, mmps(x_t, t), x_t, t, prediction="score")
        analytic = data.posterior(matrix, y, 0.09 * jnp.eye(2)).diffuse(schedule, t).score(x_t)
        np.testing.assert_allclose(score, analytic, rtol=1e-5, atol=1e-6 / float(schedule.sigma(t)) ** 2)
        for law, make in (
            (independent, lambda d: guidance.tmpd(d, schedule, seen)),
            (isotropic, lambda d: guidance.pigdm(d, schedule, seen, prior_std=0.7)),
        ):
            given = law.posterior(matrix, y, 0.09 * jnp.eye(2)).denoiser(schedule)
            np.testing.assert_allclose(make(law.denoiser(schedule))(x_t, t), given(x_t, t), rtol=1e-7, atol=1e-9)


def test_the_known_bias_of_the_approximations(x64: None) -> None:
    """On a correlated Gaussian DPS overshoots by the factor it is documented to, and the others err less."""
    data = jax.tree.map(lambda leaf: leaf.astype(float), correlated_gaussian())
    matrix, y, t = jnp.array([[1.0, 0.5]]), jnp.array([0.3]), 0.5
    seen, denoiser = observations.linear(matrix, y, 0.3), data.denoiser(SCHEDULE)
    x_t = jax.random.normal(jax.random.key(0), (4, 2))
    exact = data.posterior(matrix, y, 0.09 * jnp.eye(1)).denoiser(SCHEDULE)(x_t, t) - denoiser(x_t, t)
    dps = guidance.dps(denoiser, SCHEDULE, seen)(x_t, t) - denoiser(x_t, t)
    spread = (matrix @ data.denoised_covariance(SCHEDULE, x_t, t) @ matrix.T)[0, 0, 0]
    np.testing.assert_allclose(dps, exact * (0.09 + spread) / 0.09, rtol=1e-6)
    for make in (guidance.pigdm, guidance.tmpd):
        error = np.abs(make(denoiser, SCHEDULE, seen)(x_t, t) - denoiser(x_t, t) - exact).max()
        assert 1e-3 < error < 0.1 * np.abs(dps - exact).max()


@pytest.mark.parametrize("name", ["dps", "pigdm", "tmpd", "mmps"])
def test_no_row_sees_another(name: str, x64: None) -> None:
    """A norm or an inner product over the batch would couple the rows: the mutant does, and is seen to."""
    denoiser = jax.tree.map(lambda leaf: leaf.astype(float), correlated_gaussian()).denoiser(SCHEDULE)
    seen = observations.linear(jnp.array([[1.0, 0.5]]), jnp.array([0.3]), 0.3)
    guided = getattr(guidance, name)(denoiser, SCHEDULE, seen)
    x_t = jax.random.normal(jax.random.key(0), (4, 2))
    np.testing.assert_allclose(guided(x_t, 0.5)[1:2], guided(x_t[1:2], 0.5), rtol=1e-10)

    def normed(x_t: jax.Array, t: float) -> jax.Array:
        shift = guided(x_t, t) - denoiser(x_t, t)
        return denoiser(x_t, t) + shift / jnp.linalg.norm(shift)  # over the batch

    assert np.abs(normed(x_t, 0.5)[1:2] - normed(x_t[1:2], 0.5)).max() > 1e-3


def test_few_iterations_do_for_inpainting(x64: None) -> None:
    """A A^T is a multiple of the identity on what is seen: one step of conjugate gradients solves PiGDM's system."""
    denoiser = jd.oracles.gaussian(jnp.zeros(24), jnp.full(24, 0.5)).denoiser(SCHEDULE)
    x_t = jax.random.normal(jax.random.key(0), (2, *IMAGE))
    one, many = (guidance.pigdm(denoiser, SCHEDULE, images("mask"), num_iterations=n)(x_t, 0.5) for n in (1, 24))
    np.testing.assert_allclose(one, many, rtol=1e-10)


def test_a_learned_variance_passes_through() -> None:
    denoiser = correlated_gaussian().denoiser(SCHEDULE, variance=True)
    seen = observations.noisy(jnp.zeros(2), 0.3)
    for guided in (guidance.dps(denoiser, SCHEDULE, seen), guidance.mmps(denoiser, SCHEDULE, seen)):
        out = guided(jnp.ones((3, 2)), 0.5)
        np.testing.assert_array_equal(out.variance, denoiser(jnp.ones((3, 2)), 0.5).variance)


def test_repaint_keeps_what_is_seen_and_is_biased(x64: None) -> None:
    """Correlation .8: given the first coordinate the second is a normal law, whose variance RePaint's halves miss."""
    data = jax.tree.map(lambda leaf: leaf.astype(float), correlated_gaussian())
    y, shown = jnp.array([1.7, 0.0]), jnp.array([1.0, 0.0])
    x = jd.prior_sample(jax.random.key(0), SCHEDULE, (2000, 2))

    def spread(num_resamples: int) -> tuple[float, float]:
        kernel = guidance.repaint(data.denoiser(SCHEDULE), SCHEDULE, y, shown, num_resamples=num_resamples)
        out = np.asarray(jd.sample(jax.random.key(1), kernel, x, jd.grids.uniform(30)).x)
        np.testing.assert_array_equal(out[:, 0], 1.7)
        return float(out[:, 1].mean()), float(out[:, 1].std())

    exact = -0.4 + 0.56 * 1.0, np.sqrt(0.49 - 0.56**2)
    once, often = spread(1), spread(5)
    assert abs(once[0] - exact[0]) > 0.1  # plain replacement learns too little of the first coordinate
    assert abs(often[0] - exact[0]) < abs(once[0] - exact[0])


Y, IDENTITY = jnp.zeros(3), lambda x: x
BAD: dict[str, tuple[Callable, type[Exception], str]] = {
    "noise": (lambda: observations.noisy(Y, 0.0), ValueError, "noise_std: expected a positive standard deviation"),
    "integers": (lambda: observations.noisy(jnp.zeros(3, int), 0.1), TypeError, "y: expected a floating dtype"),
    "matrix": (lambda: observations.linear(jnp.eye(2), Y, 0.1), ValueError, r"operator, y: expected shapes \[m, d\] and \[m\]"),
    "mask": (lambda: observations.mask(Y, jnp.ones((2, 3)), 0.1), ValueError, "observed: expected a shape that broadcasts"),
    "side": (lambda: observations.half(IMAGE, "middle"), ValueError, "side: expected one of"),
    "half of a vector": (lambda: observations.half((3,)), ValueError, r"event_shape: expected \(H, W, C\)"),
    "factor": (lambda: observations.downsample(jnp.zeros(IMAGE), 0, 0.1), ValueError, "factor: expected a positive int"),
    "odd image": (lambda: observations.downsample(jnp.zeros((2, 2, 1)), 2, 0.1)(jnp.zeros((5, 4, 1))), ValueError, "x_0: expected sides that are multiples of 2"),
    "blur": (lambda: observations.blur(jnp.zeros(IMAGE), -1.0, 0.1), ValueError, "width: expected a positive standard deviation"),
    "counts": (lambda: observations.poisson(-jnp.ones(3), 1.0), ValueError, "counts: expected no negative count"),
    "classifier": (lambda: observations.classified(None, 1), TypeError, "classifier: expected a function"),
    "plain likelihood": (lambda: guidance.mmps(IDENTITY, SCHEDULE, lambda x: 0.0), TypeError, "observation: expected an Observation such as"),
    "iterations": (lambda: guidance.pigdm(IDENTITY, SCHEDULE, observations.noisy(Y, 0.1), num_iterations=0), ValueError, "num_iterations: expected a positive int"),
    "repaint": (lambda: guidance.repaint(IDENTITY, SCHEDULE, Y, jnp.ones(2)), ValueError, "observed: expected the shape of y"),
}  # fmt: skip
test_bad_input = rejects(BAD)


def test_an_observation_is_a_pytree() -> None:
    """Its arrays are leaves, and what stands still is not."""
    for name in EVERY:
        one, two = images(name, 0), images(name, 1)
        assert jax.tree.structure(one) == jax.tree.structure(two)
    function = observations.as_likelihood("r", images("mask"))
    assert isinstance(function, Partial)
    assert len(jax.tree.leaves(function)) >= 4
