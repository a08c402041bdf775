"""Fitted mixtures: what is recovered, what the shrinkage does, and images beside one normal law."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rejects

import jaxdiff as jd
from jaxdiff.data import digits
from jaxdiff.oracles import fitted

KEY = jax.random.key(0)
fit = jax.jit(fitted, static_argnums=2, static_argnames="num_iterations")


def two_normals() -> jd.oracles.GaussianMixture:
    """Far from each other, tilted, of unequal weights."""
    return jd.oracles.GaussianMixture(
        jnp.log(jnp.array([0.7, 0.3])),
        jnp.array([[-3.0, 1.0], [4.0, -2.0]]),
        jnp.array([[[1.0, 0.5], [0.5, 0.8]], [[0.3, -0.1], [-0.1, 0.5]]]),
    )


def test_two_separate_normals_are_recovered() -> None:
    """Maximum likelihood: weights, means and covariances within 5 standard errors of 2000 points."""
    truth, num = two_normals(), 2000
    points = truth.sample(jax.random.key(1), (num,))
    found = fit(KEY, points, 2, floor=1e-2, strength=0.0, num_iterations=15)
    order = np.argsort(found.means[:, 0])
    weights = np.asarray(jax.nn.softmax(found.log_weights))[order]
    assert np.abs(weights - [0.7, 0.3]).max() < 5 * np.sqrt(0.21 / num)
    for k, row in enumerate(order):
        covariance, n = np.asarray(truth.covariances[k]), num * [0.7, 0.3][k]
        std = np.sqrt(np.diag(covariance))
        assert np.all(np.abs(found.means[row] - truth.means[k]) < 5 * std / np.sqrt(n))
        # Var of an entry of a sample covariance: (C_ii C_jj + C_ij^2) / n; and the floor's square.
        error = np.sqrt((np.outer(std, std) ** 2 + covariance**2) / n)
        assert np.all(np.abs(found.covariances[row] - covariance) < 5 * error + 1e-4)


def test_one_component_is_the_moments_and_the_floor(x64: None) -> None:
    """The mean, and the covariance plus floor^2, at any strength; images as well as vectors."""
    points = jax.random.normal(KEY, (50, 2, 2, 1)) + 3.0
    flat = np.asarray(points).reshape(50, 4)
    for strength in (0.0, 32.0):
        found = fit(KEY, points, 1, floor=0.3, strength=strength, num_iterations=2)
        np.testing.assert_allclose(found.means[0], flat.mean(0), rtol=1e-12)
        exact = np.cov(flat.T, bias=True) + 0.09 * np.eye(4)
        np.testing.assert_allclose(found.covariances[0], exact, rtol=1e-12)


@pytest.mark.slow
def test_strong_shrinkage_is_one_covariance(x64: None) -> None:
    """A prior of many points leaves each component the mean covariance within."""
    points = two_normals().sample(jax.random.key(1), (500,))
    found = fit(KEY, points, 2, floor=0.1, strength=1e9)
    np.testing.assert_allclose(found.covariances[0], found.covariances[1], rtol=1e-5)
    kept = points[:, 0] < 0
    within = sum(np.cov(points[k].T, bias=True) * k.sum() for k in (kept, ~kept)) / 500
    np.testing.assert_allclose(found.covariances[0], within + 0.01 * np.eye(2), rtol=1e-5)


def test_it_depends_on_its_key_alone() -> None:
    points = two_normals().sample(jax.random.key(1), (200,))
    first, again, other = (fit(key, points, 4, num_iterations=3) for key in (KEY, KEY, jax.random.key(9)))  # fmt: skip
    np.testing.assert_array_equal(first.means, again.means)
    assert np.abs(first.means - other.means).max() > 1e-3


def test_more_components_than_different_points_are_finite() -> None:
    points = jnp.asarray(np.repeat([[0.0, 1.0], [2.0, 3.0]], 5, axis=0))
    found = fit(KEY, points, 4, num_iterations=3)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    assert np.linalg.eigvalsh(np.asarray(found.covariances)).min() > 0.0099


@pytest.mark.slow
def test_digits_are_no_normal_law() -> None:
    """Held-out images are likelier under ten components than under one, by nats an image."""
    splits = digits.load().splits
    train, test = (jd.data.to_unit(splits[name].images, 17) for name in ("train", "test"))
    one, ten = (fit(KEY, train, k) for k in (1, 10))
    flat = test.reshape(len(test), -1)
    gain = np.asarray(ten.log_prob(flat) - one.log_prob(flat))
    assert gain.mean() > 5 * gain.std() / np.sqrt(len(gain))
    assert gain.mean() > 3


POINTS = jnp.ones((5, 2))
BAD: dict[str, Any] = {
    "components": (lambda: fitted(KEY, POINTS, 6), ValueError, "num_components: expected at most one a point, 5, got 6"),
    "none": (lambda: fitted(KEY, POINTS, 0), ValueError, "num_components: expected"),
    "iterations": (lambda: fitted(KEY, POINTS, 2, num_iterations=0), ValueError, "num_iterations: expected"),
    "floor": (lambda: fitted(KEY, POINTS, 2, floor=0.0), ValueError, "floor: expected a positive standard deviation, got 0"),
    "strength": (lambda: fitted(KEY, POINTS, 2, strength=-1.0), ValueError, "strength: expected a number of points of at least 0, got -1"),
    "points": (lambda: fitted(KEY, jnp.ones((5, 2), int), 2), TypeError, "points: expected a floating dtype"),
    "key": (lambda: fitted(0, POINTS, 2), TypeError, "key: expected"),
}  # fmt: skip
test_bad_input = rejects(BAD)
