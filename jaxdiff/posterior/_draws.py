"""Draws of a posterior: one from each of many independent particle systems."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks, _lineages, _rows, resampling
from jaxdiff._tree import as_function
from jaxdiff.kernels import Kernel
from jaxdiff.sampling import Samples, prior_sample, run
from jaxdiff.schedules import Schedule

FEW = 10  # draws of fewer lineages are worth a warning: their mean is off by a third of a deviation


class Draws(NamedTuple):
    """Draws from independent particle systems.

    Fields:
      x: draws, [M * per_system, *D], the draws of a system beside each other.
      system: the system of each draw, [M * per_system], int32.
      log_weights: log p(y) as each draw's system estimates it, [M * per_system], in nats. With
        equal weights the draws have a bias of order 1 / rows. With these weights they are right in
        the limit of many systems, and noisy where the estimates differ by more than a nat.
      log_evidence: log p(y) of all systems together, [], in nats: its exponential is unbiased.
      evidence_error: standard error of log_evidence, [], in nats, from the variance over systems.
        It cannot see what no system has found.
      ess: effective sample size of each system after each step, [M, num_steps].
      lineages: rows of each system's start that have descendants, [M, num_steps].
    """

    x: jax.Array
    system: jax.Array
    log_weights: jax.Array
    log_evidence: jax.Array
    evidence_error: jax.Array
    ess: jax.Array
    lineages: jax.Array


def draw(
    key: jax.Array,
    kernel: Kernel,
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    ts: jax.Array,
    rows: int = 8,
    resample: Callable | None = None,
    sweeps: int = 0,
    rejoin: bool = False,
    per_system: int = 1,
    batch_size: int | None = None,
    first: Any = 0,
) -> Draws:
    """Draw from a posterior: M independent systems of a few rows, one draw of each.

        p(y) = mean_m Z_m,   Z_m the evidence of system m

    Rows of one system share ancestors, so that many draws from it are few draws. Draws of different
    systems are independent. A few rows in each of many systems are better draws than many rows in
    one, and worse evidence.

    Args:
      key: typed PRNG key. Draw m depends on (key, first + m) alone.
      kernel: a weighted kernel, such as `twisted(...)`.
      schedule: the noise schedule.
      shape: (M, *D), the number of systems and the shape of one draw.
      ts: decreasing times in [0, 1], [num_steps + 1].
      rows: N, rows of each system, static, at least 2.
      resample: as in `sample`; None is `resampling.systematic()`.
      sweeps: of particle Gibbs, static. Each runs every system again with its draw's path as the
        first row, and draws anew. It leaves the posterior as it is, at any number of rows, so it
        removes what bias the first draw has. It costs as much as the first run.
      rejoin: in a sweep, let the path go on from other rows' pasts (ancestor sampling), static. It
        mixes faster in few dimensions; in many the path is its own only past.
      per_system: draws of each system, static. More than one are not independent.
      batch_size: systems at a time, static; None is all of them.
      first: index of the first system, so that chunks of draws join up.
    Returns:
      Draws. If fewer than 10 lineages stand behind all draws together, and values are known, one
      line warns.
    Raises:
      ValueError: shape has no axis of systems, ts is no decreasing grid, or rows < 2, sweeps < 0,
        per_system < 1 or batch_size < 1.
      TypeError: key is no typed key, kernel is no Kernel, or with sweeps its rows cannot follow a
        path.
    Source: islands: Verge et al. 2015, Stat. Comput. 25; particle Gibbs: Andrieu, Doucet &
    Holenstein 2010, J. R. Stat. Soc. B 72(3), Section 2.4.3.
    """
    _checks.one_key("key", key)
    if not isinstance(shape, tuple) or len(shape) < 1 or shape[0] < 1:
        raise ValueError(f"shape: expected a tuple (M, *D) with M >= 1, got {shape}")
    at_a_time = shape[0] if batch_size is None else batch_size
    counts = {"rows": rows, "per_system": per_system, "sweeps": sweeps, "batch_size": at_a_time}
    for (name, count), least in zip(counts.items(), (2, 1, 0, 1), strict=True):
        if not isinstance(count, int) or count < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {count!r}")
    _checks.grid("ts", ts)
    if not isinstance(kernel, Kernel):
        raise TypeError(
            f"kernel: expected a Kernel such as twisted(...), got {type(kernel).__name__}"
        )
    scheme: Any = resampling.systematic() if resample is None else as_function("resample", resample)
    if sweeps:
        _lineages.beside(kernel, scheme)
    grid = jnp.asarray(ts)

    def system(key: jax.Array) -> tuple[jax.Array, Samples]:
        key_first, *keys = jax.random.split(key, 1 + sweeps)
        x, path, samples = one(key_first, None)
        for key_sweep in keys:
            x, path, _ = one(key_sweep, path)
        return x, samples

    def one(key: jax.Array, path: Any) -> tuple[jax.Array, Any, Samples]:
        key_prior, key_run, key_draw = jax.random.split(key, 3)
        x_init = prior_sample(key_prior, schedule, (rows, *shape[1:]), t=grid[0])
        samples = run(
            key_run, kernel, x_init, grid, resample=scheme, reference=path,
            rejoin=rejoin and path is not None, save_every=1 if sweeps else None,
        )  # fmt: skip
        index = chosen(key_draw, samples.log_weights, per_system)
        x = jnp.where(jnp.any(samples.log_weights > -jnp.inf), samples.x[index], jnp.nan)
        followed = path_of(samples, index[0]) if sweeps else None
        return x, followed, samples._replace(trajectory=None, ancestors=None)

    keys = _rows.keys(key, shape[0], first=first)
    if batch_size is None:
        x, samples = jax.vmap(system)(keys)
    else:
        x, samples = jax.lax.map(system, keys, batch_size=batch_size)
    found = joined(x, samples)
    known = _checks.known(samples.lineages)
    if known is not None:
        warn_of_few(np.minimum(known[:, -1], per_system).sum(), len(found.x))
    return found


def joined(x: jax.Array, samples: Samples) -> Draws:
    """Put systems together: x [M, per_system, *D], and samples with a leading axis of systems."""
    num, each = x.shape[:2]
    log_z = samples.log_evidence
    log_evidence = resampling.log_mean_weight(log_z)
    top = jnp.where(jnp.isfinite(log_evidence), log_evidence, 0)
    ratio = jnp.where(jnp.isnan(log_z), 0, jnp.exp(log_z - top))
    error = jnp.std(ratio) / jnp.sqrt(max(num - 1, 1))
    return Draws(
        x=x.reshape(num * each, *x.shape[2:]),
        system=jnp.repeat(jnp.arange(num, dtype=jnp.int32), each),
        log_weights=jnp.repeat(log_z, each),
        log_evidence=log_evidence,
        evidence_error=jnp.where(num > 1, error, jnp.inf).astype(log_z.dtype),
        ess=samples.ess,
        lineages=samples.lineages,
    )


def chosen(key: jax.Array, log_weights: jax.Array, num: int) -> jax.Array:
    """Rows drawn by their weights, in no order, [num]; row 0 if no weight is positive."""
    key_draw, key_order = jax.random.split(key)
    usable = jnp.any(log_weights > -jnp.inf)
    rows = jnp.arange(len(log_weights), dtype=jnp.int32)
    drawn = resampling.draw(key_draw, jnp.where(usable, log_weights, 0), rows, num)
    return jnp.where(usable, jax.random.permutation(key_order, drawn), 0)


def path_of(samples: Samples, row: jax.Array) -> jax.Array:
    """Return the states from the start to one row of the end, [num_steps + 1, *D].

    Args:
      samples: of a run that kept every state.
      row: index of the row, [].
    Returns:
      The trajectory of its ancestors.
    """
    trajectory, ancestors = samples.trajectory, samples.ancestors
    assert trajectory is not None
    assert ancestors is not None
    num_steps = len(ancestors)

    def back(n: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        path, row = state
        slot = num_steps - 1 - n
        row = ancestors[slot, row]
        return path.at[slot].set(trajectory[slot, row]), row

    path = jnp.zeros_like(trajectory[:, 0]).at[-1].set(trajectory[-1, row])
    return jax.lax.fori_loop(0, num_steps, back, (path, row))[0]


def warn_of_few(lineages: int, draws: int) -> None:
    """Warn if fewer than FEW lineages stand behind draws that are read as independent."""
    if lineages < FEW:
        warnings.warn(
            f"{draws} draws come from {lineages} lineages: their spread says little; "
            "take more systems (posterior.draw) or more rows",
            stacklevel=3,
        )
