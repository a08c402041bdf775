"""Denoisers given an observation: D + (sigma^2 / alpha) grad log p(y | x_t), approximately.

They are exact where p(y | x_t) is. With y = A x_0 + noise, and N(D, V) for x_0 given x_t,

    p(y | x_t) ~ N(y; A D, noise_std^2 I + A V A^T)
    D_y = D + (sigma^2 / alpha) J^T A^T (noise_std^2 I + A V A^T)^-1 (y - A D)

with J = dD / dx_t and V held fixed,

and the methods differ in V: none (DPS), a multiple of the identity (PiGDM), diagonal (TMPD),
Tweedie's (MMPS).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import Level, level
from jaxdiff.observations import Observation, log_likelihoods
from jaxdiff.prediction import Denoised, x_0_of
from jaxdiff.schedules import Schedule


def dps(
    denoiser: Callable, schedule: Schedule, log_likelihood: Callable, scale: Any = 1.0
) -> Callable:
    """Return the denoiser of diffusion posterior sampling: an approximation, always biased.

        D + scale (sigma_t^2 / alpha_t) grad_x log r(D(x_t))

    It takes p(x_0 | x_t) to be a point at D. The authors' sampler normalises the gradient and adds
    it to x_s, with a length that does not depend on sigma_t: `dps_step`.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      log_likelihood: one x_0 [*D] -> log p(y | x_0), [], in nats.
      scale: [] or [B], traced.
    Returns:
      A denoiser; one call and one vector-Jacobian product. A learned reverse variance passes
      through.
    Raises:
      TypeError: denoiser or log_likelihood is no function.
      ValueError: scale is known and not finite.
    Numerics: on Gaussian data with a Gaussian observation the shift is too long by the factor
      (noise_std^2 + Var[A x_0 | x_t]) / noise_std^2.
    Source: Chung et al. 2023, arXiv:2209.14687, Theorem 1 and Algorithm 1.
    """
    return DPS(denoiser, schedule, log_likelihood, scale)


@pytree
class GradientGuidance:
    """A denoiser that follows the gradient of a log-likelihood: `__call__` takes it."""

    denoiser: Callable
    schedule: Schedule
    log_likelihood: Callable
    scale: Any = 1.0

    def __post_init__(self) -> None:
        _checks.finite("scale", self.scale)
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            log_likelihood=as_function("log_likelihood", self.log_likelihood),
        )

    def follow(self, denoised: Any, slope: jax.Array, x_t: jax.Array, t: Any) -> Any:
        """Return E[x_0 | x_t] moved along scale times the gradient, slope [B, *D]."""
        score = _rows.expand(jnp.asarray(self.scale, x_t.dtype), x_t) * slope
        return tweedie(denoised, level(self.schedule, t, x_t), x_t, score)


@pytree
class DPS(GradientGuidance):
    """The denoiser of `dps`."""

    def __call__(self, x_t: jax.Array, t: Any) -> Any:
        """Return the guided E[x_0 | x_t]."""

        def total(x: jax.Array) -> tuple[jax.Array, Any]:
            denoised = self.denoiser(x, t)
            return jnp.sum(log_likelihoods(self.log_likelihood, x_0_of(denoised, x))), denoised

        slope, denoised = jax.grad(total, has_aux=True)(x_t)
        return self.follow(denoised, slope, x_t, t)


def tweedie(denoised: Any, level_t: Level, x_t: jax.Array, score: jax.Array) -> Any:
    """Return what the denoiser would return given y: Tweedie's formula.

        D + (sigma_t^2 / alpha_t) grad_x log p(y | x_t)

    Args:
      denoised: what the denoiser returned for x_t.
      level_t: the schedule at t.
      x_t: state, [B, *D].
      score: grad_x log p(y | x_t), [B, *D].
    Returns:
      The same with another x_0. Where alpha_t = 0 a state tells nothing about y, and x_0 stays. It
      stays too in a row whose score is not finite, as where a likelihood is zero.
    """
    score = jnp.where(_rows.all_finite(score), score, 0)
    x_0 = (x_0_of(denoised, x_t) + tweedie_scale(level_t) * score).astype(x_t.dtype)
    return denoised._replace(x_0=x_0) if isinstance(denoised, Denoised) else x_0


def tweedie_scale(level_t: Level) -> jax.Array:
    """Return sigma_t^2 / alpha_t; 0 where alpha_t is."""
    alpha, sigma, _ = level_t
    usable = alpha > jnp.finfo(alpha.dtype).eps
    return jnp.where(usable, sigma**2 / jnp.where(usable, alpha, 1), 0)


def isotropic_spread(schedule: Schedule, x_t: jax.Array, t: Any, prior_std: Any) -> jax.Array:
    """Return the variance that x_t leaves of data ~ N(., prior_std^2 I).

        Var[x_0 | x_t] = 1 / (1 / prior_std^2 + alpha_t^2 / sigma_t^2)

    Args:
      schedule: the noise schedule.
      x_t: state, [B, *D], for the shape and dtype.
      t: its time, [] or [B].
      prior_std: standard deviation of an entry of the data, [], traced.
    Returns:
      An array that broadcasts against x_t.
    """
    alpha, sigma, _ = level(schedule, t, x_t)
    squared = jnp.asarray(prior_std, sigma.dtype) ** 2
    return squared * sigma**2 / (alpha**2 * squared + sigma**2)


def pigdm(
    denoiser: Callable,
    schedule: Schedule,
    observation: Observation,
    *,
    prior_std: Any = 1.0,
    num_iterations: int = 20,
) -> Callable:
    """Return the pseudo-inverse guided denoiser: exact for data ~ N(m, prior_std^2 I).

        V = r_t^2 I,   r_t^2 = 1 / (1 / prior_std^2 + alpha_t^2 / sigma_t^2)

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      observation: linear, with Gaussian noise.
      prior_std: standard deviation of an entry of the data, [], traced.
      num_iterations: of conjugate gradients, static. As many as y has entries are exact. Fewer are
        enough where A A^T is near a multiple of the identity (one for inpainting).
    Returns:
      A denoiser; one call and one vector-Jacobian product.
    Raises:
      TypeError: observation is no Observation.
      ValueError: num_iterations < 1, prior_std not positive.
    Source: Song et al. 2023, Pseudoinverse-guided diffusion models, ICLR, Eqs. (7) and (8).
    """
    return PiGDM(denoiser, schedule, observation, num_iterations, prior_std)


def tmpd(
    denoiser: Callable, schedule: Schedule, observation: Observation, *, num_iterations: int = 20
) -> Callable:
    """Return the Tweedie moment projected denoiser: exact for independent normal entries.

        V = diag((sigma_t^2 / alpha_t) J 1),   the row sums of Tweedie's covariance

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      observation: linear, with Gaussian noise.
      num_iterations: as in `pigdm`.
    Returns:
      A denoiser; one call and two vector-Jacobian products.
    Raises:
      TypeError: observation is no Observation.
      ValueError: num_iterations < 1.
    Numerics: a row sum below zero counts as zero.
    Source: Boys et al. 2023, arXiv:2310.06721, Section 3.
    """
    return TMPD(denoiser, schedule, observation, num_iterations)


def mmps(
    denoiser: Callable, schedule: Schedule, observation: Observation, *, num_iterations: int = 5
) -> Callable:
    """Return the moment matching denoiser: exact for Gaussian data of any covariance.

        V = (sigma_t^2 / alpha_t) J = Cov[x_0 | x_t],   by Tweedie's formula

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      observation: linear, with Gaussian noise.
      num_iterations: of conjugate gradients, static; as many as y has entries are exact.
    Returns:
      A denoiser; one call and num_iterations + 1 vector-Jacobian products.
    Raises:
      TypeError: observation is no Observation.
      ValueError: num_iterations < 1.
    Source: Rozet et al. 2024, arXiv:2405.13712, Section 4.
    """
    return MMPS(denoiser, schedule, observation, num_iterations)


@pytree
class MomentMatching:
    """A denoiser given a linear observation; the methods differ in `covariance`."""

    denoiser: Callable
    schedule: Schedule
    observation: Observation
    num_iterations: int = static(default=20)

    def __post_init__(self) -> None:
        require_observation(self.observation)
        _checks.positive_int("num_iterations", self.num_iterations)
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def covariance(self, x_t: jax.Array, t: Any, pull: Callable) -> Callable:
        """Return V as a function u -> V u, [B, *D]; pull is u -> J u of the denoiser."""
        raise NotImplementedError

    def __call__(self, x_t: jax.Array, t: Any) -> Any:
        """Return the guided E[x_0 | x_t]."""

        def both(x: jax.Array) -> tuple[jax.Array, Any]:
            denoised = self.denoiser(x, t)
            return x_0_of(denoised, x), denoised

        seen = self.observation
        x_0, pull, denoised = jax.vjp(both, x_t, has_aux=True)
        observe = jax.vmap(seen.operator)
        predicted, pull_back = jax.vjp(observe, x_0)
        x_0_covariance = self.covariance(x_t, t, lambda u: pull(u)[0])
        noise = _rows.lead(jnp.asarray(seen.noise_std, x_0.dtype) ** 2, predicted.ndim)

        def y_covariance(v: jax.Array) -> jax.Array:
            return noise * v + observe(x_0_covariance(pull_back(v)[0]).astype(x_0.dtype))

        observed = seen.observed.astype(x_0.dtype)
        residual = _rows.lead(observed, predicted.ndim) * (seen.y[None] - predicted)
        weighted = conjugate_gradients(y_covariance, residual, self.num_iterations)
        score = pull(pull_back(weighted)[0])[0]
        return tweedie(denoised, level(self.schedule, t, x_t), x_t, score)


@pytree
class PiGDM(MomentMatching):
    """The denoiser of `pigdm`."""

    prior_std: Any = 1.0

    def __post_init__(self) -> None:
        positive = "a positive standard deviation"
        _checks.values("prior_std", self.prior_std, positive, lambda v: v > 0)
        MomentMatching.__post_init__(self)

    def covariance(self, x_t: jax.Array, t: Any, pull: Callable) -> Callable:
        """A multiple of the identity."""
        variance = isotropic_spread(self.schedule, x_t, t, self.prior_std)
        return lambda u: variance * u


@pytree
class TMPD(MomentMatching):
    """The denoiser of `tmpd`."""

    def covariance(self, x_t: jax.Array, t: Any, pull: Callable) -> Callable:
        """Tweedie's row sums on the diagonal."""
        scale = tweedie_scale(level(self.schedule, t, x_t))
        row_sums = jnp.maximum(scale * pull(jnp.ones_like(x_t)), 0)
        return lambda u: row_sums * u


@pytree
class MMPS(MomentMatching):
    """The denoiser of `mmps`."""

    def covariance(self, x_t: jax.Array, t: Any, pull: Callable) -> Callable:
        """Tweedie's covariance."""
        scale = tweedie_scale(level(self.schedule, t, x_t))
        return lambda u: scale * pull(u)


def require_observation(observation: Any) -> None:
    """Require an `Observation`."""
    if not isinstance(observation, Observation):
        raise TypeError(
            "observation: expected an Observation such as observations.mask(y, observed, "
            f"noise_std), got {type(observation).__name__}"
        )


def conjugate_gradients(matrix: Callable, b: jax.Array, num_iterations: int) -> jax.Array:
    """Solve a linear system for every row by itself.

        matrix(v) = b,   the best v of the Krylov space of num_iterations products with the matrix

    Args:
      matrix: v [B, *M] -> [B, *M], linear, symmetric and positive definite in each row.
      b: [B, *M], floating.
      num_iterations: static; as many as a row has entries are exact.
    Returns:
      v, [B, *M].
    Source: Hestenes & Stiefel 1952, J. Res. Nat. Bur. Stand. 49(6), Section 3.
    """

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return _rows.expand(_rows.event_sum(a * b), a)

    def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)  # a row that is solved stands still

    def iterate(
        _: Any, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        v, residual, direction = state
        image = matrix(direction)
        step = ratio(dot(residual, residual), dot(direction, image))
        new = residual - step * image
        return (
            v + step * direction,
            new,
            new + ratio(dot(new, new), dot(residual, residual)) * direction,
        )

    return jax.lax.fori_loop(0, num_iterations, iterate, (jnp.zeros_like(b), b, b))[0]
