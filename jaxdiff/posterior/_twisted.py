"""Sequential Monte Carlo with twists: the 2015 paper's tilt, and the twisted diffusion sampler.

Both draw x_s from a proposal q(x_s | x_t) and weight it by

    increment = log p(x_s | x_t) - log q(x_s | x_t) + log r_s(x_s) - log r_t(x_t),   r_0 = r

The product of all increments is r(x_0) p(path) / q(path), for any twists r_t in between. The twists
change the variance of the weights alone.

A likelihood may be 0 (log r = -inf). NaN is a likelihood of 0 too. At t = 0 that gives a weight of
0. At t > 0 the row may still come to a state of positive likelihood: if log r_s is not finite, the
last finite one of the row takes its place; if the gradient is not finite, the row takes the step of
the model. The weights stay exact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree
from jaxdiff.guidance import isotropic_spread
from jaxdiff.kernels import Kernel, p_given, p_mean_variance
from jaxdiff.kernels._kernel import Algorithm, lift, noise
from jaxdiff.kernels._reverse import variance_function
from jaxdiff.normal import Normal
from jaxdiff.observations import Observation, log_likelihoods
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule

POSITIVE = "a positive standard deviation"


def draw_weighted(key: jax.Array, p: Normal, q: Normal, s: Any) -> tuple[jax.Array, jax.Array]:
    """Draw x_s from q and weight it for p: (x_s, log p(x_s) - log q(x_s)), [B, *D] and [B].

    A step to s = 0 takes the mean of p, as a reverse process does, with the log weight 0.
    """
    at_end = jnp.asarray(s) <= 0
    eps = noise(key, p.mean, s)
    safe_p, safe_q = (Normal(v.mean, jnp.where(at_end, 1, v.variance)) for v in (p, q))
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


@pytree
class Tilted(Algorithm):
    """The 2015 paper's sampler of p(x_0) r(x_0)."""

    denoiser: Callable
    schedule: Schedule
    log_r: Callable
    power: Any = None
    variance: Any = "small"

    def __post_init__(self) -> None:
        power = as_function("power", _linear if self.power is None else self.power)
        _checks.values("power", power(jnp.zeros(())), "1 at t = 0", lambda v: v == 1)
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            log_r=as_function("log_r", self.log_r),
            power=power,
            variance=variance_function(self.variance),
        )

    def init(self, x_init: jax.Array, t: Any) -> jax.Array:
        """Return the log r_t that the weights contain, [B]."""
        return no_twist(x_init, t)

    def step(
        self, key: jax.Array, carry: jax.Array, x_t: jax.Array, t: Any, s: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draw from the tilted step. The carry is log r_t, [B]."""
        p = p_mean_variance(self.denoiser, self.schedule, x_t, t, s, variance=self.variance)
        power = jnp.asarray(self.power(s), x_t.dtype)

        def log_r(x: jax.Array) -> jax.Array:
            return power * log_likelihoods(self.log_r, x)

        gradient = jax.grad(lambda x: jnp.sum(log_r(x)))(p.mean)
        x_s, ratio = draw_weighted(key, p, tilt(p, gradient), s)
        log_r_s = weighable(log_r(x_s), carry, s)
        return log_r_s, x_s.astype(x_t.dtype), ratio + log_r_s - carry


def _linear(t: Any) -> Any:
    return 1 - t


def tilted(
    denoiser: Callable,
    schedule: Schedule,
    log_r: Callable,
    *,
    power: Callable | None = None,
    variance: Any = "small",
) -> Kernel:
    """Return the 2015 paper's kernel for the model multiplied by r, with exact weights.

        q(x_s | x_t) = N(mean + variance grad log r_s(mean), variance),   r_t(x) = r(x)^power(t)

    The tilt takes the noisy state for the data. Without weights, as in the paper, the samples have
    another law even in the limit of small steps: with a constant r about p r^2, where r is as wide
    as p. With weights they converge as the number of rows grows. That is fast if p r has one mode
    and slow if it has several. `twisted` and `mcgdiff` are better then, because they look ahead.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      log_r: one x [*D] -> log r(x), [], in nats; differentiable. -inf and NaN are r = 0.
      power: t [] -> the power of r at time t, 1 at t = 0. None is 1 - t. `lambda t: 1.0` is the
        constant r of the paper's examples, whose weights have heavy tails.
      variance: of the model's steps, as in `kernels.p_mean_variance`.
    Returns:
      A Kernel. A step takes one denoiser call. The evidence of a run is log E_p[r(x_0)], and -inf
      if r is 0 at every row.
    Raises:
      ValueError: variance is unknown, or power is not 1 at t = 0.
      TypeError: an argument is not a function.
    Numerics: the tilted mean overshoots if variance times the curvature of log r_s exceeds 2. With
      the power 1 - t that happens on schedules that do not preserve variance. For a likelihood with
      noise noise_std the power noise_std^2 / (noise_std^2 + sigma_t^2 / alpha_t^2) is small enough.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Section 2.5 and Appendix C; weights of
    annealed importance sampling (Neal 2001).
    """
    return lift(Tilted(denoiser, schedule, log_r, power, variance))


class TwistState(NamedTuple):
    """What a step of `twisted` leaves for the next, so that a step costs one denoiser call.

    Fields:
      denoised: what the denoiser returned for the states.
      gradient: grad log r_t, [B, *D].
      log_r: the log r_t that the weights contain, [B].
    """

    denoised: Any
    gradient: jax.Array
    log_r: jax.Array


@pytree
class Twisted(Algorithm):
    """The twisted diffusion sampler."""

    denoiser: Callable
    schedule: Schedule
    log_likelihood: Callable
    variance: Any = "small"
    twist: Any = None
    prior_std: Any = 1.0
    proposal: Any = None

    def __post_init__(self) -> None:
        _checks.values("prior_std", self.prior_std, POSITIVE, lambda v: v > 0)
        twist, proposal = self.twist, self.proposal
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            log_likelihood=as_function("log_likelihood", self.log_likelihood),
            variance=variance_function(self.variance),
            twist=None if twist is None else as_function("twist", twist),
            proposal=None if proposal is None else as_function("proposal", proposal),
        )

    def init(self, x_init: jax.Array, t: Any) -> TwistState:
        """Return the state of a start. Its weights contain no twist."""
        denoised, gradient, _ = self.look(x_init, t)
        return TwistState(denoised, gradient, no_twist(x_init, t))

    def step(
        self, key: jax.Array, carry: TwistState, x_t: jax.Array, t: Any, s: Any
    ) -> tuple[TwistState, jax.Array, jax.Array]:
        """Draw from the proposal and weight."""
        p = p_given(carry.denoised, self.schedule, x_t, t, s, variance=self.variance)
        if self.proposal is None:
            q = tilt(p, carry.gradient)
        else:
            q = finite_or(self.proposal(x_t, t, s), p)
        x_s, ratio = draw_weighted(key, p, q, s)
        x_s = x_s.astype(x_t.dtype)

        def end(x: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
            # These are data: the likelihood itself. Nothing uses the rest.
            return carry.denoised, carry.gradient, log_likelihoods(self.log_likelihood, x)

        look_ahead = jax.lax.cond(jnp.asarray(s) > 0, lambda x: self.look(x, s), end, x_s)
        denoised, gradient, log_r = look_ahead
        log_r = weighable(log_r, carry.log_r, s)
        return TwistState(denoised, gradient, log_r), x_s, ratio + log_r - carry.log_r

    def look(self, x: jax.Array, t: Any) -> tuple[Any, jax.Array, jax.Array]:
        """Return the denoised states at t, the gradient of the log twist, and the log twist."""
        variance = isotropic_spread(self.schedule, x, t, self.prior_std)

        def total(x: jax.Array) -> tuple[jax.Array, Any]:
            denoised = self.denoiser(x, t)
            log_r = self.log_twist(x_0_of(denoised, x), variance)
            return jnp.sum(log_r), (denoised, log_r)

        gradient, (denoised, log_r) = jax.grad(total, has_aux=True)(x)
        return denoised, gradient, log_r

    def log_twist(self, x_0: jax.Array, variance: Any) -> jax.Array:
        """Return log r_t at denoised states, [B]."""
        if self.twist is not None:
            return log_likelihoods(self.twist, x_0, variance)
        if isinstance(self.log_likelihood, Observation):
            return log_likelihoods(self.log_likelihood, x_0, variance)
        return log_likelihoods(self.log_likelihood, x_0)


def twisted(
    denoiser: Callable,
    schedule: Schedule,
    log_likelihood: Callable,
    *,
    variance: Any = "small",
    twist: Callable | None = None,
    prior_std: Any = 1.0,
    proposal: Callable | None = None,
) -> Kernel:
    """Return the twisted diffusion sampler: particles follow the likelihood of denoised states.

        r_t(x_t) = twist(D(x_t, t), Var[x_0 | x_t]),   r_0 = likelihood
        q(x_s | x_t) = N(mean + variance grad log r_t(x_t), variance)

    Samples converge to p(x_0) p(y | x_0) as the number of rows grows. The evidence is unbiased for
    p(y) at any number of rows. Both hold for any twist and proposal.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      log_likelihood: one x_0 [*D] -> log p(y | x_0), [], in nats: an `Observation` or any function.
        -inf and NaN are a likelihood of 0.
      variance: of the model's steps, as in `kernels.p_mean_variance`.
      twist: (x_0 [*D], variance []) -> [], differentiable: an approximation of log p(y | x_t). x_0
        is the denoised state, and variance is Var[x_0 | x_t] for data of the prior's width. None is
        the observation with its noise widened by the variance; for another likelihood None is the
        likelihood at x_0, as in the paper. A twist should be finite everywhere: where it is not,
        it does not guide the row.
      prior_std: standard deviation of an entry of the data, [], traced. Only Var[x_0 | x_t] of the
        twist depends on it.
      proposal: (x_t, t, s) -> Normal over x_s, such as `through(guidance.mmps(...), schedule)`.
        None is the q above, which needs no further denoiser call.
    Returns:
      A Kernel. A step takes one denoiser call and one vector-Jacobian product; the start takes one
      of each too. The grid must end at t = 0, where the likelihood replaces the twist. If the
      likelihood is 0 at every row, the evidence is -inf and the effective sample size 0.
    Raises:
      ValueError: variance is unknown, or prior_std is not positive.
      TypeError: an argument is not a function.
    Source: Wu et al. 2023, arXiv:2306.17775, Algorithm 1; the widened noise: Song et al. 2023
    (PiGDM), Eq. (7).
    """
    return lift(Twisted(denoiser, schedule, log_likelihood, variance, twist, prior_std, proposal))


@pytree
class Through:
    """The proposal of a guided denoiser."""

    denoiser: Callable
    schedule: Schedule
    variance: Any = "small"

    def __post_init__(self) -> None:
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            variance=variance_function(self.variance),
        )

    def __call__(self, x_t: jax.Array, t: Any, s: Any) -> Normal:
        """Return p(x_s | x_t) with the guided denoiser."""
        return p_mean_variance(self.denoiser, self.schedule, x_t, t, s, variance=self.variance)


def through(denoiser: Callable, schedule: Schedule, *, variance: Any = "small") -> Through:
    """Return the proposal of a guided denoiser: p(x_s | x_t) with its D in place of the model's.

    Args:
      denoiser: (x_t, t) -> an approximation of E[x_0 | x_t, y], such as `guidance.mmps(...)`.
      schedule: the noise schedule.
      variance: as in `kernels.p_mean_variance`.
    Returns:
      A proposal for `twisted`, (x_t, t, s) -> Normal. It calls the denoiser once.
    Raises:
      ValueError: variance is unknown.
      TypeError: denoiser is not a function.
    """
    return Through(denoiser, schedule, variance)
