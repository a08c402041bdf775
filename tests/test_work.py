"""Work of both directions: Bennett, Crooks, annealing from both ends, entropy production and its bounds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import correlated_gaussian, rejects

import jaxdiff as jd
from jaxdiff import chain as chains
from jaxdiff import likelihood, work

SCHEDULE = jd.schedules.cosine()


def gaussian_works(
    key: jax.Array, num: int, log_prob: float, std: float
) -> tuple[jax.Array, jax.Array]:
    """Works that obey Crooks' theorem exactly: W_F ~ N(-log p + s^2 / 2, s^2), W_R ~ N(log p + s^2 / 2, s^2)."""
    noise = std * jax.random.normal(key, (2, num)) + std**2 / 2
    return noise[0] - log_prob, noise[1] + log_prob


def test_bennett_and_crooks_on_gaussian_works(x64: None) -> None:
    """Averages over independent repetitions: no bias beyond 4 standard errors, and the stated errors are the spread."""
    keys = jax.random.split(jax.random.key(0), 300)
    forward, reverse = jax.vmap(lambda k: gaussian_works(k, 200, -3.0, 2.0))(keys)
    reverse = reverse[:, :100]  # unequal numbers of both
    estimates = np.asarray(jax.jit(jax.vmap(work.bennett_acceptance_ratio))(forward, reverse))
    errors = np.asarray(jax.jit(jax.vmap(work.bennett_standard_error))(forward, reverse))
    assert abs(estimates.mean() + 3) < 4 * estimates.std() / np.sqrt(300)
    np.testing.assert_allclose(errors.mean(), estimates.std(), rtol=0.15)  # of 300 repetitions
    fits = jax.jit(jax.vmap(work.crooks))(forward, reverse)
    assert abs(float(fits.slope.mean()) - 1) < 0.05
    np.testing.assert_allclose(float(fits.slope_se.mean()), float(fits.slope.std()), rtol=0.2)
    np.testing.assert_allclose(float(fits.log_prob.mean()), -3, atol=0.05)
    # It beats Jarzynski's estimate from as many works of one direction.
    jarzynski = np.asarray(jax.nn.logsumexp(-forward, axis=1) - np.log(200))
    assert estimates.std() < jarzynski.std()
    # The mutant: works of the reverse direction with the forward sign.
    assert abs(float(work.bennett_acceptance_ratio(forward.ravel(), -reverse.ravel())) + 3) > 0.5


@pytest.mark.slow
def test_bennett_with_paths_of_no_weight(x64: None) -> None:
    """w is 0 or 2 p, half of the time each, and 2 p on every reverse path: log p exactly."""
    log_prob = -3.0
    forward = jnp.array([jnp.inf, -log_prob - jnp.log(2)] * 50)
    reverse = jnp.full(100, log_prob + jnp.log(2))
    found = work.bennett_acceptance_ratio(forward, reverse)
    np.testing.assert_allclose(found, log_prob, atol=1e-9)  # rounding
    assert np.isfinite(work.bennett_standard_error(forward, reverse))
    few = jnp.where(jnp.arange(1000) < 999, jnp.inf, 2.0)  # far outside of what its one work says
    np.testing.assert_allclose(
        work.bennett_acceptance_ratio(few, jnp.full(1000, -2.0)), -2 - np.log(1000), atol=1e-6
    )
    assert np.isnan(jax.jit(work.bennett_acceptance_ratio)(forward.at[0].set(jnp.nan), reverse))
    # The mutant: without the paths of no weight.
    assert abs(float(work.bennett_acceptance_ratio(forward[1::2], reverse)) - log_prob) > 0.3


@pytest.mark.parametrize("work_of", ["forward", "reverse"])
@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf])
def test_works_that_are_none(work_of: str, value: float) -> None:
    good, bad = jnp.ones(3), jnp.array([1.0, value, 2.0])
    works = (bad, good) if work_of == "forward" else (good, bad)
    for function in (work.bennett_acceptance_ratio, work.bennett_standard_error, work.crooks):
        with pytest.raises(ValueError, match=f"{work_of}_work: expected finite works"):
            function(*works)


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["large", 0.5])
def test_crooks_and_bennett_on_a_chain(variance: object, x64: None) -> None:
    data = jd.oracles.gaussian(jnp.zeros(4), jnp.asarray(4.0))
    chain = jd.Chain(data.denoiser(SCHEDULE), SCHEDULE, jd.grids.uniform(25), variance=variance)
    bounds = jax.jit(lambda k, c: work.bidirectional_bounds(k, c, (4000, 4), num_paths=1))(
        jax.random.key(0), chain
    )
    exact = jd.oracles.chain_law(data, chain).log_prob(bounds.x_0)
    forward, reverse = (
        bounds.forward_work[0] + exact,
        bounds.reverse_work - exact,
    )  # all of log p = 0
    estimate, error = (
        work.bennett_acceptance_ratio(forward, reverse),
        work.bennett_standard_error(forward, reverse),
    )
    assert abs(float(estimate)) < 3 * float(error)
    slope, slope_se, _ = work.crooks(forward, reverse)
    assert abs(float(slope) - 1) < max(4 * float(slope_se), 0.05)
    # Forward paths weighed by another chain than made the reverse ones: the two no longer cross at log p.
    wrong = jd.Chain(chain.denoiser, SCHEDULE, chain.ts, variance=0.0)
    log_w = likelihood.path_log_weights(jax.random.key(2), wrong, bounds.x_0)
    assert abs(float(work.crooks(-log_w + exact, reverse).log_prob)) > 0.3


@pytest.fixture(scope="module")
def rough() -> tuple:
    """A chain of few, rough steps, whose posterior over latents is far from the forward paths."""
    data = jd.oracles.gaussian(jnp.array([0.5, -0.5]), jnp.array([4.0, 0.25]))
    return jd.Chain(data.denoiser(SCHEDULE), SCHEDULE, jd.grids.uniform(8), variance=0.3), data


@pytest.mark.slow
def test_annealing_bounds_from_both_sides(rough: tuple) -> None:
    chain, data = rough

    def bounds(num_temperatures: int) -> tuple:
        run = jax.jit(
            lambda k, c: work.ais_bounds(k, c, (1000, 2), num_temperatures=num_temperatures, step_size=0.25, num_leapfrog=3)
        )  # fmt: skip
        out = run(jax.random.key(0), chain)
        exact = jd.oracles.chain_law(data, chain).log_prob(out.x_0)
        return np.asarray(out.lower - exact), np.asarray(out.upper - exact)

    one, many = bounds(1), bounds(16)
    for lower, upper in (one, many):
        assert lower.mean() < 3 * lower.std() / np.sqrt(1000)
        assert upper.mean() > -3 * upper.std() / np.sqrt(1000)
    assert (many[1] - many[0]).mean() < 0.5 * (one[1] - one[0]).mean()
    weights = np.exp(many[0])  # unbiased, whatever the moves
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(1000)


@pytest.mark.slow
def test_annealing_moves_hold_the_posterior_at_any_step_size(rough: tuple, x64: None) -> None:
    """At beta = 1 exact posterior paths stay exact, also where most proposals are refused; without refusal they do not."""
    chain, _ = rough
    x_0, drawn, _ = work._annealing.reverse_run(jax.random.key(0), chain, (4000, 2), save_every=1)
    z = jnp.moveaxis(chains.noises_of_path(chain, x_0, drawn.trajectory[::-1]), 0, 1)
    before = chains.log_weight_of_path(chain, x_0, drawn.trajectory[::-1])
    kernel = work.annealing(chain, x_0, step_size=0.6, num_leapfrog=3)
    step = jax.jit(lambda k, z: kernel.step(k, (), z, jnp.asarray(1e-9), jnp.asarray(0.0))[1])
    moved = z
    for n in range(5):
        moved = step(jax.random.key(n + 1), moved)
    kept = float(jnp.mean(jnp.all(moved == z, axis=(1, 2))))
    assert 0.0 < kept < 0.9  # some rows never moved, most did
    after = chains.log_weight_of_path(
        chain, x_0, chains.path(chain, x_0, jnp.moveaxis(moved, 1, 0))
    )
    difference = np.asarray(after - before)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(4000)


@pytest.mark.slow
def test_entropy_production_is_the_gap_of_the_bound(x64: None) -> None:
    """Each step dissipates at least nothing; the total is what the bound of data from q lacks of its entropy."""
    data = correlated_gaussian()
    data = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), data)
    ts = jd.grids.uniform(10, end=0.05)
    chain = jd.Chain(data.denoiser(SCHEDULE), SCHEDULE, ts, variance="small")
    x_0 = data.sample(jax.random.key(0), (20_000,))

    def log_marginal(x: jax.Array, t: jax.Array) -> jax.Array:
        return data.diffuse(SCHEDULE, t).log_prob(x)

    produced = np.asarray(
        jax.jit(lambda k: work.entropy_production(k, chain, x_0, log_marginal))(jax.random.key(1))
    )
    assert produced.shape == (10, 20_000)
    mean, error = produced.mean(1), produced.std(1) / np.sqrt(20_000)
    assert (mean > -4 * error).all()
    # The same from the outside: bound + entropies of the ends of the path, where the chain's own ends take no part.
    eps = jax.random.normal(jax.random.key(2), (len(chain.times), 20_000, 2))
    xs = chains.path(chain, x_0, eps)
    steps = chains.log_weight_of_path(chain, x_0, xs) - chains.log_ends(chain, x_0, xs[0], xs[-1])
    total = np.asarray(log_marginal(xs[0], ts[-1]) - log_marginal(xs[-1], ts[0]) - steps)
    difference = total.mean() - produced.sum(0).mean()
    assert abs(difference) < 4 * (total.std() + produced.sum(0).std()) / np.sqrt(20_000)
    # With the optimal variance of uncorrelated data the reverse steps are exact: nothing is dissipated.
    plain = jd.oracles.gaussian(jnp.array([0.5, -0.5]), jnp.array([2.0, 0.1]))
    exact = jd.Chain(plain.denoiser(SCHEDULE, variance=True), SCHEDULE, ts, variance="optimal")
    none = work.entropy_production(
        jax.random.key(1), exact, plain.sample(jax.random.key(0), (500,)), lambda x, t: plain.diffuse(SCHEDULE, t).log_prob(x)
    )  # fmt: skip
    np.testing.assert_allclose(none, 0, atol=1e-8)


def test_entropy_bounds_hold_the_true_entropy(x64: None) -> None:
    """H_q(x_s | x_t) of Gaussian data, exactly: between the bounds, which agree with the paper's three-entropy form."""
    variance, ts = 0.3, jd.grids.uniform(20, end=0.01)
    lower, upper = work.entropy_bounds(SCHEDULE, ts, 1)
    alpha, sigma = SCHEDULE.alpha_sigma(ts)
    marginal = alpha**2 * variance + sigma**2
    step = jnp.asarray(
        [chains.q_variance(SCHEDULE, jnp.zeros(()), s, t) for t, s in itertools.pairwise(ts)]
    )
    true = 0.5 * jnp.log(2 * jnp.pi * jnp.e * step * marginal[1:] / marginal[:-1])
    assert bool(jnp.all(lower <= true))
    assert bool(jnp.all(true <= upper))

    def entropy(v: jax.Array) -> jax.Array:
        return 0.5 * jnp.log(2 * jnp.pi * jnp.e * v)

    paper = entropy(step) + entropy(sigma[1:] ** 2) - entropy(sigma[:-1] ** 2)
    np.testing.assert_allclose(lower, paper, atol=1e-9)


_CHAIN = jd.Chain(correlated_gaussian().denoiser(SCHEDULE), SCHEDULE, jd.grids.uniform(3))
_X = jnp.zeros((2, 2))
test_bad_input = rejects(
    {
        "shape": (
            lambda: work.bidirectional_bounds(jax.random.key(0), _CHAIN, 4, num_paths=2),
            ValueError,
            "shape: expected a tuple",
        ),
        "paths": (
            lambda: work.bidirectional_bounds(jax.random.key(0), _CHAIN, (4, 2), num_paths=0),
            ValueError,
            "num_paths: expected a positive int",
        ),
        "empty": (
            lambda: work.bennett_acceptance_ratio(jnp.zeros(0), jnp.zeros(3)),
            ValueError,
            "forward_work: expected at least one",
        ),
        "temperatures": (
            lambda: work.ais(jax.random.key(0), _CHAIN, _X, num_temperatures=0),
            ValueError,
            "num_temperatures: expected a positive int",
        ),
        "leapfrog": (
            lambda: work.annealing(_CHAIN, _X, num_leapfrog=0),
            ValueError,
            "num_leapfrog: expected a positive int",
        ),
        "grid": (
            lambda: work.entropy_bounds(SCHEDULE, jnp.linspace(0, 1, 3), 2),
            ValueError,
            "ts: expected decreasing times",
        ),
        "data": (
            lambda: work.entropy_production(
                jax.random.key(0), _CHAIN, jnp.zeros((2, 2), int), None
            ),
            TypeError,
            "x_0: expected a floating",
        ),
    }
)
