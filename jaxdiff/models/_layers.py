"""Building blocks of the networks: each one treats the rows of a batch independently."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from scipy.special import ndtri

from jaxdiff import _rows

# The sum of two independent signals of unit variance, times this, has unit variance.
HALF = 0.5**0.5


def _spread(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initialise a weight, [..., fan_in, fan_out], with its deviation: `Model.init` draws it."""
    return jnp.full(shape, math.prod(shape[:-1]) ** -0.5, dtype)


def dense(size: int, dtype: Any, name: str, *, init: Any = _spread) -> nn.Dense:
    """Make a linear layer over the last axis."""
    return nn.Dense(size, dtype=dtype, kernel_init=init, name=name)


def conv(
    channels: int,
    dtype: Any,
    name: str,
    *,
    stride: int = 1,
    padding: Any = "SAME",
    init: Any = _spread,
) -> nn.Conv:
    """Make a 3x3 convolution; stride 2 leaves ceil(side / 2)."""
    return nn.Conv(
        channels,
        (3, 3),
        stride,
        padding,
        dtype=dtype,
        kernel_init=init,
        conv_general_dilated=convolve,
        name=name,
    )


def convolve(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **_: Any) -> jax.Array:
    """Convolve images [B, H, W, C] for `nn.Conv`, whose other options `conv` leaves alone.

    XLA's CPU has no fast program, inside a scan, for the transpose that `lax.conv_general_dilated`
    has in x: it reads the kernel with its channels exchanged. So the derivative in x is written
    with exchanged channels, and its transpose is the fast one.
    """
    return _convolve(
        x,
        kernel,
        tuple(strides),
        padding if isinstance(padding, str) else tuple(map(tuple, padding)),
    )


def _plain(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, order: str) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", order, "NHWC")
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    return _plain(x, kernel, strides, padding, "HWIO")


def _convolve_jvp(
    strides: Any, padding: Any, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(_plain(dx, kernel.swapaxes(2, 3), strides, padding, "HWOI"))
    if not isinstance(dkernel, SymbolicZero):
        parts.append(_in_kernel(x, dkernel, strides, padding))
    slope = functools.reduce(jnp.add, parts)  # at least one is asked for
    return _convolve(x, kernel, strides, padding), slope


_convolve.defjvp(_convolve_jvp, symbolic_zeros=True)


BLOCK = 400_000  # numbers of one product's two sides, which stay in a core's cache


def _in_kernel(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    """Convolve again, as a linear map of the kernel: training runs its transpose.

        y[h, w] = sum_i z_i[h + i - 1, w],  z_i[h, w] = sum_j x[h, w + j - 1] kernel[i, j]

    The transpose of a convolution in its kernel is one with a window as large as the image, which
    XLA's CPU does at half its usual rate or less, and inside a scan ten times more slowly. The
    transpose of these sums is one matrix product for a few images at a time, [3C, pixels] times
    [pixels, 3O]: x has three columns side by side, the other side three rows. Accelerators have
    good programs for the convolution.
    """
    images, height, width, channels = x.shape
    outputs = kernel.shape[3]
    plain = kernel.shape[:2] != (3, 3) or strides != (1, 1) or padding != "SAME"
    if plain or jax.default_backend() != "cpu":
        return _plain(x, kernel, strides, padding, "HWIO")
    # Gradients are summed over the blocks in float32 or wider.
    precise = kernel.astype(_rows.state_dtype(kernel.dtype)).transpose(1, 2, 0, 3)
    taps = precise.reshape(3 * channels, 3 * outputs)

    @jax.checkpoint  # the columns are three times as large as x
    def block(x: jax.Array) -> jax.Array:
        wide = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
        columns = jnp.concatenate([wide[:, :, j : j + width] for j in range(3)], axis=3)
        z = columns.reshape(-1, 3 * channels) @ taps.astype(x.dtype)
        above, here, below = jax.lax.split(
            z.reshape(-1, height, width, 3 * outputs), [outputs] * 3, axis=3
        )
        zero = jnp.zeros((), z.dtype)
        above = jax.lax.pad(above, zero, [(0, 0, 0), (1, -1, 0), (0, 0, 0), (0, 0, 0)])
        below = jax.lax.pad(below, zero, [(0, 0, 0), (-1, 1, 0), (0, 0, 0), (0, 0, 0)])
        return above + here + below

    most = max(1, BLOCK // (3 * (channels + outputs) * height * width))
    size = max(n for n in range(1, min(most, images) + 1) if images % n == 0)
    y = jax.lax.map(block, x.reshape(-1, size, *x.shape[1:]))
    return y.reshape(images, height, width, outputs)


zeros = nn.initializers.zeros


def time_features(t: jax.Array, size: int, kind: str) -> jax.Array:
    """Map times in [0, 1], [B], to [B, size] features, float32 or wider.

    sinusoidal: cos, sin(1000 t f_i), f_i = 10000^(-i/n): t counts steps of the usual T = 1000.
    fourier: cos, sin(2 pi t f_i), f_i = 16 |z_i| at the quantiles z_i of a standard normal.

    Source: Ho et al. 2020, arXiv:2006.11239, appendix B; Song et al. 2021, arXiv:2011.13456,
    appendix C.2 (whose frequencies are random: quantiles need neither a key nor a parameter that
    must not be trained).
    """
    i = np.arange(size // 2)
    if kind == "sinusoidal":
        frequencies = 1000 * 10000.0 ** (-i / len(i))
    else:
        frequencies = 2 * np.pi * 16 * ndtri(0.5 + (i + 0.5) / (2 * len(i)))
    angles = t[:, None] * jnp.asarray(frequencies, t.dtype)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Embedding(nn.Module):
    """Time and label, [B] each, to one vector a row, [B, width]; the last label is the null class.

    A label outside 0 .. num_classes becomes NaN, and never another class.
    """

    width: int
    kind: str
    num_classes: int | None
    dtype: Any

    @nn.compact
    def __call__(self, t: jax.Array, label: jax.Array | None) -> jax.Array:
        h = time_features(t, self.width // 4, self.kind).astype(self.dtype)
        h = nn.silu(dense(self.width, self.dtype, "time_1")(h))
        h = dense(self.width, self.dtype, "time_2")(h)
        if self.num_classes is not None:
            label = jnp.full(t.shape, self.num_classes) if label is None else label
            # The look-up gives NaN beyond the table's end, but counts a negative index from there.
            label = jnp.where(label < 0, self.num_classes + 1, label)
            h = h + nn.Embed(
                self.num_classes + 1, self.width, self.dtype, embedding_init=_spread, name="label"
            )(label)
        return nn.silu(h)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, index: int) -> jax.Array:
    """Zero a fraction of the entries and scale up the rest; key: one a row, [B], or None for none.

    Row i's mask depends on (key i, index) alone, not on the rest of the batch or on how devices
    share it.
    """
    if key is None or rate == 0:
        return x
    draw = jax.vmap(
        lambda k: jax.random.bernoulli(jax.random.fold_in(k, index), 1 - rate, x.shape[1:])
    )
    return jnp.where(draw(key), x / (1 - rate), 0)


def norm(
    x: jax.Array, scale: jax.Array, shift: jax.Array, groups: int, *, eps: float = 1e-5
) -> jax.Array:
    """Normalise groups of channels of images, [B, H, W, C]; scale and shift are [1, C] or [B, C].

    y = x a + b,  a = scale / sqrt(var + eps),  b = shift - mean a,  var = E x^2 - (E x)^2;  at
    least float32

    Numerics: a and b are [B, C], so an image is read once for the moments and once for the result.
    Two details keep XLA on CPU from recomputing long chains for every pixel. Groups are averaged by
    a small matrix product, which no fusion swallows. And E x^2 precedes E x, so that the last term
    of the gradient of x multiplies a whole image. The difference loses digits where |mean| >>
    standard deviation, which outputs of convolutions are far from.
    """
    x = x.astype(_rows.state_dtype(x.dtype))
    scale, shift = scale.astype(x.dtype), shift.astype(x.dtype)
    square = jnp.square(x).mean((1, 2))
    moments = jnp.stack([x.mean((1, 2)), square], axis=1)
    size = x.shape[-1] // groups
    average = jnp.asarray(np.kron(np.eye(groups), np.full((size, size), 1 / size)), x.dtype)
    # Full precision: an accelerator's default rounds the factors, and the difference of squares
    # would be noise.
    mean, square = jnp.moveaxis(jnp.matmul(moments, average, precision="highest"), 1, 0)
    a = scale * jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + eps)
    b = shift - mean * a
    return x * a[:, None, None] + b[:, None, None]


class Norm(nn.Module):
    """Group normalisation with a learned affine map; film is another (scale, shift), [B, C]."""

    groups: int
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, film: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)[None]
        shift = self.param("bias", zeros, x.shape[-1:], jnp.float32)[None]
        if film is not None:
            dtype = _rows.state_dtype(x.dtype)
            factor, offset = (1 + film[0]).astype(dtype), film[1].astype(dtype)
            scale, shift = scale.astype(dtype) * factor, shift.astype(dtype) * factor + offset
        return norm(x, scale, shift, self.groups, eps=self.eps)


WHOLE = 256  # pixels whose attention, all pairs at once, takes no more than their activations do
PAIRS = 2**18  # of pixels at a time beyond that


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(size)) v for [B, pixels, heads, size]; the softmax is at least float32.

    Numerics: the pairs of up to 256 pixels are held at once. Of more the queries take turns, each
    with all keys, and the backward pass computes their softmax again: memory grows with the pixels,
    and not with their square. No sum changes its order. `jax.nn.dot_product_attention` would hold
    all pairs, and run a float64 softmax in float32.
    """
    pixels = q.shape[1]
    if pixels <= WHOLE:
        return _attend(q, k, v)

    @jax.checkpoint
    def one(query: jax.Array) -> jax.Array:
        return _attend(query[:, None], k, v)[:, 0]

    return jnp.moveaxis(
        jax.lax.map(one, jnp.moveaxis(q, 1, 0), batch_size=max(16, PAIRS // pixels)), 0, 1
    )


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    precise = _rows.state_dtype(q.dtype)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=precise) / math.sqrt(
        q.shape[-1]
    )
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits).astype(v.dtype), v)


class Attention(nn.Module):
    """Self-attention among the pixels of one image, added to the image."""

    num_heads: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = Norm(self.groups, name="norm")(x).astype(self.dtype)
        qkv = dense(3 * channels, self.dtype, "qkv")(h.reshape(batch, height * width, channels))
        q, k, v = jnp.split(qkv.reshape(batch, height * width, 3 * self.num_heads, -1), 3, axis=2)
        h = attend(q, k, v).reshape(x.shape)
        return x + dense(channels, self.dtype, "out", init=zeros)(h)


class ResBlock(nn.Module):
    """Two normalised convolutions, modulated by the embedding (FiLM) and added to their input."""

    groups: int
    rate: float
    index: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, key: jax.Array | None) -> jax.Array:
        channels = x.shape[-1]
        scale, shift = jnp.split(dense(2 * channels, self.dtype, "film")(embedding), 2, axis=-1)
        h = nn.silu(Norm(self.groups, name="norm_1")(x)).astype(self.dtype)
        h = conv(channels, self.dtype, "conv_1")(h)
        h = nn.silu(Norm(self.groups, name="norm_2")(h, (scale, shift))).astype(self.dtype)
        h = dropout(h, self.rate, key, self.index)
        return x + conv(channels, self.dtype, "conv_2", init=zeros)(h)


def upsample(x: jax.Array, height: int, width: int) -> jax.Array:
    """Double the sides by repetition and crop to (height, width).

    Stacked rather than repeated: the transpose is then two sums of slices, which fuse, instead of a
    slow reduction.
    """
    batch, rows, columns, channels = x.shape
    x = jnp.stack([x, x], axis=2).reshape(batch, 2 * rows, columns, channels)
    x = jnp.stack([x, x], axis=3).reshape(batch, 2 * rows, 2 * columns, channels)
    return x[:, :height, :width]


def fourier(x: jax.Array, exponents: tuple[int, ...]) -> jax.Array:
    """Append sin(2^n pi x) and cos(2^n pi x) to the channels, for each exponent n."""
    angles = [2.0**n * jnp.pi * x for n in exponents]
    return (
        jnp.concatenate([x, *map(jnp.sin, angles), *map(jnp.cos, angles)], axis=-1) if angles else x
    )


def to_patches(x: jax.Array, patch: int) -> jax.Array:
    """Stack squares of p x p pixels into channels, [B, ceil(H/p), ceil(W/p), p*p*C]."""
    if patch == 1:
        return x
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)))
    x = x.reshape(batch, -(-height // patch), patch, -(-width // patch), patch, channels)
    return x.swapaxes(2, 3).reshape(*x.shape[:2], x.shape[3], -1)


def from_patches(x: jax.Array, patch: int, height: int, width: int) -> jax.Array:
    """Undo `to_patches`, cropping the rim."""
    if patch == 1:
        return x
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows, columns, patch, patch, -1).swapaxes(2, 3)
    return x.reshape(batch, rows * patch, columns * patch, -1)[:, :height, :width]
