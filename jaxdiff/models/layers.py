"""Building blocks of the networks: each one treats the rows of a batch independently."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

HALF = 0.5**0.5  # The sum of two independent signals of unit variance, times this, has unit variance.


def time_features(t: jax.Array, size: int, kind: str) -> jax.Array:
    """Map times in [0, 1], [B], to [B, size] features, float32 or wider.

    sinusoidal: cos, sin(1000 t f_i), f_i = 10000^(-i/n): t counts steps of the usual T = 1000.
    fourier: cos, sin(2 pi t f_i), f_i = 16 |z_i| at the quantiles z_i of a standard normal.

    Source: Ho et al. 2020, arXiv:2006.11239, appendix B; Song et al. 2021, arXiv:2011.13456, appendix C.2 (whose
    frequencies are random: quantiles need neither a key nor a parameter that must not be trained).
    """
    i = np.arange(size // 2)
    if kind == "sinusoidal":
        frequencies = 1000 * 10000.0 ** (-i / len(i))
    else:
        frequencies = 2 * np.pi * 16 * ndtri(0.5 + (i + 0.5) / (2 * len(i)))
    t = t.astype(jnp.promote_types(t.dtype, jnp.float32))
    angles = t[:, None] * jnp.asarray(frequencies, t.dtype)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Embedding(nn.Module):
    """Time and label, [B] each, to one vector a row, [B, width]; the last label is the null class."""

    width: int
    kind: str
    num_classes: int | None
    dtype: Any

    @nn.compact
    def __call__(self, t: jax.Array, label: jax.Array | None) -> jax.Array:
        h = time_features(t, self.width // 4, self.kind).astype(self.dtype)
        h = nn.silu(nn.Dense(self.width, dtype=self.dtype, name="time_1")(h))
        h = nn.Dense(self.width, dtype=self.dtype, name="time_2")(h)
        if self.num_classes is not None:
            label = jnp.full(t.shape, self.num_classes) if label is None else label
            table = nn.Embed(self.num_classes + 1, self.width, dtype=self.dtype, name="label")
            h = h + table(label)
        return nn.silu(h)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, index: int) -> jax.Array:
    """Zero a fraction of the entries and scale up the rest; key: one a row, [B], or None for none."""
    if key is None or rate == 0:
        return x
    draw = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, index), 1 - rate, x.shape[1:]))
    return jnp.where(draw(key), x / (1 - rate), 0)


def norm(x: jax.Array, scale: jax.Array, shift: jax.Array, groups: int) -> jax.Array:
    """Group normalisation with a scale and a shift, [C] or [B, C], of images [B, H, W, C]; at least float32.

    y = x a + b,  a = scale / sqrt(var + 1e-5),  b = shift - mean a,  var = E x^2 - (E x)^2

    Numerics: a and b are [B, C], so the image is read once for the moments and once for the result. Two details keep
    XLA on CPU from recomputing long chains for every pixel: groups are averaged by a small matrix product, which no
    fusion swallows, and E x^2 precedes E x, so that the last term of x's gradient is a product of two full images.
    The difference loses digits where |mean| >> standard deviation; a convolution's outputs are far from there.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.square(x).mean((1, 2))
    moments = jnp.stack([x.mean((1, 2)), square], axis=1)
    size = x.shape[-1] // groups
    average = np.kron(np.eye(groups), np.full((size, size), 1 / size))
    mean, square = jnp.moveaxis(moments @ jnp.asarray(average, x.dtype), 1, 0)
    a = scale * jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + 1e-5)
    b = shift - mean * a
    return x * a[:, None, None] + b[:, None, None]


def norm_silu(x: jax.Array, scale: jax.Array, shift: jax.Array, groups: int) -> jax.Array:
    """SiLU of `norm`."""
    return nn.silu(norm(x, scale, shift, groups)).astype(x.dtype)


class Norm(nn.Module):
    """Group normalisation with learned affine map."""

    groups: int
    silu: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, film: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))[None]
        shift = self.param("bias", nn.initializers.zeros, (channels,))[None]
        if film is not None:
            scale, shift = scale * (1 + film[0]), shift * (1 + film[0]) + film[1]
        return norm_silu(x, scale, shift, self.groups) if self.silu else norm(x, scale, shift, self.groups)


class Attention(nn.Module):
    """Self-attention among the pixels of one image, added to the image."""

    num_heads: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = Norm(self.groups, silu=False, name="norm")(x).astype(self.dtype)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h.reshape(batch, height * width, channels))
        q, k, v = jnp.split(qkv.reshape(batch, height * width, 3 * self.num_heads, -1), 3, axis=2)
        h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(h)
        return x + h


class ResBlock(nn.Module):
    """Two convolutions with normalisation, modulated by the embedding (FiLM), added to their input."""

    groups: int
    rate: float
    index: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, key: jax.Array | None) -> jax.Array:
        channels = x.shape[-1]
        h = Norm(self.groups, name="norm_1")(x)
        h = nn.Conv(channels, (3, 3), dtype=self.dtype, name="conv_1")(h)
        film = nn.Dense(2 * channels, dtype=self.dtype, name="film")(embedding)
        h = Norm(self.groups, name="norm_2")(h, jnp.split(film, 2, axis=-1))
        h = dropout(h, self.rate, key, self.index)
        h = nn.Conv(channels, (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="conv_2")(h)
        return x + h


def upsample(x: jax.Array, height: int, width: int) -> jax.Array:
    """Double the sides by repetition and crop to (height, width).

    Stacked rather than repeated: the transpose is then two sums of slices, which fuse, instead of a slow reduction.
    """
    batch, rows, columns, channels = x.shape
    x = jnp.stack([x, x], axis=2).reshape(batch, 2 * rows, columns, channels)
    x = jnp.stack([x, x], axis=3).reshape(batch, 2 * rows, 2 * columns, channels)
    return x[:, :height, :width]


def to_patches(x: jax.Array, patch: int) -> jax.Array:
    """Stack each patch x patch square of pixels into channels, [B, ceil(H/p), ceil(W/p), p*p*C]; zeros fill the rim."""
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
