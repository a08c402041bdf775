"""Resampling: every row has the copies that its weight says, on average, and never further off than its scheme allows."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rejects, slow, z_scores
from hypothesis import example, given, strategies

from jaxdiff import resampling

SCHEMES = ("multinomial", "stratified", "systematic", "residual")
LOG_WEIGHTS = (
    jnp.log(jnp.array([0.05, 0.3, 0.02, 0.4, 0.13, 0.1])) + 700
)  # far beyond what exp can bear


pick = jax.jit(lambda scheme, key, log_weights: scheme(key, log_weights))


@functools.cache
def copies(scheme: str, num: int = 4000) -> np.ndarray:
    """Numbers of copies, [num, rows]."""
    draw = jax.jit(jax.vmap(lambda key: getattr(resampling, scheme)(2.0)(key, LOG_WEIGHTS)[0]))
    ancestors = np.asarray(draw(jax.random.split(jax.random.key(0), num)))
    return np.stack([(ancestors == row).sum(1) for row in range(6)], axis=1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_copies_are_right_on_average(scheme: str) -> None:
    expected = 6 * np.asarray(jax.nn.softmax(LOG_WEIGHTS))
    assert np.abs(z_scores(copies(scheme), expected)).max() < 4


def test_schemes_keep_their_bounds() -> None:
    expected = 6 * np.asarray(jax.nn.softmax(LOG_WEIGHTS))
    assert np.all(np.abs(copies("systematic") - expected) < 1)
    assert np.all(np.abs(copies("stratified") - expected) < 2)
    assert np.all(copies("residual") >= np.floor(expected))
    spread = {scheme: copies(scheme).var(0).sum() for scheme in SCHEMES}
    assert spread["systematic"] < spread["stratified"] < spread["residual"] < spread["multinomial"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_threshold(scheme: str) -> None:
    """Equal weights are left alone; a threshold of 0 never resamples."""
    for threshold, log_weights, expected in (
        (0.5, jnp.zeros(6), False),
        (0.0, LOG_WEIGHTS, False),
        (1.0, LOG_WEIGHTS, True),
    ):
        ancestors, resampled = pick(
            getattr(resampling, scheme)(threshold), jax.random.key(0), log_weights
        )
        assert bool(resampled) == expected
        if not expected:
            np.testing.assert_array_equal(ancestors, np.arange(6))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_row_takes_all(scheme: str) -> None:
    log_weights = jnp.array([-jnp.inf, -jnp.inf, 3.0, -jnp.inf])
    ancestors, _ = getattr(resampling, scheme)(1.0)(jax.random.key(0), log_weights)
    np.testing.assert_array_equal(ancestors, 2)


def test_effective_sample_size_of_small_weights() -> None:
    """Weights of any magnitude: rounding of numbers of order one, not of the log-weights."""
    log_weights = jnp.array([0.0, 0.0, -1.0, -50.0])
    exact = (2 + np.exp(-1)) ** 2 / (2 + np.exp(-2))
    for shift in (0.0, -80_000.0, 5000.0):
        np.testing.assert_allclose(
            resampling.effective_sample_size(log_weights + shift), exact, rtol=1e-5
        )


def test_draw() -> None:
    x = jnp.arange(6.0)[:, None]
    drawn = resampling.draw(jax.random.key(0), LOG_WEIGHTS, x, 1000)
    assert drawn.shape == (1000, 1)
    counts = np.bincount(np.asarray(drawn[:, 0], int), minlength=6)
    assert np.all(
        np.abs(counts - 1000 * np.asarray(jax.nn.softmax(LOG_WEIGHTS))) < 1.01
    )  # systematic; float32


# --- rounding: edges that tie, numbers of copies that are integers, many rows --------------------------------------------

CAREFUL = ("stratified", "systematic", "residual")


def keeps_equal_rows(scheme: Callable, num: int) -> bool:
    ancestors, _ = scheme(jax.random.key(num), jnp.full(num, -3.7))
    return bool(np.array_equal(ancestors, np.arange(num)))


def from_floats(choose: Callable) -> Callable:
    """A scheme over weights in floating point: a mutant."""
    return lambda key, log_weights: (choose(key, jax.nn.softmax(log_weights)), True)


def floored(key: jax.Array, weights: jax.Array) -> jax.Array:
    """The whole part of B W_i, where rounding may have taken it a hair below the integer."""
    size = len(weights)
    certain = jnp.floor(size * weights)
    ends, place = jnp.cumsum(certain), jnp.arange(size)
    rest = jnp.cumsum((size * weights - certain) / jnp.maximum(size - ends[-1], 1))
    drawn = jnp.searchsorted(rest, jax.random.uniform(key, (size,)), side="right")
    return jnp.minimum(
        jnp.where(place < ends[-1], jnp.searchsorted(ends, place, side="right"), drawn), size - 1
    )


def summed(key: jax.Array, weights: jax.Array) -> np.ndarray:
    """Systematic, by a running sum in float32: it has lost its digits by the end of many rows."""
    points = (np.arange(len(weights)) + float(jax.random.uniform(key))) / len(weights)
    ends = np.cumsum(np.asarray(weights), dtype=np.float32)
    return np.minimum(np.searchsorted(ends, points, side="right"), len(weights) - 1)


@pytest.mark.parametrize("scheme", CAREFUL)
def test_equal_weights_keep_every_row(scheme: str) -> None:
    for num in (41, 47, 55, 61, 100_000) if scheme == "residual" else (47, 100_000):
        assert keeps_equal_rows(PICK[scheme], num), num


def test_equal_weights_reject_mutants() -> None:
    mutant = jax.jit(from_floats(floored))
    assert not all(keeps_equal_rows(mutant, num) for num in (41, 47, 55, 61))
    assert not keeps_equal_rows(from_floats(summed), 100_000)


def test_whole_copies_are_certain() -> None:
    """B W_i of 3, 2, 1 and 0 from logarithms that are rounded: nothing is left to chance."""
    counts = np.array([3, 0, 2, 1, 0, 2, 1, 0, 0])
    for shift in (0.0, -7.3, 61.7):
        log_weights = jnp.log(jnp.asarray(counts, jnp.float32)) + shift
        for seed in range(5):
            ancestors, _ = PICK["residual"](jax.random.key(seed), log_weights)
            np.testing.assert_array_equal(np.bincount(ancestors, minlength=9), counts)


PICK = {scheme: jax.jit(getattr(resampling, scheme)(2.0)) for scheme in SCHEMES}
SIZE = 13  # one program a scheme
WEIGHTS = strategies.lists(
    strategies.one_of(
        strategies.sampled_from([-np.inf, np.nan, 0.0, -0.6931472, -1e4, 88.0]),
        strategies.floats(-100, 100, width=32),
    ),
    min_size=SIZE,
    max_size=SIZE,
)


@given(WEIGHTS, strategies.integers(0, 2**31))
@example([np.nan] * SIZE, 0)
@example([-np.inf] * (SIZE - 1) + [0.0], 0)
@example([0.0] + [-np.inf] * (SIZE - 1), 0)
@example([-np.inf, *[0.0] * (SIZE - 2), np.nan], 5)
def test_numbers_of_copies(log_weights: list[float], seed: int) -> None:
    """For any weights: rows without a weight are not drawn, and every scheme keeps within its bounds of B W_i."""
    weights = np.where(np.isnan(log_weights), -np.inf, log_weights)
    if not (weights > -np.inf).any():
        for scheme in SCHEMES:
            ancestors, resampled = PICK[scheme](
                jax.random.key(seed), jnp.asarray(log_weights, jnp.float32)
            )
            assert not resampled
            np.testing.assert_array_equal(ancestors, np.arange(SIZE))
        return
    shares = np.exp(weights - weights.max())
    expected = SIZE * shares / shares.sum()
    for scheme in SCHEMES:
        ancestors, resampled = PICK[scheme](
            jax.random.key(seed), jnp.asarray(log_weights, jnp.float32)
        )
        copies = np.bincount(ancestors, minlength=SIZE)
        assert resampled
        assert len(copies) == SIZE
        assert not copies[weights == -np.inf].any()
        slack = 1e-3  # float32: the logarithms' own rounding
        if scheme == "systematic":
            assert np.all(np.abs(copies - expected) < 1 + slack)
        if scheme == "stratified":
            assert np.all(np.abs(copies - expected) < 2 + slack)
        if scheme == "residual":
            assert np.all(copies >= np.floor(expected - slack))


def test_rows_without_weight_are_never_drawn() -> None:
    """At the ends, at ties and in the middle, over many draws; a mutant that rounds points up to 1 draws the last row."""
    log_weights = jnp.where(
        jnp.arange(12) % 3 == 1, 0.0, jnp.where(jnp.arange(12) % 3 == 2, jnp.nan, -jnp.inf)
    )
    keys = jax.random.split(jax.random.key(0), 500)
    for scheme in SCHEMES:
        ancestors = jax.jit(jax.vmap(lambda k, scheme=scheme: PICK[scheme](k, log_weights)[0]))(
            keys
        )
        assert np.all(np.asarray(ancestors) % 3 == 1)
    mutant = np.searchsorted(
        np.cumsum([0.5, 0.5 - 1e-7, 0.0], dtype=np.float32), np.float32(1 - 1e-9), side="right"
    )
    assert min(mutant, 2) == 2


def test_copies_of_many_rows() -> None:
    """100,000 rows in float32, half a copy each but the first: systematic copies keep within one, all along the rows."""
    num = 100_000
    log_weights = np.append(np.float32(np.log(num)), np.zeros(num - 1, np.float32))
    weights = np.exp(log_weights.astype(np.float64))
    expected = num * weights / weights.sum()

    def off(scheme: Callable) -> float:
        ancestors, _ = scheme(jax.random.key(0), jnp.asarray(log_weights))
        # Cumulative sums of copies: an error that grows along the rows shows at the end.
        return float(np.abs(np.cumsum(np.bincount(ancestors, minlength=num) - expected)).max())

    assert off(PICK["systematic"]) < 1.1  # the logarithm's rounding
    assert off(from_floats(summed)) > 10


@pytest.mark.parametrize("num", [7, slow(1000), 1 << 17])
def test_expected_copies_add_up(num: int) -> None:
    """To the number of draws exactly, however the weights are rounded: no point lies beyond the last edge."""
    log_weights = np.random.default_rng(num).normal(0, 2, size=num).astype(np.float32)
    edges = jax.jit(lambda w: resampling._edges(resampling._expected_copies(w, num)))(log_weights)
    assert (int(edges.whole[-1]), int(edges.fraction[-1])) == (num, 0)


# --- weights that are none -----------------------------------------------------------------------------------------------


def test_nan_is_no_weight() -> None:
    """A failed row counts as one without weight: in the size, in what is drawn, and in the mean of all rows."""
    log_weights = jnp.array([jnp.nan, 0.0, -jnp.inf, 0.0])
    np.testing.assert_allclose(resampling.effective_sample_size(log_weights), 2)
    np.testing.assert_allclose(resampling.log_mean_weight(log_weights), np.log(0.5), rtol=1e-6)
    drawn = resampling.draw(jax.random.key(0), log_weights, jnp.arange(4), 1000)
    np.testing.assert_array_equal(np.bincount(drawn, minlength=4), [0, 500, 0, 500])
    for threshold, resampled in ((0.4, False), (0.6, True)):
        assert (
            bool(resampling.systematic(threshold)(jax.random.key(0), log_weights)[1]) == resampled
        )
    # What it is not: nothing, or a mean over the rows that are left.
    assert np.isnan(jax.nn.logsumexp(log_weights))
    assert abs(float(jax.nn.logsumexp(log_weights[1::2]) - np.log(2)) - np.log(0.5)) > 0.5


def test_no_row_has_a_weight() -> None:
    draw = jax.jit(lambda w: resampling.draw(jax.random.key(0), w, jnp.ones((4, 2)), 3))
    for log_weights in (
        jnp.full(4, -jnp.inf),
        jnp.full(4, jnp.nan),
        jnp.array([jnp.nan, -jnp.inf, jnp.nan, jnp.nan]),
    ):
        assert resampling.effective_sample_size(log_weights) == 0
        assert resampling.log_mean_weight(log_weights) == -np.inf
        assert np.isnan(draw(log_weights)).all()


def test_infinite_weights_share_all_of_it_where_they_are_traced() -> None:
    log_weights = jnp.array([0.0, jnp.inf, 3.0, jnp.inf])
    assert jax.jit(resampling.effective_sample_size)(log_weights) == 2
    drawn = jax.jit(lambda w: resampling.draw(jax.random.key(0), w, jnp.arange(4), 10))(log_weights)
    np.testing.assert_array_equal(np.bincount(drawn, minlength=4), [0, 5, 0, 5])
    assert resampling.log_mean_weight(log_weights) == np.inf


def test_a_few_of_many_are_drawn_evenly() -> None:
    """One of 200,000 equal rows, 2000 times: the place is uniform (mean .5, standard error .0065)."""
    one = jax.vmap(lambda key, w: resampling.draw(key, w, jnp.arange(200_000), 1)[0], (0, None))
    keys = jax.random.split(jax.random.key(0), 2000)
    place = np.asarray(jax.jit(one)(keys, jnp.zeros(200_000))) / 200_000
    assert abs(place.mean() - 0.5) < 4 * 0.0065
    assert abs(place.var() - 1 / 12) < 4 * 0.0017


def test_gradients_pass_rows_that_have_failed() -> None:
    log_weights = jnp.array([jnp.nan, 0.0, 0.5, -jnp.inf])
    for function in (resampling.effective_sample_size, resampling.log_mean_weight):
        assert np.isfinite(jax.grad(function)(log_weights)).all()


X = jnp.zeros((4, 2))
test_bad_input = rejects(
    {
        "threshold": (lambda: resampling.residual(-0.1), ValueError, "threshold: expected a fraction of the rows of at least 0"),
        "num": (lambda: resampling.draw(jax.random.key(0), jnp.zeros(4), X, 0), ValueError, "num: expected a positive int"),
        "weights": (lambda: resampling.draw(jax.random.key(0), jnp.zeros(3), X, 2), ValueError, r"log_weights: expected one a row of x, \(4,\), got \(3,\)"),
        "no weight": (lambda: resampling.draw(jax.random.key(0), jnp.full(4, -jnp.inf), X, 2), ValueError, "log_weights: expected a row of positive weight"),
        "all failed": (lambda: resampling.draw(jax.random.key(0), jnp.full(4, jnp.nan), X, 2), ValueError, "log_weights: expected a row of positive weight"),
        "infinite": (lambda: resampling.draw(jax.random.key(0), jnp.array([0.0, jnp.inf, 0.0, 0.0]), X, 2), ValueError, r"log_weights: expected no weight of \+inf, got inf at index 1 of 4"),
        "infinite size": (lambda: resampling.effective_sample_size(jnp.full(4, jnp.inf)), ValueError, r"log_weights: expected no weight of \+inf"),
        "infinite scheme": (lambda: resampling.systematic()(jax.random.key(0), jnp.full(4, jnp.inf)), ValueError, r"log_weights: expected no weight of \+inf"),
        "NaN threshold": (lambda: resampling.systematic(jnp.nan), ValueError, "threshold: expected a fraction of the rows of at least 0"),
    }
)  # fmt: skip
