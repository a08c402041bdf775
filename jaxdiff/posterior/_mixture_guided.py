"""Mixture-guided diffusion: a Gibbs sweep through an earlier time in every step."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import level, q_between
from jaxdiff.kernels import Kernel, ancestral
from jaxdiff.kernels._kernel import Algorithm, lift, no_weight
from jaxdiff.observations import log_likelihoods
from jaxdiff.prediction import x_0_of
from jaxdiff.sampling import run
from jaxdiff.schedules import Schedule

# u is at least this share of s: below, the denoiser only returns what it is given.
LEAST = 0.01
# Decays of Adam's moments, and what keeps its quotient finite.
B1, B2, TINY = 0.9, 0.99, 1e-8


def mgdm(
    denoiser: Callable,
    schedule: Schedule,
    log_likelihood: Callable,
    *,
    num_sweeps: int = 1,
    num_gradients: int = 5,
    num_denoising: int = 5,
    learning_rate: Any = 0.1,
    variance: Any = "small",
) -> Kernel:
    """Return the mixture-guided diffusion model: an approximation without weights.

        x_s ~ q(x_s | x_t, x_0), and then num_sweeps times, for a random u in (0, s):
        x_u ~ q(x_u | x_s, x_0) p(y | D(x_u)),  by a normal law that is fitted to it
        x_0 ~ p(x_0 | x_u),                     by num_denoising steps of `kernels.ancestral`
        x_s ~ q(x_s | x_u)

    The likelihood at the noisy state x_s is that of the denoised state at one of many earlier times
    u, where D says more: a mixture of them. The normal law N(m + sqrt(v) a, v e^{2b}), where m and
    v are those of q(x_u | x_s, x_0), minimises its divergence from the product by num_gradients
    steps of Adam on a and b, from a = b = 0 and with one draw of noise each. Without an observation
    a sweep leaves p(x_s) as it is, up to the error of the few denoising steps.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      log_likelihood: one x_0 [*D] -> log p(y | x_0), [], in nats, with a gradient.
      num_sweeps: R, static.
      num_gradients: G, static.
      num_denoising: M, static. A step calls the denoiser R (2 G + M) times.
      learning_rate: of Adam, [], positive, traced, in units of the standard deviation sqrt(v).
      variance: of the denoising steps, as `kernels.ancestral` takes it.
    Returns:
      A Kernel with zero increments. It remembers x_0. It starts from the noise of `prior_sample`.
      Each row has its own u.
    Raises:
      ValueError: a number is < 1, or learning_rate is not positive.
      TypeError: denoiser or log_likelihood is not a function.
    Numerics: a gradient that is not finite moves nothing.
    Source: Janati et al. 2025, arXiv:2502.03332, Algorithm 1.
    """
    return lift(
        MGDM(
            denoiser,
            schedule,
            log_likelihood,
            num_sweeps=num_sweeps,
            num_gradients=num_gradients,
            num_denoising=num_denoising,
            learning_rate=learning_rate,
            variance=variance,
        )
    )


@pytree
class MGDM(Algorithm):
    """The algorithm of `mgdm`."""

    denoiser: Callable
    schedule: Schedule
    log_likelihood: Callable
    _: KW_ONLY
    num_sweeps: int = static(default=1)
    num_gradients: int = static(default=5)
    num_denoising: int = static(default=5)
    learning_rate: Any = 0.1
    variance: Any = static(default="small")

    def __post_init__(self) -> None:
        for name in ("num_sweeps", "num_gradients", "num_denoising"):
            _checks.positive_int(name, getattr(self, name))
        _checks.values("learning_rate", self.learning_rate, "a positive rate", lambda v: v > 0)
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            log_likelihood=as_function("log_likelihood", self.log_likelihood),
        )

    def init(self, x_init: jax.Array, t: jax.Array) -> jax.Array:
        """Return the first x_0, the denoised noise."""
        return x_0_of(self.denoiser(x_init, t), x_init)

    def step(self, key: Any, carry: Any, x_t: jax.Array, t: Any, s: Any) -> tuple[Any, Any, Any]:
        """Go to s, and sweep there; the last step returns x_0."""
        x_0, keys = carry, _rows.keys(key, x_t.shape[0])
        between = q_between(x_t, x_0, level(self.schedule, t, x_t), level(self.schedule, s, x_t))
        x_s = between.mean + jnp.sqrt(between.variance) * _rows.normal(_rows.fold(keys, 0), x_t)

        def one(key_row: jax.Array, x_0: jax.Array, x_s: jax.Array) -> tuple[jax.Array, jax.Array]:
            """A row by itself, because it has a time u of its own."""
            key_u, key_sweep = jax.random.split(key_row)
            u = s * jax.random.uniform(key_u, (), x_s.dtype, LEAST)
            out = self.sweep(key_sweep[None], (x_0[None], x_s[None]), s, u)
            return out[0][0], out[1][0]

        def sweep(n: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return jax.vmap(one)(_rows.fold(keys, n), *state)

        swept = jax.lax.fori_loop(1, self.num_sweeps + 1, sweep, (x_0, x_s))
        more = jnp.asarray(s) > 0
        x_0 = jnp.where(more, swept[0], x_0)
        return x_0, jnp.where(more, swept[1], x_0).astype(x_t.dtype), no_weight(x_t)

    def sweep(
        self, keys: jax.Array, state: tuple[jax.Array, jax.Array], s: Any, u: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Draw x_u given (x_0, x_s), then x_0, then x_s."""
        x_0, x_s = state
        key_fit, key_u, key_0, key_s = _rows.split(keys, 4)
        level_s, level_u = level(self.schedule, s, x_s), level(self.schedule, u, x_s)
        between = q_between(x_s, x_0, level_s, level_u)
        mean, std = between.mean, jnp.sqrt(between.variance)
        shift, log_scale = self.fitted(key_fit, mean, std, u)
        x_u = mean + std * (shift + jnp.exp(log_scale) * _rows.normal(key_u, x_s))
        ts = u * jnp.linspace(1, 0, self.num_denoising + 1, dtype=x_s.dtype)
        reverse = ancestral(self.denoiser, self.schedule, variance=self.variance)
        x_0 = run(key_0, reverse, x_u, ts).x
        kept = level_s.alpha / level_u.alpha
        added = jnp.sqrt(jnp.maximum(level_s.sigma**2 - (kept * level_u.sigma) ** 2, 0))
        return x_0, kept * x_u + added * _rows.normal(key_s, x_s)

    def fitted(
        self, keys: jax.Array, mean: jax.Array, std: jax.Array, u: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Fit the normal law: its shift a and log-scale b, in units of the deviation."""

        def divergence(parameters: Any, z: jax.Array) -> jax.Array:
            shift, log_scale = parameters
            x_u = mean + std * (shift + jnp.exp(log_scale) * z)
            fits = log_likelihoods(self.log_likelihood, x_0_of(self.denoiser(x_u, u), x_u))
            near = 0.5 * (jnp.exp(2 * log_scale) + shift**2) - log_scale
            return jnp.sum(_rows.event_sum(near) - fits)

        def one(n: Any, state: Any) -> Any:
            parameters, first, second = state
            grads = jax.grad(divergence)(parameters, _rows.normal(_rows.fold(keys, n), mean))
            grads = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), grads)
            first = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, first, grads)
            second = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g**2, second, grads)
            step = self.learning_rate * jnp.sqrt(1 - B2**n) / (1 - B1**n)
            moved = jax.tree.map(
                lambda p, m, v: p - step.astype(p.dtype) * m / (jnp.sqrt(v) + TINY),
                parameters, first, second,
            )  # fmt: skip
            return moved, first, second

        zeros = (jnp.zeros_like(mean), jnp.zeros_like(mean))
        start = (zeros, zeros, zeros)
        return jax.lax.fori_loop(1, self.num_gradients + 1, one, start)[0]
