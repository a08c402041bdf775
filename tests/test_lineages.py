"""Lineages, kept paths, particle Gibbs and independent systems, against records by brute force and exact laws."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.posterior import STD, Y, matrix, observation
from helpers import (
    asymmetric_mixture,
    correlated_gaussian,
    rejects,
    responsibilities,
    slow,
    spread_of_gaussian,
    z_scores,
)
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import _lineages, kernels, observations, posterior, resampling
from jaxdiff.posterior import _draws
from jaxdiff.sampling import run

SCHEDULE = jd.schedules.cosine()


# --- lineages ------------------------------------------------------------------------------------------------------------


def walk(key: Any, carry: Any, x: jax.Array, t: Any, s: Any) -> tuple:
    """A weighted random walk; the carry remembers the row."""
    new = jax.vmap(lambda k, v: v + jax.random.normal(k, v.shape))(key, x)
    return carry, new, 0.7 * new[:, 0]


def history(save_every: int, threshold: float, num_steps: int = 7) -> tuple[jd.Samples, list]:
    """A run, and its ancestors step by step as NumPy finds them among the states."""
    kernel = jd.Kernel(Partial(lambda x, t: ()), Partial(walk))
    x = jax.random.normal(jax.random.key(0), (12, 2))
    seen: list = []
    scheme = resampling.systematic(threshold)

    def recorded(key: jax.Array, log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = scheme(key, log_weights)
        jax.debug.callback(lambda v: seen.append(np.asarray(v)), found[0], ordered=True)
        return found

    samples = jd.sample(
        jax.random.key(1), kernel, x, jd.grids.uniform(num_steps),
        resample=Partial(recorded), save_every=save_every,
    )  # fmt: skip
    jax.block_until_ready(samples.x)
    jax.effects_barrier()
    return samples, seen


@pytest.mark.parametrize(("save_every", "threshold"), [(1, 0.6), (3, 2.0), slow(3, 0.6)])
def test_lineages_are_those_of_a_record_by_hand(save_every: int, threshold: float) -> None:
    samples, record = history(save_every, threshold)
    assert len(record) == 7
    origins, counts = np.arange(12), []
    for ancestors in record:
        origins = origins[ancestors]
        counts.append(len(set(origins)))
    np.testing.assert_array_equal(samples.origins, origins)
    np.testing.assert_array_equal(samples.lineages, counts)
    assert np.all(np.diff(samples.lineages) <= 0)
    assert 1 <= counts[-1] < 12
    slots = [record[n : n + save_every] for n in range(0, 7, save_every)]
    assert samples.ancestors.shape == (len(slots), 12)
    for found, steps in zip(samples.ancestors, slots, strict=True):
        rows = np.arange(12)
        for ancestors in steps:
            rows = rows[ancestors]
        np.testing.assert_array_equal(found, rows)
    for row in (0, 7, 11):
        path, at = [samples.trajectory[-1][row]], row
        for n in range(len(slots) - 1, -1, -1):
            at = int(samples.ancestors[n][at])
            path.append(samples.trajectory[n][at])
        np.testing.assert_array_equal(posterior.path_of(samples, jnp.asarray(row)), path[::-1])
        assert at == origins[row]


def test_without_resampling_every_row_is_its_own() -> None:
    kernel = jd.Kernel(Partial(lambda x, t: ()), Partial(walk))
    x = jax.random.normal(jax.random.key(0), (12, 2))
    samples = jd.sample(jax.random.key(1), kernel, x, jd.grids.uniform(5), save_every=2)
    np.testing.assert_array_equal(samples.origins, np.arange(12))
    np.testing.assert_array_equal(samples.lineages, 12)
    np.testing.assert_array_equal(samples.ancestors, np.tile(np.arange(12), (3, 1)))
    assert samples.lineages.dtype == samples.ancestors.dtype == np.int32
    path = posterior.path_of(samples, jnp.asarray(4))
    np.testing.assert_array_equal(path, samples.trajectory[:, 4])


# --- particle Gibbs ------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """A finite chain with a likelihood: the kernel of its posterior, the chain itself, r and a bound of log r."""

    kernel: jd.Kernel
    model: jd.Kernel
    log_likelihood: Any
    top: float


def target(name: str, data: jd.oracles.GaussianMixture) -> Target:
    seen, denoiser = observation(), data.denoiser(SCHEDULE)
    small = kernels.ancestral(denoiser, SCHEDULE)
    top = -0.5 * np.log(2 * np.pi * STD**2)
    if name == "spread":
        # Of another law: invariance holds for any spread.
        spread = spread_of_gaussian(correlated_gaussian())
        wide = posterior.widened(denoiser, SCHEDULE, spread)
        small = kernels.ancestral(wide, SCHEDULE, variance="optimal")
        kernel = posterior.twisted(denoiser, SCHEDULE, seen, spread=spread)
    elif name == "gradient":
        kernel = posterior.twisted(denoiser, SCHEDULE, seen)
    elif name == "tilted":
        kernel = posterior.tilted(denoiser, SCHEDULE, seen)
    else:
        kernel = posterior.mcgdiff(denoiser, SCHEDULE, matrix(), jnp.array(Y), STD)
    return Target(kernel, small, seen, top)


def exact_paths(key: jax.Array, case: Target, ts: jax.Array, num: int) -> np.ndarray:
    """Paths of the chain's exact posterior, by rejection: [num_found, num_steps + 1, 2]."""
    key_prior, key_run, key_accept = jax.random.split(key, 3)
    x = jd.prior_sample(key_prior, SCHEDULE, (num, 2))
    samples = jd.sample(key_run, case.model, x, ts, save_every=1)
    log_r = jax.vmap(case.log_likelihood)(samples.x) - case.top
    kept = np.asarray(jnp.log(jax.random.uniform(key_accept, (num,))) < log_r)
    return np.moveaxis(np.asarray(samples.trajectory)[:, kept], 1, 0)


def swept(
    key: jax.Array, kernel: jd.Kernel, paths: jax.Array, ts: jax.Array, *,
    rejoin: bool, rows: int = 3, sweeps: int = 1, threshold: float = 0.7,
) -> jax.Array:  # fmt: skip
    """Sweeps of particle Gibbs from each path: new paths, [num, num_steps + 1, 2]."""
    scheme = resampling.systematic(threshold)

    def one(key: jax.Array, path: jax.Array) -> jax.Array:
        key_prior, key_run, key_row = jax.random.split(key, 3)
        x = jd.prior_sample(key_prior, SCHEDULE, (rows, 2))
        samples = run(
            key_run, kernel, x, ts, resample=scheme, save_every=1, reference=path, rejoin=rejoin
        )
        row = jax.random.categorical(key_row, samples.log_weights)
        return posterior.path_of(samples, row)

    @jax.jit
    def sweep(key: jax.Array, paths: jax.Array) -> jax.Array:
        return jax.vmap(one)(jax.random.split(key, len(paths)), paths)

    for n in range(sweeps):
        paths = sweep(jax.random.fold_in(key, n), paths)
    return paths


def features(data: jd.oracles.GaussianMixture, paths: np.ndarray) -> np.ndarray:
    """Moments of x_0, mode masses, and moments of the middle of the path, [num, F]."""
    x, middle = np.asarray(paths[:, -1], np.float64), np.asarray(paths[:, paths.shape[1] // 2])
    return np.concatenate(
        [x, x**2, x[:, :1] * x[:, 1:], responsibilities(data, x)[:, :-1], middle, middle**2], axis=1
    )


@pytest.mark.parametrize(
    ("name", "rejoin"),
    [
        ("spread", True),
        slow("spread", False),
        slow("gradient", True),
        slow("gradient", False),
        slow("tilted", True),
        slow("tilted", False),
        slow("mcgdiff", True),
        slow("mcgdiff", False),
    ],
)
def test_particle_gibbs_leaves_the_exact_posterior_as_it_is(name: str, rejoin: bool) -> None:
    """Exact paths of the mixture's finite chain, and where two sweeps of 3 rows lead from them: one law.

    The moments' differences are paired, within 4.5 of their own standard errors.
    """
    data, ts = asymmetric_mixture(), jd.grids.uniform(8)
    case = target(name, data)
    paths = exact_paths(jax.random.key(0), case, ts, 60_000)
    assert len(paths) > 3000
    after = np.asarray(
        swept(jax.random.key(1), case.kernel, jnp.asarray(paths), ts, rejoin=rejoin, sweeps=2)
    )
    change = features(data, after) - features(data, paths)
    z = change.mean(0) / (change.std(0, ddof=1) / np.sqrt(len(change)))
    assert np.abs(z).max() < 4.5
    moved = np.abs(after[:, -1] - paths[:, -1]).max(1) > 1e-4
    assert moved.mean() > 0.2  # it does move


@pytest.mark.slow
def test_others_are_independent_draws_beside_a_path() -> None:
    """Row 0 stays. Rows 1 and 2 are W_i W_j: even parts, as in `systematic`, would not be independent of it."""
    W = np.array([0.2, 0.5, 0.3])
    beside = jax.jit(jax.vmap(resampling.systematic(2.0).beside, (0, None)))
    keys = jax.random.split(jax.random.key(0), 20_000)
    ancestors, resampled = beside(keys, jnp.log(jnp.asarray(W)))
    assert np.all(resampled)
    np.testing.assert_array_equal(ancestors[:, 0], 0)
    found = np.zeros((3, 3))
    np.add.at(found, (ancestors[:, 1], ancestors[:, 2]), 1 / 20_000)
    exact = np.outer(W, W)
    assert np.all(np.abs(found - exact) < 5 * np.sqrt(exact * (1 - exact) / 20_000))
    kept, resampled = resampling.systematic(0.1).beside(keys[0], jnp.log(jnp.asarray(W)))
    assert not resampled
    np.testing.assert_array_equal(kept, np.arange(3))


def test_a_path_goes_on_from_a_past_that_fits() -> None:
    """P(j) ~ w_j p(x* | x_j) / r(x_j) in 20,000 draws; row j and the first change places. None at the end."""
    denoiser, ts = asymmetric_mixture().denoiser(SCHEDULE), jnp.array([0.6, 0.5, 0.4, 0.0])
    seen = observations.noisy(jnp.array([0.5, 0.5]), 1.0)
    kernel: Any = posterior.twisted(denoiser, SCHEDULE, seen)
    x = 0.3 * jax.random.normal(jax.random.key(0), (4, 2))
    log_w, r = jnp.log(jnp.array([0.1, 0.2, 0.4, 0.3])), jnp.array([0.0, 1.0, 2.0, -1.0])
    path = jnp.full((4, 2), 0.1)

    @jax.jit
    def orders(keys: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        rows = kernel.init(x, ts[1])._replace(log_r=r), x, log_w
        one = lambda key: _lineages.exchange(key, kernel, rows, ts=ts, n=n, path=path)  # noqa: E731
        p = jd.p_mean_variance(denoiser, SCHEDULE, x, ts[1], ts[2])
        return jax.vmap(one)(keys), jax.nn.softmax(log_w + p.log_prob(path[2:3]) - r)

    keys = jax.random.split(jax.random.key(1), 20_000)
    found, exact = map(np.asarray, orders(keys, 0))
    for order in np.unique(found, axis=0):
        j, expected = order[0], np.arange(4)
        expected[[0, j]] = j, 0
        np.testing.assert_array_equal(order, expected)
    assert exact.min() > 0.01
    share = np.bincount(found[:, 0], minlength=4) / 20_000
    assert np.all(np.abs(share - exact) < 5 * np.sqrt(exact * (1 - exact) / 20_000))
    for n in (1, 2):  # a step to t = 0 comes next, or none
        np.testing.assert_array_equal(orders(keys, n)[0], np.tile(np.arange(4), (20_000, 1)))


def posterior_moments(x: np.ndarray, data: jd.oracles.GaussianMixture, ts: jax.Array) -> np.ndarray:
    """z-scores of means and second moments of draws [N, 2], against the exact posterior of the normal finite chain."""
    law = jd.oracles.affine_chain(data, SCHEDULE, ts)
    exact = law.posterior(matrix(), jnp.array(Y), STD**2 * jnp.eye(1))
    mean, covariance = np.asarray(exact.means[0]), np.asarray(exact.covariances[0])
    second = covariance + np.outer(mean, mean)
    x = np.asarray(x, np.float64)
    values = np.concatenate([x, (x[:, :, None] * x[:, None, :]).reshape(-1, 4)], axis=1)
    return z_scores(values, np.concatenate([mean, second.ravel()]))


@pytest.mark.slow
@pytest.mark.parametrize("rejoin", [False, True])
@pytest.mark.parametrize("name", ["gradient", "mcgdiff"])
def test_particle_gibbs_forgets_a_bad_start(name: str, rejoin: bool) -> None:
    """All chains start from the one path of 100 that fits y worst: the closed-form posterior of the normal chain.

    A tilt would hold such a path for long, because its weights have heavy tails.
    """
    data, ts = correlated_gaussian(), jd.grids.uniform(8)
    case = target(name, data)
    x = jd.prior_sample(jax.random.key(0), SCHEDULE, (100, 2))
    free = jd.sample(jax.random.key(1), case.model, x, ts, save_every=1)
    worst = jnp.argmin(jax.vmap(case.log_likelihood)(free.x))
    start = jnp.broadcast_to(free.trajectory[:, worst], (1500, 9, 2))
    early = swept(jax.random.key(2), case.kernel, start, ts, rejoin=rejoin, rows=4)
    assert np.abs(posterior_moments(early[:, -1], data, ts)).max() > 4.5
    late = swept(jax.random.key(3), case.kernel, early, ts, rejoin=rejoin, rows=4, sweeps=30)
    assert np.abs(posterior_moments(late[:, -1], data, ts)).max() < 4.5


@pytest.mark.parametrize("name", [slow("spread"), slow("gradient"), slow("tilted"), "mcgdiff"])
def test_the_first_row_follows_the_path(name: str) -> None:
    """It is never resampled away, however poor it is."""
    data, ts = asymmetric_mixture(), jd.grids.uniform(8)
    path = jax.random.normal(jax.random.key(0), (9, 2))
    kernel, x = target(name, data).kernel, jd.prior_sample(jax.random.key(1), SCHEDULE, (6, 2))
    samples = run(
        jax.random.key(2), kernel, x, ts,
        resample=resampling.systematic(2.0), save_every=1, reference=path,
    )  # fmt: skip
    np.testing.assert_allclose(samples.trajectory[:-1, 0], path[:-1], atol=1e-5)
    np.testing.assert_array_equal(samples.ancestors[:, 0], 0)
    assert samples.lineages[-1] < 6  # the others are resampled


@pytest.mark.parametrize("name", ["spread", *map(slow, ("gradient", "tilted", "mcgdiff"))])
def test_a_path_of_a_run_has_the_weight_of_that_run(name: str) -> None:
    """Beside other rows, without resampling; the last state is where the step to it leads. Rounding."""
    data, ts = asymmetric_mixture(), jd.grids.uniform(6)
    kernel, x = target(name, data).kernel, jd.prior_sample(jax.random.key(1), SCHEDULE, (6, 2))
    free = jd.sample(jax.random.key(2), kernel, x, ts, save_every=1)
    beside = run(jax.random.key(3), kernel, x, ts, reference=free.trajectory[:, 3])
    np.testing.assert_allclose(beside.x[0], free.x[3], atol=1e-5)
    np.testing.assert_allclose(beside.log_weights[0], free.log_weights[3], atol=2e-3)
    assert np.abs(beside.x[1:] - free.x[1:]).min() > 1e-3


# --- independent systems -------------------------------------------------------------------------------------------------

TS = jd.grids.uniform(8)


def normal_case() -> jd.Kernel:
    return target("mcgdiff", correlated_gaussian()).kernel


def drawn(key: jax.Array, num: int, **options: Any) -> posterior.Draws:
    compiled = jax.jit(
        lambda key, kernel, first: posterior.draw(
            key, kernel, SCHEDULE, (num, 2), ts=TS, first=first, **options
        )
    )
    return compiled(key, normal_case(), np.uint32(options.pop("first", 0)))


@pytest.mark.parametrize("sweeps", [0, slow(1)])
def test_a_draw_is_its_key_and_its_index(sweeps: int) -> None:
    """Whatever the number of systems, of systems at a time and the first one's index: up to rounding."""
    key = jax.random.key(0)
    whole = drawn(key, 12, sweeps=sweeps, rows=4)
    part = drawn(key, 5, sweeps=sweeps, rows=4, first=3, batch_size=2)
    np.testing.assert_allclose(part.x, whole.x[3:8], atol=1e-5)
    np.testing.assert_allclose(part.log_weights, whole.log_weights[3:8], atol=1e-4)
    np.testing.assert_array_equal(part.lineages, whole.lineages[3:8])
    assert np.abs(np.diff(whole.x, axis=0)).min() > 0


@pytest.mark.slow
def test_problems_of_draws_are_vmapped() -> None:
    denoiser = correlated_gaussian().denoiser(SCHEDULE)

    def solve(y: jax.Array) -> posterior.Draws:
        kernel = posterior.mcgdiff(denoiser, SCHEDULE, matrix(), y, STD)
        return posterior.draw(jax.random.key(0), kernel, SCHEDULE, (12, 2), ts=TS)

    ys = jnp.array([[0.3], [-1.0]])
    together = jax.vmap(solve)(ys)
    for n in range(2):
        alone = solve(ys[n])
        np.testing.assert_allclose(together.x[n], alone.x, atol=1e-5)
        np.testing.assert_allclose(together.log_evidence[n], alone.log_evidence, atol=1e-5)


def test_draws_of_systems_and_their_evidence() -> None:
    """log Z is the log of the mean of the systems' Z, unbiased; its error is that of a mean; draws are labelled."""
    found = drawn(jax.random.key(0), 3000, rows=4, per_system=2)
    assert found.x.shape == (6000, 2)
    np.testing.assert_array_equal(found.system, np.repeat(np.arange(3000), 2))
    log_z = np.asarray(found.log_weights, np.float64)
    np.testing.assert_array_equal(log_z[::2], log_z[1::2])
    z = np.exp(log_z[::2])
    np.testing.assert_allclose(found.log_evidence, np.log(z.mean()), atol=1e-5)
    error = z.std(ddof=1) / np.sqrt(3000) / z.mean()
    np.testing.assert_allclose(found.evidence_error, error, rtol=1e-4)
    law = jd.oracles.affine_chain(correlated_gaussian(), SCHEDULE, TS)
    exact = np.exp(float(law.log_evidence(matrix(), jnp.array(Y), STD**2 * jnp.eye(1))))
    assert np.abs(z_scores(z, np.array(exact))) < 4
    assert found.ess.shape == found.lineages.shape == (3000, 8)
    assert np.all(np.diff(found.lineages, axis=1) <= 0)


def test_a_draw_is_chosen_by_its_weight() -> None:
    """In no order; never a row without a weight; the first one where there is no weight at all."""
    chosen = jax.jit(jax.vmap(_draws.chosen, (0, None, None)), static_argnums=2)
    keys, inf = jax.random.split(jax.random.key(0), 4000), jnp.inf
    found = np.asarray(chosen(keys, jnp.array([-inf, jnp.log(3.0), 0.0, jnp.nan]), 2))
    for column in found.T:
        share = np.bincount(column, minlength=4) / 4000
        np.testing.assert_array_equal(share[[0, 3]], 0)
        assert abs(share[1] - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 4000)
    np.testing.assert_array_equal(chosen(keys[:2], jnp.full(4, -inf), 2), 0)


@pytest.mark.slow
def test_sweeps_remove_the_bias_of_small_systems() -> None:
    """Two rows in a system are too few: their draws are off, and five sweeps of particle Gibbs are not."""
    data, key = correlated_gaussian(), jax.random.key(0)
    first, later = (drawn(key, 12_000, rows=2, sweeps=n, rejoin=n > 0) for n in (0, 5))
    assert np.abs(posterior_moments(first.x, data, TS)).max() > 6
    assert np.abs(posterior_moments(later.x, data, TS)).max() < 4.5
    # The evidence is that of the first run. A later one holds a path.
    np.testing.assert_allclose(first.log_evidence, later.log_evidence, atol=0.2)


@pytest.mark.parametrize(
    ("num", "per_system", "message"),
    [
        slow(1, 12, "12 draws come from [1-4] lineages: their spread says little"),
        slow(3, 1, "3 draws come from 3 lineages"),
        slow(10, 1, None),
    ],
)
def test_few_lineages_are_worth_a_warning(num: int, per_system: int, message: str | None) -> None:
    """Rows of one system share ancestors; independent systems do not. Warnings are errors here."""
    kernel = jd.Kernel(Partial(lambda x, t: ()), Partial(walk))

    def drawn() -> None:
        ts, options = jd.grids.uniform(3), {"rows": 4, "per_system": per_system}
        posterior.draw(jax.random.key(0), kernel, SCHEDULE, (num, 2), ts=ts, **options)

    if message is None:
        drawn()
        return
    with pytest.warns(UserWarning, match=message):
        drawn()


@pytest.mark.slow
def test_draws_of_an_impossible_observation_are_nan() -> None:
    nowhere = posterior.twisted(
        correlated_gaussian().denoiser(SCHEDULE), SCHEDULE, lambda x: jnp.full((), -jnp.inf)
    )
    found = jax.jit(
        lambda key: posterior.draw(key, nowhere, SCHEDULE, (10, 2), ts=TS, rows=2, sweeps=1)
    )(jax.random.key(0))
    assert np.isnan(found.x).all()
    assert found.log_evidence == -np.inf


KEY, KERNEL = jax.random.key(0), normal_case()
MIXED = posterior.mixed([correlated_gaussian().denoiser(SCHEDULE)], jnp.zeros(1), SCHEDULE)


def draw_of(kernel: Any = KERNEL, shape: Any = (10, 2), **options: Any) -> Any:
    return lambda: posterior.draw(KEY, kernel, SCHEDULE, shape, **({"ts": TS} | options))


BAD: dict[str, Any] = {
    "shape": (draw_of(shape=3), ValueError, r"shape: expected a tuple \(M, \*D\) with M >= 1, got 3"),
    "no system": (draw_of(shape=(0, 2)), ValueError, "shape: expected a tuple"),
    "rows": (draw_of(rows=1), ValueError, "rows: expected an integer of at least 2, got 1"),
    "sweeps": (draw_of(sweeps=-1), ValueError, "sweeps: expected an integer of at least 0, got -1"),
    "per_system": (draw_of(per_system=0), ValueError, "per_system: expected an integer of at least 1, got 0"),
    "ts": (draw_of(ts=jnp.array([0.0, 1.0])), ValueError, "ts: expected"),
    "batch_size": (draw_of(batch_size=0), ValueError, "batch_size: expected an integer of at least 1, got 0"),
    "key": (lambda: posterior.draw(0, KERNEL, SCHEDULE, (10, 2), ts=TS), TypeError, "key: expected"),
    "kernel": (draw_of(lambda x, t: x), TypeError, "kernel: expected a Kernel such as twisted"),
    "a kernel without paths": (draw_of(MIXED, sweeps=1), TypeError, "kernel: expected one whose rows may follow a path, such as posterior.twisted, got Mixed"),
    "a scheme without paths": (draw_of(sweeps=1, resample=lambda key, w: w), TypeError, "resample: expected a scheme of jaxdiff.resampling, which can keep a path"),
    "resample": (draw_of(resample=3), TypeError, "resample: expected a function, got int"),
}  # fmt: skip
test_bad_input = rejects(BAD)
