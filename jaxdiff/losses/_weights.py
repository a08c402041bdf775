"""Weights of the squared error of x_0, by noise level."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks


def snr() -> Partial:
    """Return the weight exp(lambda): the plain error of eps.

    Returns:
      A function lambda -> weight of the squared error of x_0.
    """
    return Partial(jnp.exp)


def min_snr(gamma: float = 5.0) -> Partial:
    """Return the weight min(SNR, gamma).

    Args:
      gamma: largest weight, positive.
    Returns:
      A function lambda -> weight of the squared error of x_0.
    Raises:
      ValueError: gamma is not positive.
    Source: Hang et al. 2023, arXiv:2303.09556, Section 3.4.
    """
    _checks.values("gamma", gamma, "a positive bound", lambda g: g > 0)
    return Partial(_min_snr, gamma)


def _min_snr(gamma: Any, log_snr: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(log_snr, jnp.log(gamma)))


def edm(sigma_data: float = 0.5) -> Partial:
    """Return EDM's weight, which makes the preconditioned network's own error uniform over noise levels.

        w = (r^2 + sigma_data^2) / (r sigma_data)^2,   r = sigma / alpha

    Args:
      sigma_data: standard deviation of the data, positive.
    Returns:
      A function lambda -> weight of the squared error of x_0.
    Raises:
      ValueError: sigma_data is not positive.
    Source: Karras et al. 2022, arXiv:2206.00364, Table 1.
    """
    _checks.values("sigma_data", sigma_data, "a positive standard deviation", lambda s: s > 0)
    return Partial(_edm, sigma_data)


def _edm(sigma_data: Any, log_snr: jax.Array) -> jax.Array:
    return sigma_data**-2 + jnp.exp(log_snr)


def sigmoid(bias: float = 0.0) -> Partial:
    """Return the sigmoid weight: sigmoid(bias - lambda) on the error of eps.

    Args:
      bias: lambda at which the weight of the error of eps is one half.
    Returns:
      A function lambda -> weight of the squared error of x_0.
    Raises:
      ValueError: bias is not finite.
    Source: Kingma & Gao 2023, arXiv:2303.00848, Section 3; Hoogeboom et al. 2024, arXiv:2410.19324,
    Eq. (8).
    """
    _checks.finite("bias", bias)
    return Partial(_sigmoid, bias)


def _sigmoid(bias: Any, log_snr: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(bias - log_snr) * jnp.exp(log_snr)
