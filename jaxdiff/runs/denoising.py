"""The denoising error by noise level, beside two denoisers without a network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff._tree import pytree
from jaxdiff.runs import loading, memory


def denoising_errors(
    run: loading.Run, *, num_times: int, examples: int, seed: int
) -> list[dict[str, float]]:
    """Mean squared error of x_0, by time, with its standard error over examples.

    The table shows two denoisers without a network beside it: the data's mean, and the best linear
    one. The latter is the exact denoiser of a normal distribution with the data's mean and
    covariance.
    """
    x_0, label = run.dataset.head("test", examples)
    if run.trained.num_classes is None:
        label = None
    train, _ = run.dataset.head("train", memory.affordable(10_000, run.dataset.event_shape))
    key = jax.random.key(seed)  # of the noise, the same for both
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x_0)))
    linear = best_linear(train)

    @jax.jit
    def errors(linear: BestLinear, params: Any, t: jax.Array, rows: tuple) -> tuple[jax.Array, ...]:
        key, x_0, label = rows
        network, schedule = run.trained.with_params(params).denoiser(label), run.trained.schedule
        vectors = x_0.reshape(len(x_0), -1)

        def error(denoiser: Any, x: jax.Array) -> jax.Array:
            return jd.losses.denoising_error(key, denoiser, schedule, x, t=t) / vectors.shape[1]

        return error(network, x_0), error(lambda x, t: linear(schedule, x, t), vectors)

    mean_error = float(np.mean((x_0.reshape(len(x_0), -1) - np.asarray(linear.mean)) ** 2))
    rows = []
    for t in tqdm(np.linspace(0, 1, num_times + 1)[1:], desc="denoising", unit="time"):
        time = jnp.asarray(t, jnp.float32)

        def at(*rows: Any, time: jax.Array = time) -> tuple[jax.Array, ...]:
            return errors(linear, run.trained.params, time, rows)

        ours, best = memory.in_chunks(at, run.config.batch_size, keys, x_0, label)
        rows.append(
            {
                "t": float(t),
                "log_snr": float(run.trained.schedule.log_snr(float(t))),
                "x_0_error": float(np.mean(ours)),
                "x_0_error_se": float(np.std(ours) / np.sqrt(len(x_0))),
                "gaussian_error": float(np.mean(best)),
                "mean_error": mean_error,
            }
        )
    return rows


@pytree
class BestLinear:
    """The exact denoiser of a normal distribution.

    Fields:
      mean: its mean, [d].
      values: the variances along the directions, [k].
      vectors: the directions, [d, k].
      ridge: the variance in all other directions.
    """

    mean: jax.Array
    values: jax.Array
    vectors: jax.Array
    ridge: jax.Array

    def __call__(self, schedule: jd.Schedule, x_t: jax.Array, t: Any) -> jax.Array:
        alpha, sigma = schedule.alpha_sigma(t)
        centred = x_t - alpha * self.mean[None]
        gains, rest = (alpha * v / (alpha**2 * v + sigma**2) for v in (self.values, self.ridge))
        along = ((gains - rest)[None] * (centred @ self.vectors)) @ self.vectors.T
        return self.mean[None] + rest * centred + along


def best_linear(x_0: np.ndarray, *, ridge: float = 1e-6) -> BestLinear:
    """Return the exact denoiser of a normal law with the mean and covariance of examples [N, *D].

        D(x_t) = m + sum_i g(l_i) v_i v_i^T (x_t - alpha m)
        g(l) = alpha l / (alpha^2 l + sigma^2)

    The result is a function of (schedule, x_t [B, d], t). The covariance has min(N - 1, d)
    directions v_i with variance. For few examples the v_i come from the inner products of the
    examples, without a d x d matrix. The ridge is added to the variance in every direction.
    """
    flat = x_0.reshape(len(x_0), -1).astype(np.float64)
    mean = flat.mean(0)
    centred = (flat - mean) / np.sqrt(len(flat) - 1)
    few = len(flat) < flat.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    kept = values > 1e-12 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    vectors = centred.T @ vectors / np.sqrt(values) if few else vectors
    moments = (mean, values + ridge, vectors, ridge)
    return BestLinear(*(jnp.asarray(v, jnp.float32) for v in moments))
