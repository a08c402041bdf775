"""Edges of what can be asked: what is known is refused with its name, what is traced makes its own row NaN."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import asymmetric_mixture, rejects, slow
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import _rows, decoders, kernels, likelihood, losses, models, observations
from jaxdiff.models import Model
from jaxdiff.runs import checks
from jaxdiff.runs.config import Config, Diffusion

SCHEDULE = jd.schedules.cosine()
MIXTURE = asymmetric_mixture()
DENOISER = MIXTURE.denoiser(SCHEDULE)
X = jnp.ones((4, 2))
KEY = jax.random.key(0)

# Labels and indices -------------------------------------------------------------------------------------------------


def pretrained(model: Model) -> jd.zoo.Trained:
    params = model.init(KEY, (2,))
    params["head"]["kernel"] = jnp.ones_like(
        params["head"]["kernel"]
    )  # the first prediction is zero otherwise
    return jd.zoo.Trained(model, params, SCHEDULE, "v", (2,), levels=2)


CLASSES, PLAIN = (pretrained(models.mlp(width=8, depth=1, num_classes=n)) for n in (3, None))


def one_step(denoiser: Any, rows: int = 4) -> np.ndarray:
    kernel = jd.kernels.unipc(denoiser, SCHEDULE)
    return np.asarray(jd.sample(KEY, kernel, jnp.ones((rows, 2)), jnp.array([0.5, 0.4])).x)


def test_a_label_reaches_its_row_and_no_other() -> None:
    """In the driver every label is traced: what lies outside is NaN there, and refused before."""
    label = jnp.array([0, 3, 2, 1])
    found = one_step(CLASSES.denoiser(label))
    wrong = jax.jit(lambda label: one_step_traced(CLASSES.denoiser(label)))(
        label.at[1].set(4).at[2].set(-1)
    )
    assert np.isnan(np.asarray(wrong)[1:3]).all()
    np.testing.assert_allclose(np.asarray(wrong)[[0, 3]], found[[0, 3]], rtol=1e-5)  # rounding
    np.testing.assert_array_equal(
        one_step(CLASSES.denoiser(3)), one_step(CLASSES.denoiser())
    )  # the null class


def one_step_traced(denoiser: Any) -> jax.Array:
    return jd.sample(KEY, jd.kernels.unipc(denoiser, SCHEDULE), X, jnp.array([0.5, 0.4])).x


def chain(**options: Any) -> jd.Chain:
    return jd.Chain(DENOISER, SCHEDULE, jd.grids.uniform(3), **options)


@pytest.mark.parametrize(
    "loss",
    [
        lambda index: losses.vlb(KEY, chain(), X, index=index),
        lambda index: losses.vlb(
            KEY, jd.Chain(DENOISER, SCHEDULE, jd.grids.uniform(3, end=0.1)), X, index=index
        ),
        lambda index: losses.hybrid(KEY, chain(), X, index=index),
        lambda index: jd.binomial.vlb(
            KEY, lambda x, t: x / 3, FLOW, X, ts=jd.grids.uniform(3), index=index
        ),
    ],
)
def test_a_traced_index_is_no_other_term(loss: Callable) -> None:
    loss = jax.jit(loss)
    found = np.asarray(loss(jnp.array([3, 0, -1, 2])))
    np.testing.assert_array_equal(np.isnan(found), [True, False, True, False])
    good = np.asarray(loss(jnp.array([1, 0, 1, 2])))
    np.testing.assert_allclose(found[[1, 3]], good[[1, 3]], rtol=1e-5)  # rounding


def test_a_term_that_there_is_none_of_is_not_recorded() -> None:
    empty = losses.term_history(3, size=2)
    history = jax.jit(losses.record_terms)(empty, jnp.array([-1, 3, 1]), jnp.array([5.0, 6.0, 7.0]))
    np.testing.assert_array_equal(history.counts, [0, 1, 0])
    np.testing.assert_array_equal(history.losses, [[0, 0], [7, 0], [0, 0]])


def test_an_observed_class_is_no_other_class() -> None:
    def logits(x_0: jax.Array) -> jax.Array:
        return jnp.arange(3.0) * x_0

    found = jax.vmap(lambda label: observations.classified(logits, label)(jnp.ones(())))(
        jnp.arange(-1, 4)
    )
    np.testing.assert_allclose(found[1:4], jax.nn.log_softmax(jnp.arange(3.0)), rtol=1e-6)
    assert np.isnan(found[0])
    assert np.isnan(found[4])


def test_an_ancestor_is_a_row() -> None:
    """A resampler of one's own that points outside makes NaN, and not the last row."""

    def outside(key: jax.Array, log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.array([0, 4, -1, 3]), jnp.asarray(True)

    x = jd.sample(
        KEY, jd.kernels.ddim(DENOISER, SCHEDULE), X, jnp.array([0.5, 0.4]), resample=outside
    ).x
    np.testing.assert_array_equal(np.isnan(x[:, 0]), [False, True, True, False])


def test_first_counts_to_the_end_of_its_range() -> None:
    """Chunks join up beyond the largest signed integer too."""
    whole = jd.prior_sample(KEY, SCHEDULE, (4, 2), first=2**31 - 2)
    np.testing.assert_array_equal(whole[2:], jd.prior_sample(KEY, SCHEDULE, (2, 2), first=2**31))
    assert not np.any(whole == jd.prior_sample(KEY, SCHEDULE, (4, 2)))


# Keys ---------------------------------------------------------------------------------------------------------------


def test_keys_of_rbg_depend_on_the_batch() -> None:
    """Why they are refused: mapped over rows, a draw takes more than its own row's key."""
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 4)
    draws = [jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys[start:]) for start in (0, 2)]
    assert not np.allclose(draws[0][2:], draws[1])
    rows = [
        _rows.normal(jax.random.split(KEY, 4)[start:], jnp.ones((4 - start, 3))) for start in (0, 2)
    ]
    np.testing.assert_array_equal(rows[0][2:], rows[1])


def test_a_key_of_its_own_kind_works_under_another_default() -> None:
    expected = jd.prior_sample(KEY, SCHEDULE, (2, 2))
    with jax.default_prng_impl("rbg"):
        with pytest.raises(ValueError, match="impl='threefry2x32'"):
            jd.prior_sample(jax.random.key(0), SCHEDULE, (2, 2))
        found = jd.prior_sample(jax.random.key(0, impl="threefry2x32"), SCHEDULE, (2, 2))
    np.testing.assert_array_equal(found, expected)


# Predictions where nothing is left of what they speak of -------------------------------------------------------------

NOTHING_LEFT = {
    "rectified_flow": jd.schedules.rectified_flow(),
    "cosine": jd.schedules.cosine(log_snr_min=-np.inf),
    "cosine, less than rounding": jd.schedules.cosine(log_snr_min=-50.0),
    "table": jd.schedules.from_betas(
        jd.schedules.zero_terminal_snr(jd.schedules.linear_betas(100))
    ),
}


@pytest.mark.parametrize("kind", ["eps", "score"])
@pytest.mark.parametrize("name", [n if n == "cosine" else slow(n) for n in NOTHING_LEFT])
def test_a_prediction_of_noise_is_of_no_use_without_data(name: str, kind: str) -> None:
    """Refused where sampling would begin there; an earlier start is given its due, and t = 1 is NaN even so."""
    schedule = NOTHING_LEFT[name]
    with pytest.raises(
        ValueError,
        match=f"prediction: expected 'v', .* no data at t = 1.0, got '{kind}', .*start=0.99",
    ):
        jd.make_denoiser(lambda x, t: x, schedule, kind)
    oracle = MIXTURE.denoiser(schedule)

    def network(x: jax.Array, t: jax.Array) -> jax.Array:
        return jd.prediction.from_x_0(schedule, oracle(x, t), x, t, prediction=kind)

    denoiser = jd.make_denoiser(network, schedule, kind, start=0.9)
    np.testing.assert_allclose(
        denoiser(X, 0.9), oracle(X, 0.9), rtol=1e-3, atol=1e-3
    )  # rounding, over alpha
    assert np.isnan(denoiser(X, 1.0)).all()
    mixed = jax.jit(denoiser)(X, jnp.array([1.0, 0.5, 1.0, 0.25]))
    np.testing.assert_array_equal(np.isnan(mixed[:, 0]), [True, False, True, False])


def test_a_traced_schedule_that_leaves_no_data_gives_nan() -> None:
    made_inside = jax.jit(
        lambda schedule, t: jd.make_denoiser(lambda x, t: x, schedule, "eps")(X, t)
    )
    for t, lost in ((1.0, True), (0.9, False)):
        np.testing.assert_array_equal(np.isnan(made_inside(NOTHING_LEFT["table"], t)), lost)


@pytest.mark.parametrize("kind", ["x0", "v", "edm"])
def test_other_predictions_begin_without_data(kind: str) -> None:
    for schedule in NOTHING_LEFT.values():
        denoiser = jd.make_denoiser(lambda x, t: 0.5 * x, schedule, kind)
        assert np.all(np.abs(denoiser(X, 1.0)) <= 1)


def test_a_velocity_speaks_of_data_where_they_go_at_a_speed() -> None:
    """alpha' = -1 at the end of a rectified flow, and 0 at that of a table: it ends with the noise."""
    for name in ("rectified_flow", "cosine"):
        denoiser = jd.make_denoiser(lambda x, t: 0.5 * x, NOTHING_LEFT[name], "velocity")
        assert np.all(np.abs(denoiser(X, 1.0)) <= 1)
    with pytest.raises(ValueError, match="got 'velocity', which says nothing of x_0 there"):
        jd.make_denoiser(lambda x, t: x, NOTHING_LEFT["table"], "velocity")
    with pytest.raises(ValueError, match="got 'velocity', which says nothing of x_0 there"):
        jax.jit(
            lambda: jd.make_denoiser(lambda x, t: x, NOTHING_LEFT["table"], "velocity")(X, 0.5)
        )()


@pytest.mark.parametrize("kind", jd.prediction.PREDICTIONS)
def test_a_prediction_is_not_known_without_noise(kind: str) -> None:
    """x_0 and x_t are the same there, and say nothing of eps."""
    said = jax.jit(lambda t: jd.prediction.from_x_0(SCHEDULE, X, X, t, prediction=kind))(
        jnp.array([0.0, 0.5, 0.0, 1.0])
    )
    lost = kind != "x0"
    np.testing.assert_array_equal(np.isnan(said[:, 0]), [lost, False, lost, False])


def test_training_refuses_a_network_it_could_not_sample_from() -> None:
    for kind in ("eps", "score"):
        config = Config(diffusion=Diffusion(schedule="rectified_flow", prediction=kind))
        with pytest.raises(ValueError, match="prediction: expected 'v', 'x0' or 'edm'"):
            checks.check(config)
    checks.check(Config(diffusion=Diffusion(schedule="rectified_flow", prediction="velocity")))
    checks.check(Config(diffusion=Diffusion(schedule="sigmoid", prediction="eps")))


# Data off the levels ------------------------------------------------------------------------------------------------

LAST = jd.Normal(jnp.zeros((4, 2)), jnp.full((4, 2), 0.1))
DECODERS = {"discretised": decoders.discretised_normal(17), "categorical": decoders.categorical(17)}


@pytest.mark.parametrize("name", DECODERS)
def test_a_traced_row_off_the_levels_has_no_probability(name: str) -> None:
    log_prob = jax.jit(DECODERS[name].log_prob)
    x_0 = jnp.array([[-1.0, 0.125], [0.1, 0.0], [-1.125, 0.0], [128.0, 0.0]])
    found = np.asarray(log_prob(x_0, LAST))
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, True])
    np.testing.assert_allclose(found[0], log_prob(jnp.tile(x_0[:1], (4, 1)), LAST)[0], rtol=1e-5)
    spread = jax.jit(lambda x: decoders.uniform_dequantise(KEY, x, 17))(x_0)
    np.testing.assert_array_equal(np.isnan(spread[:, 0]), [False, True, True, True])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_levels_are_levels_however_they_were_rounded(num_levels: int, dtype: str) -> None:
    if (num_levels, dtype) == (256, "bfloat16"):
        num_levels = 65  # 8 bits of a mantissa do not hold 256 levels of a sign
    by_division = np.arange(num_levels, dtype=np.float32) / np.float32(num_levels - 1) * 2 - 1
    for values in (by_division, np.asarray(decoders.levels(num_levels))):
        assert np.all(decoders.on_levels(jnp.asarray(values, dtype)[:, None], num_levels))


def test_a_traced_row_of_no_bits_has_no_probability() -> None:
    bits = jnp.array([[0.0, 1.0], [0.5, 1.0], [-1.0, 1.0], [255.0, 0.0]])
    for bound in (jd.binomial.vlb_terms, jd.binomial.vlb):
        found = jax.jit(lambda x: bound(KEY, lambda x, t: x / 3 + 0.3, FLOW, x, ts=GOOD))(bits)  # noqa: B023
        np.testing.assert_array_equal(np.isnan(jnp.atleast_2d(found)[0]), [False, True, True, True])


# From data to noise, and one row beside another ---------------------------------------------------------------------

NOISY = jd.grids.uniform(4, end=1e-2)
CLEAN_ENDS = {
    "zero": jd.grids.uniform(4),
    "less than rounding": jd.grids.uniform(4, end=1e-8),
    "karras": jd.grids.karras(SCHEDULE, 4),
}
DETERMINISTIC = {
    "ddim": kernels.ddim,
    "euler_t": kernels.euler_t,
    "heun": kernels.heun,
    "dpmpp_2m": kernels.dpmpp_2m,
    "unipc": kernels.unipc,
    "adaptive": kernels.adaptive,
}
STOCHASTIC: dict[str, Callable[..., jd.Kernel]] = {
    "ancestral": kernels.ancestral,
    "euler_maruyama": kernels.euler_maruyama,
    "ddim": lambda d, s, v=0.5: kernels.ddim(d, s, v),
    "dpmpp_2m": lambda d, s, v=1.0: kernels.dpmpp_2m(d, s, v),
    "heun": lambda d, s, v=0.1: kernels.heun(d, s, v),
    "corrected": lambda d, s: kernels.corrected(kernels.unipc(d, s), d, s),
    "one's own": lambda d, s: jd.Kernel(lambda x, t: (), own_step),
}


def own_step(key: jax.Array, carry: Any, x_t: jax.Array, t: Any, s: Any) -> Any:
    return carry, x_t + _rows.normal(key, x_t), jnp.zeros(len(x_t))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_there_is_no_way_back_from_data_without_noise(name: str) -> None:
    kernel = DETERMINISTIC[name](DENOISER, SCHEDULE)
    for ts in CLEAN_ENDS.values():
        with pytest.raises(
            ValueError, match=r"ts: expected a grid that ends with noise left, .* got .* for an end"
        ):
            jd.sampling.encode(kernel, X, ts)


@pytest.mark.parametrize("name", ["ddim", "heun", "unipc"])
def test_a_traced_grid_that_ends_clean_is_nan(name: str) -> None:
    kernel = DETERMINISTIC[name](DENOISER, SCHEDULE)
    encode = jax.jit(lambda kernel, ts: jd.sampling.encode(kernel, X, ts))
    assert np.isnan(encode(kernel, CLEAN_ENDS["zero"])).all()
    np.testing.assert_allclose(
        encode(kernel, NOISY), jd.sampling.encode(kernel, X, NOISY), rtol=1e-5
    )  # rounding


def test_a_schedule_that_leaves_noise_is_followed_to_zero() -> None:
    edm = jd.schedules.edm()
    assert np.isfinite(jd.sampling.encode(kernels.unipc(MIXTURE.denoiser(edm), edm), X, GRID)).all()


@pytest.mark.parametrize("name", STOCHASTIC)
def test_there_is_no_way_back_from_noise_that_was_drawn(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"kernel: expected a deterministic one, .* got one that draws from its key",
    ):
        jd.sampling.encode(STOCHASTIC[name](DENOISER, SCHEDULE), X, NOISY)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun"])
def test_a_traced_strength_of_noise_is_nan_unless_it_is_none(name: str) -> None:
    encode = jax.jit(
        lambda v: jd.sampling.encode(STOCHASTIC[name](DENOISER, SCHEDULE, v), X, NOISY)
    )
    plain = jd.sampling.encode(DETERMINISTIC[name](DENOISER, SCHEDULE), X, NOISY)
    np.testing.assert_allclose(encode(0.0), plain, rtol=1e-5)  # rounding
    assert np.isnan(encode(0.5)).all()


def test_a_fault_of_a_kernel_of_ones_own_comes_out() -> None:
    def broken(key: Any, carry: Any, x_t: jax.Array, t: Any, s: Any) -> Any:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        jd.sampling.encode(jd.Kernel(lambda x, t: (), broken), X, NOISY)


def scaled(scale: jax.Array | None, x: jax.Array, t: jax.Array) -> jax.Array:
    """A row's denoised state in a scale of its own; NaN far out, where no step can be taken and none is."""
    return jnp.where(
        jnp.abs(x[:, :1]) > 1e7,
        jnp.nan,
        DENOISER(x, t) * (1.0 if scale is None else scale[:, None]),
    )


def beside(x: jax.Array, scale: jax.Array | None) -> dict[str, jax.Array]:
    """What the adaptive solver makes of rows, with a scale of each row's own or without."""
    denoise = Partial(scaled, scale)
    probes = {} if scale is None else {"key": KEY, "num_probes": 2}
    return {
        "sample": jd.sample(
            KEY, kernels.adaptive(denoise, SCHEDULE, 1e-2), x, jd.grids.uniform(1)
        ).x,
        "density": likelihood.ode_log_prob(
            denoise, SCHEDULE, jd.grids.uniform(1), x, tolerance=1e-2, **probes
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [slow(False), True])
def test_a_row_is_what_it_is_alone_beside_a_hard_one(labelled: bool, x64: None) -> None:
    """Each row has steps of its own: equal up to float64's rounding, where the solver's tolerance is 1e-2."""
    x, scale = jnp.array([[0.3, -0.5], [30.0, -20.0], [1e8, 0.0]]), jnp.array([0.9, 0.5, 0.7])
    together = beside(x, scale if labelled else None)
    alone = beside(
        jnp.tile(x[:1], (3, 1)), jnp.tile(scale[:1], 3) if labelled else None
    )  # as good, and compiled already
    for name, value in together.items():
        np.testing.assert_allclose(value[0], alone[name][0], rtol=1e-6, err_msg=name)
        assert np.isfinite(value[:2]).all()
        assert np.isnan(value[2]).all()  # and a row that has no solution holds up no other


# Inside compiled functions ------------------------------------------------------------------------------------------

TABLE = (np.linspace(-8.0, 8.0, 20), np.linspace(2.0, 0.1, 20))
INSIDE: dict[str, Callable[[], Any]] = {
    "uniform": lambda: jd.grids.uniform(4),
    "quadratic": lambda: jd.grids.quadratic(4),
    "subsequence": lambda: jd.grids.subsequence(10, 4),
    "log_snr": lambda: jd.grids.log_snr(SCHEDULE, 4),
    "karras": lambda: jd.grids.karras(jd.schedules.edm(), 4),
    "optimised": lambda: jd.grids.optimised(SCHEDULE, 3, *TABLE),
    "linear_betas": lambda: jd.schedules.from_betas(jd.schedules.linear_betas(1000)).log_snr(0.5),
    "cosine_betas": lambda: jd.schedules.from_betas(jd.schedules.cosine_betas(100)).log_snr(0.5),
    "zero_terminal_snr": lambda: jd.schedules.zero_terminal_snr(jd.schedules.linear_betas(100)),
    "learned": lambda: jd.schedules.learned(jd.schedules.learned_parameters()).log_snr(0.5),
    "mixture": lambda: asymmetric_mixture().log_prob(X),
    "states": lambda: jd.oracles.binary_states(3),
    "chain, uniform": lambda: jd.Chain(DENOISER, SCHEDULE, jd.grids.uniform(4)).times,
    "chain, noise left": lambda: jd.Chain(DENOISER, SCHEDULE, jd.grids.uniform(4, end=0.1)).times,
    "chain, log_snr": lambda: jd.Chain(DENOISER, jd.schedules.linear(), jd.grids.log_snr(SCHEDULE, 4)).times,
    "chain, table": lambda: jd.Chain(
        DENOISER, jd.schedules.from_betas(jd.schedules.linear_betas(100)), jd.grids.subsequence(100, 5)
    ).times,
    "chain, outside": lambda: jd.Chain(DENOISER, SCHEDULE, GRID).times,
}  # fmt: skip
GRID = jd.grids.uniform(4)


@pytest.mark.parametrize(
    "what",
    [n if n in ("log_snr", "learned", "mixture", "chain, table") else slow(n) for n in INSIDE],
)
def test_what_is_made_inside_is_what_is_made_outside(what: str) -> None:
    """Under jit, vmap, grad and scan, with plain numbers for arguments: equal up to float32's rounding."""
    make, expected = INSIDE[what], INSIDE[what]()

    def with_rate(rate: jax.Array) -> jax.Array:
        return jnp.sum(rate * make())

    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    same(jax.jit(make)(), expected)
    same(jax.vmap(lambda x: x + make())(jnp.zeros(1))[0], expected)
    same(jax.grad(with_rate)(1.0), jnp.sum(expected))
    _, scanned = jax.lax.scan(lambda state, _: (state, make()), 0, None, length=2)
    same(scanned, jnp.stack([expected] * 2))


def test_a_traced_schedule_has_gradients_through_its_grid() -> None:
    """What depends on a traced number stays traced."""
    slope = jax.grad(lambda rate: jd.grids.log_snr(jd.schedules.linear(0.1, rate), 4)[2])(20.0)
    h = 0.1
    ends = [jd.grids.log_snr(jd.schedules.linear(0.1, 20.0 + d), 4)[2] for d in (-h, h)]
    np.testing.assert_allclose(
        slope, (ends[1] - ends[0]) / (2 * h), rtol=1e-2
    )  # of the difference quotient


# Refusals -----------------------------------------------------------------------------------------------------------

FLOW = jd.schedules.rectified_flow()
KERNEL = jd.kernels.ddim(DENOISER, SCHEDULE)
GOOD = jd.grids.uniform(2)
LEVELS = chain(decoder=DECODERS["discretised"])


def sample(**options: Any) -> Any:
    return jd.sample(options.pop("key", KEY), KERNEL, X, GOOD, **options)


BAD = {
    "a class too many": (lambda: CLASSES.denoiser(jnp.array([3, 4])), ValueError, r"label: expected 0 \.\. 3, got 4 at index 1 of 2"),
    "a negative class": (lambda: CLASSES.denoiser(-1), ValueError, r"label: expected 0 \.\. 3, got -1"),
    "a fraction of a class": (lambda: CLASSES.denoiser(jnp.array([1.0])), TypeError, "label: expected an integer dtype, got float32"),
    "yes for a class": (lambda: CLASSES.denoiser(True), TypeError, "label: expected an integer dtype, got bool"),
    "a word for a class": (lambda: CLASSES.denoiser("three"), TypeError, "label: expected an integer, got str"),
    "a table of classes": (lambda: CLASSES.denoiser(jnp.zeros((2, 2), int)), ValueError, r"label: expected shape \(\) or \(B,\), got \(2, 2\)"),
    "a class for a plain network": (lambda: PLAIN.denoiser(1), ValueError, "label: expected None"),
    "index": (lambda: losses.vlb(KEY, chain(), X, index=jnp.array([0, 1, 2, 3])), ValueError, r"index: expected 0 \.\. 2, got 3 at index 3 of 4"),
    "negative index": (lambda: losses.hybrid(KEY, chain(), X, index=jnp.array([0, -1, 2, 1])), ValueError, r"index: expected 0 \.\. 2, got -1"),
    "floating index": (lambda: losses.vlb(KEY, chain(), X, index=jnp.zeros(4)), TypeError, "index: expected an integer dtype"),
    "index of bits": (
        lambda: jd.binomial.vlb(KEY, lambda x, t: x, FLOW, X, ts=GOOD, index=jnp.full(4, 2)), ValueError, r"index: expected 0 \.\. 1, got 2"),
    "recorded term": (
        lambda: losses.record_terms(losses.term_history(3), jnp.array([3]), jnp.ones(1)), ValueError, r"index: expected 0 \.\. 2, got 3"),
    "observed class": (lambda: observations.classified(lambda x: x, -1), ValueError, "label: expected an integer of at least 0, got -1"),
    "observed class too many": (lambda: observations.classified(lambda x: x, 3)(jnp.ones(3)), ValueError, r"label: expected 0 \.\. 2, got 3"),
    "observed fraction": (lambda: observations.classified(lambda x: x, 1.5), TypeError, "label: expected an integer dtype"),
    "observed classes": (lambda: observations.classified(lambda x: x, jnp.arange(2)), ValueError, r"label: expected one class, shape \(\), got \(2,\)"),
    "negative first": (lambda: sample(first=-1), ValueError, "first: expected an integer of at least 0, got -1"),
    "first out of range": (lambda: sample(first=2**32 - 2), ValueError, "first: expected an index of at most 4294967291"),
    "fractional first": (lambda: jd.prior_sample(KEY, SCHEDULE, (2, 2), first=0.5), TypeError, "first: expected an integer dtype"),
    "many firsts": (lambda: jd.prior_sample(KEY, SCHEDULE, (2, 2), first=jnp.arange(2)), ValueError, r"first: expected one index, shape \(\)"),
    "first of bits": (lambda: jd.binomial.prior_sample(KEY, (2, 2), first=-1), ValueError, "first: expected an integer of at least 0"),
    "floating ancestors": (
        lambda: sample(resample=lambda key, w: (jnp.zeros(4), jnp.asarray(True))), TypeError, "ancestors: expected an integer dtype"),
    "rbg": (lambda: sample(key=jax.random.key(0, impl="rbg")), ValueError, r"key: expected a key whose draws .* got one of impl='rbg'"),
    "unsafe_rbg": (
        lambda: jd.prior_sample(jax.random.key(0, impl="unsafe_rbg"), SCHEDULE, (2, 2)), ValueError, "got one of impl='unsafe_rbg'"),
    "rbg for a loss": (lambda: losses.vlb(jax.random.key(0, impl="rbg"), chain(), X), ValueError, "got one of impl='rbg'"),
    "rbg for rows": (lambda: losses.vlb(jax.random.split(jax.random.key(0, impl="rbg"), 4), chain(), X), ValueError, "got one of impl='rbg'"),
    "rbg for dropout": (
        lambda: CLASSES.model.apply(CLASSES.params, X, 0.5, dropout_key=jax.random.key(0, impl="rbg")), ValueError, "got one of impl='rbg'"),
    "pixels for levels": (lambda: DECODERS["discretised"].log_prob(128 * X, LAST), ValueError, r"x_0: expected data on the 17 levels from -1.0 to 1.0, got 128.0"),
    "pixels in [0, 1]": (lambda: DECODERS["categorical"].log_prob(128 / 255 * X, LAST), ValueError, "x_0: expected data on the 17 levels"),
    "not a number": (lambda: DECODERS["categorical"].log_prob(jnp.nan * X, LAST), ValueError, "x_0: expected data on the 17 levels .* got nan"),
    "dequantised twice": (lambda: decoders.uniform_dequantise(KEY, 0.3 * X, 17), ValueError, "x_0: expected data on the 17 levels"),
    "terms of pixels": (lambda: likelihood.vlb_terms(KEY, LEVELS, 128 * X), ValueError, "x_0: expected data on the 17 levels"),
    "bound of pixels": (lambda: likelihood.elbo(KEY, LEVELS, 128 * X), ValueError, "x_0: expected data on the 17 levels"),
    "importance of pixels": (
        lambda: likelihood.importance_log_prob(KEY, LEVELS, 128 * X, num_paths=2), ValueError, "x_0: expected data on the 17 levels"),
    "loss of pixels": (lambda: losses.vlb(KEY, LEVELS, 128 * X), ValueError, "x_0: expected data on the 17 levels"),
    "continuous loss of pixels": (
        lambda: losses.continuous_elbo(KEY, DENOISER, jd.schedules.edm(), 128 * X, decoder=DECODERS["categorical"]),
        ValueError, "x_0: expected data on the 17 levels"),
    "continuous bound of pixels": (
        lambda: likelihood.continuous_lower_bound(KEY, DENOISER, jd.schedules.edm(), 128 * X, decoder=DECODERS["categorical"]),
        ValueError, "x_0: expected data on the 17 levels"),
    "signs for bits": (lambda: jd.binomial.vlb_terms(KEY, lambda x, t: x, FLOW, -X, ts=GOOD), ValueError, "x_0: expected zeros and ones, got -1.0"),
    "pixels for bits": (lambda: jd.binomial.vlb(KEY, lambda x, t: x, FLOW, 255 * X, ts=GOOD), ValueError, "x_0: expected zeros and ones, got 255.0"),
    "x_0 from eps without data": (
        lambda: jd.prediction.to_x_0(FLOW, X, X, 1.0, prediction="eps"), ValueError, "t: expected a time with data left, of which eps says"),
    "v from x_0 without noise": (
        lambda: jd.prediction.from_x_0(FLOW, X, X, 0.0, prediction="v"), ValueError, "t: expected a time with noise left, of which v says"),
    "score from v without noise": (
        lambda: jd.prediction.convert(FLOW, X, X, 0.0, source="v", target="score"), ValueError, "t: expected a time with noise left"),
    "a start beyond 1": (
        lambda: jd.make_denoiser(lambda x, t: x, SCHEDULE, start=1.5), ValueError, r"start: expected a time in \[0, 1\]"),
    "a traced table": (
        lambda: jax.jit(jd.schedules.zero_terminal_snr)(jnp.ones(3)), TypeError, "betas: expected values that are known, got a traced array"),
    "traced errors": (
        lambda: jax.jit(lambda e: jd.grids.optimised(SCHEDULE, 3, TABLE[0], e))(TABLE[1]), TypeError, "error: expected values that are known"),
    "a traced grid": (lambda: jax.jit(lambda ts: jd.Chain(DENOISER, SCHEDULE, ts).times)(GRID), TypeError, "ends_clean: expected True or False"),
}  # fmt: skip


test_bad_input = rejects(BAD)
