"""Mixtures of normal distributions, one of them, and the kernel density of a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._functions import Static, exactly
from jaxdiff.forward import level
from jaxdiff.prediction import Denoised
from jaxdiff.schedules import Schedule

_ENTRIES = 2**24  # of rows x components x dimensions at once; beyond, components take turns


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of K normal distributions in d dimensions.

        p(x) = sum_k w_k N(x; m_k, C_k)

    Fields:
      log_weights: [K]; normalised by every method, so log w_k + const will do.
      means: [K, d].
      covariances: [K, d, d], symmetric positive semi-definite; or [K, d], their diagonals; or [K],
        multiples of the identity, for which no [d, d] matrix is ever made.
    Raises:
      TypeError: a field is not a floating array.
      ValueError: shapes do not fit, or values that are known are not those of a mixture.
    """

    log_weights: jax.Array
    means: jax.Array
    covariances: jax.Array

    def __post_init__(self) -> None:
        fields = (self.log_weights, self.means, self.covariances)
        for name, field in zip(("log_weights", "means", "covariances"), fields, strict=True):
            _checks.floating(name, field)
        weights, means, covariances = (field.shape for field in fields)
        # Leading axes make a batch of mixtures, such as vmap returns.
        if (
            len(means) < 2
            or weights != means[:-1]
            or covariances not in ((*means, means[-1]), means, weights)
        ):
            raise ValueError(
                "log_weights, means, covariances: expected shapes [K], [K, d], and [K, d, d], [K, d] or [K], got "
                f"{weights}, {means}, {covariances}"
            )
        _checks.values(
            "log_weights",
            self.log_weights,
            "weights below infinity",
            lambda w: w < np.inf,
            finite=False,
        )
        _checks.finite("means", self.means)
        if len(covariances) <= len(means):
            _checks.values(
                "covariances", self.covariances, "variances of at least 0", lambda v: v >= 0
            )
        elif (known := _checks.known(self.covariances)) is not None:
            wrong = known[~_may_be_covariance(known)]
            if len(wrong):
                raise ValueError(
                    f"covariances: expected symmetric matrices without a variance below 0, got {wrong[0].tolist()}"
                )

    def tree_flatten(self) -> tuple[tuple, None]:
        """What jax takes a mixture apart into."""
        return (self.log_weights, self.means, self.covariances), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple) -> "GaussianMixture":
        """Put it together again, without the checks: the leaves may be gradients, or no arrays at all."""
        mixture = object.__new__(cls)
        for name, value in zip(("log_weights", "means", "covariances"), leaves, strict=True):
            object.__setattr__(mixture, name, value)
        return mixture

    @exactly
    def log_prob(self, x: jax.Array) -> jax.Array:
        """Return log p(x) in nats, [...], for x [..., d]."""
        rows = self._flat(x)
        return logsumexp(self._joint(rows, *self._spectrum(), 1.0), axis=-1).reshape(
            jnp.shape(x)[:-1]
        )

    @exactly
    def score(self, x: jax.Array) -> jax.Array:
        """Return grad_x log p(x), [..., d], for x [..., d]: the responsible components' pull, -C_k^-1 (x - m_k)."""
        values, vectors = self._spectrum()
        rows = self._flat(x)
        share = jax.nn.softmax(self._joint(rows, values, vectors, 1.0), axis=-1)
        return self._pull(rows, share, -1 / values, vectors, 1.0).reshape(jnp.shape(x))

    @exactly
    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Return independent draws, [*shape, d]."""
        _checks.one_key("key", key)
        key_component, key_noise = jax.random.split(key)
        component = jax.random.categorical(key_component, self.log_weights, shape=shape)
        values, vectors = self._spectrum()
        noise = jax.random.normal(key_noise, (*shape, self.means.shape[-1]), self.means.dtype)
        noise = jnp.sqrt(values)[component] * noise
        if vectors is not None:
            # Component by component: a matrix for each draw would not fit where d is large.
            def turn(k: Any, turned: jax.Array) -> jax.Array:
                return jnp.where((component == k)[..., None], noise @ vectors[k].T, turned)

            noise = jax.lax.fori_loop(0, len(vectors), turn, noise)
        return self.means[component] + noise

    def diffuse(self, schedule: Schedule, t: Any) -> "GaussianMixture":
        """Return the marginal of x_t at one time t []: components N(alpha m_k, alpha^2 C_k + sigma^2 I)."""
        if jnp.ndim(t) != 0:
            raise ValueError(f"t: expected one time, shape (), got {jnp.shape(t)}")
        alpha, sigma = (value.astype(self.means.dtype) for value in schedule.alpha_sigma(t))
        noise = sigma**2
        if self.covariances.ndim > self.means.ndim:
            noise = noise * jnp.eye(self.means.shape[-1], dtype=self.means.dtype)[None]
        return GaussianMixture(
            self.log_weights, alpha * self.means, alpha**2 * self.covariances + noise
        )

    def denoiser(self, schedule: Schedule, *, variance: bool = False) -> Partial:
        """Return the exact E[x_0 | x_t] as a denoiser: (x_t [B, *D], t [] or [B]) -> [B, *D], where d = prod(D).

            sum_k r_k(x_t) (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (x_t - alpha m_k))

        With variance it returns a `Denoised` with the diagonal of Cov[x_0 | x_t] too, the optimal
        reverse variance's ingredient. One eigendecomposition serves every t, since noise adds a
        multiple of the identity.
        """
        return Partial(_mixture_denoiser, Static(variance), self, schedule, *self._spectrum())

    @exactly
    def denoised_covariance(self, schedule: Schedule, x_t: jax.Array, t: Any) -> jax.Array:
        """Return Cov[x_0 | x_t], [B, d, d], for x_t [B, d]: within the components and between their means."""
        alpha, sigma, _ = level(schedule, t, x_t)
        eye = jnp.eye(self.means.shape[-1], dtype=self.means.dtype)

        def one(x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
            given = self.posterior(alpha * eye, x, sigma**2 * eye)
            share = jax.nn.softmax(given.log_weights)
            centred = given.means - (share @ given.means)[None]
            return jnp.einsum(
                "k,kij->ij", share, given.covariances + centred[:, :, None] * centred[:, None, :]
            )

        size = x_t.shape[:1]
        return jax.vmap(one)(x_t, *(jnp.broadcast_to(v.reshape(-1), size) for v in (alpha, sigma)))

    @exactly
    def posterior(
        self, A: jax.Array, y: jax.Array, noise_covariance: jax.Array
    ) -> "GaussianMixture":
        """Return p(x | y) for y = A x + noise: again a mixture.

        Args:
          A: [m, d].
          y: observation, [m].
          noise_covariance: [m, m], positive definite.
        Returns:
          GaussianMixture with log_weights w_k N(y; A m_k, A C_k A^T + noise_covariance),
          unnormalised, and full covariances.
        Source: the Kalman update, per component.
        """
        evidence, crossed = self._observed(A, noise_covariance)
        if jnp.shape(y) != (A.shape[0],):
            raise ValueError(f"y: expected shape ({A.shape[0]},), got {jnp.shape(y)}")
        gain = jnp.linalg.solve(evidence.covariances, crossed).mT  # [K, d, m]
        means = self.means + jnp.einsum("kdm,km->kd", gain, y[None] - evidence.means)
        # Joseph's form keeps the covariance symmetric and positive semi-definite in float32.
        left = jnp.eye(A.shape[1], dtype=A.dtype)[None] - gain @ A
        covariances = _scaled(left, self.covariances) @ left.mT + gain @ noise_covariance @ gain.mT
        log_weights = evidence._joint(y[None], *evidence._spectrum(), 1.0)[0]
        return GaussianMixture(log_weights, means, covariances)

    @exactly
    def log_evidence(self, A: jax.Array, y: jax.Array, noise_covariance: jax.Array) -> jax.Array:
        """Return log p(y), [], in nats, for y = A x + noise; arguments as in `posterior`."""
        return self._observed(A, noise_covariance)[0].log_prob(y)

    def _observed(
        self, A: jax.Array, noise_covariance: jax.Array
    ) -> tuple["GaussianMixture", jax.Array]:
        """The law of y, and Cov[y, x] of each component, [K, m, d]."""
        size = self.means.shape[1]
        if (
            jnp.ndim(A) != 2
            or A.shape[1] != size
            or jnp.shape(noise_covariance) != (A.shape[0], A.shape[0])
        ):
            shapes = [jnp.shape(A), jnp.shape(noise_covariance)]
            raise ValueError(
                f"A, noise_covariance: expected shapes [m, {size}], [m, m], got {shapes}"
            )
        crossed = _scaled(jnp.broadcast_to(A, (len(self.means), *A.shape)), self.covariances)
        covariances = crossed @ A.T + noise_covariance[None]
        return GaussianMixture(self.log_weights, self.means @ A.T, covariances), crossed

    def _spectrum(self) -> tuple[jax.Array, jax.Array | None]:
        """Eigenvalues, [K, d] or [K, 1], and eigenvectors, [K, d, d] in columns; None where they are the axes."""
        if self.covariances.ndim > self.means.ndim:
            values, vectors = jnp.linalg.eigh(self.covariances)
            return jnp.maximum(values, 0), vectors
        values = (
            self.covariances
            if self.covariances.ndim == self.means.ndim
            else self.covariances[..., None]
        )
        return jnp.maximum(values, 0), None

    def _flat(self, x: jax.Array) -> jax.Array:
        size = self.means.shape[-1]
        if jnp.shape(x)[-1:] != (size,):
            raise ValueError(f"x: expected shape [..., {size}], got {jnp.shape(x)}")
        return jnp.reshape(x, (-1, size))

    def _joint(
        self, x: jax.Array, values: jax.Array, vectors: jax.Array | None, alpha: Any
    ) -> jax.Array:
        """log w_k + log N(x; alpha m_k, .), [B, K], of x [B, d]; values are variances, [(B,) K, d | 1]."""

        def log_normal(mean: jax.Array, value: jax.Array, vector: jax.Array | None) -> jax.Array:
            centred = x - alpha * mean[None]
            centred = centred if vector is None else centred @ vector
            value = jnp.broadcast_to(value, centred.shape)
            return -0.5 * jnp.sum(centred**2 / value + jnp.log(2 * jnp.pi * value), axis=1)

        values = _rows.lead(values, 3)
        stacked = _each(log_normal, x.size, self.means, jnp.moveaxis(values, 1, 0), vectors)
        return _rows.lead(jax.nn.log_softmax(self.log_weights), 2) + stacked.T

    def _pull(
        self, x: jax.Array, share: jax.Array, gain: jax.Array, vectors: jax.Array | None, alpha: Any
    ) -> jax.Array:
        """sum_k r_k G_k (x - alpha m_k), [B, d], of matrices G_k with eigenvalues `gain`, [(B,) K, d | 1]."""

        def one(
            mean: jax.Array, share: jax.Array, gain: jax.Array, vector: jax.Array | None
        ) -> jax.Array:
            centred = x - alpha * mean[None]
            moved = gain * (centred if vector is None else centred @ vector)
            return share[:, None] * (moved if vector is None else moved @ vector.T)

        gain = jnp.moveaxis(_rows.lead(gain, 3), 1, 0)
        return _total(one, x.size, self.means, share.T, gain, vectors)


def _scaled(left: jax.Array, covariances: jax.Array) -> jax.Array:
    """left_k C_k, [K, m, d], for covariances in any of their three forms."""
    if covariances.ndim == 3:
        return left @ covariances
    return left * covariances.reshape(len(covariances), 1, -1)


def _each(function: Callable, entries: int, *components: Any) -> jax.Array:
    """The function of every component, stacked: all at once where that fits, else in turns."""
    count = max(1, _ENTRIES // max(entries, 1))
    if count >= len(components[0]):
        return jax.vmap(function)(*components)
    return jax.lax.map(lambda arguments: function(*arguments), components, batch_size=count)


def _total(function: Callable, entries: int, *components: Any) -> jax.Array:
    """The sum of the function over components, without keeping its terms where they would not fit."""
    number = len(components[0])
    if entries * number <= _ENTRIES:
        return jnp.sum(jax.vmap(function)(*components), axis=0)

    def term(k: Any) -> jax.Array:
        return function(*jax.tree.map(lambda leaf: leaf[k], components))

    return jax.lax.fori_loop(1, number, lambda k, total: total + term(k), term(0))


@exactly
def _mixture_denoiser(
    options: Static,
    mixture: GaussianMixture,
    schedule: Schedule,
    values: jax.Array,
    vectors: jax.Array | None,
    x_t: jax.Array,
    t: Any,
) -> Any:
    size = mixture.means.shape[1]
    if x_t.ndim < 2 or x_t[0].size != size:
        raise ValueError(
            f"x_t: expected shape [B, {size}] or rows of {size} entries, got {x_t.shape}"
        )
    rows = x_t.reshape(len(x_t), size)
    alpha, sigma, _ = (_rows.lead(value, 2) for value in level(schedule, t, rows))  # [B or 1, 1]
    late = alpha[..., None] ** 2 * values[None] + sigma[..., None] ** 2
    share = jax.nn.softmax(mixture._joint(rows, late, vectors, alpha), axis=-1)
    gain = alpha[..., None] * values[None] / late
    x_0 = share @ mixture.means + mixture._pull(rows, share, gain, vectors, alpha)
    mean = x_0.reshape(x_t.shape).astype(x_t.dtype)
    if not options.value:
        return mean

    def second(
        m: jax.Array, share: jax.Array, value: jax.Array, late: jax.Array, vector: jax.Array | None
    ) -> Any:
        """r_k (Var of component k + (its mean - x_0)^2), with C_k sigma^2 / (alpha^2 C_k + sigma^2) for the first."""
        centred = rows - alpha * m[None]
        gain, kept = (
            alpha * value[None] / late,
            jnp.broadcast_to(sigma**2 * value[None] / late, rows.shape),
        )
        shift = gain * (centred if vector is None else centred @ vector)
        shift, kept = (shift, kept) if vector is None else (shift @ vector.T, kept @ (vector**2).T)
        return share[:, None] * (kept + (m[None] + shift - x_0) ** 2)

    spread = _total(
        second, rows.size, mixture.means, share.T, values, jnp.moveaxis(late, 1, 0), vectors
    )
    return Denoised(mean, variance=spread.reshape(x_t.shape).astype(x_t.dtype))


def _may_be_covariance(matrices: np.ndarray) -> np.ndarray:
    """Which matrices, [..., d, d], are symmetric but for rounding, with a diagonal of at least 0."""
    diagonal = np.diagonal(matrices, axis1=-2, axis2=-1)
    odd = np.abs(matrices - np.swapaxes(matrices, -2, -1)).max((-2, -1))
    return (diagonal.min(-1) >= 0) & (odd <= 1e-3 * diagonal.max(-1))


def gaussian(mean: jax.Array, covariance: jax.Array) -> GaussianMixture:
    """Return one normal distribution, as a mixture of one component.

    Args:
      mean: [d].
      covariance: [d, d], [d] (its diagonal) or [] (a multiple of the identity).
    Returns:
      A GaussianMixture with K = 1.
    Raises:
      ValueError: shapes do not fit, or covariance is known and none.
    """
    mean = jnp.asarray(mean)
    return GaussianMixture(jnp.zeros(1, mean.dtype), mean[None], jnp.asarray(covariance)[None])


def empirical(points: jax.Array, bandwidth: Any) -> GaussianMixture:
    """Return the kernel density of a data set: the model that has learnt its data by heart.

        p(x) = 1/N sum_i N(x; x_i, bandwidth^2 I)

    Args:
      points: data, [N, *D], floating; its denoiser works on states [B, *D].
      bandwidth: standard deviation of the kernel, [], traced.
    Returns:
      A GaussianMixture of N components in prod(D) dimensions.
    Raises:
      ValueError: bandwidth is not positive.
      TypeError: points are not floating.
    Source: Parzen 1962, Ann. Math. Stat. 33(3); as a denoiser: Karras et al. 2022,
    arXiv:2206.00364, Appendix B.3.
    """
    _checks.floating("points", points)
    _checks.values("bandwidth", bandwidth, "a positive standard deviation", lambda v: v > 0)
    if len(points) < 1:
        raise ValueError(f"points: expected at least one example, got shape {points.shape}")
    flat = points.reshape(len(points), -1)
    squared = jnp.broadcast_to(jnp.asarray(bandwidth, flat.dtype) ** 2, len(flat))
    return GaussianMixture(jnp.zeros(len(flat), flat.dtype), flat, squared)
