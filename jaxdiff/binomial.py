"""The binomial process of the 2015 paper, for binary data.

    q(x_t | x_0) = B(x_t; alpha_t x_0 + (1 - alpha_t) / 2)

B(x; p) is the Bernoulli law: x is 1 with probability p. Components are independent. A bit survives
to time t with probability alpha_t; otherwise it is drawn again. alpha is that of a `Schedule`, and
sigma is not used. For signs 2 x - 1 it is the scale of the mean, as for Gaussian diffusion. The
paper's beta_t = 1 / (T - t + 1) destroys an equal fraction of the data in each step: alpha_t =
1 - t, which is `schedules.rectified_flow()`.

A law of bits is an array of probabilities of a one. States are floating zeros and ones, so the one
driver runs them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import xlog1py, xlogy

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree
from jaxdiff.forward import level
from jaxdiff.kernels import Kernel
from jaxdiff.kernels._kernel import Drawing, lift
from jaxdiff.schedules import LOG_SNR_LIMIT, Schedule

LOG_ODDS_LIMIT = 16.0


def q_marginal(schedule: Schedule, x_0: jax.Array, t: Any) -> jax.Array:
    """Diffuse data to time t: the probability of a one under q(x_t | x_0).

        alpha_t x_0 + (1 - alpha_t) / 2

    Args:
      schedule: the schedule. A bit survives with probability alpha.
      x_0: data, zeros and ones (or probabilities of a one), [B, *D], floating.
      t: time, [] or [B], in [0, 1].
    Returns:
      [B, *D], dtype of x_0.
    Raises:
      ValueError: t is outside [0, 1], or its shape does not fit.
      TypeError: x_0 has an integer dtype.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table App.1 and Section 2.4.1.
    """
    _checks.floating("x_0", x_0)
    return _survive(level(schedule, t, x_0).alpha, x_0).astype(x_0.dtype)


def q_transition(schedule: Schedule, x_s: jax.Array, s: Any, t: Any) -> jax.Array:
    """Diffuse from time s to a later time t: the probability of a one under q(x_t | x_s).

        x_s (1 - beta) + beta / 2,   1 - beta = alpha_t / alpha_s

    Args:
      schedule: the schedule.
      x_s: state at time s, [B, *D], floating.
      s: time of x_s, [] or [B].
      t: later time, [] or [B], t >= s.
    Returns:
      [B, *D], dtype of x_s.
    Raises:
      ValueError: a time is outside [0, 1], or its shape does not fit.
      TypeError: x_s has an integer dtype.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table App.1.
    """
    _checks.floating("x_s", x_s)
    alpha_s, alpha_t = level(schedule, s, x_s).alpha, level(schedule, t, x_s).alpha
    return _survive(alpha_t / alpha_s, x_s).astype(x_s.dtype)


def _survive(probability: jax.Array, x: Any) -> jax.Array:
    """The probability of a one where a bit x survives with a probability."""
    return probability * x + (1 - probability) / 2


def q_posterior(schedule: Schedule, x_t: jax.Array, x_0: jax.Array, *, t: Any, s: Any) -> jax.Array:
    """Return the probability of a one under q(x_s | x_t, x_0).

        q(x_s = 1 | x_t, x_0) = q(x_t | x_s = 1) q(x_s = 1 | x_0) / q(x_t | x_0)

    With D = P(x_0 = 1 | x_t) in place of x_0 it is the reverse process:

        p(x_s | x_t) = D q(x_s | x_t, 1) + (1 - D) q(x_s | x_t, 0)

    Args:
      schedule: the schedule.
      x_t: state at time t, zeros and ones, [B, *D], floating.
      x_0: data, or probabilities of a one, shaped like x_t.
      t: time of x_t, [] or [B].
      s: earlier time, [] or [B], s < t.
    Returns:
      [B, *D], dtype of x_t.
    Raises:
      ValueError: shapes do not fit, or a time is outside [0, 1].
      TypeError: x_t or x_0 has an integer dtype.
    Numerics: without noise at s it is x_0. If there is no noise at t, a value of x_0 that
      contradicts x_t has the posterior 0.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eq. (11) for its use; the mixture: Austin
      et al. 2021, arXiv:2107.03006, Eq. (4).
    """
    _checks.floating("x_t", x_t)
    _checks.floating("x_0", x_0)
    _checks.same_shape("x_0", x_0, "x_t", x_t)
    alpha_s, alpha_t = level(schedule, s, x_t).alpha, level(schedule, t, x_t).alpha
    likelihood = _bernoulli(_survive(alpha_t / alpha_s, 1.0), x_t)  # q(x_t | x_s = 1)

    def given(bit: float) -> jax.Array:
        """q(x_s = 1 | x_t, x_0 = bit)."""
        prior, evidence = _survive(alpha_s, bit), _bernoulli(_survive(alpha_t, bit), x_t)
        possible = evidence > 0
        return jnp.where(possible, likelihood * prior / jnp.where(possible, evidence, 1), 0)

    return (given(0.0) + x_0 * (given(1.0) - given(0.0))).astype(x_t.dtype)


def _bernoulli(probability: jax.Array, x: jax.Array) -> jax.Array:
    """B(x; probability) of a bit x."""
    return 1 - probability + x * (2 * probability - 1)


def draw(key: jax.Array, probability: jax.Array) -> jax.Array:
    """Draw bits row by row.

        x ~ B(x; probability)

    Args:
      key: typed PRNG key, or one a row [B]. Row i depends on (key, i) alone.
      probability: probability of a one, [B, *D], floating.
    Returns:
      Zeros and ones, [B, *D], dtype of probability.
    Raises:
      TypeError: key is not a typed key, or probability is not floating.
    """
    _checks.floating("probability", probability)
    return jax.vmap(jax.random.bernoulli)(_rows.keys(key, len(probability)), probability).astype(
        probability.dtype
    )


def prior_sample(key: jax.Array, shape: tuple[int, ...], *, first: Any = 0) -> jax.Array:
    """Draw fair bits: the state at t = 1.

    Args:
      key: typed PRNG key.
      shape: [B, *D].
      first: index of the first sample. Sample i depends on (key, first + i) alone, so chunks join
        up.
    Returns:
      Zeros and ones, [B, *D], default floating dtype.
    Raises:
      TypeError: key is not a typed key.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table App.1.
    """
    _checks.one_key("key", key)
    return draw(
        _rows.keys(key, shape[0], first=_rows.first_index(first, shape[0])), jnp.full(shape, 0.5)
    )


@pytree
class BinomialDenoiser:
    """A network of logits as a denoiser of bits."""

    apply: Callable
    schedule: Schedule

    def __post_init__(self) -> None:
        put(self, apply=as_function("apply", self.apply))

    def __call__(self, x_t: jax.Array, t: Any) -> jax.Array:
        """Return P(x_0 = 1 | x_t), [B, *D]."""
        _checks.floating("x_t", x_t)
        t = jnp.broadcast_to(jnp.asarray(t, _rows.state_dtype(x_t.dtype)), x_t.shape[:1])
        alpha, sign = level(self.schedule, t, x_t).alpha, 2 * x_t - 1
        logits = self.apply(sign, t)
        _checks.same_shape("logits", logits, "x_t", x_t)
        total = logits + sign * log_odds(alpha)
        limited = jnp.clip(total, -LOG_ODDS_LIMIT, LOG_ODDS_LIMIT)
        return jax.nn.sigmoid(total + jax.lax.stop_gradient(limited - total)).astype(x_t.dtype)


def make_denoiser(apply: Callable, schedule: Schedule) -> BinomialDenoiser:
    """Turn a network's logits into a denoiser, by Bayes' rule in each component.

        D(x_t, t) = P(x_0 = 1 | x_t) = sigmoid(logit(x_t, t) + sign_t log_odds_t)
        sign_t = 2 x_t - 1,   log_odds_t = log((1 + alpha_t) / (1 - alpha_t))

    The network gives the log-odds of a bit from the other bits. The log-odds from its own noisy
    value are exact.

    Args:
      apply: the network, (2 x_t - 1 [B, *D], t [B]) -> logits [B, *D].
      schedule: the schedule.
    Returns:
      A denoiser: (x_t [B, *D], t [] or [B]) -> [B, *D], dtype of x_t.
    Raises:
      ValueError: when called: the logits have another shape.
      TypeError: apply is not a function.
    Numerics: the log-odds of D are limited to +-16, so D is neither 0 nor 1 in float32 and every
      bound is finite. The limit does not change gradients.
    Source: as `make_categorical_denoiser`, for two levels and the binomial process.
    """
    return BinomialDenoiser(apply, schedule)


def log_odds(alpha: jax.Array) -> jax.Array:
    """Return the log-odds of a bit of the data from its value at time t.

        log q(x_t | x_0 = x_t) / q(x_t | x_0 = 1 - x_t) = log((1 + alpha_t) / (1 - alpha_t))

    Args:
      alpha: the probability that a bit survives.
    Returns:
      An array like alpha, at most LOG_SNR_LIMIT.
    """
    return jnp.log1p(alpha) - jnp.log(jnp.maximum(1 - alpha, 2 * jnp.exp(-LOG_SNR_LIMIT)))


@pytree
class Ancestral(Drawing):
    """The reverse process of bits."""

    denoiser: Callable
    schedule: Schedule

    def __post_init__(self) -> None:
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def draw(self, key: jax.Array, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Draw x_s ~ p(x_s | x_t)."""
        p = q_posterior(self.schedule, x_t, self.denoiser(x_t, t), t=t, s=s)
        return draw(key, p)


def ancestral(denoiser: Callable, schedule: Schedule) -> Kernel:
    """Return the reverse process as a kernel: a draw of p(x_s | x_t).

        x_s ~ B(x_s; q(x_s = 1 | x_t, D(x_t, t)))

    Args:
      denoiser: (x_t, t) -> P(x_0 = 1 | x_t), [B, *D].
      schedule: the schedule.
    Returns:
      A Kernel without memory and with zero increments, for `sample` from `binomial.prior_sample`.
    Raises:
      TypeError: denoiser is not a function.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Section 2.2; Austin et al. 2021,
    arXiv:2107.03006, Eq. (4).
    """
    return lift(Ancestral(denoiser, schedule))


def bernoulli_kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """Return the Kullback-Leibler divergence of two laws of independent bits.

        KL(p || q) = sum_D [p log(p / q) + (1 - p) log((1 - p) / (1 - q))]

    Args:
      p: probabilities of a one, [B, *D].
      q: probabilities of a one, [B, *D].
    Returns:
      [B], in nats; infinite where q is 0 and p is not.
    """
    entropy = -xlogy(p, p) - xlog1py(1 - p, -p)
    return _rows.event_sum(-xlogy(p, q) - xlog1py(1 - p, -q) - entropy)


def prior_kl(schedule: Schedule, x_0: jax.Array, t: Any) -> jax.Array:
    """Return the divergence of the diffused data from fair bits.

        KL(q(x_t | x_0) || B(1/2)) = sum_D [log 2 - H((1 + alpha_t) / 2)]

    It is the same for all x_0, and 0 where alpha_t = 0.

    Args:
      schedule: the schedule.
      x_0: data, [B, *D], floating.
      t: time, [] or [B], usually 1.
    Returns:
      [B], in nats.
    """
    return bernoulli_kl(q_marginal(schedule, x_0, t), jnp.full(x_0.shape, 0.5, x_0.dtype))


def step_kl(
    denoiser: Callable, schedule: Schedule, x_0: jax.Array, x_t: jax.Array, *, t: Any, s: Any
) -> jax.Array:
    """Return the cost of one reverse step: a term of the negative variational bound.

        KL(q(x_s | x_t, x_0) || p(x_s | x_t)),   at s = 0 it is -log p(x_0 | x_t)

    Args:
      denoiser: (x_t, t) -> P(x_0 = 1 | x_t), [B, *D].
      schedule: the schedule.
      x_0: data, zeros and ones, [B, *D], floating.
      x_t: state at time t, [B, *D].
      t: time of x_t, [] or [B].
      s: earlier time, [] or [B].
    Returns:
      [B], in nats.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eq. (14).
    """
    p = q_posterior(schedule, x_t, denoiser(x_t, t), t=t, s=s)
    return bernoulli_kl(q_posterior(schedule, x_t, x_0, t=t, s=s), p)


def vlb_terms(
    key: jax.Array, denoiser: Callable, schedule: Schedule, x_0: jax.Array, *, ts: jax.Array
) -> jax.Array:
    """Estimate the terms of the negative variational bound, each at its own noise.

        KL(q(x_T | x_0) || B(1/2)),   KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for each step (t, s)

    The expected sum is at least -log p_theta(x_0).

    Args:
      key: typed PRNG key, or one a row [B].
      denoiser: (x_t, t) -> P(x_0 = 1 | x_t), [B, *D].
      schedule: the schedule.
      x_0: data, zeros and ones, [B, *D], floating. A traced row with another value gives NaN.
      ts: the grid, decreasing, to a time without noise, [num_steps + 1].
    Returns:
      [num_steps + 1, B] costs in nats. The prior's term comes first and is exact; the step to the
      data comes last.
    Raises:
      ValueError: ts is known and not a decreasing grid that ends without noise, or x_0 is known and
        not zeros and ones.
      TypeError: x_0 has an integer dtype, or key is not a typed key.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eq. (14).
    """
    ts, invalid = _checked(schedule, ts, x_0)
    keys, denoiser = _rows.keys(key, x_0.shape[0]), as_function("denoiser", denoiser)

    def term(inputs: Any) -> jax.Array:
        n, t, s = inputs
        x_t = draw(_rows.fold(keys, n), q_marginal(schedule, x_0, t))
        return step_kl(denoiser, schedule, x_0, x_t, t=t, s=s)

    costs = jax.lax.map(term, (jnp.arange(len(ts) - 1), ts[:-1], ts[1:]))
    return jnp.concatenate([prior_kl(schedule, x_0, ts[0])[None], costs]) + invalid[None]


def vlb(
    key: jax.Array,
    denoiser: Callable,
    schedule: Schedule,
    x_0: jax.Array,
    *,
    ts: jax.Array,
    index: Any = None,
) -> jax.Array:
    """Estimate the negative variational bound from one random step: the loss to train with.

        KL(q(x_T | x_0) || B(1/2)) + num_steps KL(q(x_s | x_t, x_0) || p(x_s | x_t))

    The step is (t, s) = (ts[i], ts[i + 1]) with a uniform i.

    Args:
      key: typed PRNG key, or one a row [B].
      denoiser: (x_t, t) -> P(x_0 = 1 | x_t), [B, *D].
      schedule: the schedule.
      x_0: data, zeros and ones, [B, *D], floating. A traced row with another value gives NaN.
      ts: as in `vlb_terms`.
      index: i, [B], integer, 0 to num_steps - 1. None draws it uniformly. A traced index outside
        gives NaN.
    Returns:
      [B], in nats.
    Raises:
      ValueError: as in `vlb_terms`, or index is known and outside 0 to num_steps - 1.
      TypeError: x_0 has an integer dtype, or key is not a typed key.
    Source: Ho et al. 2020, arXiv:2006.11239, Section 3.4, for terms at random.
    """
    ts, invalid = _checked(schedule, ts, x_0)
    num_steps = len(ts) - 1
    key_index, key_draw = _rows.split(_rows.keys(key, x_0.shape[0]))
    if index is None:
        index = jax.vmap(lambda k: jax.random.randint(k, (), 0, num_steps))(key_index)
    _checks.index("index", index, num_steps)
    t, s = ts[index], ts[index + 1]
    x_t = draw(key_draw, q_marginal(schedule, x_0, t))
    cost = step_kl(denoiser, schedule, x_0, x_t, t=t, s=s)
    bound = prior_kl(schedule, x_0, ts[0]) + num_steps * cost
    return jnp.where((index >= 0) & (index < num_steps), bound + invalid, jnp.nan)


def _checked(schedule: Schedule, ts: Any, x_0: Any) -> tuple[jax.Array, jax.Array]:
    """Check a grid and data. Return the grid, and for each row 0, or NaN if it is not bits."""
    _checks.grid("ts", ts)
    clean = "a grid that ends without noise, alpha = 1"
    _checks.values("ts", schedule.alpha(ts[-1]), clean, lambda alpha: alpha == 1)
    _checks.floating("x_0", x_0)
    _checks.values("x_0", x_0, "zeros and ones", lambda now: (now == 0) | (now == 1))
    invalid = jnp.where((x_0 == 0) | (x_0 == 1), 0, jnp.nan).astype(x_0.dtype)
    return jnp.asarray(ts), _rows.event_sum(invalid)
