"""The binomial process of the 2015 paper: binary data that lose their bits, and the reverse process that finds them.

    q(x_t | x_0) = B(x_t; alpha_t x_0 + (1 - alpha_t) / 2)

A bit survives to time t with probability alpha_t, or is drawn anew; B(x; p) is 1 with probability
p, and everything is independent by component. alpha is that of a `Schedule` (its sigma plays no
part): of signs in place of bits it is the scale of the mean, as everywhere else. The paper's own
choice, beta_t = 1 / (T - t + 1), destroys the same share of the data in each step: alpha_t = 1 - t,
which is `schedules.rectified_flow()`. A Bernoulli law is its probability of a one.

States are floating zeros and ones, so that the one driver runs them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import xlog1py, xlogy
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function
from jaxdiff.forward import level
from jaxdiff.kernels import Kernel, no_weight, without_memory
from jaxdiff.schedules import LOG_SNR_LIMIT, Schedule

LOG_ODDS_LIMIT = 16.0


def q_marginal(schedule: Schedule, x_0: jax.Array, t: Any) -> jax.Array:
    """Diffuse data to time t: the probability of a one under q(x_t | x_0).

        alpha_t x_0 + (1 - alpha_t) / 2

    Args:
      schedule: the schedule, of which alpha is the probability to survive.
      x_0: data, zeros and ones (or their probabilities), [B, *D], floating.
      t: time, [] or [B], in [0, 1].
    Returns:
      [B, *D], dtype of x_0.
    Raises:
      ValueError: t is no time for x_0.
      TypeError: x_0 is an integer array.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table App.1 and Section 2.4.1.
    """
    _checks.floating("x_0", x_0)
    return _kept(level(schedule, t, x_0).alpha, x_0).astype(x_0.dtype)


def q_transition(schedule: Schedule, x_s: jax.Array, s: Any, t: Any) -> jax.Array:
    """Diffuse from time s on to a later time t: the probability of a one under q(x_t | x_s).

        x_s (1 - beta) + beta / 2,   1 - beta = alpha_t / alpha_s

    Args:
      schedule: the schedule.
      x_s: state at time s, [B, *D], floating.
      s: time of x_s, [] or [B].
      t: later time, [] or [B], t >= s.
    Returns:
      [B, *D], dtype of x_s.
    Raises:
      ValueError: a time is no time for x_s.
      TypeError: x_s is an integer array.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table App.1.
    """
    _checks.floating("x_s", x_s)
    return _kept(level(schedule, t, x_s).alpha / level(schedule, s, x_s).alpha, x_s).astype(
        x_s.dtype
    )


def _kept(share: jax.Array, x: Any) -> jax.Array:
    return share * x + (1 - share) / 2


def q_posterior(schedule: Schedule, x_t: jax.Array, x_0: jax.Array, t: Any, s: Any) -> jax.Array:
    """Condition an earlier state on the data and a later state: the probability of a one under q(x_s | x_t, x_0).

        q(x_s = 1 | x_t, x_0) = q(x_t | x_s = 1) q(x_s = 1 | x_0) / q(x_t | x_0)

    With D = P(x_0 = 1 | x_t) in place of x_0 it is the reverse process, the mixture over what x_0
    may be:

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
      ValueError: shapes do not fit, or a time is no time for x_t.
      TypeError: x_t or x_0 is an integer array.
    Numerics: where there is no noise at s it is x_0. An x_0 that x_t excludes (no noise at t) has a
      posterior of zero.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eq. (11) for its use; the mixture: Austin
      et al. 2021, arXiv:2107.03006, Eq. (4).
    """
    _checks.floating("x_t", x_t)
    _checks.floating("x_0", x_0)
    _checks.same_shape("x_0", x_0, "x_t", x_t)
    early, late = level(schedule, s, x_t).alpha, level(schedule, t, x_t).alpha
    forward = _likelihood(_kept(late / early, 1.0), x_t)  # q(x_t | x_s = 1)
    of = [
        _bayes(_kept(early, bit), _likelihood(_kept(late, bit), x_t), forward) for bit in (0.0, 1.0)
    ]
    return (of[0] + x_0 * (of[1] - of[0])).astype(x_t.dtype)


def _likelihood(probability: jax.Array, x: jax.Array) -> jax.Array:
    """B(x; probability) of a bit x."""
    return 1 - probability + x * (2 * probability - 1)


def _bayes(prior: jax.Array, evidence: jax.Array, likelihood: jax.Array) -> jax.Array:
    possible = evidence > 0
    return jnp.where(possible, likelihood * prior / jnp.where(possible, evidence, 1), 0)


def draw(key: jax.Array, probability: jax.Array) -> jax.Array:
    """Draw bits, row by row.

        x ~ B(x; probability)

    Args:
      key: typed PRNG key, or one a row [B]; row i depends on (key, i) alone.
      probability: of a one, [B, *D], floating.
    Returns:
      Zeros and ones, [B, *D], dtype of probability.
    Raises:
      TypeError: key is no typed key, or probability is not floating.
    """
    _checks.floating("probability", probability)
    return jax.vmap(jax.random.bernoulli)(_rows.keys(key, len(probability)), probability).astype(
        probability.dtype
    )


def prior_sample(key: jax.Array, shape: tuple[int, ...], *, first: Any = 0) -> jax.Array:
    """Draw the state at t = 1: fair bits.

    Args:
      key: typed PRNG key.
      shape: [B, *D].
      first: index of the first sample; sample i depends on (key, first + i) alone, so that chunks
        join up.
    Returns:
      Zeros and ones, [B, *D], default floating dtype.
    Raises:
      TypeError: key is no typed key.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table App.1.
    """
    _checks.one_key("key", key)
    return draw(
        _rows.keys(key, shape[0], first=_rows.first_index(first, shape[0])), jnp.full(shape, 0.5)
    )


def make_denoiser(apply: Callable, schedule: Schedule) -> Partial:
    """Turn a network's logits into a denoiser, by Bayes' rule in each component.

        D(x_t, t) = P(x_0 = 1 | x_t) = sigmoid(logit(x_t, t) + (2 x_t - 1) log((1 + alpha_t) / (1 -
        alpha_t)))

    The network says what the other bits make of a bit; what its own noisy value says is known
    exactly.

    Args:
      apply: the network, (x_t [B, *D], t [B]) -> logits [B, *D]; it sees signs, 2 x_t - 1.
      schedule: the schedule.
    Returns:
      A denoiser: (x_t [B, *D], t [] or [B]) -> [B, *D], dtype of x_t.
    Raises:
      ValueError: when called, logits of another shape.
      TypeError: apply is no function.
    Numerics: D's log-odds end at +-16, where float32 can tell it from 0 and 1, so that no bound is
      infinite; gradients are those without the limit.
    Source: as `make_categorical_denoiser`, for two levels and the binomial process.
    """
    return Partial(_denoise, as_function("apply", apply), schedule)


def _denoise(apply: Partial, schedule: Schedule, x_t: jax.Array, t: Any) -> jax.Array:
    _checks.floating("x_t", x_t)
    dtype = _rows.state_dtype(x_t.dtype)
    t = jnp.broadcast_to(jnp.asarray(t, dtype), x_t.shape[:1])
    alpha, sign = level(schedule, t, x_t).alpha, 2 * x_t - 1
    logits = apply(sign, t)
    _checks.same_shape("logits", logits, "x_t", x_t)
    log_odds = logits + sign * evidence(alpha)
    limited = jnp.clip(log_odds, -LOG_ODDS_LIMIT, LOG_ODDS_LIMIT)
    return jax.nn.sigmoid(log_odds + jax.lax.stop_gradient(limited - log_odds)).astype(x_t.dtype)


def evidence(alpha: jax.Array) -> jax.Array:
    """Return the log-odds that a bit at time t gives for the bit of the data.

        log q(x_t | x_0 = x_t) / q(x_t | x_0 = 1 - x_t) = log((1 + alpha_t) / (1 - alpha_t))

    Args:
      alpha: the probability to survive.
    Returns:
      An array like alpha, at most LOG_SNR_LIMIT.
    """
    return jnp.log1p(alpha) - jnp.log(jnp.maximum(1 - alpha, 2 * jnp.exp(-LOG_SNR_LIMIT)))


def ancestral(denoiser: Callable, schedule: Schedule) -> Kernel:
    """Return the reverse process as a kernel: a draw of p(x_s | x_t), to s = 0 and the data.

        x_s ~ B(x_s; q(x_s = 1 | x_t, D(x_t, t)))

    Args:
      denoiser: (x_t, t) -> P(x_0 = 1 | x_t), [B, *D].
      schedule: the schedule.
    Returns:
      A Kernel without memory and with zero increments, for `sample` from `binomial.prior_sample`.
    Raises:
      TypeError: denoiser is no function.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Section 2.2; through x_0: Austin et al.
      2021, arXiv:2107.03006, Eq. (4).
    """
    return without_memory(Partial(_step, as_function("denoiser", denoiser), schedule))


def _step(
    denoiser: Partial,
    schedule: Schedule,
    key: jax.Array,
    carry: Any,
    x_t: jax.Array,
    t: Any,
    s: Any,
) -> tuple[Any, jax.Array, jax.Array]:
    return carry, draw(key, q_posterior(schedule, x_t, denoiser(x_t, t), t, s)), no_weight(x_t)


def bernoulli_kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """Return the Kullback-Leibler divergence between two laws of independent bits.

        KL(p || q) = sum_D [p log(p / q) + (1 - p) log((1 - p) / (1 - q))]

    Args:
      p: probabilities of a one, [B, *D].
      q: probabilities of a one, [B, *D].
    Returns:
      [B], in nats; infinite where q excludes what p does not.
    """
    entropy = -xlogy(p, p) - xlog1py(1 - p, -p)
    return _rows.event_sum(-xlogy(p, q) - xlog1py(1 - p, -q) - entropy)


def prior_kl(schedule: Schedule, x_0: jax.Array, t: Any) -> jax.Array:
    """Return how far the diffused data are from fair bits: the same for all data, zero where none survive.

        KL(q(x_t | x_0) || B(1/2)) = sum_D [log 2 - H((1 + alpha_t) / 2)]

    Args:
      schedule: the schedule.
      x_0: data, [B, *D], floating.
      t: time, [] or [B], as a rule 1.
    Returns:
      [B], in nats.
    """
    return bernoulli_kl(q_marginal(schedule, x_0, t), jnp.full(x_0.shape, 0.5, x_0.dtype))


def step_kl(
    denoiser: Callable, schedule: Schedule, x_0: jax.Array, x_t: jax.Array, t: Any, s: Any
) -> jax.Array:
    """Return what one reverse step costs: a term of the negative variational bound.

        KL(q(x_s | x_t, x_0) || p(x_s | x_t)),   which to s = 0 is -log p(x_0 | x_t)

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
    p = q_posterior(schedule, x_t, denoiser(x_t, t), t, s)
    return bernoulli_kl(q_posterior(schedule, x_t, x_0, t, s), p)


def vlb_terms(
    key: jax.Array, denoiser: Callable, schedule: Schedule, ts: jax.Array, x_0: jax.Array
) -> jax.Array:
    """Estimate the terms of the negative variational bound, each at its own noise.

        KL(q(x_T | x_0) || B(1/2)),   KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for every step of the grid

    The expected sum is at least -log p_theta(x_0), in nats: divided by log 2, in bits.

    Args:
      key: typed PRNG key, or one a row [B].
      denoiser: (x_t, t) -> P(x_0 = 1 | x_t), [B, *D].
      schedule: the schedule.
      ts: the grid, decreasing, to where no noise is left, [num_steps + 1].
      x_0: data, zeros and ones, [B, *D], floating; a traced row of anything else is NaN.
    Returns:
      [num_steps + 1, B] costs in nats: the prior's first, exactly; that of drawing the data last.
    Raises:
      ValueError: ts is no decreasing grid, or ends with noise left, or x_0 is no bits, where this
        is known.
      TypeError: x_0 is an integer array, or key is no typed key.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eq. (14).
    """
    ts, invalid = _check_bound(schedule, ts, x_0), _bits(x_0)
    keys, denoiser = _rows.keys(key, x_0.shape[0]), as_function("denoiser", denoiser)

    def term(inputs: Any) -> jax.Array:
        n, t, s = inputs
        x_t = draw(_rows.fold(keys, n), q_marginal(schedule, x_0, t))
        return step_kl(denoiser, schedule, x_0, x_t, t, s)

    costs = jax.lax.map(term, (jnp.arange(len(ts) - 1), ts[:-1], ts[1:]))
    return jnp.concatenate([prior_kl(schedule, x_0, ts[0])[None], costs]) + invalid[None]


def vlb(
    key: jax.Array,
    denoiser: Callable,
    schedule: Schedule,
    ts: jax.Array,
    x_0: jax.Array,
    *,
    index: Any = None,
) -> jax.Array:
    """Estimate the negative variational bound from one random step an example: what a network is trained on.

        prior + num_steps KL(q(x_s | x_t, x_0) || p(x_s | x_t)),   (t, s) = (ts[i], ts[i + 1]), i uniform

    Args:
      key: typed PRNG key, or one a row [B].
      denoiser: (x_t, t) -> P(x_0 = 1 | x_t), [B, *D].
      schedule: the schedule.
      ts: as in `vlb_terms`.
      x_0: data, zeros and ones, [B, *D], floating; a traced row of anything else is NaN.
      index: i, [B], integer, 0 to num_steps - 1; None draws it uniformly. Traced, one outside makes
        its row NaN.
    Returns:
      [B], in nats.
    Raises:
      ValueError: ts is no decreasing grid, or ends with noise left, or x_0 is no bits, where this
        is known.
      TypeError: x_0 is an integer array, or key is no typed key.
    Source: Ho et al. 2020, arXiv:2006.11239, Section 3.4, for terms at random.
    """
    ts, invalid = _check_bound(schedule, ts, x_0), _bits(x_0)
    num_steps = len(ts) - 1
    key_index, key_draw = _rows.split(_rows.keys(key, x_0.shape[0]))
    if index is None:
        index = jax.vmap(lambda k: jax.random.randint(k, (), 0, num_steps))(key_index)
    _checks.index("index", index, num_steps)
    t, s = ts[index], ts[index + 1]
    x_t = draw(key_draw, q_marginal(schedule, x_0, t))
    bound = prior_kl(schedule, x_0, ts[0]) + num_steps * step_kl(denoiser, schedule, x_0, x_t, t, s)
    return jnp.where((index >= 0) & (index < num_steps), bound + invalid, jnp.nan)


def _bits(x_0: jax.Array) -> jax.Array:
    """Require zeros and ones where they are known; where not, what is to be added to a row: 0, or NaN to bar it."""
    _checks.floating("x_0", x_0)
    _checks.values("x_0", x_0, "zeros and ones", lambda now: (now == 0) | (now == 1))
    return _rows.event_sum(jnp.where((x_0 == 0) | (x_0 == 1), 0, jnp.nan).astype(x_0.dtype))


def _check_bound(schedule: Schedule, ts: Any, x_0: Any) -> jax.Array:
    _checks.grid("ts", ts)
    _checks.values(
        "ts",
        schedule.alpha(ts[-1]),
        "a grid whose end has no noise, alpha = 1",
        lambda alpha: alpha == 1,
    )
    return jnp.asarray(ts)
