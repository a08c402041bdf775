"""Estimates of log p from the work of both directions."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks, _rows


def bennett_acceptance_ratio(forward_work: jax.Array, reverse_work: jax.Array) -> jax.Array:
    """Estimate log p from the work of both directions, with the least variance.

        sum_i 1 / (1 + n/m exp(W_F,i + L)) = sum_j 1 / (1 + m/n exp(W_R,j - L))

    It is solved for L = log p.

    Args:
      forward_work: W_F of n forward paths, of any shape; +inf for a path of weight 0. All paths
        have one log p. If they do not, give W_F + log p.
      reverse_work: W_R of m reverse paths, of any shape. If log p differs, give W_R - log p.
    Returns:
      L, [], in nats.
    Raises:
      ValueError: an argument is empty, or is known and has NaN or -inf, or reverse_work has +inf.
    Numerics: bisection between the extremes of the finite work values. The difference of the two
      sides is monotone in L. NaN under tracing gives NaN.
    Source: Bennett 1976, J. Comput. Phys. 22, 245; Crooks 2000, Phys. Rev. E 61, 2361, Section IV.
    """
    forward, reverse = _works(forward_work, reverse_work)
    ratio = math.log(forward.size / reverse.size)
    ends = jnp.concatenate([-forward, reverse])
    # A path of weight 0 counts in the sums, but not for the bracket.
    finite = jnp.where(jnp.isinf(ends), jnp.nan, ends)

    def halve(_: Any, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        too_low = jnp.sum(jax.nn.sigmoid(-(forward + middle + ratio))) > jnp.sum(
            jax.nn.sigmoid(-(reverse - middle - ratio))
        )
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    margin = math.log(forward.size) + math.log(reverse.size) + 1
    low, high = jax.lax.fori_loop(
        0, 100, halve, (jnp.nanmin(finite) - margin, jnp.nanmax(finite) + margin)
    )
    return jnp.where(jnp.isnan(ends).any(), jnp.nan, (low + high) / 2)


def bennett_standard_error(forward_work: jax.Array, reverse_work: jax.Array) -> jax.Array:
    """Return the asymptotic standard error of `bennett_acceptance_ratio`.

        Var L = (<f^2>_F / <f>_F^2 - 1) / n + (<g^2>_R / <g>_R^2 - 1) / m
        f = 1 / (1 + n/m exp(W_F + L)),   g = 1 / (1 + m/n exp(W_R - L))

    Args:
      forward_work: as in `bennett_acceptance_ratio`, independent draws.
      reverse_work: as in `bennett_acceptance_ratio`, independent draws.
    Returns:
      [], in nats.
    Raises:
      ValueError: as in `bennett_acceptance_ratio`.
    Source: Bennett 1976, J. Comput. Phys. 22, 245, Eqs. (10) and (11).
    """
    forward, reverse = _works(forward_work, reverse_work)
    ratio, log_prob = (
        math.log(forward.size / reverse.size),
        bennett_acceptance_ratio(forward, reverse),
    )
    f = jax.nn.sigmoid(-(forward + log_prob + ratio))
    g = jax.nn.sigmoid(-(reverse - log_prob - ratio))
    return jnp.sqrt(sum((jnp.mean(v**2) / jnp.mean(v) ** 2 - 1) / v.size for v in (f, g)))


def _works(forward_work: Any, reverse_work: Any) -> tuple[jax.Array, jax.Array]:
    forward, reverse = jnp.ravel(forward_work), jnp.ravel(reverse_work)
    dtype = _rows.wider(forward.dtype, reverse.dtype)
    forward, reverse = forward.astype(dtype), reverse.astype(dtype)
    for name, work in (("forward_work", forward), ("reverse_work", reverse)):
        if work.size == 0:
            raise ValueError(f"{name}: expected at least one value, got none")
    _checks.values(
        "forward_work",
        forward,
        "finite works, or +inf of a path of weight 0",
        lambda v: v > -jnp.inf,
        finite=False,
    )
    _checks.values("reverse_work", reverse, "finite works", np.isfinite)
    return forward, reverse


class Crooks(NamedTuple):
    """A fit of Crooks' theorem to the work of both directions.

    Fields:
      slope: slope of log P_F(W) / P_R(-W) in W, []. The theorem says 1.
      slope_se: standard error of the slope, [].
      log_prob: log p, [], in nats: minus the work at which the fitted ratio is 1.
    """

    slope: jax.Array
    slope_se: jax.Array
    log_prob: jax.Array


def crooks(forward_work: jax.Array, reverse_work: jax.Array, *, num_steps: int = 50) -> Crooks:
    """Fit log P_F(W) / P_R(-W) = slope (W + L). By Crooks' theorem it is W + log p.

    The fit is a logistic regression of the direction on the work, so it needs no histogram.

    Args:
      forward_work: W_F of n forward paths, as in `bennett_acceptance_ratio`, all finite.
      reverse_work: W_R of m reverse paths. They enter as -W_R.
      num_steps: number of steps of Newton's method.
    Returns:
      Crooks.
    Raises:
      ValueError: an argument is empty, or is known and not finite.
    Source: Crooks 1999, Phys. Rev. E 60, 2721, Eq. (2); as a regression: Shirts et al. 2003, Phys.
      Rev. Lett. 91, 140601.
    """
    forward, reverse = _works(forward_work, reverse_work)
    _checks.values("forward_work", forward, "finite works", np.isfinite)
    work = jnp.concatenate([forward, -reverse])
    is_forward = jnp.concatenate([jnp.ones_like(forward), jnp.zeros_like(reverse)])
    centre, spread = jnp.mean(work), jnp.std(work)
    design = jnp.stack([jnp.ones_like(work), (work - centre) / spread], axis=1)

    def newton(_: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        beta, _ = state
        p = jax.nn.sigmoid(design @ beta)
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + 1e-6 * jnp.eye(
            2, dtype=work.dtype
        )
        return beta + jnp.linalg.solve(curvature, design.T @ (is_forward - p)), curvature

    start = jnp.zeros(2, work.dtype), jnp.eye(2, dtype=work.dtype)
    beta, curvature = jax.lax.fori_loop(0, num_steps, newton, start)
    slope = beta[1] / spread
    # The sizes of the classes shift the intercept by log n/m.
    intercept = beta[0] - math.log(forward.size / reverse.size) - slope * centre
    return Crooks(slope, jnp.sqrt(jnp.linalg.inv(curvature)[1, 1]) / spread, intercept / slope)
