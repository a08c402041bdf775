"""The problems of the MCGdiff benchmark, in closed form and without any [d, d] matrix.

Source: Cardoso et al. 2023, arXiv:2308.07983, Section 4.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import jaxdiff as jd


class Problem(NamedTuple):
    """A mixture of unit normals, and an observation of one draw.

    p(x) = sum_k w_k N(x; m_k, I),   y = A x + noise_std n
    """

    log_weights: np.ndarray
    means: np.ndarray
    A: np.ndarray
    y: np.ndarray
    noise_std: float

    @property
    def sigma_max(self) -> float:
        """A noise level so large that the data look like a point beside it."""
        return float(5 * np.max(np.linalg.norm(self.means, axis=1)))

    @property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Exact mean [d], and B [K, d], whose rows are sqrt(w_k) (m_k - mean): C = I + B^T B."""
        weights = np.exp(self.log_weights)
        mean = weights @ self.means
        return mean, np.sqrt(weights)[:, None] * (self.means - mean)

    @property
    def std(self) -> float:
        """Root mean square standard deviation of an entry of the data."""
        return float(np.sqrt(1 + np.sum(self.moments[1] ** 2) / self.means.shape[1]))


def make_problem(seed: int, d: int, d_y: int) -> Problem:
    """Draw one problem as the paper does; the weights of the mixture are drawn too."""
    random = np.random.default_rng([seed, d, d_y])
    grid = [(8.0 * i, 8.0 * j) for i in range(-2, 3) for j in range(-2, 3)]
    means, weights = np.tile(grid, (1, d // 2)), random.normal(size=len(grid)) ** 2
    weights /= weights.sum()
    left = np.linalg.qr(random.normal(size=(d_y, d_y)))[0]
    right = np.linalg.qr(random.normal(size=(d, d_y)))[0]
    gain = np.sort(random.uniform(size=d_y))[::-1]
    A, noise_std = left * gain @ right.T, float(random.uniform() * gain[0])
    x = means[random.choice(len(means), p=weights)] + random.normal(size=d)
    y = A @ x + noise_std * random.normal(size=d_y)
    return Problem(np.log(weights), means, A, y, noise_std)


def _joint(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """log w_k + log p(y | k), [K], and the Kalman gain [d, d_y], the same for all components."""
    A, variance = problem.A, problem.A @ problem.A.T + problem.noise_std**2 * np.eye(len(problem.y))
    residual = problem.y - problem.means @ A.T
    squared = np.sum(residual * np.linalg.solve(variance, residual.T).T, axis=1)
    constant = np.linalg.slogdet(2 * np.pi * variance)[1]
    return problem.log_weights - (squared + constant) / 2, np.linalg.solve(variance, A).T


def log_evidence(problem: Problem) -> float:
    """Exact log p(y), in nats."""
    return float(np.logaddexp.reduce(_joint(problem)[0]))


def exact_samples(seed: Any, problem: Problem, num: int) -> np.ndarray:
    """Draw exact posterior samples, [num, d], by Matheron's rule.

        x + K (y - A x - noise_std n),   x a draw of its component's prior, K the Kalman gain

    The component is drawn by its posterior weight. The rule does not need a [d, d] matrix.
    """
    random = np.random.default_rng(seed)
    joint, gain = _joint(problem)
    component = random.choice(len(joint), size=num, p=np.exp(joint - np.logaddexp.reduce(joint)))
    x = problem.means[component] + random.normal(size=(num, problem.means.shape[1]))
    seen = x @ problem.A.T + problem.noise_std * random.normal(size=(num, len(problem.y)))
    return x + (problem.y - seen) @ gain.T


def make_denoiser(problem: Problem, schedule: jd.Schedule, dtype: Any = jnp.float32) -> Partial:
    """Make the exact denoiser for components of unit covariance, by two matrix products."""
    centre = problem.moments[0]
    arrays = (problem.log_weights, problem.means - centre, centre)
    return Partial(_denoise, *(jnp.asarray(array, dtype) for array in arrays), schedule)


def _denoise(
    log_weights: jax.Array,
    centred: jax.Array,
    centre: jax.Array,
    schedule: jd.Schedule,
    x: jax.Array,
    t: Any,
) -> jax.Array:
    alpha, sigma = (jnp.reshape(v, (-1, 1)).astype(x.dtype) for v in schedule.alpha_sigma(t))
    total = alpha**2 + sigma**2
    # |x|^2 is the same for all components. It is left out, because in float32 it would hide the
    # differences between them.
    moved = x - alpha * centre[None]
    squares = jnp.sum(centred**2, axis=1)[None]
    logits = log_weights[None] + alpha / total * (moved @ centred.T - alpha * squares / 2)
    pull = alpha / total
    return (
        centre[None] + pull * moved + (1 - alpha * pull) * jax.nn.softmax(logits, axis=1) @ centred
    )
