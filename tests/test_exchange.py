"""Replica exchange: laws by enumeration, a finite chain in closed form, mixtures, and what is refused."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rejects, responsibilities, slow, z_scores
from scipy.stats import chisquare
from test_posterior import Doob, method_of, observed, scattered

import jaxdiff as jd
from jaxdiff import observations, posterior
from jaxdiff.kernels._kernel import without_memory
from jaxdiff.posterior import _exchange

SCHEDULE = jd.schedules.cosine()

# --- one bit over three steps: every path by enumeration -----------------------------------------------------------------

STEPS = 3
TIMES = jnp.linspace(1, 0, STEPS + 1)
BITS = [np.array(list(itertools.product((0, 1), repeat=k + 1))) for k in range(STEPS + 1)]


def chance(x: Any, s: Any) -> Any:
    """The probability that a bit is 1 after the step to s."""
    return 0.25 + 0.5 * x - 0.2 * x * s


def gained(x: Any, new: Any, s: Any) -> Any:
    """Its log weight: of the step, not of the state alone."""
    return 0.9 * new - 0.8 * x * (1 - new) + 0.5 * s * x


def flip(keys: jax.Array, carry: Any, x: jax.Array, t: Any, s: Any) -> tuple:
    uniform = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:]))(keys)
    new = (uniform < chance(x, s)).astype(x.dtype)
    return carry, new, gained(x, new, s)[:, 0]


BIT = without_memory(flip)


def path_laws() -> tuple[list[np.ndarray], float]:
    """The laws of all levels, each over the rows of BITS, and log Z of the lowest."""
    laws = []
    for bits in BITS:
        weight = np.full(len(bits), 0.5)
        for k in range(bits.shape[1] - 1):
            x, new, s = bits[:, k], bits[:, k + 1], float(TIMES[k + 1])
            p = chance(x, s)
            weight = weight * np.where(new == 1, p, 1 - p) * np.exp(gained(x, new, s))
        laws.append(weight)
    return [law / law.sum() for law in laws], float(np.log(laws[-1].sum()))


LAWS, LOG_Z = path_laws()


def ladders_of(rows: list[np.ndarray]) -> _exchange.Node:
    """Ladders whose level k has the paths rows[k], [N, k + 1]."""
    num, size = len(rows[0]), STEPS + 1
    x, increment = np.zeros((num, size, size, 1)), np.zeros((num, size, size))
    for k, paths in enumerate(rows):
        x[:, k, : k + 1, 0] = paths
        for j in range(k):
            increment[:, k, j + 1] = gained(paths[:, j], paths[:, j + 1], float(TIMES[j + 1]))
    states = jnp.asarray(x, jnp.float32), jnp.asarray(increment, jnp.float32)
    return _exchange.Node((), *states, jnp.zeros((num, size, size), jnp.int32))


def code(x: np.ndarray) -> np.ndarray:
    """A number for each state of all levels, [N], of ladders x [N, K + 1, K + 1, 1]."""
    bits = np.concatenate([x[:, k, : k + 1, 0] for k in range(STEPS + 1)], axis=1).astype(int)
    return bits @ (1 << np.arange(bits.shape[1]))


def test_a_round_leaves_the_law_of_the_ladder_as_it_is() -> None:
    """100,000 exact ladders, one round: counts of the joint states of all levels, 1024 of them."""
    random, num = np.random.default_rng(0), 100_000
    ladders = ladders_of(
        [bits[random.choice(len(law), num, p=law)] for bits, law in zip(BITS, LAWS, strict=True)]
    )
    swaps = jax.jit(jax.vmap(lambda key, ladder: _exchange.round_of_swaps(key, BIT, ladder, TIMES)))
    after, (accepted, *_) = swaps(jax.random.split(jax.random.key(0), num), ladders)
    joint = np.array(list(itertools.product(*(range(len(law)) for law in LAWS)))).T
    every = ladders_of([bits[rows] for bits, rows in zip(BITS, joint, strict=True)])
    exact = np.zeros(2**10)
    exact[code(every.x)] = np.prod([law[i] for law, i in zip(LAWS, joint, strict=True)], axis=0)
    counts, rare = np.bincount(code(after.x), minlength=2**10), num * exact < 8
    pooled = [np.append(v[~rare], v[rare].sum()) for v in (counts, num * exact)]
    assert chisquare(*pooled).pvalue > 1e-3
    assert len(pooled[0]) > 300
    assert 0.3 < np.asarray(accepted).mean() < 0.95  # it has moved, and refused


def test_a_wrong_start_is_forgotten_and_the_evidence_found() -> None:
    """400 ladders of 300 rounds: shares of the lowest bit, Bennett's log Z, and the paths of all starts alike."""

    def one(key: jax.Array) -> posterior.Exchanged:
        key_start, key_run = jax.random.split(key)
        starts = jax.random.bernoulli(key_start, 0.5, (300, 1)).astype(float)
        return posterior.replica_exchange(key_run, BIT, starts, TIMES, num_warmup=20)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 400))
    share = LAWS[-1] @ BITS[-1][:, -1]
    assert np.abs(z_scores(found.x.mean((1, 2)), np.array(share))) < 4
    assert np.abs(z_scores(found.x[:, 0, 0], np.array(share))) < 4  # after the warm-up alone
    assert np.abs(z_scores(found.log_evidence, np.array(LOG_Z))) < 4
    assert np.std(found.log_evidence) / np.sqrt(400) < 0.01
    increments = np.mean(np.exp(-np.asarray(found.forward_work)), axis=1)  # E = Z_{k+1} / Z_k
    pairs = np.array([np.exp(pair_log_z(k + 1) - pair_log_z(k)) for k in range(STEPS)])
    assert np.abs(z_scores(increments, pairs)).max() < 4


def pair_log_z(k: int) -> float:
    """log Z of level k."""
    total = 0.0
    for bits in BITS[k]:
        weight = 0.5
        for j in range(k):
            p = chance(bits[j], float(TIMES[j + 1]))
            weight *= (p if bits[j + 1] else 1 - p) * np.exp(
                gained(bits[j], bits[j + 1], float(TIMES[j + 1]))
            )
        total += weight
    return float(np.log(total))


# --- a finite chain in closed form ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["twisted", slow("mcgdiff")])
def test_the_posterior_of_a_finite_chain(method: str) -> None:
    """Eight steps: far from the data's posterior, and the chain's own in closed form. No discretisation is allowed for."""
    data = jd.oracles.gaussian(jnp.array([0.7, -0.4]), jnp.array([[1.0, 0.56], [0.56, 0.49]]))
    matrix, y, std, ts = jnp.array([[1.0, 0.5]]), jnp.array([1.2]), 0.3, jd.grids.uniform(8)
    denoiser, noise = data.denoiser(SCHEDULE), std**2 * jnp.eye(1)
    seen = observations.linear(matrix, y, std)
    kernel = {
        "twisted": lambda: posterior.twisted(denoiser, SCHEDULE, seen),
        "mcgdiff": lambda: posterior.mcgdiff(denoiser, SCHEDULE, matrix, y, std),
    }[method]()
    chain = jd.oracles.affine_chain(data, SCHEDULE, ts)
    exact = chain.posterior(matrix, y, noise)

    def one(key: jax.Array) -> posterior.Exchanged:
        key_prior, key_run = jax.random.split(key)
        starts = jd.prior_sample(key_prior, SCHEDULE, (250, 2))
        return posterior.replica_exchange(key_run, kernel, starts, ts, num_warmup=50)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 100))
    x = np.asarray(found.x, np.float64) - np.asarray(exact.means[0])
    squares = (x[..., :, None] * x[..., None, :]).mean(1)
    assert np.abs(z_scores(x.mean(1), np.zeros(2))).max() < 4
    assert np.abs(z_scores(squares, np.asarray(exact.covariances[0]))).max() < 4
    log_z = float(chain.log_evidence(matrix, y, noise))
    assert np.abs(z_scores(found.log_evidence, np.array(log_z))) < 4
    assert np.std(found.log_evidence) / 10 < 0.02
    direct = data.posterior(matrix, y, noise)  # what the chain is far from
    assert np.abs(direct.covariances[0] - exact.covariances[0]).max() > 0.02


@pytest.mark.slow
def test_a_perfect_twist_is_always_accepted(x64: None) -> None:
    doob = Doob(num_steps=8)
    starts = jd.prior_sample(jax.random.key(0), doob.schedule, (12, 3))
    found = posterior.replica_exchange(
        jax.random.key(1), doob.twisted(), starts, doob.ts, num_warmup=4
    )
    np.testing.assert_array_equal(found.accepted, 1)
    np.testing.assert_allclose(found.log_evidence, doob.log_evidence, rtol=1e-9)
    # Two levels a round, one start after the other: eight steps take four rounds.
    np.testing.assert_array_equal(found.start, np.arange(4, 12) - 3)


# --- mixtures ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 8])
def test_moments_and_modes_of_the_posterior(size: int) -> None:
    """20 ladders of 400 rounds: means, mode masses and log Z, within 4 standard errors and the steps' own bias."""
    mixture, num_steps = scattered(size), 60 if size == 2 else 80
    matrix, y, std = observed(mixture)
    noise = std**2 * jnp.eye(1)
    kernel, exact = (
        method_of("twisted", mixture, matrix, y, std),
        mixture.posterior(matrix, y, noise),
    )

    def one(key: jax.Array) -> posterior.Exchanged:
        key_prior, key_run = jax.random.split(key)
        starts = jd.prior_sample(key_prior, SCHEDULE, (400, size))
        ts = jd.grids.uniform(num_steps)
        return posterior.replica_exchange(key_run, kernel, starts, ts, num_warmup=100)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 20))
    modes = np.asarray(jax.nn.softmax(exact.log_weights))
    weights = np.stack([responsibilities(exact, x).mean(0) for x in np.asarray(found.x)])
    drawn = np.concatenate([np.asarray(found.x).mean(1), weights], axis=1)
    error = drawn.mean(0) - np.concatenate([modes @ np.asarray(exact.means), modes])
    spread = drawn.std(0, ddof=1) / np.sqrt(20)
    assert np.all(np.abs(error) < 4 * spread + 1 / num_steps)
    log_z = np.asarray(found.log_evidence) - float(mixture.log_evidence(matrix, y, noise))
    assert abs(log_z.mean()) < 0.1
    assert np.mean([len(np.unique(start)) for start in np.asarray(found.start)]) > 75


@pytest.mark.slow
def test_a_likelihood_that_is_zero_somewhere() -> None:
    """The first path may have the weight 0. It is left, and never entered again."""
    denoiser = jd.oracles.gaussian(jnp.zeros(1), jnp.ones(1)).denoiser(SCHEDULE)
    # One node at zero: the twist itself is zero in places.
    half = lambda x: jnp.where(x[0] < 1, -jnp.inf, 0.0)  # noqa: E731
    kernel = posterior.twisted(denoiser, SCHEDULE, half, nodes=jnp.zeros((1, 1)))
    starts = jd.prior_sample(jax.random.key(0), SCHEDULE, (600, 1))
    found = posterior.replica_exchange(
        jax.random.key(1), kernel, starts, jd.grids.uniform(10), num_warmup=100
    )
    assert np.all(found.x >= 1)
    assert abs(float(found.log_evidence) - np.log(0.1587)) < 0.5  # ten steps, one run


@pytest.mark.slow
def test_a_new_observation_does_not_compile_again() -> None:
    count = 0

    def denoiser(x: jax.Array, t: jax.Array) -> jax.Array:
        nonlocal count
        count += 1
        return 0.9 * x

    network, compiled = (
        jax.tree_util.Partial(denoiser),
        jax.jit(posterior.replica_exchange, static_argnames="num_warmup"),
    )
    traced = 0
    for y in (0.1, 0.2):
        seen = observations.noisy(jnp.full(2, y), 0.3 + y)
        kernel = posterior.twisted(network, SCHEDULE, seen)
        compiled(jax.random.key(0), kernel, jnp.ones((4, 2)), jd.grids.uniform(4), num_warmup=1)
        traced = traced or count
    assert count == traced


def _run(key: Any = None, kernel: Any = BIT, x: Any = None, **options: Any) -> Any:
    key = jax.random.key(0) if key is None else key
    x = jnp.ones((4, 1)) if x is None else x
    return posterior.replica_exchange(key, kernel, x, TIMES, **options)


BAD = {
    "warm-up": (lambda: _run(num_warmup=4), ValueError, "num_warmup: expected fewer than the 4 rows of x_init, got 4"),
    "a negative warm-up": (lambda: _run(num_warmup=-1), ValueError, "num_warmup: expected"),
    "key": (lambda: _run(key=jnp.zeros(2, jnp.uint32)), TypeError, "key: expected"),
    "kernel": (lambda: _run(kernel=flip), TypeError, "kernel: expected a Kernel such as"),
    "integers": (lambda: _run(x=jnp.ones((4, 1), int)), TypeError, "x_init: expected a floating"),
}  # fmt: skip
test_bad_input = rejects(BAD)
