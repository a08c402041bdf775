"""The 2015 paper's tilt: r at the noisy states, with exact weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks
from jaxdiff._tree import as_function, put, pytree
from jaxdiff.kernels import Kernel, p_mean_variance
from jaxdiff.kernels._kernel import lift
from jaxdiff.kernels._reverse import variance_function
from jaxdiff.normal import Normal
from jaxdiff.observations import log_likelihoods
from jaxdiff.posterior._weighting import Weighted, no_twist, tilt, weighable
from jaxdiff.schedules import Schedule


@pytree
class Tilted(Weighted):
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

    def steps(self, carry: jax.Array, x_t: jax.Array, t: Any, s: Any) -> tuple[Normal, Normal]:
        """Tilt the model's step by the gradient of log r_s at its mean."""
        p = p_mean_variance(self.denoiser, self.schedule, x_t, t, s, variance=self.variance)
        gradient = jax.grad(lambda x: jnp.sum(self.log_r_at(x, s)))(p.mean)
        return p, tilt(p, gradient)

    def arrive(self, carry: jax.Array, x_s: jax.Array, t: Any, s: Any) -> jax.Array:
        """Return log r_s, [B]."""
        return weighable(self.log_r_at(x_s, s), carry, s)

    def log_r_of(self, carry: jax.Array) -> jax.Array:
        """Return the carry, which is log r_t."""
        return carry

    def log_r_at(self, x: jax.Array, t: Any) -> jax.Array:
        """Return log r_t(x), [B]."""
        return jnp.asarray(self.power(t), x.dtype) * log_likelihoods(self.log_r, x)


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
