"""The spread of a model and an observation under it, against dense linear algebra."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import correlated_gaussian, rejects, slow, spread_of_gaussian

import jaxdiff as jd
from jaxdiff import guidance, observations, posterior
from jaxdiff.guidance._spread import Covariance, conditioner
from jaxdiff.guidance._triangular import inverse_of_lower, lower_root

SHAPE, SIZE = (4, 4, 1), 16
SCHEDULE = jd.schedules.cosine()
RANDOM = np.random.default_rng(0)
IMAGE, BASIS = RANDOM.normal(size=SHAPE), np.linalg.qr(RANDOM.normal(size=(SIZE, SIZE)))[0]
STDS, ROWS = RANDOM.uniform(0.1, 0.5, SHAPE), RANDOM.normal(size=(3, SIZE))

# Rows of A do not overlap: the diagonal of A A^T is all of it.
DISJOINT: dict[str, Callable[[], observations.Observation]] = {
    "mask": lambda: observations.mask(
        jnp.asarray(IMAGE), observations.half(SHAPE), jnp.asarray(STDS)
    ),
    "downsample": lambda: observations.downsample(jnp.asarray(IMAGE[:2, :2]), 2, 0.2),
    "noisy": lambda: observations.noisy(jnp.asarray(IMAGE), 0.3),
    "one row": lambda: observations.linear(jnp.asarray(ROWS[:1]), jnp.ones(1), 0.3),
}
OVERLAPPING: dict[str, Callable[[], observations.Observation]] = {
    "blur": lambda: observations.blur(jnp.asarray(IMAGE), 1.0, 0.2),
    "matrix": lambda: observations.linear(jnp.asarray(ROWS), jnp.ones(3), jnp.asarray(STDS[0, :3, 0])),
}  # fmt: skip


def test_the_root_of_a_matrix_and_its_inverse(x64: None) -> None:
    factor = RANDOM.normal(size=(3, 20, 30)) * np.geomspace(1, 100, 20)[:, None]
    matrices = np.eye(20) + factor @ factor.mT
    roots = np.asarray(jax.vmap(lower_root)(matrices))
    np.testing.assert_allclose(roots, np.linalg.cholesky(matrices), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(np.triu(roots, 1), 0)
    inverses = jax.vmap(inverse_of_lower)(roots)
    np.testing.assert_allclose(
        inverses @ roots, np.broadcast_to(np.eye(20), roots.shape), atol=1e-9
    )
    assert np.isnan(lower_root(-jnp.eye(2))).any()


def test_a_sampler_does_not_wait_for_the_threads_of_lapack() -> None:
    def root(x_0: jax.Array) -> jax.Array:
        seen = observations.noisy(x_0, 0.3)
        return conditioner(seen, covariance(3, 0.1)).inverse_root

    assert "lapack" not in jax.jit(root).lower(jnp.ones(SHAPE)).as_text()


def covariance(num_axes: int, rest: float) -> Covariance:
    variance = rest + np.linspace(1.0, 0.2, num_axes)
    axes = BASIS[:num_axes].reshape(num_axes, *SHAPE)
    # Without another direction the smallest variance stands for it.
    rest = variance[-1] if num_axes == SIZE else rest
    return Covariance(*(jnp.asarray(v) for v in (axes, variance, rest)))


@jax.jit
def conditioned(seen: observations.Observation, V: Covariance, x_0: jax.Array) -> tuple:
    prepared = conditioner(seen, V)
    log_likelihood, mean = prepared(x_0)
    return log_likelihood, mean, prepared.variance()


def closed_form(seen: observations.Observation, V: Covariance, x_0: np.ndarray) -> tuple:
    """log N(y; A x_0, S), x_0 + V A^T S^-1 (y - A x_0) and diag(V - V A^T S^-1 A V), S = noise + A V A^T."""
    shape = x_0.shape[1:]
    columns = [np.ravel(seen.operator(jnp.asarray(e.reshape(shape)))) for e in np.eye(x_0[0].size)]
    shown = np.broadcast_to(seen.observed, seen.y.shape).ravel()
    A, y = np.stack(columns, 1)[shown], np.ravel(seen.y)[shown]
    noise = np.broadcast_to(np.asarray(seen.noise_std) ** 2, seen.y.shape).ravel()[shown]
    axes, flat = np.asarray(V.axes).reshape(len(V.axes), -1), x_0.reshape(len(x_0), -1)
    U = axes.T @ axes
    dense = axes.T * np.asarray(V.variance) @ axes + float(V.rest) * (np.eye(len(U)) - U)
    S, residual = A @ dense @ A.T + np.diag(noise), y - flat @ A.T
    gain = dense @ A.T @ np.linalg.inv(S)
    quadratic = np.einsum("bi,ij,bj->b", residual, np.linalg.inv(S), residual)
    log_likelihood = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * S)[1])
    mean, variance = flat + residual @ gain.T, np.diag(dense - gain @ A @ dense)
    return log_likelihood, mean.reshape(x_0.shape), variance.reshape(shape)


@pytest.mark.parametrize(
    ("name", "num_axes", "rest"),
    [
        ("mask", 5, 0.3),
        slow("mask", SIZE, 0.05),
        ("downsample", 5, 0.3),
        slow("downsample", SIZE, 0.05),
        slow("noisy", 5, 0.3),
        slow("one row", 5, 0.3),
        ("blur", 5, 0.0),
        ("matrix", 5, 0.0),
    ],
)
def test_conditioning_is_that_of_normal_laws(
    name: str, num_axes: int, rest: float, x64: None
) -> None:
    """Rounding alone: where rows of A do not overlap, or nothing lies beside the axes."""
    seen, V = (DISJOINT | OVERLAPPING)[name](), covariance(num_axes, rest)
    x_0 = np.random.default_rng(1).normal(size=(3, *SHAPE))
    log_likelihood, mean, variance = conditioned(seen, V, jnp.asarray(x_0))
    exact = closed_form(seen, V, x_0)
    np.testing.assert_allclose(log_likelihood, exact[0], rtol=1e-11)
    np.testing.assert_allclose(mean, exact[1], atol=1e-11)
    if name in ("mask", "noisy") or rest == 0:
        np.testing.assert_allclose(variance, exact[2], atol=1e-12)
    assert np.all(variance > exact[2] - 1e-12)
    assert np.all(variance <= V.diagonal() + 1e-12)


def test_with_equal_variances_it_is_the_observation(x64: None) -> None:
    """Axes or no axes: N(y; A x_0, noise_std^2 + variance A A^T), at any number of axes."""
    x_0 = jnp.asarray(np.random.default_rng(1).normal(size=(3, *SHAPE)))
    for name in ("mask", "downsample"):
        seen, V = DISJOINT[name](), covariance(5, 0.3)._replace(variance=jnp.full(5, 0.3))
        expected = jax.vmap(seen, (0, None))(x_0, 0.3)
        np.testing.assert_allclose(conditioned(seen, V, x_0)[0], expected, rtol=1e-12)


def test_a_covariance_is_its_matrix(x64: None) -> None:
    V = covariance(5, 0.3)
    axes = np.asarray(V.axes).reshape(5, -1)
    dense = axes.T * np.asarray(V.variance) @ axes + 0.3 * (np.eye(SIZE) - axes.T @ axes)
    np.testing.assert_allclose(V.diagonal().ravel(), np.diag(dense), rtol=1e-12)
    root = np.asarray(V.root(jnp.eye(SIZE).reshape(SIZE, *SHAPE))).reshape(SIZE, SIZE)
    np.testing.assert_allclose(root, root.T, atol=1e-12)
    np.testing.assert_allclose(root @ root, dense, atol=1e-12)


# --- the spread of a model -----------------------------------------------------------------------------------------------


def measured(
    data: jd.oracles.GaussianMixture, num: int, schedule: jd.Schedule = SCHEDULE, **options: Any
) -> posterior.Spread:
    """The spread of the exact model, measured on draws of the data; compiled as one program."""

    @jax.jit
    def found(key: jax.Array) -> posterior.Spread:
        points = data.sample(jax.random.fold_in(key, 0), (num,))
        key = jax.random.fold_in(key, 1)
        return posterior.spread_of(key, data.denoiser(schedule), schedule, points, **options)

    return found(jax.random.key(0))


def matrix_at(spread: posterior.Spread, log_snr: float) -> np.ndarray:
    V = spread.at(SCHEDULE, SCHEDULE.time(jnp.asarray(log_snr)), jnp.float64)
    return np.asarray(V.root(V.root(jnp.eye(spread.axes.shape[1]))))


@pytest.mark.parametrize("num_levels", [3, slow(13)])
def test_the_spread_of_normal_data_is_exact(num_levels: int, x64: None) -> None:
    """Cov[x_0 | x_t] = (C^-1 + exp(lambda) I)^-1 at every level, measured or between; the fraction is 1."""
    data, num = correlated_gaussian(), 4000
    found = measured(data, num, num_levels=num_levels)
    # A variance of 4000 normal numbers: 5 standard errors; two of them in a ratio.
    error = 5 * np.sqrt(2 / num)
    np.testing.assert_allclose(found.fraction, 1, atol=np.sqrt(2) * error)
    ends = -5 - np.log(found.scale.max()), 8 - np.log(np.mean(np.asarray(found.scale)[:-1]))
    np.testing.assert_allclose(found.log_snr, np.linspace(*ends, num_levels), atol=1e-6)
    for log_snr in (-10.0, -3.0, 0.0, 2.0, 8.0, 11.0):
        precision = np.linalg.inv(np.asarray(data.covariances[0])) + np.exp(log_snr) * np.eye(2)
        exact = np.linalg.inv(precision)
        assert np.abs(matrix_at(found, log_snr) - exact).max() < 2 * error * exact.max()


@pytest.mark.slow
def test_what_lies_beside_the_axes_is_their_mean_variance(x64: None) -> None:
    """One axis of three: the other two share one variance, so that the trace is right."""
    variance = jnp.array([2.0, 0.4, 0.1])
    data = jd.oracles.gaussian(jnp.ones(3), variance)
    found = measured(data, 4000, num_axes=1, num_levels=3)
    snr = SCHEDULE.log_snr(0.4)
    V, exact = found.at(SCHEDULE, 0.4, jnp.float64), variance / (1 + variance * jnp.exp(snr))
    np.testing.assert_allclose(jnp.sum(V.diagonal()), jnp.sum(exact), rtol=0.15)
    np.testing.assert_allclose([V.variance[0], V.rest], [exact[0], exact[1:].mean()], rtol=0.15)


@pytest.mark.parametrize("scale", [slow([1.5, 0.5]), [1.5, 0.0]])
def test_infinite_ends_are_finite(scale: list, dtype: str) -> None:
    """At t = 1 it is the covariance of the data, at t = 0 nothing is left; without a variance too."""
    schedule = jd.schedules.cosine(log_snr_min=-np.inf)
    spread = posterior.Spread(
        jnp.eye(2, dtype=dtype)[:1], jnp.array(scale, dtype), jnp.array([-8.0, 8.0], dtype),
        jnp.ones((2, 2), dtype),
    )  # fmt: skip
    for t, expected in ((1.0, scale), (0.0, [0.0, 0.0])):
        variance = spread.at(schedule, t, dtype).diagonal()
        assert variance.dtype == dtype
        np.testing.assert_allclose(variance, expected, rtol=1e-6, atol=1e-30)


@pytest.mark.slow
def test_data_of_one_point_have_no_spread() -> None:
    points = jnp.ones((4, 2))
    found = posterior.spread_of(
        jax.random.key(0), lambda x, t: jnp.ones_like(x), SCHEDULE, points, num_levels=2
    )
    for leaf in (*jax.tree.leaves(found), found.at(SCHEDULE, 0.0, jnp.float32).diagonal()):
        assert np.all(np.isfinite(leaf))


@pytest.mark.slow
def test_a_schedule_with_ends_has_levels_between_them() -> None:
    """Levels that it does not reach are those of its ends."""
    schedule = jd.schedules.cosine(log_snr_min=-2.0, log_snr_max=3.0)
    found = measured(correlated_gaussian(), 500, schedule, num_levels=5)
    assert np.all(np.diff(found.log_snr) >= 0)
    np.testing.assert_allclose([found.log_snr[0], found.log_snr[-1]], [-2, 3], atol=1e-3)
    for t in (0.0, 0.5, 1.0):
        assert np.all(np.isfinite(found.at(schedule, t, jnp.float32).diagonal()))


def test_widened_is_the_optimal_variance_of_normal_data(x64: None) -> None:
    """Independent entries: p(x_s | x_t) of the oracle with its own variance; a time a row, too."""
    data = jd.oracles.gaussian(jnp.array([0.5, -1.0, 0.2]), jnp.array([2.0, 0.4, 0.1]))
    plain, own = (data.denoiser(SCHEDULE, variance=own) for own in (False, True))
    wide = posterior.widened(plain, SCHEDULE, spread_of_gaussian(data))
    x, t = jax.random.normal(jax.random.key(0), (4, 3)), jnp.array([0.2, 0.5, 0.7, 0.9])

    @jax.jit
    def steps(t: jax.Array) -> list[jd.Normal]:
        return [
            jd.p_mean_variance(denoiser, SCHEDULE, x, t, t - 0.1, variance="optimal")
            for denoiser in (wide, own)
        ]

    for now in (jnp.asarray(0.5), t):
        found, exact = steps(now)
        np.testing.assert_allclose(found.mean, exact.mean, rtol=1e-12)
        np.testing.assert_allclose(found.variance, exact.variance, rtol=1e-11)


D, AXES = correlated_gaussian().denoiser(SCHEDULE), jnp.eye(2)
LEVELS, KEY = jnp.array([-8.0, 8.0]), jax.random.key(0)
BAD: dict[str, Any] = {
    "shapes": (lambda: posterior.Spread(AXES, jnp.ones(2), LEVELS, jnp.ones((2, 3))), ValueError, r"scale, fraction: expected shapes \(\(3,\), \(2, 3\)\), got \(\(2,\), \(2, 3\)\)"),
    "scale": (lambda: posterior.Spread(AXES, -jnp.ones(3), LEVELS, jnp.ones((2, 3))), ValueError, "scale: expected a variance of at least 0, got -1"),
    "fraction": (lambda: posterior.Spread(AXES, jnp.ones(3), LEVELS, -jnp.ones((2, 3))), ValueError, "fraction: expected a fraction of at least 0, got -1"),
    "axes": (lambda: posterior.Spread(jnp.eye(2, dtype=int), jnp.ones(3), LEVELS, jnp.ones((2, 3))), TypeError, "axes: expected a floating dtype"),
    "one example": (lambda: posterior.spread_of(KEY, D, SCHEDULE, jnp.ones((1, 2))), ValueError, "expected at least 2 examples and levels, and 1 to 1 axes, got 1, 13 and 0"),
    "axes of data": (lambda: posterior.spread_of(KEY, D, SCHEDULE, jnp.ones((4, 2)), num_axes=3), ValueError, "1 to 2 axes, got 4, 13 and 3"),
    "levels": (lambda: posterior.spread_of(KEY, D, SCHEDULE, jnp.ones((4, 2)), num_levels=1), ValueError, "got 4, 1 and 2"),
    "data": (lambda: posterior.spread_of(KEY, D, SCHEDULE, jnp.ones((4, 2), int)), TypeError, "data: expected a floating dtype"),
    "denoiser": (lambda: posterior.spread_of(KEY, 3.0, SCHEDULE, jnp.ones((4, 2))), TypeError, "denoiser: expected a function, got float"),
    "widened": (lambda: posterior.widened(3.0, SCHEDULE, None), TypeError, "denoiser: expected a function, got float"),
    "spread": (lambda: posterior.twisted(D, SCHEDULE, lambda x: 0.0, spread=0.3), TypeError, "spread: expected a Spread such as"),
    "nodes": (lambda: posterior.twisted(D, SCHEDULE, lambda x: 0.0, num_nodes=0), ValueError, "num_nodes: expected"),
    "kinds of nodes": (lambda: posterior.twisted(D, SCHEDULE, lambda x: 0.0, nodes=jnp.ones((2, 2), int)), TypeError, "nodes: expected a floating dtype"),
    "shape of nodes": (
        lambda: jd.sample(KEY, posterior.twisted(D, SCHEDULE, lambda x: jnp.sum(x), nodes=jnp.ones((2, 3))), jnp.ones((3, 2)), jd.grids.uniform(2)),
        ValueError, r"nodes\[0\]: expected the shape of x_0"),
}  # fmt: skip
test_bad_input = rejects(BAD)


def test_conditioned_is_the_posteriors_denoiser_of_normal_data(x64: None) -> None:
    """E[x_0 | x_t, y] and Var[x_0 | x_t, y] in closed form, for a Gaussian with its own spread."""
    data = correlated_gaussian()
    seen = observations.mask(jnp.array([0.3, 0.0]), jnp.array([1.0, 0.0]), 0.2)
    spread = spread_of_gaussian(data)
    denoiser, x_t, t = data.denoiser(SCHEDULE), jnp.array([[0.4, -1.0], [2.0, 0.3]]), 0.4
    found = guidance.conditioned(denoiser, SCHEDULE, seen, spread)(x_t, t)
    given = data.posterior(jnp.array([[1.0, 0.0]]), jnp.array([0.3]), 0.04 * jnp.eye(1))
    exact = given.denoiser(SCHEDULE, variance=True)(x_t, t)
    np.testing.assert_allclose(found.x_0, exact.x_0, rtol=1e-9)
    np.testing.assert_allclose(found.variance, exact.variance, rtol=1e-9)
    with pytest.raises(TypeError, match="observation: expected an Observation such as"):
        guidance.conditioned(denoiser, SCHEDULE, lambda x: x[0], spread)  # type: ignore[arg-type]
