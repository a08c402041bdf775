"""The spread Cov[x_0 | x_t] of a model by noise level, and an observation under it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function, put, pytree
from jaxdiff.forward import q_sample
from jaxdiff.guidance._observed import require_observation
from jaxdiff.guidance._triangular import inverse_of_lower, lower_root
from jaxdiff.observations import Mask, Observation
from jaxdiff.prediction import Denoised, x_0_of
from jaxdiff.schedules import Schedule

# A spread is measured from where the widest direction of the data is all noise to where an entry of
# mean width is all data: log-SNRs relative to 1 / variance.
LOWEST, HIGHEST = -5.0, 8.0
LEAST = 1e-6  # of a variance in units of the data's: below, float32 rounds it away


class Covariance(NamedTuple):
    """A covariance of one x_0 [*D]: V = U^T diag(variance) U + rest (I - U^T U).

    Fields:
      axes: U, orthonormal directions, [R, *D].
      variance: variance along each of them, [R].
      rest: variance in all other directions, [].
    """

    axes: jax.Array
    variance: jax.Array
    rest: jax.Array

    def excess(self) -> jax.Array:
        """Return variance - rest, at least 0, [R]: V is rest I and this along the axes."""
        return jnp.maximum(self.variance - self.rest, 0)

    def diagonal(self) -> jax.Array:
        """Return the variance of each entry, [*D]."""
        return self.rest + jnp.tensordot(self.excess(), self.axes**2, 1)

    def root(self, z: jax.Array) -> jax.Array:
        """Return V^(1/2) z for vectors z [K, *D]."""
        gain = jnp.sqrt(self.rest + self.excess()) - jnp.sqrt(self.rest)
        event = tuple(range(1, z.ndim))
        along = jnp.tensordot(z, self.axes, (event, event))
        return jnp.sqrt(self.rest) * z + jnp.tensordot(along * gain[None], self.axes, 1)


@pytree
class Spread:
    """Cov[x_0 | x_t] in fixed axes, by log-SNR: t -> Covariance through `at`.

        variance = fraction c / (1 + c exp(lambda)),   fraction interpolated in lambda

    With fraction 1 it is the spread of normal data of variance c.

    Fields:
      axes: orthonormal directions, [R, *D].
      scale: c, variance of the data along each axis and then in all other directions, [R + 1].
      log_snr: levels, [L], increasing.
      fraction: [L, R + 1].
    """

    axes: jax.Array
    scale: jax.Array
    log_snr: jax.Array
    fraction: jax.Array

    def __post_init__(self) -> None:
        _checks.floating("axes", self.axes)
        expected = (len(self.axes) + 1,), (jnp.shape(self.log_snr)[0], len(self.axes) + 1)
        got = jnp.shape(self.scale), jnp.shape(self.fraction)
        if got != expected:
            raise ValueError(f"scale, fraction: expected shapes {expected}, got {got}")
        _checks.values("scale", self.scale, "a variance of at least 0", lambda v: v >= 0)
        _checks.values("fraction", self.fraction, "a fraction of at least 0", lambda v: v >= 0)

    def at(self, schedule: Schedule, t: Any, dtype: Any) -> Covariance:
        """Return Cov[x_0 | x_t] at one t []."""
        axes, scale, levels, fractions = (
            jnp.asarray(v, dtype) for v in (self.axes, self.scale, self.log_snr, self.fraction)
        )
        # exp(-lambda) + c may be infinite where there is no signal: then the variance is c.
        log_snr = jnp.asarray(schedule.log_snr(jnp.asarray(t, dtype)), dtype)
        shrunk = scale / (1 + scale * jnp.exp(log_snr))
        # Each gap between levels adds its share: linear between them, constant beyond. There is no
        # search and no index, which XLA for GPUs (jax 0.11.2) could not compile in a scan.
        gaps = jnp.maximum(jnp.diff(levels), jnp.finfo(levels.dtype).tiny)
        share = jnp.clip((log_snr - levels[:-1]) / gaps, 0, 1)
        fraction = fractions[0] + share @ jnp.diff(fractions, axis=0)
        variance = fraction * shrunk
        return Covariance(axes, variance[:-1], variance[-1])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.axes.shape[1:]))
        return f"Spread({len(self.axes)} axes of {shape}, {len(self.log_snr)} levels)"


def spread_of(
    key: jax.Array,
    denoiser: Callable,
    schedule: Schedule,
    data: jax.Array,
    *,
    num_axes: int | None = None,
    num_levels: int = 13,
    batch_size: int = 256,
) -> Spread:
    """Measure the spread of a model: how far x_0 lies from its denoised state, by noise level.

        v_j(lambda) = E[(u_j . (x_0 - D(x_t, t)))^2],   u_j the principal axes of the data

    It is Cov[x_0 | x_t] on average over x_t, its diagonal in these axes, and it contains the
    model's own error. It is exact for normal data. All but the axes share one variance.

    Args:
      key: typed PRNG key.
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      data: examples that the model has not learned by heart, [N, *D], floating; 1000 are enough.
      num_axes: R, static; None is min(N - 1, prod(D), 256).
      num_levels: L, static: log-SNRs from where the data's widest direction is all noise to where
        an entry of mean width is all data.
      batch_size: examples that the denoiser gets at a time, static.
    Returns:
      A Spread. It costs num_levels denoiser calls an example, once, and none afterwards.
    Raises:
      ValueError: fewer than 2 examples, num_axes is out of range, or num_levels < 2.
      TypeError: data are not floating, or denoiser is no function.
    Source: Bao et al. 2022, arXiv:2201.06503, Eq. (10), for one variance; Rozet et al. 2024,
    arXiv:2405.13712, Section 4, for why a covariance.
    """
    _checks.one_key("key", key)
    _checks.floating("data", data)
    denoiser = as_function("denoiser", denoiser)
    _checks.positive_int("batch_size", batch_size)
    _checks.positive_int("num_levels", num_levels)
    x_0 = jnp.asarray(data, _rows.state_dtype(data.dtype))
    flat = x_0.reshape(len(x_0), -1)
    most = min(len(flat) - 1, flat.shape[1])
    num_axes = min(most, 256) if num_axes is None else num_axes
    if len(flat) < 2 or num_levels < 2 or not 0 < num_axes <= most:
        raise ValueError(
            "data, num_axes, num_levels: expected at least 2 examples and levels, and 1 to "
            f"{max(most, 1)} axes, got {len(flat)}, {num_levels} and {num_axes}"
        )
    centred = flat - jnp.mean(flat, axis=0)[None]
    axes = jnp.linalg.svd(centred, full_matrices=False)[2][:num_axes]
    # Data of one point have no variance at all: theirs is a rounding error.
    mean = jnp.maximum(jnp.mean(centred**2), jnp.finfo(x_0.dtype).eps)
    scale = jnp.maximum(_by_axis(centred, axes), LEAST * mean)
    ends = LOWEST - jnp.log(jnp.max(scale)), HIGHEST - jnp.log(mean)
    log_snr = jnp.linspace(*ends, num_levels, dtype=x_0.dtype)

    def measure(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        n, log_snr = inputs
        t = schedule.time(log_snr).astype(x_0.dtype)

        def residual(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            x, eps = pair
            x_t = q_sample(schedule, x[None], t, eps[None])
            return (x - x_0_of(denoiser(x_t, t), x_t)[0]).reshape(-1)

        eps = _rows.normal(jax.random.fold_in(key, n), x_0)
        rows = jax.lax.map(residual, (x_0, eps), batch_size=min(batch_size, len(x_0)))
        # The level itself, which a schedule with an end does not reach.
        return jnp.append(_by_axis(rows, axes), schedule.log_snr(t).astype(x_0.dtype))

    found = jax.lax.map(measure, (jnp.arange(num_levels), log_snr))
    variance, log_snr = found[:, :-1], found[:, -1]
    shrunk = scale[None] / (1 + scale[None] * jnp.exp(log_snr)[:, None])
    return Spread(axes.reshape(num_axes, *x_0.shape[1:]), scale, log_snr, variance / shrunk)


def _by_axis(rows: jax.Array, axes: jax.Array) -> jax.Array:
    """The mean square of rows [N, d] along each axis, and in a direction beside them, [R + 1]."""
    along = jnp.mean((rows @ axes.T) ** 2, axis=0)
    total = jnp.mean(jnp.sum(rows**2, axis=1))
    others = rows.shape[1] - len(axes)
    beside = jnp.maximum(total - jnp.sum(along), 0) / max(others, 1)
    # Without another direction the smallest one stands for it: V is then that of the axes.
    return jnp.append(along, jnp.where(others > 0, beside, jnp.min(along)))


@pytree
class Widened:
    """The denoiser of `widened`."""

    denoiser: Callable
    schedule: Schedule
    spread: Spread

    def __post_init__(self) -> None:
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def __call__(self, x_t: jax.Array, t: Any) -> Denoised:
        """Return E[x_0 | x_t] and Var[x_0 | x_t]."""
        x_0 = x_0_of(self.denoiser(x_t, t), x_t)

        def diagonal(t: Any) -> jax.Array:
            return self.spread.at(self.schedule, t, x_0.dtype).diagonal()

        variance = jax.vmap(diagonal)(t) if jnp.ndim(t) else diagonal(t)[None]
        return Denoised(x_0, variance=jnp.broadcast_to(variance, x_t.shape))


def widened(denoiser: Callable, schedule: Schedule, spread: Spread) -> Widened:
    """Return the denoiser with the variance of x_0 that a spread says.

        Var[x_0 | x_t] = diag V_t

    Kernels with variance="optimal" then make steps as wide as the model's own uncertainty. With few
    steps their samples are not too narrow, as those of variance="small" are.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      spread: of `spread_of`.
    Returns:
      A denoiser that returns a `Denoised`; all rows have one time.
    Raises:
      TypeError: denoiser is no function.
    Source: Bao et al. 2022, arXiv:2201.06503, Theorem 1.
    """
    return Widened(denoiser, schedule, spread)


class Conditioned(NamedTuple):
    """The law of x_0 given x_t and y, where x_0 given x_t is N(D, V).

    Fields:
      log_likelihood: log N(y; A D, noise_std^2 I + A V A^T), [B], in nats.
      mean: D + V A^T (noise_std^2 I + A V A^T)^-1 (y - A D), [B, *D].
    """

    log_likelihood: jax.Array
    mean: jax.Array


@pytree
class Conditioner:
    """An observation under one covariance: everything that no state changes.

    With V = rest I + U^T diag(e) U the covariance of y is N + B^T B, where N is diagonal and
    B = diag(e)^(1/2) U A^T is [R, *M]. Woodbury's identity inverts it by K = I + B N^-1 B^T.
    """

    observation: Observation
    covariance: Covariance
    precision: jax.Array
    factor: jax.Array
    inverse_root: jax.Array
    leading: jax.Array
    log_determinant: jax.Array

    def __call__(self, x_0: jax.Array) -> Conditioned:
        """Condition rows D [B, *D]."""
        operator, y = self.observation.operator, self.observation.y
        predicted, transpose = jax.vjp(jax.vmap(operator), x_0)
        residual = y.astype(x_0.dtype)[None] - predicted
        weighted = self.precision[None] * residual
        along = _flat(weighted) @ self.factor.T
        whitened = along @ self.inverse_root.T
        squares = _rows.event_sum(weighted * residual) - jnp.sum(whitened**2, axis=1)
        solved = whitened @ self.inverse_root
        # w = (N + B^T B)^-1 residual, and V A^T w = rest A^T w + U^T diag(e)^(1/2) (B w).
        w = weighted - self.precision[None] * (solved @ self.factor).reshape(predicted.shape)
        _, _, rest = self.covariance
        excess = jnp.sqrt(self.covariance.excess())[None] * solved
        shift = rest * transpose(w)[0] + jnp.tensordot(excess, self.covariance.axes, 1)
        return Conditioned(-0.5 * (squares + self.log_determinant), x_0 + shift)

    def variance(self) -> jax.Array:
        """Return the variance of each entry of x_0 given x_t and y, [*D].

        Under a mask it is exact. Otherwise y narrows the part along the axes alone, so that the
        variance is too large rather than too small. It never exceeds that before y.
        """
        beside = jnp.broadcast_to(self.covariance.rest, self.covariance.axes.shape[1:])
        if isinstance(self.observation.operator, Mask):
            beside = beside - beside**2 * self.precision
        root = jnp.tensordot(self.inverse_root, self.leading, 1)
        return jnp.minimum(beside + jnp.sum(root**2, axis=0), self.covariance.diagonal())


def _flat(rows: jax.Array) -> jax.Array:
    return rows.reshape(len(rows), -1)


def conditioner(observation: Observation, covariance: Covariance) -> Conditioner:
    """Prepare an observation for states whose x_0 has this covariance.

    Args:
      observation: linear, with Gaussian noise.
      covariance: of one x_0 given its x_t.
    Returns:
      A Conditioner. The part of V beside the axes sees the diagonal of A A^T alone.
    """
    axes, _, rest = covariance
    linear, pull = _linear_part(observation.operator, axes[0])
    like = jax.eval_shape(linear, axes[0])
    noise, gain, observed = (
        jnp.asarray(v, axes.dtype)
        for v in (observation.noise_std, observation.known_gain(axes[0]), observation.observed)
    )
    total = jnp.broadcast_to(noise**2 + gain * rest, like.shape)
    precision = observed / total
    e = jnp.sqrt(covariance.excess()).reshape(-1, *(1,) * len(like.shape))
    factor = _flat(e * jax.vmap(linear)(axes)) * jnp.ones((1, like.size), axes.dtype)
    K = jnp.eye(len(axes), dtype=axes.dtype) + (factor * precision.reshape(1, -1)) @ factor.T
    root_of_K = lower_root(K)
    logs = jnp.sum(observed * jnp.log(2 * jnp.pi * total))
    log_determinant = logs + 2 * jnp.sum(jnp.log(jnp.diagonal(root_of_K)))
    # G = diag(e)^(1/2) U - rest B N^-1 A. Given y, V is that beside the axes + G^T K^-1 G.
    seen = jax.vmap(pull)((factor * precision.reshape(1, -1)).reshape(len(axes), *like.shape))
    root = jnp.sqrt(covariance.excess()).reshape(-1, *(1,) * (axes.ndim - 1))
    leading = root * axes - rest * seen
    inverse_root = inverse_of_lower(root_of_K)
    return Conditioner(
        observation, covariance, precision, factor, inverse_root, leading, log_determinant
    )


def _linear_part(operator: Callable, like: jax.Array) -> tuple[Callable, Callable]:
    """The linear part of an operator, and its transpose."""
    zeros = jnp.zeros_like(like)
    _, push = jax.linearize(operator, zeros)
    _, pull = jax.vjp(operator, zeros)
    return push, lambda v: pull(v)[0]


@pytree
class GivenObservation:
    """The denoiser of `conditioned`."""

    denoiser: Callable
    schedule: Schedule
    observation: Observation
    spread: Spread

    def __post_init__(self) -> None:
        require_observation(self.observation)
        put(self, denoiser=as_function("denoiser", self.denoiser))

    def __call__(self, x_t: jax.Array, t: Any) -> Denoised:
        """Return E[x_0 | x_t, y] and Var[x_0 | x_t, y]."""
        x_0 = x_0_of(self.denoiser(x_t, t), x_t)
        given = conditioner(self.observation, self.spread.at(self.schedule, t, x_0.dtype))
        variance = jnp.broadcast_to(given.variance()[None], x_t.shape)
        return Denoised(given(x_0).mean.astype(x_t.dtype), variance=variance)


def conditioned(
    denoiser: Callable, schedule: Schedule, observation: Observation, spread: Spread
) -> Callable:
    """Return the denoiser given an observation under a measured spread: no gradient.

        D_y = D + V_t A^T (noise_std^2 I + A V_t A^T)^-1 (y - A D)

    It is exact for normal data with their own spread. It is `pigdm` with a measured covariance, in
    the place of the network's Jacobian too. `posterior.twisted(spread=...)` adds the weights that
    make it right for other data.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      observation: linear, with Gaussian noise.
      spread: of `posterior.spread_of`.
    Returns:
      A denoiser of one call, that returns a `Denoised`: kernels with variance="optimal" take steps
      as wide as x_0 given x_t and y. All rows have one time.
    Raises:
      TypeError: observation is no Observation, or denoiser is no function.
    Source: Song et al. 2023, Pseudoinverse-guided diffusion models, ICLR, Eq. (7), and Rozet et al.
    2024, arXiv:2405.13712, Eq. (13), for the covariance.
    """
    return GivenObservation(denoiser, schedule, observation, spread)
