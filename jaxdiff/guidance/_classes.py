"""Guidance by a label: classifier-free, and by a classifier of noisy states."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree
from jaxdiff.guidance._observed import GradientGuidance
from jaxdiff.prediction import Denoised, x_0_of
from jaxdiff.schedules import Schedule


def classifier_free(
    conditional: Callable,
    unconditional: Callable,
    scale: Any,
    *,
    interval: tuple[Any, Any] = (0.0, 1.0),
    rescale: Any = 0.0,
) -> Callable:
    """Return the classifier-free guided denoiser.

        D = D_uncond + scale (D_cond - D_uncond)    for t in the interval, D_cond elsewhere
        D <- rescale D std(D_cond) / std(D) + (1 - rescale) D,   std over the entries of a row

    Linear maps join the prediction types to x_0, so this is the same combination as one of eps or
    of scores.

    Args:
      conditional: denoiser given the label, (x_t, t) -> E[x_0 | x_t, y].
      unconditional: denoiser without it.
      scale: [] or [B], traced. 0 is unconditional and 1 conditional; a larger scale follows the
        label more closely than the model does.
      interval: times between which guidance is on, both ends included, traced.
      rescale: phi, [], in [0, 1], traced: how far the contrast goes back to the conditional one's.
    Returns:
      A denoiser; it calls both. A learned reverse variance is the conditional one's.
    Raises:
      ValueError: rescale or a time of the interval known and outside [0, 1], the interval's ends
        exchanged, or a scale that is known and not finite.
      TypeError: a denoiser is no function.
    Source: Ho & Salimans 2022, arXiv:2207.12598, Eq. (6), whose w is scale - 1; interval:
      Kynkaanniemi et al. 2024, arXiv:2404.07724, Eq. (5); rescale: Lin et al. 2023,
      arXiv:2305.08891, Eqs. (15) and (16).
    """
    return ClassifierFree(conditional, unconditional, scale, interval=interval, rescale=rescale)


@pytree
class ClassifierFree:
    """The denoiser of `classifier_free`."""

    conditional: Callable
    unconditional: Callable
    scale: Any
    _: KW_ONLY
    interval: tuple[Any, Any] = (0.0, 1.0)
    rescale: Any = 0.0

    def __post_init__(self) -> None:
        within = "a fraction in [0, 1]"
        _checks.finite("scale", self.scale)
        _checks.values("rescale", self.rescale, within, lambda v: (v >= 0) & (v <= 1))
        for t in self.interval:
            _checks.time("interval", t)
        if all(_checks.known(t) is not None for t in self.interval):
            ends = np.array(self.interval)
            _checks.values("interval", ends, "(low, high) in this order", lambda v: np.diff(v) >= 0)
        put(
            self,
            conditional=as_function("conditional", self.conditional),
            unconditional=as_function("unconditional", self.unconditional),
            interval=tuple(self.interval),
        )

    def __call__(self, x_t: jax.Array, t: Any) -> Any:
        """Return the guided E[x_0 | x_t]."""
        given, without = self.conditional(x_t, t), x_0_of(self.unconditional(x_t, t), x_t)
        target = x_0_of(given, x_t)
        now = jnp.asarray(t, _rows.state_dtype(x_t.dtype))
        low, high = _rows.cast(now.dtype, *self.interval)
        scale, rescale = (jnp.asarray(v, x_t.dtype) for v in (self.scale, self.rescale))
        scale = jnp.where((now >= low) & (now <= high), scale, 1)
        x_0 = without + _rows.expand(scale, x_t) * (target - without)
        size = _deviation(x_0)
        ratio = jnp.where(size > 0, _deviation(target) / jnp.where(size > 0, size, 1), 1)
        x_0 = x_0 * (1 + rescale * (ratio - 1))
        return given._replace(x_0=x_0) if isinstance(given, Denoised) else x_0


def _deviation(x: jax.Array) -> jax.Array:
    """The standard deviation of each row's entries, [B, 1, ...]."""
    variance = jnp.var(x.reshape(x.shape[0], -1), axis=1)
    flat = variance == 0  # a root has no gradient there
    return _rows.expand(jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, variance))), x)


def classifier(
    denoiser: Callable, schedule: Schedule, log_likelihood: Callable, scale: Any = 1.0
) -> Callable:
    """Return the denoiser guided by the gradient of a classifier of noisy states.

        D <- D + scale (sigma_t^2 / alpha_t) grad_x log p(y | x_t, t)

    With the exact log p(y | x_t) and scale 1 this is E[x_0 | x_t, y].

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      log_likelihood: (x_t [B, *D], t [B]) -> log p(y | x_t), [B], in nats, up to a constant;
        differentiable.
      scale: [] or [B], traced.
    Returns:
      A denoiser; a learned reverse variance passes through.
    Raises:
      TypeError: denoiser or log_likelihood is no function.
      ValueError: scale is known and not finite; when called, log_likelihood returns another shape
        than [B].
    Numerics: where alpha_t = 0 a state tells nothing about y, and the gradient is left out.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Algorithm 2, in terms of x_0.
    """
    return Classifier(denoiser, schedule, log_likelihood, scale)


@pytree
class Classifier(GradientGuidance):
    """The denoiser of `classifier`."""

    def __call__(self, x_t: jax.Array, t: Any) -> Any:
        """Return the guided E[x_0 | x_t]."""
        denoised = self.denoiser(x_t, t)
        times = jnp.broadcast_to(jnp.asarray(t, _rows.state_dtype(x_t.dtype)), x_t.shape[:1])

        def total(x: jax.Array) -> jax.Array:
            values, expected = self.log_likelihood(x, times), x.shape[:1]
            if jnp.shape(values) != expected:
                raise ValueError(
                    f"log_likelihood: expected one value a row, {expected}, got {jnp.shape(values)}"
                )
            return jnp.sum(values)

        return self.follow(denoised, jax.grad(total)(x_t), x_t, t)
