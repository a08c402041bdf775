"""Metrics against scikit-learn and known answers."""

import jax
import numpy as np
import pytest
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from jaxdiff.metrics import nearest_neighbour_accuracy


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


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="y: expected the shape of x"):
        nearest_neighbour_accuracy(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="x: expected at least 2 examples"):
        nearest_neighbour_accuracy(np.zeros((1, 2)), np.zeros((1, 2)))
