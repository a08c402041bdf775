"""Weights of the squared error of x_0, as functions of lambda = log SNR."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks
from jaxdiff._tree import pytree


def snr() -> Partial:
    """Return the weight exp(lambda): the plain error of eps.

    Returns:
      A function lambda -> weight of the squared error of x_0.
    """
    return Partial(jnp.exp)


@pytree
class MinSNR:
    """min(SNR, gamma)."""

    gamma: Any

    def __post_init__(self) -> None:
        _checks.values("gamma", self.gamma, "a positive bound", lambda g: g > 0)

    def __call__(self, log_snr: jax.Array) -> jax.Array:
        """Return the weight at lambda."""
        gamma = jnp.asarray(self.gamma, log_snr.dtype)
        return jnp.exp(jnp.minimum(log_snr, jnp.log(gamma)))


def min_snr(gamma: Any = 5.0) -> MinSNR:
    """Return the weight min(SNR, gamma).

    Args:
      gamma: largest weight, positive.
    Returns:
      A function lambda -> weight of the squared error of x_0.
    Raises:
      ValueError: gamma is not positive.
    Source: Hang et al. 2023, arXiv:2303.09556, Section 3.4.
    """
    return MinSNR(gamma)


@pytree
class EDM:
    """1 / sigma_data^2 + SNR."""

    sigma_data: Any

    def __post_init__(self) -> None:
        _checks.values(
            "sigma_data", self.sigma_data, "a positive standard deviation", lambda s: s > 0
        )

    def __call__(self, log_snr: jax.Array) -> jax.Array:
        """Return the weight at lambda."""
        return jnp.asarray(self.sigma_data**-2, log_snr.dtype) + jnp.exp(log_snr)


def edm(sigma_data: Any = 0.5) -> EDM:
    """Return EDM's weight: the network's own error then counts the same at every noise level.

        w = (r^2 + sigma_data^2) / (r sigma_data)^2,   r = sigma / alpha

    Args:
      sigma_data: standard deviation of the data, positive.
    Returns:
      A function lambda -> weight of the squared error of x_0.
    Raises:
      ValueError: sigma_data is not positive.
    Source: Karras et al. 2022, arXiv:2206.00364, Table 1.
    """
    return EDM(sigma_data)


@pytree
class Sigmoid:
    """sigmoid(bias - lambda) SNR."""

    bias: Any

    def __post_init__(self) -> None:
        _checks.finite("bias", self.bias)

    def __call__(self, log_snr: jax.Array) -> jax.Array:
        """Return the weight at lambda."""
        bias = jnp.asarray(self.bias, log_snr.dtype)
        return jax.nn.sigmoid(bias - log_snr) * jnp.exp(log_snr)


def sigmoid(bias: Any = 0.0) -> Sigmoid:
    """Return the sigmoid weight: sigmoid(bias - lambda) times the error of eps.

    Args:
      bias: the lambda at which the error of eps has the weight one half.
    Returns:
      A function lambda -> weight of the squared error of x_0.
    Raises:
      ValueError: bias is not finite.
    Source: Kingma & Gao 2023, arXiv:2303.00848, Section 3; Hoogeboom et al. 2024, arXiv:2410.19324,
    Eq. (8).
    """
    return Sigmoid(bias)
