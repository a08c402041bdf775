"""Grids: the times that a reverse process visits, ts[0] = start > ... > ts[num_steps] = end."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks
from jaxdiff._functions import known_ahead
from jaxdiff.schedules import Schedule

SPACINGS = ("leading", "trailing", "linspace")
_STEEP = 10.0  # nats within the margin of an end: times between would be equal in float32


@known_ahead
def uniform(num_steps: int, *, start: float = 1.0, end: float = 0.0) -> jax.Array:
    """Return times equally spaced in t: ts_i = start + i / num_steps (end - start).

    On `from_betas` with T betas, num_steps dividing T visits every (T / num_steps)-th step of the
    discrete process.

    Args:
      num_steps: number of steps, at least 1.
      start: first time.
      end: last time, below start.
    Returns:
      [num_steps + 1] times from start to end, default floating dtype.
    Raises:
      ValueError: num_steps < 1, or not 0 <= end < start <= 1.
    """
    _check_ends(start, end)
    return jnp.asarray(_between(start, end, _fractions(num_steps)), float)


@known_ahead
def quadratic(num_steps: int, *, start: float = 1.0, end: float = 0.0) -> jax.Array:
    """Return times whose square root is equally spaced, so that they are denser near the data.

        ts_i = (1 - i / num_steps)^2

    Args:
      num_steps: number of steps, at least 1.
      start: first time.
      end: last time, below start.
    Returns:
      [num_steps + 1] times from start to end, default floating dtype.
    Raises:
      ValueError: num_steps < 1, or not 0 <= end < start <= 1.
    Source: Song et al. 2021, arXiv:2010.02502, Appendix D.2.
    """
    _check_ends(start, end)
    ts = _between(np.sqrt(start), np.sqrt(end), _fractions(num_steps)) ** 2
    ts[0], ts[-1] = start, end
    return jnp.asarray(ts, float)


@known_ahead
def subsequence(
    total: int, num_steps: int, spacing: str = "trailing", *, offset: int = 0
) -> jax.Array:
    """Return num_steps times among the T of a discrete process, and then 0: ts_i = step_i / T.

        leading   1 + offset + k floor(T / num_steps),  k = num_steps - 1 .. 0: starts below T
        trailing  round(T - k T / num_steps),  k = 0 .. num_steps - 1
        linspace  1 + num_steps numbers from T - 1 to 0, rounded

    Args:
      total: T, the number of steps of `from_betas`.
      num_steps: number of steps taken, at most T.
      spacing: one of SPACINGS.
      offset: added to the steps of "leading"; at most what keeps them within T.
    Returns:
      [num_steps + 1] times, the last one 0, default floating dtype. "leading" starts with too
      little noise: the state at ts[0] < 1 is needed, and published samplers take that of t = 1.
    Raises:
      ValueError: unknown spacing, num_steps outside 1 .. total, an offset that is too large.
    Source: Lin et al. 2023, arXiv:2305.08891, Table 2.
    """
    _checks.positive_int("total", total)
    _checks.positive_int("num_steps", num_steps)
    _checks.values("num_steps", num_steps, f"at most total = {total} steps", lambda v: v <= total)
    _checks.choice("spacing", spacing, SPACINGS)
    k = np.arange(num_steps)
    room = total - 1 - (num_steps - 1) * (total // num_steps) if spacing == "leading" else 0
    _checks.index("offset", offset, room + 1)
    steps = {
        "leading": 1 + offset + (k * (total // num_steps))[::-1],
        "trailing": np.round(total - k * total / num_steps),
        "linspace": 1 + np.round(np.linspace(0, total - 1, num_steps))[::-1],
    }[spacing]
    return jnp.asarray(np.append(steps, 0) / total, float)


@known_ahead
def log_snr(
    schedule: Schedule,
    num_steps: int,
    *,
    start: float = 1.0,
    end: float = 0.0,
    margin: float = 1e-3,
) -> jax.Array:
    """Return times equally spaced in the log signal-to-noise ratio lambda.

    Where lambda moves by more than 10 nats within `margin` of an end (as a rule it is infinite
    there), the spacing runs to the time `margin` away from it, and the first or last step goes from
    or to the end itself.

    Args:
      schedule: the noise schedule.
      num_steps: number of steps, at least 1.
      start: first time.
      end: last time, below start.
      margin: distance in t from a steep end.
    Returns:
      [num_steps + 1] times from start to end, default floating dtype.
    Raises:
      ValueError: num_steps < 1, margin outside (0, 0.5), or not 0 <= end < start <= 1.
    Source: Lu et al. 2022, arXiv:2206.00927, Section 3.3.
    """
    ends = Ends(start, end, margin)
    return _spaced(schedule, num_steps, ends, warp=lambda x: x, unwarp=lambda x: x)


@known_ahead
def karras(
    schedule: Schedule,
    num_steps: int,
    rho: float = 7.0,
    *,
    start: float = 1.0,
    end: float = 0.0,
    margin: float = 1e-3,
) -> jax.Array:
    """Return times at which the noise-to-signal ratio is equally spaced in its power 1 / rho.

        (sigma / alpha)_i = (max^(1/rho) + i / num_steps (min^(1/rho) - max^(1/rho)))^rho

    Args:
      schedule: the noise schedule.
      num_steps: number of steps, at least 1.
      rho: the power, at least 0.5; larger spends more steps near the data.
      start: first time.
      end: last time, below start.
      margin: distance in t from a steep end, as in `log_snr`.
    Returns:
      [num_steps + 1] times from start to end, default floating dtype.
    Raises:
      ValueError: num_steps < 1, rho below 0.5, margin outside (0, 0.5), or not 0 <= end < start <=
        1.
    Source: Karras et al. 2022, arXiv:2206.00364, Eq. (5).
    """
    _checks.values("rho", rho, "a power of at least 0.5", lambda v: v >= 0.5)
    # ratio^(1/rho) = exp(-lambda / (2 rho)), and back.
    return _spaced(
        schedule,
        num_steps,
        Ends(start, end, margin),
        warp=lambda x: jnp.exp(-x / (2 * rho)),
        unwarp=lambda x: -2 * rho * jnp.log(x),
    )


def _fractions(num_steps: int) -> np.ndarray:
    """1 - i / num_steps, rounded once."""
    _checks.positive_int("num_steps", num_steps)
    return np.arange(num_steps, -1, -1) / num_steps


def _between(start: float, end: float, fractions: np.ndarray) -> np.ndarray:
    return start * fractions + end * (1 - fractions)


def _check_ends(start: float, end: float) -> None:
    _checks.values(
        "start, end", np.array([start, end]), "times in [0, 1]", lambda v: (v >= 0) & (v <= 1)
    )
    _checks.values("end", end, f"a time below start = {start}", lambda v: v < start)


class Ends(NamedTuple):
    """Where a grid starts and ends, and how far from a steep end its spacing begins."""

    start: float
    end: float
    margin: float


def _spaced(
    schedule: Schedule, num_steps: int, ends: Ends, *, warp: Callable, unwarp: Callable
) -> jax.Array:
    """Times equally spaced in warp(lambda), which is monotone with inverse unwarp."""
    index = jnp.arange(num_steps + 1, dtype=float)
    first, last, at_start, at_end = _inner(schedule, num_steps, ends)
    inner = jnp.maximum(num_steps - at_start - at_end, 1)
    log_snr = schedule.log_snr(first)
    # Relative to the start's lambda, so that nothing overflows.
    low, high = warp(jnp.zeros_like(log_snr)), warp(schedule.log_snr(last) - log_snr)
    fraction = jnp.clip((index - at_start) / inner, 0, 1)
    ts = schedule.time(log_snr + unwarp(low * (1 - fraction) + high * fraction))
    return ts.at[0].set(ends.start).at[-1].set(ends.end)


def _inner(schedule: Schedule, num_steps: int, ends: Ends) -> tuple[jax.Array, ...]:
    """The stretch between steep ends, and 1 for each end that has a step of its own, else 0."""
    start, end, margin = ends
    _checks.positive_int("num_steps", num_steps)
    _checks.values("margin", margin, "a distance in (0, 0.5)", lambda v: (v > 0) & (v < 0.5))
    _check_ends(start, end)
    margin = min(margin, (start - end) / 4)
    after, before = start - margin, end + margin
    at_start = (schedule.log_snr(after) - schedule.log_snr(start) > _STEEP).astype(float)
    at_end = (schedule.log_snr(end) - schedule.log_snr(before) > _STEEP).astype(float)
    first = start + at_start * (after - start)
    return first, end + at_end * (before - end), at_start, at_end


@known_ahead
def optimised(
    schedule: Schedule,
    num_steps: int,
    log_snr: jax.Array,
    error: jax.Array,
    *,
    margin: float = 1e-3,
) -> jax.Array:
    """Return the grid of the least variational gap, by dynamic programming over candidate times.

        minimise  sum_i (snr(t_{i+1}) - snr(t_i)) e(t_i)
        e(t) = E |x_0 - D(x_t, t)|^2,   snr = exp(lambda)

    Half this sum is the negative ELBO of the ancestral chain in nats, up to a constant: a left
    Riemann sum of a falling error, so fine grids cost less. The candidates are the times of the
    table.

    Args:
      schedule: the noise schedule.
      num_steps: number of steps; at most one less than the table's entries, or three where both
        ends are steep.
      log_snr: log-SNRs of the table, increasing, [M], concrete; those outside the grid's stretch
        are left out.
      error: e at each of them, [M], positive: of an oracle or a network, as
        `losses.denoising_error` measures it.
      margin: distance in t from a steep end, as in `log_snr`.
    Returns:
      [num_steps + 1] times from 1 to 0, default floating dtype.
    Raises:
      ValueError: the table is too small for num_steps, not increasing, or has an error that is not
        positive.
      TypeError: the table is traced.
    Source: Watson et al. 2021, arXiv:2106.03802, Section 3; the bound: Kingma et al. 2021,
    arXiv:2107.00630, Eq. (13).
    """
    _checks.concrete("log_snr", log_snr)
    _checks.concrete("error", error)
    lambdas, errors = np.asarray(log_snr, np.float64), np.asarray(error, np.float64)
    if lambdas.ndim != 1 or lambdas.shape != errors.shape:
        shapes = f"{lambdas.shape}, {errors.shape}"
        raise ValueError(f"log_snr, error: expected two vectors of one length, got {shapes}")
    _checks.values("log_snr", lambdas, "increasing values", lambda v: np.diff(v) > 0)
    _checks.values("error", errors, "positive errors", lambda v: v > 0)
    first, last, at_start, at_end = (
        float(v) for v in _inner(schedule, num_steps, Ends(1.0, 0.0, margin))
    )
    low, high = float(schedule.log_snr(first)), float(schedule.log_snr(last))
    inside = (lambdas > low) & (lambdas < high)
    nodes = np.concatenate([[low], lambdas[inside], [high]])
    errors = np.exp(np.interp(nodes, lambdas, np.log(errors)))
    inner = num_steps - int(at_start) - int(at_end)
    if not 1 <= inner < len(nodes):
        alone = num_steps - inner
        expected = f"{alone + 1} to {alone + len(nodes) - 1}"
        raise ValueError(f"num_steps: expected {expected}, got {num_steps}")
    chosen = nodes[_shortest_path(np.exp(nodes), errors, inner)]
    ends = ([first] if at_start else [], [last] if at_end else [])
    ts = schedule.time(jnp.asarray(chosen[1:-1], float))
    ts = jnp.concatenate([jnp.asarray([1.0, *ends[0]]), ts, jnp.asarray([*ends[1], 0.0])])
    return ts.astype(float)


def _shortest_path(snr: np.ndarray, error: np.ndarray, num_steps: int) -> np.ndarray:
    """Indices of the cheapest path in num_steps steps i -> j > i of cost (snr_j - snr_i) e_i."""
    cost = np.where(
        snr[None, :] > snr[:, None], (snr[None, :] - snr[:, None]) * error[:, None], np.inf
    )
    best, came = np.where(np.arange(len(snr)) == 0, 0.0, np.inf), []
    for _ in range(num_steps):
        total = best[:, None] + cost
        came.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
    path = [len(snr) - 1]
    for previous in reversed(came):
        path.append(previous[path[-1]])
    return np.array(path[::-1])
