"""Where rows of a run come from: lineages, kept paths, and a path that the first row follows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.kernels import Kernel


def number_of(origins: jax.Array) -> jax.Array:
    """Return how many different rows of a start there are among origins.

    Args:
      origins: indices from 0 to B - 1, [B].
    Returns:
      [], int32.
    """
    found = jnp.zeros(origins.shape[0], jnp.int32).at[origins].set(1)
    return jnp.sum(found, dtype=jnp.int32)


def nothing_kept(x: jax.Array, num_steps: int, save_every: int | None) -> tuple[Any, Any]:
    """Return a trajectory and its ancestors before the first step; (None, None) to keep nothing.

    Args:
      x: states at the start, [B, *D].
      num_steps: of the run.
      save_every: None, or keep the state every so many steps.
    Returns:
      (states [slots + 1, B, *D], ancestors [slots, B]), slots = ceil(num_steps / save_every).
    """
    if save_every is None:
        return None, None
    slots = -(-num_steps // save_every)
    trajectory = jnp.zeros((slots + 1, *x.shape), x.dtype).at[0].set(x)
    return trajectory, jnp.zeros((slots, x.shape[0]), jnp.int32)


def keep(
    kept: tuple[Any, Any], x: jax.Array, ancestors: jax.Array, *, n: Any, save_every: int | None
) -> tuple[Any, Any]:
    """Keep the states after a step, and where they come from.

    Args:
      kept: of `nothing_kept`, or of the step before.
      x: states after the step, [B, *D].
      ancestors: the row before the step from which each row descends, [B], int32.
      n: index of the step, [].
      save_every: as in `nothing_kept`.
    Returns:
      The same as kept.
    """
    if save_every is None:
        return kept
    # Every step writes to the next slot. The last write is the one that the slot is for.
    (trajectory, descent), slot = kept, n // save_every
    before = jnp.where(n % save_every == 0, jnp.arange(x.shape[0], dtype=jnp.int32), descent[slot])
    return trajectory.at[slot + 1].set(x), descent.at[slot].set(before[ancestors])


def beside(kernel: Kernel, resample: Any) -> tuple[Callable, Any]:
    """Return the step and the resampling of a run whose first row follows a path.

    Args:
      kernel: its step takes a reference.
      resample: None, or a `Resampler`.
    Returns:
      (step, resample): the first has an argument `reference`, the second keeps the first row.
    Raises:
      TypeError: the kernel's step takes no reference, or resample keeps none.
    """
    step = getattr(kernel.step, "step", None)
    if not hasattr(kernel.step, "log_continuation") or step is None:
        raise TypeError(
            "kernel: expected one whose rows may follow a path, such as posterior.twisted, "
            f"got {type(kernel.step).__name__}"
        )
    if resample is not None and not hasattr(resample, "beside"):
        raise TypeError(
            "resample: expected a scheme of jaxdiff.resampling, which can keep a path, "
            f"got {type(resample).__name__}"
        )
    return step, None if resample is None else resample.beside


def exchange(
    key: jax.Array, kernel: Kernel, rows: tuple, *, ts: jax.Array, n: Any, path: Any
) -> jax.Array:
    """Return an order of the rows in which the path goes on from a past that fits it, [B].

        P(j) ~ w_j p(x*_next | x_j) / r_s(x_j),   and row j changes places with the first

    A step to t = 0 has no density, so nothing changes before it, nor after the last step.

    Args:
      key: typed PRNG key.
      kernel: with `log_continuation`.
      rows: (carry, states at ts[n + 1] [B, *D], log weights [B]).
      ts: times, [num_steps + 1].
      n: index of the step that led there, [].
      path: that the first row follows, [num_steps + 1, *D].
    Returns:
      Indices of rows, int32.
    Source: Lindsten, Jordan & Schon 2014, J. Mach. Learn. Res. 15, Section 3.
    """
    carry, x, log_weights = rows
    last = len(ts) - 1
    s, after = ts[n + 1], ts[jnp.minimum(n + 2, last)]
    goal = path[jnp.minimum(n + 2, last)].astype(x.dtype)
    usable = (n + 2 <= last) & (after > 0)
    # Where there is no step to go, one from s to s / 2 stands in, so that nothing is infinite.
    algorithm: Any = kernel.step
    gain = algorithm.log_continuation(carry, x, (s, jnp.where(usable, after, s / 2)), goal)
    total = jnp.where(usable, log_weights + gain, 0)
    chosen = jax.random.categorical(key, jnp.where(jnp.isnan(total), -jnp.inf, total))
    j = jnp.where(usable, chosen, 0).astype(jnp.int32)
    everyone = jnp.arange(x.shape[0], dtype=jnp.int32)
    return everyone.at[0].set(j).at[j].set(0)
