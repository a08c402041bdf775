"""The binomial process against enumeration: its laws, its reverse chain, its bound."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rejects
from scipy import stats

import jaxdiff as jd
from jaxdiff import binomial, oracles

SCHEDULES = {
    "paper": jd.schedules.rectified_flow,
    "cosine": jd.schedules.cosine,
    # Some of the data is left at t = 1.
    "ddpm": lambda: jd.schedules.from_betas(jd.schedules.linear_betas(100, 1e-3, 0.05)),
}
TIMES = [(0.0, 0.3), (0.2, 0.21), (0.3, 0.9), (0.6, 1.0), (0.0, 1.0)]


def law() -> oracles.BinaryLaw:
    """Five unequal sequences of four bits, neither independent nor symmetric."""
    sequences = jnp.array([[0, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 0, 0.0]])
    return oracles.BinaryLaw(jnp.log(jnp.array([0.4, 0.25, 0.2, 0.1, 0.05])), sequences)


def ignorant(x: jax.Array, t: jax.Array) -> jax.Array:
    """A denoiser that knows of no data: each bit looks at its neighbour."""
    return jax.nn.sigmoid(
        x - 2 * jnp.roll(x, 1, axis=-1) + 0.3 * jnp.arange(x.shape[-1], dtype=x.dtype)[None]
    )


def matrix(probability: jax.Array) -> np.ndarray:
    """The transition matrix of a bit from its two probabilities of a one."""
    p = np.asarray(probability, np.float64)[:, 0]
    return np.stack([1 - p, p], axis=1)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("s", "t"), TIMES)
def test_transitions_compose_and_the_posterior_is_bayes(
    name: str, s: float, t: float, x64: None
) -> None:
    schedule, bits = SCHEDULES[name](), jnp.array([[0.0], [1.0]])
    early, late = (matrix(binomial.q_marginal(schedule, bits, time)) for time in (s, t))
    step = matrix(binomial.q_transition(schedule, bits, s, t))
    np.testing.assert_allclose(early @ step, late, atol=1e-14)  # rounding
    np.testing.assert_allclose(step.sum(1), 1, atol=1e-14)
    for x_0, x_t in itertools.product((0, 1), repeat=2):
        joint = early[x_0] * step[:, x_t]
        arguments = jnp.full((1, 1), float(x_t)), jnp.full((1, 1), float(x_0))
        found = float(binomial.q_posterior(schedule, *arguments, t=t, s=s)[0, 0])
        np.testing.assert_allclose(found, joint[1] / joint.sum(), atol=1e-13)
        if s > 0 and t < 1:  # the mutant takes the late survival for the early one
            mutant = float(binomial.q_posterior(schedule, *arguments, t=t, s=t - 1e-9)[0, 0])
            assert abs(mutant - joint[1] / joint.sum()) > 1e-5


def test_it_is_the_papers_table() -> None:
    """beta_t = 1 / (T - t + 1) erases the share 1 / T of the data a step; each step is x (1 - beta) + beta / 2."""
    schedule, bits, num_steps, kept = SCHEDULES["paper"](), jnp.array([[0.0], [1.0]]), 10, 1.0
    for i in range(1, num_steps + 1):
        beta = 1 / (num_steps - i + 1)
        found = binomial.q_transition(schedule, bits, (i - 1) / num_steps, i / num_steps)
        np.testing.assert_allclose(
            found, bits * (1 - beta) + beta / 2, atol=1e-6
        )  # float32 rounding
        kept *= 1 - beta
        marginal = binomial.q_marginal(schedule, bits, i / num_steps)
        np.testing.assert_allclose(marginal, bits * kept + (1 - kept) / 2, atol=1e-6)


def test_ends_and_limits(x64: None) -> None:
    schedule, x_t, x_0 = (
        SCHEDULES["paper"](),
        jnp.array([[0.0, 1, 0, 1]]),
        jnp.array([[0.0, 0, 1, 1]]),
    )
    np.testing.assert_array_equal(binomial.q_marginal(schedule, x_0, 0.0), x_0)
    np.testing.assert_allclose(binomial.q_marginal(schedule, x_0, 1.0), 0.5, atol=1e-15)
    np.testing.assert_array_equal(binomial.q_posterior(schedule, x_t, x_0, t=0.7, s=0.0), x_0)
    np.testing.assert_allclose(
        binomial.q_posterior(schedule, x_t, x_0, t=0.7, s=0.7 - 1e-12), x_t, atol=1e-11
    )
    # Where nothing is left of the data, x_t says nothing of x_s.
    np.testing.assert_allclose(
        binomial.q_posterior(schedule, x_t, x_0, t=1.0, s=0.4),
        binomial.q_marginal(schedule, x_0, 0.4),
        atol=1e-15,
    )
    # A probability in place of x_0 is the mixture over what x_0 may be.
    whole = binomial.q_posterior(schedule, x_t, jnp.full_like(x_t, 0.3), t=0.7, s=0.4)
    parts = [
        binomial.q_posterior(schedule, x_t, jnp.full_like(x_t, bit), t=0.7, s=0.4)
        for bit in (0.0, 1.0)
    ]
    np.testing.assert_allclose(whole, 0.7 * parts[0] + 0.3 * parts[1], rtol=1e-12)
    assert not np.isnan(binomial.q_posterior(schedule, x_t, 1 - x_t, t=0.0, s=0.0)).any()


@pytest.mark.parametrize("t", [0.0, 0.1, 0.6, 1.0])
def test_the_exact_denoiser_is_bayes_rule_by_enumeration(t: float, x64: None) -> None:
    data, schedule = law(), SCHEDULES["cosine"]()
    states = oracles.binary_states(4)
    forward = np.asarray(jnp.exp(data.log_weights))[
        :, None
    ]  # p(k) q(x_t | k), one bit after the other
    for i in range(4):
        one = np.asarray(binomial.q_marginal(schedule, data.sequences, t))[:, i, None]
        forward = forward * np.where(np.asarray(states)[None, :, i] == 1, one, 1 - one)
    reached = forward.sum(0) > 0
    expected = (forward.T @ np.asarray(data.sequences))[reached] / forward.sum(0)[reached, None]
    np.testing.assert_allclose(data.denoiser(schedule)(states, t)[reached], expected, atol=1e-12)
    np.testing.assert_allclose(jnp.exp(data.log_prob(states)).sum(), 1, rtol=1e-12)


def test_a_networks_logits_are_the_other_bits_evidence(x64: None) -> None:
    """For independent bits the network has only to know the prior's log-odds."""
    schedule, odds = SCHEDULES["cosine"](), jnp.array([-1.0, 0.5, 2.0])
    denoiser = binomial.make_denoiser(lambda x, t: jnp.broadcast_to(odds, x.shape), schedule)
    for t in (0.2, 0.7, 1.0):
        prior, alpha = np.asarray(jax.nn.sigmoid(odds)), float(schedule.alpha(t))
        likely, unlikely = prior * (1 + alpha), (1 - prior) * (1 - alpha)
        found = denoiser(jnp.ones((2, 3)), t)
        np.testing.assert_allclose(found[1], likely / (likely + unlikely), rtol=1e-12)
    slope = jax.grad(
        lambda v: jnp.log(
            binomial.make_denoiser(lambda x, t: v + 0 * x, schedule)(jnp.zeros((1, 1)), 0.5)[0, 0]
        )
    )
    np.testing.assert_allclose(
        slope(-50.0), 1, rtol=1e-5
    )  # beyond the limit the gradient still leads back


def chi_square(x: jax.Array, log_prob: jax.Array) -> float:
    """p-value of draws [N, n] against the probabilities of all sequences."""
    index = np.asarray(x, int) @ 2 ** np.arange(x.shape[1])[::-1]
    counts, expected = (
        np.bincount(index, minlength=len(log_prob)),
        len(x) * np.exp(np.asarray(log_prob, np.float64)),
    )
    common = expected > 5  # the rare ones together
    if not common.all():
        counts, expected = (np.append(v[common], v[~common].sum()) for v in (counts, expected))
        expected = expected + 1e-9  # where the rest is impossible
    return stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue


def rounded(denoiser, x: jax.Array, t: jax.Array) -> jax.Array:
    """The mutant that makes up its mind: the likelier bit, for certain."""
    return jnp.round(denoiser(x, t))


def test_samples_follow_the_chains_exact_law() -> None:
    """Coarse steps, a denoiser of no data: the law of the chain itself, which a mutant does not have."""
    schedule, ts = SCHEDULES["paper"](), jd.grids.uniform(5)
    exact = oracles.binary_chain(ignorant, schedule, ts, 4)
    np.testing.assert_allclose(jnp.exp(exact).sum(), 1, rtol=1e-5)  # float32 rounding

    def draws(denoiser) -> jax.Array:
        x_init = binomial.prior_sample(jax.random.key(0), (20_000, 4))
        return jd.sample(jax.random.key(1), binomial.ancestral(denoiser, schedule), x_init, ts).x

    assert chi_square(draws(ignorant), exact) > 1e-3  # Monte Carlo, of one key
    assert chi_square(draws(partial(rounded, ignorant)), exact) < 1e-6


def test_the_exact_denoiser_returns_the_data() -> None:
    """On a law in which all sequences occur, since a chi-square test forgives nothing that cannot be."""
    states, schedule = oracles.binary_states(4), SCHEDULES["paper"]()
    data = oracles.BinaryLaw(jnp.sin(3.0 * jnp.arange(16)) + states[:, 0] * states[:, 2], states)
    x_init = binomial.prior_sample(jax.random.key(0), (4000, 4))
    kernel = binomial.ancestral(data.denoiser(schedule), schedule)
    x = jd.sample(jax.random.key(1), kernel, x_init, jd.grids.uniform(400)).x
    # The chain's law is within 1 / 400 of the data's, below the Monte Carlo error of 4000 draws.
    assert chi_square(x, data.log_prob(states)) > 1e-3
    halves = [
        jd.sample(jax.random.key(1), kernel, binomial.prior_sample(jax.random.key(0), (20, 4), first=first), jd.grids.uniform(400), first=first).x
        for first in (0, 20)
    ]  # fmt: skip
    np.testing.assert_array_equal(
        np.concatenate(halves), x[:40]
    )  # sample i depends on (key, i) alone


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "cosine"])
def test_the_gap_to_the_data_shrinks_as_one_over_the_steps(name: str, x64: None) -> None:
    """The chain's law and its bound, exactly: -E log p_theta, and the bound above it, fall to the data's entropy."""
    data, schedule, steps = law(), SCHEDULES[name](), (25, 50, 100)
    log_p = data.log_prob(oracles.binary_states(4))
    weights = jnp.exp(log_p)
    denoiser, gaps, divergences = data.denoiser(schedule), [], []
    entropy = -jnp.sum(jnp.where(weights > 0, weights * log_p, 0))
    for num_steps in steps:
        ts = jd.grids.uniform(num_steps)
        chain = jax.jit(oracles.binary_chain, static_argnums=3)(denoiser, schedule, ts, 4)
        bound = jax.jit(oracles.binary_bound, static_argnums=3)(denoiser, schedule, ts, 4)
        listed = weights > 0
        assert np.all(np.asarray(bound <= chain)[listed])
        divergences.append(float(-jnp.sum(jnp.where(listed, weights * chain, 0)) - entropy))
        gaps.append(float(-jnp.sum(jnp.where(listed, weights * bound, 0)) - entropy))
    assert min(divergences) > 0
    assert np.all(np.array(gaps) > divergences)
    np.testing.assert_allclose(
        np.polyfit(np.log(steps), np.log(gaps), 1)[0], -1, atol=0.2
    )  # discretisation


def test_probabilities_of_all_sequences_sum_to_one_and_bounds_to_less(x64: None) -> None:
    both = jax.jit(
        lambda s, ts: (
            oracles.binary_chain(ignorant, s, ts, 5),
            oracles.binary_bound(ignorant, s, ts, 5),
        )
    )
    for name, num_steps in (("paper", 6), ("cosine", 1), ("ddpm", 6)):
        chain, bound = both(SCHEDULES[name](), jd.grids.uniform(num_steps))
        np.testing.assert_allclose(jnp.exp(chain).sum(), 1, rtol=1e-12)
        assert jnp.all(bound <= chain + 1e-12)
        assert jnp.exp(bound).sum() < 1


@pytest.mark.slow
def test_the_estimated_bound_has_the_exact_one_as_its_mean(x64: None) -> None:
    schedule, ts, x_0 = SCHEDULES["ddpm"](), jd.grids.uniform(6), law().sequences
    exact = oracles.binary_bound(ignorant, schedule, ts, 4)[
        np.asarray(x_0, int) @ 2 ** np.arange(4)[::-1]
    ]
    many = jnp.tile(x_0, (4000, 1))
    terms = jax.jit(binomial.vlb_terms, static_argnums=1)(
        jax.random.key(0), ignorant, schedule, many, ts=ts
    )
    assert terms.shape == (7, 20_000)
    terms = terms.T.reshape(4000, 5, 7)

    def z(costs: jax.Array) -> np.ndarray:
        costs = np.asarray(costs)
        return (costs.mean(0) + np.asarray(exact)) / (costs.std(0) / np.sqrt(len(costs)))

    assert np.abs(z(terms.sum(2))).max() < 5
    one = jax.jit(binomial.vlb, static_argnums=1)(
        jax.random.key(1), ignorant, schedule, many, ts=ts
    ).reshape(4000, 5)
    assert np.abs(z(one)).max() < 5
    # Mutants: the prior forgotten; the sum over steps not weighed by their number.
    assert np.abs(z(terms[..., 1:].sum(2))).max() > 5
    assert np.abs(z(one / 6)).max() > 5
    np.testing.assert_allclose(
        terms[0, :, 0], terms[1, :, 0], rtol=1e-12
    )  # the prior's term is exact
    p, q = jnp.array([[0.2, 1.0]]), jnp.array([[0.5, 0.25]])
    np.testing.assert_allclose(
        binomial.bernoulli_kl(p, q)[0],
        stats.entropy([0.2, 0.8], [0.5, 0.5]) + np.log(4),
        rtol=1e-12,
    )
    last = jnp.zeros(
        5, int
    )  # the only step of a grid of one: what it costs to draw the data from fair bits
    np.testing.assert_allclose(
        binomial.vlb(jax.random.key(0), lambda x, t: jnp.full_like(x, 0.5), schedule, x_0, ts=ts[-2:], index=last),
        4 * np.log(2) + binomial.prior_kl(schedule, x_0, ts[-2]), rtol=1e-12,
    )  # fmt: skip


def test_training_by_gradient_finds_the_exact_denoiser(x64: None) -> None:
    """The bound is stationary at the exact denoiser: a scale of its logits is best at one."""
    data, schedule, ts = law(), SCHEDULES["paper"](), jd.grids.uniform(8)
    weights = jnp.exp(data.log_prob(oracles.binary_states(4)))

    def cost(scale: jax.Array) -> jax.Array:
        def denoiser(x: jax.Array, t: jax.Array) -> jax.Array:
            exact = jnp.clip(data.denoiser(schedule)(x, t), 1e-9, 1 - 1e-9)
            return jax.nn.sigmoid(scale * (jnp.log(exact) - jnp.log1p(-exact)))

        bound = oracles.binary_bound(denoiser, schedule, ts, 4)
        return -jnp.sum(jnp.where(weights > 0, weights * bound, 0))

    here, slope = jax.jit(jax.value_and_grad(cost))(1.0)
    assert abs(float(slope)) < 1e-6  # the clipping
    assert float(cost(jnp.asarray(0.8))) > float(here) + 1e-3
    assert float(cost(jnp.asarray(1.2))) > float(here) + 1e-3


S, X = SCHEDULES["paper"](), jnp.zeros((3, 4))
test_bad_input = rejects({
    "integers": (lambda: binomial.q_marginal(S, jnp.zeros((3, 4), int), 0.5), TypeError, "x_0: expected a floating dtype"),
    "shapes": (lambda: binomial.q_posterior(S, X, X[:2], t=0.5, s=0.2), ValueError, "x_0: expected the shape of x_t"),
    "time": (lambda: binomial.q_transition(S, X, 0.5, 1.2), ValueError, r"t: expected a time in \[0, 1\]"),
    "logits": (lambda: binomial.make_denoiser(lambda x, t: x[:, 0], S)(X, 0.5), ValueError, "logits: expected the shape of x_t"),
    "denoiser": (lambda: binomial.ancestral(3, S), TypeError, "denoiser: expected a function, got int"),
    "key": (lambda: binomial.prior_sample(jax.random.PRNGKey(0), (3, 4)), TypeError, "key: expected a typed key"),
    "grid": (lambda: binomial.vlb_terms(jax.random.key(0), ignorant, S, X, ts=jnp.array([0.0, 1.0])), ValueError, "ts: expected decreasing times"),
    "noisy end": (lambda: binomial.vlb(jax.random.key(0), ignorant, S, X, ts=jd.grids.uniform(4, end=0.1)), ValueError, "ts: expected a grid that ends without noise"),
    "size": (lambda: oracles.binary_states(0), ValueError, "size: expected a positive int"),
})  # fmt: skip
