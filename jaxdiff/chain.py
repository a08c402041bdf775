"""The finite-T chain p_theta(x_{0:T}): the model whose probability the variational bound is about.

    p_theta(x_0) = int p(x_T) prod_t p(x_{t-1} | x_t) p(x_0 | x_1) dx_{1:T}

Forward paths q(x_{1:T} | x_0) and reverse paths p_theta both carry the log weight of one and the
same ratio,

    log w = log p(x_T) + sum_t [log p(x_{t-1} | x_t) - log q(x_t | x_{t-1})] + log p(x_0 | x_1) -
    log q(x_1 | x_0),

whose negative is the work (Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eqs. 9 to 11).
"""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows, decoders
from jaxdiff._functions import known_ahead
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import (
    level,
    levels,
    q_between,
    q_likelihood,
    q_posterior,
    q_step,
    renewed,
)
from jaxdiff.kernels import Kernel, p_given
from jaxdiff.kernels._kernel import Algorithm, is_clean, lift
from jaxdiff.kernels._reverse import step_variance, variance_function
from jaxdiff.normal import Normal, log_ratio
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


@pytree
class Chain:
    """The finite-T model p_theta of data: a pytree, to be passed through jit as an argument.

    A grid may end without noise, as at t = 0 of most schedules. Then the latents are at ts[:-1],
    and the decoder makes x_0 from p(x_0 | x_t) at the last of them: N(D, v), with v as in
    `kernels.p_mean_variance`. The v of "small" is zero there, so "small" takes that of "large".

    A grid may end with noise left. Then the latents are at all ts, and the decoder makes x_0 from
    N(x_t / alpha_t, (sigma_t / alpha_t)^2) at the last: q(x_t | x_0), normalised over x_0.

    Fields:
      denoiser: (x_t, t) -> E[x_0 | x_t], or a `Denoised` with what the variance needs.
      schedule: the noise schedule.
      ts: the grid, decreasing, [num_steps + 1].
      variance: of the reverse steps, as in `kernels.p_mean_variance`.
      decoder: p(x_0 | the last latent); None is `decoders.normal()`, a density.
      ends_clean: whether there is no noise at ts[-1]. It is found from the grid. Give it where the
        grid or the schedule is traced.
    Raises:
      ValueError: ts is not a decreasing grid, or variance is unknown.
      TypeError: denoiser is not a function, or ends_clean is None and the grid is traced.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Section 2; Ho et al. 2020,
    arXiv:2006.11239, Section 2.
    """

    denoiser: Callable
    schedule: Schedule
    ts: jax.Array
    _: KW_ONLY
    variance: Any = "small"
    decoder: Any = None
    ends_clean: Any = static(default=None)

    def __post_init__(self) -> None:
        _checks.grid("ts", self.ts)
        put(
            self,
            denoiser=as_function("denoiser", self.denoiser),
            ts=jnp.asarray(self.ts),
            variance=variance_function(self.variance),
            decoder=decoders.normal() if self.decoder is None else self.decoder,
            ends_clean=_ends_clean(self.schedule, self.ts, self.ends_clean),
        )

    @property
    def times(self) -> jax.Array:
        """The times of the latents, decreasing."""
        return self.ts[:-1] if self.ends_clean else self.ts

    @property
    def num_terms(self) -> int:
        """Terms of the variational bound: the prior's, one for each transition, the decoder's."""
        return len(self.times) + 1

    def p_step(self, x_t: jax.Array, t: Any, s: Any) -> Normal:
        """Return p(x_s | x_t), as `kernels.p_mean_variance` does."""
        return self.p_given(self.denoiser(x_t, t), x_t, t, s)

    def p_given(self, denoised: Any, x_t: jax.Array, t: Any, s: Any) -> Normal:
        """Return the same from what the denoiser returned for x_t."""
        return p_given(denoised, self.schedule, x_t, t, s, variance=self.variance)

    def log_step_ratio(self, x_s: jax.Array, x_t: jax.Array, s: Any, t: Any) -> jax.Array:
        """Return log p(x_s | x_t) - log q(x_t | x_s), [B], in nats, for states [B, *D] at s < t."""
        p, variance = self.p_step(x_t, t, s), q_variance(self.schedule, x_t, s, t)
        eps = (x_t - _kept(self.schedule, x_t, s, t) * x_s) / jnp.sqrt(variance)
        return log_ratio((x_s - p.mean) / jnp.sqrt(p.variance), p.variance, eps, variance)

    def p_last(self, x: jax.Array) -> Normal:
        """Return what the decoder makes x_0 from, given the last latent x [B, *D]."""
        t = self.times[-1]
        if not self.ends_clean:
            return q_likelihood(self.schedule, x, t)
        return self.p_last_of(self.denoiser(x, t), x)

    def p_last_of(self, denoised: Any, x: jax.Array) -> Normal:
        """Return the same from what the denoiser returned, where the grid ends clean."""
        t = self.times[-1]
        level_t, level_s = levels(self.schedule, x, t, self.ts[-1])
        step = step_variance(q_between(x, x, level_t, level_s).variance, level_t, level_s)
        # The step's own small variance is zero: an interpolation begins at that of the step before.
        floor = step.large
        if len(self.times) > 1:
            before = q_posterior(self.schedule, x, x, self.times[-2], t).variance
            floor = jnp.minimum(before, floor)
        step = step._replace(small=step.large, floor=floor)
        return Normal(x_0_of(denoised, x), self.variance(denoised, step))


@known_ahead
def _ends_clean(schedule: Schedule, ts: Any, given: bool | None) -> bool:
    """Whether there is no noise at ts[-1]: from the grid, or as given where that is traced."""
    clean = _checks.known(is_clean(level(schedule, ts[-1], jnp.zeros(1))))
    if clean is not None:
        return bool(clean)
    if given is None:
        raise TypeError(
            "ends_clean: expected True or False where ts or the schedule is traced, got None "
            "(or make the Chain outside of jit and pass it as an argument)"
        )
    return given


def prior_kl(schedule: Schedule, x_0: jax.Array, t: Any) -> jax.Array:
    """Return how far the diffused data are from the prior.

        KL(q(x_t | x_0) || N(0, sigma_t^2 I)) = alpha_t^2 |x_0|^2 / (2 sigma_t^2)

    Args:
      schedule: the noise schedule.
      x_0: data, [B, *D], floating.
      t: time, [] or [B]; usually 1.
    Returns:
      [B], in nats.
    Raises:
      ValueError: t is not a time for x_0.
    """
    return _rows.event_sum(jnp.exp(level(schedule, t, x_0).log_snr) * x_0**2 / 2)


def diffusing(chain: Chain) -> Kernel:
    """Return the kernel of forward paths, weighted with the density of the reverse steps.

        x_t ~ q(x_t | x_s),   increment = log p(x_s | x_t) - log q(x_t | x_s)

    Run it on increasing times, from the last latent to the first.

    Args:
      chain: the model.
    Returns:
      A Kernel without memory.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eq. (11).
    """
    return lift(Diffusing(chain))


@pytree
class Diffusing(Algorithm):
    """The algorithm of `diffusing`: its steps go from s to a later t."""

    chain: Chain

    def step(
        self, key: Any, carry: Any, x_s: jax.Array, s: Any, t: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Draw x_t, and weight it."""
        schedule, eps = self.chain.schedule, _rows.normal(key, x_s)
        x_t = q_step(schedule, x_s, s, t, eps)
        p = self.chain.p_step(x_t, t, s)
        residual = (x_s - p.mean) / jnp.sqrt(p.variance)
        return carry, x_t, log_ratio(residual, p.variance, eps, q_variance(schedule, x_s, s, t))


def generating(chain: Chain) -> Kernel:
    """Return the kernel of reverse paths: a draw of p(x_s | x_t), weighted in the same way.

        x_s ~ p(x_s | x_t),   increment = log p(x_s | x_t) - log q(x_t | x_s)

    Args:
      chain: the model.
    Returns:
      A Kernel without memory, to be run on decreasing times.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eq. (9); Grosse et al. 2015,
    arXiv:1511.02543.
    """
    return lift(Generating(chain))


@pytree
class Generating(Algorithm):
    """The algorithm of `generating`."""

    chain: Chain

    def step(
        self, key: Any, carry: Any, x_t: jax.Array, t: Any, s: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Draw x_s, and weight it."""
        schedule, noise = self.chain.schedule, _rows.normal(key, x_t)
        p = self.chain.p_step(x_t, t, s)
        x_s = p.at(noise)
        variance = q_variance(schedule, x_t, s, t)
        residual = (x_t - _kept(schedule, x_t, s, t) * x_s) / jnp.sqrt(variance)
        return carry, x_s, log_ratio(noise, p.variance, residual, variance)


def _kept(schedule: Schedule, x: jax.Array, s: Any, t: Any) -> jax.Array:
    """alpha_t / alpha_s."""
    return level(schedule, t, x).alpha / level(schedule, s, x).alpha


def q_variance(schedule: Schedule, x: jax.Array, s: Any, t: Any) -> jax.Array:
    """Return the variance of a step of the forward process.

        Var q(x_t | x_s) = -sigma_t^2 expm1(lambda_t - lambda_s)

    Args:
      schedule: the noise schedule.
      x: a state, [B, *D], for the shape and dtype.
      s: time, [] or [B].
      t: later time, [] or [B].
    Returns:
      An array that broadcasts against x.
    """
    level_t = level(schedule, t, x)
    return level_t.sigma**2 * renewed(level_t, level(schedule, s, x))


def log_ends(chain: Chain, x_0: jax.Array, first: jax.Array, last: jax.Array) -> jax.Array:
    """Return what the ends of a path add to its log weight.

        log p(x_T) + log p(x_0 | x_1) - log q(x_1 | x_0)

    Args:
      chain: the model.
      x_0: data, [B, *D].
      first: the latent next to the data, x_1, [B, *D].
      last: the latent next to the prior, x_T, [B, *D].
    Returns:
      [B], in nats.
    """
    alpha, sigma, _ = level(chain.schedule, chain.times[-1], x_0)
    prior_std = level(chain.schedule, chain.times[0], x_0).sigma
    eps, noise = (first - alpha * x_0) / sigma, last / prior_std
    ends = _rows.event_sum(
        (eps - noise) * (eps + noise) / 2 + jnp.broadcast_to(jnp.log(sigma / prior_std), x_0.shape)
    )
    return ends + chain.decoder.log_prob(x_0, chain.p_last(first))


def path(chain: Chain, x_0: jax.Array, eps: jax.Array) -> jax.Array:
    """Return a forward path from its noises, all times at once.

        x_{t_i} / alpha_{t_i} = x_0 + sum_{j <= i} sqrt(Var q(x_{t_j} | x_{t_{j-1}})) / alpha_{t_j}
        eps_j

    Args:
      chain: the model.
      x_0: data, [B, *D].
      eps: standard normal noises, [N, B, *D], from the latent next to the data on; N =
        len(chain.times).
    Returns:
      The latents, [N, B, *D], next to the data first.
    Raises:
      ValueError: eps has another shape.
    """
    if eps.shape != (len(chain.times), *x_0.shape):
        raise ValueError(f"eps: expected shape {(len(chain.times), *x_0.shape)}, got {eps.shape}")
    alpha, added = _scales(chain, x_0)
    return alpha * (x_0[None] + jnp.cumsum(added * eps, axis=0))


def noises_of_path(chain: Chain, x_0: jax.Array, xs: jax.Array) -> jax.Array:
    """Return the noises that a path is made of: the inverse of `path`.

    Args:
      chain: the model.
      x_0: data, [B, *D].
      xs: latents, [N, B, *D], next to the data first.
    Returns:
      eps, [N, B, *D]: `path(chain, x_0, eps)` is xs.
    """
    alpha, added = _scales(chain, x_0)
    scaled = jnp.concatenate([x_0[None], xs / alpha])
    return jnp.diff(scaled, axis=0) / added


def _scales(chain: Chain, x_0: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha at the latents' times, and the noise that each step adds to x / alpha; data first."""
    ts = chain.times[::-1]
    ratios = jnp.exp(-chain.schedule.log_snr(ts))  # (sigma / alpha)^2
    added = jnp.sqrt(jnp.diff(ratios, prepend=jnp.zeros(1, ratios.dtype)))
    alpha, added = (
        v.reshape(-1, *(1,) * x_0.ndim).astype(x_0.dtype) for v in (chain.schedule.alpha(ts), added)
    )
    return alpha, added


def log_weight_of_path(chain: Chain, x_0: jax.Array, xs: jax.Array) -> jax.Array:
    """Return the log weight of a whole path; the denoiser gets all its states in one batch.

    Args:
      chain: the model.
      x_0: data, [B, *D].
      xs: latents, [N, B, *D], next to the data first.
    Returns:
      [B], in nats; differentiable in xs and the chain.
    """
    ends = log_ends(chain, x_0, xs[0], xs[-1])
    if len(xs) < 2:
        return ends
    ts = chain.times[::-1]
    steps = jax.vmap(chain.log_step_ratio)(xs[:-1], xs[1:], ts[:-1], ts[1:])
    return ends + jnp.sum(steps, axis=0)
