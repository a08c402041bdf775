"""What the samplers of p(x_0) r(x_0) share: a weighted draw, and how weights read a likelihood.

They draw x_s from a proposal q(x_s | x_t) and weight it by

    increment = log p(x_s | x_t) - log q(x_s | x_t) + log r_s(x_s) - log r_t(x_t),   r_0 = r

The product of all increments is r(x_0) p(path) / q(path), for any twists r_t in between. The twists
change the variance of the weights alone.

A likelihood may be 0 (log r = -inf). NaN is a likelihood of 0 too. At t = 0 that gives a weight of
0. At t > 0 the row may still come to a state of positive likelihood: if log r_s is not finite, the
last finite one of the row takes its place; if the gradient is not finite, the row takes the step of
the model. The weights stay exact.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _rows
from jaxdiff.kernels._kernel import Algorithm, noise
from jaxdiff.normal import Normal

POSITIVE = "a positive standard deviation"


def draw_weighted(
    key: jax.Array, p: Normal, q: Normal, s: Any, *, reference: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Draw x_s from q and weight it for p: (x_s, log p(x_s) - log q(x_s)), [B, *D] and [B].

    A step to s = 0 takes the mean of p, as a reverse process does, with the log weight 0. With a
    reference [*D] the first row has the noise that leads there.
    """
    at_end = jnp.asarray(s) <= 0
    eps = noise(key, p.mean, s)
    safe_p, safe_q = (Normal(v.mean, jnp.where(at_end, 1, v.variance)) for v in (p, q))
    if reference is not None:
        spread = jnp.broadcast_to(safe_q.variance, eps.shape)[0]
        eps = eps.at[0].set((reference - q.mean[0]) / jnp.sqrt(spread))
    x_s, ratio = safe_q.draw_for(safe_p, eps)
    return jnp.where(at_end, p.mean, x_s), jnp.where(at_end, 0, ratio)


def tilt(p: Normal, gradient: jax.Array) -> Normal:
    """Multiply a step by exp(gradient . x): N(mean + variance gradient, variance)."""
    return finite_or(Normal(p.mean + p.variance * gradient, p.variance), p)


def finite_or(q: Normal, p: Normal) -> Normal:
    """Return the proposal q, and the model's step p in the rows where q is not finite."""
    variance = jnp.broadcast_to(q.variance, q.mean.shape)
    usable = _rows.all_finite(q.mean) & _rows.all_finite(variance)
    return Normal(jnp.where(usable, q.mean, p.mean), jnp.where(usable, variance, p.variance))


def weighable(log_r: jax.Array, before: jax.Array, s: Any) -> jax.Array:
    """log r_s for the weights, [B]: at s > 0 the last finite one, at s = 0 -inf for NaN."""
    at_end = jnp.where(jnp.isnan(log_r), -jnp.inf, log_r)
    return jnp.where(jnp.asarray(s) > 0, jnp.where(jnp.isfinite(log_r), log_r, before), at_end)


def no_twist(x_init: jax.Array, t: Any) -> jax.Array:
    """The log r_t that the weights of a start contain: 0, [B]. The first step adds log r_s."""
    return jnp.zeros(x_init.shape[:1], _rows.state_dtype(x_init.dtype))


class Weighted(Algorithm):
    """A sampler of two halves: a proposal for the step, and what its weight says where it led.

    A subclass defines `steps`, `arrive` and `log_r_of`.
    """

    def steps(self, carry: Any, x_t: jax.Array, t: Any, s: Any) -> tuple[Normal, Normal]:
        """Return the model's step p(x_s | x_t), and q(x_s | x_t), of which x_s is a draw."""
        raise NotImplementedError

    def arrive(self, carry: Any, x_s: jax.Array, t: Any, s: Any) -> Any:
        """Return the carry at x_s."""
        raise NotImplementedError

    def log_r_of(self, carry: Any) -> jax.Array:
        """Return the log r_t that the weights contain, [B]."""
        raise NotImplementedError

    def step(
        self,
        key: jax.Array,
        carry: Any,
        x_t: jax.Array,
        t: Any,
        s: Any,
        *,
        reference: jax.Array | None = None,
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Draw from the proposal and weight. With a reference [*D] the first row goes there."""
        p, q = self.steps(carry, x_t, t, s)
        x_s, ratio = draw_weighted(key, p, q, s, reference=reference)
        x_s = x_s.astype(x_t.dtype)
        new = self.arrive(carry, x_s, t, s)
        return new, x_s, ratio + self.log_r_of(new) - self.log_r_of(carry)

    def log_continuation(
        self, carry: Any, x_t: jax.Array, times: tuple[Any, Any], x_s: jax.Array
    ) -> jax.Array:
        """Return log p(x_s | x_t) - log r_t(x_t) for one x_s [*D] after every row, [B].

        times is (t, s). It is by how much a path that goes on from x_s gains if it comes from x_t.
        """
        p, _ = self.steps(carry, x_t, *times)
        return p.log_prob(x_s[None]) - self.log_r_of(carry)
