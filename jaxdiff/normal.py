"""The normal distribution with independent components: its density, draws, divergence, ratios."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _rows


class Normal(NamedTuple):
    """A normal distribution with independent components.

    Fields:
      mean: [B, *D].
      variance: broadcasts against mean; positive, where a density is asked for.
    """

    mean: jax.Array
    variance: jax.Array

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Return the log-density of x [B, *D] in nats, [B].

        sum_D -(x - mean)^2 / (2 variance) - log(2 pi variance) / 2
        """
        mean, variance = self
        return _rows.event_sum(log_density(x - mean, variance))

    def at(self, eps: jax.Array) -> jax.Array:
        """Return the point of standard normal noise eps [B, *D]: mean + sqrt(variance) eps."""
        return self.mean + jnp.sqrt(self.variance) * eps

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw [B, *D]. The key is one, or one a row; row i depends on (key, i) alone."""
        return self.at(_rows.normal(key, self.mean))

    def kl(self, q: "Normal") -> jax.Array:
        """Return KL(self || q) in nats, [B].

        sum_D [r - 1 - log r + (mean_p - mean_q)^2 / variance_q] / 2,   r = variance_p / variance_q

        r - 1 - log r comes from r - 1, so that equal variances cost nothing.
        """
        excess = (self.variance - q.variance) / q.variance
        return _rows.event_sum(
            (excess - jnp.log1p(excess) + (self.mean - q.mean) ** 2 / q.variance) / 2
        )

    def draw_for(self, p: "Normal", eps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw x from this distribution with noise eps, and weight it for p.

        x = mean_q + sqrt(variance_q) eps,   log p(x) - log q(x)

        The residual comes from the difference of the means: float32 keeps it where they are alike.
        """
        residual = ((self.mean - p.mean) + jnp.sqrt(self.variance) * eps) / jnp.sqrt(p.variance)
        noise = jnp.broadcast_to(eps, residual.shape)
        return self.at(eps), log_ratio(residual, p.variance, noise, self.variance)


def log_density(residual: jax.Array, variance: jax.Array) -> jax.Array:
    """Return the log-density of N(0, variance) entry by entry.

        -residual^2 / (2 variance) - log(2 pi variance) / 2

    Args:
      residual: of any shape.
      variance: positive, broadcasting against it.
    Returns:
      An array shaped like residual, in nats.
    """
    spread = jnp.broadcast_to(variance, residual.shape)
    return -0.5 * (residual**2 / variance + jnp.log(2 * jnp.pi * spread))


def log_ratio(
    p_noise: jax.Array, p_variance: jax.Array, q_noise: jax.Array, q_variance: jax.Array
) -> jax.Array:
    """Return the log ratio of two normal densities from the noises: no large numbers cancel.

        log N(sqrt(v_p) z_p; 0, v_p) - log N(sqrt(v_q) z_q; 0, v_q)
            = (|z_q|^2 - |z_p|^2 + sum_D log(v_q / v_p)) / 2

    Args:
      p_noise: z_p, [B, *D].
      p_variance: v_p, positive, broadcasting against it.
      q_noise: z_q, [B, *D].
      q_variance: v_q, likewise.
    Returns:
      [B], in nats.
    """
    ratio = jnp.broadcast_to(q_variance / p_variance, p_noise.shape)
    return _rows.event_sum(((q_noise - p_noise) * (q_noise + p_noise) + jnp.log(ratio)) / 2)
