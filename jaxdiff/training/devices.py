"""A training step over devices: of one process or of several, with a whole or a divided state."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff import _checks
from jaxdiff.training.state import AXIS, Step


def mesh_of(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of one named axis AXIS that a step is mapped over.

    Args:
      devices: all devices of all processes if None.
    Returns:
      jax.sharding.Mesh.
    """
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def map_step(
    step: Callable,
    devices: Sequence[jax.Device] | None = None,
    *,
    sharded: bool = False,
    at_once: int = 1,
) -> Any:
    """Map a step over devices, of one process or of several; the state is donated.

    Args:
      step: what `make_step` returns; where it is not sharded, any (state, batch) -> (state,
        metrics) over the named axis AXIS whose results are the same on every device.
      devices: all devices of all processes if None.
      sharded: whether the optimiser's state and the average are divided over the devices, as
        `replicate` divides them. XLA's partitioner then updates each part on its own device.
      at_once: number of updates in one dispatch, one after the other. The host then works once for
        all of them. This pays where an update takes less time than its dispatch. It does not for
        convolutions on a CPU, which are much slower inside a loop.
    Returns:
      A compiled function of a state and a batch, as `replicate` and `shard` make them. It returns
      the next state and the metrics, both on every device. Where at_once is above 1, it takes as
      many batches, stacked, and each metric is stacked too: [at_once].
    Raises:
      TypeError: sharded, and step is not of `make_step`.
      ValueError: at_once is below 1.
    Numerics: updates in one dispatch are those of single ones, up to rounding.
    Source: Rajbhandari et al. 2020, arXiv:1910.02054, Section 5.1, for the divided state.
    """
    mesh = mesh_of(devices)
    _checks.positive_int("at_once", at_once)
    if sharded and not isinstance(step, Step):
        raise TypeError(f"step: expected what make_step returns where sharded, got {step!r}")

    def over_devices(body: Callable) -> Callable:
        # With check_vma=True gradients would be as many times too large as there are devices.
        return jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )

    def one(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        if not sharded or not isinstance(step, Step):
            return over_devices(step)(state, batch)
        # The gradient needs the parameters only, which are whole on every device.
        given = state._replace(opt_state=None, ema_params=None)
        after, metrics = step.update(state, *over_devices(step.gradients)(given, batch))
        return jax.lax.with_sharding_constraint(
            after, placements(after, devices, sharded=sharded)
        ), metrics

    def mapped(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        return one(state, batch) if at_once == 1 else jax.lax.scan(one, state, batch, at_once)

    return jax.jit(mapped, donate_argnums=0)


def placements(
    state: Any, devices: Sequence[jax.Device] | None = None, *, sharded: bool = False
) -> Any:
    """Return where each leaf of a state lies: on every device, or divided along its longest axis.

    Args:
      state: a pytree of arrays or jax.ShapeDtypeStruct; a training state where it is sharded.
      devices: all devices of all processes if None.
      sharded: whether the leaves of the optimiser's state and of the average are divided, where the
        number of devices divides one of their axes.
    Returns:
      A pytree of jax.sharding.NamedSharding.
    """
    mesh = mesh_of(devices)
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
    places = placements(tree, devices, sharded=sharded)

    def put(leaf: Any, place: NamedSharding) -> jax.Array:
        index = place.addressable_devices_indices_map(leaf.shape)
        parts = [jax.device_put(leaf[where], device) for device, where in index.items()]
        return jax.make_array_from_single_device_arrays(leaf.shape, place, parts)

    return jax.tree.map(put, _copy(tree), places)


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


def shard(batch: Any, devices: Sequence[jax.Device] | None = None, *, stacked: bool = False) -> Any:
    """Put the rows of a batch on devices, in order; each process gives its own rows.

    Args:
      batch: a pytree of arrays with the rows of this process in front.
      devices: all devices of all processes if None.
      stacked: whether these are several batches, with an axis of batches before that of the rows.
    Returns:
      The pytree of the whole batch, its rows divided over the devices.
    Raises:
      ValueError: the number of rows is not a multiple of this process's devices.
    """
    axes = (None, AXIS) if stacked else (AXIS,)
    place = NamedSharding(mesh_of(devices), PartitionSpec(*axes))
    one = jax.tree.map(lambda leaf: leaf[0], batch) if stacked else batch
    split(one, len(place.addressable_devices))  # refuses an uneven batch
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
