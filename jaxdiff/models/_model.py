"""A network as two pure functions, `init` and `apply`, whatever its network library."""

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks, _rows

Params = Any  # A nested dict of float32 arrays.

DTYPES = ("float32", "bfloat16", "float64")
TIME_EMBEDDINGS = ("sinusoidal", "fourier")


@dataclass(frozen=True)
class Model:
    """A network without its parameters: static, and equal to any other of the same configuration.

    The prediction is whatever the loss trained it to be (eps, x_0, v, ...). Rows of a batch never
    see each other.
    """

    module: nn.Module

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None if unconditional.

        The label num_classes is the null class, of a network that has one (module.null_class).
        """
        return self.module.num_classes

    def init(self, key: jax.Array, event_shape: tuple[int, ...]) -> Params:
        """Draw the parameters; they depend on the key and on the number of channels of an event.

        Args:
          key: typed PRNG key, consumed.
          event_shape: shape of one example without the batch axis, (H, W, C) or (d,).
        Returns:
          A nested dict of float32 arrays. The last layer is zero, so that the first prediction is
          zero.
        Raises:
          TypeError: key is not a typed key, or a side is not an int.
          ValueError: key is several keys, event_shape has the wrong length, or its channels come
            first.
        Numerics: weights are normal with variance 1 / fan_in; the last layer of every residual
        branch is zero too.
        """
        _checks.one_key("key", key)
        if not isinstance(event_shape, tuple | list):
            raise TypeError(f"event_shape: expected a tuple of sides, got {event_shape!r}")
        event_shape = tuple(event_shape)
        if len(event_shape) != self.module.event_ndim:
            raise ValueError(
                f"event_shape: expected {self.module.event_ndim} sides, got {event_shape}"
            )
        for side in event_shape:
            _checks.positive_int("event_shape", side)
        _checks.channels_last("event_shape", event_shape, "(H, W, C)")
        return _init(self.module, key, event_shape)

    def apply(
        self,
        params: Params,
        x: jax.Array,
        t: Any,
        label: Any = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Evaluate the network.

        Args:
          params: what `init` returned, or a tree of the same structure.
          x: noisy state, [B, H, W, C] or [B, d], floating.
          t: time, [B] or [], in [0, 1].
          label: class of each row, [B], or of all rows, [], integer, 0 .. num_classes; num_classes
            is the null class, and so is None.
          dropout_key: typed key, or one a row, [B]; None (the default) switches dropout off.
        Returns:
          The prediction, [B, H, W, C] or [B, d], dtype of x, at least float32. With
          learned_variance twice the channels: the prediction, then the interpolation fraction
          between the bounds of the reverse log-variance.
        Raises:
          ValueError: a shape does not fit, a label is outside 0 .. num_classes, or one was given to
            a network without classes.
          TypeError: x or t is not floating, label is not integer, or dropout_key is not typed.
        Numerics: a traced label outside 0 .. num_classes makes its row NaN. The layers run in the
          model's dtype whatever the dtype of x is, and the result is cast: in float64 programs ask
          for dtype="float64" to get more than float32 digits. Normalisation, softmax and time
          features are at least float32. Any composition of forward and reverse mode differentiates
          it.
        """
        self._check(params, x, t, label)
        batch = x.shape[0]
        row_keys = (
            None if dropout_key is None else _rows.keys(dropout_key, batch, name="dropout_key")
        )
        t = jnp.broadcast_to(jnp.asarray(t, _rows.state_dtype(x.dtype)), (batch,))
        label = (
            None if label is None else jnp.broadcast_to(jnp.asarray(label).astype(int), (batch,))
        )
        out: Any = self.module.apply({"params": params}, x, t, label, row_keys)
        return out.astype(_rows.state_dtype(x.dtype))

    def _check(self, params: Params, x: Any, t: Any, label: Any) -> None:
        _checks.floating("x", x)
        if x.ndim != self.module.event_ndim + 1:
            alone = " (x[None] is a batch of one)" if x.ndim == self.module.event_ndim else ""
            raise ValueError(
                f"x: expected {self.module.event_ndim + 1} axes, batch first, "
                f"got shape {x.shape}{alone}"
            )
        try:
            size = self.module.event_size(params)
        except (KeyError, TypeError, AttributeError, IndexError):
            raise ValueError(
                f"params: expected what init returned, got {type(params).__name__}"
            ) from None
        if x.shape[-1] != size:
            hint = _checks.CHANNELS_LAST if x.ndim == 4 and x.shape[1] == size else ""
            raise ValueError(
                f"x: expected a last axis of {size}, as params were made for, "
                f"got shape {x.shape}{hint}"
            )
        _checks.time("t", t, x)
        self.check_label(label)
        if label is not None and jnp.shape(label) not in ((), x.shape[:1]):
            raise ValueError(f"label: expected shape () or {x.shape[:1]}, got {jnp.shape(label)}")

    def check_label(self, label: Any) -> None:
        """Require a label that the network knows, before a denoiser or a compiled program hides it.

        Args:
          label: None, or classes, [] or [B], integer, 0 .. num_classes.
        Raises:
          ValueError: the network has no classes, or a label that is known lies outside; None, for a
            network without a null class.
          TypeError: the dtype is not integer.
        """
        if label is None:
            if self.num_classes is not None and not self.module.null_class:
                raise ValueError(
                    f"label: expected classes 0 to {self.num_classes - 1}, got None: the network "
                    "has no null class, which stands for all of them"
                )
            return
        if self.num_classes is None:
            raise ValueError("label: expected None, because the model has num_classes=None")
        _checks.index("label", label, self.num_classes + self.module.null_class)
        if jnp.ndim(label) > 1:
            raise ValueError(f"label: expected shape () or (B,), got {jnp.shape(label)}")


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init(module: nn.Module, key: jax.Array, event_shape: tuple[int, ...]) -> Params:
    """Multiply one draw of normals with the standard deviations that the layers have initialised.

    One draw, because compiling one for each parameter takes seconds; jitted, because linen runs the
    network to find its parameters. What has a single axis (scales and shifts) is kept as it is.
    """
    example = jnp.zeros((1, *event_shape), jnp.float32)
    tree: Any = module.init(key, example, jnp.zeros(1, jnp.float32), None, None)["params"]
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])
    noise = jnp.split(jax.random.normal(key, (int(ends[-1]),), jnp.float32), ends[:-1])
    scaled = [
        a * z.reshape(a.shape) if a.ndim > 1 else a for a, z in zip(leaves, noise, strict=True)
    ]
    return jax.tree.unflatten(structure, scaled)


# A network is traced block by block: far more of them would never end. Published ones have some
# hundred.
MOST_BLOCKS = 1024


def check_blocks(name: str, num: int) -> None:
    """Require a number of blocks that can be traced.

    Args:
      name: of the option.
      num: blocks of the whole network.
    Raises:
      ValueError: there are too many.
    """
    if num > MOST_BLOCKS:
        raise ValueError(f"{name}: expected at most {MOST_BLOCKS} blocks in all, got {num}")


def check_dropout(rate: Any) -> None:
    """Require a share of activations to drop."""
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"dropout: expected a rate in [0, 1), got {rate!r}")
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: expected a rate in [0, 1), got {rate}")


@functools.cache
def shared(module: nn.Module) -> Model:
    """One object for each configuration.

    Bound methods compare by the identity of their owner: so `Partial(model.apply, params)` of a
    model built again, as in a notebook's cell run twice, hits the compilation caches.
    """
    return Model(module)
