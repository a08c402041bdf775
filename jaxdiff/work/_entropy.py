"""The dissipation of each reverse step, and bounds of the entropy of the true process."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff.chain import Chain
from jaxdiff.forward import level, q_sample, q_step, renewed
from jaxdiff.schedules import Schedule


def entropy_production(
    key: jax.Array, chain: Chain, x_0: jax.Array, log_marginal: Callable
) -> jax.Array:
    """Return the entropy production of each reverse step, on one forward path of each example.

        log [q_s(x_s) q(x_t | x_s)] / [q_t(x_t) p(x_s | x_t)]
        E = KL(q(x_s | x_t) || p(x_s | x_t)) >= 0

    The sum over the path, with the terms of the prior and the decoder, is -(bound) - H(data), which
    is the gap of the bound.

    Args:
      key: typed PRNG key. Row i depends on (key, i) alone.
      chain: the model.
      x_0: data, [B, *D], drawn from q_0.
      log_marginal: (x_t [B, *D], t []) -> log q_t(x_t), [B], for instance of an oracle:
        `lambda x, t: mixture.diffuse(schedule, t).log_prob(x)`.
    Returns:
      [num_transitions, B], in nats, in the order of the reverse process.
    Raises:
      TypeError: x_0 is not floating, or key is not a typed key.
    Source: Seifert 2005, Phys. Rev. Lett. 95, 040602, Eq. (8).
    """
    _checks.data("x_0", x_0)
    keys = _rows.keys(key, x_0.shape[0])
    ts = chain.times

    def step(inputs: Any) -> jax.Array:
        n, t, s = inputs
        eps_s, eps_t = (
            _rows.normal(_rows.fold(keys, 2 * n + i), x_0).astype(x_0.dtype) for i in range(2)
        )
        x_s = q_sample(chain.schedule, x_0, s, eps_s)
        x_t = q_step(chain.schedule, x_s, s, t, eps_t)
        return log_marginal(x_s, s) - log_marginal(x_t, t) - chain.log_step_ratio(x_s, x_t, s, t)

    return jax.lax.map(step, (jnp.arange(len(ts) - 1), ts[:-1], ts[1:]))


class EntropyBounds(NamedTuple):
    """Bounds of H_q(x_s | x_t), the entropy of true reverse steps, [num_steps], in nats."""

    lower: jax.Array
    upper: jax.Array


def entropy_bounds(schedule: Schedule, ts: jax.Array, event_size: int) -> EntropyBounds:
    """Bound the entropy of the true reverse steps by entropies of normal distributions.

        H_q(x_s | x_t, x_0) <= H_q(x_s | x_t) <= H_q(x_t | x_s),   H of N(., v I): d/2 log(2 pi e v)

    Args:
      schedule: the noise schedule.
      ts: the grid, decreasing, [num_steps + 1].
      event_size: d.
    Returns:
      EntropyBounds, in the order of the reverse process. The lower bound of a step to clean data is
      -inf. The upper bound holds where diffusion raises the entropy, H_q(x_s) <= H_q(x_t).
    Raises:
      ValueError: ts is not a decreasing grid, or event_size < 1.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eqs. (24) and (25).
    """
    _checks.grid("ts", ts)
    _checks.positive_int("event_size", event_size)
    ts = jnp.asarray(ts)
    x = jnp.zeros_like(ts[1:])
    level_s, level_t = (level(schedule, times, x) for times in (ts[1:], ts[:-1]))
    new = renewed(level_t, level_s)

    def entropy(sigma: jax.Array) -> jax.Array:
        return event_size / 2 * jnp.log(2 * jnp.pi * jnp.e * sigma**2 * new)

    return EntropyBounds(entropy(level_s.sigma), entropy(level_t.sigma))
