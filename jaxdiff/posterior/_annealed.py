"""Annealed split Gibbs: particles of clean states, weighted from one coupling to the next."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._functions import exactly
from jaxdiff._operators import BlockMeans
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import level
from jaxdiff.kernels import Kernel, p_mean_variance
from jaxdiff.kernels._kernel import Algorithm, Drawing, lift
from jaxdiff.kernels._reverse import variance_function
from jaxdiff.observations import Mask, Observation
from jaxdiff.posterior._least_squares import conditioned
from jaxdiff.sampling import run
from jaxdiff.schedules import Schedule


@pytree
class Denoising(Drawing):
    """The model's chain as a kernel. It draws in its last step too, as `Chain` does."""

    denoiser: Callable
    schedule: Schedule
    variance: Any

    def draw(self, key: jax.Array, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Draw from p(x_s | x_t)."""
        p = p_mean_variance(self.denoiser, self.schedule, x_t, t, s, variance=self.variance)
        return p.sample(key)


@pytree
class AnnealedGibbs(Algorithm):
    """The annealed split Gibbs sampler of a linear observation."""

    denoiser: Callable
    schedule: Schedule
    observation: Observation
    variance: Any = "large"
    diagonal: bool | None = static(default=None)
    num_denoising: int = static(default=20)
    num_iterations: int = static(default=20)

    def __post_init__(self) -> None:
        if not isinstance(self.observation, Observation):
            got = type(self.observation).__name__
            raise TypeError(f"observation: expected an Observation, got {got}")
        _checks.positive_int("num_denoising", self.num_denoising)
        _checks.positive_int("num_iterations", self.num_iterations)
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            variance=variance_function(self.variance),
        )

    def init(self, x_init: jax.Array, t: Any) -> jax.Array:
        """Return whether the rows are clean states, [B]: not yet, they are noise at t."""
        return jnp.zeros(x_init.shape[:1], bool)

    def step(
        self, key: jax.Array, carry: jax.Array, x_t: jax.Array, t: Any, s: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Move at the level of t, then weight for the level of s."""
        is_clean = _rows.expand(carry, x_t)
        key_y, key_z, key_x = _rows.split(_rows.keys(key, x_t.shape[0]), 3)
        alpha, sigma, _ = level(self.schedule, t, x_t)
        z = conditioned(
            self.observation,
            x_t,
            (alpha / sigma) ** 2,
            keys=(key_y, key_z),
            num_iterations=self.num_iterations,
        )
        # The start is a state at t already, and no weight contains its level.
        x = self.denoise(key_x, jnp.where(is_clean, alpha * z, x_t).astype(x_t.dtype), t)
        residual, gain = self.observe(x)
        before = jnp.where(carry, self.log_r(residual, gain, t), 0)
        return jnp.ones_like(carry), x, self.log_r(residual, gain, s) - before

    def denoise(self, key: jax.Array, x_t: jax.Array, t: Any) -> jax.Array:
        """Draw x_0 ~ p(x_0 | x_t), [B, *D], by the model's chain."""
        ts = t * jnp.linspace(1, 0, self.num_denoising + 1, dtype=x_t.dtype)
        return run(key, lift(Denoising(self.denoiser, self.schedule, self.variance)), x_t, ts).x

    @exactly
    def observe(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return coordinates of (y - A x) / noise_std that are independent for all rho.

        Each is normal with variance 1 + rho^2 gain: (residual [B, M], gain [M]).
        """
        seen = self.observation
        predicted = jax.vmap(seen.operator)(x)
        weight = jnp.broadcast_to(
            seen.observed.astype(x.dtype) / jnp.asarray(seen.noise_std, x.dtype),
            predicted.shape[1:],
        )
        y = jnp.asarray(seen.y, x.dtype)
        residual = (weight[None] * (y[None] - predicted)).reshape(len(x), -1)
        if _is_diagonal(seen.operator) if self.diagonal is None else self.diagonal:
            gain = jnp.asarray(seen.known_gain(x[0]), x.dtype)
            return residual, (weight**2 * gain).reshape(-1)
        _, transpose = jax.vjp(seen.operator, jnp.zeros(x.shape[1:], x.dtype))

        def column(e: jax.Array) -> jax.Array:
            return (weight * seen.operator(transpose(weight * e)[0])).reshape(-1)

        size = weight.size
        units = jnp.eye(size, dtype=x.dtype).reshape(size, *weight.shape)
        values, vectors = jnp.linalg.eigh(jax.vmap(column)(units))
        return residual @ vectors, jnp.maximum(values, 0)

    def log_r(self, residual: jax.Array, gain: jax.Array, t: Any) -> jax.Array:
        """Return log N(y; A x, noise_std^2 + rho_t^2 A A^T), [B]; at t = 0 the likelihood."""
        alpha, sigma, _ = level(self.schedule, t, jnp.zeros((1,), residual.dtype))
        added = (jnp.where(jnp.asarray(t) > 0, sigma / alpha, 0) ** 2 * gain)[None]
        std = jnp.broadcast_to(
            jnp.asarray(self.observation.noise_std, residual.dtype), self.observation.y.shape
        )
        observed = jnp.broadcast_to(self.observation.observed, std.shape)
        constant = jnp.sum(jnp.where(observed, jnp.log(2 * jnp.pi * std**2), 0))
        terms = residual**2 / (1 + added) + jnp.broadcast_to(jnp.log1p(added), residual.shape)
        return -0.5 * (jnp.sum(terms, axis=1) + constant)


def _is_diagonal(operator: Callable) -> bool:
    """Whether A A^T is known to be diagonal: masks, of everything too, and block means."""
    return isinstance(operator, Mask | BlockMeans)


def annealed_gibbs(
    denoiser: Callable,
    schedule: Schedule,
    observation: Observation,
    *,
    variance: Any = "large",
    diagonal: bool | None = None,
    num_denoising: int = 20,
    num_iterations: int = 20,
) -> Kernel:
    """Return annealed split Gibbs: particles are clean states, and the coupling to y tightens.

        pi_rho(x) = p(x) N(y; A x, noise_std^2 + rho^2 A A^T) / Z_rho,   rho = sigma_t / alpha_t
        x_s:  z ~ p(y | z) N(z; x_t, rho_t^2 I),   x_s ~ p(x) N(z; x, rho_t^2 I)
        increment = log N(y; A x_s, noise_std^2 + rho_s^2 A A^T)
            - log N(y; A x_s, noise_std^2 + rho_t^2 A A^T)

    A step moves at the level of t by `split_gibbs`, which leaves pi_rho_t as it is. Then it weights
    for the level of s, and the driver resamples. The first step is the model's own chain from the
    noise x_init at ts[0], so that the start has the law p. Its increment is log N(y; A x_s, ...) at
    the level of s. At s = 0, where rho is 0, the weights are for the posterior itself.

    With exact moves the evidence is unbiased for p(y) at any number of rows, and samples converge
    to the posterior. No gradient and no density of p is needed. But x given z is a draw of the
    chain, which is exact only for an exact denoiser, with many steps. No weight corrects that: too
    narrow moves raise the evidence, too wide ones lower it. With 5 steps, on a mixture in 8
    dimensions of which 4 are seen, "small" is 2.2 nats high, "large" .2 low and "optimal" .1 high.

    Images are harder. For an 8x8 digit of a mixture of 40 (64 dimensions, the middle hidden, noise
    0.1, 16 rows, 13 steps) the mean error of log Z over 20 runs is, with a deviation of 1 to 6 for
    one run (benchmarks/references.py):

        num_denoising          1      5     20
        variance "small"    27.9   12.0    2.6
        variance "large"   -73.5   -9.6   -5.3
        variance "optimal"  -6.0   -2.3   -3.7

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t], or a `Denoised` with what the variance needs.
      schedule: the noise schedule.
      observation: linear, with Gaussian noise.
      variance: of the chain's steps, as in `kernels.p_mean_variance`. The last step draws too. Take
        "optimal" where the denoiser knows Var[x_0 | x_t]; "large" is right for data ~ N(0, I).
      diagonal: whether A A^T is diagonal, so that the observation's `gain` is all of it, static.
        None knows that of masks, noise and block means. Otherwise a step takes the eigenvectors of
        A A^T, which costs the cube of the number of observed values. If it is True for another A,
        the weights are wrong.
      num_denoising: steps of the chain from t to 0, static: the denoiser calls of a step.
      num_iterations: iterations of conjugate gradients for z, static. One more than A has different
        singular values is exact.
    Returns:
      A Kernel whose states are clean after the first step. Its memory says whether they are. Start
      it like any reverse process, from the noise at ts[0] = 1, and end the grid at t = 0. Levels
      that are even in log rho, from about 10 standard deviations of the data to noise_std, serve.
    Raises:
      ValueError: num_denoising or num_iterations < 1, or variance is unknown.
      TypeError: observation is not an Observation, or denoiser is not a function.
    Source: levels and weights as in Del Moral et al. 2006, J. R. Stat. Soc. B 68(3), Section 3.3.2;
    the move: Coeurdoux et al. 2023, arXiv:2304.11134, Algorithm 1. We know no paper that has both.
    """
    return lift(
        AnnealedGibbs(
            denoiser, schedule, observation, variance, diagonal, num_denoising, num_iterations
        )
    )
