"""A U-Net for images, [H, W, C] of any size and number of channels."""

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff import _checks
from jaxdiff.models import layers
from jaxdiff.models.model import Model, model


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

    event_ndim = 3

    def event_size(self, params: Any) -> int:
        """The number of image channels that the parameters were made for."""
        return params["stem"]["kernel"].shape[2] // self.patch**2

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, label: jax.Array | None, key: jax.Array | None) -> jax.Array:
        dtype = jnp.dtype(self.dtype)
        height, width, channels = x.shape[1:]
        outputs = channels * (2 if self.learned_variance else 1)
        embedding = layers.Embedding(4 * self.channels, self.time_embedding, self.num_classes, dtype)(t, label)
        h = layers.to_patches(x.astype(dtype), self.patch)
        h = nn.Conv(self.channels, (3, 3), dtype=dtype, name="stem")(h)
        h = self.body(h, embedding, key)
        h = layers.Norm(self.norm_groups, name="norm_out")(h)
        zeros = nn.initializers.zeros
        h = nn.Conv(outputs * self.patch**2, (3, 3), dtype=dtype, kernel_init=zeros, name="head")(h)
        return layers.from_patches(h, self.patch, height, width)

    def body(self, h: jax.Array, embedding: jax.Array, key: jax.Array | None) -> jax.Array:
        """Down, middle and up, at the resolution of h and back."""
        dtype = jnp.dtype(self.dtype)
        indices = itertools.count()

        def block(h: jax.Array, attend: bool) -> jax.Array:
            h = layers.ResBlock(self.norm_groups, self.dropout, next(indices), dtype)(h, embedding, key)
            return layers.Attention(self.num_heads, self.norm_groups, dtype)(h) if attend else h

        widths = [self.channels * m for m in self.multipliers]
        skips = []
        for level, width in enumerate(widths):
            if level > 0:
                h = nn.Conv(width, (3, 3), 2, dtype=dtype, name=f"down_{level}")(h)
            for _ in range(self.num_blocks):
                h = block(h, h.shape[1] in self.attention)
                skips.append(h)
        h = block(block(h, True), False)
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                h = layers.upsample(h, *skips[-1].shape[1:3])
                h = nn.Conv(width, (3, 3), dtype=dtype, name=f"up_{level}")(h)
            for _ in range(self.num_blocks):
                h = block(h + skips.pop(), h.shape[1] in self.attention)
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
) -> Model:
    """Build a U-Net for images of any size and number of channels.

    Residual blocks with group normalisation, modulated by time and class (FiLM), at one resolution after the other:
    ceil(side / 2) on the way down, cropped to the size of the skip connection on the way up, so odd sides work.

    Args:
      channels: width of the first level.
      multipliers: width of each level, in units of channels.
      num_blocks: residual blocks a level on the way down; one more on the way up.
      attention: heights of the feature maps with self-attention; the middle always has it.
      num_heads: attention heads.
      dropout: rate in the residual blocks; drawn only where `Model.apply` gets a dropout_key.
      num_classes: None for an unconditional network; otherwise labels are 0 .. num_classes, the last one the null
        class of classifier-free guidance.
      patch: side of the squares of pixels that become one pixel of the first level; 2 trades detail for speed.
      time_embedding: "sinusoidal" or "fourier".
      learned_variance: return 2C channels, the second half for the reverse variance.
      dtype: "float32", "bfloat16" or "float64", of the computation; parameters are float32.
      norm_groups: groups of each group normalisation.
    Returns:
      The model. Its event_shape is (H, W, C).
    Raises:
      ValueError: an option has a value that is not offered, or widths are not divisible by norm_groups and num_heads.
      TypeError: a size is not an int.
    Source: Ho et al. 2020, arXiv:2006.11239; Dhariwal and Nichol 2021, arXiv:2105.05233.
    """
    widths = [channels * m for m in multipliers]
    sizes = {"channels": channels, "num_blocks": num_blocks, "num_heads": num_heads, "patch": patch}
    for name, value in (sizes | {"norm_groups": norm_groups}).items():
        _checks.positive_int(name, value)
    return model(
        UNet(
            channels,
            tuple(multipliers),
            num_blocks,
            tuple(attention),
            num_heads,
            dropout,
            num_classes,
            patch,
            time_embedding,
            learned_variance,
            dtype,
            norm_groups,
        )
    )
