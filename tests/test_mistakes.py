"""What everyone gives in a notebook once: the error names the argument and says what is meant."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import rejects

import jaxdiff as jd
from jaxdiff import data, losses, models, moves, training

SCHEDULE = jd.schedules.edm()
GAUSSIAN = jd.oracles.gaussian(jnp.zeros(2), jnp.ones(2))
DENOISER = GAUSSIAN.denoiser(SCHEDULE)
KERNEL = jd.kernels.ddim(DENOISER, SCHEDULE)
TS = jd.grids.uniform(2)
CHAIN = jd.Chain(DENOISER, SCHEDULE, TS, decoder=jd.decoders.normal())
X, KEY = jnp.zeros((4, 2)), jax.random.key(0)
NET = models.unet(channels=8, multipliers=(1,), num_blocks=1, attention=(), dropout=0.5)
PARAMS = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(lambda: NET.init(KEY, (8, 8, 3)))
)
LEVELS = np.arange(2 * 8 * 8 * 3).reshape(2, 8, 8, 3) % 256


def zero(x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.zeros_like(x)


# Every function with a key, by the name of its argument.
DRAWS = {
    "sample": lambda key: jd.sample(key, KERNEL, X, TS),
    "prior_sample": lambda key: jd.prior_sample(key, SCHEDULE, (4, 2)),
    "simple": lambda key: losses.simple(key, zero, SCHEDULE, X),
    "losses.vlb": lambda key: losses.vlb(key, CHAIN, X),
    "hybrid": lambda key: losses.hybrid(key, CHAIN, X),
    "losses.continuous_elbo": lambda key: losses.continuous_elbo(
        key, DENOISER, SCHEDULE, X, decoder=CHAIN.decoder
    ),
    "denoising_error": lambda key: losses.denoising_error(key, DENOISER, SCHEDULE, X, t=0.5),
    "uniform_times": lambda key: losses.uniform_times(key, 4),
    "low_discrepancy_times": lambda key: losses.low_discrepancy_times(key, 4),
    "log_normal_times": lambda key: losses.log_normal_times(key, 4, SCHEDULE),
    "loss_aware_terms": lambda key: losses.loss_aware_terms(key, losses.term_history(3), 4),
    "vlb_terms": lambda key: jd.likelihood.vlb_terms(key, CHAIN, X),
    "elbo": lambda key: jd.likelihood.elbo(key, CHAIN, X),
    "importance_log_prob": lambda key: jd.likelihood.importance_log_prob(
        key, CHAIN, X, num_paths=2
    ),
    "continuous_elbo": lambda key: jd.likelihood.continuous_lower_bound(
        key, DENOISER, SCHEDULE, X, decoder=CHAIN.decoder, num_times=2
    ),
    "bidirectional_bounds": lambda key: jd.work.bidirectional_bounds(
        key, CHAIN, (4, 2), num_paths=2
    ),
    "ais": lambda key: jd.work.ais(key, CHAIN, X, num_temperatures=2),
    "ais_bounds": lambda key: jd.work.ais_bounds(key, CHAIN, (4, 2), num_temperatures=2),
    "paths": lambda key: jd.likelihood.path_log_weights(key, CHAIN, X),
    "mixture.sample": lambda key: GAUSSIAN.sample(key, (4,)),
    "resampling": lambda key: jd.resampling.systematic()(key, jnp.zeros(4)),
    "resampling.draw": lambda key: jd.resampling.draw(key, jnp.zeros(4), X, 2),
    "uniform_dequantise": lambda key: jd.decoders.uniform_dequantise(key, X, 2),
    "binomial.prior_sample": lambda key: jd.binomial.prior_sample(key, (4, 2)),
    "mala": lambda key: moves.mala(key, lambda x: -jnp.sum(x**2, axis=1), X, 0.1),
    "toy.sample": lambda key: data.toy.sample(key, "rings", 4),
    "init": lambda key: NET.init(key, (8, 8, 3)),
    "init_state": lambda key: training.init_state(key, {}, optax.sgd(0.1)),
    "dropout_key": lambda key: NET.apply(PARAMS, jnp.zeros((4, 8, 8, 3)), 0.5, dropout_key=key),
}
OF_OLD = r"jax.random.key\(0\) instead of jax.random.PRNGKey\(0\) \(or jax.random.wrap_key_data\), got uint32 \[2\]"
NO_KEYS = {
    "PRNGKey": (jax.random.PRNGKey(0), OF_OLD),
    "old keys": (jax.random.split(jax.random.PRNGKey(0), 4), r"instead of jax.random.PRNGKey\(0\) .*, got uint32 \[4, 2\]"),
    "a seed": (0, r"such as jax.random.key\(0\), got 0"),
    "none": (None, r"such as jax.random.key\(0\), got None"),
    "a generator": (np.random.default_rng(0), r"such as jax.random.key\(0\), got Generator"),
    "noise": (jnp.zeros(2), r"such as jax.random.key\(0\), got float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_no_key(name: str) -> None:
    argument = "dropout_key" if name == "dropout_key" else "key"
    for kind, (key, message) in NO_KEYS.items():
        if (name, kind) != ("dropout_key", "none"):  # which switches dropout off
            with pytest.raises(TypeError, match=rf"^{argument}: expected a typed key.*{message}"):
                DRAWS[name](key)
    three = rf"^{argument}: expected one key(, shape \(\)| or one a row, shape \(\) or \(4,\)), got \(3,\)"
    with pytest.raises(ValueError, match=three):
        DRAWS[name](jax.random.split(KEY, 3))


IMAGES = jnp.zeros((2, 8, 8, 3))
STEPS = r"\(a step i of T is t = i / T\)"
LAST = r"\(channels go last, \[B, H, W, C\]: jnp.moveaxis\(x, 1, -1\)\)"
SCALE = r"\(scale images to \[-1, 1\] first"
BAD = {
    # Times.
    "steps as a grid": (lambda: jd.sample(KEY, KERNEL, X, jnp.arange(10)[::-1]), TypeError, f"ts: expected a floating dtype, times in .*, got int32 {STEPS}"),
    "a list of steps": (lambda: jd.sample(KEY, KERNEL, X, [2, 1, 0]), TypeError, f"ts: expected a floating dtype, times .* {STEPS}"),
    "steps as floats": (lambda: jd.sample(KEY, KERNEL, X, jnp.arange(10.0)[::-1]), ValueError, f"ts: expected times in .*, got 9.0 at index 0 of 10 {STEPS}"),
    "steps of a chain": (lambda: jd.Chain(DENOISER, SCHEDULE, np.arange(10)[::-1]), TypeError, f"ts: expected a floating dtype, times .* {STEPS}"),
    "steps of an encoding": (lambda: jd.sampling.encode(KERNEL, X, jnp.arange(10)[::-1]), TypeError, f"ts: expected a floating dtype, times .* {STEPS}"),
    "a count as a grid": (lambda: jd.sample(KEY, KERNEL, X, 50), ValueError, r"ts: expected a vector of at least 2 times \(1 step\), got 50 \(grids.uniform\(50\) is"),
    "no grid": (lambda: jd.sample(KEY, KERNEL, X, None), TypeError, "ts: expected an array of times, got None"),
    "ragged times": (lambda: jd.sample(KEY, KERNEL, X, [[1.0], 0.0]), TypeError, "ts: expected an array of times, got list"),
    "a rising grid": (lambda: jd.sample(KEY, KERNEL, X, TS[::-1]), ValueError, r"ts: expected decreasing times, got 0.0, 0.5 at index 0 of 3 \(ts\[::-1\] is"),
    "a step as a time": (lambda: jd.q_sample(SCHEDULE, X, 500, X), ValueError, f"t: expected a time in .*, got 500 {STEPS}"),
    "steps as times": (lambda: jd.q_sample(SCHEDULE, X, jnp.arange(4), X), TypeError, f"t: expected a floating time .* dtype int32 {STEPS}"),
    "no time": (lambda: jd.q_sample(SCHEDULE, X, None, X), TypeError, "t: expected a floating time .*, got None"),
    "a word": (lambda: jd.q_sample(SCHEDULE, X, "0.5", X), TypeError, "t: expected a floating time .*, got str"),
    "a column of times": (lambda: jd.q_sample(SCHEDULE, X, jnp.full((4, 1), 0.5), X), ValueError, r"t: expected shape \(\) or \(4,\), got \(4, 1\)"),
    "steps of a loss": (lambda: losses.simple(KEY, zero, SCHEDULE, X, t=jnp.arange(4)), TypeError, f"t: expected .* {STEPS}"),
    "steps of a network": (lambda: NET.apply(PARAMS, IMAGES, jnp.arange(2)), TypeError, f"t: expected .* {STEPS}"),
    "steps of a schedule": (lambda: SCHEDULE.log_snr(jnp.arange(3)), TypeError, f"t: expected .* {STEPS}"),
    "steps of a denoiser": (lambda: DENOISER(X, jnp.arange(4)), TypeError, f"t: expected .* {STEPS}"),
    # States and data.
    "an integer state of a denoiser": (lambda: jd.make_denoiser(zero, SCHEDULE, "eps")(X.astype(int), 0.5), TypeError, f"x_t: expected a floating dtype, got int32 {SCALE}"),
    "an integer state": (lambda: jd.sample(KEY, KERNEL, X.astype(int), TS), TypeError, f"x_init: expected a floating dtype, got int32 {SCALE}"),
    "bytes": (lambda: losses.simple(KEY, zero, SCHEDULE, LEVELS.astype(np.uint8)), TypeError, f"x_0: expected a floating dtype, got uint8 {SCALE}"),
    "a list": (lambda: losses.simple(KEY, zero, SCHEDULE, [[0.0, 1.0]]), TypeError, r"x_0: expected a floating array, got list \(jnp.asarray makes one\)"),
    "no batch": (lambda: losses.simple(KEY, zero, SCHEDULE, jnp.float32(0)), ValueError, r"x_0: expected a batch, \[B, \*D\], got shape \(\)"),
    "no batch of a bound": (lambda: jd.likelihood.vlb_terms(KEY, CHAIN, jnp.float32(0)), ValueError, r"x_0: expected a batch, \[B, \*D\], got shape \(\)"),
    "no batch of a network": (lambda: NET.apply(PARAMS, IMAGES[0], 0.5), ValueError, r"x: expected 4 axes, batch first, got shape \(8, 8, 3\) \(x\[None\] is a batch of one\)"),
    "levels": (lambda: losses.simple(KEY, zero, SCHEDULE, jnp.asarray(LEVELS, float)), ValueError, r"x_0: expected images scaled to \[-1, 1\], got whole numbers in 0 .. 255"),
    "levels of a bound": (lambda: jd.likelihood.vlb_terms(KEY, CHAIN, jnp.asarray(LEVELS, float)), ValueError, r"x_0: expected images scaled to \[-1, 1\]"),
    "levels of continuous time": (lambda: jd.likelihood.continuous_lower_bound(KEY, DENOISER, SCHEDULE, jnp.asarray(LEVELS, float), decoder=CHAIN.decoder, num_times=1), ValueError, r"x_0: expected images scaled"),
    # Channels.
    "a network": (lambda: NET.apply(PARAMS, jnp.zeros((2, 3, 8, 8)), 0.5), ValueError, rf"x: expected a last axis of 3, as params were made for, got shape \(2, 3, 8, 8\) {LAST}"),
    "a sampler": (lambda: jd.sample(KEY, jd.kernels.ddim(jd.make_denoiser(jax.tree_util.Partial(NET.apply, PARAMS), SCHEDULE, "eps"), SCHEDULE), jnp.zeros((2, 3, 8, 8)), TS), ValueError, f"x: expected a last axis of 3.*{LAST}"),
    "noise": (lambda: jd.q_sample(SCHEDULE, IMAGES, 0.5, jnp.zeros((2, 3, 8, 8))), ValueError, f"eps: expected the shape of x_0, .*{LAST}"),
    "a network of one's own": (lambda: losses.simple(KEY, lambda x, t: jnp.moveaxis(x, -1, 1), SCHEDULE, IMAGES), ValueError, f"the network's output: expected the shape of x_0, .*{LAST}"),
    "parameters": (lambda: NET.init(KEY, (3, 32, 32)), ValueError, r"event_shape: expected \(H, W, C\), channels last, got \(3, 32, 32\)"),
    "one number of pixels": (lambda: NET.init(KEY, 32), TypeError, "event_shape: expected a tuple of sides, got 32"),
    "a data set": (lambda: data.ImageDataset("own", {"train": data.Split(np.zeros((5, 3, 32, 32), np.uint8))}), ValueError, r"own, train images: expected images \(H, W, C\), channels last, got \(3, 32, 32\)"),
    "a data set of lists": (lambda: data.ImageDataset("own", {"train": data.Split([[[[0]]]])}), TypeError, "own, train images: expected an integer array, got list"),
    "a list of levels": (lambda: data.to_unit([0, 255], 256), TypeError, "images: expected an integer array, got list"),
}  # fmt: skip


test_bad_input = rejects(BAD)


def test_what_is_no_mistake() -> None:
    """Images in [0, 1], data of any scale, small whole numbers, float64 of NumPy, and lists of times."""
    whole = np.asarray(LEVELS, np.float32)
    for x_0 in (whole / 255, whole - 128, whole + 0.5, np.minimum(whole, 1), whole[:, 0, 0]):
        assert losses.simple(KEY, zero, SCHEDULE, x_0).shape == (2,)
    assert jax.jit(lambda x: losses.simple(KEY, zero, SCHEDULE, x))(whole).shape == (
        2,
    )  # traced: not looked at
    assert jd.sample(KEY, KERNEL, np.zeros((4, 2)), [1.0, 0.5, 0.0]).x.dtype == jnp.float32
    assert jd.q_sample(SCHEDULE, X, [0.1, 0.2, 0.3, 1], X).shape == (4, 2)
    assert jd.q_sample(SCHEDULE, jnp.zeros((2, 3, 8, 8)), 0.5, jnp.zeros((2, 3, 8, 8))).shape == (
        2,
        3,
        8,
        8,
    )
    np.testing.assert_array_equal(
        SCHEDULE.time(jnp.arange(-3, 3)), SCHEDULE.time(jnp.arange(-3.0, 3.0))
    )  # log-SNRs


# Habits of other libraries.
test_habits = rejects({
    "epsilon": (lambda: jd.make_denoiser(zero, SCHEDULE, "epsilon"), ValueError, r"prediction: .* got 'epsilon' \(it is 'eps' here\)"),
    "v_prediction": (lambda: losses.simple(KEY, zero, SCHEDULE, X, prediction="v_prediction"), ValueError, r"\(it is 'v' here\)"),
    "a function at the top": (lambda: jd.ddim, AttributeError, r"no attribute 'ddim': did you mean jd.kernels.ddim\?"),
    "no function": (lambda: jd.nothing, AttributeError, "no attribute 'nothing'$"),
    "a network of a hub": (lambda: jd.pretrained("google/ddpm-cifar10-32"), ValueError, "name: .* interop.diffusers a folder of diffusers"),
})  # fmt: skip
