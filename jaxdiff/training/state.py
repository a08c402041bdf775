"""The training state and one step: pure functions, one body per device, joined by a named axis."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import _checks, _rows

AXIS = "devices"


class TrainState(NamedTuple):
    """Everything a run needs to go on: saved and restored whole.

    Fields:
      step: number of updates done, [], int32.
      params: the network's parameters.
      ema_params: their exponential moving average, used for samples.
      opt_state: the optimiser's state.
      key: typed key of the run, [], never consumed: step n uses fold_in(key, n).
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    key: jax.Array


class RememberingState(NamedTuple):
    """The state of a run whose loss uses a memory of earlier steps.

    Fields:
      step, params, ema_params, opt_state, key: as in TrainState.
      memory: what the loss remembers, the same on every device.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    key: jax.Array
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
      TypeError: key is no typed key.
    """
    _checks.one_key("key", key)
    state = TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params), key)
    return state if memory is None else RememberingState(*state, memory)


def make_step(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.9995,
    remember: Callable | None = None,
) -> Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]:
    """Return one device's part of a training step, to be mapped over the named axis AXIS.

        g = mean over devices and rows of grad loss;   params += optimizer(g)
        ema += (1 - d_n) (params - ema),   d_n = min(ema_decay, (1 + n) / (10 + n))

    The warm-up of d_n keeps the average from remembering the random initialisation.

    Args:
      loss: (params, rows: Rows, batch) -> [b] losses of this device's rows; with remember
        (params, rows: Rows, batch, memory) -> ([b], news), a tuple of arrays with the device's rows
        in front.
      optimizer: the optax transformation.
      ema_decay: final decay of the average, in [0, 1).
      remember: None, or (memory, *news of the whole batch) -> memory, such as
        `losses.record_terms`.
    Returns:
      step(state, batch) -> (state, metrics); metrics are the scalars loss and grad_norm, equal on
      every device. Each leaf of batch has the device's rows in front.
    Raises:
      ValueError: ema_decay outside [0, 1).
    Numerics: a batch gives the same gradient on any number of devices, up to the order of a sum.
    Source: Polyak & Juditsky 1992 for the average; its warm-up is TensorFlow's
    ExponentialMovingAverage.
    """
    _checks.values("ema_decay", ema_decay, "a decay in [0, 1)", lambda d: (d >= 0) & (d < 1))

    def step(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        rows = _rows_here(jax.random.fold_in(state.key, state.step), len(jax.tree.leaves(batch)[0]))

        def mean_loss(params: Any) -> tuple[jax.Array, Any]:
            given = () if remember is None else (state.memory,)
            out = loss(params, rows, batch, *given)
            value, news = (out, ()) if remember is None else out
            return jnp.mean(value), news

        (value, news), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        value, grads = jax.lax.pmean((value, grads), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        n = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + n) / (10 + n))
        ema = optax.incremental_update(params, state.ema_params, 1 - decay)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)}
        state = state._replace(
            step=state.step + 1, params=params, ema_params=ema, opt_state=opt_state
        )
        if remember is not None:
            state = state._replace(
                memory=remember(state.memory, *jax.lax.all_gather(news, AXIS, tiled=True))
            )
        return state, metrics

    return step


def _rows_here(key: jax.Array, num_rows: int) -> Rows:
    first = jax.lax.axis_index(AXIS) * num_rows
    return Rows(
        key, _rows.keys(key, num_rows, first=first), first, num_rows * jax.lax.axis_size(AXIS)
    )


def pmap_step(step: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
    """Map a step over devices; the state is donated.

    The state and the metrics are the same on every device, so they do not have an axis of devices.

    Args:
      step: what `make_step` returns.
      devices: all local devices if None.
    Returns:
      A function of a state and a batch [num_devices, b, ...], as `replicate` and `shard` make them.
      It returns the next state and the metrics, both on every device.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Give each device a copy.

    Args:
      tree: a pytree of arrays. It keeps its own copy, so the result may be donated.
      devices: where the copies go.
    Returns:
      The pytree with the same shapes, on all devices, as the mapped step takes it.
    """
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.device_put(
        _copy(tree), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )


def unreplicate(tree: Any) -> Any:
    """Take the first device's copy.

    Numerics: the shard is read on its device. An operation on an array that lies on several devices
    is a program on all of them, one for each leaf. Hundreds of such programs behind an update fill
    a device's queue, and the devices then wait for each other for ever.

    Args:
      tree: a pytree of arrays on several devices, the same on each. It may be donated afterwards.
    Returns:
      The pytree on the first device alone.
    """
    return _copy(jax.tree.map(lambda leaf: leaf.addressable_data(0), tree))


@jax.jit
def _copy(tree: Any) -> Any:
    """Copy the leaves: donating an array also deletes views of it."""
    return jax.tree.map(jnp.copy, tree)


def shard(batch: Any, num_devices: int) -> Any:
    """Split the rows of a batch over devices, in order: [B, ...] to [num_devices, b, ...].

    Args:
      batch: a pytree of arrays with the rows in front.
      num_devices: number of parts.
    Returns:
      The pytree with a leading axis of devices.
    Raises:
      ValueError: the number of rows is no multiple of num_devices.
    """
    rows = max((len(leaf) for leaf in jax.tree.leaves(batch)), default=0)
    if rows % num_devices:
        raise ValueError(f"batch: expected a multiple of {num_devices} devices, got {rows} rows")
    return jax.tree.map(
        lambda leaf: leaf.reshape(num_devices, rows // num_devices, *leaf.shape[1:]), batch
    )
