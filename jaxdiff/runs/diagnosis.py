"""Why an update was skipped: the leaves, the examples and the times that are not finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _rows, training
from jaxdiff.runs.config import Config

MOST_NAMES = 3


def explain(config: Config, step: training.Step, state: Any, batch: Any) -> str:
    """Describe what is not finite in the last update of a state, which was skipped.

    Args:
      config: the run's configuration.
      step: the training step.
      state: the state after the update, on one device.
      batch: this process's rows of the update's batch.
    Returns:
      A line that names leaves of the gradient, and rows with their times.
    """
    before = state._replace(step=state.step - 1)
    num_rows = len(jax.tree.leaves(batch)[0])
    first, total = jax.process_index() * num_rows, jax.process_count() * num_rows
    key = jax.random.fold_in(before.key, before.step)
    rows = training.Rows(key, _rows.keys(key, num_rows, first=first), jnp.int32(first), total)

    @jax.jit
    def both(params: Any, rows: training.Rows, batch: Any) -> tuple[jax.Array, Any]:
        given = () if step.remember is None else (before.memory,)

        def losses(params: Any) -> tuple[jax.Array, jax.Array]:
            out = step.loss(params, rows._replace(total=total), batch, *given)
            value = out if step.remember is None else out[0]
            return jnp.mean(value), value

        grads, value = jax.grad(losses, has_aux=True)(params)
        return value, jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), grads)

    value, finite = both(before.params, rows, batch)
    paths = jax.tree_util.tree_leaves_with_path(finite)
    leaves = [jax.tree_util.keystr(path) for path, good in paths if not good]
    bad = np.flatnonzero(~np.isfinite(np.asarray(value)))
    if leaves and not len(bad):  # the loss is finite, and its gradient is not: row by row

        def alone(i: int) -> bool:
            one = jax.tree.map(lambda leaf: leaf[i : i + 1], (rows.keys, batch))
            here = training.Rows(key, one[0], jnp.int32(first + i), total)
            return all(jax.tree.leaves(both(before.params, here, one[1])[1]))

        bad = np.asarray([i for i in range(num_rows) if not alone(i)], int)
    parts = [f"the gradient of {_few(leaves)}" if leaves else "no gradient on this process"]
    if len(bad) and config.diffusion.time_sampling != "loss_aware":
        t = np.asarray(training.times_of(rows, config.diffusion.time_sampling))
        parts.append("at " + _few([f"t = {t[i]:.4g} (row {first + i})" for i in bad]))
    elif len(bad):
        parts.append("in " + _few([f"row {first + i}" for i in bad]))
    return " ".join(parts)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
