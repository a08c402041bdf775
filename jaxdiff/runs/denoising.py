"""The denoising error by noise level, beside two denoisers that need no network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff.runs import loading, memory


def denoising_errors(
    run: loading.Run, *, num_times: int, examples: int, seed: int
) -> list[dict[str, float]]:
    """Mean squared error of x_0, by time, with its standard error over examples.

    Two denoisers that need no network stand beside it: the data's mean, and the best linear one,
    which is the exact denoiser of a normal distribution with the data's mean and covariance.
    """
    x_0, label = run.dataset.head("test", examples)
    if run.trained.num_classes is None:
        label = None
    train, _ = run.dataset.head("train", memory.affordable(10_000, run.dataset.event_shape))
    key = jax.random.key(seed)  # of the noise, the same for both
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x_0)))
    linear = best_linear(train)

    @jax.jit
    def errors(
        linear: Any,
        params: Any,
        t: jax.Array,
        key: jax.Array,
        x_0: jax.Array,
        label: jax.Array | None,
    ) -> tuple[jax.Array, ...]:
        network, vectors = (
            run.trained.with_params(params).denoiser(label),
            x_0.reshape(len(x_0), -1),
        )
        pairs = ((network, x_0), (Partial(linear, run.trained.schedule), vectors))
        return tuple(
            jd.losses.denoising_error(key, d, run.trained.schedule, x, t=t) / vectors.shape[1]
            for d, x in pairs
        )

    mean_error = float(np.mean((x_0.reshape(len(x_0), -1) - np.asarray(linear.args[0])) ** 2))
    rows = []
    for t in tqdm(np.linspace(0, 1, num_times + 1)[1:], desc="denoising", unit="time"):
        at = Partial(errors, linear, run.trained.params, jnp.asarray(t, jnp.float32))
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


def best_linear(x_0: np.ndarray, *, ridge: float = 1e-6) -> Partial:
    """The exact denoiser of a normal law with the mean and covariance of examples [N, *D], (schedule, x_t [B, d], t).

        D(x_t) = m + sum_i g(l_i) v_i v_i^T (x_t - alpha m),   g(l) = alpha l / (alpha^2 l + sigma^2)

    The covariance has min(N - 1, d) directions v_i with variance, and of few examples no d x d
    matrix is made: the v_i come of the examples' inner products. In all other directions the
    variance is the ridge, which is added to all.
    """
    flat = x_0.reshape(len(x_0), -1).astype(np.float64)
    mean = flat.mean(0)
    centred = (flat - mean) / np.sqrt(len(flat) - 1)
    few = len(flat) < flat.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    kept = values > 1e-12 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    vectors = centred.T @ vectors / np.sqrt(values) if few else vectors
    return Partial(
        _linear, *(jnp.asarray(v, jnp.float32) for v in (mean, values + ridge, vectors, ridge))
    )


def _linear(
    mean: jax.Array, values: jax.Array, vectors: jax.Array, ridge: jax.Array, schedule: jd.Schedule,
    x_t: jax.Array, t: Any,
) -> jax.Array:  # fmt: skip
    alpha, sigma = schedule.alpha_sigma(t)
    centred = x_t - alpha * mean[None]
    gains, rest = (alpha * v / (alpha**2 * v + sigma**2) for v in (values, ridge))
    return mean[None] + rest * centred + (((gains - rest)[None] * (centred @ vectors)) @ vectors.T)
