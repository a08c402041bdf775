"""The finite chain against the exact law of Gaussian data, from both sides; discrete models summed over all images."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import correlated_gaussian, rejects, slow
from jax.scipy.special import logsumexp

import jaxdiff as jd
from jaxdiff import chain as chains
from jaxdiff import likelihood, losses, work
from jaxdiff.decoders import levels

SCHEDULE = jd.schedules.cosine()


def gaussian_chain(
    size: int, num_steps: int, variance: object = "large", **options: object
) -> tuple:
    """Data N(m, C), neither white nor centred, its own denoiser in a chain, and the chain's exact law."""
    scales = jnp.linspace(0.5, 2.0, size) if size > 1 else jnp.array([2.0])
    data = jd.oracles.gaussian(jnp.linspace(-0.5, 1.0, size), scales**2)
    denoiser = data.denoiser(SCHEDULE, variance=variance == "optimal")
    ts = options.pop("ts", jd.grids.uniform(num_steps))
    chain = jd.Chain(denoiser, SCHEDULE, ts, variance=variance, **options)
    return data, chain, jd.oracles.chain_law(data, chain)


def z(values: jax.Array, exact: float = 0.0) -> float:
    """Standard errors between the mean of independent values and the exact one."""
    values = np.asarray(values, np.float64)
    return float((values.mean() - exact) / (values.std(ddof=1) / np.sqrt(len(values))))


@jax.jit
def sandwich(key: jax.Array, chain: jd.Chain, like: jax.Array) -> work.Bounds:
    return work.bidirectional_bounds(key, chain, like.shape, num_paths=32)


@pytest.mark.parametrize(
    ("size", "variance"),
    [
        (1, "large"),
        slow(8, "large"),
        slow(8, "small"),
        slow(8, 0.5),
        slow(64, "optimal"),
        slow(64, "large"),
    ],
)
def test_the_exact_law_lies_between_the_bounds(size: int, variance: object, x64: None) -> None:
    _, chain, law = gaussian_chain(size, 30, variance)
    bounds = sandwich(jax.random.key(0), chain, jnp.zeros((1000, size)))
    exact = law.log_prob(bounds.x_0)
    lower, upper = np.asarray(bounds.lower - exact), np.asarray(bounds.upper - exact)
    if (
        variance == "optimal"
    ):  # every reverse step is exact; what is left is the prior's alpha_1 = 5e-4
        assert np.abs(np.concatenate([lower, upper])).max() < 0.02
        return
    assert lower.mean() < 3 * lower.std() / np.sqrt(1000)
    assert upper.mean() > -3 * upper.std() / np.sqrt(1000)
    single = (
        np.asarray(-bounds.forward_work[0] - exact).mean(),
        np.asarray(bounds.reverse_work - exact).mean(),
    )
    assert single[0] < lower.mean() + 0.01  # more paths, tighter
    assert upper.mean() < single[1] + 0.01
    # The mean weight itself has no bias, where it has a variance to speak of.
    if size == 1:
        assert abs(z(jnp.exp(-bounds.forward_work - exact[None]).mean(0), 1.0)) < 4


@pytest.mark.slow
def test_the_two_sided_gap_at_100_steps(x64: None) -> None:
    """T = 100, d = 8, K = 128: from below and above within 0.05 nat of each other, and of the exact value."""
    data = jd.oracles.gaussian(jnp.zeros(8), jnp.asarray(4.0))
    chain = jd.Chain(data.denoiser(SCHEDULE), SCHEDULE, jd.grids.uniform(100), variance="large")
    bounds = jax.jit(lambda k, c: work.bidirectional_bounds(k, c, (100, 8), num_paths=128))(
        jax.random.key(1), chain
    )
    exact = jd.oracles.chain_law(data, chain).log_prob(bounds.x_0)
    lower, upper = float(jnp.mean(bounds.lower - exact)), float(jnp.mean(bounds.upper - exact))
    error = float(jnp.std(bounds.upper - bounds.lower)) / 10
    assert upper - lower < 0.05
    assert abs(lower) < 0.05
    assert abs(upper) < 0.05
    assert upper - lower > -4 * error


@pytest.mark.slow
def test_the_gap_shrinks_as_one_over_the_steps(x64: None) -> None:
    gaps, schedule, data = (
        [],
        jd.schedules.linear(),
        jd.oracles.gaussian(jnp.zeros(4), jnp.asarray(4.0)),
    )
    for num_steps in (12, 24, 48):
        chain = jd.Chain(
            data.denoiser(schedule), schedule, jd.grids.uniform(num_steps), variance="large"
        )
        x_0 = data.sample(jax.random.key(0), (4000,))
        bound = jax.jit(lambda k, c, x: likelihood.elbo(k, c, x, num_paths=4))(
            jax.random.key(1), chain, x_0
        )
        gaps.append(float(jnp.mean(jd.oracles.chain_law(data, chain).log_prob(x_0) - bound)))
    slope = np.polyfit(np.log([12, 24, 48]), np.log(gaps), 1)[0]
    np.testing.assert_allclose(slope, -1, atol=0.2)  # discretisation; Monte Carlo is a third of it


@pytest.mark.slow
@pytest.mark.parametrize("end", [0.0, 1e-3])
def test_terms_are_the_path_bound_on_common_noise(end: float, x64: None) -> None:
    """One path, both estimates: their difference has mean zero."""
    data, chain, _ = gaussian_chain(3, 12, ts=jd.grids.uniform(12, end=end))
    x_0 = data.sample(jax.random.key(0), (4000,))
    eps = jax.random.normal(jax.random.key(1), (len(chain.times), 4000, 3))
    xs, ts = chains.path(chain, x_0, eps), chain.times[::-1]
    terms = [
        chains.prior_kl(SCHEDULE, x_0, chain.ts[0]),
        -chain.decoder.log_prob(x_0, chain.p_last(xs[0])),
    ]
    for x_t, t, s in zip(xs[1:], ts[1:], ts[:-1], strict=True):
        q = jd.q_posterior(SCHEDULE, x_t, x_0, t, s)
        terms.append(q.kl(chain.p_step(x_t, t, s)))
    path = chains.log_weight_of_path(chain, x_0, xs)
    assert abs(z(path + sum(terms))) < 4
    fresh = likelihood.vlb_terms(jax.random.key(2), chain, x_0)
    assert fresh.shape == (chain.num_terms, 4000)
    assert abs(z(fresh.sum(0) - sum(terms))) < 4
    # The driver's paths, drawn step by step, have the law of those made at once.
    assert abs(z(likelihood.elbo(jax.random.key(3), chain, x_0) - path)) < 4


@pytest.mark.slow
def test_a_path_and_its_noises() -> None:
    data, chain, _ = gaussian_chain(3, 12)
    x_0 = data.sample(jax.random.key(0), (5,))
    eps = jax.random.normal(jax.random.key(1), (12, 5, 3))
    xs = chains.path(chain, x_0, eps)
    np.testing.assert_allclose(
        chains.noises_of_path(chain, x_0, xs), eps, atol=2e-3
    )  # float32: differences of x / alpha
    step = jd.q_step(SCHEDULE, xs[3], chain.times[::-1][3], chain.times[::-1][4], eps[4])
    np.testing.assert_allclose(xs[4], step, atol=1e-5)


@pytest.mark.slow
def test_random_terms_have_the_bound_as_their_mean(x64: None) -> None:
    """`losses.vlb` with every index weighed by its probability, uniform or not, in both kinds of grid."""
    for end in (0.0, 1e-3):
        data, chain, _ = gaussian_chain(2, 6, ts=jd.grids.uniform(6, end=end))
        x_0 = jnp.tile(data.sample(jax.random.key(0), (1,)), (60_000, 1))
        exact = float(jnp.mean(likelihood.vlb_terms(jax.random.key(1), chain, x_0).sum(0)))
        assert abs(z(jax.jit(losses.vlb)(jax.random.key(2), chain, x_0), exact)) < 5
        share = jnp.array([0.05, 0.05, 0.1, 0.2, 0.2, 0.4])
        index = jax.random.categorical(jax.random.key(3), jnp.log(share), shape=(60_000,))
        weighed = losses.vlb(jax.random.key(4), chain, x_0, index=index, probability=share[index])
        assert abs(z(weighed, exact)) < 5
        assert (
            abs(z(losses.vlb(jax.random.key(4), chain, x_0, index=index), exact)) > 5
        )  # the mutant: not weighed


@pytest.mark.slow
def test_hybrid_trains_the_mean_simply_and_the_variance_by_the_bound(x64: None) -> None:
    x_0 = jax.random.normal(jax.random.key(0), (64, 2))

    def loss(parameters: dict, weight: float) -> jax.Array:
        def network(x: jax.Array, t: jax.Array) -> jax.Array:
            return jnp.concatenate(
                [parameters["mean"] * x, jnp.broadcast_to(parameters["fraction"], x.shape)], axis=-1
            )

        denoiser = jd.make_denoiser(network, SCHEDULE, "eps", learned_variance=True)
        chain = jd.Chain(denoiser, SCHEDULE, jd.grids.uniform(8), variance="learned")
        return jnp.mean(losses.hybrid(jax.random.key(1), chain, x_0, vlb_weight=weight))

    parameters = {"mean": jnp.asarray(0.3), "fraction": jnp.asarray(0.1)}
    with_bound, simple = (jax.grad(loss)(parameters, w) for w in (1.0, 0.0))
    assert abs(float(with_bound["mean"] - simple["mean"])) < 1e-12
    assert float(simple["fraction"]) == 0
    assert abs(float(with_bound["fraction"])) > 1e-3


def test_loss_aware_terms() -> None:
    history = losses.term_history(3, size=2)
    index, probability = losses.loss_aware_terms(jax.random.key(0), history, 6000)
    np.testing.assert_allclose(probability, 1 / 3, rtol=1e-6)
    for _ in range(2):
        history = losses.record_terms(history, jnp.array([0, 1, 2]), jnp.array([1.0, 2.0, 5.0]))
    index, probability = losses.loss_aware_terms(jax.random.key(0), history, 6000)
    counts = np.bincount(np.asarray(index), minlength=3) / 6000
    np.testing.assert_allclose(counts, [1 / 8, 2 / 8, 5 / 8], atol=0.03)  # 5 standard errors
    np.testing.assert_allclose(probability[index == 2], 5 / 8, rtol=2e-3)  # a thousandth is uniform
    late = losses.record_terms(history, jnp.array([2]), jnp.array([7.0]))
    np.testing.assert_allclose(late.losses[2], [7.0, 5.0])


def two_pixel_chain(num_levels: int, num_steps: int) -> jd.Chain:
    """A chain whose denoiser is some function that knows little of any data, on images of two pixels."""

    def logits(x: jax.Array, t: jax.Array) -> jax.Array:
        values = levels(num_levels).astype(x.dtype)[None, None]
        return (
            x[:, ::-1, None] * values - values**2 * t[:, None, None]
        )  # each pixel looks at the other one

    denoiser = jd.make_categorical_denoiser(logits, SCHEDULE, num_levels)
    decoder = jd.decoders.discretised_normal(num_levels)
    return jd.Chain(
        denoiser, SCHEDULE, jd.grids.uniform(num_steps), variance="large", decoder=decoder
    )


@pytest.mark.slow
@pytest.mark.parametrize("num_levels", [2, 17])
def test_probabilities_of_all_images_sum_to_one(num_levels: int, x64: None) -> None:
    """What cannot be fooled: over all images of two pixels, Jarzynski's estimates sum to 1, bounds to less."""
    chain = two_pixel_chain(num_levels, 5)
    values = np.asarray(levels(num_levels))
    images = jnp.asarray(list(itertools.product(values, values)))
    paths = 20_000 if num_levels == 2 else 400
    log_w = jax.jit(lambda k, c: jax.vmap(lambda k: likelihood.path_log_weights(k, c, images))(jax.random.split(k, paths)))(
        jax.random.key(0), chain
    )  # fmt: skip
    totals = np.exp(np.asarray(log_w)).sum(1)  # one independent estimate of the sum a path
    assert abs(z(totals, 1.0)) < 4
    assert totals.std() / np.sqrt(paths) < 0.05
    bound = float(jnp.exp(logsumexp(jnp.mean(log_w, axis=0))))
    assert bound < 1
    terms = jax.vmap(lambda k: likelihood.vlb_terms(k, chain, images))(
        jax.random.split(jax.random.key(1), 200)
    )
    np.testing.assert_allclose(
        float(jnp.sum(jnp.exp(-terms.sum(1).mean(0)))), bound, rtol=0.1
    )  # Monte Carlo
    if (
        num_levels == 17
    ):  # mutants that claim more than there is: the decoder left out, a density for a probability
        assert float(jnp.sum(jnp.exp(-terms.mean(0)[:-1].sum(0)))) > 1
        as_density = jd.Chain(chain.denoiser, SCHEDULE, chain.ts, variance="large")
        densities = likelihood.vlb_terms(jax.random.key(1), as_density, images).sum(0)
        assert float(jnp.sum(jnp.exp(-densities))) > 1


@pytest.mark.slow
def test_mutants_leave_the_exact_law(x64: None) -> None:
    """A wrong end, a wrong variance, a step too few: each is five standard errors from the law it should have."""
    data, chain, law = gaussian_chain(2, 10)
    x_0 = data.sample(jax.random.key(0), (20_000,))
    exact = law.log_prob(x_0)

    def ratio(log_w: jax.Array) -> float:
        return z(jnp.exp(log_w - exact), 1.0)

    eps = jax.random.normal(jax.random.key(1), (10, 20_000, 2))
    xs = jax.jit(chains.path)(chain, x_0, eps)
    right = jax.jit(chains.log_weight_of_path)(chain, x_0, xs)
    assert abs(ratio(right)) < 4
    ends = chains.log_ends(chain, x_0, xs[0], xs[-1])
    swapped = chains.log_ends(chain, x_0, xs[0], xs[-2])
    late = chains.level(SCHEDULE, chain.times[0], x_0)
    prior = jnp.sum(
        -0.5 * (xs[-1] / late.sigma) ** 2 - jnp.log(late.sigma) - 0.5 * jnp.log(2 * jnp.pi), axis=1
    )
    mutants = {
        "a latent too few at the prior": right - ends + swapped,
        "no prior": right - prior,
        "one transition missing": right
        - chain.log_step_ratio(xs[4], xs[5], chain.times[5], chain.times[4]),
        "batch-coupled": jnp.broadcast_to(jnp.mean(right), right.shape),
    }
    for name, log_w in mutants.items():
        assert abs(ratio(log_w)) > 5, name


@pytest.mark.slow
class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_estimators_jit_and_grad_with_the_chain_as_an_argument(self) -> None:
        _, chain, _ = gaussian_chain(2, 4)
        x_0 = jnp.ones((3, 2))

        def estimates(chain: jd.Chain) -> tuple:
            key = jax.random.key(0)
            return (
                likelihood.vlb_terms(key, chain, x_0),
                likelihood.importance_log_prob(key, chain, x_0, num_paths=2),
                losses.vlb(key, chain, x_0),
            )

        chex.assert_tree_all_finite(self.variant(estimates)(chain))
        slopes = jax.grad(lambda c: jnp.sum(estimates(c)[1]))(chain)
        chex.assert_tree_all_finite(slopes)


@pytest.mark.slow
def test_row_i_depends_on_its_index_alone() -> None:
    data, chain, _ = gaussian_chain(2, 5)
    x_0 = data.sample(jax.random.key(0), (6,))
    for function in (likelihood.vlb_terms, likelihood.path_log_weights):
        whole, part = (
            function(jax.random.key(1), chain, x_0),
            function(jax.random.key(1), chain, x_0[:4]),
        )
        np.testing.assert_allclose(whole[..., :4], part, rtol=1e-5)


_CHAIN = jd.Chain(correlated_gaussian().denoiser(SCHEDULE), SCHEDULE, jd.grids.uniform(3))
_X = jnp.zeros((2, 2))
test_bad_input = rejects(
    {
        "grid": (
            lambda: jd.Chain(lambda x, t: x, SCHEDULE, jnp.linspace(0, 1, 4)),
            ValueError,
            "ts: expected decreasing times",
        ),
        "denoiser": (
            lambda: jd.Chain(3, SCHEDULE, jd.grids.uniform(3)),
            TypeError,
            "denoiser: expected a function, got int",
        ),
        "variance": (
            lambda: jd.Chain(lambda x, t: x, SCHEDULE, jd.grids.uniform(3), variance="tiny"),
            ValueError,
            "variance: expected one of",
        ),
        "traced": (
            lambda: jax.jit(lambda ts: jd.Chain(lambda x, t: x, SCHEDULE, ts).num_terms)(
                jd.grids.uniform(3)
            ),
            TypeError,
            "ends_clean: expected True or False",
        ),
        "no chain": (
            lambda: likelihood.elbo(jax.random.key(0), 3, _X),
            TypeError,
            "chain: expected a Chain, got int",
        ),
        "integers": (
            lambda: likelihood.vlb_terms(jax.random.key(0), _CHAIN, jnp.zeros((2, 2), int)),
            TypeError,
            "x_0: expected a floating dtype",
        ),
        "no paths": (
            lambda: likelihood.importance_log_prob(jax.random.key(0), _CHAIN, _X, num_paths=0),
            ValueError,
            "num_paths: expected a positive int, got 0",
        ),
        "index": (
            lambda: losses.vlb(jax.random.key(0), _CHAIN, _X, index=jnp.zeros(3, int)),
            ValueError,
            "index: expected shape",
        ),
        "noises": (
            lambda: chains.path(_CHAIN, _X, jnp.zeros((2, 2, 2))),
            ValueError,
            "eps: expected shape",
        ),
        "history": (
            lambda: losses.term_history(0),
            ValueError,
            "num_terms: expected a positive int",
        ),
        "mixing": (
            lambda: losses.loss_aware_terms(
                jax.random.key(0), losses.term_history(3), 2, uniform=0.0
            ),
            ValueError,
            "uniform: expected a weight",
        ),
    }
)
