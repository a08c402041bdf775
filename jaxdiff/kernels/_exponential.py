"""Exponential integrators: exact in x_t, polynomial in the denoiser. DPM-Solver++ and UniPC.

With l = lambda / 2 = log(alpha / sigma), one equation serves every family of schedules (tau = 0:
the probability-flow ODE; tau = 1: the reverse SDE):

    x_s = (sigma_s / sigma_t) e^(-tau^2 h) x_t + alpha_s int_0^1 z e^(-z (1 - v)) D(v) dv
        + sigma_s sqrt(1 - e^(-2 tau^2 h)) eps
    h = l_s - l_t,   z = (1 + tau^2) h,   v = (l - l_t) / h

A method of order p replaces D(v) by the polynomial through p known values of the denoiser.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree, static
from jaxdiff.forward import Level, level
from jaxdiff.kernels._kernel import (
    TINY,
    Algorithm,
    Drawing,
    Kernel,
    is_clean,
    lift,
    no_weight,
    noise,
)
from jaxdiff.prediction import x_0_of
from jaxdiff.schedules import Schedule

# A polynomial is used this many times as far as the stretch it was fitted to. A longer step lowers
# the order. (The last step of a schedule without noise at t = 0 is infinitely long in l.)
REACH = 4.0
_SERIES = 16  # terms for |z| < 1: the rest is below 1e-13


class History(NamedTuple):
    """Denoised states of earlier steps, newest first, [B, *D], and l = lambda / 2 there, [B]."""

    x_0: tuple[jax.Array, ...]
    half_log_snr: tuple[jax.Array, ...]


def moments(z: jax.Array, count: int) -> list[jax.Array]:
    """Return m_j = int_0^1 z exp(-z (1 - v)) v^j dv for j < count, accurate at small z too."""
    near = jnp.abs(z) < 1
    small, large = jnp.where(near, z, 0), jnp.where(near, 1, z)
    by_parts = [-jnp.expm1(-z)]
    for j in range(1, count):
        by_parts.append(1 - j * by_parts[-1] / large)
    series = []
    for j in range(count):
        term = total = small / (j + 1)
        for n in range(1, _SERIES):
            term = -term * small / (j + n + 1)
            total = total + term
        series.append(total)
    return [jnp.where(near, a, b) for a, b in zip(series, by_parts, strict=True)]


def polynomial(nodes: Sequence[jax.Array], values: Sequence[jax.Array]) -> list[jax.Array]:
    """Return the coefficients of Newton's polynomial; a node too close lowers its degree."""
    table, usable, coefficients = list(values), jnp.asarray(True), [values[0]]
    for j in range(1, len(nodes)):
        for k in reversed(range(j, len(nodes))):
            gap = nodes[k] - nodes[k - j]
            table[k] = jnp.where(gap == 0, 0, table[k] - table[k - 1]) / jnp.where(gap == 0, 1, gap)
        usable = usable & (jnp.abs(nodes[j] - nodes[j - 1]) >= 1 / REACH)
        coefficients.append(jnp.where(usable, table[j], 0))
    return coefficients


def integral(
    nodes: Sequence[jax.Array], coefficients: Sequence[jax.Array], moment: Sequence[jax.Array]
) -> jax.Array:
    """Return int_0^1 z exp(-z (1 - v)) P(v) dv of Newton's polynomial P."""
    zero = jnp.zeros_like(nodes[0])
    basis, total = [jnp.ones_like(zero)], jnp.zeros_like(coefficients[0])
    for node, coefficient in zip(nodes, coefficients, strict=True):
        weight = sum((b * m for b, m in zip(basis, moment, strict=False)), zero)
        total = total + coefficient * weight
        basis = [
            a - node * b for a, b in zip([zero, *basis], [*basis, zero], strict=True)
        ]  # times (v - node)
    return total


def _half_step(level_t: Level, level_s: Level) -> jax.Array:
    """h = l_s - l_t."""
    return (level_s.log_snr - level_t.log_snr) / 2


def _places(now: jax.Array, h: jax.Array, history: History, x: jax.Array) -> list[jax.Array]:
    """v = (l - l_t) / h of the history's values."""
    safe = jnp.where(h == 0, 1, h)
    return [(_rows.expand(then, x) - now) / safe for then in history.half_log_snr]


def _linear(level_t: Level, level_s: Level, x_t: jax.Array, tau: Any) -> jax.Array:
    """The linear part of a step, (sigma_s / sigma_t) e^(-tau^2 h) x_t."""
    h = _half_step(level_t, level_s)
    return level_s.sigma / level_t.sigma * jnp.exp(-(tau**2) * h) * x_t


def _empty(size: int, schedule: Schedule, x_init: jax.Array, t: jax.Array) -> History:
    """An empty history: every entry is at the starting time, which no polynomial uses twice."""
    x = jnp.zeros(x_init.shape, _rows.state_dtype(x_init.dtype))
    half = jnp.broadcast_to(level(schedule, t, x).log_snr / 2, x.shape[:1])
    return History((x,) * size, (half,) * size)


def _push(history: History, x_0: jax.Array, half_log_snr: jax.Array) -> History:
    half = jnp.broadcast_to(half_log_snr, x_0.shape[:1])
    return History(
        (x_0, *history.x_0)[: len(history.x_0)], (half, *history.half_log_snr)[: len(history.x_0)]
    )


def dpmpp_1s(denoiser: Callable, schedule: Schedule, tau: Any = 0.0) -> Kernel:
    """Return DPM-Solver++ of order 1, the exponential Euler step.

    It is DDIM at tau = 0 and DDPM ("small") at tau = 1.

        x_s = (sigma_s / sigma_t) e^(-tau^2 h) x_t + alpha_s (1 - e^(-(1 + tau^2) h)) D(x_t, t)
            + noise

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      tau: strength of the noise, [], at least 0, traced; 0 is the ODE, 1 the reverse SDE.
    Returns:
      A Kernel without memory and with zero increments; one denoiser call a step.
    Raises:
      ValueError: tau known and negative.
    Source: Lu et al. 2022, arXiv:2211.01095, Eqs. (9) and (17); tau: Xue et al. 2023,
    arXiv:2305.14267, Eq. (7).
    """
    return lift(DPMSolverPP(denoiser, schedule, tau, order=1))


def dpmpp_2m(denoiser: Callable, schedule: Schedule, tau: Any = 0.0) -> Kernel:
    """Return DPM-Solver++(2M), and SDE-DPM-Solver++(2M) at tau = 1.

        D = D_t + (D_t - D_last) / (2 r),   r = h_last / h;   x_s as in `dpmpp_1s` with D

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      tau: strength of the noise, as in `dpmpp_1s`.
    Returns:
      A Kernel that remembers one denoised state; one denoiser call a step, order 2 at tau = 0.
    Raises:
      ValueError: tau known and negative.
    Numerics: the first step, and a step more than four times as long as the one before it, such as
      the last one to data without noise, are of order 1.
    Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 2 and Appendix B.
    """
    return lift(DPMSolverPP(denoiser, schedule, tau, order=2))


def dpmpp_3m(denoiser: Callable, schedule: Schedule, tau: Any = 0.0) -> Kernel:
    """Return DPM-Solver++(3M): the parabola through three denoised states, integrated exactly.

        x_s = (sigma_s / sigma_t) e^(-tau^2 h) x_t + alpha_s (m_0 D_t + m_1 D' + m_2 D'') + noise

    where D_t + v D' + v^2 D'' is the parabola and m_j the integral of z e^(-z (1 - v)) v^j. The
    code that Lu et al. released has m_2 / 2 in the last term, which makes it a method of order 2.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      tau: strength of the noise, as in `dpmpp_1s`.
    Returns:
      A Kernel that remembers two denoised states; one denoiser call a step, order 3 at tau = 0 from
      the start of the reverse process, where the denoiser hardly changes. Started further down, its
      first step, of order 1, limits it to order 2, as in all methods that start without a history;
      `unipc` corrects that step.
    Raises:
      ValueError: tau known and negative.
    Numerics: the order falls in steps much longer than the last, as in `dpmpp_2m`.
    Source: Lu et al. 2022, arXiv:2211.01095, Section 4; the exponential Adams-Bashforth method of
      Hochbruck & Ostermann 2010, Acta Numerica 19, Section 2.7.
    """
    return lift(DPMSolverPP(denoiser, schedule, tau, order=3))


@pytree
class DPMSolverPP(Algorithm):
    """The algorithm of `dpmpp_1s`, `dpmpp_2m` and `dpmpp_3m`: order is 1, 2 or 3."""

    denoiser: Callable
    schedule: Schedule
    tau: Any = 0.0
    _: KW_ONLY
    order: int = static(default=2)

    def __post_init__(self) -> None:
        _checks.values("tau", self.tau, "a strength of at least 0", lambda v: v >= 0)
        _checks.values("order", self.order, "1, 2 or 3", lambda p: 1 <= p <= 3)
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def init(self, x_init: jax.Array, t: jax.Array) -> History:
        """Return an empty history."""
        return _empty(self.order - 1, self.schedule, x_init, t)

    def step(
        self, key: Any, carry: History, x_t: jax.Array, t: Any, s: Any
    ) -> tuple[History, jax.Array, jax.Array]:
        """Integrate the polynomial through D at t and at earlier times."""
        level_t, level_s = level(self.schedule, t, x_t), level(self.schedule, s, x_t)
        tau = jnp.asarray(self.tau, level_t.sigma.dtype)
        x_0, h = x_0_of(self.denoiser(x_t, t), x_t), _half_step(level_t, level_s)
        now = level_t.log_snr / 2
        nodes = [jnp.zeros_like(h), *_places(now, h, carry, x_t)]
        coefficients = polynomial(nodes, [x_0, *carry.x_0])
        moment = moments((1 + tau**2) * h, self.order)
        if self.order == 2:
            moment[1] = moment[0] / 2  # the paper's choice: equal up to the order of the method
        drift = level_s.alpha * integral(nodes, coefficients, moment)
        spread = level_s.sigma * jnp.sqrt(TINY - jnp.expm1(-2 * tau**2 * h))
        x_s = _linear(level_t, level_s, x_t, tau) + drift
        x_s = x_s + spread * noise(key, x_t, s, strength=self.tau)
        return _push(carry, x_0, now), x_s.astype(x_t.dtype), no_weight(x_t)


def dpmpp_2s(denoiser: Callable, schedule: Schedule) -> Kernel:
    """Return DPM-Solver++(2S): the exponential midpoint rule in log-SNR.

        l_u = (l_t + l_s) / 2,   x_u = DDIM(x_t, t -> u)
        x_s = DDIM(x_t, t -> s) with D(x_u, u) in place of D(x_t, t)

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
    Returns:
      A Kernel without memory and with zero increments; two denoiser calls a step, order 2.
    Numerics: a step to data without noise takes D(x_t, t), the denoised state itself.
    Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 1 with r = 1/2.
    """
    return lift(DPMSolverPP2S(denoiser, schedule))


@pytree
class DPMSolverPP2S(Drawing):
    """The algorithm of `dpmpp_2s`."""

    denoiser: Callable
    schedule: Schedule

    def __post_init__(self) -> None:
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def draw(self, key: jax.Array | None, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        """Go to the middle in log-SNR, and step with the denoiser there."""
        level_t, level_s = level(self.schedule, t, x_t), level(self.schedule, s, x_t)
        u = self.schedule.time((level_s.log_snr + level_t.log_snr) / 2)
        level_u = level(self.schedule, u, x_t)
        x_0 = x_0_of(self.denoiser(x_t, t), x_t)
        x_u = exponential_euler(level_t, level_u, x_t, x_0).astype(x_t.dtype)
        x_0 = jnp.where(is_clean(level_s), x_0, x_0_of(self.denoiser(x_u, u), x_u))
        return exponential_euler(level_t, level_s, x_t, x_0)


def exponential_euler(level_t: Level, level_s: Level, x_t: jax.Array, x_0: jax.Array) -> jax.Array:
    """The ODE from x_t to s with a constant denoiser: DDIM."""
    decayed = -jnp.expm1(-_half_step(level_t, level_s))
    return _linear(level_t, level_s, x_t, 0.0) + level_s.alpha * decayed * x_0


class UniPCMemory(NamedTuple):
    """What UniPC remembers.

    Fields:
      x: the last corrected state, [B, *D].
      predicted: the prediction made from it, [B, *D].
      sigma: sigma at its time, [B].
      history: the denoised states.
    """

    x: jax.Array
    predicted: jax.Array
    sigma: jax.Array
    history: History


def unipc(denoiser: Callable, schedule: Schedule, order: int = 2) -> Kernel:
    """Return UniPC-p: predict with p denoised states, then correct with the new one as well.

        predict  x_s from the polynomial through D at t and p - 1 earlier times (order p)
        correct  x_s from the last corrected state, with D(x_s, s) added to the polynomial
                 (order p + 1)

    The correction of x_t takes place at the beginning of the step from t, with the denoiser call
    that this step needs anyway; the last state of a run is a prediction.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      order: p, 1 to 3.
    Returns:
      A Kernel that remembers p denoised states and a state; one denoiser call a step.
    Raises:
      ValueError: order outside 1 to 3.
    Numerics: the polynomials are integrated exactly, which is UniPC with its linear system solved
      at every order, and any B(h). The order falls in steps much longer than the last, as in
      `dpmpp_2m`.
    Source: Zhao et al. 2023, arXiv:2302.04867, Algorithms 1 and 2.
    """
    return lift(UniPC(denoiser, schedule, order))


@pytree
class UniPC(Algorithm):
    """The algorithm of `unipc`."""

    denoiser: Callable
    schedule: Schedule
    order: int = static(default=2)

    def __post_init__(self) -> None:
        _checks.positive_int("order", self.order)
        _checks.values("order", self.order, "1, 2 or 3", lambda p: p <= 3)
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def init(self, x_init: jax.Array, t: jax.Array) -> UniPCMemory:
        """Return the start as if it were corrected, and an empty history."""
        x = x_init.astype(_rows.state_dtype(x_init.dtype))
        sigma = jnp.broadcast_to(level(self.schedule, t, x).sigma, x.shape[:1])
        return UniPCMemory(x, x, sigma, _empty(self.order, self.schedule, x_init, t))

    def step(
        self, key: Any, carry: UniPCMemory, x_t: jax.Array, t: Any, s: Any
    ) -> tuple[UniPCMemory, jax.Array, jax.Array]:
        """Correct x_t with the denoiser there, then predict x_s."""
        level_t, level_s = level(self.schedule, t, x_t), level(self.schedule, s, x_t)
        x_0 = x_0_of(self.denoiser(x_t, t), x_t)
        x = self._corrected(carry, level_t, x_t, x_0)
        x_s = self._predicted(carry.history, (level_t, level_s), x, x_0).astype(x_t.dtype)
        sigma = jnp.broadcast_to(level_t.sigma, x_t.shape[:1])
        history = _push(carry.history, x_0, level_t.log_snr / 2)
        return UniPCMemory(x, x_s.astype(x.dtype), sigma, history), x_s, no_weight(x_t)

    def _corrected(
        self, carry: UniPCMemory, level_t: Level, x_t: jax.Array, x_0: jax.Array
    ) -> jax.Array:
        """x_t again, from the last corrected state; the history's newest entry belongs to it."""
        history, now = carry.history, level_t.log_snr / 2
        last = _rows.expand(history.half_log_snr[0], x_t)
        taken = now - last
        nodes = [jnp.ones_like(taken), *_places(last, taken, history, x_t)]
        coefficients = polynomial(nodes, [x_0, *history.x_0])
        total = integral(nodes, coefficients, moments(taken, self.order + 1))
        ratio = level_t.sigma / _rows.expand(carry.sigma, x_t)
        corrected = ratio * carry.x + level_t.alpha * total
        # What another kernel did to the prediction in between, such as Langevin steps, is kept.
        return jnp.where(taken == 0, x_t, corrected + (x_t - carry.predicted))

    def _predicted(
        self, history: History, levels: tuple[Level, Level], x: jax.Array, x_0: jax.Array
    ) -> jax.Array:
        """x_s from the corrected x at t."""
        level_t, level_s = levels
        h, now = _half_step(level_t, level_s), level_t.log_snr / 2
        used = History(*(entries[: self.order - 1] for entries in history))
        nodes = [jnp.zeros_like(h), *_places(now, h, used, x)]
        total = integral(nodes, polynomial(nodes, [x_0, *used.x_0]), moments(h, self.order))
        return _linear(level_t, level_s, x, 0.0) + level_s.alpha * total
