"""The networks: shapes, independence of rows, conditioning, derivatives, precision, and clear errors."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import crossed, slow
from jax.extend.core import jaxprs_in_params

from jaxdiff import models
from jaxdiff.models import _layers

TINY = {
    "channels": 8,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "attention": (),
    "num_heads": 2,
    "norm_groups": 4,
}
SHAPES = {"unet": (5, 7, 3), "mlp": (3,)}  # odd, not square, not one or three channels of a picture


def make(kind: str, **options: Any) -> models.Model:
    return (
        models.unet(**(TINY | options))
        if kind == "unet"
        else models.mlp(**({"width": 16, "depth": 2} | options))
    )


@functools.cache
def noisy_params(model: models.Model, event_shape: tuple[int, ...]) -> models.Model:
    """Parameters away from the zeros of initialisation, so that every path carries a signal."""
    params = model.init(jax.random.key(0), event_shape)
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(
        structure, [a + 0.1 * rng.normal(size=a.shape).astype(a.dtype) for a in leaves]
    )


@functools.cache
def jitted(model: models.Model) -> Any:
    return jax.jit(model.apply)


def batch(event_shape: tuple[int, ...], num: int = 4, seed: int = 2) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    x, t = rng.normal(size=(num, *event_shape)), rng.uniform(size=num)
    return jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32)


# Shapes and initialisation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event_shape", "patch", "learned_variance"),
    crossed(
        [(8, 8, 1), (28, 28, 1), (5, 7, 3), (9, 4, 2), (1, 1, 5)],
        [1, 2],
        [False, True],
        quick=lambda shape, patch, learned: (shape[0] % 2 + patch) % 2 == learned,
    ),
)
def test_unet_shapes(event_shape: tuple[int, int, int], patch: int, learned_variance: bool) -> None:
    model = make(
        "unet",
        multipliers=(1, 2, 2),
        attention=(2, 7),
        patch=patch,
        learned_variance=learned_variance,
    )
    params = jax.eval_shape(lambda key: model.init(key, event_shape), jax.random.key(0))
    x, t = (
        jax.ShapeDtypeStruct((3, *event_shape), jnp.float32),
        jax.ShapeDtypeStruct((3,), jnp.float32),
    )
    out = jax.eval_shape(model.apply, params, x, t)
    channels = event_shape[-1] * (2 if learned_variance else 1)
    assert (out.shape, out.dtype) == ((3, *event_shape[:2], channels), jnp.float32)


@pytest.mark.slow
def test_blocks_that_are_computed_again_are_the_same_blocks() -> None:
    """With remat: the same parameters and loss; a block keeps its input alone for the backward pass."""
    x, t, keys = jnp.ones((2, 8, 8, 1)), jnp.array([0.1, 0.9]), jax.random.split(jax.random.key(1))

    def model(remat: bool) -> models.Model:
        return models.unet(
            channels=16, multipliers=(1,), num_blocks=2, attention=(8,), dropout=0.1, remat=remat
        )

    params = model(False).init(jax.random.key(0), (8, 8, 1))
    assert jax.tree.structure(model(True).init(jax.random.key(0), (8, 8, 1))) == jax.tree.structure(
        params
    )
    filled = jax.tree.map(lambda leaf: leaf + 0.01, params)

    def kept(remat: bool) -> int:
        """Bytes that the forward pass keeps for the backward pass, besides the parameters."""
        apply = functools.partial(model(remat).apply, x=x, t=t, dropout_key=keys)
        back = jax.eval_shape(lambda params: jax.vjp(apply, params)[1], filled)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(back))

    of_parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert kept(True) - of_parameters < 0.4 * (kept(False) - of_parameters)
    whole, again = (model(r).apply(filled, x, t, dropout_key=keys) for r in (False, True))
    np.testing.assert_allclose(again, whole, rtol=1e-5)


@pytest.mark.parametrize("event_shape", [slow((8, 8, 1)), (5, 7, 3)])
def test_unet_of_levels(event_shape: tuple[int, int, int]) -> None:
    """Logits for each component, of an image that is seen through Fourier features too; rows stay apart."""
    model = make("unet", patch=2, num_levels=17, level_features=4, fourier=(2, 5))
    params, (x, t) = noisy_params(model, event_shape), batch(event_shape)
    logits = jitted(model)(params, x, t)
    assert logits.shape == (4, *event_shape, 17)
    np.testing.assert_allclose(jitted(model)(params, x[:2], t[:2]), logits[:2], atol=1e-4)
    shifted = jitted(model)(params, x + 2.0**-4, t)  # an eighth of the finest feature's period
    assert float(jnp.max(jnp.abs(shifted - logits))) > 1e-2


def test_logits_are_not_rounded_to_bfloat16() -> None:
    model = make("unet", num_levels=17, level_features=4, dtype="bfloat16")
    logits = jitted(model)(noisy_params(model, (8, 8, 1)), *batch((8, 8, 1)))
    rounded = logits.astype(jnp.bfloat16).astype(jnp.float32)
    assert np.mean(np.asarray(rounded == logits)) < 0.1


def test_mlp_shapes() -> None:
    x, t = batch((3,))
    model = make("mlp", learned_variance=True)
    assert jitted(model)(model.init(jax.random.key(0), (3,)), x, t).shape == (4, 6)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_first_prediction_is_zero(kind: str) -> None:
    model = make(kind)
    params = model.init(jax.random.key(0), SHAPES[kind])
    assert not jitted(model)(params, *batch(SHAPES[kind])).any()


@pytest.mark.parametrize("kind", SHAPES)
def test_weights_have_variance_one_over_fan_in(kind: str) -> None:
    params = make(kind, num_classes=3).init(jax.random.key(0), SHAPES[kind])
    scores = []
    for leaf in jax.tree.leaves(params):
        value = np.asarray(leaf, np.float64)
        if leaf.ndim > 1 and value.any():
            ratio = np.mean(value**2) * np.prod(leaf.shape[:-1])
            scores.append((ratio - 1) / np.sqrt(2 / leaf.size))
        elif leaf.ndim == 1:
            assert np.isin(value, (0, 1)).all()
    assert len(scores) > 5
    assert np.max(np.abs(scores)) < 5  # Monte Carlo: standard errors of a chi-squared mean


def test_initialisation_is_a_function_of_key_and_channels() -> None:
    model = make("unet")
    first, again = (model.init(jax.random.key(0), (8, 8, 3)) for _ in range(2))
    other_size, other_key = (
        model.init(jax.random.key(0), (5, 7, 3)),
        model.init(jax.random.key(1), (8, 8, 3)),
    )
    for same in (again, other_size):
        jax.tree.map(np.testing.assert_array_equal, first, same)
    assert (first["stem"]["kernel"] != other_key["stem"]["kernel"]).all()


def test_equal_configurations_are_one_model() -> None:
    one, same, other = make("unet"), make("unet"), make("unet", channels=16)
    assert one == same
    assert hash(one) == hash(same)
    assert one.apply == same.apply  # what jit's cache compares
    assert one != other
    assert {one: 1}[same] == 1


def test_lists_make_the_same_model_as_tuples() -> None:
    assert make("unet", multipliers=[1, 2], attention=[]) is make("unet")


# Rows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES)
def test_rows_never_couple(kind: str) -> None:
    """Not a number in every other row leaves a row as it was, to the last bit."""
    model = make(kind, num_classes=3)
    params = noisy_params(model, SHAPES[kind])
    x, t = batch(SHAPES[kind])
    label = jnp.array([0, 1, 2, 3])
    expected = jitted(model)(params, x, t, label)
    others = jnp.arange(4) != 2
    broken = jnp.where(others.reshape(4, *[1] * (x.ndim - 1)), jnp.nan, x)
    got = jitted(model)(params, broken, jnp.where(others, 0.9, t), jnp.where(others, 0, label))
    np.testing.assert_array_equal(got[2], expected[2])
    assert np.isnan(got[0]).all()


def test_devices_change_nothing() -> None:
    model = make("unet")
    params, (x, t) = noisy_params(model, SHAPES["unet"]), batch(SHAPES["unet"])
    mapped = np.asarray(jax.pmap(model.apply, in_axes=(None, 0, 0))(params, x[:, None], t[:, None]))
    # Rounding: float32 sums of a few hundred terms, in another order.
    np.testing.assert_allclose(mapped[:, 0], jitted(model)(params, x, t), rtol=1e-4, atol=1e-5)


def test_jit_changes_nothing() -> None:
    model = make("mlp", num_classes=2)
    params, (x, t), label = noisy_params(model, (3,)), batch((3,)), jnp.array([0, 1, 2, 2])
    expected = jitted(model)(params, x, t, label)
    np.testing.assert_allclose(
        model.apply(params, x, t, label), expected, rtol=1e-4, atol=1e-5
    )  # rounding


def test_one_time_for_all_rows() -> None:
    model = make("mlp")
    params, (x, _) = noisy_params(model, (3,)), batch((3,))
    expected = jitted(model)(params, x, jnp.full(4, 0.3))
    for t in (0.3, jnp.float32(0.3)):
        np.testing.assert_allclose(
            jitted(model)(params, x, t), expected, rtol=1e-5, atol=1e-6
        )  # rounding


@pytest.mark.parametrize("kind", ["sinusoidal", "fourier"])
def test_nearby_times_are_told_apart(kind: str) -> None:
    """A thousandth, one step of the usual thousand, moves the features by a twentieth of their length or more."""
    t = jnp.linspace(0, 1, 1001, dtype=jnp.float32)
    features = np.asarray(_layers.time_features(t, 32, kind))
    assert features.shape == (1001, 32)
    np.testing.assert_allclose((features**2).sum(-1), 16, rtol=1e-5)  # rounding: cos^2 + sin^2
    assert np.linalg.norm(np.diff(features, axis=0), axis=-1).min() > 0.05 * 4


# Dropout ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "mlp"])
def test_dropout_is_drawn_row_by_row(kind: str) -> None:
    """Row i's mask depends on key i alone: other keys in the other rows leave it as it was, to the last bit."""
    model = make(kind, dropout=0.4)
    params, (x, t) = noisy_params(model, SHAPES[kind]), batch(SHAPES[kind])
    keys = jax.random.split(jax.random.key(3), 4)
    apply = jax.jit(lambda keys: model.apply(params, x, t, dropout_key=keys))
    whole, others = apply(keys), apply(keys[jnp.array([1, 1, 0, 3])])
    changed = np.abs(whole - others).reshape(4, -1).max(1)
    np.testing.assert_array_equal(changed[[1, 3]], 0)
    assert changed[[0, 2]].min() > 1e-3


def test_dropout_does_not_depend_on_the_split_of_a_batch() -> None:
    x = jnp.ones((4, 3, 3, 2))
    keys = jax.random.split(jax.random.key(3), 4)
    halves = [_layers.dropout(x[:2], 0.4, keys[i : i + 2], 1) for i in (0, 2)]
    np.testing.assert_array_equal(jnp.concatenate(halves), _layers.dropout(x, 0.4, keys, 1))


def test_dropout_needs_a_key_and_a_rate() -> None:
    x = jnp.ones((2, 3, 3, 2))
    keys = jax.random.split(jax.random.key(0), 2)
    for rate, key in ((0.4, None), (0.0, keys)):
        np.testing.assert_array_equal(_layers.dropout(x, rate, key, 0), x)
    model = make("unet", dropout=0.4)
    params, (x, t) = noisy_params(model, SHAPES["unet"]), batch(SHAPES["unet"])
    expected = jitted(make("unet"))(params, x, t)
    np.testing.assert_allclose(
        jitted(model)(params, x, t), expected, rtol=1e-5, atol=1e-6
    )  # rounding


def test_dropout_keeps_the_mean() -> None:
    x = jnp.ones((2, 50, 50, 8))
    keys = jax.random.split(jax.random.key(0), 2)
    out = _layers.dropout(x, 0.3, keys, 0)
    kept = np.asarray(out != 0)
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.7 * 0.3 / kept.size)  # Monte Carlo
    np.testing.assert_allclose(np.asarray(out)[kept], 1 / 0.7, rtol=1e-6)  # rounding
    layers = [np.asarray(_layers.dropout(x, 0.3, keys, index)) for index in (0, 1)]
    assert (layers[0] != layers[1]).any()
    assert (layers[0][0] != layers[0][1]).any()


# Conditioning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES)
def test_no_label_is_the_null_class(kind: str) -> None:
    model = make(kind, num_classes=3)
    assert model.num_classes == 3
    params, (x, t) = noisy_params(model, SHAPES[kind]), batch(SHAPES[kind])
    null, labelled = (jitted(model)(params, x, t, jnp.full(4, label)) for label in (3, 1))
    np.testing.assert_allclose(jitted(model)(params, x, t), null, rtol=1e-5, atol=1e-6)  # rounding
    assert np.abs(labelled - null).max() > 1e-3


# Derivatives --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_every_parameter_is_alive(kind: str) -> None:
    options = {"attention": (3,), "learned_variance": True} if kind == "unet" else {}
    model = make(kind, num_classes=2, **options)
    params, (x, t) = noisy_params(model, SHAPES[kind]), batch(SHAPES[kind])
    label = jnp.array([0, 1, 2, 2])
    loss = jax.jit(
        jax.grad(lambda params: jnp.mean(jnp.square(model.apply(params, x, t, label) - 1)))
    )
    for path, leaf in jax.tree.leaves_with_path(loss(params)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 1e-7, path


def plain_norm(x: jax.Array, scale: jax.Array, shift: jax.Array, groups: int) -> jax.Array:
    """Group normalisation as the paper writes it, one example and one group at a time."""
    rows = []
    for image, s, b in zip(x, scale, shift, strict=True):
        parts = [
            (g - g.mean()) / jnp.sqrt(g.var() + 1e-5) for g in jnp.split(image, groups, axis=-1)
        ]
        rows.append(jnp.concatenate(parts, axis=-1) * s[None, None] + b[None, None])
    return jnp.stack(rows)


def test_norm_and_its_gradient_are_the_plain_formula(x64: None) -> None:
    rng = np.random.default_rng(0)
    x, scale, shift, weight = (
        jnp.asarray(rng.normal(size=s)) for s in [(2, 3, 5, 6), (2, 6), (2, 6), (2, 3, 5, 6)]
    )

    def value_and_gradient(norm: Any) -> Any:
        value = jax.value_and_grad(lambda *a: jnp.sum(weight * jnp.sin(norm(*a, 3))), (0, 1, 2))
        return jax.jit(value)(x, scale, shift)

    ours, plain = value_and_gradient(_layers.norm), value_and_gradient(plain_norm)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), ours, plain
    )  # rounding


def test_norm_mutants_are_rejected(x64: None) -> None:
    """Moments over the whole batch, or over all channels, are not the plain formula."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 6)) + np.arange(6))
    ones, zeros = jnp.ones((2, 6)), jnp.zeros((2, 6))
    plain = plain_norm(x, ones, zeros, 3)
    batch_coupled = (x - x.mean()) / x.std()
    for mutant in (batch_coupled, _layers.norm(x, ones, zeros, 1), _layers.norm(x, ones, zeros, 6)):
        assert np.abs(mutant - plain).max() > 1e-2


@pytest.mark.parametrize("kind", SHAPES)
def test_forward_and_reverse_mode_agree(kind: str, x64: None) -> None:
    """u . (J v) by one JVP equals (u J) . v by one VJP, inside vmap too: exact divergences need both."""
    model = make(kind, dtype="float64", **({"multipliers": (1,)} if kind == "unet" else {}))
    params = noisy_params(model, SHAPES[kind])
    rng = np.random.default_rng(5)
    x, u, v = (jnp.asarray(rng.normal(size=(2, 2, *SHAPES[kind]))) for _ in range(3))

    @jax.jit
    @jax.vmap
    def both(x: jax.Array, u: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        def network(x: jax.Array) -> jax.Array:
            return model.apply(params, x, 0.4)

        tangent = jax.jvp(network, (x,), (v,))[1]
        return jnp.vdot(u, tangent), jnp.vdot(jax.vjp(network, x)[1](u)[0], v)

    forward, reverse = both(x, u, v)
    assert np.abs(forward).min() > 1e-3
    np.testing.assert_allclose(forward, reverse, rtol=1e-10)  # rounding


def plain_convolution(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    order = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=order
    )


@pytest.mark.parametrize(("stride", "sides"), [(1, (5, 4)), (2, (5, 4)), (1, (12, 10))])
def test_convolution_is_the_plain_one_to_the_second_derivative(
    stride: int, sides: tuple[int, int], x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two images at a time, where the images are large enough for blocks.
    monkeypatch.setattr(_layers, "BLOCK", 2 * 3 * (2 + 3) * 120)
    x, kernel = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(6, *sides, 2), (3, 3, 2, 3)])
    )

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return plain_convolution(x, kernel, stride)

    def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _layers.convolve(x, kernel, (stride, stride), "SAME")

    def derivatives(f: Callable) -> Any:
        g = lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel)))  # noqa: E731
        first = jax.grad(g, (0, 1))(x, kernel)
        each = jax.vmap(jax.grad(g, 1), (0, None))(x[:, None], kernel)
        tangent = jax.jvp(lambda x: f(x, kernel), (x,), (x + 1,))[1]
        slope = jax.jvp(lambda kernel: f(x, kernel), (kernel,), (kernel + 1,))[1]
        second = jax.hessian(g, (0, 1))(x[:2], kernel)
        mixed = jax.jvp(jax.grad(g, (0, 1)), (x, kernel), (x + 1, kernel + 1))[1]
        return f(x, kernel), first, each, tangent, slope, second, mixed

    one, other = jax.jit(lambda: (derivatives(ours), derivatives(plain)))()
    chex.assert_trees_all_close(one, other, rtol=1e-12, atol=1e-12)  # rounding


def test_a_kernel_s_gradient_keeps_only_the_images() -> None:
    x, kernel = jnp.ones((8, 16, 16, 4)), jnp.ones((3, 3, 4, 4))
    _, pull = jax.vjp(lambda kernel: _layers.convolve(x, kernel, (1, 1), "SAME"), kernel)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) <= x.size + 2 * kernel.size


def test_a_kernel_s_gradient_in_bfloat16_is_summed_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_layers, "BLOCK", 1)  # one image at a time
    x = jax.random.uniform(jax.random.key(0), (512, 32, 16, 1), minval=0.5)
    kernel = jnp.zeros((3, 3, 1, 1))

    def gradient(convolve: Callable, dtype: str) -> jax.Array:
        return jax.grad(
            lambda kernel: jnp.sum(convolve(x.astype(dtype), kernel.astype(dtype)), dtype="float32")
        )(kernel)

    ours = lambda x, kernel: _layers.convolve(x, kernel, (1, 1), "SAME")  # noqa: E731
    exact = gradient(plain_convolution, "float32")
    # One rounding to bfloat16 is 2^-9 at most; a sum of 512 terms would lose several percent.
    np.testing.assert_allclose(gradient(ours, "bfloat16"), exact, rtol=0.004)


def test_second_derivatives() -> None:
    model = make("mlp")
    params, (x, t) = noisy_params(model, (3,)), batch((3,))

    def energy(x: jax.Array) -> jax.Array:
        return jnp.sum(model.apply(params, x, t) ** 2)

    curvature = jax.jit(lambda x: jax.jvp(jax.grad(energy), (x,), (x,))[1])(x)
    assert np.isfinite(curvature).all()


# Precision ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES)
def test_bfloat16_is_close_to_float32(kind: str) -> None:
    exact, rough = make(kind), make(kind, dtype="bfloat16")
    params, (x, t) = noisy_params(exact, SHAPES[kind]), batch(SHAPES[kind])
    expected, got = jitted(exact)(params, x, t), jitted(rough)(params, x, t)
    assert got.dtype == jnp.float32
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < 0.05  # rounding: 8 bits of mantissa through a dozen layers


def test_output_dtype_is_the_input_s_and_at_least_float32(x64: None) -> None:
    model = make("mlp")
    params = noisy_params(model, (3,))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for dtype, expected in {
        "bfloat16": "float32",
        "float32": "float32",
        "float64": "float64",
    }.items():
        assert model.apply(params, jnp.ones((2, 3), dtype), 0.5).dtype == expected


def test_patches_are_undone() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 3)))
    patches = _layers.to_patches(x, 2)
    assert patches.shape == (2, 3, 4, 12)
    np.testing.assert_array_equal(patches[0, 1, 2], x[0, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(_layers.from_patches(patches, 2, 5, 7), x)


def test_upsampling_repeats_pixels() -> None:
    x = jnp.arange(12.0).reshape(1, 2, 3, 2)
    expected = np.asarray(x).repeat(2, axis=1).repeat(2, axis=2)[:, :3, :5]
    np.testing.assert_array_equal(_layers.upsample(x, 3, 5), expected)


def test_attention_is_the_plain_formula(x64: None) -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 4))
    expected = np.empty_like(q)
    for row in range(2):
        for head in range(3):
            weights = np.exp(q[row, :, head] @ k[row, :, head].T / 2)
            expected[row, :, head] = weights @ v[row, :, head] / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        _layers.attend(*map(jnp.asarray, (q, k, v))), expected, rtol=1e-12
    )  # rounding


def loss_and_gradients(attend: Any) -> Any:
    """Of a sum that weighs each pixel by its place: another order of the queries is another number."""

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        by_place = jnp.cos(jnp.arange(q.shape[1])).astype(q.dtype)[None, :, None, None]
        return jnp.sum(by_place * jnp.sin(attend(q, k, v)))

    return jax.value_and_grad(total, (0, 1, 2))


def test_attention_in_turns_is_attention_at_once(dtype: str) -> None:
    """Values and gradients of 300 pixels, whose 4 x 64 queries and a rest of 44 take turns, on one device and on two."""
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 300, 2, 4)).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_layers, "PAIRS", 300 * 64)
        turns, whole = map(loss_and_gradients, (_layers.attend, _layers._attend))
        found, expected = jax.jit(turns)(q, k, v), jax.jit(whole)(q, k, v)
        one_a_device = jax.pmap(turns, devices=jax.local_devices()[:2])(
            *(x[:, None] for x in (q, k, v))
        )
    assert found[0].dtype == dtype
    # Rounding: the gradients of keys and values add up the turns, 300 terms of order one.
    tolerance = {"rtol": 1e3 * np.finfo(dtype).eps, "atol": 1e2 * np.finfo(dtype).eps}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), found, expected)
    apart = [np.asarray(x)[:, 0] for x in one_a_device[1]]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **tolerance), apart, list(expected[1])
    )


def test_attention_of_few_pixels_is_one_program() -> None:
    """Up to 256 pixels nothing changes, and so no number: the same operations, without a loop."""
    few = jnp.zeros((1, 256, 2, 4))
    assert str(jax.make_jaxpr(_layers.attend)(few, few, few)) == str(
        jax.make_jaxpr(_layers._attend)(few, few, few)
    )


def test_attention_takes_memory_in_proportion_to_the_pixels() -> None:
    def temporary(pixels: int) -> int:
        x = jax.ShapeDtypeStruct((1, pixels, 2, 4), jnp.float32)
        compiled = jax.jit(loss_and_gradients(_layers.attend)).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary(8192), temporary(32_768)
    assert large < 4.4 * small  # of pairs it would be 16 times as much
    assert large < 32_768**2 / 4  # bytes: a quarter of one matrix of truth values


def test_no_layer_holds_all_pairs_of_pixels() -> None:
    """Of a 64x64 image at one resolution, forwards and backwards: nothing has 4096 x 4096 entries."""
    model = models.unet(channels=8, multipliers=(1,), num_blocks=1, attention=(64,), num_heads=1)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), (64, 64, 1)))
    x, t = (
        jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.float32),
    )
    jaxpr = jax.make_jaxpr(jax.grad(lambda p, x, t: jnp.sum(model.apply(p, x, t))))(params, x, t)
    largest = max(var.aval.size for equation in equations(jaxpr.jaxpr) for var in equation.outvars)
    assert largest <= _layers.PAIRS


def equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


# Errors -------------------------------------------------------------------------------------------------------------

CONFIGURATIONS = [
    (
        {"channels": 12, "norm_groups": 8},
        ValueError,
        "channels: expected a multiple of norm_groups, 8, got 12",
    ),
    (
        {"channels": 8, "num_heads": 3},
        ValueError,
        "channels: expected a multiple of num_heads, 3, got 8",
    ),
    (
        {"channels": 3, "norm_groups": 1, "num_heads": 1},
        ValueError,
        "channels: expected a multiple of two, 2, got 3",
    ),
    ({"channels": 0}, ValueError, "channels: expected a positive int, got 0"),
    ({"num_blocks": 10**9}, ValueError, "num_blocks, multipliers: expected at most 1024 blocks"),
    ({"multipliers": (1,) * 600, "num_blocks": 2}, ValueError, "got 1200"),
    ({"channels": 8.0}, TypeError, "channels: expected a positive int, got 8.0"),
    ({"multipliers": ()}, ValueError, "multipliers: expected at least one level"),
    ({"multipliers": (1, 0)}, ValueError, "multipliers: expected a positive int, got 0"),
    ({"attention": (7.5,)}, TypeError, "attention: expected a positive int, got 7.5"),
    ({"patch": 0}, ValueError, "patch: expected a positive int, got 0"),
    ({"num_classes": 0}, ValueError, "num_classes: expected a positive int, got 0"),
    ({"fourier": (400,)}, ValueError, "fourier: expected exponents 0 to 23, got 400"),
    ({"fourier": (0.5,)}, TypeError, "fourier: expected exponents, integers, got 0.5"),
    ({"dropout": 1.0}, ValueError, r"dropout: expected a rate in \[0, 1\), got 1.0"),
    ({"dropout": "half"}, TypeError, r"dropout: expected a rate in \[0, 1\), got 'half'"),
    (
        {"time_embedding": "cosine"},
        ValueError,
        "time_embedding: expected one of 'sinusoidal', 'fourier', got 'cosine'",
    ),
    (
        {"dtype": "float16"},
        ValueError,
        "dtype: expected one of 'float32', 'bfloat16', 'float64', got 'float16'",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), CONFIGURATIONS)
def test_bad_configurations(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make("unet", **options)


def test_a_depth_that_cannot_be_traced() -> None:
    with pytest.raises(
        ValueError, match="depth: expected at most 1024 blocks in all, got 10000000"
    ):
        models.mlp(depth=10**9)


def test_bad_mlp_width() -> None:
    with pytest.raises(ValueError, match="width: expected a multiple of 8"):
        make("mlp", width=12)


@pytest.mark.parametrize(
    ("key", "event_shape", "error", "message"),
    [
        (0, (8, 8, 1), TypeError, "key: expected a typed key"),
        (None, (8, 8), ValueError, r"event_shape: expected 3 sides, got \(8, 8\)"),
        (None, (8, 0, 1), ValueError, "event_shape: expected a positive int, got 0"),
        (None, (8, 8.0, 1), TypeError, "event_shape: expected a positive int, got 8.0"),
    ],
)
def test_bad_initialisation(
    key: Any, event_shape: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make("unet").init(jax.random.key(0) if key is None else key, event_shape)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_traced_label_is_no_other_class(kind: str) -> None:
    """Labels that the network does not know make their rows NaN; the other rows stay as they are."""
    model = make(kind, num_classes=3)
    params, (x, t) = noisy_params(model, SHAPES[kind]), batch(SHAPES[kind], 5)
    label = jnp.array([4, 1, -1, 3, -4])
    found = jitted(model)(params, x, t, label)
    bad = np.array([True, False, True, False, True])
    assert np.isnan(np.asarray(found)[bad]).all()
    expected = jitted(model)(params, x, t, jnp.where(bad, 0, label))
    np.testing.assert_allclose(found[~bad], expected[~bad], atol=1e-5)  # rounding


def test_one_label_for_all_rows() -> None:
    model = make("mlp", num_classes=3)
    params, (x, t) = noisy_params(model, SHAPES["mlp"]), batch(SHAPES["mlp"])
    np.testing.assert_array_equal(
        model.apply(params, x, t, 2), model.apply(params, x, t, jnp.full(len(x), 2))
    )


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("time_embedding", ["sinusoidal", "fourier"])
def test_parameters_are_float32_and_the_same_in_float64_programs(
    kind: str, time_embedding: str
) -> None:
    model = make(kind, num_classes=3, learned_variance=True, time_embedding=time_embedding)
    params = model.init(jax.random.key(0), SHAPES[kind])
    with jax.enable_x64(True):
        wide = model.init(jax.random.key(0), SHAPES[kind])
    chex.assert_trees_all_equal_dtypes(params, wide)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {np.dtype("float32")}
    jax.tree.map(np.testing.assert_array_equal, params, wide)


GOOD = {
    "x": jnp.zeros((4, 5, 7, 3)),
    "t": jnp.zeros(4),
    "label": jnp.zeros(4, int),
    "dropout_key": None,
}
CALLS = [
    ({"x": jnp.zeros((5, 7, 3))}, ValueError, "x: expected 4 axes, batch first, got shape"),
    (
        {"x": jnp.zeros((4, 5, 7, 3), int)},
        TypeError,
        "x: expected a floating dtype, got int32 .scale images",
    ),
    ({"x": [[1.0]]}, TypeError, "x: expected a floating array, got list"),
    (
        {"x": jnp.zeros((4, 5, 7, 1))},
        ValueError,
        r"x: expected a last axis of 3, .* got shape \(4, 5, 7, 1\)",
    ),
    ({"t": jnp.zeros(3)}, ValueError, r"t: expected shape \(\) or \(4,\), got \(3,\)"),
    ({"t": jnp.zeros((4, 1))}, ValueError, r"t: expected shape \(\) or \(4,\), got \(4, 1\)"),
    ({"t": jnp.zeros(4, int)}, TypeError, "t: expected a floating time"),
    ({"t": 1.5}, ValueError, "t: expected a time in"),
    ({"label": jnp.zeros(4)}, TypeError, "label: expected an integer dtype, got float32"),
    ({"label": jnp.zeros(3, int)}, ValueError, r"label: expected shape \(\) or \(4,\), got \(3,\)"),
    (
        {"label": jnp.zeros((4, 1), int)},
        ValueError,
        r"label: expected shape \(\) or \(B,\), got \(4, 1\)",
    ),
    ({"label": jnp.zeros(4, bool)}, TypeError, "label: expected an integer dtype, got bool"),
    (
        {"label": jnp.array([0, -1, 2, 3])},
        ValueError,
        r"label: expected 0 \.\. 3, got -1 at index 1 of 4",
    ),
    ({"label": np.full(4, 2**32)}, ValueError, r"label: expected 0 \.\. 3, got 4294967296"),
    ({"label": jnp.array([0, 1, 2, 4])}, ValueError, r"label: expected 0 \.\. 3, got"),
    ({"dropout_key": 0}, TypeError, "key: expected a typed key"),
    (
        {"dropout_key": jax.random.split(jax.random.key(0), 3)},
        ValueError,
        "key: expected one key or one a row",
    ),
    ({"params": {"head": 0}}, ValueError, "params: expected what init returned, got dict"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), CALLS)
def test_bad_calls(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    model = make("unet", num_classes=3)
    arguments = {"params": noisy_params(model, SHAPES["unet"])} | GOOD | wrong
    with pytest.raises(error, match=message):
        model.apply(**arguments)


def test_a_label_needs_classes() -> None:
    model = make("unet")
    params, (x, t) = noisy_params(model, SHAPES["unet"]), batch(SHAPES["unet"])
    with pytest.raises(
        ValueError, match="label: expected None, because the model has num_classes=None"
    ):
        model.apply(params, x, t, jnp.zeros(4, int))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", slow("float64")])
@pytest.mark.parametrize(
    "options", [slow({}), {"num_classes": 3, "learned_variance": True, "dropout": 0.3}]
)
@pytest.mark.parametrize("kind", SHAPES)
def test_no_dtype_is_promoted_by_accident(kind: str, options: dict, dtype: str) -> None:
    """Traced only, with its gradient: JAX refuses each promotion that is not asked for."""
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
        model = make(kind, dtype=dtype, **options)
        params = jax.eval_shape(lambda: model.init(jax.random.key(0), SHAPES[kind]))
        x = jax.ShapeDtypeStruct((2, *SHAPES[kind]), dtype)
        t = jax.ShapeDtypeStruct((2,), np.float32 if dtype == "bfloat16" else dtype)
        given = (
            {"dropout_key": jax.random.split(jax.random.key(0), 2)}
            if options.get("dropout")
            else {}
        )
        given |= {"label": jnp.array([0, 3])} if "num_classes" in options else {}

        def total(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
            return model.apply(params, x, t, **given).sum()

        slopes = jax.eval_shape(jax.grad(total), params, x, t)
    chex.assert_trees_all_equal_shapes_and_dtypes(slopes, params)
