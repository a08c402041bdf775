"""Annealing through clean data: find x_0 from x_t, let it meet the observation, add noise again.

Both methods take p(x_0 | x_t) for a normal law of the variance

    r_t^2 = 1 / (1 / prior_std^2 + alpha_t^2 / sigma_t^2)

which is that of data ~ N(m, prior_std^2 I). An infinite prior_std gives the r_t = sigma_t / alpha_t
of the papers.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff import moves as mcmc
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import Level, level
from jaxdiff.guidance._observed import require_observation
from jaxdiff.kernels import Kernel, ddim
from jaxdiff.kernels._kernel import Drawing, lift, noise
from jaxdiff.observations import Observation, log_likelihoods
from jaxdiff.posterior._least_squares import conditioned
from jaxdiff.prediction import x_0_of
from jaxdiff.sampling import run
from jaxdiff.schedules import Schedule

POSITIVE = "a positive standard deviation, which may be infinite"


def precision(level_t: Level, prior_std: Any) -> jax.Array:
    """Return 1 / r_t^2."""
    std = jnp.asarray(prior_std, level_t.sigma.dtype)
    return 1 / std**2 + (level_t.alpha / level_t.sigma) ** 2


def check_prior_std(prior_std: Any) -> None:
    """Require a positive number; infinity is one."""
    _checks.values("prior_std", prior_std, POSITIVE, lambda v: v > 0, finite=False)


def daps(
    denoiser: Callable,
    schedule: Schedule,
    log_likelihood: Callable,
    *,
    prior_std: Any = 1.0,
    num_denoising: int = 5,
    num_iterations: int = 20,
    num_moves: int = 20,
    step_size: Any = 0.01,
) -> Kernel:
    """Return decoupled annealing posterior sampling: an approximation without weights.

        x_hat = the probability-flow ODE from x_t, in num_denoising steps of `kernels.ddim`
        x_0 ~ N(x_0; x_hat, r_t^2 I) p(y | x_0)
        1 / r_t^2 = 1 / prior_std^2 + alpha_t^2 / sigma_t^2
        x_s = alpha_s x_0 + sigma_s eps;   the last step returns x_0

    A step may go far, since x_s remembers x_t through x_0 alone. With num_denoising = 1, x_hat is
    D(x_t), and the method is exact for data ~ N(m, prior_std^2 I). It is biased for any other data,
    at any number of steps. With more denoising steps x_hat is itself nearly a draw of p(x_0 | x_t).
    The samples are then too wide where y says little: without an observation a step adds r_t^2 to
    the variance of x_0.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      log_likelihood: one x_0 [*D] -> log p(y | x_0), [], in nats. For an `Observation` x_0 is drawn
        exactly, by conjugate gradients. For another function it is drawn by Langevin moves from
        x_hat.
      prior_std: standard deviation of an entry of the data, [], positive, traced. Infinity is the
        paper's r_t = sigma_t / alpha_t.
      num_denoising: denoiser calls of a step, static. The paper has 5 to 10.
      num_iterations: iterations of conjugate gradients, static. As many as x has entries are exact.
      num_moves: number of Langevin moves, static. They call the likelihood alone.
      step_size: d, [], positive, traced: a move has the step 1 / (1 / r_t^2 + 1 / d). For Gaussian
        noise d = noise_std^2 is a good one.
    Returns:
      A Kernel without memory and with zero increments. It starts from the noise of
      `prior_sample`.
    Raises:
      ValueError: a number is < 1, or prior_std or step_size is not positive.
      TypeError: denoiser or log_likelihood is not a function.
    Numerics: the moves are Metropolis-adjusted, the paper's are not. So a step that is too long
      leaves x_0 near x_hat, and everything stays finite.
    Source: Zhang et al. 2024, arXiv:2407.01521, Proposition 1 and Algorithm 1.
    """
    return lift(
        DAPS(
            denoiser,
            schedule,
            log_likelihood,
            prior_std,
            num_denoising=num_denoising,
            num_iterations=num_iterations,
            num_moves=num_moves,
            step_size=step_size,
        )
    )


@pytree
class DAPS(Drawing):
    """The algorithm of `daps`."""

    denoiser: Callable
    schedule: Schedule
    log_likelihood: Callable
    prior_std: Any = 1.0
    _: KW_ONLY
    num_denoising: int = static(default=5)
    num_iterations: int = static(default=20)
    num_moves: int = static(default=20)
    step_size: Any = 0.01

    def __post_init__(self) -> None:
        check_prior_std(self.prior_std)
        _checks.values("step_size", self.step_size, "a positive step", lambda v: v > 0)
        for name in ("num_denoising", "num_iterations", "num_moves"):
            _checks.positive_int(name, getattr(self, name))
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            log_likelihood=as_function("log_likelihood", self.log_likelihood),
        )

    def draw(self, key: Any, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Go to clean data along the ODE, draw near them, and diffuse to s."""
        key_y, key_x, key_s = _rows.split(_rows.keys(key, x_t.shape[0]), 3)
        alpha, sigma, _ = level(self.schedule, s, x_t)
        ts = t * jnp.linspace(1, 0, self.num_denoising + 1, dtype=x_t.dtype)
        x_hat = run(None, ddim(self.denoiser, self.schedule), x_t, ts).x
        sharp = precision(level(self.schedule, t, x_t), self.prior_std)
        if isinstance(self.log_likelihood, Observation):
            x_0 = conditioned(
                self.log_likelihood,
                x_hat,
                sharp,
                keys=(key_y, key_x),
                num_iterations=self.num_iterations,
            )
        else:
            x_0 = self.langevin(key_x, x_hat, sharp)
        x_s = alpha * x_0 + sigma * _rows.normal(key_s, x_t)
        return jnp.where(jnp.asarray(s) > 0, x_s, x_0)

    def langevin(self, keys: jax.Array, x_hat: jax.Array, sharp: jax.Array) -> jax.Array:
        """Move from x_hat, with the invariant law N(x_0; x_hat, I / sharp) p(y | x_0)."""

        def log_density(x_0: jax.Array) -> jax.Array:
            near = -0.5 * _rows.event_sum(sharp * (x_0 - x_hat) ** 2)
            return near + log_likelihoods(self.log_likelihood, x_0)

        step = 1 / (sharp + 1 / jnp.asarray(self.step_size, sharp.dtype))

        def move(n: Any, x_0: jax.Array) -> jax.Array:
            return mcmc.mala(_rows.fold(keys, n), log_density, x_0, step).x

        return jax.lax.fori_loop(0, self.num_moves, move, x_hat)


def diffpir(
    denoiser: Callable,
    schedule: Schedule,
    observation: Observation,
    zeta: Any = 0.3,
    *,
    weight: Any = 1.0,
    prior_std: Any = 1.0,
    num_iterations: int = 20,
) -> Kernel:
    """Return DiffPIR's kernel, plug-and-play restoration: an approximation without weights.

        x_0 = argmin_x |y - A x|^2 / (2 noise_std^2) + weight |x - D(x_t)|^2 / (2 r_t^2)
        1 / r_t^2 = 1 / prior_std^2 + alpha_t^2 / sigma_t^2
        eps_hat = (x_t - alpha_t x_0) / sigma_t
        x_s = alpha_s x_0 + sigma_s (sqrt(1 - zeta) eps_hat + sqrt(zeta) eps)

    With weight 1, x_0 is the mean of the normal law of which `daps` with one denoising step takes a
    draw. For data ~ N(m, prior_std^2 I) it is the exact E[x_0 | x_t, y], and zeta = 0 is `ddim` of
    the posterior: exact in the limit of small steps. It is biased otherwise. New noise (zeta > 0)
    with a mean for x_0 makes the samples too narrow: zeta = 1 is a search for one restoration.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      observation: linear, with Gaussian noise.
      zeta: fraction of new noise, [], in [0, 1], traced.
      weight: lambda, [], positive, traced: the trust in the model. The paper tunes it.
      prior_std: standard deviation of an entry of the data, [], positive, traced. Infinity is the
        paper's r_t = sigma_t / alpha_t.
      num_iterations: iterations of conjugate gradients, static. As many as x has entries are exact.
    Returns:
      A Kernel without memory and with zero increments. A step takes one denoiser call and no
      gradient.
    Raises:
      ValueError: zeta is outside [0, 1], weight or prior_std is not positive, or num_iterations
        < 1.
      TypeError: observation is not an Observation, or denoiser is not a function.
    Source: Zhu et al. 2023, arXiv:2305.08995, Algorithm 1, whose rho_t is noise_std^2 weight /
    r_t^2.
    """
    return lift(
        DiffPIR(
            denoiser,
            schedule,
            observation,
            zeta,
            weight=weight,
            prior_std=prior_std,
            num_iterations=num_iterations,
        )
    )


@pytree
class DiffPIR(Drawing):
    """The algorithm of `diffpir`."""

    denoiser: Callable
    schedule: Schedule
    observation: Observation
    zeta: Any = 0.3
    _: KW_ONLY
    weight: Any = 1.0
    prior_std: Any = 1.0
    num_iterations: int = static(default=20)

    def __post_init__(self) -> None:
        require_observation(self.observation)
        within = "a fraction in [0, 1]"
        _checks.values("zeta", self.zeta, within, lambda v: (v >= 0) & (v <= 1))
        _checks.values("weight", self.weight, "a positive weight", lambda v: v > 0)
        check_prior_std(self.prior_std)
        _checks.positive_int("num_iterations", self.num_iterations)
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def draw(self, key: Any, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Denoise, go towards the observation, and diffuse to s."""
        level_t, (alpha, sigma, _) = level(self.schedule, t, x_t), level(self.schedule, s, x_t)
        zeta, weight = (jnp.asarray(v, sigma.dtype) for v in (self.zeta, self.weight))
        x_0 = conditioned(
            self.observation,
            x_0_of(self.denoiser(x_t, t), x_t),
            weight * precision(level_t, self.prior_std),
            num_iterations=self.num_iterations,
        )
        old = (x_t - level_t.alpha * x_0) / level_t.sigma
        new = noise(key, x_t, s, strength=self.zeta)
        return alpha * x_0 + sigma * (jnp.sqrt(1 - zeta) * old + jnp.sqrt(zeta) * new)
