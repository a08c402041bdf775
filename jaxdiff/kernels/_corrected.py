"""Predictor-corrector: a reverse step, then Langevin dynamics at the level it came to."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._functions import Static
from jaxdiff._tree import as_function
from jaxdiff.forward import level
from jaxdiff.kernels._kernel import Kernel, is_clean, is_noise
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule


def corrected(
    predictor: Kernel,
    denoiser: Callable,
    schedule: Schedule,
    snr: Any = 0.16,
    *,
    num_corrections: int = 1,
) -> Kernel:
    """Return a kernel that corrects each step of another with annealed Langevin dynamics.

        x <- x + d score(x, s) + sqrt(2 d) eps,   d = 2 (snr sigma_s)^2,   score = (alpha_s D(x, s) - x) / sigma_s^2

    Song et al. write |eps| / |score|, norms averaged over the batch, where sigma_s stands here.
    sigma_s is what that ratio is where the score is that of the noise; a step that depends on the
    state would not leave its law unchanged, and one that depends on the batch would couple its
    rows.

    Args:
      predictor: any kernel; its weights pass through.
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      snr: signal-to-noise ratio of a Langevin step, [], positive, traced.
      num_corrections: Langevin steps after each step of the predictor; one denoiser call each.
    Returns:
      A Kernel with the predictor's memory. The last step, to s = 0, is not corrected.
    Raises:
      ValueError: snr not positive, num_corrections < 1.
      TypeError: predictor is no kernel.
    Numerics: Langevin dynamics of finite steps leaves its target by O(d).
    Source: Song et al. 2021, arXiv:2011.13456, Algorithms 2 to 5; Song & Ermon 2019,
    arXiv:1907.05600, Algorithm 1.
    """
    if not isinstance(predictor, Kernel):
        raise TypeError(f"predictor: expected a Kernel, got {type(predictor).__name__}")
    _checks.positive_int("num_corrections", num_corrections)
    _checks.values("snr", snr, "a positive ratio", lambda v: v > 0)
    functions = (predictor, as_function("denoiser", denoiser), schedule)
    return Kernel(
        predictor.init, Partial(_corrected_step, Static(num_corrections), *functions, snr)
    )


def _corrected_step(
    num_corrections: Static, predictor: Kernel, denoiser: Partial, schedule: Schedule, snr: Any,
    key: jax.Array, carry: Any, x_t: jax.Array, t: Any, s: Any,
) -> tuple[Any, jax.Array, jax.Array]:  # fmt: skip
    keys = _rows.keys(key, x_t.shape[0])
    carry, x, increment = predictor.step(_rows.fold(keys, 0), carry, x_t, t, s)
    early = level(schedule, s, x_t)
    skip = is_clean(early) | is_noise(early) | (jnp.asarray(s) <= 0)
    # d score, without dividing by a sigma that may vanish.
    share = 2 * jnp.asarray(snr, early.sigma.dtype) ** 2

    def correct(n: Any, x: jax.Array) -> jax.Array:
        eps = _rows.normal(_rows.fold(keys, n + 1), x)
        moved = (
            x
            + share * (early.alpha * x_0_of(denoiser(x, s), x) - x)
            + early.sigma * jnp.sqrt(2 * share) * eps
        )
        return jnp.where(skip, x, moved).astype(x_t.dtype)

    return carry, jax.lax.fori_loop(0, num_corrections.value, correct, x), increment
