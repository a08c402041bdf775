"""Particles steered by a look ahead: the 2015 paper's tilt and the twisted diffusion sampler.

Both draw x_s from a proposal q(x_s | x_t) and weight it by

    increment = log p(x_s | x_t) - log q(x_s | x_t) + log r_s(x_s) - log r_t(x_t),   r_0 = r

whose product telescopes to r(x_0) p(path) / q(path), whatever the twists r_t in between: they
decide the variance only.

A likelihood may be zero (-inf). At the end that is a weight of 0, and so is NaN: where a likelihood
is undefined it is zero. On the way it is no twist, since x_0 may still come to where the likelihood
is positive: where log r_s is not finite the last finite one of the row stands in for it, and where
its gradient is not finite the row takes the model's own step. Both leave the weights exact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function
from jaxdiff.guidance import isotropic_spread
from jaxdiff.kernels import Kernel, p_given, p_mean_variance
from jaxdiff.kernels._kernel import noise
from jaxdiff.kernels._reverse import variance_function
from jaxdiff.normal import Normal
from jaxdiff.observations import Observation, as_likelihood, log_likelihoods
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


def draw(key: jax.Array, p: Normal, q: Normal, s: Any) -> tuple[jax.Array, jax.Array]:
    """Draw x_s from q and weight it for p: (x_s, log p(x_s) - log q(x_s)), [B, *D] and [B].

    A step to s = 0 takes the mean of p, as a reverse process does, and no weight.
    """
    at_end = jnp.asarray(s) <= 0
    eps = noise(key, p.mean, s)
    safe_p, safe_q = (Normal(v.mean, jnp.where(at_end, 1, v.variance)) for v in (p, q))
    x_s, ratio = safe_q.draw_for(safe_p, eps)
    return jnp.where(at_end, p.mean, x_s), jnp.where(at_end, 0, ratio)


def towards(p: Normal, slope: jax.Array) -> Normal:
    """Move a step along a gradient, N(mean + variance slope, variance); a row where that is not finite stays."""
    return or_model(Normal(p.mean + p.variance * slope, p.variance), p)


def or_model(q: Normal, p: Normal) -> Normal:
    """Take the model's step p in the rows where a proposal q is not finite."""
    variance = jnp.broadcast_to(q.variance, q.mean.shape)
    usable = _rows.all_finite(q.mean) & _rows.all_finite(variance)
    return Normal(jnp.where(usable, q.mean, p.mean), jnp.where(usable, variance, p.variance))


def settled(log_r: jax.Array, before: jax.Array, s: Any) -> jax.Array:
    """log r_s for the weights, [B]: on the way the last finite one of each row, at the end -inf where it is NaN."""
    at_end = jnp.where(jnp.isnan(log_r), -jnp.inf, log_r)
    return jnp.where(jnp.asarray(s) > 0, jnp.where(jnp.isfinite(log_r), log_r, before), at_end)


def tilted(
    denoiser: Callable,
    schedule: Schedule,
    log_r: Callable,
    *,
    power: Callable | None = None,
    variance: Any = "small",
) -> Kernel:
    """Return the 2015 paper's kernel for the model multiplied by r, with the weights that make it exact.

        q(x_s | x_t) = N(mean + variance grad log r_s(mean), variance),   r_t(x) = r(x)^power(t)

    The model's step tilted by r at the step's own state. Without its weights, as in the paper, it
    samples another distribution even in the limit of small steps (with a constant r about p r^2
    where r is as wide as p): the twists r_t look at the noisy state as if it were the data. With
    them it converges as the number of rows grows, fast where p r has one mode, slowly where it has
    several, which `twisted` and `mcgdiff` see coming and this does not.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      log_r: one x [*D] -> log r(x), [], in nats; differentiable. -inf and NaN are r = 0.
      power: t [] -> share of log r that counts at time t, 1 at t = 0; None is 1 - t. `lambda t:
        1.0` is the constant r of the paper's examples, whose weights have heavy tails.
      variance: of the model's steps, as in `kernels.p_mean_variance`.
    Returns:
      A Kernel; one denoiser call a step. The evidence of a run is log E_p[r(x_0)]; -inf where r is
      0 at every row.
    Raises:
      ValueError: unknown variance, or power is not 1 at t = 0.
      TypeError: a function is none.
    Numerics: the tilted mean overshoots where variance times the curvature of log r_s exceeds 2, as
      it does with the power 1 - t on schedules that do not preserve variance; noise_std^2 /
      (noise_std^2 + sigma_t^2 / alpha_t^2) for a likelihood of that noise falls fast enough.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Section 2.5 and Appendix C; weighted as
      annealed importance sampling (Neal 2001).
    """
    share = as_function("power", _one_minus if power is None else power)
    _checks.values("power", share(jnp.zeros(())), "1 at t = 0", lambda v: v == 1)
    functions = as_function("denoiser", denoiser), schedule, as_likelihood("log_r", log_r), share
    return Kernel(
        Partial(nothing_yet), Partial(_tilted_step, variance_function(variance), *functions)
    )


def _one_minus(t: Any) -> Any:
    return 1 - t


def nothing_yet(x_init: jax.Array, t: Any) -> jax.Array:
    """log r_t as far as the weights have it already: the first step brings that of the start too."""
    return jnp.zeros(x_init.shape[:1], _rows.state_dtype(x_init.dtype))


def _tilted_step(
    variance: Any, denoiser: Partial, schedule: Schedule, log_r: Partial, power: Partial,
    key: jax.Array, carry: jax.Array, x_t: jax.Array, t: Any, s: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    p = p_mean_variance(denoiser, schedule, x_t, t, s, variance=variance)
    share = jnp.asarray(power(s), x_t.dtype)
    slope = jax.grad(lambda x: share * jnp.sum(log_likelihoods(log_r, x)))(p.mean)
    x_s, ratio = draw(key, p, towards(p, slope), s)
    log_r_s = settled(share * log_likelihoods(log_r, x_s), carry, s)
    return log_r_s, x_s.astype(x_t.dtype), ratio + log_r_s - carry


class Twisted(NamedTuple):
    """What is known at the rows' states: it is passed on, so that a step costs one denoiser call.

    Fields:
      denoised: what the denoiser said.
      slope: grad log r_t, [B, *D].
      log_r: log r_t, [B].
      weighted: the log r_t that the weights have already, [B].
    """

    denoised: Any
    slope: jax.Array
    log_r: jax.Array
    weighted: jax.Array


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
    """Return the twisted diffusion sampler: particles steered by what their denoised states say of y.

        r_t(x_t) = twist(D(x_t, t), spread_t),   r_0 = likelihood
        q(x_s | x_t) = N(mean + variance grad log r_t(x_t), variance)

    Its samples converge to p(x_0) p(y | x_0) as the number of rows grows, and its evidence is
    unbiased for p(y) at any number, whatever twist and proposal are.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      log_likelihood: one x_0 [*D] -> log p(y | x_0), [], in nats: an `Observation` or any function.
        -inf and NaN are a likelihood of 0.
      variance: of the model's steps, as in `kernels.p_mean_variance`.
      twist: (x_0 [*D], spread []) -> [], differentiable: what stands for log p(y | x_t) where x_0
        is the denoised state and spread = Var[x_0 | x_t] of data of the prior's width. None is the
        observation itself, its noise widened by the spread, or for any other likelihood the
        likelihood at x_0 (the paper's). Best is one that is finite everywhere: where it is not, a
        row goes on unsteered.
      prior_std: standard deviation of an entry of the data, [], traced; only the spread depends on
        it.
      proposal: (x_t, t, s) -> Normal over x_s, such as `through(guidance.mmps(...), schedule)`;
        None is the above, which needs no further denoiser call.
    Returns:
      A Kernel; one denoiser call and one vector-Jacobian product a step, and one of each to begin
      with. The grid must end at t = 0, where the likelihood itself takes the place of the twist.
      The evidence is -inf, and the effective sample size 0, where the likelihood is 0 at every row.
    Raises:
      ValueError: unknown variance, prior_std not positive.
      TypeError: a function is none.
    Source: Wu et al. 2023, arXiv:2306.17775, Algorithm 1; the widened noise: Song et al. 2023
    (PiGDM), Eq. (7).
    """
    kind = variance_function(variance)
    _checks.values("prior_std", prior_std, "a positive standard deviation", lambda v: v > 0)
    likelihood = as_likelihood("log_likelihood", log_likelihood)
    if twist is None:
        look = (
            likelihood
            if isinstance(log_likelihood, Observation)
            else Partial(_at_point, likelihood)
        )
    else:
        look = as_function("twist", twist)
    functions = as_function("denoiser", denoiser), schedule, likelihood, look, prior_std
    chosen = None if proposal is None else as_function("proposal", proposal)
    return Kernel(
        Partial(_twisted_init, *functions), Partial(_twisted_step, kind, chosen, *functions)
    )


def _at_point(likelihood: Partial, x_0: jax.Array, spread: Any) -> jax.Array:
    return likelihood(x_0)


def through(denoiser: Callable, schedule: Schedule, *, variance: Any = "small") -> Partial:
    """Return the proposal that a guided denoiser makes: p(x_s | x_t) with its D in place of the model's.

    Args:
      denoiser: (x_t, t) -> an approximation of E[x_0 | x_t, y], such as `guidance.mmps(...)`.
      schedule: the noise schedule.
      variance: as in `kernels.p_mean_variance`.
    Returns:
      A proposal for `twisted`, (x_t, t, s) -> Normal: it calls the denoiser anew.
    Raises:
      ValueError: unknown variance.
    """
    return Partial(
        _through, variance_function(variance), as_function("denoiser", denoiser), schedule
    )


def _through(
    variance: Any, denoiser: Partial, schedule: Schedule, x_t: jax.Array, t: Any, s: Any
) -> Normal:
    return p_mean_variance(denoiser, schedule, x_t, t, s, variance=variance)


def _look(
    denoiser: Partial,
    schedule: Schedule,
    likelihood: Partial,
    twist: Partial,
    prior_std: Any,
    x: jax.Array,
    t: Any,
) -> tuple[Any, jax.Array, jax.Array]:
    """What the denoiser says of the states at t, the gradient of the twist, and the twist."""
    spread = isotropic_spread(schedule, x, t, prior_std)

    def total(x: jax.Array) -> tuple[jax.Array, Any]:
        denoised = denoiser(x, t)
        log_r = log_likelihoods(twist, x_0_of(denoised, x), spread)
        return jnp.sum(log_r), (denoised, log_r)

    slope, (denoised, log_r) = jax.grad(total, has_aux=True)(x)
    return denoised, slope, log_r


def _twisted_init(
    denoiser: Partial,
    schedule: Schedule,
    likelihood: Partial,
    twist: Partial,
    prior_std: Any,
    x: jax.Array,
    t: Any,
) -> Twisted:
    now = _look(denoiser, schedule, likelihood, twist, prior_std, x, t)
    return Twisted(*now, nothing_yet(x, t))


def _twisted_step(
    variance: Any, proposal: Partial | None, denoiser: Partial, schedule: Schedule, likelihood: Partial, twist: Partial,
    prior_std: Any, key: jax.Array, carry: Twisted, x_t: jax.Array, t: Any, s: Any,
) -> tuple[Twisted, jax.Array, jax.Array]:  # fmt: skip
    p = p_given(carry.denoised, schedule, x_t, t, s, variance=variance)
    q = towards(p, carry.slope) if proposal is None else or_model(proposal(x_t, t, s), p)
    x_s, ratio = draw(key, p, q, s)
    x_s = x_s.astype(x_t.dtype)

    def look(x: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        return _look(denoiser, schedule, likelihood, twist, prior_std, x, s)

    def end(x: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        # Data, of which the likelihood itself speaks; nothing will be asked of the rest.
        return carry.denoised, carry.slope, log_likelihoods(likelihood, x)

    denoised, slope, log_r = jax.lax.cond(jnp.asarray(s) > 0, look, end, x_s)
    log_r = settled(log_r, carry.weighted, s)
    return Twisted(denoised, slope, log_r, log_r), x_s, ratio + log_r - carry.weighted
