"""Linear observations with Gaussian noise, entry by entry in a basis of their own: conjugate steps, no gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function
from jaxdiff.kernels import Kernel, p_mean_variance
from jaxdiff.kernels._kernel import noise
from jaxdiff.normal import log_density
from jaxdiff.observations import masked
from jaxdiff.posterior._twisted import nothing_yet
from jaxdiff.schedules import Schedule


class Basis(NamedTuple):
    """An observation in coordinates c = project(x) in which it is diagonal: y_i = gain_i c_i + noise_std_i n_i.

    Fields:
      project: x [B, *D] -> c [B, *M], with orthonormal rows.
      lift: its transpose.
      gain: singular values, [*M].
      y: [*M].
      noise_std: [] or [*M], positive.
      observed: true where there is a y_i, [] or [*M].
    """

    project: Partial
    lift: Partial
    gain: jax.Array
    y: jax.Array
    noise_std: Any
    observed: Any


class Belief(NamedTuple):
    """What a noisy state says of x_0 before the network is asked: N(slope x_t + offset, variance), entry by entry.

    Each broadcasts against the coordinates [*M] of the observation.
    """

    slope: Any
    offset: Any
    variance: Any


def mcgdiff(
    denoiser: Callable,
    schedule: Schedule,
    A: jax.Array,
    y: jax.Array,
    noise_std: Any,
    *,
    belief: Callable | None = None,
) -> Kernel:
    """Return the Monte Carlo guided diffusion sampler of linear observations: conjugate in the basis of A's SVD.

        A = U diag(g) V^T,   c = V^T x,   u = U^T y:   u_i = g_i c_0,i + noise_std n_i
        r_t(c_t) = N(u; g c_t / alpha_t, noise_std^2 + (g sigma_t / alpha_t)^2)
        q(x_s | x_t) = p(x_s | x_t) r_s(x_s) / int p r_s,   increment = log int p(x_s | x_t) r_s - log r_t(x_t)

    Its samples converge to p(x_0) p(y | x_0) as the number of rows grows, and its evidence is
    unbiased at any number. As noise_std goes to 0 this is the paper's sampler. With noise the paper
    lets go of coordinate i where the process is as noisy as u_i; here r_t goes over into the
    likelihood itself at t = 0, which is exact on any grid.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      A: [m, d], acting on x_0's entries in order, d = prod(D).
      y: observation, [m], floating.
      noise_std: [], positive, traced.
      belief: t [] -> Belief of the coordinates; None is the above, where nothing is known of the
        data: x_0 given x_t is N(x_t / alpha_t, (sigma_t / alpha_t)^2). `gaussian_belief` knows
          their mean and width.
    Returns:
      A Kernel; one denoiser call a step, no gradients. Its model is `kernels.ancestral`'s "small".
      The grid must end at t = 0.
    Raises:
      ValueError: shapes do not fit, y is known and not finite, or noise_std is not positive.
      TypeError: A or y is not floating.
    Source: Cardoso et al. 2023, arXiv:2308.07983, Sections 3.1 and 3.2.
    """
    _checks.floating("A", A)
    _checks.floating("y", y)
    if jnp.ndim(A) != 2 or jnp.shape(y) != A.shape[:1]:
        raise ValueError(
            f"A, y: expected shapes [m, d] and [m], got {jnp.shape(A)} and {jnp.shape(y)}"
        )
    _checks.values("y", y, "finite entries", np.isfinite)
    left, gain, right = jnp.linalg.svd(jnp.asarray(A), full_matrices=False)
    basis = Basis(
        Partial(_multiply, right), Partial(_multiply_back, right), gain, left.T @ y, noise_std, True
    )
    # What y has outside of A's range is noise, and nothing else.
    outside, extra = y - left @ (left.T @ y), len(y) - len(gain)
    std = jnp.asarray(noise_std, y.dtype)
    constant = -jnp.sum(outside**2) / (2 * std**2) - extra / 2 * jnp.log(2 * jnp.pi * std**2)
    return _kernel(denoiser, schedule, basis, belief, constant)


def _multiply(rows: jax.Array, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1) @ rows.T


def _multiply_back(rows: jax.Array, c: jax.Array) -> jax.Array:
    return c @ rows


def inpaint(
    denoiser: Callable,
    schedule: Schedule,
    y: jax.Array,
    observed: jax.Array,
    noise_std: Any,
    *,
    belief: Callable | None = None,
) -> Kernel:
    """Return `mcgdiff` for an observation of some entries: the pixels are their own basis.

        y_i = x_0,i + noise_std n_i   where observed_i

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      y: [*D], floating; where nothing is observed its entries do not matter: NaN will do.
      observed: [*D], true or 1 where y is an observation, false or 0 elsewhere: bool, int or float.
        A traced one counts as true where it is not 0.
      noise_std: [] or [*D], positive, traced.
      belief: as in `mcgdiff`, of the pixels, [*D].
    Returns:
      A Kernel, as `mcgdiff`.
    Raises:
      ValueError: observed is not shaped like y or has other values than 0 and 1, y is known and not
        finite where it is observed, or noise_std is not positive.
      TypeError: y is not floating, or observed no mask.
    Source: as of `mcgdiff`.
    """
    _checks.floating("y", y)
    _checks.same_shape("observed", observed, "y", y)
    shown, y = masked("observed", observed, y)
    basis = Basis(
        Partial(jnp.asarray), Partial(jnp.asarray), shown.astype(y.dtype), y, noise_std, shown
    )
    return _kernel(denoiser, schedule, basis, belief, 0.0)


def denoise(
    denoiser: Callable,
    schedule: Schedule,
    y: jax.Array,
    noise_std: Any,
    *,
    belief: Callable | None = None,
) -> Kernel:
    """Return `mcgdiff` for an observation of everything, with noise; it adds the evidence to the posterior.

        y = x_0 + noise_std n

    The posterior alone is had without weights: y is x_t / alpha_t at `noise_level(schedule,
    noise_std)`, from which any reverse kernel goes on.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      y: [*D], floating.
      noise_std: [] or [*D], positive, traced.
      belief: as in `mcgdiff`, of the entries, [*D].
    Returns:
      A Kernel, as `mcgdiff`.
    Raises:
      ValueError: noise_std is not positive.
      TypeError: y is not floating.
    Source: as of `mcgdiff`.
    """
    _checks.floating("y", y)
    return inpaint(denoiser, schedule, y, jnp.ones(jnp.shape(y), y.dtype), noise_std, belief=belief)


def noise_level(schedule: Schedule, noise_std: Any) -> jax.Array:
    """Return the time at which x_t / alpha_t is data with this much noise.

        sigma_t / alpha_t = noise_std

    Args:
      schedule: the noise schedule.
      noise_std: [], positive, traced.
    Returns:
      t, [], in [0, 1]: a run from x_t = alpha_t y on a grid that starts there draws from p(x_0 |
      y).
    Raises:
      ValueError: noise_std is not positive.
    """
    _checks.values("noise_std", noise_std, "a positive standard deviation", lambda v: v > 0)
    return schedule.time(-2 * jnp.log(jnp.asarray(noise_std)))


def gaussian_belief(schedule: Schedule, mean: Any, std: Any) -> Partial:
    """Return the belief of one who knows the data's mean and width, entry by entry.

        slope = alpha_t w / sigma_t^2,   offset = w mean / std^2,   1 / w = 1 / std^2 + alpha_t^2 / sigma_t^2

    Args:
      schedule: the noise schedule.
      mean: of the coordinates of the observation, [] or [*M].
      std: of the same, [] or [*M], positive.
    Returns:
      t [] -> Belief, for `mcgdiff`, `inpaint` and `denoise`.
    Raises:
      ValueError: std is not positive.
    """
    _checks.values("std", std, "a positive standard deviation", lambda v: v > 0)
    return Partial(_gaussian_belief, schedule, mean, std)


def _gaussian_belief(schedule: Schedule, mean: Any, std: Any, t: Any) -> Belief:
    alpha, sigma, squared = schedule.alpha(t), schedule.sigma(t), jnp.asarray(std) ** 2
    total = alpha**2 * squared + sigma**2
    return Belief(alpha * squared / total, sigma**2 * mean / total, squared * sigma**2 / total)


def _flat_belief(schedule: Schedule, t: Any) -> Belief:
    alpha, sigma = schedule.alpha_sigma(t)
    return Belief(1 / alpha, 0.0, (sigma / alpha) ** 2)


def _kernel(
    denoiser: Callable, schedule: Schedule, basis: Basis, belief: Callable | None, constant: Any
) -> Kernel:
    _checks.values("noise_std", basis.noise_std, "a positive standard deviation", lambda v: v > 0)
    believe = Partial(_flat_belief, schedule) if belief is None else as_function("belief", belief)
    step = Partial(_step, as_function("denoiser", denoiser), schedule, basis, believe)
    # Minus the constant is counted as being in the weights already: the first step brings it in.
    return Kernel(Partial(_start, constant), step)


def _start(constant: Any, x_init: jax.Array, t: Any) -> jax.Array:
    return nothing_yet(x_init, t) - constant


def _step(
    denoiser: Partial, schedule: Schedule, basis: Basis, belief: Partial,
    key: jax.Array, carry: jax.Array, x_t: jax.Array, t: Any, s: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    mean, variance = p_mean_variance(denoiser, schedule, x_t, t, s)
    sampled = (mean + jnp.sqrt(variance) * noise(key, x_t, s)).astype(x_t.dtype)
    # The model's step and its draw in the observation's coordinates, where the variance is the
    # same.
    c, drawn = basis.project(mean), basis.project(sampled)
    v = _rows.expand(variance.reshape(len(x_t), -1)[:, 0], c)
    gain, y, noise_std, *believed = (
        _rows.lead(jnp.asarray(value, c.dtype), c.ndim)
        for value in (basis.gain, basis.y, basis.noise_std, *belief(s))
    )
    observed = _rows.lead(jnp.asarray(basis.observed), c.ndim)
    slope, offset, spread = believed
    # y = pull c_s + gain offset + noise of variance `added`, where c_s ~ N(c, v).
    pull, added = gain * slope, noise_std**2 + gain**2 * spread
    residual, total = y - pull * c - gain * offset, added + pull**2 * v
    moved = c + v * pull / total * residual + jnp.sqrt(added / total) * (drawn - c)
    x_s = sampled + basis.lift(moved - drawn).reshape(x_t.shape).astype(x_t.dtype)
    ahead = _rows.event_sum(jnp.where(observed, log_density(residual, total), 0))
    log_r_s = _rows.event_sum(
        jnp.where(observed, log_density(residual - pull * (moved - c), added), 0)
    )
    return log_r_s, x_s, ahead - carry
