"""Laws of binary sequences: exact denoisers, and the exact law of a finite binomial chain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp, xlog1py, xlogy

from jaxdiff import _checks, _rows, binomial
from jaxdiff._functions import exactly
from jaxdiff._tree import pytree
from jaxdiff.forward import level
from jaxdiff.schedules import Schedule


@pytree
class BinaryLaw:
    """A law of K binary sequences.

    Fields:
      log_weights: log-probabilities up to a constant, [K], in nats.
      sequences: zeros and ones, all different, [K, n], floating.
    Raises:
      TypeError: a field is not a floating array.
      ValueError: shapes do not fit, or sequences are known and not zeros and ones.
    """

    log_weights: jax.Array
    sequences: jax.Array

    def __post_init__(self) -> None:
        _checks.floating("log_weights", self.log_weights)
        _checks.floating("sequences", self.sequences)
        if self.sequences.shape[:-1] != self.log_weights.shape:
            raise ValueError(
                "log_weights, sequences: expected shapes [K] and [K, n], got "
                f"{self.log_weights.shape} and {self.sequences.shape}"
            )
        _checks.values("sequences", self.sequences, "zeros and ones", lambda v: (v == 0) | (v == 1))

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Return log p(x), [B], in nats, for x [B, n]; -inf for a sequence that is not listed."""
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

    def denoiser(self, schedule: Schedule) -> "BinaryDenoiser":
        """Return the exact denoiser of the binomial process: (x_t [B, n], t) -> P(x_0 = 1 | x_t).

        p(k | x_t) propto w_k prod_i (1 + alpha_t)^[x_ti = k_i] (1 - alpha_t)^[x_ti != k_i]
        """
        return BinaryDenoiser(self, schedule)


@pytree
class BinaryDenoiser:
    """The exact denoiser of a binary law under the binomial process."""

    law: BinaryLaw
    schedule: Schedule

    @exactly
    def __call__(self, x_t: jax.Array, t: Any) -> jax.Array:
        """Return P(x_0 = 1 | x_t), [B, n]."""
        sequences = self.law.sequences.astype(x_t.dtype)
        log_weights = self.law.log_weights.astype(x_t.dtype)
        alpha = level(self.schedule, jnp.broadcast_to(t, x_t.shape[:1]), x_t).alpha
        agreements = (2 * x_t - 1) @ (2 * sequences.T - 1) / 2  # up to a constant
        logits = log_weights[None] + binomial.log_odds(alpha) * agreements
        return jax.nn.softmax(logits, axis=1) @ sequences


def binary_states(size: int) -> jax.Array:
    """List all binary sequences. The first component changes slowest.

    Args:
      size: n, the length of a sequence.
    Returns:
      [2^n, n], zeros and ones, default floating dtype.
    Raises:
      ValueError: size < 1.
    """
    _checks.positive_int("size", size)
    return jnp.asarray((np.arange(2**size)[:, None] >> np.arange(size)[::-1]) % 2, float)


@exactly
def binary_chain(denoiser: Callable, schedule: Schedule, ts: jax.Array, size: int) -> jax.Array:
    """Return the exact log p_theta of every sequence: the law of `binomial.ancestral`.

        p_s(x') = sum_x p_t(x) p(x' | x),   p_1 = 2^(-n)

    Args:
      denoiser: any (x_t, t) -> P(x_0 = 1 | x_t), [B, n]; it need not be exact.
      schedule: the schedule.
      ts: the grid, decreasing, [num_steps + 1].
      size: n. A transition matrix has 4^n entries.
    Returns:
      [2^n], in nats, in the order of `binary_states`.
    Raises:
      ValueError: ts is not a decreasing grid, or size < 1.
    """
    _checks.grid("ts", ts)
    states, ts = binary_states(size), jnp.asarray(ts)

    def step(n: Any, law: jax.Array) -> jax.Array:
        denoised = denoiser(states, ts[n])
        p = binomial.q_posterior(schedule, states, denoised, t=ts[n], s=ts[n + 1])
        return law @ jnp.exp(_log_matrix(p, states))

    return jnp.log(jax.lax.fori_loop(0, len(ts) - 1, step, jnp.full(2**size, 0.5**size)))


@exactly
def binary_bound(denoiser: Callable, schedule: Schedule, ts: jax.Array, size: int) -> jax.Array:
    """Return the exact variational lower bound of every sequence.

        -KL(q(x_T | x_0) || B(1/2))
            - sum_(t, s) sum_x_t q(x_t | x_0) KL(q(x_s | x_t, x_0) || p(x_s | x_t))

    It is minus the mean of the sum of `binomial.vlb_terms`.

    Args:
      denoiser: any (x_t, t) -> P(x_0 = 1 | x_t), [B, n]; it need not be exact.
      schedule: the schedule.
      ts: the grid, decreasing, to a time without noise, [num_steps + 1].
      size: n. A step takes 4^n divergences.
    Returns:
      [2^n], in nats, in the order of `binary_states`; at most `binary_chain`.
    Raises:
      ValueError: ts is not a decreasing grid, or size < 1.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eq. (14).
    """
    _checks.grid("ts", ts)
    states, ts = binary_states(size), jnp.asarray(ts)

    def step(n: Any, bound: jax.Array) -> jax.Array:
        t, s = ts[n], ts[n + 1]
        p = binomial.q_posterior(schedule, states, denoiser(states, t), t=t, s=s)

        def cost(x_0: jax.Array) -> jax.Array:
            tiled = jnp.broadcast_to(x_0, states.shape)
            q = binomial.q_posterior(schedule, states, tiled, t=t, s=s)
            divergence = binomial.bernoulli_kl(q, p)
            weight = jnp.exp(_log_matrix(binomial.q_marginal(schedule, x_0[None], t), states)[0])
            return jnp.sum(jnp.where(weight > 0, weight * divergence, 0))

        return bound - jax.vmap(cost)(states)

    return jax.lax.fori_loop(0, len(ts) - 1, step, -binomial.prior_kl(schedule, states, ts[0]))


def _log_matrix(p: jax.Array, states: jax.Array) -> jax.Array:
    """log B(states_j; p_i), [len(p), len(states)]."""
    p, x = p[:, None], states[None]
    return jnp.sum(xlogy(x, p) + xlog1py(1 - x, -p), axis=-1)
