"""The training state and one step: pure functions, one body a device, joined by a named axis."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff import _checks, _rows

# The name of the mapped axis over the devices.
AXIS = "devices"


class TrainState(NamedTuple):
    """Everything a run needs to go on: saved and restored whole.

    Fields:
      step: number of updates done, [], int32.
      params: the network's parameters.
      ema_params: their exponential moving average, used for samples.
      opt_state: the optimiser's state.
      key: typed key of the run, [], never consumed: step n uses fold_in(key, n).
      skipped: number of updates without effect, because their loss or gradient was not finite,
        [], int32.
      in_a_row: how many of them came last, one after the other, [], int32.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    key: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array


class RememberingState(NamedTuple):
    """The state of a run whose loss uses a memory of earlier steps.

    Fields:
      step, params, ema_params, opt_state, key, skipped, in_a_row: as in TrainState.
      memory: what the loss remembers, the same on every device.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    key: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array
    memory: Any


class Rows(NamedTuple):
    """Where the rows on this device stand in the whole batch, and their randomness.

    Fields:
      key: typed key of the step, [], the same on every device.
      keys: one key a row, [b], a function of (key, row's index in the whole batch).
      first: index of the first row in the whole batch, [].
      total: number of rows of the whole batch.
    """

    key: jax.Array
    keys: jax.Array
    first: jax.Array
    total: int


def init_state(
    key: jax.Array, params: Any, optimizer: optax.GradientTransformation, memory: Any = None
) -> Any:
    """Return the state before the first step.

    Args:
      key: typed key of the run, [].
      params: initial parameters.
      optimizer: the optax transformation.
      memory: of a loss that remembers, before its first step; else None.
    Returns:
      TrainState, or RememberingState with a memory, at step 0, with the average equal to the
      parameters.
    Raises:
      TypeError: key is not a typed key.
    """
    _checks.one_key("key", key)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, params, params, optimizer.init(params), key, zero, zero)
    return state if memory is None else RememberingState(*state, memory)


@dataclass(frozen=True)
class Step:
    """One training step: `gradients` is a device's part, `update` is the same on every device.

    `step(state, batch)` is both together, to be mapped over the named axis AXIS. Make it with
    `make_step`.
    """

    loss: Callable
    optimizer: optax.GradientTransformation
    ema_decay: float
    remember: Callable | None
    accumulate: int

    def gradients(self, state: Any, batch: Any) -> tuple[jax.Array, Any, Any]:
        """Return the mean loss, its gradient and the loss's news, over the rows of all devices.

        Args:
          state: TrainState or RememberingState.
          batch: this device's rows, a pytree.
        Returns:
          (loss [], gradients like the parameters, news of the whole batch), on every device the
          same.
        Raises:
          ValueError: the device's rows are not a multiple of `accumulate`.
        """
        key = jax.random.fold_in(state.key, state.step)
        num_rows = len(jax.tree.leaves(batch)[0])
        first, total = _place(num_rows)
        part, rest = divmod(num_rows, self.accumulate)
        if rest:
            raise ValueError(
                f"accumulate: expected a divisor of a device's {num_rows} rows, "
                f"got {self.accumulate}"
            )

        def mean_loss(params: Any, start: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
            here = Rows(key, _rows.keys(key, part, first=start), start, total)
            given = () if self.remember is None else (state.memory,)
            out = self.loss(params, here, rows, *given)
            value, news = (out, ()) if self.remember is None else out
            return jnp.mean(value), news

        def one(start: jax.Array, rows: Any) -> tuple[jax.Array, Any, Any]:
            (value, news), grads = jax.value_and_grad(mean_loss, has_aux=True)(
                state.params, start, rows
            )
            return value, grads, news

        if self.accumulate == 1:
            value, grads, news = one(first, batch)
        else:
            parts = jax.tree.map(
                lambda leaf: leaf.reshape(self.accumulate, part, *leaf.shape[1:]), batch
            )
            starts = first + part * jnp.arange(self.accumulate, dtype=first.dtype)
            value, grads, news = _mean_of_parts(one, starts, parts)
        value, grads = jax.lax.pmean((value, grads), AXIS)
        return value, grads, jax.lax.all_gather(news, AXIS, tiled=True)

    def update(
        self, state: Any, value: jax.Array, grads: Any, news: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Move the parameters, their average and the optimiser's state; or skip a bad gradient.

        Args:
          state: the state.
          value, grads, news: what `gradients` returns.
        Returns:
          (the next state, the metrics).
        """
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        n = state.step.astype(jnp.float32)
        decay = jnp.minimum(self.ema_decay, (1 + n) / (10 + n))
        moved = state._replace(
            params=params,
            ema_params=optax.incremental_update(params, state.ema_params, 1 - decay),
            opt_state=opt_state,
        )
        if self.remember is not None:
            moved = moved._replace(memory=self.remember(state.memory, *news))
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state)
        state = state._replace(
            step=state.step + 1,
            skipped=state.skipped + ~good,
            in_a_row=jnp.where(good, 0, state.in_a_row + 1),
        )
        return state, {
            "loss": value,
            "grad_norm": norm,
            "skipped": state.skipped,
            "in_a_row": state.in_a_row,
        }

    def __call__(self, state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        return self.update(state, *self.gradients(state, batch))


def make_step(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.9995,
    remember: Callable | None = None,
    accumulate: int = 1,
) -> Step:
    """Return one device's part of a training step, to be mapped over the named axis AXIS.

        g = mean over devices and rows of grad loss;   params += optimizer(g)
        ema += (1 - d_n) (params - ema),   d_n = min(ema_decay, (1 + n) / (10 + n))

    The warm-up of d_n keeps the average from remembering the random initialisation. A step whose
    loss or gradient is not finite changes nothing but the counts of the state.

    Args:
      loss: (params, rows: Rows, batch) -> [b] losses of this device's rows; with remember
        (params, rows: Rows, batch, memory) -> ([b], news), a tuple of arrays with the device's rows
        in front.
      optimizer: the optax transformation.
      ema_decay: final decay of the average, in [0, 1).
      remember: None, or (memory, *news of the whole batch) -> memory, such as
        `losses.record_terms`.
      accumulate: number of equal parts that a device's rows are taken in, one after the other. The
        memory is that of one part, and the gradient that of all rows.
    Returns:
      step(state, batch) -> (state, metrics); metrics are the scalars loss, grad_norm, and the
      state's skipped and in_a_row, equal on every device. Each leaf of batch has the device's rows
      in front.
    Raises:
      ValueError: ema_decay outside [0, 1), or accumulate below 1.
    Numerics: a batch gives the same gradient on any number of devices and in any number of parts,
    up to the order of a sum.
    Source: Polyak & Juditsky 1992 for the average; its warm-up is TensorFlow's
    ExponentialMovingAverage.
    """
    _checks.values("ema_decay", ema_decay, "a decay in [0, 1)", lambda d: (d >= 0) & (d < 1))
    _checks.positive_int("accumulate", accumulate)
    return Step(loss, optimizer, ema_decay, remember, accumulate)


def _place(num_rows: int) -> tuple[jax.Array, int]:
    """The number of this device's first row in the whole batch, and the rows of the whole batch."""
    return jax.lax.axis_index(AXIS) * num_rows, num_rows * jax.lax.axis_size(AXIS)


def _mean_of_parts(one: Callable, starts: jax.Array, parts: Any) -> tuple[jax.Array, Any, Any]:
    """Mean loss and gradient over parts of the rows, one part in memory at a time."""

    def body(total: Any, given: Any) -> tuple[Any, Any]:
        value, grads, news = one(*given)
        return jax.tree.map(jnp.add, total, (value, grads)), news

    shapes = jax.eval_shape(one, starts[0], jax.tree.map(lambda leaf: leaf[0], parts))[:2]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, news = jax.lax.scan(body, zeros, (starts, parts))
    value, grads = jax.tree.map(lambda leaf: leaf / len(starts), total)
    return value, grads, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), news)
