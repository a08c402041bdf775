"""A schedule with parameters: its end-points and, between them, the density of the times."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._functions import known_ahead
from jaxdiff._tree import pytree
from jaxdiff.schedules._base import Schedule


@known_ahead
def learned_parameters(
    log_snr_min: float = -10.0, log_snr_max: float = 14.0, *, num_bins: int = 64
) -> dict[str, Any]:
    """Return the parameters of `learned` at which lambda is linear in t.

    Args:
      log_snr_min: lambda at t = 1.
      log_snr_max: lambda at t = 0.
      num_bins: number of bins of the interior.
    Returns:
      {"log_snr_min": [], "log_snr_max": [], "logits": [num_bins]}, float32 arrays to be trained.
    Raises:
      ValueError: log_snr_min is not below log_snr_max, or num_bins < 1.
    """
    _checks.finite("log_snr_max", log_snr_max)
    _checks.values(
        "log_snr_min",
        log_snr_min,
        f"a value below log_snr_max = {log_snr_max}",
        lambda v: v < log_snr_max,
    )
    _checks.positive_int("num_bins", num_bins)
    ends = {"log_snr_min": jnp.float32(log_snr_min), "log_snr_max": jnp.float32(log_snr_max)}
    return ends | {"logits": jnp.zeros(num_bins, jnp.float32)}


def learned(parameters: dict[str, Any]) -> Schedule:
    """Return a monotone schedule with trainable parameters.

        dt / dlambda is constant within each of num_bins equal bins of [log_snr_min, log_snr_max];
        bin k takes the share softmax(logits)_k of the time

    The bound on the likelihood in continuous time depends on the end-points alone. The interior is
    the density that times are drawn from, and decides how noisy the bound's estimate is
    (`losses.continuous_elbo` trains both).

    Args:
      parameters: as `learned_parameters` makes them: log_snr_min [], log_snr_max [], logits
        [num_bins]; traced.
    Returns:
      A variance-preserving Schedule.
    Raises:
      ValueError: a parameter is missing or has another shape.
    Numerics: piecewise linear both ways, so the inverse is exact and every derivative finite.
    Source: Kingma et al. 2021, arXiv:2107.00630, Sections 4 and 5.1, whose monotone network is a
    histogram here.
    """
    names = ("log_snr_min", "log_snr_max", "logits")
    shapes = {name: jnp.shape(parameters[name]) if name in parameters else None for name in names}
    if (
        shapes["log_snr_min"] != ()
        or shapes["log_snr_max"] != ()
        or len(shapes["logits"] or ()) != 1
    ):
        raise ValueError(
            f"parameters: expected {', '.join(names)} of shapes (), (), (num_bins,), got {shapes}"
        )
    return Learned(*(parameters[name] for name in names))


@pytree
class Learned(Schedule):
    """The schedule of `learned`, with its parameters as fields."""

    log_snr_min: Any
    log_snr_max: Any
    logits: Any

    name = "learned"

    def _knots(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Times and log-SNRs of the bins' edges, from t = 0 on."""
        shares = jax.nn.softmax(jnp.asarray(self.logits, dtype))
        ts = jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(shares)[:-1], jnp.ones(1, dtype)])
        fractions = jnp.arange(len(shares) + 1, dtype=dtype) / len(shares)
        low, high = _rows.cast(dtype, self.log_snr_min, self.log_snr_max)
        return ts, high + fractions * (low - high)

    def log_snr_at(self, t: jax.Array) -> jax.Array:
        """Linear in t within a bin."""
        return jnp.interp(t, *self._knots(t.dtype)).astype(t.dtype)

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """Linear in lambda within a bin."""
        ts, levels = self._knots(log_snr.dtype)
        return jnp.interp(-log_snr, -levels, ts)
