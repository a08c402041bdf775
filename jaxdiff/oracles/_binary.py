"""A law of a few binary sequences, its exact denoiser, and the exact law of a finite binomial chain."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp, xlog1py, xlogy
from jax.tree_util import Partial

from jaxdiff import _checks, _rows, binomial
from jaxdiff._functions import exactly
from jaxdiff.forward import level
from jaxdiff.schedules import Schedule


@partial(jax.tree_util.register_dataclass, data_fields=["log_weights", "sequences"], meta_fields=[])
@dataclass(frozen=True)
class BinaryLaw:
    """A law of binary sequences that can be listed: a pytree.

    Fields:
      log_weights: log-probabilities up to a constant, [K], in nats.
      sequences: zeros and ones, all different, [K, n], floating.
    """

    log_weights: jax.Array
    sequences: jax.Array

    def log_prob(self, x: jax.Array) -> jax.Array:
        """log p(x) of sequences [B, n], in nats, [B]; -inf for one that is not on the list."""
        same = jnp.all(x[:, None] == self.sequences[None], axis=-1)
        return logsumexp(
            jnp.where(same, jax.nn.log_softmax(self.log_weights)[None], -jnp.inf), axis=1
        )

    def sample(self, key: jax.Array, shape: tuple[int]) -> jax.Array:
        """Draw sequences, shape (B,) to [B, n]; row i depends on (key, i) alone."""
        chosen = jax.vmap(lambda k: jax.random.categorical(k, self.log_weights))(
            _rows.keys(key, *shape)
        )
        return self.sequences[chosen]

    def denoiser(self, schedule: Schedule) -> Partial:
        """The exact (x_t [B, n], t) -> P(x_0 = 1 | x_t), [B, n], under the binomial process.

        p(k | x_t) propto w_k prod_i (1 + alpha_t)^[x_ti = k_i] (1 - alpha_t)^[x_ti != k_i]
        """
        return Partial(_denoise, self, schedule)


@exactly
def _denoise(law: BinaryLaw, schedule: Schedule, x_t: jax.Array, t: Any) -> jax.Array:
    alpha = level(schedule, jnp.broadcast_to(t, x_t.shape[:1]), x_t).alpha
    agreements = (2 * x_t - 1) @ (2 * law.sequences.T - 1) / 2  # less a constant
    share = jax.nn.softmax(law.log_weights[None] + binomial.evidence(alpha) * agreements, axis=1)
    return (share @ law.sequences).astype(x_t.dtype)


def binary_states(size: int) -> jax.Array:
    """List all binary sequences, the first component changing slowest.

    Args:
      size: n, their length.
    Returns:
      [2^n, n], zeros and ones, default floating dtype.
    Raises:
      ValueError: size < 1.
    """
    _checks.positive_int("size", size)
    return jnp.asarray((np.arange(2**size)[:, None] >> np.arange(size)[::-1]) % 2, float)


@exactly
def binary_chain(denoiser: Callable, schedule: Schedule, ts: jax.Array, size: int) -> jax.Array:
    """Return the exact log p_theta of every sequence: the law of what `binomial.ancestral` draws.

        p_s(x') = sum_x p_t(x) p(x' | x),   p_1 = 2^(-n)

    Args:
      denoiser: (x_t, t) -> P(x_0 = 1 | x_t), [B, n]; any, not only an exact one.
      schedule: the schedule.
      ts: the grid, decreasing, [num_steps + 1].
      size: n: the transition matrices have 4^n entries.
    Returns:
      [2^n], in nats, in the order of `binary_states`.
    Raises:
      ValueError: ts is no decreasing grid, or size < 1.
    """
    _checks.grid("ts", ts)
    states, ts = binary_states(size), jnp.asarray(ts)

    def step(n: Any, law: jax.Array) -> jax.Array:
        p = binomial.q_posterior(schedule, states, denoiser(states, ts[n]), ts[n], ts[n + 1])
        return law @ jnp.exp(_log_matrix(p, states))

    return jnp.log(jax.lax.fori_loop(0, len(ts) - 1, step, jnp.full(2**size, 0.5**size)))


@exactly
def binary_bound(denoiser: Callable, schedule: Schedule, ts: jax.Array, size: int) -> jax.Array:
    """Return the exact variational bound of every sequence: the mean of what `binomial.vlb_terms` estimates, negated.

        -KL(q(x_T | x_0) || B(1/2)) - sum_(t, s) sum_x_t q(x_t | x_0) KL(q(x_s | x_t, x_0) || p(x_s
        | x_t))

    Args:
      denoiser: (x_t, t) -> P(x_0 = 1 | x_t), [B, n]; any, not only an exact one.
      schedule: the schedule.
      ts: the grid, decreasing, to where no noise is left, [num_steps + 1].
      size: n: 4^n divergences a step.
    Returns:
      [2^n], in nats, in the order of `binary_states`: at most `binary_chain`.
    Raises:
      ValueError: ts is no decreasing grid, or size < 1.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eq. (14).
    """
    _checks.grid("ts", ts)
    states, ts = binary_states(size), jnp.asarray(ts)

    def step(n: Any, bound: jax.Array) -> jax.Array:
        t, s = ts[n], ts[n + 1]
        denoised = denoiser(states, t)

        def cost(x_0: jax.Array) -> jax.Array:
            tiled = jnp.broadcast_to(x_0, states.shape)
            divergence = binomial.step_kl(lambda *_: denoised, schedule, tiled, states, t, s)
            reached = jnp.exp(_log_matrix(binomial.q_marginal(schedule, x_0[None], t), states)[0])
            return jnp.sum(jnp.where(reached > 0, reached * divergence, 0))

        return bound - jax.vmap(cost)(states)

    return jax.lax.fori_loop(0, len(ts) - 1, step, -binomial.prior_kl(schedule, states, ts[0]))


def _log_matrix(p: jax.Array, states: jax.Array) -> jax.Array:
    """log B(states_j; p_i), [len(p), len(states)]."""
    p, x = p[:, None], states[None]
    return jnp.sum(xlogy(x, p) + xlog1py(1 - x, -p), axis=-1)
