"""The schedule of a table of betas: DDPM's discrete process."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks
from jaxdiff._tree import pytree
from jaxdiff.schedules._base import LOG_SNR_LIMIT, Schedule, log_snr_from_decay


def from_betas(betas: Any) -> Schedule:
    """Return DDPM's discrete schedule: exact at t = i / T, with T = len(betas) steps.

        alpha_bar_i = prod_{j <= i} (1 - beta_j) = alpha_t^2 at t = i / T;   alpha_bar_0 = 1

    Between the table's times -log alpha_t^2 is linear: the rate beta(t) is constant within a step.

    Args:
      betas: [T] variances of the T steps, in (0, 1), non-decreasing; concrete or traced. The last
        one may be 1, for zero terminal SNR (`zero_terminal_snr`).
    Returns:
      A variance-preserving Schedule with lambda = +inf (LOG_SNR_LIMIT) at t = 0.
    Raises:
      ValueError: betas is not a vector of T >= 1 entries, or holds values outside (0, 1), NaN or a
        decrease.
    Numerics: a concrete table is summed in float64, then used in the dtype of t.
    Source: Ho et al. 2020, arXiv:2006.11239, Eq. (4).
    """
    betas = betas if hasattr(betas, "shape") else np.asarray(betas, np.float64)
    if jnp.ndim(betas) != 1 or jnp.size(betas) == 0:
        raise ValueError(
            f"betas: expected a vector of T >= 1 variances, got shape {jnp.shape(betas)}"
        )
    _checks.values(
        "betas", betas, "values in (0, 1)", lambda b: (b > 0) & (b < 1) | (b == 1) & _last(b)
    )
    _checks.values("betas", betas, "non-decreasing values", lambda b: np.diff(b) >= 0)
    table = _checks.known(betas)
    decay = _decay(jnp, betas) if table is None else _decay(np, np.asarray(table, np.float64))
    return Table(decay)


@pytree
class Table(Schedule):
    """The schedule of `from_betas`.

    Fields:
      decay: -log alpha_bar_i for i = 0 .. T, [T + 1].
    """

    decay: Any

    name = "from_betas"

    def log_snr_at(self, t: jax.Array) -> jax.Array:
        """-log alpha_t^2 between the table's times, and lambda from it."""
        decay = jnp.asarray(self.decay, t.dtype)
        steps = decay.shape[0] - 1
        index = jnp.clip(jnp.floor(t * steps).astype(int), 0, steps - 1)
        place = t * steps - index.astype(t.dtype)
        return log_snr_from_decay(decay[index] + place * (decay[index + 1] - decay[index]))

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """The place of -log alpha^2 in the table."""
        decay = jnp.asarray(self.decay, log_snr.dtype)
        times = jnp.arange(decay.shape[0], dtype=log_snr.dtype) / (decay.shape[0] - 1)
        return jnp.interp(jax.nn.softplus(-log_snr), decay, times)

    def __repr__(self) -> str:
        return f"from_betas(<{jnp.size(self.decay) - 1} betas>)"


def _decay(numpy: Any, betas: Any) -> Any:
    """-log alpha_bar_i for i = 0 .. T, in NumPy or JAX; a beta of 1 ends at the finite stand-in."""
    logs = numpy.log1p(-numpy.where(betas < 1, betas, 0))
    steps = numpy.where(betas < 1, -logs, LOG_SNR_LIMIT)
    return numpy.concatenate([numpy.zeros(1, betas.dtype), numpy.cumsum(steps)])


def _last(betas: np.ndarray) -> np.ndarray:
    return np.arange(betas.size) == betas.size - 1
