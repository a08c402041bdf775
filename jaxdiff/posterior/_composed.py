"""Models combined: products, powers and quotients by Feynman-Kac weights, mixtures by their densities along the path.

In z = x / alpha every process is dz = dw with variance u = (sigma / alpha)^2, and q_i has the score
(D_i - z) / u.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function
from jaxdiff.forward import level, q_posterior
from jaxdiff.kernels import Kernel, no_weight
from jaxdiff.kernels._kernel import is_clean, noise
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


class Composed(NamedTuple):
    """What is known at the rows' states: it is passed on, so that a step costs one call of each denoiser.

    Fields:
      x: the state it is known of, [B, *D]: at the start it is not the driver's.
      x_0: every model's denoised state, [B, K, *D].
      pending: log weights that the next step brings in, [B].
    """

    x: jax.Array
    x_0: jax.Array
    pending: jax.Array


def composed(
    denoisers: Sequence[Callable],
    exponents: Any,
    schedule: Schedule,
    *,
    prior_std: Any = 1.0,
    move: Callable | None = None,
) -> Kernel:
    """Return the kernel of a product of powers of models, with the weights that make it one.

        p(x) ~ prod_i q_i(x)^a_i,   S = sum_i a_i s_i,   A = sum_i a_i,   b = (A - 1) / 2
        dz = (S + b z / (u + prior_std^2)) du + dw,   on the way from large u to small
        dlog w / du = 1/2 (|S|^2 - sum_i a_i |s_i|^2) + b (d + <z, S>) / (u + prior_std^2)

    Sampling with S alone draws from no such product, since diffused products are not products of
    the diffused: the weights make up for it. They converge as the number of rows grows and the
    steps shrink; the evidence of a run is log int prod_i q_i^a_i dx. A product of experts has a =
    (1, 1), a quotient (1, -1, 1), an annealed model (2,), and classifier-free guidance at scale w,
    as a density, (w, 1 - w).

    Args:
      denoisers: K models, each (x_t, t) -> E[x_0 | x_t].
      exponents: a, [K], traced, of positive sum; the product must be normalisable, which a negative
        one may prevent.
      schedule: the noise schedule, of all of them.
      prior_std: standard deviation of an entry of the data, [], traced. The term with b keeps the
        weights equal where all models are N(0, prior_std^2 I), as they all are for large u; the
        limit does not depend on it.
      move: None, or (key, x [B, *D], t) -> x, a Markov chain Monte Carlo move that leaves the
        product at t as it is, such as `langevin`, `metropolis` or `hamiltonian`; made after every
        step but the last, for a call of each denoiser.
    Returns:
      A Kernel; one call of each denoiser a step, and one to begin with. The start is brought from
      N(0, sigma^2 I) to N(0, sigma^2 / A I), which is the product's noise.
    Raises:
      ValueError: no denoisers, not as many exponents, or their sum is known and not positive and
        finite.
      TypeError: a denoiser is no function.
    Numerics: an exponential step in h = lambda_s - lambda_t, ancestral's ("small") where A = 1; the
      weight's integral is the trapezoid in h.
    Source: Skreta et al. 2025, arXiv:2503.02819 (Feynman-Kac correctors), with alpha divided out
      and the term with b added, for which Ito's formula gives the weight; Du et al. 2023,
      arXiv:2302.11552, for the moves.
    """
    functions, exponents = _functions(denoisers), jnp.asarray(exponents)
    if jnp.shape(exponents) != (len(functions),):
        raise ValueError(
            f"exponents: expected one a denoiser, shape ({len(functions)},), got {jnp.shape(exponents)}"
        )
    _checks.finite("exponents", exponents)
    known = _checks.known(exponents)
    if known is not None and known.sum() <= 0:
        raise ValueError(f"exponents: expected a positive sum, got {known.tolist()}")
    _checks.values("prior_std", prior_std, "a positive standard deviation", lambda v: v > 0)
    mover = None if move is None else as_function("move", move)
    model = functions, exponents, schedule
    return Kernel(
        Partial(_composed_init, *model), Partial(_composed_step, mover, *model, prior_std)
    )


def _functions(denoisers: Sequence[Callable]) -> tuple[Partial, ...]:
    if not isinstance(denoisers, list | tuple) or not denoisers:
        raise ValueError(f"denoisers: expected a list of at least one denoiser, got {denoisers!r}")
    return tuple(as_function(f"denoisers[{i}]", denoiser) for i, denoiser in enumerate(denoisers))


def _all(denoisers: tuple[Partial, ...], x: jax.Array, t: Any) -> jax.Array:
    """Every model's denoised state, [B, K, *D]."""
    return jnp.stack([x_0_of(denoiser(x, t), x) for denoiser in denoisers], axis=1)


def _weighted(exponents: jax.Array, values: jax.Array) -> jax.Array:
    """sum_k a_k v_k, [B, ...], of values [B, K, ...]; exponents [K] or [B, K]."""
    return jnp.einsum(
        "bk,bk...->b...", jnp.broadcast_to(exponents, values.shape[:2]).astype(values.dtype), values
    )


def _composed_init(
    denoisers: tuple[Partial, ...],
    exponents: jax.Array,
    schedule: Schedule,
    x_init: jax.Array,
    t: Any,
) -> Composed:
    total = jnp.sum(exponents).astype(x_init.dtype)
    x = x_init / jnp.sqrt(total)
    # log int N(z; 0, u I)^A dz, of which the start is a draw.
    log_u = -level(schedule, t, x).log_snr
    start = x[0].size / 2 * ((1 - total) * (jnp.log(2 * jnp.pi) + log_u) - jnp.log(total))
    return Composed(
        x, _all(denoisers, x, t), jnp.broadcast_to(start, x.shape[:1]).astype(no_weight(x).dtype)
    )


def _rate(
    exponents: jax.Array, prior_std: Any, x: jax.Array, x_0: jax.Array, schedule: Schedule, t: Any
) -> jax.Array:
    """dlog w / dh at the states, [B]: u times what the docstring has."""
    alpha, sigma, _ = level(schedule, t, x)
    # sqrt(u) s_i = (alpha D_i - x) / sigma, and sqrt(u) S of all of them.
    errors = ((alpha * x_0.swapaxes(0, 1) - x[None]) / sigma).swapaxes(0, 1)
    flat = errors.reshape(*errors.shape[:2], -1)
    joint = _weighted(exponents, flat)
    gap = _rows.event_sum(joint**2) - _weighted(exponents, jnp.sum(flat**2, axis=2))
    share, b = _share(schedule, prior_std, x, t), (jnp.sum(exponents).astype(x.dtype) - 1) / 2
    inner = _rows.event_sum(x.reshape(len(x), -1) / sigma.reshape(-1, 1) * joint)
    return gap / 2 + b * share * (flat.shape[2] + inner)


def _share(schedule: Schedule, prior_std: Any, x: jax.Array, t: Any) -> jax.Array:
    """u / (u + prior_std^2), []."""
    alpha, sigma, _ = level(schedule, t, x)
    return sigma**2 / (sigma**2 + alpha**2 * jnp.asarray(prior_std, sigma.dtype) ** 2)


def _composed_step(
    move: Partial | None, denoisers: tuple[Partial, ...], exponents: jax.Array, schedule: Schedule, prior_std: Any,
    key: jax.Array, carry: Composed, x_t: jax.Array, t: Any, s: Any,
) -> tuple[Composed, jax.Array, jax.Array]:  # fmt: skip
    keys = _rows.split(_rows.keys(key, x_t.shape[0]))
    early, late = level(schedule, s, x_t), level(schedule, t, x_t)
    h = early.log_snr - late.log_snr
    total = jnp.sum(exponents).astype(h.dtype)
    # dz / dh = sum_i a_i D_i - pull z, with both held over the step; its noise has the variance u_s
    # grown.
    pull = total - (total - 1) / 2 * _share(schedule, prior_std, x_t, t)
    left, excess = jnp.exp(-pull * h), 2 * pull - 1
    flat = jnp.abs(excess) < 1e-4  # in the limit grown is h
    grown = jnp.where(flat, h, -jnp.expm1(-excess * h) / jnp.where(flat, 1, excess))
    x_s = early.alpha * (
        left / late.alpha * carry.x + (1 - left) / pull * _weighted(exponents, carry.x_0)
    )
    x_s = (x_s + early.sigma * jnp.sqrt(grown) * noise(keys[0], x_t, s)).astype(x_t.dtype)
    begin = _rate(exponents, prior_std, carry.x, carry.x_0, schedule, t)

    def look(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_0 = _all(denoisers, x, s)
        return x_0, (begin + _rate(exponents, prior_std, x, x_0, schedule, s)) / 2 * h

    def end(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The rate falls as u does on the way to the data, however far that is in h.
        return carry.x_0, -begin * jnp.expm1(-h)

    x_0, gained = jax.lax.cond(is_clean(early), end, look, x_s)
    if move is not None:

        def moved(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            new = move(keys[1], x, s).astype(x.dtype)
            return new, _all(denoisers, new, s)

        x_s, x_0 = jax.lax.cond(jnp.asarray(s) > 0, moved, lambda x: (x, x_0), x_s)
    increment = (carry.pending + gained).astype(carry.pending.dtype)
    return Composed(x_s, x_0, jnp.zeros_like(increment)), x_s, increment


def composed_score(denoisers: Sequence[Callable], exponents: Any, schedule: Schedule) -> Partial:
    """Return the weighted sum of the models' scores.

        S(x, t) = sum_i a_i s_i(x, t),   s_i = (alpha_t D_i - x) / sigma_t^2

    Args:
      denoisers: K models, each (x_t, t) -> E[x_0 | x_t].
      exponents: a, [K], traced.
      schedule: the noise schedule.
    Returns:
      (x [B, *D], t) -> [B, *D].
    Raises:
      ValueError: no denoisers.
    """
    return Partial(_score, _functions(denoisers), jnp.asarray(exponents), schedule)


def _score(
    denoisers: tuple[Partial, ...], exponents: jax.Array, schedule: Schedule, x: jax.Array, t: Any
) -> jax.Array:
    alpha, sigma, _ = level(schedule, t, x)
    total = jnp.sum(exponents).astype(x.dtype)
    return (alpha * _weighted(exponents, _all(denoisers, x, t)) - total * x) / sigma**2


def mixed(denoisers: Sequence[Callable], log_weights: Any, schedule: Schedule) -> Kernel:
    """Return the kernel of a mixture of models: each step is drawn from the models that the path so far speaks for.

        p(x) = sum_i w_i q_i(x),   x_s ~ sum_i r_i p_i(x_s | x_t),   r_i ~ w_i prod p_i(steps so far)

    Its law is the mixture of the finite chains, at any number of steps; unlike a choice of model
    made at the start it tells, in its memory, what the whole path says of the models.

    Args:
      denoisers: K models, each (x_t, t) -> E[x_0 | x_t].
      log_weights: log w, [K], traced; normalised here. A model of -inf is never chosen.
      schedule: the noise schedule, of all of them.
    Returns:
      A Kernel that remembers log r, [B, K], with zero increments; one call of each denoiser a step.
      Weights that are traced and add up to nothing, or are NaN or +inf, give NaN.
    Raises:
      ValueError: no denoisers, not as many weights, or they are known and NaN, +inf or all -inf.
      TypeError: a denoiser is no function.
    Source: Bayes' rule over the chains; in continuous time the Ito density estimator of Skreta et
      al. 2024, arXiv:2412.17762, Theorem 1.
    """
    functions, log_weights = _functions(denoisers), jnp.asarray(log_weights)
    if jnp.shape(log_weights) != (len(functions),):
        raise ValueError(
            f"log_weights: expected one a denoiser, shape ({len(functions)},), got {jnp.shape(log_weights)}"
        )
    _checks.values(
        "log_weights",
        log_weights,
        "log weights below infinity",
        lambda v: v < jnp.inf,
        finite=False,
    )
    known = _checks.known(log_weights)
    if known is not None and not (known > -jnp.inf).any():
        raise ValueError(f"log_weights: expected a model of positive weight, got {known.tolist()}")
    return Kernel(
        Partial(_mixed_init, jnp.asarray(log_weights)), Partial(_mixed_step, functions, schedule)
    )


def _mixed_init(log_weights: jax.Array, x_init: jax.Array, t: Any) -> jax.Array:
    shares = jax.nn.log_softmax(log_weights.astype(no_weight(x_init).dtype))
    return jnp.broadcast_to(shares, (x_init.shape[0], *shares.shape))


def _mixed_step(
    denoisers: tuple[Partial, ...],
    schedule: Schedule,
    key: jax.Array,
    carry: jax.Array,
    x_t: jax.Array,
    t: Any,
    s: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = _rows.split(_rows.keys(key, x_t.shape[0]))
    steps = [
        q_posterior(schedule, x_t, x_0, t, s) for x_0 in _all(denoisers, x_t, t).swapaxes(0, 1)
    ]
    means, variance = jnp.stack([step.mean for step in steps], axis=1), steps[0].variance
    chosen = jax.vmap(jax.random.categorical)(keys[0], carry)
    own = jax.vmap(lambda rows, k: rows[k])(means, chosen)
    own = jnp.where(
        _rows.expand(jnp.isnan(carry).any(axis=1), own), jnp.nan, own
    )  # no choice can be made of these
    x_s = (own + jnp.sqrt(variance) * noise(keys[1], x_t, s)).astype(x_t.dtype)
    safe = jnp.where(variance > 0, variance, 1)
    squared = jnp.sum(
        ((x_s[:, None] - means) ** 2 / safe[:, None]).reshape(*carry.shape, -1), axis=2
    )
    # A step to data without noise has no density; its models are the rows' own by then.
    said = jnp.where(jnp.asarray(s) > 0, jax.nn.log_softmax(carry - squared / 2, axis=1), carry)
    return said.astype(carry.dtype), x_s, no_weight(x_t)
