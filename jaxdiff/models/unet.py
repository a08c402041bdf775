"""A U-Net for images, [H, W, C] of any size and number of channels."""

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks
from jaxdiff.models import _layers
from jaxdiff.models._model import (
    DTYPES,
    TIME_EMBEDDINGS,
    Model,
    check_blocks,
    check_dropout,
    shared,
)

MOST_FOURIER = 23  # float32 has 24 bits: it cannot show a finer wave


class UNet(nn.Module):
    """The network of `unet`: x [B, H, W, C], t [B], label [B] or None, key [B] or None."""

    channels: int
    multipliers: tuple[int, ...]
    num_blocks: int
    attention: tuple[int, ...]
    num_heads: int
    dropout: float
    num_classes: int | None
    patch: int
    time_embedding: str
    learned_variance: bool
    dtype: str
    norm_groups: int
    fourier: tuple[int, ...]
    num_levels: int | None
    level_features: int
    remat: bool = False

    event_ndim = 3
    null_class = True

    def event_size(self, params: Any) -> int:
        """The number of image channels that the parameters were made for."""
        return params["stem"]["kernel"].shape[2] // self.patch**2 // (1 + 2 * len(self.fourier))

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, label: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        dtype = jnp.dtype(self.dtype)
        height, width, channels = x.shape[1:]
        outputs = channels * (
            2 if self.learned_variance else self.level_features if self.num_levels else 1
        )
        embedding = _layers.Embedding(
            4 * self.channels, self.time_embedding, self.num_classes, dtype
        )(t, label)
        h = _layers.to_patches(_layers.fourier(x, self.fourier).astype(dtype), self.patch)
        h = _layers.conv(self.channels, dtype, "stem")(h)
        h = self.body(h, embedding, key)
        h = nn.silu(_layers.Norm(self.norm_groups, name="norm_out")(h)).astype(dtype)
        h = _layers.conv(outputs * self.patch**2, dtype, "head", init=_layers.zeros)(h)
        h = _layers.from_patches(h, self.patch, height, width)
        if self.num_levels is None:
            return h
        h = h.reshape(*x.shape, self.level_features)
        # Eight bits are too few for a logarithm: 20 would become 20 +- 0.06.
        return _layers.dense(self.num_levels, jnp.promote_types(dtype, jnp.float32), "levels")(h)

    def body(self, h: jax.Array, embedding: jax.Array, key: jax.Array | None) -> jax.Array:
        """Down, middle and up; the width changes where the resolution does."""
        dtype = jnp.dtype(self.dtype)
        indices, attentions = itertools.count(), itertools.count()
        residual, attention = _layers.ResBlock, _layers.Attention
        if self.remat:
            residual, attention = nn.remat(residual), nn.remat(attention)

        def block(h: jax.Array, attend: bool) -> jax.Array:
            n = next(indices)
            # The names are those that Flax gives without remat: the parameters are the same.
            h = residual(self.norm_groups, self.dropout, n, dtype, name=f"ResBlock_{n}")(
                h, embedding, key
            )
            if not attend:
                return h
            name = f"Attention_{next(attentions)}"
            return attention(self.num_heads, self.norm_groups, dtype, name=name)(h)

        widths = [self.channels * m for m in self.multipliers]
        skips = []
        for level, width in enumerate(widths):
            if level > 0:
                h = _layers.conv(width, dtype, f"down_{level}", stride=2)(h)
            for _ in range(self.num_blocks):
                h = block(h, h.shape[1] in self.attention)
                skips.append(h)
        h = block(block(h, True), False)
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                h = _layers.upsample(h, *skips[-1].shape[1:3])
                h = _layers.conv(width, dtype, f"up_{level}")(h)
            for _ in range(self.num_blocks):
                h = block((h + skips.pop()) * _layers.HALF, h.shape[1] in self.attention)
        return h


def unet(
    *,
    channels: int = 32,
    multipliers: Sequence[int] = (1, 2, 2),
    num_blocks: int = 2,
    attention: Sequence[int] = (8, 7),
    num_heads: int = 4,
    dropout: float = 0.0,
    num_classes: int | None = None,
    patch: int = 1,
    time_embedding: str = "sinusoidal",
    learned_variance: bool = False,
    dtype: str = "float32",
    norm_groups: int = 8,
    fourier: Sequence[int] = (),
    num_levels: int | None = None,
    level_features: int = 32,
    remat: bool = False,
) -> Model:
    """Build a U-Net for images of any size and number of channels.

        up:     h <- block((h + skip) / sqrt(2))
        block:  h <- h + conv(silu(FiLM(norm(conv(silu(norm(h)))))))

    FiLM scales and shifts by time and class. Sides become ceil(side / 2) on the way down and are
    cropped to the skip connection's on the way up, so odd sides work. Skip connections are added:
    nothing is concatenated or projected.

    Args:
      channels: width of the first level.
      multipliers: width of each level, in units of channels.
      num_blocks: residual blocks a level, on the way down and again on the way up.
      attention: heights of the feature maps with self-attention; the middle always has it.
      num_heads: attention heads.
      dropout: rate in the residual blocks; drawn only where `Model.apply` gets a dropout_key.
      num_classes: None for an unconditional network; otherwise labels are 0 .. num_classes, the
        last one the null class of classifier-free guidance.
      patch: side of the squares of pixels that become one pixel of the first level; 2 trades detail
        for speed.
      time_embedding: "sinusoidal" or "fourier".
      learned_variance: return 2C channels, the second half for the reverse variance.
      dtype: "float32", "bfloat16" or "float64", of the computation; parameters are float32.
      norm_groups: groups of each group normalisation.
      fourier: exponents n of input features sin(2^n pi x), cos(2^n pi x), which show small
        differences; 7 sees single levels of 8 bits in [-1, 1]; 0 to 23.
      num_levels: None, or the number of levels to return logits of, [B, H, W, C, num_levels], for
        `make_categorical_denoiser`.
      level_features: numbers a component from which its logits are made, by one linear map.
      remat: keep only what goes into each block, and compute the block again for its gradient: less
        memory in training, about a third more time.
    Returns:
      The model. Its event_shape is (H, W, C).
    Raises:
      ValueError: an option has a value that is not offered, or a width is not divisible by
        norm_groups and num_heads.
      TypeError: a size is not an int, or dropout is no number.
    Numerics: memory grows with the number of pixels, attention's too: of more than 256 pixels the
      queries take turns. Its time grows with their square, in the middle of a network of few levels
      most of all.
    Source: Ho et al. 2020, arXiv:2006.11239; FiLM from Dhariwal and Nichol 2021, arXiv:2105.05233;
      added skip connections from Hoogeboom et al. 2023, arXiv:2301.11093; Fourier features from
      Kingma et al. 2021, arXiv:2107.00630, Appendix C.
    """
    module = UNet(
        channels=channels,
        multipliers=tuple(multipliers),
        num_blocks=num_blocks,
        attention=tuple(attention),
        num_heads=num_heads,
        dropout=dropout,
        num_classes=num_classes,
        patch=patch,
        time_embedding=time_embedding,
        learned_variance=learned_variance,
        dtype=dtype,
        norm_groups=norm_groups,
        fourier=tuple(fourier),
        num_levels=num_levels,
        level_features=level_features,
        remat=remat,
    )
    _check(module)
    return shared(module)


def _check(unet: UNet) -> None:
    for name in ("channels", "num_blocks", "num_heads", "patch", "norm_groups", "level_features"):
        _checks.positive_int(name, getattr(unet, name))
    for name in ("multipliers", "attention"):
        for value in getattr(unet, name):
            _checks.positive_int(name, value)
    for name in ("num_classes", "num_levels"):
        if getattr(unet, name) is not None:
            _checks.positive_int(name, getattr(unet, name))
    if unet.num_levels is not None and unet.learned_variance:
        raise ValueError(
            "learned_variance: expected False with num_levels, whose logits give a variance already"
        )
    if not unet.multipliers:
        raise ValueError("multipliers: expected at least one level, got none")
    check_blocks("num_blocks, multipliers", unet.num_blocks * len(unet.multipliers))
    check_dropout(unet.dropout)
    for exponent in unet.fourier:
        if isinstance(exponent, bool) or not isinstance(exponent, int | np.integer):
            raise TypeError(f"fourier: expected exponents, integers, got {exponent!r}")
        if not 0 <= exponent <= MOST_FOURIER:
            raise ValueError(f"fourier: expected exponents 0 to {MOST_FOURIER}, got {exponent}")
    divisors = {"two": 2, "norm_groups": unet.norm_groups, "num_heads": unet.num_heads}
    for name, divisor in divisors.items():
        if unet.channels % divisor:
            raise ValueError(
                f"channels: expected a multiple of {name}, {divisor}, got {unet.channels}"
            )
    _checks.choice("time_embedding", unet.time_embedding, TIME_EMBEDDINGS)
    _checks.choice("dtype", unet.dtype, DTYPES)
