"""The twisted diffusion sampler: the likelihood at the denoised states.

The weights are those of `_weighting`. If the spread Cov[x_0 | x_t] is known and the observation is
linear, states are conditioned in closed form. Otherwise they follow a gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.guidance import isotropic_spread
from jaxdiff.guidance._spread import Conditioner, Spread, conditioner, widened
from jaxdiff.kernels import Kernel, p_given, p_mean_variance
from jaxdiff.kernels._kernel import lift
from jaxdiff.kernels._reverse import variance_function
from jaxdiff.normal import Normal
from jaxdiff.observations import Observation, log_likelihoods
from jaxdiff.posterior._smoothing import NUM_NODES, smoothed, standard_nodes
from jaxdiff.posterior._weighting import (
    POSITIVE,
    Weighted,
    finite_or,
    no_twist,
    tilt,
    weighable,
)
from jaxdiff.prediction import Denoised, x_0_of
from jaxdiff.schedules import Schedule


class TwistState(NamedTuple):
    """What a step of `twisted` leaves for the next, so that a step costs one denoiser call.

    Fields:
      denoised: what the denoiser returned for the states.
      guide: E[x_0 | x_t, y] where states are conditioned, else grad log r_t, [B, *D].
      log_r: the log r_t that the weights contain, [B].
    """

    denoised: Any
    guide: jax.Array
    log_r: jax.Array


@pytree
class Twisted(Weighted):
    """The twisted diffusion sampler."""

    denoiser: Callable
    schedule: Schedule
    log_likelihood: Callable
    variance: Any = None
    twist: Any = None
    prior_std: Any = 1.0
    proposal: Any = None
    spread: Spread | None = None
    nodes: Any = None
    num_nodes: int = static(default=NUM_NODES)

    def __post_init__(self) -> None:
        _checks.values("prior_std", self.prior_std, POSITIVE, lambda v: v > 0)
        _checks.positive_int("num_nodes", self.num_nodes)
        if self.spread is not None and not isinstance(self.spread, Spread):
            expected = "a Spread such as posterior.spread_of(...)"
            raise TypeError(f"spread: expected {expected}, got {type(self.spread).__name__}")
        if self.nodes is not None:
            _checks.floating("nodes", self.nodes)
        if self.variance is None:
            variance = "small" if self.spread is None else "optimal"
        else:
            variance = self.variance
        twist, proposal = self.twist, self.proposal
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            log_likelihood=as_function("log_likelihood", self.log_likelihood),
            variance=variance_function(variance),
            twist=None if twist is None else as_function("twist", twist),
            proposal=None if proposal is None else as_function("proposal", proposal),
        )

    @property
    def seen(self) -> Observation | None:
        """The observation that conditions states in closed form; None if a gradient guides them."""
        found: Any = self.log_likelihood if self.twist is None else self.twist
        if self.spread is None:
            return None
        if isinstance(found, Observation):
            return found
        return found.normal() if hasattr(found, "normal") else None

    def conditioner(self, t: Any, x: jax.Array) -> Conditioner:
        """Return the observation under the spread at t."""
        assert self.seen is not None
        assert self.spread is not None
        return conditioner(self.seen, self.spread.at(self.schedule, t, x.dtype))

    def denoise(self, x: jax.Array, t: Any) -> Any:
        """Return E[x_0 | x_t], with the spread's variance where the denoiser has none."""
        denoised = self.denoiser(x, t)
        if self.spread is None or getattr(denoised, "variance", None) is not None:
            return denoised
        wide = widened(lambda x, t: x_0_of(denoised, x), self.schedule, self.spread)(x, t)
        return denoised._replace(variance=wide.variance) if isinstance(denoised, Denoised) else wide

    def init(self, x_init: jax.Array, t: Any) -> TwistState:
        """Return the state of a start. Its weights contain no twist."""
        denoised, guide, _ = self.look(x_init, t)
        return TwistState(denoised, guide, no_twist(x_init, t))

    def steps(self, carry: TwistState, x_t: jax.Array, t: Any, s: Any) -> tuple[Normal, Normal]:
        """Return the step of the model, and the step given y."""
        p = p_given(carry.denoised, self.schedule, x_t, t, s, variance=self.variance)
        if self.proposal is not None:
            return p, finite_or(self.proposal(x_t, t, s), p)
        if self.seen is None:
            return p, tilt(p, carry.guide)
        variance = jnp.broadcast_to(self.conditioner(t, x_t).variance()[None], x_t.shape)
        given = carry.denoised._replace(x_0=carry.guide, variance=variance)
        q = p_given(given, self.schedule, x_t, t, s, variance=self.variance)
        return p, finite_or(q, p)

    def arrive(self, carry: TwistState, x_s: jax.Array, t: Any, s: Any) -> TwistState:
        """Look ahead from x_s; at s = 0 the likelihood itself takes the twist's place."""

        def end(x: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
            # These are data: the likelihood itself. Nothing uses the rest.
            return carry.denoised, carry.guide, log_likelihoods(self.log_likelihood, x)

        look_ahead = jax.lax.cond(jnp.asarray(s) > 0, lambda x: self.look(x, s), end, x_s)
        denoised, guide, log_r = look_ahead
        return TwistState(denoised, guide, weighable(log_r, carry.log_r, s))

    def log_r_of(self, carry: TwistState) -> jax.Array:
        """Return log r_t, [B]."""
        return carry.log_r

    def look(self, x: jax.Array, t: Any) -> tuple[Any, jax.Array, jax.Array]:
        """Return the denoised states at t, what guides them, and the log twist."""
        if self.seen is not None:
            denoised = self.denoise(x, t)
            given = self.conditioner(t, x)(x_0_of(denoised, x))
            return denoised, given.mean.astype(x.dtype), given.log_likelihood

        def total(x: jax.Array) -> tuple[jax.Array, Any]:
            denoised = self.denoise(x, t)
            log_r = self.log_twist(x_0_of(denoised, x), t)
            return jnp.sum(log_r), (denoised, log_r)

        gradient, (denoised, log_r) = jax.grad(total, has_aux=True)(x)
        return denoised, gradient, log_r

    def log_twist(self, x_0: jax.Array, t: Any) -> jax.Array:
        """Return log r_t at denoised states, [B]."""
        if self.spread is None:
            covariance = None
            variance = isotropic_spread(self.schedule, x_0, t, self.prior_std)
        else:
            covariance = self.spread.at(self.schedule, t, x_0.dtype)
            variance = jnp.mean(covariance.diagonal())
        if self.twist is not None:
            return log_likelihoods(self.twist, x_0, variance)
        if isinstance(self.log_likelihood, Observation):
            return log_likelihoods(self.log_likelihood, x_0, variance)
        nodes: Any = self.nodes
        nodes = standard_nodes(self.num_nodes, x_0.shape[1:]) if nodes is None else nodes
        nodes = jnp.asarray(nodes, x_0.dtype)
        _checks.same_shape("nodes[0]", nodes[0], "x_0", x_0[0])
        if covariance is None:
            shifts = jnp.sqrt(variance) * nodes
        elif hasattr(self.log_likelihood, "terms"):
            shifts = jnp.sqrt(covariance.diagonal())[None] * nodes
        else:
            shifts = covariance.root(nodes)
        return smoothed(self.log_likelihood, x_0, shifts)


def twisted(
    denoiser: Callable,
    schedule: Schedule,
    log_likelihood: Callable,
    *,
    spread: Spread | None = None,
    variance: Any = None,
    twist: Callable | None = None,
    prior_std: Any = 1.0,
    proposal: Callable | None = None,
    nodes: Any = None,
    num_nodes: int = NUM_NODES,
) -> Kernel:
    """Return the twisted diffusion sampler: particles follow the likelihood of denoised states.

    With a spread V_t = Cov[x_0 | x_t] and a linear observation, states are conditioned on y:

        r_t(x_t) = N(y; A D, noise_std^2 I + A V_t A^T),   D = D(x_t, t),   r_0 = likelihood
        D_y = D + V_t A^T (noise_std^2 I + A V_t A^T)^-1 (y - A D)
        q(x_s | x_t) = p(x_s | x_t) with D_y for D, and the variance of x_0 given x_t and y

    Otherwise they follow a gradient:

        r_t(x_t) = mean of the likelihood around D, or N(y; A D, noise_std^2 I + v_t A A^T)
        q(x_s | x_t) = N(mean + variance grad log r_t(x_t), variance)

    Samples converge to p(x_0) p(y | x_0) as the number of rows grows. The evidence is unbiased for
    p(y) at any number of rows. Both hold for any spread, twist and proposal. The effective sample
    size does not say how many draws the rows stand for: see `Samples.lineages` and `draw`.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      log_likelihood: one x_0 [*D] -> log p(y | x_0), [], in nats: an `Observation` or any function.
        -inf and NaN are a likelihood of 0. A likelihood with a method `terms`, of independent terms
        whose sum it is, is smoothed term by term. One with a method `normal`, which returns an
        `Observation` that is near it, is conditioned as that one is; the weights are its own.
      spread: of `spread_of`. It should be the model's. Without one it is isotropic, v_t, and a
        gradient guides.
      variance: of the model's steps, as in `kernels.p_mean_variance`. None is "small" without a
        spread, and "optimal" with one: the spread is the variance of x_0 where the denoiser gives
        none.
      twist: an `Observation` that is near the likelihood, in its place; or (x_0 [*D], variance [])
        -> [], differentiable: an approximation of log p(y | x_t). x_0 is the denoised state, and
        variance is the mean Var[x_0 | x_t]. None is the observation with its noise widened, or the
        likelihood smoothed. Where a twist is not finite it does not guide the row.
      prior_std: standard deviation of an entry of the data, [], traced: of v_t alone.
      proposal: (x_t, t, s) -> Normal over x_s, such as `through(guidance.mmps(...), schedule)`.
        None is the q above, which needs no further denoiser call.
      nodes: points z at which a likelihood that is no `Observation` is smoothed,
        r_t = mean_k likelihood(D + V_t^(1/2) z_k), [K, *D], traced. One point at zero is the
        likelihood at D, as in the paper. None is num_nodes fixed points of N(0, I).
      num_nodes: K, static. The points must lie as densely as the likelihood is wide. In two
        dimensions 32 serve a noise of 0.2 of the data's deviation, and 256 one of 0.1.
    Returns:
      A Kernel. A step takes one denoiser call; a gradient takes one vector-Jacobian product more,
      and the start takes the same. The grid must end at t = 0, where the likelihood replaces the
      twist. If the likelihood is 0 at every row, the evidence is -inf and the effective sample size
      0.
    Raises:
      ValueError: variance is unknown, prior_std is not positive, or num_nodes < 1.
      TypeError: an argument is not a function, or spread is no Spread.
    Source: Wu et al. 2023, arXiv:2306.17775, Algorithm 1; the widened noise: Song et al. 2023
    (PiGDM), Eq. (7); the covariance: Rozet et al. 2024, arXiv:2405.13712, Eq. (13), here measured
    once instead of taken from a Jacobian at each step.
    """
    return lift(
        Twisted(
            denoiser, schedule, log_likelihood, variance, twist, prior_std, proposal,
            spread=spread, nodes=nodes, num_nodes=num_nodes,
        )
    )  # fmt: skip


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
