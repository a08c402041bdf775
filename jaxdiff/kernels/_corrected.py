"""Predictor-corrector: a reverse step, then Langevin dynamics at the level it came to."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import level
from jaxdiff.kernels._kernel import Algorithm, Kernel, is_clean, is_noise, lift
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

        x <- x + d score(x, s) + sqrt(2 d) eps
        d = 2 (snr sigma_s)^2,   score = (alpha_s D(x, s) - x) / sigma_s^2

    Song et al. have |eps| / |score| in place of sigma_s, with norms averaged over the batch. The
    two are equal where the score is that of the noise. A step that depends on the state would not
    leave its law unchanged. A step that depends on the batch would couple its rows.

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
    return lift(Corrected(predictor, denoiser, schedule, snr, num_corrections))


@pytree
class Corrected(Algorithm):
    """The algorithm of `corrected`."""

    predictor: Kernel
    denoiser: Callable
    schedule: Schedule
    snr: Any = 0.16
    num_corrections: int = static(default=1)

    def __post_init__(self) -> None:
        if not isinstance(self.predictor, Kernel):
            got = type(self.predictor).__name__
            raise TypeError(f"predictor: expected a Kernel, got {got}")
        _checks.positive_int("num_corrections", self.num_corrections)
        _checks.values("snr", self.snr, "a positive ratio", lambda v: v > 0)
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def init(self, x_init: jax.Array, t: jax.Array) -> Any:
        """Return the predictor's memory."""
        return self.predictor.init(x_init, t)

    def step(
        self, key: Any, carry: Any, x_t: jax.Array, t: Any, s: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Predict x_s, then move it by Langevin dynamics."""
        keys = _rows.keys(key, x_t.shape[0])
        carry, x, increment = self.predictor.step(_rows.fold(keys, 0), carry, x_t, t, s)
        level_s = level(self.schedule, s, x_t)
        alpha_s, sigma_s, _ = level_s
        skip = is_clean(level_s) | is_noise(level_s) | (jnp.asarray(s) <= 0)
        # d score, without dividing by a sigma that may vanish.
        size = 2 * jnp.asarray(self.snr, sigma_s.dtype) ** 2

        def correct(n: Any, x: jax.Array) -> jax.Array:
            eps = _rows.normal(_rows.fold(keys, n + 1), x)
            drift = size * (alpha_s * x_0_of(self.denoiser(x, s), x) - x)
            moved = x + drift + sigma_s * jnp.sqrt(2 * size) * eps
            return jnp.where(skip, x, moved).astype(x_t.dtype)

        return carry, jax.lax.fori_loop(0, self.num_corrections, correct, x), increment
