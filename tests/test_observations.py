"""Observations: linear maps, their transposes and gains, log-densities; denoisers that follow them, and their bias."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SCHEDULES, correlated_gaussian, rejects, slow

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
        "linear": lambda: observations.linear(
            jax.random.normal(jax.random.key(5), (3, 24)), y.reshape(-1)[:3], 0.3
        ),
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
    y, shown = (
        np.broadcast_to(np.asarray(v), seen.y.shape).ravel() for v in (seen.y, seen.observed)
    )
    predicted = matrix @ np.asarray(x).ravel()
    for spread in (0.0, 0.7):
        variance = 0.09 + spread * np.sum(matrix**2, axis=1)
        terms = -0.5 * ((y - predicted) ** 2 / variance + np.log(2 * np.pi * variance))
        np.testing.assert_allclose(seen(x, spread), (shown * terms).sum(), rtol=1e-10)
    np.testing.assert_allclose(seen(x), seen(x, 0.0))


def test_operators_are_what_they_say(x64: None) -> None:
    constant = jnp.full(IMAGE, 0.4)
    np.testing.assert_allclose(
        images("blur").operator(constant), constant, rtol=1e-12
    )  # weights add up to 1
    x = jax.random.normal(jax.random.key(0), IMAGE)
    np.testing.assert_allclose(
        images("downsample").operator(x)[1, 0, 0], x[2:4, 0:2].mean(), rtol=1e-12
    )
    for side, part in (
        ("top", np.s_[:3]),
        ("bottom", np.s_[3:]),
        ("left", np.s_[:, :2]),
        ("right", np.s_[:, 2:]),
    ):
        shown = np.asarray(observations.half(IMAGE, side))
        assert shown[part].all()
        assert shown.sum() == 12
    hidden = observations.mask(
        jnp.where(observations.half(IMAGE) > 0, x, jnp.nan), observations.half(IMAGE), 0.3
    )
    np.testing.assert_allclose(
        hidden(x), observations.mask(x, observations.half(IMAGE), 0.3)(x), rtol=1e-12
    )


def test_counts_and_classes() -> None:
    from scipy.stats import poisson

    x = jnp.array([-1.0, 0.0, 1.0])
    counts = jnp.array([0.0, 3.0, 7.0])
    expected = poisson.logpmf([0, 3, 7], [10 * 1e-3, 5.0, 10.0]).sum()
    np.testing.assert_allclose(observations.poisson(counts, 10.0)(x), expected, rtol=1e-5)
    says = observations.classified(lambda x: jnp.stack([x[0], x[1], 0 * x[0]]), 1)
    np.testing.assert_allclose(
        says(x), jax.nn.log_softmax(jnp.array([-1.0, 0.0, 0.0]))[1], rtol=1e-6
    )


@pytest.mark.parametrize("name", [n if n == "mask" else slow(n) for n in EVERY])
def test_a_function_has_the_gain_of_its_matrix(name: str, x64: None) -> None:
    """The same operator as a function and as a matrix: gains and log-densities to rounding, measured when and wherever."""
    seen = images(name)
    matrix, x = matrix_of(seen), jax.random.normal(jax.random.key(1), IMAGE)
    exact = np.sum(matrix**2, axis=1)
    np.testing.assert_allclose(np.broadcast_to(seen.gain, seen.y.shape).ravel(), exact, rtol=1e-10)
    once = observations.linear(seen.operator, seen.y, 0.3, event_shape=IMAGE)
    np.testing.assert_allclose(once.gain.ravel(), exact, rtol=1e-10)
    expected = observations.linear(jnp.asarray(matrix), seen.y.ravel(), 0.3)(x, 0.7)
    every_time = observations.linear(seen.operator, seen.y, 0.3)
    for function in (once, every_time):
        np.testing.assert_allclose(function(x, 0.7), expected, rtol=1e-10)
        np.testing.assert_allclose(
            jax.vmap(function)(x[None], jnp.full(1, 0.7))[0], expected, rtol=1e-10
        )
    if name != "noisy":  # the mutant
        assert (
            abs(observations.linear(seen.operator, seen.y, 0.3, gain=1.0)(x, 0.7) - expected) > 1e-3
        )


def test_the_gain_of_many_rows_is_probed(x64: None) -> None:
    """400 rows of 20 entries by 256 random signs: relative standard errors of .09; exact in a mask."""
    matrix = jax.random.normal(jax.random.key(0), (400, 20))
    exact = np.sum(np.asarray(matrix) ** 2, axis=1)

    def errors(operator: Callable) -> np.ndarray:
        return (
            np.asarray(observations.linear(operator, jnp.zeros(400), 0.3, event_shape=(20,)).gain)
            / exact
            - 1
        )

    found = errors(lambda v: matrix @ v)
    assert np.sqrt((found**2).mean()) < 0.09 * 1.1
    assert abs(found.mean()) < 0.02
    np.testing.assert_allclose(errors(lambda v: matrix @ v + 5.0), found)  # an offset is no gain
    assert (
        np.sqrt((errors(lambda v: matrix[:, :10] @ v[:10]) ** 2).mean()) > 0.3
    )  # half of the row: a mutant
    shown = jnp.arange(400.0) % 2
    np.testing.assert_array_equal(
        observations.linear(lambda v: shown * v, shown, 0.3, event_shape=(400,)).gain, shown
    )


# --- denoisers that follow an observation --------------------------------------------------------------------------------


call = jax.jit(lambda denoiser, x_t, t: denoiser(x_t, t))  # one program for all times


@pytest.mark.slow
@pytest.mark.parametrize("name", [slow("cosine"), "edm", slow("rectified_flow")])
def test_mmps_is_exact_on_a_correlated_gaussian(name: str, x64: None) -> None:
    """The analytic E[x_0 | x_t, y] to 1e-5, and with it the posterior's score; PiGDM and TMPD where they are exact."""
    schedule, data = (
        SCHEDULES[name](),
        jax.tree.map(lambda leaf: leaf.astype(float), correlated_gaussian()),
    )
    matrix, y = jnp.array([[1.0, 0.5], [0.2, -1.0]]), jnp.array([0.3, -0.4])
    seen = observations.linear(matrix, y, 0.3)
    exact = data.posterior(matrix, y, 0.09 * jnp.eye(2)).denoiser(schedule)
    independent = jd.oracles.gaussian(jnp.array([0.7, -0.4]), jnp.array([0.5, 2.0]))
    isotropic = jd.oracles.gaussian(jnp.array([0.7, -0.4]), jnp.asarray(0.49))
    for t in (0.2, 0.5, 0.8):
        x_t = schedule.alpha(t) * 0.5 + schedule.sigma(t) * jax.random.normal(
            jax.random.key(0), (4, 2)
        )
        found = call(guidance.mmps(data.denoiser(schedule), schedule, seen), x_t, t)
        np.testing.assert_allclose(found, call(exact, x_t, t), rtol=1e-5, atol=1e-9)
        score = jd.prediction.from_x_0(schedule, found, x_t, t, prediction="score")
        analytic = data.posterior(matrix, y, 0.09 * jnp.eye(2)).diffuse(schedule, t).score(x_t)
        np.testing.assert_allclose(
            score, analytic, rtol=1e-5, atol=1e-6 / float(schedule.sigma(t)) ** 2
        )
        for law, make in (
            (independent, lambda d: guidance.tmpd(d, schedule, seen)),
            (isotropic, lambda d: guidance.pigdm(d, schedule, seen, prior_std=0.7)),
        ):
            given = law.posterior(matrix, y, 0.09 * jnp.eye(2)).denoiser(schedule)
            found = call(make(law.denoiser(schedule)), x_t, t)
            np.testing.assert_allclose(found, call(given, x_t, t), rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_the_known_bias_of_the_approximations(x64: None) -> None:
    """On a correlated Gaussian DPS overshoots by the factor it is documented to, and the others err less."""
    data = jax.tree.map(lambda leaf: leaf.astype(float), correlated_gaussian())
    matrix, y, t = jnp.array([[1.0, 0.5]]), jnp.array([0.3]), 0.5
    seen, denoiser = observations.linear(matrix, y, 0.3), data.denoiser(SCHEDULE)
    x_t = jax.random.normal(jax.random.key(0), (4, 2))
    plain = call(denoiser, x_t, t)
    exact = call(data.posterior(matrix, y, 0.09 * jnp.eye(1)).denoiser(SCHEDULE), x_t, t) - plain
    dps = call(guidance.dps(denoiser, SCHEDULE, seen), x_t, t) - plain
    spread = (matrix @ data.denoised_covariance(SCHEDULE, x_t, t) @ matrix.T)[0, 0, 0]
    np.testing.assert_allclose(dps, exact * (0.09 + spread) / 0.09, rtol=1e-6)
    for make in (guidance.pigdm, guidance.tmpd):
        error = np.abs(call(make(denoiser, SCHEDULE, seen), x_t, t) - plain - exact).max()
        assert 1e-3 < error < 0.1 * np.abs(dps - exact).max()


@pytest.mark.parametrize("name", [slow("dps"), "pigdm", slow("tmpd"), slow("mmps")])
def test_no_row_sees_another(name: str, x64: None) -> None:
    """A norm or an inner product over the batch would couple the rows: the mutant does, and is seen to."""
    denoiser = jax.tree.map(lambda leaf: leaf.astype(float), correlated_gaussian()).denoiser(
        SCHEDULE
    )
    seen = observations.linear(jnp.array([[1.0, 0.5]]), jnp.array([0.3]), 0.3)
    make = getattr(guidance, name)

    def guided(x_t: jax.Array, t: float) -> jax.Array:
        return call(make(denoiser, SCHEDULE, seen), x_t, t)

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
    one, many = (
        call(guidance.pigdm(denoiser, SCHEDULE, images("mask"), num_iterations=n), x_t, 0.5)
        for n in (1, 24)
    )
    np.testing.assert_allclose(one, many, rtol=1e-10)


@pytest.mark.slow
def test_a_learned_variance_passes_through() -> None:
    denoiser = correlated_gaussian().denoiser(SCHEDULE, variance=True)
    seen = observations.noisy(jnp.zeros(2), 0.3)
    for guided in (guidance.dps(denoiser, SCHEDULE, seen), guidance.mmps(denoiser, SCHEDULE, seen)):
        out = guided(jnp.ones((3, 2)), 0.5)
        np.testing.assert_array_equal(out.variance, denoiser(jnp.ones((3, 2)), 0.5).variance)


def test_a_slope_that_is_not_finite_moves_nothing() -> None:
    """Where the likelihood is zero and its gradient NaN the row is left as it was, and the others are not."""
    denoiser = jd.oracles.gaussian(jnp.zeros(2), jnp.ones(2)).denoiser(SCHEDULE)
    x_t = jnp.array([[-2.0, -2.0], [2.0, 1.0]])
    log_r = lambda v: jnp.where(v[0] < 0, -jnp.inf, -jnp.sqrt(v[0]))  # noqa: E731
    plain, guided = (
        jax.jit(d)(x_t, 0.5) for d in (denoiser, guidance.dps(denoiser, SCHEDULE, log_r))
    )
    np.testing.assert_allclose(guided[0], plain[0], rtol=1e-6)
    assert np.all(np.isfinite(guided))
    assert np.abs(guided[1] - plain[1]).max() > 1e-3
    assert np.isnan(jax.grad(log_r)(-jnp.ones(2))[0])  # as it would come


@pytest.mark.slow
def test_repaint_keeps_what_is_seen_and_is_biased(x64: None) -> None:
    """Correlation .8: given the first coordinate the second is a normal law, whose variance RePaint's halves miss."""
    data = jax.tree.map(lambda leaf: leaf.astype(float), correlated_gaussian())
    y, shown = jnp.array([1.7, 0.0]), jnp.array([1.0, 0.0])
    x = jd.prior_sample(jax.random.key(0), SCHEDULE, (2000, 2))

    def spread(num_resamples: int) -> tuple[float, float]:
        kernel = guidance.repaint(
            data.denoiser(SCHEDULE), SCHEDULE, y, shown, num_resamples=num_resamples
        )
        out = np.asarray(jd.sample(jax.random.key(1), kernel, x, jd.grids.uniform(30)).x)
        np.testing.assert_array_equal(out[:, 0], 1.7)
        return float(out[:, 1].mean()), float(out[:, 1].std())

    exact = -0.4 + 0.56 * 1.0, np.sqrt(0.49 - 0.56**2)
    once, often = spread(1), spread(5)
    assert (
        abs(once[0] - exact[0]) > 0.1
    )  # plain replacement learns too little of the first coordinate
    assert abs(often[0] - exact[0]) < abs(once[0] - exact[0])


Y, IDENTITY = jnp.zeros(3), lambda x: x
BAD: dict[str, tuple[Callable, type[Exception], str]] = {
    "noise": (lambda: observations.noisy(Y, 0.0), ValueError, "noise_std: expected a positive standard deviation"),
    "integers": (lambda: observations.noisy(jnp.zeros(3, int), 0.1), TypeError, "y: expected a floating dtype"),
    "matrix": (lambda: observations.linear(jnp.eye(2), Y, 0.1), ValueError, r"operator, y: expected shapes \[m, d\] and \[m\]"),
    "mask": (lambda: observations.mask(Y, jnp.ones((2, 3)), 0.1), ValueError, "observed: expected a shape that broadcasts"),
    "mask of 255": (lambda: observations.mask(Y, np.array([255, 0, 0], np.uint8), 0.1), ValueError, r"observed: expected a mask of 0 and 1 \(for any other array: `mask > 0`\), got 255"),
    "soft mask": (lambda: observations.mask(Y, jnp.array([1.0, 0.5, 0.0]), 0.1), ValueError, "observed: expected a mask of 0 and 1 .*, got 0.5 at index 1 of 3"),
    "NaN mask": (lambda: observations.mask(Y, jnp.array([1.0, jnp.nan, 0.0]), 0.1), ValueError, "observed: expected a mask of 0 and 1 .*, got nan"),
    "complex mask": (lambda: observations.mask(Y, jnp.ones(3, complex), 0.1), TypeError, "observed: expected a mask of bool, int or float, got dtype complex64"),
    "mask of an image": (lambda: guidance.repaint(IDENTITY, SCHEDULE, Y, jnp.full(3, 255)), ValueError, "observed: expected a mask of 0 and 1"),
    "NaN seen": (lambda: observations.mask(Y.at[0].set(jnp.nan), jnp.ones(3), 0.1), ValueError, "y: expected finite entries where it is observed, got nan"),
    "NaN": (lambda: observations.noisy(Y.at[0].set(jnp.nan), 0.1), ValueError, "y: expected finite entries, got nan"),
    "gain": (lambda: observations.linear(IDENTITY, Y, 0.1, gain=-1.0), ValueError, "gain: expected a finite diagonal of A A"),
    "event_shape": (lambda: observations.linear(IDENTITY, Y, 0.1, event_shape=(4,)), ValueError, r"what operator returns: expected the shape of y, \(3,\), got \(4,\)"),
    "another shape": (lambda: observations.linear(IDENTITY, jnp.zeros(1), 0.1)(Y), ValueError, r"what operator returns: expected the shape of y, \(1,\), got \(3,\)"),
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
    """Its arrays are leaves; the static fields are not. It is a function as it is."""
    for name in EVERY:
        one, two = images(name, 0), images(name, 1)
        assert jax.tree.structure(one) == jax.tree.structure(two)
    assert len(jax.tree.leaves(images("mask"))) == 5
    shown = repr(images("downsample"))
    assert "y=float32[3, 2, 1], noise_std=0.3" in shown
    assert "operator=BlockMeans(factor=2)" in shown
