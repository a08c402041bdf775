"""The exact law of a discretised reverse process for Gaussian data."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks
from jaxdiff._functions import exactly
from jaxdiff.chain import Chain
from jaxdiff.kernels import p_mean_variance
from jaxdiff.oracles._mixture import GaussianMixture, gaussian
from jaxdiff.schedules import Schedule


@exactly
def affine_chain(
    data: GaussianMixture, schedule: Schedule, ts: jax.Array, *, variance: Any = "small"
) -> GaussianMixture:
    """Return the exact law of samples of `kernels.ancestral` with the denoiser of Gaussian data.

        mu <- F mu + b,   P <- F P F^T + V,   where E[x_s | x_t] = F x_t + b and V = Var[x_s | x_t]

    The recursion starts from N(0, sigma^2 I) at ts[0]. E[x_0 | x_t] is affine, so the reverse
    process is affine and the law is exact for any grid. It is the law of the finite chain, not the
    law of the data.

    Args:
      data: one component, K = 1.
      schedule: the noise schedule.
      ts: the grid, decreasing, [num_steps + 1].
      variance: as in `kernels.p_mean_variance`, except "learned".
    Returns:
      A GaussianMixture of one component, with a full covariance.
    Raises:
      ValueError: data has more than one component, or ts is not a decreasing grid.
    Numerics: one [d, d] product a step. V is diagonal, as in the kernel.
    """
    if len(data.means) != 1:
        raise ValueError(f"data: expected one component, got {len(data.means)}")
    _checks.grid("ts", ts)
    ts, size, dtype = jnp.asarray(ts), data.means.shape[1], data.means.dtype
    denoiser = data.denoiser(schedule, variance=True)
    probes = jnp.concatenate([jnp.zeros((1, size), dtype), jnp.eye(size, dtype=dtype)])

    def step(n: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        mean, covariance = state
        at, added = p_mean_variance(denoiser, schedule, probes, ts[n], ts[n + 1], variance=variance)
        slope = (at[1:] - at[:1]).T
        noise = jnp.where(ts[n + 1] > 0, added[0], 0)
        return slope @ mean + at[0], slope @ covariance @ slope.T + jnp.diag(noise)

    start = schedule.sigma(ts[0]).astype(dtype) ** 2 * jnp.eye(size, dtype=dtype)
    return gaussian(*jax.lax.fori_loop(0, len(ts) - 1, step, (jnp.zeros(size, dtype), start)))


@exactly
def chain_law(data: GaussianMixture, chain: Chain) -> GaussianMixture:
    """Return the exact p_theta(x_0) of a chain with the denoiser of Gaussian data.

        x_0 = last mean + sqrt(last variance) z,   after the recursion of `affine_chain`

    Compare estimators of a chain's probability with this law, not with the law of the data.

    Args:
      data: one component, K = 1. `chain.denoiser` is its denoiser.
      chain: the model. Its decoder must be `decoders.normal()`; this is not checked.
    Returns:
      A GaussianMixture of one component, with a full covariance.
    Raises:
      ValueError: data has more than one component.
    """
    law = affine_chain(data, chain.schedule, chain.ts, variance=chain.variance)
    last = chain.p_last(jnp.zeros_like(data.means))
    alpha = 1.0 if chain.ends_clean else chain.schedule.alpha(chain.ts[-1]).astype(data.means.dtype)
    return gaussian(
        law.means[0] / alpha, law.covariances[0] / alpha**2 + jnp.diag(last.variance[0])
    )
