"""A model whose prior is wrong by nats: alpha_1 is far from 0, and every term of every bound has a part in its value.

Normal data, an affine denoiser, few steps: means of bounds, the chain's law and the flow's density in NumPy, exactly.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow
from jax.scipy.special import logsumexp
from jax.tree_util import Partial
from scipy import stats

import jaxdiff as jd
from jaxdiff import chain as chains
from jaxdiff import likelihood, losses, schedules, training, work

SCHEDULE = jd.schedules.cosine(
    log_snr_min=0.0
)  # as much signal as noise where the reverse process starts
MEAN, VARIANCE, X_0 = 0.4, 1.7, 1.3
ROWS = 4000
# The data themselves, or noise left.
ENDS = pytest.mark.parametrize("end", [0.0, 0.05])
MOST = pytest.mark.parametrize("end", [slow(0.0), 0.05])


def gaussian() -> jd.oracles.GaussianMixture:
    return jd.oracles.gaussian(jnp.array([MEAN]), jnp.array([VARIANCE]))


def early_chain(end: float = 0.0, num_steps: int = 4, variance: Any = "large") -> jd.Chain:
    return jd.Chain(
        gaussian().denoiser(SCHEDULE),
        SCHEDULE,
        jd.grids.uniform(num_steps, end=end),
        variance=variance,
    )


def repeated(num: int = ROWS) -> jax.Array:
    return jnp.full((num, 1), X_0)


class Level(NamedTuple):
    """The schedule at a time, and the exact denoiser there: D(x) = offset + gain x."""

    alpha: float
    sigma: float
    gain: float
    offset: float


def at(schedule: jd.Schedule, t: Any) -> Level:
    alpha, sigma = (np.asarray(v, np.float64) for v in schedule.alpha_sigma(t))
    gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    return Level(alpha, sigma, gain, MEAN * (1 - gain * alpha))


def squared_error(now: Level) -> Any:
    """E (D(x_t) - x_0)^2 over the noise, for the x_0 of this file."""
    return (now.offset + (now.gain * now.alpha - 1) * X_0) ** 2 + (now.gain * now.sigma) ** 2


def step(late: Level, early: Level) -> tuple[float, float, float, float]:
    """The reverse step: x_s = a x_t + b x_0 of q, its variance, and that of p ("large")."""
    kept = 1 - (late.alpha * early.sigma / (late.sigma * early.alpha)) ** 2
    unit = late.sigma**2 / (late.alpha**2 + late.sigma**2)
    a, b = late.alpha / early.alpha * (early.sigma / late.sigma) ** 2, early.alpha * kept
    return a, b, early.sigma**2 * kept, early.sigma**2 * kept + b**2 * unit


def exact_terms(chain: jd.Chain) -> np.ndarray:
    """Means of the bound's terms: every cost is a square of affine functions of normal noise."""
    levels = [at(SCHEDULE, t) for t in chain.ts]
    first, last = levels[0], levels[-2 if chain.ends_clean else -1]
    terms = [(first.alpha * X_0 / first.sigma) ** 2 / 2]
    for late, early in itertools.pairwise(levels[:-1] if chain.ends_clean else levels):
        _, b, q, p = step(late, early)
        terms.append((np.log(p / q) + (q + b**2 * squared_error(late)) / p - 1) / 2)
    if chain.ends_clean:
        variance = step(last, levels[-1])[3]
        terms.append((np.log(2 * np.pi * variance) + squared_error(last) / variance) / 2)
    else:
        terms.append((np.log(2 * np.pi * (last.sigma / last.alpha) ** 2) + 1) / 2)
    return np.array(terms)


def exact_law(chain: jd.Chain) -> tuple[float, float]:
    """Mean and variance of p_theta(x_0)."""
    levels = [at(SCHEDULE, t) for t in chain.ts]
    mean, variance = 0.0, levels[0].sigma ** 2
    for late, early in itertools.pairwise(levels):
        a, b, _, p = step(late, early)
        slope = a + b * late.gain
        mean, variance = slope * mean + b * late.offset, slope**2 * variance + p
    if not chain.ends_clean:
        last = levels[-1]
        mean, variance = mean / last.alpha, (variance + last.sigma**2) / last.alpha**2
    return mean, variance


def z(values: Any, exact: Any) -> float:
    """The largest distance of means over rows from exact values, in standard errors."""
    values = np.asarray(values, np.float64)
    return float(
        np.abs((values.mean(0) - exact) / (values.std(0, ddof=1) / np.sqrt(len(values)))).max()
    )


@ENDS
def test_the_chains_law_is_its_recursion(end: float, x64: None) -> None:
    chain = early_chain(end)
    law, (mean, variance) = jd.oracles.chain_law(gaussian(), chain), exact_law(chain)
    np.testing.assert_allclose(
        [law.means[0, 0], law.covariances[0, 0, 0]], [mean, variance], rtol=1e-9
    )  # rounding


@MOST
def test_the_bounds_have_their_exact_means(end: float, x64: None) -> None:
    """The terms one by one, a random term weighed by its probability, and whole paths."""
    chain, x_0 = early_chain(end), repeated()
    exact = exact_terms(chain)
    assert exact[0] > 0.8  # the prior's own
    terms = jax.jit(likelihood.vlb_terms)(jax.random.key(0), chain, x_0)
    np.testing.assert_allclose(terms[0], exact[0], rtol=1e-9)  # not random
    assert z(terms[1:].T, exact[1:]) < 4
    assert z(jax.jit(losses.vlb)(jax.random.key(1), chain, x_0), exact.sum()) < 4
    path = jax.jit(lambda k, c, x: likelihood.elbo(k, c, x, num_paths=2))(
        jax.random.key(2), chain, x_0
    )
    assert z(path, -exact.sum()) < 4


def test_terms_have_noises_of_their_own() -> None:
    """Costs are squares of the noise: they go together if the noise is one."""
    terms = np.asarray(jax.jit(likelihood.vlb_terms)(jax.random.key(0), early_chain(), repeated()))
    between = np.corrcoef(terms[1:])
    np.testing.assert_allclose(
        between[~np.eye(len(between), dtype=bool)], 0, atol=5 / np.sqrt(ROWS)
    )  # Monte Carlo


@pytest.mark.slow
@MOST
def test_the_bounds_hold_the_exact_law(end: float, x64: None) -> None:
    """Both directions: E[w] = p for data of the model, E[1 / w] = 1 / p along its own paths, which make its law."""
    chain = early_chain(end)
    mean, variance = exact_law(chain)
    run = jax.jit(lambda k, c: work.bidirectional_bounds(k, c, (ROWS, 1), num_paths=3))
    bounds = run(jax.random.key(0), chain)
    x_0 = np.asarray(bounds.x_0)[:, 0]
    assert z(np.stack([x_0, (x_0 - mean) ** 2], 1), [mean, variance]) < 4
    exact = stats.norm.logpdf(x_0, mean, np.sqrt(variance))
    forward, reverse = -np.asarray(bounds.forward_work), np.asarray(bounds.reverse_work)
    assert z(np.exp(forward - exact).T, 1) < 4
    assert z(np.exp(exact - reverse), 1) < 4
    np.testing.assert_allclose(bounds.lower, logsumexp(forward, axis=0) - math.log(3), rtol=1e-9)
    with_reverse = np.stack([reverse, *forward[:2]])
    np.testing.assert_allclose(
        bounds.upper, logsumexp(with_reverse, axis=0) - math.log(3), rtol=1e-9
    )
    # The oracle's own density, for the one image of this file.
    weights = jax.jit(lambda k, c, x: likelihood.importance_log_prob(k, c, x, num_paths=2))
    expected = stats.norm.logpdf(X_0, mean, np.sqrt(variance))
    assert z(np.exp(weights(jax.random.key(1), chain, repeated()) - expected), 1) < 4


def test_a_reverse_path_carries_its_own_weight(x64: None) -> None:
    """What the driver adds up on the way down is the ratio of the densities of the path that it has drawn."""
    chain = early_chain()

    @jax.jit
    def both(key: jax.Array, chain: jd.Chain) -> tuple[jax.Array, jax.Array]:
        x_0, drawn, _ = work._bounds.reverse_run(key, chain, (5, 1), save_every=1)
        return work.reverse_path(key, chain, (5, 1))[1], chains.log_weight_of_path(
            chain, x_0, drawn.trajectory[::-1]
        )

    found, expected = both(jax.random.key(0), chain)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_paths_differ_and_their_averages_are_what_they_are(x64: None) -> None:
    chain, x_0, key = early_chain(), repeated(3), jax.random.key(0)
    paths, bound, estimate = jax.jit(
        lambda k, c, x: (
            likelihood.paths_log_weights(k, c, x, 4),
            likelihood.elbo(k, c, x, num_paths=4),
            likelihood.importance_log_prob(k, c, x, num_paths=4),
        )
    )(key, chain, x_0)
    paths = np.asarray(paths)
    assert paths.shape == (4, 3)
    assert len(np.unique(paths)) == paths.size
    np.testing.assert_allclose(bound, paths.mean(0), rtol=1e-9)
    np.testing.assert_allclose(estimate, np.log(np.exp(paths).mean(0)), rtol=1e-9)


@pytest.mark.slow
@ENDS
def test_paths_weights_and_noises_are_one_and_the_same(end: float, x64: None) -> None:
    """A path from its noises and back; its steps are those of q; its weight is the ratio of all densities by SciPy."""
    chain = early_chain(end, variance=0.4)  # not that of the forward steps, as "large" is here
    x_0, ts = gaussian().sample(jax.random.key(0), (5,)), np.asarray(chain.times)[::-1]
    eps = jax.random.normal(jax.random.key(1), (len(ts), 5, 1))
    xs, q_step, p_step = (
        jax.jit(chains.path)(chain, x_0, eps),
        jax.jit(jd.q_step),
        jax.jit(chain.p_step),
    )
    np.testing.assert_allclose(jax.jit(chains.noises_of_path)(chain, x_0, xs), eps, atol=1e-9)
    np.testing.assert_allclose(xs[0], jd.q_sample(SCHEDULE, x_0, ts[0], eps[0]), rtol=1e-9)
    first, last = at(SCHEDULE, ts[0]), at(SCHEDULE, ts[-1])
    decoder = jax.jit(chain.p_last)(xs[0])
    log_w = stats.norm.logpdf(xs[-1], 0, last.sigma) - stats.norm.logpdf(
        xs[0], first.alpha * x_0, first.sigma
    )
    log_w = log_w + stats.norm.logpdf(x_0, decoder.mean, np.sqrt(decoder.variance))
    for n, (s, t) in enumerate(itertools.pairwise(ts)):
        np.testing.assert_allclose(xs[n + 1], q_step(SCHEDULE, xs[n], s, t, eps[n + 1]), rtol=1e-9)
        p, early, late = p_step(xs[n + 1], t, s), at(SCHEDULE, s), at(SCHEDULE, t)
        ratio = late.alpha / early.alpha
        spread = np.sqrt(late.sigma**2 - (ratio * early.sigma) ** 2)
        log_w = log_w + stats.norm.logpdf(xs[n], p.mean, np.sqrt(p.variance))
        log_w = log_w - stats.norm.logpdf(xs[n + 1], ratio * xs[n], spread)
    found = jax.jit(chains.log_weight_of_path)(chain, x_0, xs)
    np.testing.assert_allclose(found, log_w[:, 0], rtol=1e-9)


def test_the_continuous_bound_has_its_exact_mean(x64: None) -> None:
    schedule = jd.schedules.cosine(log_snr_min=0.0, log_snr_max=5.0)
    fine = np.linspace(0, 1, 20_001)
    log_snr = np.asarray(schedule.log_snr(fine))
    rate = np.exp(log_snr) / 2 * squared_error(at(schedule, fine))
    prior, reconstruction = X_0**2 / 2, (np.log(2 * np.pi * np.exp(-5.0)) + 1) / 2
    exact = prior + reconstruction - np.trapezoid(rate, log_snr)
    decoder = jd.decoders.normal()
    bound = jax.jit(
        lambda k, x: likelihood.continuous_lower_bound(k, gaussian().denoiser(schedule), schedule, x, decoder=decoder, num_times=4)
    )(jax.random.key(0), repeated())  # fmt: skip
    assert z(bound, -exact) < 4
    terms = jax.jit(
        lambda k, x: losses.continuous_elbo(
            k, gaussian().denoiser(schedule), schedule, x, decoder=decoder
        )
    )(jax.random.key(1), repeated())
    np.testing.assert_allclose(terms.prior, prior, rtol=1e-9)
    assert z(terms.diffusion, exact - prior - reconstruction) < 4


def rows(num: int) -> training.Rows:
    return training.Rows(
        jax.random.key(0), jax.random.split(jax.random.key(1), num), jnp.zeros((), int), num
    )


def test_the_losses_of_training_are_the_bounds(x64: None) -> None:
    """A chain's in nats, by low-discrepancy terms; that of a learned schedule in bits a dimension."""
    chain = early_chain()
    loss = training.chain_loss(
        losses.vlb, lambda params, *, label, dropout_key: chain, dropout=False
    )
    assert z(jax.jit(loss)({}, rows(ROWS), (repeated(), None)), exact_terms(chain).sum()) < 4
    parameters = schedules.learned_parameters(0.0, 5.0, num_bins=4)
    log_snr = np.linspace(0, 5, 20_001)
    schedule = schedules.learned(parameters)
    error = squared_error(at(schedule, 1 - log_snr / 5))
    exact = (
        X_0**2 / 2
        + (np.log(2 * np.pi * np.exp(-5.0)) + 1) / 2
        + np.trapezoid(np.exp(log_snr) / 2 * error, log_snr)
    )
    loss = training.likelihood_loss(
        lambda params, schedule, *, dropout_key: gaussian().denoiser(schedule),
        decoder=jd.decoders.normal(),
        dropout=False,
    )
    bits = jax.jit(loss)({"schedule": parameters, "network": {}}, rows(ROWS), (repeated(), None))
    assert z(bits, exact / np.log(2)) < 4


@pytest.mark.slow
def test_the_density_of_the_ode_is_exact(x64: None) -> None:
    """The flow of normal data is affine: (x_t - alpha_t m) / sqrt(V_t) stays; two dimensions, exact trace and one probe."""
    mean, variance = np.array([0.4, -0.8]), np.array([1.7, 0.3])
    data = jd.oracles.gaussian(jnp.asarray(mean), jnp.asarray(variance))
    x_0 = np.array([[1.3, 0.2], [-0.5, -1.0], [0.1, -0.6]])
    alpha, sigma = np.sqrt(0.5), np.sqrt(0.5)
    end = alpha**2 * variance + sigma**2
    x_1 = alpha * mean + np.sqrt(end / variance) * (x_0 - mean)
    exact = (stats.norm.logpdf(x_1, 0, sigma) + np.log(end / variance) / 2).sum(1)
    arguments = data.denoiser(SCHEDULE), SCHEDULE, jd.grids.log_snr(SCHEDULE, 12), jnp.asarray(x_0)
    assert np.abs(exact - data.log_prob(x_0)).max() > 0.1  # it is not the data's density
    for options in (
        {},
        {"key": jax.random.key(0), "num_probes": 1},
    ):  # one probe is exact: the Jacobian is diagonal
        np.testing.assert_allclose(
            likelihood.ode_log_prob(*arguments, **options), exact, atol=2e-3
        )  # discretisation


@pytest.mark.slow
def test_annealing_is_unbiased_in_both_directions(x64: None) -> None:
    """E[w] = p upwards, and E[1 / w] = 1 / p on the way down from the chain's own paths, whatever the moves."""
    chain = early_chain(num_steps=3)
    mean, variance = exact_law(chain)
    options = {"num_temperatures": 3, "step_size": 0.5, "num_leapfrog": 2}
    run = jax.jit(lambda k, c: work.ais_bounds(k, c, (ROWS, 1), **options))
    bounds = run(jax.random.key(0), chain)
    exact = stats.norm.logpdf(np.asarray(bounds.x_0)[:, 0], mean, np.sqrt(variance))
    assert z(np.exp(bounds.lower - exact), 1) < 4
    assert z(np.exp(exact - bounds.upper), 1) < 4
    # Where a weight has no variance to speak of: a lower and an upper bound, and near.
    for gap in (exact - np.asarray(bounds.lower), np.asarray(bounds.upper) - exact):
        assert -4 * gap.std() / np.sqrt(ROWS) < gap.mean() < 0.5


def test_exact_steps_produce_no_entropy(x64: None) -> None:
    """With the optimal variance the reverse steps of one-dimensional normal data are exact."""
    data = gaussian()
    denoiser = data.denoiser(SCHEDULE, variance=True)
    chain = jd.Chain(denoiser, SCHEDULE, jd.grids.uniform(4, end=0.05), variance="optimal")
    produced = work.entropy_production(
        jax.random.key(0), chain, repeated(6), lambda x, t: data.diffuse(SCHEDULE, t).log_prob(x)
    )
    np.testing.assert_allclose(produced, 0, atol=1e-9)  # rounding


def learned(parameters: dict[str, jax.Array], x: jax.Array, t: jax.Array) -> jd.Denoised:
    """A network of eps and of the variance's fraction, one number each."""
    alpha, sigma = (v[:, None] for v in SCHEDULE.alpha_sigma(t))
    eps = parameters["eps"] * x
    return jd.Denoised(
        (x - sigma * eps) / alpha, fraction=jnp.broadcast_to(parameters["fraction"], x.shape)
    )


def test_hybrid_is_the_sum_of_its_parts(x64: None) -> None:
    x_0, key, index = (
        jax.random.normal(jax.random.key(0), (1000, 3)),
        jax.random.key(1),
        jnp.arange(1000) % 4,
    )
    ts, share = jd.grids.uniform(4), jnp.array([0.1, 0.2, 0.3, 0.4])

    def chain(parameters: dict[str, jax.Array]) -> jd.Chain:
        return jd.Chain(
            Partial(learned, parameters), SCHEDULE, ts, variance="learned", ends_clean=True
        )

    parameters = {"eps": jnp.asarray(0.0), "fraction": jnp.asarray(0.3)}

    def hybrid(parameters: dict[str, jax.Array], weight: float) -> jax.Array:
        return losses.hybrid(key, chain(parameters), x_0, index=index, vlb_weight=weight)

    run, slope = jax.jit(hybrid), jax.jit(jax.grad(lambda p, w: jnp.mean(hybrid(p, w))))
    simple, both = (run(parameters, weight) for weight in (0.0, 0.5))
    assert z(simple, 1.0) < 4  # E eps^2: the network says 0
    bound = jax.jit(lambda p: losses.vlb(key, chain(p), x_0, index=index))(parameters)
    np.testing.assert_allclose(both, simple + 0.5 * bound / (3 * np.log(2)), rtol=1e-9)
    weighed = jax.jit(
        lambda p: losses.hybrid(
            key, chain(p), x_0, index=index, vlb_weight=0.0, probability=share[index]
        )
    )(parameters)
    np.testing.assert_allclose(weighed, simple / (4 * share[index]), rtol=1e-9)
    # The simple part alone trains the mean, and the bound alone the variance.
    slopes = [slope(parameters, weight) for weight in (0.0, 0.5)]
    np.testing.assert_allclose(slopes[1]["eps"], slopes[0]["eps"], rtol=1e-9)
    assert float(slopes[0]["fraction"]) == 0
    assert abs(float(slopes[1]["fraction"])) > 1e-3
