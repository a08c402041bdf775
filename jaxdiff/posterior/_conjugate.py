"""Linear observations with Gaussian noise: conjugate steps in a diagonal basis, no gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree
from jaxdiff.kernels import Kernel, p_mean_variance
from jaxdiff.kernels._kernel import Algorithm, lift, noise
from jaxdiff.normal import log_density
from jaxdiff.observations import masked
from jaxdiff.posterior._weighting import POSITIVE, no_twist
from jaxdiff.schedules import Schedule


@pytree
class Diagonal:
    """A diagonal observation of coordinates c = rows x: y_i = gain_i c_i + noise_std_i n_i.

    Fields:
      gain: [*M].
      y: [*M].
      noise_std: [] or [*M], positive.
      observed: true where there is a y_i, [] or [*M].
      rows: orthonormal rows, [M, d]; None where the coordinates are the entries of x.
    """

    gain: jax.Array
    y: jax.Array
    noise_std: Any
    observed: Any = True
    rows: jax.Array | None = None

    def __post_init__(self) -> None:
        _checks.values("noise_std", self.noise_std, POSITIVE, lambda v: v > 0)

    def project(self, x: jax.Array) -> jax.Array:
        """Return the coordinates of states [B, *D], [B, *M]."""
        return x if self.rows is None else x.reshape(x.shape[0], -1) @ self.rows.T.astype(x.dtype)

    def lift(self, c: jax.Array, like: jax.Array) -> jax.Array:
        """Return states of coordinates [B, *M], in the span of the rows, shaped like `like`."""
        return c if self.rows is None else (c @ self.rows.astype(c.dtype)).reshape(like.shape)


class Belief(NamedTuple):
    """What x_t says of x_0 without the network: N(slope x_t + offset, variance), entry by entry.

    Each field broadcasts against the coordinates [*M] of the observation.
    """

    slope: Any
    offset: Any
    variance: Any


@pytree
class GaussianBelief:
    """The belief for entries of the data ~ N(mean, std^2)."""

    schedule: Schedule
    mean: Any
    std: Any

    def __post_init__(self) -> None:
        _checks.values("std", self.std, POSITIVE, lambda v: v > 0)

    def __call__(self, t: Any) -> Belief:
        """Return the law of x_0 given x_t."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        mean, std = (jnp.asarray(value, alpha.dtype) for value in (self.mean, self.std))
        squared = std**2
        total = alpha**2 * squared + sigma**2
        return Belief(alpha * squared / total, sigma**2 * mean / total, squared * sigma**2 / total)


def gaussian_belief(schedule: Schedule, mean: Any, std: Any) -> GaussianBelief:
    """Return the belief for data of known mean and width, entry by entry.

        slope = alpha_t w / sigma_t^2,   offset = w mean / std^2
        variance = w,   1 / w = 1 / std^2 + alpha_t^2 / sigma_t^2

    Args:
      schedule: the noise schedule.
      mean: mean of the coordinates of the observation, [] or [*M].
      std: standard deviation of the same, [] or [*M], positive.
    Returns:
      t [] -> Belief, for `mcgdiff`, `inpaint` and `denoise`.
    Raises:
      ValueError: std is not positive.
    """
    return GaussianBelief(schedule, mean, std)


@pytree
class MCGDiff(Algorithm):
    """The Monte Carlo guided diffusion sampler of a diagonal observation.

    Fields:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      observation: a diagonal one.
      belief: t [] -> Belief; None knows nothing of the data.
      constant: a term of the log evidence that no state changes, [].
    """

    denoiser: Callable
    schedule: Schedule
    observation: Diagonal
    belief: Any = None
    constant: Any = 0.0

    def __post_init__(self) -> None:
        belief = self.belief
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            belief=None if belief is None else as_function("belief", belief),
        )

    def init(self, x_init: jax.Array, t: Any) -> jax.Array:
        """Return the log r_t that the weights contain, [B]. The first step adds the constant."""
        start = no_twist(x_init, t)
        return start - jnp.asarray(self.constant, start.dtype)

    def believe(self, t: Any) -> Belief:
        """Return the law of x_0 given x_t."""
        if self.belief is not None:
            return self.belief(t)
        alpha, sigma = self.schedule.alpha_sigma(t)
        return Belief(1 / alpha, 0.0, (sigma / alpha) ** 2)

    def step(
        self,
        key: jax.Array,
        carry: jax.Array,
        x_t: jax.Array,
        t: Any,
        s: Any,
        *,
        reference: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draw from p(x_s | x_t) r_s(x_s), normalised. The carry is log r_t, [B].

        With a reference [*D] the first row goes there.
        """
        observation = self.observation
        mean, variance = p_mean_variance(self.denoiser, self.schedule, x_t, t, s)
        sampled = (mean + jnp.sqrt(variance) * noise(key, x_t, s)).astype(x_t.dtype)
        # The model's step and draw in the coordinates of the observation. The variance is the same.
        c, drawn = observation.project(mean), observation.project(sampled)
        v = _rows.expand(variance.reshape(len(x_t), -1)[:, 0], c)
        gain, y, noise_std, slope, offset, uncertainty = (
            _rows.lead(jnp.asarray(value, c.dtype), c.ndim)
            for value in (
                observation.gain,
                observation.y,
                observation.noise_std,
                *self.believe(s),
            )
        )
        observed = _rows.lead(jnp.asarray(observation.observed), c.ndim)
        # y = scale c_s + gain offset + noise of variance `added`, where c_s ~ N(c, v).
        scale, added = gain * slope, noise_std**2 + gain**2 * uncertainty
        residual, total = y - scale * c - gain * offset, added + scale**2 * v
        moved = c + v * scale / total * residual + jnp.sqrt(added / total) * (drawn - c)
        x_s = sampled + observation.lift(moved - drawn, x_t).astype(x_t.dtype)
        if reference is not None:
            x_s = jnp.where(jnp.asarray(s) > 0, x_s.at[0].set(reference), x_s)
            moved = observation.project(x_s)
        log_normaliser = _rows.event_sum(jnp.where(observed, log_density(residual, total), 0))
        residual_s = residual - scale * (moved - c)
        log_r_s = _rows.event_sum(jnp.where(observed, log_density(residual_s, added), 0))
        return log_r_s, x_s, log_normaliser - carry

    def log_continuation(
        self, carry: jax.Array, x_t: jax.Array, times: tuple[Any, Any], x_s: jax.Array
    ) -> jax.Array:
        """Return log p(x_s | x_t) - log r_t(x_t) for one x_s [*D] after every row, [B].

        times is (t, s). It costs a denoiser call.
        """
        p = p_mean_variance(self.denoiser, self.schedule, x_t, *times)
        return p.log_prob(x_s[None]) - carry


def mcgdiff(
    denoiser: Callable,
    schedule: Schedule,
    A: jax.Array,
    y: jax.Array,
    noise_std: Any,
    *,
    belief: Callable | None = None,
) -> Kernel:
    """Return the Monte Carlo guided diffusion sampler (MCGDiff) of a linear observation.

        A = U diag(g) V^T,   c = V^T x,   u = U^T y:   u_i = g_i c_0,i + noise_std n_i
        r_t(c_t) = N(u; g c_t / alpha_t, noise_std^2 + (g sigma_t / alpha_t)^2)
        q(x_s | x_t) = p(x_s | x_t) r_s(x_s) / int p r_s
        increment = log int p(x_s | x_t) r_s - log r_t(x_t)

    Steps are conjugate in the basis of the SVD of A. Samples converge to p(x_0) p(y | x_0) as the
    number of rows grows. The evidence is unbiased at any number of rows. In the limit of small
    noise_std this is the paper's sampler. With noise the paper releases coordinate i where the
    process is as noisy as u_i. Here r_t becomes the likelihood itself at t = 0, which is exact on
    any grid.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      A: [m, d], acting on x_0's entries in order, d = prod(D).
      y: observation, [m], floating.
      noise_std: [], positive, traced.
      belief: t [] -> Belief of the coordinates. None is the r_t above, which knows nothing of the
        data: x_0 given x_t is N(x_t / alpha_t, (sigma_t / alpha_t)^2). `gaussian_belief` knows
        their mean and width.
    Returns:
      A Kernel. A step takes one denoiser call and no gradient. Its model is `kernels.ancestral`
      with the variance "small". The grid must end at t = 0.
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
    A, y = jnp.asarray(A), jnp.asarray(y)
    left, gain, right = jnp.linalg.svd(A, full_matrices=False)
    left = left.astype(y.dtype)
    observation = Diagonal(gain, left.T @ y, noise_std, rows=right)
    # The part of y outside the range of A is noise alone.
    outside, extra = y - left @ (left.T @ y), len(y) - len(gain)
    std = jnp.asarray(noise_std, y.dtype)
    constant = -jnp.sum(outside**2) / (2 * std**2) - extra / 2 * jnp.log(2 * jnp.pi * std**2)
    return lift(MCGDiff(denoiser, schedule, observation, belief, constant))


def inpaint(
    denoiser: Callable,
    schedule: Schedule,
    y: jax.Array,
    observed: jax.Array,
    *,
    noise_std: Any,
    belief: Callable | None = None,
) -> Kernel:
    """Return `mcgdiff` for an observation of some entries. The entries are the basis.

        y_i = x_0,i + noise_std n_i   where observed_i

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      y: [*D], floating. Entries that are not observed do not matter and may be NaN.
      observed: mask, [*D], true or 1 where y is observed, false or 0 elsewhere; bool, int or float.
        Under tracing every value but 0 is true.
      noise_std: [] or [*D], positive, traced.
      belief: as in `mcgdiff`, of the entries, [*D].
    Returns:
      A Kernel, as `mcgdiff`.
    Raises:
      ValueError: observed has another shape than y or other values than 0 and 1, an observed entry
        of y is known and not finite, or noise_std is not positive.
      TypeError: y is not floating, or observed is not a mask.
    Source: see `mcgdiff`.
    """
    _checks.floating("y", y)
    _checks.same_shape("observed", observed, "y", y)
    observed, y = masked("observed", observed, y)
    observation = Diagonal(observed.astype(y.dtype), y, noise_std, observed)
    return lift(MCGDiff(denoiser, schedule, observation, belief))


def denoise(
    denoiser: Callable,
    schedule: Schedule,
    y: jax.Array,
    noise_std: Any,
    *,
    belief: Callable | None = None,
) -> Kernel:
    """Return `mcgdiff` for a noisy observation of all entries.

        y = x_0 + noise_std n

    Samples alone need no weights: y is x_t / alpha_t at t = `noise_level(schedule, noise_std)`, and
    any reverse kernel goes on from there. This kernel gives the evidence too.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      y: [*D], floating.
      noise_std: [] or [*D], positive, traced.
      belief: as in `mcgdiff`, of the entries, [*D].
    Returns:
      A Kernel, as `mcgdiff`.
    Raises:
      ValueError: y is known and not finite, or noise_std is not positive.
      TypeError: y is not floating.
    Source: see `mcgdiff`.
    """
    _checks.floating("y", y)
    everything = jnp.ones(jnp.shape(y), bool)
    return inpaint(denoiser, schedule, y, everything, noise_std=noise_std, belief=belief)


def noise_level(schedule: Schedule, noise_std: Any) -> jax.Array:
    """Return the time at which x_t / alpha_t is data with this much noise.

        sigma_t / alpha_t = noise_std

    Args:
      schedule: the noise schedule.
      noise_std: [], positive, traced.
    Returns:
      t, [], in [0, 1]. A run from x_t = alpha_t y, on a grid that starts at t, draws from
      p(x_0 | y).
    Raises:
      ValueError: noise_std is not positive.
    """
    _checks.values("noise_std", noise_std, POSITIVE, lambda v: v > 0)
    return schedule.time(-2 * jnp.log(jnp.asarray(noise_std)))
