"""DDPM's tables: the variances beta_1 .. beta_T of a discrete forward process."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks
from jaxdiff._functions import known_ahead


@known_ahead
def linear_betas(num_steps: int, start: float = 1e-4, end: float = 2e-2) -> jax.Array:
    """Return DDPM's linear variances: num_steps values from start to end.

    Args:
      num_steps: T.
      start: beta_1.
      end: beta_T.
    Returns:
      [T] betas, default floating dtype.
    Raises:
      ValueError: num_steps < 1, or an end outside (0, 1).
    Source: Ho et al. 2020, arXiv:2006.11239, Section 4.
    """
    _checks.positive_int("num_steps", num_steps)
    for name, value in (("start", start), ("end", end)):
        _checks.values(name, value, "a variance in (0, 1)", lambda beta: (beta > 0) & (beta < 1))
    return jnp.asarray(np.linspace(start, end, num_steps), float)


@known_ahead
def cosine_betas(num_steps: int, s: float = 0.008) -> jax.Array:
    """Return improved DDPM's cosine variances.

        beta_i = min(1 - f(i / T) / f((i - 1) / T), 0.999),   f(t) = cos^2((t + s) / (1 + s) pi / 2)

    Args:
      num_steps: T.
      s: offset that keeps the first betas from vanishing.
    Returns:
      [T] betas, default floating dtype.
    Raises:
      ValueError: num_steps < 1, or s is negative.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. (17).
    """
    _checks.positive_int("num_steps", num_steps)
    _checks.values("s", s, "an offset of at least 0", lambda v: v >= 0)
    f = np.cos((np.arange(num_steps + 1) / num_steps + s) / (1 + s) * np.pi / 2) ** 2
    return jnp.asarray(np.minimum(1 - f[1:] / f[:-1], 0.999), float)


@known_ahead
def zero_terminal_snr(betas: Any) -> jax.Array:
    """Rescale a table so that its last state is noise without data: beta_T = 1.

        a_i -> (a_i - a_T) a_1 / (a_1 - a_T),   a_i = sqrt(alpha_bar_i)

    Args:
      betas: [T] variances in (0, 1), concrete, T >= 2.
    Returns:
      [T] betas, the last one 1, default floating dtype. A network that starts there must not
      predict eps, which tells nothing about x_0.
    Raises:
      ValueError: fewer than 2 entries, or values outside (0, 1).
      TypeError: betas are traced.
    Source: Lin et al. 2023, arXiv:2305.08891, Algorithm 1.
    """
    _checks.concrete("betas", betas)
    if jnp.ndim(betas) != 1 or jnp.size(betas) < 2:
        raise ValueError(
            f"betas: expected a vector of T >= 2 variances, got shape {jnp.shape(betas)}"
        )
    _checks.values("betas", betas, "values in (0, 1)", lambda b: (b > 0) & (b < 1))
    alpha = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return jnp.asarray(1 - (alpha / np.concatenate([[1.0], alpha[:-1]])) ** 2, float)
