"""The training state and one step: pure functions, one body per device, joined by a named axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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


def mesh_of(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of one named axis AXIS that a step is mapped over.

    Args:
      devices: all devices of all processes if None.
    Returns:
      jax.sharding.Mesh.
    """
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def map_step(
    step: Callable, devices: Sequence[jax.Device] | None = None, *, sharded: bool = False
) -> Callable:
    """Map a step over devices, of one process or of several; the state is donated.

    Args:
      step: what `make_step` returns; where it is not sharded, any (state, batch) -> (state,
        metrics) over the named axis AXIS whose results are the same on every device.
      devices: all devices of all processes if None.
      sharded: whether the optimiser's state and the average are divided over the devices, as
        `replicate` divides them. XLA's partitioner then updates each part on its own device.
    Returns:
      A function of a state and a batch, as `replicate` and `shard` make them. It returns the next
      state and the metrics, both on every device.
    Source: Rajbhandari et al. 2020, arXiv:1910.02054, Section 5.1, for the divided state.
    """
    mesh = mesh_of(devices)

    def over_devices(body: Callable) -> Callable:
        # With check_vma=True gradients would be as many times too large as there are devices.
        return jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )

    def mapped(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        if not sharded:
            return over_devices(step)(state, batch)
        # The gradient needs the parameters only, which are whole on every device.
        given = state._replace(opt_state=None, ema_params=None)
        after, metrics = step.update(state, *over_devices(step.gradients)(given, batch))
        return jax.lax.with_sharding_constraint(after, _shardings(after, mesh, sharded)), metrics

    return jax.jit(mapped, donate_argnums=0)


def _shardings(state: Any, mesh: Mesh, sharded: bool) -> Any:
    """Where each leaf of a state lies: on every device, or divided along its longest axis."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def divided(leaf: Any) -> NamedSharding:
        sizes = [size if size % mesh.size == 0 else 0 for size in leaf.shape]
        if not any(sizes):
            return everywhere
        axis = sizes.index(max(sizes))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    places = jax.tree.map(lambda leaf: everywhere, state)
    if sharded:
        places = places._replace(
            opt_state=jax.tree.map(divided, state.opt_state),
            ema_params=jax.tree.map(divided, state.ema_params),
        )
    return places


def replicate(
    tree: Any, devices: Sequence[jax.Device] | None = None, *, sharded: bool = False
) -> Any:
    """Give each device a copy; every process has to have the same values.

    Args:
      tree: a pytree of arrays; a training state where it is sharded. It keeps its own copy, so the
        result may be donated.
      devices: where the copies go; all devices of all processes if None.
      sharded: whether the optimiser's state and the average are divided over the devices.
    Returns:
      The pytree with the same shapes, on all devices, as the mapped step takes it.
    """
    mesh = mesh_of(devices)

    def put(leaf: Any, place: NamedSharding) -> jax.Array:
        index = place.addressable_devices_indices_map(leaf.shape)
        parts = [jax.device_put(leaf[where], device) for device, where in index.items()]
        return jax.make_array_from_single_device_arrays(leaf.shape, place, parts)

    return jax.tree.map(put, _copy(tree), _shardings(tree, mesh, sharded))


def unreplicate(tree: Any) -> Any:
    """Take one copy off the devices, to this process's first one.

    Every process has to call it where leaves are divided over the devices of several processes.

    Numerics: a shard is read on its device. An operation on an array that lies on several devices
    is a program on all of them, one for each leaf. Hundreds of such programs behind an update fill
    a device's queue, and the devices then wait for each other for ever.

    Args:
      tree: a pytree of arrays on several devices. It may be donated afterwards.
    Returns:
      The pytree on one device alone.
    """
    return _copy(jax.tree.map(_whole, tree))


def _whole(leaf: jax.Array) -> jax.Array:
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    if leaf.is_fully_addressable:  # the parts are put together on the host
        return jnp.asarray(np.asarray(leaf))
    return jnp.asarray(multihost_utils.process_allgather(leaf, tiled=True))


@jax.jit
def _copy(tree: Any) -> Any:
    """Copy the leaves: donating an array also deletes views of it."""
    return jax.tree.map(jnp.copy, tree)


def shard(batch: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Put the rows of a batch on devices, in order; each process gives its own rows.

    Args:
      batch: a pytree of arrays with the rows of this process in front.
      devices: all devices of all processes if None.
    Returns:
      The pytree of the whole batch, its rows divided over the devices.
    Raises:
      ValueError: the number of rows is not a multiple of this process's devices.
    """
    place = NamedSharding(mesh_of(devices), PartitionSpec(AXIS))
    split(batch, len(place.addressable_devices))  # refuses an uneven batch
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(place, np.asarray(leaf)), batch
    )


def split(batch: Any, num: int) -> Any:
    """Split the rows of a batch in order: [B, ...] to [num, b, ...].

    Args:
      batch: a pytree of arrays with the rows in front.
      num: number of parts.
    Returns:
      The pytree with a leading axis of parts.
    Raises:
      ValueError: the number of rows is not a multiple of num.
    """
    rows = max((len(leaf) for leaf in jax.tree.leaves(batch)), default=0)
    if rows % num:
        raise ValueError(f"batch: expected a multiple of {num} devices, got {rows} rows")
    return jax.tree.map(lambda leaf: leaf.reshape(num, rows // num, *leaf.shape[1:]), batch)
