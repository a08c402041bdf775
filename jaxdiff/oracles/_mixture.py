"""Mixtures of normal distributions, with one normal and the kernel density as special cases."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jaxdiff import _checks, _rows
from jaxdiff._functions import exactly
from jaxdiff._tree import brief, put, pytree, static
from jaxdiff.forward import level
from jaxdiff.prediction import Denoised
from jaxdiff.schedules import Schedule

_ENTRIES = 2**24  # rows x components x dimensions at once; with more, components go one by one


class Spectrum(NamedTuple):
    """Symmetric matrices by their eigenvalues, [(B,) K, d | 1], and eigenvectors, [K, d, d].

    The eigenvectors are columns; None stands for the axes.
    """

    values: jax.Array
    vectors: jax.Array | None


@pytree
class GaussianMixture:
    """A mixture of K normal distributions in d dimensions.

        p(x) = sum_k w_k N(x; m_k, C_k)

    Fields:
      log_weights: log w_k up to a constant, [K]. Every method normalises them.
      means: [K, d].
      covariances: [K, d, d], symmetric positive semi-definite; or [K, d], their diagonals; or [K],
        multiples of the identity. The last two never make a [d, d] matrix.
    Raises:
      TypeError: a field is not a floating array.
      ValueError: shapes do not fit, or known values are not those of a mixture.
    """

    log_weights: jax.Array
    means: jax.Array
    covariances: jax.Array

    def __post_init__(self) -> None:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in fields.items():
            _checks.floating(name, value)
        put(self, **{name: jnp.asarray(value) for name, value in fields.items()})
        weights, means, covariances = (value.shape for value in fields.values())
        # vmap returns a batch of mixtures, with leading axes.
        if (
            len(means) < 2
            or weights != means[:-1]
            or covariances not in ((*means, means[-1]), means, weights)
        ):
            raise ValueError(
                "log_weights, means, covariances: expected shapes [K], [K, d], and [K, d, d], "
                f"[K, d] or [K], got {weights}, {means}, {covariances}"
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
                    "covariances: expected symmetric matrices with variances of at least 0, "
                    f"got {wrong[0].tolist()}"
                )

    @exactly
    def log_prob(self, x: jax.Array) -> jax.Array:
        """Return log p(x) in nats, [...], for x [..., d]."""
        mixture, rows = self._matched(x)
        joint = mixture._joint(rows, mixture._spectrum(), 1.0)
        return logsumexp(joint, axis=-1).reshape(jnp.shape(x)[:-1])

    @exactly
    def score(self, x: jax.Array) -> jax.Array:
        """Return grad_x log p(x) = -sum_k p(k | x) C_k^-1 (x - m_k), [..., d], for x [..., d]."""
        mixture, rows = self._matched(x)
        values, vectors = spectrum = mixture._spectrum()
        responsibility = jax.nn.softmax(mixture._joint(rows, spectrum, 1.0), axis=-1)
        pull = mixture._pull(rows, responsibility, Spectrum(-1 / values, vectors), 1.0)
        return pull.reshape(jnp.shape(x))

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
            # One component at a time: a matrix for each draw may not fit into memory.
            def rotate(k: Any, rotated: jax.Array) -> jax.Array:
                return jnp.where((component == k)[..., None], noise @ vectors[k].T, rotated)

            noise = jax.lax.fori_loop(0, len(vectors), rotate, noise)
        return self.means[component] + noise

    def diffuse(self, schedule: Schedule, t: Any) -> "GaussianMixture":
        """Return the law of x_t at one t []: components N(alpha m_k, alpha^2 C_k + sigma^2 I)."""
        if jnp.ndim(t) != 0:
            raise ValueError(f"t: expected one time, shape (), got {jnp.shape(t)}")
        alpha, sigma = (value.astype(self.means.dtype) for value in schedule.alpha_sigma(t))
        noise = sigma**2
        if self.covariances.ndim > self.means.ndim:
            noise = noise * jnp.eye(self.means.shape[-1], dtype=self.means.dtype)[None]
        return GaussianMixture(
            self.log_weights, alpha * self.means, alpha**2 * self.covariances + noise
        )

    def denoiser(self, schedule: Schedule, *, variance: bool = False) -> "MixtureDenoiser":
        """Return the exact denoiser: (x_t [B, *D], t [] or [B]) -> E[x_0 | x_t], d = prod(D).

            sum_k r_k(x_t) (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (x_t - alpha m_k))

        With variance it returns a `Denoised` with the diagonal of Cov[x_0 | x_t], which the optimal
        reverse variance needs.
        """
        return MixtureDenoiser(self, schedule, variance)

    @exactly
    def denoised_covariance(self, schedule: Schedule, x_t: jax.Array, t: Any) -> jax.Array:
        """Return Cov[x_0 | x_t], [B, d, d], for x_t [B, d]: within and between the components."""
        alpha, sigma, _ = _cast(level(schedule, t, x_t), self.means.dtype)
        eye = jnp.eye(self.means.shape[-1], dtype=self.means.dtype)

        def one(x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
            given = self.posterior(alpha * eye, x, sigma**2 * eye)
            weights = jax.nn.softmax(given.log_weights)
            centred = given.means - (weights @ given.means)[None]
            return jnp.einsum(
                "k,kij->ij", weights, given.covariances + centred[:, :, None] * centred[:, None, :]
            )

        size = x_t.shape[:1]
        return jax.vmap(one)(x_t, *(jnp.broadcast_to(v.reshape(-1), size) for v in (alpha, sigma)))

    @exactly
    def posterior(
        self, A: jax.Array, y: jax.Array, noise_covariance: jax.Array
    ) -> "GaussianMixture":
        """Return p(x | y) for y = A x + noise. It is a mixture again.

        Args:
          A: [m, d].
          y: observation, [m].
          noise_covariance: [m, m], positive definite.
        Returns:
          GaussianMixture with weights w_k N(y; A m_k, A C_k A^T + noise_covariance), not
          normalised, and full covariances.
        Source: the Kalman update of each component.
        """
        evidence, crossed = self._observed(A, noise_covariance)
        A, y, noise_covariance = (
            jnp.asarray(value, self.means.dtype) for value in (A, y, noise_covariance)
        )
        if jnp.shape(y) != (A.shape[0],):
            raise ValueError(f"y: expected shape ({A.shape[0]},), got {jnp.shape(y)}")
        gain = jnp.linalg.solve(evidence.covariances, crossed).mT  # [K, d, m]
        means = self.means + jnp.einsum("kdm,km->kd", gain, y[None] - evidence.means)
        # The Joseph form keeps covariances symmetric and positive semi-definite in float32.
        left = jnp.eye(A.shape[1], dtype=A.dtype)[None] - gain @ A
        covariances = _scaled(left, self.covariances) @ left.mT + gain @ noise_covariance @ gain.mT
        log_weights = evidence._joint(y[None], evidence._spectrum(), 1.0)[0]
        return GaussianMixture(log_weights, means, covariances)

    @exactly
    def log_evidence(self, A: jax.Array, y: jax.Array, noise_covariance: jax.Array) -> jax.Array:
        """Return log p(y), [], in nats, for y = A x + noise. Arguments as in `posterior`."""
        return self._observed(A, noise_covariance)[0].log_prob(y)

    def _observed(
        self, A: jax.Array, noise_covariance: jax.Array
    ) -> tuple["GaussianMixture", jax.Array]:
        """The law of y, and Cov[y, x] of each component, [K, m, d]."""
        size, shapes = self.means.shape[1], [jnp.shape(A), jnp.shape(noise_covariance)]
        if len(shapes[0]) != 2 or shapes != [(shapes[0][0], size), (shapes[0][0],) * 2]:
            raise ValueError(
                f"A, noise_covariance: expected shapes [m, {size}], [m, m], got {shapes}"
            )
        A, noise_covariance = (jnp.asarray(v, self.means.dtype) for v in (A, noise_covariance))
        crossed = _scaled(jnp.broadcast_to(A, (len(self.means), *A.shape)), self.covariances)
        covariances = crossed @ A.T + noise_covariance[None]
        return GaussianMixture(self.log_weights, self.means @ A.T, covariances), crossed

    def _spectrum(self) -> Spectrum:
        """The spectrum of the covariances, with eigenvalues [K, d] or [K, 1]."""
        if self.covariances.ndim > self.means.ndim:
            values, vectors = jnp.linalg.eigh(self.covariances)
            return Spectrum(jnp.maximum(values, 0), vectors)
        diagonal = self.covariances.ndim == self.means.ndim
        values = self.covariances if diagonal else self.covariances[..., None]
        return Spectrum(jnp.maximum(values, 0), None)

    def _matched(self, x: jax.Array) -> tuple["GaussianMixture", jax.Array]:
        """The mixture and the rows of x, [N, d], in one dtype."""
        size = self.means.shape[-1]
        if jnp.shape(x)[-1:] != (size,):
            raise ValueError(f"x: expected shape [..., {size}], got {jnp.shape(x)}")
        rows = jnp.reshape(jnp.asarray(x), (-1, size))
        dtype = _rows.wider(self.means.dtype, rows.dtype)
        return _cast(self, dtype), rows.astype(dtype)

    def _joint(self, x: jax.Array, covariance: Spectrum, alpha: Any) -> jax.Array:
        """log w_k + log N(x; alpha m_k, covariance_k), [B, K], of x [B, d]."""

        def log_normal(component: tuple) -> jax.Array:
            mean, value, vector = component
            centred = x - alpha * mean[None]
            centred = centred if vector is None else centred @ vector
            value = jnp.broadcast_to(value, centred.shape)
            return -0.5 * jnp.sum(centred**2 / value + jnp.log(2 * jnp.pi * value), axis=1)

        values = jnp.moveaxis(_rows.lead(covariance.values, 3), 1, 0)
        stacked = _each(log_normal, x.size, (self.means, values, covariance.vectors))
        return _rows.lead(jax.nn.log_softmax(self.log_weights), 2) + stacked.T

    def _pull(
        self, x: jax.Array, responsibility: jax.Array, gain: Spectrum, alpha: Any
    ) -> jax.Array:
        """sum_k r_k G_k (x - alpha m_k), [B, d], of responsibilities [B, K] and matrices G_k."""

        def one(component: tuple) -> jax.Array:
            mean, r, value, vector = component
            centred = x - alpha * mean[None]
            moved = value * (centred if vector is None else centred @ vector)
            return r[:, None] * (moved if vector is None else moved @ vector.T)

        values = jnp.moveaxis(_rows.lead(gain.values, 3), 1, 0)
        return _total(one, x.size, (self.means, responsibility.T, values, gain.vectors))


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _scaled(left: jax.Array, covariances: jax.Array) -> jax.Array:
    """left_k C_k, [K, m, d], for covariances in any of their three forms."""
    if covariances.ndim == 3:
        return left @ covariances
    return left * covariances.reshape(len(covariances), 1, -1)


def _each(function: Callable, entries: int, components: tuple) -> jax.Array:
    """The function of every component, stacked: all at once if they fit, else some at a time."""
    count = max(1, _ENTRIES // max(entries, 1))
    if count >= len(components[0]):
        return jax.vmap(function)(components)
    return jax.lax.map(function, components, batch_size=count)


def _total(function: Callable, entries: int, components: tuple) -> jax.Array:
    """The sum of the function over components: all terms at once if they fit, else one by one."""
    number = len(components[0])
    if entries * number <= _ENTRIES:
        return jnp.sum(jax.vmap(function)(components), axis=0)

    def term(k: Any) -> jax.Array:
        return function(jax.tree.map(lambda leaf: leaf[k], components))

    return jax.lax.fori_loop(1, number, lambda k, total: total + term(k), term(0))


@pytree
class MixtureDenoiser:
    """The exact denoiser of a mixture. One eigendecomposition serves every t.

    Fields:
      mixture: the law of the data.
      schedule: the noise schedule.
      variance: whether to return the diagonal of Cov[x_0 | x_t] too.
      spectrum: eigenvalues and eigenvectors of the mixture's covariances.
    """

    mixture: GaussianMixture
    schedule: Schedule
    variance: bool = static(default=False)
    spectrum: Spectrum = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        put(self, spectrum=self.mixture._spectrum())

    def short_name(self) -> str:
        """The mixture's denoiser in a word."""
        return f"mixture of {self.mixture.means.shape[-2]}"

    def __repr__(self) -> str:
        count, size = self.mixture.means.shape[-2:]
        return f"MixtureDenoiser(K={count}, d={size}, schedule={brief(self.schedule)})"

    @exactly
    def __call__(self, x_t: jax.Array, t: Any) -> Any:
        """Return E[x_0 | x_t], [B, *D], or a `Denoised` with the variance."""
        size = self.mixture.means.shape[1]
        if x_t.ndim < 2 or x_t[0].size != size:
            raise ValueError(
                f"x_t: expected shape [B, {size}] or rows of {size} entries, got {x_t.shape}"
            )
        mixture, rows = self.mixture._matched(x_t.reshape(len(x_t), size))
        values, vectors = _cast(self.spectrum, rows.dtype)
        # [B or 1, 1] each
        alpha, sigma, _ = (_rows.lead(value, 2) for value in level(self.schedule, t, rows))
        values_t = alpha[..., None] ** 2 * values[None] + sigma[..., None] ** 2
        joint = mixture._joint(rows, Spectrum(values_t, vectors), alpha)
        responsibility = jax.nn.softmax(joint, axis=-1)
        gain = Spectrum(alpha[..., None] * values[None] / values_t, vectors)
        x_0 = responsibility @ mixture.means + mixture._pull(rows, responsibility, gain, alpha)
        mean = x_0.reshape(x_t.shape).astype(x_t.dtype)
        if not self.variance:
            return mean

        def second(component: tuple) -> jax.Array:
            """r_k (v_k + (m_k - x_0)^2), with component k's variance and mean of x_0 given x_t."""
            m, r, value, value_t, vector = component
            centred = rows - alpha * m[None]
            gain, kept = (
                alpha * value[None] / value_t,
                jnp.broadcast_to(sigma**2 * value[None] / value_t, rows.shape),
            )
            shift = gain * (centred if vector is None else centred @ vector)
            if vector is not None:
                shift, kept = shift @ vector.T, kept @ (vector**2).T
            return r[:, None] * (kept + (m[None] + shift - x_0) ** 2)

        components = mixture.means, responsibility.T, values, jnp.moveaxis(values_t, 1, 0), vectors
        total = _total(second, rows.size, components)
        return Denoised(mean, variance=total.reshape(x_t.shape).astype(x_t.dtype))


def _may_be_covariance(matrices: np.ndarray) -> np.ndarray:
    """Which matrices, [..., d, d], are symmetric up to rounding, with a diagonal of at least 0."""
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
      ValueError: shapes do not fit, or covariance is known and not a covariance.
    """
    mean = jnp.asarray(mean)
    return GaussianMixture(jnp.zeros(1, mean.dtype), mean[None], jnp.asarray(covariance)[None])


def empirical(points: jax.Array, bandwidth: Any) -> GaussianMixture:
    """Return the kernel density of a data set: a model that has memorised its data.

        p(x) = 1/N sum_i N(x; x_i, bandwidth^2 I)

    Args:
      points: data, [N, *D], floating. The denoiser takes states [B, *D].
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
