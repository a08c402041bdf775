"""Metrics against closed forms, scikit-learn and SciPy; their errors, null distributions and power."""

import tracemalloc
from functools import partial

import jax
import numpy as np
import pytest
from helpers import rejects
from scipy import linalg, stats
from scipy.spatial.distance import pdist
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KernelDensity, KNeighborsClassifier, NearestNeighbors

from jaxdiff import metrics
from jaxdiff.metrics import (
    _classifiers,
    _kernels,
    _parzen,
    _samples,
    _transport,
    nearest_neighbour_accuracy,
    sliced_wasserstein,
)


def linear(points: np.ndarray, labels: np.ndarray):
    return LinearDiscriminantAnalysis().fit(points, labels).predict


def nearest(points: np.ndarray, labels: np.ndarray):
    return KNeighborsClassifier(1).fit(points, labels).predict


# Every metric of two samples, with the side on which it speaks for a difference.
METRICS = {
    "wasserstein": (metrics.wasserstein, "greater"),
    "sliced_wasserstein": (partial(sliced_wasserstein, num_slices=20), "greater"),
    "frechet_distance": (metrics.frechet_distance, "greater"),
    "energy_distance": (metrics.energy_distance, "greater"),
    "mmd": (metrics.mmd, "greater"),
    "mmd_bandwidths": (partial(metrics.mmd, bandwidths=[0.5, 1, 2]), "greater"),
    "nearest_neighbour_accuracy": (nearest_neighbour_accuracy, "greater"),
    "classifier_accuracy": (partial(metrics.classifier_accuracy, fit=linear), "greater"),
    "precision": (metrics.precision, "less"),
    "recall": (metrics.recall, "less"),
    "parzen": (partial(metrics.parzen_log_likelihood, validation=None, widths=0.5), "less"),
}


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
    assert (
        nearest_neighbour_accuracy(x, x + 1e-6).value < 0.05
    )  # copies: the nearest other point is the copy
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
    np.testing.assert_allclose(
        sliced_wasserstein(x, y, num_slices=2).value, np.sqrt(1.25), rtol=1e-3
    )  # cut tails


def test_wasserstein_is_scipys_and_that_of_a_shift() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 1)), random.exponential(size=(60, 1))
    # Rounding: both solve the same problem exactly.
    first = metrics.wasserstein(x, y, order=1).value
    np.testing.assert_allclose(first, stats.wasserstein_distance(x[:, 0], y[:, 0]), rtol=1e-10)
    np.testing.assert_allclose(
        metrics.wasserstein(x, y).value, sliced_wasserstein(x, y, num_slices=2).value, rtol=1e-10
    )
    x, y = random.normal(size=(2, 12, 3))
    first = metrics.wasserstein(x, y, order=1).value
    np.testing.assert_allclose(
        first, stats.wasserstein_distance_nd(x, y), rtol=1e-8
    )  # the tolerance of SciPy's solver
    shift = np.arange(6.0).reshape(3, 2) / 10
    x = random.normal(size=(100, 3, 2))
    np.testing.assert_allclose(
        metrics.wasserstein(x, (x + shift)[::-1]).value, np.sqrt(np.sum(shift**2)), rtol=1e-10
    )


def test_wasserstein_and_frechet_of_normal_laws() -> None:
    """The closed form sqrt(|m|^2 + sum (s - s')^2) of normal laws whose covariances commute."""
    random = np.random.default_rng(1)
    exact = np.sqrt(2.0**2 + 1.0**2 + (1.5 - 0.5) ** 2)
    law = metrics.normal_wasserstein(
        np.zeros(2), np.diag([1.5, 1.0]) ** 2, np.array([2.0, 1.0]), np.diag([0.5, 1.0]) ** 2
    )
    np.testing.assert_allclose(law, exact, rtol=1e-12)
    x = random.normal(size=(800, 2)) * [1.5, 1.0]
    y = random.normal(size=(800, 2)) * [0.5, 1.0] + [2.0, 1.0]
    for metric, bias in ((metrics.wasserstein, 0.01), (metrics.frechet_distance, 0.002)):
        found = metric(x, y)
        # Monte Carlo, and a bias of O(log n / n) of the assignment, O(1 / n) of the moments.
        assert abs(found.value - exact) < 5 * found.standard_error + bias
        assert found.standard_error < 0.1


def test_frechet_distance_is_scipys() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(300, 4)), random.normal(size=(200, 4)) @ random.normal(size=(4, 4))
    own, other = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = linalg.sqrtm(own @ other).real
    expected = np.sqrt(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(own + other - 2 * cross))
    np.testing.assert_allclose(metrics.frechet_distance(x, y).value, expected, rtol=1e-9)
    assert metrics.frechet_distance(x, x).value < 1e-6  # the root of rounding
    flat = x * [1, 1, 0, 0]  # components without variance
    np.testing.assert_allclose(metrics.frechet_distance(flat, flat + 0.5).value, 1.0, rtol=1e-7)


@pytest.mark.parametrize("sizes", [(12, 12), (20, 5), (2, 3)])
def test_frechet_distance_of_few_examples_is_that_of_all_dimensions(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer examples than dimensions: value and standard error of the d x d covariances, without them."""
    random = np.random.default_rng(0)
    turn = random.normal(size=(40, 40))
    x, y = random.normal(size=(sizes[0], 40)) @ turn, random.normal(size=(sizes[1], 40)) + 1.0
    powers, plain = [], _transport._power
    monkeypatch.setattr(
        _transport,
        "_power",
        lambda matrix, power: powers.append(len(matrix)) or plain(matrix, power),
    )
    small = metrics.frechet_distance(x, y)
    assert max(powers) == sum(sizes)
    monkeypatch.setattr(_transport, "_coordinates", lambda x, y: (x, y))
    whole = metrics.frechet_distance(x, y)
    assert max(powers) == 40
    np.testing.assert_allclose(
        small, whole, rtol=1e-6
    )  # rounding, through roots of singular matrices


def test_frechet_distance_of_images_takes_no_matrix_of_all_pixels() -> None:
    """40 images of 64x64x3: a covariance has 12,288^2 entries, 1.2 GB, and its roots took minutes."""
    x, y = np.random.default_rng(0).normal(size=(2, 40, 64, 64, 3)).astype(np.float32)
    tracemalloc.start()
    found = metrics.frechet_distance(x, y + 0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 40 * 12_288 * 8  # some copies of the data, in float64
    assert found.value > 0.1 * 12_288**0.5  # the means' distance, and more


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of all pairs, held some rows at a time."""
    x, y = np.random.default_rng(0).normal(size=(2, 30, 3))
    y = y[:25] + 0.3
    pairs = {
        "energy": lambda: metrics.energy_distance(x, y),
        "mmd": lambda: metrics.mmd(x, y, bandwidths=[0.5, 1, 2]),
        "median": lambda: metrics.mmd(x, y),
        "neighbours": lambda: nearest_neighbour_accuracy(x[:25], y),
        "precision": lambda: metrics.precision(x, y),
        "recall": lambda: metrics.recall(x, y),
        "parzen": lambda: metrics.parzen_log_likelihood(x, y, validation=y[:9]),
    }
    whole = {name: figure() for name, figure in pairs.items()}
    shapes, plain = [], _samples.squared_distances

    def watched(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        shapes.append(len(x) * len(y))
        return plain(x, y)

    for module in (_kernels, _classifiers, _parzen):
        monkeypatch.setattr(module, "squared_distances", watched)
        monkeypatch.setattr(module, "blocks", partial(_samples.blocks, size=100))
    for name, figure in pairs.items():
        np.testing.assert_allclose(figure(), whole[name], rtol=1e-10, err_msg=name)  # rounding
    assert max(shapes) <= 2 * 100  # a row of pairs more than asked for, at most


def test_too_many_pairs_are_refused_with_their_size() -> None:
    x = np.zeros((9000, 1))
    with pytest.raises(
        ValueError,
        match=r"x: expected at most 8192 .* takes 0\.6 GiB; or use sliced_wasserstein",
    ):
        metrics.wasserstein(x, x)
    with pytest.raises(ValueError, match=r"bandwidths: expected at most 8192 .* takes 2\.4 GiB"):
        metrics.mmd(x, x)


def test_energy_distance_is_scipys() -> None:
    """SciPy's is the root of the biased form, which counts each point's distance from itself."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=50), random.normal(size=70) + 0.5
    biased = stats.energy_distance(x, y) ** 2
    within, within_y = pdist(x[:, None]).mean(), pdist(y[:, None]).mean()
    found = metrics.energy_distance(x[:, None], y[:, None]).value
    np.testing.assert_allclose(found, biased - within / 50 - within_y / 70, rtol=1e-9)


def rbf(shift: np.ndarray, bandwidth: float) -> float:
    """E k(X, Y) of N(0, I) and N(shift, I): the kernel is a normal density, and the convolution widens it by 2."""
    ratio = bandwidth**2 / (bandwidth**2 + 2)
    return ratio ** (len(shift) / 2) * np.exp(-np.sum(shift**2) / (2 * (bandwidth**2 + 2)))


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_discrepancies_of_normal_laws_are_unbiased(shift: float) -> None:
    random, m = np.random.default_rng(2), np.array([shift, -shift])
    found: dict[str, list] = {"mmd": [], "biased": [], "energy": []}
    for _ in range(400):
        x, y = random.normal(size=(20, 2)), random.normal(size=(30, 2)) + m
        found["mmd"].append(metrics.mmd(x, y, bandwidths=[0.7, 1.5]).value)
        # The mutant counts each point's kernel with itself, 1.
        within = [
            np.exp(-(pdist(z)[:, None] ** 2) / (2 * np.array([0.7, 1.5]) ** 2)).mean()
            for z in (x, y)
        ]
        found["biased"].append(found["mmd"][-1] + (1 - within[0]) / 20 + (1 - within[1]) / 30)
        found["energy"].append(metrics.energy_distance(x[:, :1], y[:, :1]).value)
    exact = np.mean([2 * rbf(0 * m, b) - 2 * rbf(m, b) for b in (0.7, 1.5)])
    energy = 2 * np.sqrt(2) * stats.foldnorm(shift / np.sqrt(2)).mean() - 4 / np.sqrt(np.pi)
    z = {
        name: (np.mean(values) - (energy if name == "energy" else exact))
        / (np.std(values) / np.sqrt(400))
        for name, values in found.items()
    }
    assert abs(z["mmd"]) < 5
    assert abs(z["energy"]) < 5
    assert z["biased"] > 5


def test_the_median_heuristic_is_the_median_distance_of_the_pooled_sample() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(21, 3)), random.normal(size=(34, 3)) * 2
    width = np.median(pdist(np.concatenate([x, y])))
    np.testing.assert_allclose(
        metrics.mmd(x, y).value, metrics.mmd(x, y, bandwidths=width).value, rtol=1e-10
    )
    assert metrics.mmd(np.zeros((4, 2)), np.zeros((4, 2))).value == 0  # all one point


@pytest.mark.parametrize(
    "name",
    ["wasserstein", "frechet_distance", "energy_distance", "mmd_bandwidths", "classifier_accuracy"],
)
def test_standard_errors_are_the_spread_over_repetitions(name: str) -> None:
    metric, random = METRICS[name][0], np.random.default_rng(3)
    found = [
        metric(random.normal(size=(100, 2)), 1.5 * random.normal(size=(100, 2)) + 1)
        for _ in range(150)
    ]
    values, errors = np.array(found).T
    # The spread of 150 normal figures is known to 1 / sqrt(300) of itself: 5 of these; a missing factor 2 is far outside.
    assert abs(np.std(values, ddof=1) / np.mean(errors) - 1) < 5 / np.sqrt(300)


@pytest.mark.slow
def test_p_values_are_uniform_under_the_null() -> None:
    """With 19 permutations p is one of 1/20 ... 20/20, each with probability 1/20; mutants are not."""

    def of_the_first_alone(metric, x, y, *, num_permutations, seed):
        half = len(x) // 2
        random = np.random.default_rng(seed)
        shuffled = (random.permutation(x) for _ in range(num_permutations))
        null = np.array([metric(z[:half], z[half:]).value for z in shuffled])
        return metrics.PermutationTest(
            None, null, (1 + np.sum(null >= metric(x, y).value)) / (1 + num_permutations)
        )

    def p_of_chi_square(test, metric) -> float:
        random, counts = np.random.default_rng(4), np.zeros(20)
        for seed in range(200):
            x, y = random.normal(size=(12, 2)), random.normal(size=(12, 2))
            p_value = test(metric, x, y, num_permutations=19, seed=seed).p_value
            counts[round(20 * p_value) - 1] += 1
        return stats.chisquare(counts).pvalue

    for name in ("mmd", "energy_distance", "wasserstein", "frechet_distance"):
        metric = METRICS[name][0]
        assert p_of_chi_square(metrics.permutation_test, metric) > 1e-3  # Monte Carlo, of one key
    assert p_of_chi_square(of_the_first_alone, metrics.mmd) < 1e-6


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_finds_a_shift_and_stands_on_its_floor_without(name: str) -> None:
    metric, alternative = METRICS[name]
    random = np.random.default_rng(5)
    real, other_real, x = random.normal(size=(3, 100, 2))
    # Precision and recall see little of a shift by one: an outlier's ball covers the other sample.
    moved = x + (3 if name in ("precision", "recall") else 1)
    shifted = metrics.permutation_test(
        metric, moved, real, num_permutations=99, alternative=alternative
    )
    assert shifted.p_value == 0.01  # the smallest there is: no permutation comes near
    assert shifted.null.shape == (99,)
    assert (
        metrics.permutation_test(
            metric, x, real, num_permutations=99, alternative=alternative
        ).p_value
        > 0.01
    )
    sign = 1 if alternative == "greater" else -1
    different, same = (metrics.compare(metric, z, real, other_real) for z in (moved, x))
    assert different.floor == same.floor == metric(other_real, real)
    assert sign * different.estimate.value > sign * different.floor.value
    # Monte Carlo: the gap of the shifted sample is many times that between two samples of one law.
    assert abs(same.estimate.value - same.floor.value) < 0.5 * abs(
        different.estimate.value - same.floor.value
    )


def test_features_are_what_the_metric_sees() -> None:
    random = np.random.default_rng(0)
    x, real, other_real = random.normal(size=(3, 50, 2, 2))
    x = x + np.array([0.0, 9.0])

    def first(batch: np.ndarray) -> np.ndarray:
        return batch[..., 0]

    expected = metrics.mmd(first(x), first(real)), metrics.mmd(first(other_real), first(real))
    assert metrics.compare(metrics.mmd, x, real, other_real, features=first) == expected
    assert metrics.compare(metrics.mmd, x[:30], real, other_real).floor == metrics.mmd(
        other_real[:30], real
    )
    assert metrics.permutation_test(metrics.mmd, x, real, num_permutations=19).p_value == 0.05
    assert (
        metrics.permutation_test(metrics.mmd, x, real, num_permutations=19, features=first).p_value
        > 0.05
    )


def test_a_classifier_is_judged_on_held_out_examples() -> None:
    random = np.random.default_rng(6)
    x, y = random.normal(size=(2, 4000, 2))
    for fit in (linear, nearest):
        same = metrics.classifier_accuracy(x, y, fit=fit)
        assert abs(same.value - 0.5) < 5 / (2 * np.sqrt(4000))  # the null's own standard deviation
    # The mutant judges it on what it has learnt.
    points, labels = np.concatenate([x, y]), np.repeat([0, 1], 4000)
    assert np.mean(nearest(points, labels)(points) == labels) == 1
    found = metrics.classifier_accuracy(x, y + np.array([1.5, 0]), fit=linear)
    assert (
        abs(found.value - stats.norm.cdf(0.75)) < 5 * found.standard_error
    )  # Bayes' rule of two normal laws


def test_precision_and_recall_are_those_of_sklearns_neighbours() -> None:
    random = np.random.default_rng(7)
    x, y = random.normal(size=(60, 3)), random.normal(size=(80, 3)) + 0.8

    def covered(points: np.ndarray, of: np.ndarray, k: int) -> float:
        radius = NearestNeighbors(n_neighbors=k + 1).fit(of).kneighbors(of)[0][:, -1]
        distances, neighbours = NearestNeighbors(n_neighbors=len(of)).fit(of).kneighbors(points)
        return np.mean(np.any(distances <= radius[neighbours], axis=1))

    for k in (1, 3, 7):
        np.testing.assert_allclose(
            metrics.precision(x, y, num_neighbours=k).value, covered(x, y, k), rtol=1e-12
        )
        np.testing.assert_allclose(
            metrics.recall(x, y, num_neighbours=k).value, covered(y, x, k), rtol=1e-12
        )


def test_a_lost_mode_costs_recall_and_an_invented_one_precision() -> None:
    random = np.random.default_rng(8)
    two = random.normal(size=(500, 2)) + 20 * (np.arange(500) % 2)[:, None]
    one = random.normal(size=(500, 2))
    lost = metrics.precision(one, two), metrics.recall(one, two)
    assert lost[0].value > 0.9
    assert 0.4 < lost[1].value <= 0.5  # half of the data, less its own points in the gaps
    assert (metrics.recall(two, one), metrics.precision(two, one)) == lost


def test_parzen_is_sklearns_kernel_density_with_the_best_width() -> None:
    random = np.random.default_rng(9)
    x, y, validation = random.uniform(size=(3, 120, 4))
    widths = np.logspace(-1, 0, 10)

    def log_density(width: float, points: np.ndarray) -> np.ndarray:
        return KernelDensity(bandwidth=width, rtol=1e-10).fit(x).score_samples(points)

    best = max(widths, key=lambda w: log_density(w, validation).mean())
    assert metrics.parzen_width(x, validation) == best
    assert widths[0] < best < widths[-1]
    expected = log_density(best, y)
    found = metrics.parzen_log_likelihood(
        x.reshape(120, 2, 2), y.reshape(120, 2, 2), validation=validation.reshape(120, 2, 2)
    )
    np.testing.assert_allclose(found, [expected.mean(), expected.std() / np.sqrt(120)], rtol=1e-8)
    # The mutant picks the width on the data that made the window: the narrowest one wins.
    assert metrics.parzen_width(x, x) == widths[0]


@pytest.mark.slow
def test_parzen_of_a_normal_law() -> None:
    """A window on N(0, 1) is N(0, 1 + w^2): its mean log-density under N(0, 1), in blocks of test data."""
    random, w = np.random.default_rng(10), 0.5
    found = metrics.parzen_log_likelihood(
        random.normal(size=(20_000, 1)), random.normal(size=(2000, 1)), validation=None, widths=w
    )
    exact = -0.5 * np.log(2 * np.pi * (1 + w**2)) - 1 / (2 * (1 + w**2))
    # Monte Carlo: of the test data, and of the window, whose mean over test data is off by O(1 / n).
    assert abs(found.value - exact) < 5 * found.standard_error + 1e-3


X, Y = np.zeros((5, 2)), np.zeros((6, 2))
test_bad_input = rejects({
    "shapes": (lambda: nearest_neighbour_accuracy(X, Y), ValueError, "y: expected the shape of x"),
    "few": (lambda: nearest_neighbour_accuracy(X[:1], X[:1]), ValueError, "x: expected at least 2 examples, got 1"),
    "event shapes": (lambda: metrics.mmd(X, Y[:, :1]), ValueError, r"y: expected the event shape of x, \(5, 2\)"),
    "nan": (lambda: metrics.energy_distance(X, Y + np.nan), ValueError, "y: expected finite values, got 12"),
    "slices": (lambda: sliced_wasserstein(X, X, num_slices=1), ValueError, "num_slices: expected at least 2 directions"),
    "order": (lambda: metrics.wasserstein(X, X, order=0.5), ValueError, "order: expected at least 1, got 0.5"),
    "bandwidths": (lambda: metrics.mmd(X, Y, bandwidths=[1, 0]), ValueError, "bandwidths: expected positive widths"),
    "widths": (lambda: metrics.parzen_width(X, Y, widths=-1.0), ValueError, "widths: expected positive widths"),
    "moments": (lambda: metrics.normal_wasserstein(np.zeros(3), np.eye(2), np.zeros(3), np.eye(3)), ValueError, "mean, other_mean"),
    "neighbours": (lambda: metrics.recall(X, Y, num_neighbours=5), ValueError, "num_neighbours: expected less than the 5"),
    "fit": (lambda: metrics.classifier_accuracy(X, X, fit=3), TypeError, "fit: expected a function, got int"),
    "labels": (lambda: metrics.classifier_accuracy(X, X, fit=lambda *_: len), ValueError, r"fit: expected a classifier .* \(6,\), got \(\)"),
    "floor": (lambda: metrics.compare(metrics.mmd, Y, Y, X), ValueError, "other_real: expected at least as many examples as x, 6, got 5"),
    "alternative": (lambda: metrics.permutation_test(metrics.mmd, X, X, alternative="both"), ValueError, "alternative: expected one of"),
    "permutations": (lambda: metrics.permutation_test(metrics.mmd, X, X, num_permutations=0), ValueError, "num_permutations: expected"),
})  # fmt: skip
