"""Metrics against scikit-learn and known answers."""

import jax
import numpy as np
import pytest
from scipy import linalg, stats
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from jaxdiff.metrics import frechet_distance, nearest_neighbour_accuracy, sliced_wasserstein


def test_it_is_sklearns_leave_one_out() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 40, 3)).astype(np.float32)
    y += 0.7
    points, labels = np.concatenate([x, y]), np.repeat([0, 1], 40)
    expected = cross_val_score(KNeighborsClassifier(1), points, labels, cv=LeaveOneOut()).mean()
    np.testing.assert_allclose(nearest_neighbour_accuracy(x, y).value, expected, rtol=1e-12)


def test_equal_distributions_and_copies() -> None:
    x, y = jax.random.normal(jax.random.key(0), (2, 1000, 2, 2))
    same = nearest_neighbour_accuracy(x, y)
    # Neighbours' answers are correlated (mutual nearest neighbours), so the binomial error is doubled for safety.
    assert abs(same.value - 0.5) < 5 * 2 * same.standard_error
    assert nearest_neighbour_accuracy(x, x + 1e-6).value < 0.05  # copies: the nearest other point is the copy
    assert nearest_neighbour_accuracy(x, x + 100.0).value == 1


def test_sliced_wasserstein_of_a_shift() -> None:
    """Shifting a sample by m moves every projection by theta . m: SW_2^2 = |m|^2 / d over all directions."""
    x = np.random.default_rng(0).normal(size=(500, 3, 2))
    shift = np.arange(6.0).reshape(3, 2) / 10
    found = sliced_wasserstein(x, x + shift, num_slices=4000)
    assert abs(found.value - np.sqrt(np.sum(shift**2) / 6)) < 5 * found.standard_error
    assert sliced_wasserstein(x, x[::-1]).value == 0  # the order of a sample says nothing


def test_sliced_wasserstein_in_one_dimension_is_the_quantile_distance() -> None:
    """W_2 of N(0, 1) and N(0.5, 4): sqrt(0.25 + (2 - 1)^2), at the quantiles themselves."""
    u = (np.arange(20_000) + 0.5) / 20_000
    x, y = stats.norm.ppf(u)[:, None], stats.norm(0.5, 2).ppf(u)[:, None]
    np.testing.assert_allclose(sliced_wasserstein(x, y, num_slices=2).value, np.sqrt(1.25), rtol=1e-3)  # cut tails


def test_frechet_distance_is_scipys() -> None:
    random = np.random.default_rng(0)
    x, other = random.normal(size=(300, 4)), random.normal(size=(300, 4)) @ random.normal(size=(4, 4))
    mean, covariance = other.mean(0), np.cov(other, rowvar=False)
    own = np.cov(x, rowvar=False)
    cross = linalg.sqrtm(own @ covariance).real
    expected = np.sqrt(np.sum((x.mean(0) - mean) ** 2) + np.trace(own + covariance - 2 * cross))
    np.testing.assert_allclose(frechet_distance(x, mean, covariance), expected, rtol=1e-9)
    assert frechet_distance(x, x.mean(0), own) < 1e-6


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="y: expected the shape of x"):
        nearest_neighbour_accuracy(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="x: expected at least 2 examples"):
        nearest_neighbour_accuracy(np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="num_slices: expected at least 2 directions, got 1"):
        sliced_wasserstein(np.zeros((3, 2)), np.zeros((3, 2)), num_slices=1)
    with pytest.raises(ValueError, match=r"mean, covariance: expected shapes \(2,\), \(2, 2\)"):
        frechet_distance(np.zeros((3, 2)), np.zeros(3), np.eye(3))
