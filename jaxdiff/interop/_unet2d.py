"""The U-Net of UNet2DModel folders and of ADM files, with its parts named as those folders do.

Beside `models.unet` it concatenates its skip connections, projects them where the width changes,
and has one residual block more a level on the way up.
"""

import dataclasses
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks
from jaxdiff.models import Model, _layers
from jaxdiff.models._model import check_dropout, shared

RESAMPLING = ("conv", "block")


def step_features(step: jax.Array, size: int, *, shift: float, cos_first: bool) -> jax.Array:
    """Map steps, [B], to [B, size] features.

        sin(step f_i), cos(step f_i),   f_i = 10000^(-i / (n - shift)),   n = size / 2

    The frequencies are rounded to float32, as they were when these networks were trained: at step
    999 the rounding is seen.
    """
    half = size // 2
    exponent = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32)
    frequencies = np.exp(exponent / np.float32(half - shift))
    angles = step[:, None] * jnp.asarray(frequencies, step.dtype)[None]
    pair = (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(pair[::-1] if cos_first else pair, axis=-1)


def steps_of(t: jax.Array, total: int) -> jax.Array:
    """The step, T t - 1, of a time; one that misses a whole number by rounding alone is whole."""
    step = total * t - 1
    missed = jnp.round(step) - step
    rounding = 2 * total * jnp.finfo(step.dtype).eps
    # A constant in t, so that the slope of the step remains T.
    return step + jax.lax.stop_gradient(jnp.where(jnp.abs(missed) < rounding, missed, 0))


class ResBlock(nn.Module):
    """Two normalised convolutions, modulated by the embedding, beside a shortcut."""

    width: int
    groups: int
    eps: float
    film: bool
    rate: float
    index: int
    resample: str | None = None  # "down" or "up"
    divide: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, key: jax.Array | None) -> jax.Array:
        h = nn.silu(_layers.Norm(self.groups, self.eps, name="norm1")(x))
        if self.resample == "down":
            h, x = (nn.avg_pool(each, (2, 2), (2, 2)) for each in (h, x))
        elif self.resample == "up":
            h, x = (_layers.upsample(a, 2 * a.shape[1], 2 * a.shape[2]) for a in (h, x))
        h = _layers.conv(self.width, None, "conv1")(h)
        size = 2 * self.width if self.film else self.width
        modulation = _layers.dense(size, None, "time_emb_proj")(embedding)
        norm = _layers.Norm(self.groups, self.eps, name="norm2")
        if self.film:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = norm(h, (scale, shift))
        else:
            h = norm(h + modulation[:, None, None])
        h = _layers.dropout(nn.silu(h), self.rate, key, self.index)
        h = _layers.conv(self.width, None, "conv2")(h)
        if x.shape[-1] != self.width:
            x = _layers.dense(self.width, None, "conv_shortcut")(x)
        return (x + h) / self.divide


class Attention(nn.Module):
    """Self-attention among the pixels of one image, added to the image."""

    num_heads: int
    groups: int | None  # None: without normalisation
    eps: float
    divide: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = x
        if self.groups is not None:
            h = _layers.Norm(self.groups, self.eps, name="group_norm")(x)
        h = h.reshape(batch, height * width, channels)
        q, k, v = (
            _layers.dense(channels, None, name)(h).reshape(*h.shape[:2], self.num_heads, -1)
            for name in ("to_q", "to_k", "to_v")
        )
        h = _layers.dense(channels, None, "to_out.0")(_layers.attend(q, k, v).reshape(h.shape))
        return (x + h.reshape(x.shape)) / self.divide


class UNet2D(nn.Module):
    """The network of `unet2d`: x [B, H, W, C], t [B], label [B] or None, key [B] or None."""

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    num_blocks: int
    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]
    down_resampling: tuple[str, ...]
    up_resampling: tuple[str, ...]
    num_heads: int | None = None
    head_size: int | None = None
    groups: int = 32
    middle_groups: int | None = 32
    eps: float = 1e-5
    film: bool = False
    middle: bool = True
    middle_attention: bool = True
    middle_divide: float = 1.0
    padding: int = 1
    frequency_shift: float = 0.0
    cos_first: bool = True
    embedding_size: int | None = None
    num_classes: int | None = None
    centred: bool = False
    dropout: float = 0.0
    total: int = 1000
    step_scale: float = 1.0

    event_ndim = 3
    null_class = False

    @property
    def learned_variance(self) -> bool:
        """Whether the second half of the output is for the reverse variance."""
        return self.out_channels == 2 * self.in_channels

    def event_size(self, params: Any) -> int:
        """The number of image channels that the parameters were made for."""
        return params["conv_in"]["kernel"].shape[2]

    def heads(self, width: int) -> int:
        """The number of attention heads at a width."""
        return width // self.head_size if self.head_size else self.num_heads or 1

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, label: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        unit = 2 ** (len(self.widths) - 1)
        if x.shape[1] % unit or x.shape[2] % unit:
            raise ValueError(f"x: expected sides that are multiples of {unit}, got {x.shape[1:3]}")
        embedding = self.embed(t, label)
        h = _layers.conv(self.widths[0], None, "conv_in")(2 * x - 1 if self.centred else x)
        h = self.body(h, embedding, key)
        h = nn.silu(_layers.Norm(self.groups, self.eps, name="conv_norm_out")(h))
        return _layers.conv(self.out_channels, None, "conv_out")(h)

    def embed(self, t: jax.Array, label: jax.Array | None) -> jax.Array:
        """Time and label, [B] each, to one vector a row; a label outside the classes is NaN."""
        size = self.embedding_size or 4 * self.widths[0]
        steps = self.step_scale * steps_of(t, self.total)
        h = step_features(
            steps, self.widths[0], shift=self.frequency_shift, cos_first=self.cos_first
        )
        h = nn.silu(_layers.dense(size, None, "time_embedding.linear_1")(h))
        h = _layers.dense(size, None, "time_embedding.linear_2")(h)
        if self.num_classes is not None:
            # None comes from `Model.init` alone: `Model.check_label` refuses it elsewhere.
            label = jnp.zeros(t.shape, int) if label is None else label
            # The look-up gives NaN beyond the table's end, but counts a negative index from there.
            label = jnp.where(label < 0, self.num_classes, label)
            table = nn.Embed(
                self.num_classes, size, embedding_init=_layers._spread, name="class_embedding"
            )
            h = h + table(label)
        return nn.silu(h)

    def body(self, h: jax.Array, embedding: jax.Array, key: jax.Array | None) -> jax.Array:
        """Down, middle and up."""
        numbers = itertools.count()

        def block(h: jax.Array, width: int, name: str, **options: Any) -> jax.Array:
            shared = (self.groups, self.eps, self.film, self.dropout, next(numbers))
            return ResBlock(width, *shared, name=name, **options)(h, embedding, key)

        def attend(h: jax.Array, name: str, groups: int | None, divide: float = 1.0) -> jax.Array:
            return Attention(self.heads(h.shape[-1]), groups, self.eps, divide, name=name)(h)

        skips, last = [h], len(self.widths) - 1
        for i, width in enumerate(self.widths):
            part = f"down_blocks.{i}"
            for j in range(self.num_blocks):
                h = block(h, width, f"{part}.resnets.{j}")
                if self.down_attention[i]:
                    h = attend(h, f"{part}.attentions.{j}", self.groups)
                skips.append(h)
            if i < last and self.down_resampling[i] == "block":
                h = block(h, width, f"{part}.downsamplers.0", resample="down")
                skips.append(h)
            elif i < last:
                # Zeros behind alone, or on both sides.
                sides = ((0, 1) if self.padding == 0 else (self.padding, self.padding),) * 2
                name = f"{part}.downsamplers.0.conv"
                h = _layers.conv(width, None, name, stride=2, padding=sides)(h)
                skips.append(h)
        if self.middle:
            width, divide = self.widths[-1], self.middle_divide
            h = block(h, width, "mid_block.resnets.0", divide=divide)
            if self.middle_attention:
                h = attend(h, "mid_block.attentions.0", self.middle_groups, divide)
            h = block(h, width, "mid_block.resnets.1", divide=divide)
        for i, width in enumerate(reversed(self.widths)):
            part = f"up_blocks.{i}"
            for j in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, width, f"{part}.resnets.{j}")
                if self.up_attention[i]:
                    h = attend(h, f"{part}.attentions.{j}", self.groups)
            if i < last and self.up_resampling[i] == "block":
                h = block(h, width, f"{part}.upsamplers.0", resample="up")
            elif i < last:
                h = _layers.upsample(h, 2 * h.shape[1], 2 * h.shape[2])
                h = _layers.conv(width, None, f"{part}.upsamplers.0.conv")(h)
        return h


OPTIONS = tuple(
    field.name for field in dataclasses.fields(UNet2D) if field.name not in ("parent", "name")
)


def unet2d(**options: Any) -> Model:
    """Build the network.

    Args:
      **options: those of OPTIONS: in_channels; out_channels, twice as many for a learned variance;
        widths, of each level; num_blocks of each level; down_attention and up_attention, whether
        the levels attend, on the way down and then up; down_resampling and up_resampling, "conv" or
        "block" for each; num_heads or head_size, one head if neither; groups of the normalisations,
        middle_groups of the middle's attention, None for none, and their eps; film, whether the
        embedding scales too; middle, middle_attention and middle_divide, a divisor of the middle's
        sums; padding of a stride; frequency_shift, cos_first and embedding_size of the time;
        num_classes; centred, whether x in [0, 1] becomes 2 x - 1; dropout; total, T, and
        step_scale: the network is told step_scale (T t - 1).
    Returns:
      The model, without a null class. Its event_shape is (H, W, C), of sides that the levels halve
      evenly.
    Raises:
      ValueError: options that do not fit together.
      TypeError: a size is not an int.
    Source: Ho et al. 2020, arXiv:2006.11239; Dhariwal & Nichol 2021, arXiv:2105.05233.
    """
    module = UNet2D(**options)
    _check(module)
    return shared(module)


def _check(net: UNet2D) -> None:
    for name in ("in_channels", "out_channels", "num_blocks", "groups", "total"):
        _checks.positive_int(name, getattr(net, name))
    for name in ("num_heads", "head_size", "middle_groups", "embedding_size", "num_classes"):
        if getattr(net, name) is not None:
            _checks.positive_int(name, getattr(net, name))
    if not net.widths:
        raise ValueError("widths: expected at least one level, got none")
    attends = any((*net.down_attention, *net.up_attention, net.middle_attention))
    heads = (net.head_size or net.num_heads or 1) if attends else 1
    for width in net.widths:
        _checks.positive_int("widths", width)
        for name, divisor in (("groups", net.groups), ("heads", heads)):
            if width % divisor:
                raise ValueError(
                    f"widths: expected multiples of the {name}, {divisor}, got {width}"
                )
    if net.widths[0] % 2:
        raise ValueError(f"widths: expected an even first one, got {net.widths[0]}")
    for name in ("down_attention", "up_attention", "down_resampling", "up_resampling"):
        if len(getattr(net, name)) != len(net.widths):
            raise ValueError(
                f"{name}: expected {len(net.widths)} entries, one a level, "
                f"got {len(getattr(net, name))}"
            )
    for kind in (*net.down_resampling, *net.up_resampling):
        _checks.choice("down_resampling, up_resampling", kind, RESAMPLING)
    if net.out_channels not in (net.in_channels, 2 * net.in_channels):
        raise ValueError(
            f"out_channels: expected {net.in_channels}, or {2 * net.in_channels} with a learned "
            f"variance, got {net.out_channels}"
        )
    if net.padding not in (0, 1):
        raise ValueError(f"padding: expected 0 or 1, got {net.padding}")
    _checks.values("eps", net.eps, "a positive number", lambda v: v > 0)
    _checks.values("middle_divide", net.middle_divide, "a positive number", lambda v: v > 0)
    half = net.widths[0] // 2
    _checks.values(
        "frequency_shift", net.frequency_shift, f"a number below {half}", lambda v: v < half
    )
    check_dropout(net.dropout)
