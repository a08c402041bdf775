"""Models combined: products, powers and quotients by Feynman-Kac weights, and mixtures.

In z = x / alpha every process is dz = dw with variance u = (sigma / alpha)^2, and q_i has the score
(D_i - z) / u.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree
from jaxdiff.forward import level, q_posterior
from jaxdiff.kernels import Kernel, no_weight
from jaxdiff.kernels._kernel import Algorithm, is_clean, lift, noise
from jaxdiff.posterior._weighting import POSITIVE
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


def as_denoisers(denoisers: Sequence[Callable]) -> tuple[Any, ...]:
    """The denoisers as pytrees; at least one."""
    if not isinstance(denoisers, list | tuple) or not denoisers:
        raise ValueError(f"denoisers: expected a list of at least one denoiser, got {denoisers!r}")
    return tuple(as_function(f"denoisers[{i}]", denoiser) for i, denoiser in enumerate(denoisers))


def denoised_by_all(denoisers: Sequence[Callable], x: jax.Array, t: Any) -> jax.Array:
    """The denoised state of every model, [B, K, *D]."""
    return jnp.stack([x_0_of(denoiser(x, t), x) for denoiser in denoisers], axis=1)


def weighted_sum(exponents: jax.Array, values: jax.Array) -> jax.Array:
    """sum_k a_k v_k, [B, ...], of exponents [K] and values [B, K, ...]."""
    weights = jnp.broadcast_to(exponents.astype(values.dtype), values.shape[:2])
    return jnp.einsum("bk,bk...->b...", weights, values)


@pytree
class ComposedScore:
    """The weighted sum of scores: (x [B, *D], t) -> [B, *D]."""

    denoisers: Sequence[Callable]
    exponents: Any
    schedule: Schedule

    def __post_init__(self) -> None:
        denoisers, exponents = as_denoisers(self.denoisers), jnp.asarray(self.exponents)
        put(self, denoisers=denoisers, exponents=exponents)

    def __call__(self, x: jax.Array, t: Any) -> jax.Array:
        """Return S(x, t)."""
        alpha, sigma, _ = level(self.schedule, t, x)
        total = jnp.sum(self.exponents).astype(x.dtype)
        x_0 = denoised_by_all(self.denoisers, x, t)
        return (alpha * weighted_sum(self.exponents, x_0) - total * x) / sigma**2


def composed_score(
    denoisers: Sequence[Callable], exponents: Any, schedule: Schedule
) -> ComposedScore:
    """Return the weighted sum of the models' scores.

        S(x, t) = sum_i a_i s_i(x, t),   s_i = (alpha_t D_i - x) / sigma_t^2

    Args:
      denoisers: K models, each (x_t, t) -> E[x_0 | x_t].
      exponents: a, [K], traced.
      schedule: the noise schedule.
    Returns:
      (x [B, *D], t) -> [B, *D].
    Raises:
      ValueError: there is no denoiser.
      TypeError: a denoiser is not a function.
    """
    return ComposedScore(denoisers, exponents, schedule)


class ComposedState(NamedTuple):
    """What a step leaves for the next, so that a step costs one call of each denoiser.

    Fields:
      x: the state, [B, *D]. At the start it is not the driver's.
      x_0: the denoised state of every model, [B, K, *D].
      pending: log weights that the next step adds, [B].
    """

    x: jax.Array
    x_0: jax.Array
    pending: jax.Array


@pytree
class Composed(Algorithm):
    """The sampler of a product of powers of models."""

    denoisers: Sequence[Callable]
    exponents: Any
    schedule: Schedule
    prior_std: Any = 1.0
    move: Any = None

    def __post_init__(self) -> None:
        denoisers, exponents = as_denoisers(self.denoisers), jnp.asarray(self.exponents)
        if jnp.shape(exponents) != (len(denoisers),):
            raise ValueError(
                f"exponents: expected one a denoiser, shape ({len(denoisers)},), "
                f"got {jnp.shape(exponents)}"
            )
        _checks.finite("exponents", exponents)
        known = _checks.known(exponents)
        if known is not None and known.sum() <= 0:
            raise ValueError(f"exponents: expected a positive sum, got {known.tolist()}")
        _checks.values("prior_std", self.prior_std, POSITIVE, lambda v: v > 0)
        move = None if self.move is None else as_function("move", self.move)
        put(self, denoisers=denoisers, exponents=exponents, move=move)

    def init(self, x_init: jax.Array, t: Any) -> ComposedState:
        """Scale the start to the noise of the product. Its log weight is pending."""
        total = jnp.sum(self.exponents).astype(x_init.dtype)
        x = x_init / jnp.sqrt(total)
        # log int N(z; 0, u I)^A dz, of which the start is a draw.
        log_u = -level(self.schedule, t, x).log_snr
        start = x[0].size / 2 * ((1 - total) * (jnp.log(2 * jnp.pi) + log_u) - jnp.log(total))
        pending = jnp.broadcast_to(start, x.shape[:1]).astype(no_weight(x).dtype)
        return ComposedState(x, denoised_by_all(self.denoisers, x, t), pending)

    def step(
        self, key: jax.Array, carry: ComposedState, x_t: jax.Array, t: Any, s: Any
    ) -> tuple[ComposedState, jax.Array, jax.Array]:
        """Step along S, weight, and move."""
        key_step, key_move = _rows.split(_rows.keys(key, x_t.shape[0]))
        level_s, level_t = level(self.schedule, s, x_t), level(self.schedule, t, x_t)
        h = level_s.log_snr - level_t.log_snr
        mean, std = self.transition(carry, h, t)
        x_s = level_s.alpha * mean + level_s.sigma * std * noise(key_step, x_t, s)
        x_s = x_s.astype(x_t.dtype)
        rate_t = self.rate(carry.x, carry.x_0, t)

        def middle(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            x_0 = denoised_by_all(self.denoisers, x, s)
            return x_0, (rate_t + self.rate(x, x_0, s)) / 2 * h

        def end(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            # The rate falls with u on the way to the data, and h may be infinite.
            return carry.x_0, -rate_t * jnp.expm1(-h)

        x_0, gained = jax.lax.cond(is_clean(level_s), end, middle, x_s)
        if self.move is not None:

            def moved(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                new = self.move(key_move, x, s).astype(x.dtype)
                return new, denoised_by_all(self.denoisers, new, s)

            x_s, x_0 = jax.lax.cond(jnp.asarray(s) > 0, moved, lambda x: (x, x_0), x_s)
        increment = (carry.pending + gained).astype(carry.pending.dtype)
        return ComposedState(x_s, x_0, jnp.zeros_like(increment)), x_s, increment

    def transition(self, carry: ComposedState, h: jax.Array, t: Any) -> tuple[jax.Array, jax.Array]:
        """Return the mean of z after a step h, and the standard deviation in units of sqrt(u_s).

        dz / dh = sum_i a_i D_i - pull z, with the D_i and the pull held over the step.
        """
        total = jnp.sum(self.exponents).astype(h.dtype)
        pull = total - (total - 1) / 2 * self.noise_fraction(carry.x, t)
        decay, excess = jnp.exp(-pull * h), 2 * pull - 1
        flat = jnp.abs(excess) < 1e-4  # the variance is h in the limit
        variance = jnp.where(flat, h, -jnp.expm1(-excess * h) / jnp.where(flat, 1, excess))
        alpha_t = level(self.schedule, t, carry.x).alpha
        x_0 = weighted_sum(self.exponents, carry.x_0)
        return decay / alpha_t * carry.x + (1 - decay) / pull * x_0, jnp.sqrt(variance)

    def rate(self, x: jax.Array, x_0: jax.Array, t: Any) -> jax.Array:
        """Return dlog w / dh at the states, [B]: u times dlog w / du."""
        alpha, sigma, _ = level(self.schedule, t, x)
        # sqrt(u) s_i = (alpha D_i - x) / sigma, and sqrt(u) S, their weighted sum.
        scores = ((alpha * x_0.swapaxes(0, 1) - x[None]) / sigma).swapaxes(0, 1)
        scores = scores.reshape(*scores.shape[:2], -1)
        total = weighted_sum(self.exponents, scores)
        squares = weighted_sum(self.exponents, jnp.sum(scores**2, axis=2))
        gap = _rows.event_sum(total**2) - squares
        b = (jnp.sum(self.exponents).astype(x.dtype) - 1) / 2
        inner = _rows.event_sum(x.reshape(len(x), -1) / sigma.reshape(-1, 1) * total)
        return gap / 2 + b * self.noise_fraction(x, t) * (scores.shape[2] + inner)

    def noise_fraction(self, x: jax.Array, t: Any) -> jax.Array:
        """Return u / (u + prior_std^2), []."""
        alpha, sigma, _ = level(self.schedule, t, x)
        return sigma**2 / (sigma**2 + alpha**2 * jnp.asarray(self.prior_std, sigma.dtype) ** 2)


def composed(
    denoisers: Sequence[Callable],
    exponents: Any,
    schedule: Schedule,
    *,
    prior_std: Any = 1.0,
    move: Callable | None = None,
) -> Kernel:
    """Return the kernel of a product of powers of models, with its weights.

        p(x) ~ prod_i q_i(x)^a_i,   S = sum_i a_i s_i,   A = sum_i a_i,   b = (A - 1) / 2
        dz = (S + b z / (u + prior_std^2)) du + dw,   from large u to small u
        dlog w / du = 1/2 (|S|^2 - sum_i a_i |s_i|^2) + b (d + <z, S>) / (u + prior_std^2)

    Diffused products are not products of diffused models, so sampling with S alone draws from
    another law. The weights correct that. They converge as the number of rows grows and the steps
    shrink. The evidence of a run is log int prod_i q_i^a_i dx. Examples of a: a product of experts
    (1, 1), a quotient (1, -1, 1), an annealed model (2,), classifier-free guidance at scale w as a
    density (w, 1 - w).

    Args:
      denoisers: K models, each (x_t, t) -> E[x_0 | x_t].
      exponents: a, [K], traced, of positive sum. The product must be normalisable, which a negative
        exponent may prevent.
      schedule: the noise schedule of all models.
      prior_std: standard deviation of an entry of the data, [], traced. With the term in b the
        weights are equal where all models are N(0, prior_std^2 I), as they are for large u. The
        limit does not depend on it.
      move: None, or (key, x [B, *D], t) -> x, a Markov chain Monte Carlo move whose invariant law
        is the product at t, such as `langevin`, `metropolis` or `hamiltonian`. It follows every
        step but the last, and costs a call of each denoiser.
    Returns:
      A Kernel. A step takes one call of each denoiser, and so does the start. The start is scaled
      from N(0, sigma^2 I) to N(0, sigma^2 / A I), the noise of the product.
    Raises:
      ValueError: there is no denoiser, exponents has another length, or its sum is known and not
        positive and finite.
      TypeError: a denoiser is not a function.
    Numerics: an exponential step in h = lambda_s - lambda_t, `ancestral`'s ("small") for A = 1. The
      integral of the weight is the trapezoid in h.
    Source: Skreta et al. 2025, arXiv:2503.02819 (Feynman-Kac correctors), with alpha divided out
      and the term in b added, for which Ito's formula gives the weight; Du et al. 2023,
      arXiv:2302.11552, for the moves.
    """
    return lift(Composed(denoisers, exponents, schedule, prior_std, move))


@pytree
class Mixed(Algorithm):
    """The sampler of a mixture of models."""

    denoisers: Sequence[Callable]
    log_weights: Any
    schedule: Schedule

    def __post_init__(self) -> None:
        denoisers, log_weights = as_denoisers(self.denoisers), jnp.asarray(self.log_weights)
        if jnp.shape(log_weights) != (len(denoisers),):
            raise ValueError(
                f"log_weights: expected one a denoiser, shape ({len(denoisers)},), "
                f"got {jnp.shape(log_weights)}"
            )
        below = "log weights below infinity"
        _checks.values("log_weights", log_weights, below, lambda v: v < jnp.inf, finite=False)
        known = _checks.known(log_weights)
        if known is not None and not (known > -jnp.inf).any():
            raise ValueError(
                f"log_weights: expected a model of positive weight, got {known.tolist()}"
            )
        put(self, denoisers=denoisers, log_weights=log_weights)

    def init(self, x_init: jax.Array, t: Any) -> jax.Array:
        """Return log w, normalised, at every row, [B, K]."""
        log_w = jax.nn.log_softmax(self.log_weights.astype(no_weight(x_init).dtype))
        return jnp.broadcast_to(log_w, (x_init.shape[0], *log_w.shape))

    def step(
        self, key: jax.Array, carry: jax.Array, x_t: jax.Array, t: Any, s: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draw from the step of a random model. The carry is log r, [B, K]."""
        key_model, key_step = _rows.split(_rows.keys(key, x_t.shape[0]))
        x_0 = denoised_by_all(self.denoisers, x_t, t).swapaxes(0, 1)
        steps = [q_posterior(self.schedule, x_t, one, t, s) for one in x_0]
        means, variance = jnp.stack([step.mean for step in steps], axis=1), steps[0].variance
        chosen = jax.vmap(jax.random.categorical)(key_model, carry)
        mean = jax.vmap(lambda rows, k: rows[k])(means, chosen)
        # A row of NaN weights has no model.
        mean = jnp.where(_rows.expand(jnp.isnan(carry).any(axis=1), mean), jnp.nan, mean)
        x_s = (mean + jnp.sqrt(variance) * noise(key_step, x_t, s)).astype(x_t.dtype)
        safe = jnp.where(variance > 0, variance, 1)
        squared = ((x_s[:, None] - means) ** 2 / safe[:, None]).reshape(*carry.shape, -1)
        log_r = jax.nn.log_softmax(carry - jnp.sum(squared, axis=2) / 2, axis=1)
        # A step to clean data has no density. Nothing asks for log r after it.
        log_r = jnp.where(jnp.asarray(s) > 0, log_r, carry)
        return log_r.astype(carry.dtype), x_s, no_weight(x_t)


def mixed(denoisers: Sequence[Callable], log_weights: Any, schedule: Schedule) -> Kernel:
    """Return the kernel of a mixture of models. A step draws a model given the path so far.

        p(x) = sum_i w_i q_i(x)
        x_s ~ sum_i r_i p_i(x_s | x_t),   r_i ~ w_i prod p_i(steps so far)

    The law is the mixture of the finite chains, at any number of steps. One could choose a model at
    the start instead; but this kernel also gives the posterior of the models given the whole path,
    in its memory.

    Args:
      denoisers: K models, each (x_t, t) -> E[x_0 | x_t].
      log_weights: log w, [K], traced; normalised here. A model of -inf is never chosen.
      schedule: the noise schedule of all models.
    Returns:
      A Kernel with the memory log r, [B, K], and zero increments. A step takes one call of each
      denoiser. Traced weights that are all -inf, or have NaN or +inf, give NaN.
    Raises:
      ValueError: there is no denoiser, log_weights has another length, or it is known and has NaN
        or +inf or is all -inf.
      TypeError: a denoiser is not a function.
    Source: Bayes' rule over the chains; in continuous time the Ito density estimator of Skreta et
      al. 2024, arXiv:2412.17762, Theorem 1.
    """
    return lift(Mixed(denoisers, log_weights, schedule))
