"""Closed-form diffusion models: exact densities, scores, denoisers and posteriors to hold every algorithm against."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._functions import exactly
from jaxdiff.forward import level
from jaxdiff.schedules import Schedule


@partial(jax.tree_util.register_dataclass, data_fields=["log_weights", "means", "covariances"], meta_fields=[])
@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of K normal distributions in d dimensions; K = 1 is the correlated Gaussian.

        p(x) = sum_k w_k N(x; m_k, C_k)

    Fields:
      log_weights: [K]; normalised by every method, so log w_k + const will do.
      means: [K, d].
      covariances: [K, d, d], symmetric positive semi-definite.
    """

    log_weights: jax.Array
    means: jax.Array
    covariances: jax.Array

    def __post_init__(self) -> None:
        fields = (self.log_weights, self.means, self.covariances)
        if any(isinstance(field, list | tuple) for field in fields):
            raise TypeError("log_weights, means, covariances: expected arrays, got a list")
        if not all(isinstance(field, jax.Array | np.ndarray) for field in fields):
            return  # a placeholder of a tree transformation
        for name, field in zip(("log_weights", "means", "covariances"), fields, strict=True):
            _checks.floating(name, field)
        shapes = [field.shape for field in fields]
        # Leading axes make a batch of mixtures, such as vmap returns.
        if len(shapes[1]) < 2 or shapes[0] != shapes[1][:-1] or shapes[2] != (*shapes[1], shapes[1][-1]):
            raise ValueError(f"log_weights, means, covariances: expected shapes [K], [K, d], [K, d, d], got {shapes}")

    @exactly
    def log_prob(self, x: jax.Array) -> jax.Array:
        """Return log p(x) in nats, [...], for x [..., d]."""
        return logsumexp(self._joint_log_prob(x, *self._spectrum()), axis=-1)

    @exactly
    def score(self, x: jax.Array) -> jax.Array:
        """Return grad_x log p(x), [..., d], for x [..., d]: the responsible components' pull, -C_k^-1 (x - m_k)."""
        values, vectors = self._spectrum()
        responsibility = jax.nn.softmax(self._joint_log_prob(x, values, vectors), axis=-1)
        centred = self._rotate(x, vectors) / _rows.lead(values, jnp.ndim(x) + 1)
        return -jnp.einsum("...k,...ki,kji->...j", responsibility, centred, vectors)

    @exactly
    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Return independent draws, [*shape, d]."""
        _checks.key("key", key)
        key_component, key_noise = jax.random.split(key)
        component = jax.random.categorical(key_component, self.log_weights, shape=shape)
        values, vectors = self._spectrum()
        noise = jax.random.normal(key_noise, (*shape, self.means.shape[-1]), self.means.dtype)
        return self.means[component] + jnp.einsum(
            "...ij,...j->...i", vectors[component], jnp.sqrt(values[component]) * noise
        )

    def diffuse(self, schedule: Schedule, t: Any) -> "GaussianMixture":
        """Return the marginal of x_t at one time t []: components N(alpha m_k, alpha^2 C_k + sigma^2 I)."""
        if jnp.ndim(t) != 0:
            raise ValueError(f"t: expected one time, shape (), got {jnp.shape(t)}")
        alpha, sigma = (value.astype(self.means.dtype) for value in schedule.alpha_sigma(t))
        noise = sigma**2 * jnp.eye(self.means.shape[-1], dtype=self.means.dtype)
        return GaussianMixture(self.log_weights, alpha * self.means, alpha**2 * self.covariances + noise[None])

    def denoiser(self, schedule: Schedule) -> Partial:
        """Return the exact E[x_0 | x_t] as a denoiser: (x_t [B, d], t [] or [B]) -> [B, d].

            sum_k r_k(x_t) (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (x_t - alpha m_k))

        One eigendecomposition serves every t, since noise adds a multiple of the identity.
        """
        return Partial(_mixture_denoiser, self, schedule, *self._spectrum())

    @exactly
    def posterior(self, A: jax.Array, y: jax.Array, noise_covariance: jax.Array) -> "GaussianMixture":
        """Return p(x | y) for y = A x + noise: again a mixture.

        Args:
          A: [m, d].
          y: observation, [m].
          noise_covariance: [m, m], positive definite.
        Returns:
          GaussianMixture with log_weights w_k N(y; A m_k, A C_k A^T + noise_covariance), unnormalised.
        Source: the Kalman update, per component.
        """
        evidence = self._observed(A, noise_covariance)
        gain = jnp.linalg.solve(evidence.covariances, A @ self.covariances).mT  # [K, d, m]
        means = self.means + jnp.einsum("kdm,km->kd", gain, y[None] - evidence.means)
        # Joseph's form keeps the covariance symmetric and positive semi-definite in float32.
        left = jnp.eye(A.shape[1], dtype=A.dtype)[None] - gain @ A
        covariances = left @ self.covariances @ left.mT + gain @ noise_covariance @ gain.mT
        log_weights = evidence._joint_log_prob(y, *evidence._spectrum())
        return GaussianMixture(log_weights, means, covariances)

    @exactly
    def log_evidence(self, A: jax.Array, y: jax.Array, noise_covariance: jax.Array) -> jax.Array:
        """Return log p(y), [], in nats, for y = A x + noise; arguments as in `posterior`."""
        return self._observed(A, noise_covariance).log_prob(y)

    def _observed(self, A: jax.Array, noise_covariance: jax.Array) -> "GaussianMixture":
        size = self.means.shape[1]
        if jnp.ndim(A) != 2 or A.shape[1] != size or jnp.shape(noise_covariance) != (A.shape[0], A.shape[0]):
            shapes = [jnp.shape(A), jnp.shape(noise_covariance)]
            raise ValueError(f"A, noise_covariance: expected shapes [m, {size}], [m, m], got {shapes}")
        return GaussianMixture(self.log_weights, self.means @ A.T, A @ self.covariances @ A.T + noise_covariance[None])

    def _spectrum(self) -> tuple[jax.Array, jax.Array]:
        """Eigenvalues [K, d] and eigenvectors [K, d, d] (in columns) of the covariances."""
        values, vectors = jnp.linalg.eigh(self.covariances)
        return jnp.maximum(values, 0), vectors

    def _rotate(self, x: jax.Array, vectors: jax.Array, scale: Any = 1.0) -> jax.Array:
        """Coordinates of x - scale m_k along the eigenvectors of each component, [..., K, d]."""
        means = _rows.lead(self.means, jnp.ndim(x) + 1)
        return jnp.einsum("...kj,kji->...ki", x[..., None, :] - scale * means, vectors)

    def _joint_log_prob(self, x: jax.Array, values: jax.Array, vectors: jax.Array) -> jax.Array:
        """log w_k + log N(x; m_k, C_k), [..., K]."""
        if jnp.shape(x)[-1:] != self.means.shape[-1:]:
            raise ValueError(f"x: expected shape [..., {self.means.shape[-1]}], got {jnp.shape(x)}")
        log_normal = _log_normal(self._rotate(x, vectors), _rows.lead(values, jnp.ndim(x) + 1))
        return _rows.lead(jax.nn.log_softmax(self.log_weights), jnp.ndim(x)) + log_normal


def _log_normal(centred: jax.Array, variances: jax.Array) -> jax.Array:
    """Log density of independent normals, summed over the last axis."""
    return -0.5 * jnp.sum(centred**2 / variances + jnp.log(2 * jnp.pi * variances), axis=-1)


@exactly
def _mixture_denoiser(
    mixture: GaussianMixture, schedule: Schedule, values: jax.Array, vectors: jax.Array, x_t: jax.Array, t: Any
) -> jax.Array:
    if x_t.ndim != 2 or x_t.shape[1] != mixture.means.shape[1]:
        raise ValueError(f"x_t: expected shape [B, {mixture.means.shape[1]}], got {x_t.shape}")
    alpha, sigma, _ = (_rows.lead(value[..., None], 3) for value in level(schedule, t, x_t))  # [B or 1, 1, 1]
    values = _rows.lead(values, 3)
    variances = alpha**2 * values + sigma**2
    centred = mixture._rotate(x_t, vectors, alpha)
    log_weights = _rows.lead(mixture.log_weights, 2)
    responsibility = jax.nn.softmax(log_weights + _log_normal(centred, variances), axis=-1)
    shifts = jnp.einsum("bki,kji->bkj", alpha * values / variances * centred, vectors)
    means = _rows.lead(mixture.means, 3) + shifts
    return jnp.einsum("bk,bkj->bj", responsibility, means).astype(x_t.dtype)
