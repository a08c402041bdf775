"""Denoisers given an observation, each with an approximation of its own: D + (sigma^2 / alpha) grad log p(y | x_t).

The gradient is exact where p(y | x_t) is. With y = A x_0 + noise and x_0 given x_t taken to be N(D,
V),

    p(y | x_t) ~ N(y; A D, noise_std^2 I + A V A^T)
    D_y = D + (sigma^2 / alpha) J^T A^T (noise_std^2 I + A V A^T)^-1 (y - A D),   J = dD / dx_t, V held fixed

and the methods differ in V: none (DPS), a multiple of the identity (PiGDM), diagonal (TMPD),
Tweedie's (MMPS).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._functions import Static
from jaxdiff._tree import as_function
from jaxdiff.forward import level
from jaxdiff.observations import Observation, log_likelihoods
from jaxdiff.prediction import Denoised, x_0_of
from jaxdiff.schedules import Schedule


def dps(
    denoiser: Callable, schedule: Schedule, log_likelihood: Callable, scale: Any = 1.0
) -> Partial:
    """Return the denoiser of diffusion posterior sampling: an approximation, biased at every step size.

        D + scale (sigma_t^2 / alpha_t) grad_x log r(D(x_t))

    It takes p(x_0 | x_t) to be a point at D. The authors' sampler divides the gradient of |y - A
    D|^2 by |y - A D|: log_likelihood = -|y - A x_0| does that here.

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
    _checks.finite("scale", scale)
    likelihood = as_function("log_likelihood", log_likelihood)
    return Partial(_dps, as_function("denoiser", denoiser), schedule, likelihood, scale)


def _dps(
    denoiser: Partial,
    schedule: Schedule,
    log_likelihood: Partial,
    scale: Any,
    x_t: jax.Array,
    t: Any,
) -> Any:
    def total(x: jax.Array) -> tuple[jax.Array, Any]:
        denoised = denoiser(x, t)
        return jnp.sum(log_likelihoods(log_likelihood, x_0_of(denoised, x))), denoised

    slope, denoised = jax.grad(total, has_aux=True)(x_t)
    return shifted(
        denoised, schedule, x_t, t, _rows.expand(jnp.asarray(scale, x_t.dtype), x_t) * slope
    )


def shifted(denoised: Any, schedule: Schedule, x_t: jax.Array, t: Any, slope: jax.Array) -> Any:
    """Return what the denoiser would have said given y, from the gradient of log p(y | x_t): Tweedie's formula.

        D + (sigma_t^2 / alpha_t) slope

    Args:
      denoised: what the denoiser said of x_t.
      schedule: the noise schedule.
      x_t: state, [B, *D].
      t: its time, [] or [B].
      slope: [B, *D].
    Returns:
      The same, with another x_0; where alpha_t = 0, and a state says nothing of y, as it was. So is
      a row whose slope is not finite, as where a likelihood is zero.
    """
    slope = jnp.where(_rows.all_finite(slope), slope, 0)
    x_0 = (x_0_of(denoised, x_t) + reach(schedule, x_t, t) * slope).astype(x_t.dtype)
    return denoised._replace(x_0=x_0) if isinstance(denoised, Denoised) else x_0


def reach(schedule: Schedule, x_t: jax.Array, t: Any) -> jax.Array:
    """Return sigma_t^2 / alpha_t, broadcasting against x_t; 0 where alpha_t is."""
    alpha, sigma, _ = level(schedule, t, x_t)
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
) -> Partial:
    """Return the pseudo-inverse guided denoiser: an approximation, exact for data ~ N(m, prior_std^2 I).

        V = r_t^2 I,   r_t^2 = 1 / (1 / prior_std^2 + alpha_t^2 / sigma_t^2)

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      observation: linear, with Gaussian noise.
      prior_std: standard deviation of an entry of the data, [], traced.
      num_iterations: of conjugate gradients, static; as many as y has entries are exact, fewer do
        where A A^T is near a multiple of the identity (one for inpainting).
    Returns:
      A denoiser; one call and one vector-Jacobian product.
    Raises:
      TypeError: observation is no Observation.
      ValueError: num_iterations < 1, prior_std not positive.
    Source: Song et al. 2023, Pseudoinverse-guided diffusion models, ICLR, Eqs. (7) and (8).
    """
    _checks.values("prior_std", prior_std, "a positive standard deviation", lambda v: v > 0)
    return _moment_matched("pigdm", denoiser, schedule, observation, prior_std, num_iterations)


def tmpd(
    denoiser: Callable, schedule: Schedule, observation: Observation, *, num_iterations: int = 20
) -> Partial:
    """Return the Tweedie moment projected denoiser: an approximation, exact for data with independent normal entries.

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
    return _moment_matched("tmpd", denoiser, schedule, observation, 1.0, num_iterations)


def mmps(
    denoiser: Callable, schedule: Schedule, observation: Observation, *, num_iterations: int = 5
) -> Partial:
    """Return the moment matching denoiser: an approximation, exact for Gaussian data of any covariance.

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
    return _moment_matched("mmps", denoiser, schedule, observation, 1.0, num_iterations)


def _moment_matched(
    kind: str,
    denoiser: Callable,
    schedule: Schedule,
    observation: Any,
    prior_std: Any,
    num_iterations: int,
) -> Partial:
    if not isinstance(observation, Observation):
        raise TypeError(
            "observation: expected an Observation such as observations.mask(y, observed, noise_std), "
            f"got {type(observation).__name__}"
        )
    _checks.positive_int("num_iterations", num_iterations)
    options = Static((kind, num_iterations))
    return Partial(
        _given, options, as_function("denoiser", denoiser), schedule, observation, prior_std
    )


def _given(
    options: Static,
    denoiser: Partial,
    schedule: Schedule,
    seen: Observation,
    prior_std: Any,
    x_t: jax.Array,
    t: Any,
) -> Any:
    kind, num_iterations = options.value

    def both(x: jax.Array) -> tuple[jax.Array, Any]:
        denoised = denoiser(x, t)
        return x_0_of(denoised, x), denoised

    x_0, pull, denoised = jax.vjp(both, x_t, has_aux=True)
    observe = jax.vmap(seen.operator)
    predicted, pull_back = jax.vjp(observe, x_0)
    scale = reach(schedule, x_t, t)
    if kind == "tmpd":
        row_sums = jnp.maximum(scale * pull(jnp.ones_like(x_0))[0], 0)
    spread = {
        "pigdm": lambda u: isotropic_spread(schedule, x_t, t, prior_std) * u,
        "tmpd": lambda u: row_sums * u,
        "mmps": lambda u: scale * pull(u)[0],
    }[kind]
    noise = _rows.lead(jnp.asarray(seen.noise_std, x_0.dtype) ** 2, predicted.ndim)

    def covariance(v: jax.Array) -> jax.Array:
        return noise * v + observe(spread(pull_back(v)[0]).astype(x_0.dtype))

    observed = _rows.lead(seen.observed.astype(x_0.dtype), predicted.ndim)
    weighted = conjugate_gradients(
        covariance, observed * (seen.y[None] - predicted), num_iterations
    )
    return shifted(denoised, schedule, x_t, t, pull(pull_back(weighted)[0])[0])


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
