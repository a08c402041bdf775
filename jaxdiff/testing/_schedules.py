"""What every schedule keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.schedules import Schedule
from jaxdiff.testing import _claims
from jaxdiff.testing._claims import claim

NUM_TIMES = 101


def check_schedule(schedule: Schedule, *, other: Schedule | None = None) -> None:
    """Check that a schedule keeps the contract of the forward process.

        lambda_t = log(alpha_t^2 / sigma_t^2) falls with t,   time(log_snr(t)) = t

    The claims: alpha, sigma, log_snr and time keep shape and dtype (float32 and float64, and
    nothing becomes float64 where it exists); they are finite from t = 0 to t = 1; log_snr falls,
    and is that of alpha and sigma; time is its inverse; the schedule is a pytree that works inside
    jit.

    Args:
      schedule: the noise schedule.
      other: the same schedule with other numbers; it has to run without a new compilation. None
        leaves this claim out.
    Raises:
      AssertionError: a claim fails; one line that names it.
      ModuleNotFoundError: chex is not installed.
    """
    _claims.chex()
    for dtype, x64 in _claims.PRECISIONS:
        with jax.enable_x64(x64):
            _check_shapes(schedule, jnp.asarray(np.linspace(0, 1, 5), dtype))
    with jax.enable_x64(True):
        ts = jnp.linspace(0.0, 1.0, NUM_TIMES)
        log_snr, alpha, sigma = _levels(schedule, ts)
    with claim("schedule: alpha, sigma and log_snr are finite from t = 0 to t = 1"):
        _claims.finite((log_snr, alpha, sigma))
    with claim("schedule: log_snr falls with t"):
        rise = np.diff(np.asarray(log_snr))
        if not np.all(rise < 0):
            place = int(np.argmax(rise >= 0))
            raise AssertionError(
                f"expected less at t = {ts[place + 1]:.2f} than at {ts[place]:.2f}, "
                f"got {log_snr[place + 1]:.6g} after {log_snr[place]:.6g}"
            )
    inner = slice(1, -1)  # log_snr is limited where it is infinite
    with claim("schedule: log_snr is log(alpha^2 / sigma^2)"):
        expected = 2 * (np.log(np.asarray(alpha)) - np.log(np.asarray(sigma)))
        _claims.close(log_snr[inner], expected[inner], 1e-6)
    with claim("schedule: time is the inverse of log_snr"), jax.enable_x64(True):
        _claims.close(schedule.time(log_snr[inner]), ts[inner], 1e-6)
    with claim("schedule: it works inside jit, as an argument"), jax.enable_x64(True):
        _claims.close(jax.jit(_levels)(schedule, ts), (log_snr, alpha, sigma), 1e-6)
    if other is not None:
        with claim("schedule: new numbers compile nothing"):
            _claims.one_program(_levels, (jnp.linspace(0.0, 1.0, 3),), schedule, other)


def _levels(schedule: Schedule, ts: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    return schedule.log_snr(ts), schedule.alpha(ts), schedule.sigma(ts)


def _check_shapes(schedule: Schedule, ts: jax.Array) -> None:
    where = _claims.where(ts, "t")
    with claim(f"schedule: it takes any shape {where}"):
        for t in (ts[0], ts, ts[None]):
            found = jax.eval_shape(_levels, schedule, t)
            found = (*found, jax.eval_shape(schedule.time, t))
            _claims.chex().assert_trees_all_equal_shapes_and_dtypes(found, (t,) * 4)
