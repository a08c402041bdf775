"""Grids: the times ts[0] = 1 > ts[1] > ... > ts[num_steps] = 0 that a reverse process visits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks
from jaxdiff.schedules import Schedule

_STEEP = 10.0  # nats within the margin of an end: times between would be equal in float32


def uniform(num_steps: int) -> jax.Array:
    """Return times equally spaced in t: ts_i = 1 - i / num_steps.

    On `from_betas` with T betas, num_steps dividing T visits every (T / num_steps)-th step of the discrete process.

    Args:
      num_steps: number of steps, at least 1.
    Returns:
      [num_steps + 1] times from 1 to 0, default floating dtype.
    Raises:
      ValueError: num_steps < 1.
    """
    return jnp.asarray(_fractions(num_steps), float)


def quadratic(num_steps: int) -> jax.Array:
    """Return times whose square root is equally spaced: ts_i = (1 - i / num_steps)^2, denser near the data.

    Args:
      num_steps: number of steps, at least 1.
    Returns:
      [num_steps + 1] times from 1 to 0, default floating dtype.
    Raises:
      ValueError: num_steps < 1.
    Source: Song et al. 2021, arXiv:2010.02502, Appendix D.2.
    """
    return jnp.asarray(_fractions(num_steps) ** 2, float)


def log_snr(schedule: Schedule, num_steps: int, *, margin: float = 1e-3) -> jax.Array:
    """Return times equally spaced in the log signal-to-noise ratio lambda.

    Where lambda moves by more than 10 nats within `margin` of an end (as a rule it is infinite there), the spacing runs
    to the time `margin` away from it, and the first or last step goes from or to the end itself.

    Args:
      schedule: the noise schedule.
      num_steps: number of steps, at least 1.
      margin: distance in t from a steep end.
    Returns:
      [num_steps + 1] times from 1 to 0, default floating dtype.
    Raises:
      ValueError: num_steps < 1, or margin outside (0, 0.5).
    Source: Lu et al. 2022, arXiv:2206.00927, Section 3.3.
    """
    return _spaced(schedule, num_steps, margin, lambda x: x, lambda x: x)


def karras(schedule: Schedule, num_steps: int, rho: float = 7.0, *, margin: float = 1e-3) -> jax.Array:
    """Return times at which the noise-to-signal ratio is equally spaced in its power 1 / rho.

        (sigma / alpha)_i = (max^(1/rho) + i / num_steps (min^(1/rho) - max^(1/rho)))^rho

    Args:
      schedule: the noise schedule.
      num_steps: number of steps, at least 1.
      rho: the power; larger spends more steps near the data.
      margin: distance in t from a steep end, as in `log_snr`.
    Returns:
      [num_steps + 1] times from 1 to 0, default floating dtype.
    Raises:
      ValueError: num_steps < 1, rho not positive, or margin outside (0, 0.5).
    Source: Karras et al. 2022, arXiv:2206.00364, Eq. (5).
    """
    _checks.values("rho", rho, "a positive power", lambda v: v > 0)
    # ratio^(1/rho) = exp(-lambda / (2 rho)), and back.
    return _spaced(schedule, num_steps, margin, lambda x: jnp.exp(-x / (2 * rho)), lambda x: -2 * rho * jnp.log(x))


def _fractions(num_steps: int) -> np.ndarray:
    """1 - i / num_steps, rounded once."""
    _checks.positive_int("num_steps", num_steps)
    return np.arange(num_steps, -1, -1) / num_steps


def _spaced(schedule: Schedule, num_steps: int, margin: float, warp: Callable, unwarp: Callable) -> jax.Array:
    """Times equally spaced in warp(lambda), which is monotone with inverse unwarp."""
    _checks.values("margin", margin, "a distance in (0, 0.5)", lambda v: (v > 0) & (v < 0.5))
    _checks.positive_int("num_steps", num_steps)
    index = jnp.arange(num_steps + 1, dtype=float)
    # One step is set apart at each steep end; both counts may be traced.
    at_start = (schedule.log_snr(1 - margin) - schedule.log_snr(1.0) > _STEEP).astype(float)
    at_end = (schedule.log_snr(0.0) - schedule.log_snr(margin) > _STEEP).astype(float)
    inner = jnp.maximum(num_steps - at_start - at_end, 1)
    start = warp(schedule.log_snr(1 - margin * at_start))
    end = warp(schedule.log_snr(margin * at_end))
    ts = schedule.time(unwarp(start + (end - start) * jnp.clip((index - at_start) / inner, 0, 1)))
    return ts.at[0].set(1.0).at[-1].set(0.0)
