"""A small network for vectors, [d]."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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


class MLP(nn.Module):
    """The network of `mlp`: x [B, d], t [B], label [B] or None, key [B] or None."""

    width: int
    depth: int
    dropout: float
    num_classes: int | None
    time_embedding: str
    learned_variance: bool
    dtype: str

    event_ndim = 1
    null_class = True

    def event_size(self, params: Any) -> int:
        """The size of the vectors that the parameters were made for."""
        return params["stem"]["kernel"].shape[0]

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, label: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        dtype = jnp.dtype(self.dtype)
        outputs = x.shape[-1] * (2 if self.learned_variance else 1)
        embedding = _layers.Embedding(self.width, self.time_embedding, self.num_classes, dtype)(
            t, label
        )
        h = _layers.dense(self.width, dtype, "stem")(x.astype(dtype))
        for layer in range(self.depth):
            shift = _layers.dense(self.width, dtype, f"film_{layer}")(embedding)
            update = _layers.dense(self.width, dtype, f"in_{layer}")(nn.silu(h))
            inner = _layers.dropout(nn.silu(update + shift), self.dropout, key, layer)
            h = h + _layers.dense(self.width, dtype, f"out_{layer}")(inner)
        return _layers.dense(outputs, dtype, "head", init=_layers.zeros)(nn.silu(h))


def mlp(
    *,
    width: int = 128,
    depth: int = 4,
    dropout: float = 0.0,
    num_classes: int | None = None,
    time_embedding: str = "sinusoidal",
    learned_variance: bool = False,
    dtype: str = "float32",
) -> Model:
    """Build a residual multilayer perceptron for vectors, each block shifted by time and class.

        h <- h + W_out silu(W_in silu(h) + W_time embedding(t, label))

    Args:
      width: size of the hidden vectors.
      depth: residual blocks.
      dropout: rate in the residual blocks; drawn only where `Model.apply` gets a dropout_key.
      num_classes: None for an unconditional network; otherwise labels are 0 .. num_classes, the
        last one the null class of classifier-free guidance.
      time_embedding: "sinusoidal" or "fourier".
      learned_variance: return 2d entries, the second half for the reverse variance.
      dtype: "float32", "bfloat16" or "float64", of the computation; parameters are float32.
    Returns:
      The model. Its event_shape is (d,).
    Raises:
      ValueError: an option has a value that is not offered, or the width is no multiple of 8.
      TypeError: a size is not an int, or dropout is no number.
    Source: He et al. 2016, arXiv:1512.03385, for the residual form.
    """
    for name, value in {"width": width, "depth": depth}.items():
        _checks.positive_int(name, value)
    check_blocks("depth", depth)
    if num_classes is not None:
        _checks.positive_int("num_classes", num_classes)
    if width % 8:
        raise ValueError(f"width: expected a multiple of 8 (the time features' pairs), got {width}")
    check_dropout(dropout)
    _checks.choice("time_embedding", time_embedding, TIME_EMBEDDINGS)
    _checks.choice("dtype", dtype, DTYPES)
    return shared(MLP(width, depth, dropout, num_classes, time_embedding, learned_variance, dtype))
