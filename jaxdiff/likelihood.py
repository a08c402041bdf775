"""Log-probability of a model: bounds and estimates of log p(x_0), in nats unless a name says bits.

There are two models of the data, and no function mixes them up. The probability of a `Chain` is an
integral over paths. The density of the probability-flow ODE comes from a change of variables. The
bound in continuous time is the limit of a chain's bound.

    vlb_terms                costs: terms of the negative bound, each at its own noise
    elbo                     a lower bound of log p: the mean log weight of forward paths
    importance_log_prob      a tighter lower bound: the log of the mean weight
    continuous_lower_bound   a lower bound: minus the cost `losses.continuous_elbo`
    ode_log_prob             log-density of the probability-flow ODE
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jaxdiff import _checks, _rows, losses
from jaxdiff._tree import as_function
from jaxdiff.chain import Chain, diffusing, log_ends, prior_kl
from jaxdiff.decoders import Decoder
from jaxdiff.flow_density import density
from jaxdiff.forward import q_posterior, q_sample
from jaxdiff.sampling import run
from jaxdiff.schedules import Schedule


def vlb_terms(key: jax.Array, chain: Chain, x_0: jax.Array) -> jax.Array:
    """Estimate the terms of the negative variational bound, each at its own noise.

        L_T = KL(q(x_T | x_0) || p(x_T))
        L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
        L_0 = -log p(x_0 | x_1),   E[sum of the terms] >= -log p_theta(x_0)

    Args:
      key: typed PRNG key, or one a row [B].
      chain: the model.
      x_0: data, [B, *D], floating.
    Returns:
      [num_terms, B] costs in nats, in the order of the reverse process: the prior's term first, the
      decoder's last. Each term takes one call of the denoiser. The prior's term takes none, and nor
      does the decoder's where the grid ends with noise left. With nearly exact reverse steps `elbo`
      varies less, because the errors of the terms cancel along a path.
    Raises:
      TypeError: x_0 has an integer dtype, or key is not a typed key.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eq. (14); Ho et al. 2020,
    arXiv:2006.11239, Eq. (5).
    """
    _check_data(chain, x_0)
    keys = _rows.keys(key, x_0.shape[0])
    ts = chain.times

    def transition(inputs: Any) -> jax.Array:
        n, t, s = inputs
        x_t = q_sample(chain.schedule, x_0, t, _noise(keys, n, x_0))
        return q_posterior(chain.schedule, x_t, x_0, t, s).kl(chain.p_step(x_t, t, s))

    # The decoder comes first, because it checks the data.
    x = q_sample(chain.schedule, x_0, ts[-1], _noise(keys, len(ts) - 1, x_0))
    last = -chain.decoder.log_prob(x_0, chain.p_last(x))
    costs = jax.lax.map(transition, (jnp.arange(len(ts) - 1), ts[:-1], ts[1:]))
    return jnp.concatenate([prior_kl(chain.schedule, x_0, ts[0])[None], costs, last[None]])


def _check_data(chain: Chain, x_0: Any) -> None:
    if not isinstance(chain, Chain):
        raise TypeError(f"chain: expected a Chain, got {type(chain).__name__}")
    _checks.data("x_0", x_0)


def _noise(keys: jax.Array, n: Any, x: jax.Array) -> jax.Array:
    """Noise number n of each row."""
    return _rows.normal(_rows.fold(keys, n), x)


def path_log_weights(key: jax.Array, chain: Chain, x_0: jax.Array) -> jax.Array:
    """Draw one forward path for each example and return its log weight, which is minus the work.

        log w = log p(x_{0:T}) - log q(x_{1:T} | x_0),   x_{1:T} ~ q(. | x_0)

    Args:
      key: typed PRNG key. The path of row i depends on (key, i) alone.
      chain: the model.
      x_0: data, [B, *D], floating.
    Returns:
      [B], in nats. E[log w] is the bound, and E[w] = p_theta(x_0).
    Raises:
      TypeError: x_0 has an integer dtype, or key is not a typed key.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eqs. (9) to (11).
    """
    _check_data(chain, x_0)
    _checks.one_key("key", key)
    key_first, key_rest = jax.random.split(key)
    first = q_sample(
        chain.schedule, x_0, chain.times[-1], _rows.normal(key_first, x_0).astype(x_0.dtype)
    )
    path = run(key_rest, diffusing(chain), first, chain.times[::-1])
    return path.log_weights + log_ends(chain, x_0, first, path.x)


def paths_log_weights(key: jax.Array, chain: Chain, x_0: jax.Array, num_paths: int) -> jax.Array:
    """Draw K independent forward paths for each example and return their log weights.

    The paths are drawn one after the other, so memory does not grow with K.

    Args:
      key: typed PRNG key. Row i depends on (key, i) alone.
      chain: the model.
      x_0: data, [B, *D], floating.
      num_paths: K, static.
    Returns:
      [K, B], in nats, as `path_log_weights` returns them.
    Raises:
      ValueError: num_paths < 1.
    """
    _checks.positive_int("num_paths", num_paths)
    _checks.one_key("key", key)
    return jax.lax.map(lambda k: path_log_weights(k, chain, x_0), jax.random.split(key, num_paths))


def elbo(key: jax.Array, chain: Chain, x_0: jax.Array, *, num_paths: int = 1) -> jax.Array:
    """Estimate the variational lower bound from whole paths.

        1/K sum_k log w_k,   E = log p_theta(x_0) - KL(q(x_{1:T} | x_0) || p_theta(x_{1:T} | x_0))

    Args:
      key: typed PRNG key. Row i depends on (key, i) alone.
      chain: the model.
      x_0: data, [B, *D], floating.
      num_paths: K, static.
    Returns:
      [B], in nats: in expectation a lower bound of log p_theta(x_0).
    Raises:
      ValueError: num_paths < 1.
      TypeError: x_0 has an integer dtype, or key is not a typed key.
    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eqs. (12) and (13).
    """
    return jnp.mean(paths_log_weights(key, chain, x_0, num_paths), axis=0)


def importance_log_prob(
    key: jax.Array, chain: Chain, x_0: jax.Array, *, num_paths: int
) -> jax.Array:
    """Estimate log p_theta(x_0) by importance weights of K forward paths: Jarzynski's equality.

        log 1/K sum_k w_k,   E[w] = p_theta(x_0)

    Args:
      key: typed PRNG key. Row i depends on (key, i) alone.
      chain: the model.
      x_0: data, [B, *D], floating.
      num_paths: K, static.
    Returns:
      [B], in nats: in expectation a lower bound of log p_theta(x_0). It rises to log p_theta(x_0)
      as K grows.
    Raises:
      ValueError: num_paths < 1.
      TypeError: x_0 has an integer dtype, or key is not a typed key.
    Source: Jarzynski 1997, Phys. Rev. Lett. 78, 2690; Burda et al. 2016, arXiv:1509.00519, Eq. (8).
    """
    return logsumexp(paths_log_weights(key, chain, x_0, num_paths), axis=0) - math.log(num_paths)


def continuous_lower_bound(
    key: jax.Array,
    denoiser: Callable,
    schedule: Schedule,
    x_0: jax.Array,
    *,
    decoder: Decoder,
    num_times: int = 1,
) -> jax.Array:
    """Estimate the variational lower bound in continuous time, with evenly spread random times.

        -(prior + reconstruction + 1/n sum_j diffusion(t_j))
        t_j = (u + j / n) mod 1,   u ~ U[0, 1)

    This is minus the cost `losses.continuous_elbo`, averaged over n times: to be maximised.

    Args:
      key: typed PRNG key. Row i depends on (key, i) alone.
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule, with noise left at t = 0.
      x_0: data, [B, *D], floating.
      decoder: p(x_0 | x_{t=0}), as in `losses.continuous_elbo`.
      num_times: n, static: the number of denoiser calls.
    Returns:
      [B], in nats: in expectation a lower bound of log p(x_0).
    Raises:
      ValueError: num_times < 1, or the schedule has no noise at t = 0.
      TypeError: x_0 has an integer dtype, or key is not a typed key.
    Source: Kingma et al. 2021, arXiv:2107.00630, Section 5 and Appendix I.1.
    """
    _checks.positive_int("num_times", num_times)
    _checks.data("x_0", x_0)
    keys = _rows.keys(key, x_0.shape[0])
    u = losses.uniform_times(_rows.fold(keys, num_times), x_0.shape[0])

    def cost(j: Any) -> jax.Array:
        row_keys = _rows.fold(keys, j)
        t = jnp.mod(u + (j / num_times).astype(u.dtype), 1)
        terms = losses.continuous_elbo(row_keys, denoiser, schedule, x_0, decoder=decoder, t=t)
        return terms.prior + terms.diffusion + terms.reconstruction

    return -jnp.mean(jax.lax.map(cost, jnp.arange(num_times)), axis=0)


def ode_log_prob(
    denoiser: Callable,
    schedule: Schedule,
    ts: jax.Array,
    x_0: jax.Array,
    *,
    key: jax.Array | None = None,
    num_probes: int = 0,
    probe: str = "rademacher",
    tolerance: Any = None,
    log_snr_range: tuple[float, float] = (-20.0, 15.0),
) -> jax.Array:
    """Return the log-density of the probability-flow ODE, by the instantaneous change of variables.

        log p(x_0) = log N(x_T; 0, sigma_T^2 I) + int div dx/dt dt,   from x_0 at ts[-1] to ts[0]

    Each step of the grid is a step of the classical Runge-Kutta method of order 4 in lambda. It
    takes four calls of the denoiser.

    Args:
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule.
      ts: the grid, decreasing, [num_steps + 1]. The data are states at ts[-1].
      x_0: states at ts[-1], [B, *D], floating.
      key: typed PRNG key of the probes. The probes of row i depend on (key, i) alone. None with
        num_probes = 0.
      num_probes: 0 for the exact trace, which takes d vector-Jacobian products a call; or the
        number of Hutchinson's probes. A row keeps its probes along the path, so the log-density is
        unbiased up to the error of the solver.
      probe: "rademacher" or "gaussian".
      tolerance: None, or the tolerance of an adaptive solver for each step of the grid (diffrax,
        extra `ode`).
      log_snr_range: the range of log-SNR in which the ODE is solved. Outside, the state is only
        scaled.
    Returns:
      [B], in nats: a density, in the units of x_0.
    Raises:
      ValueError: ts is not a decreasing grid, num_probes < 0, num_probes and key do not go
        together, probe is unknown, log_snr_range is empty, or tolerance is not positive.
      TypeError: x_0 is not floating.
    Numerics: the ODE is solved for x / sqrt(alpha^2 + sigma^2) against lambda / 2. There rates and
      divergences are bounded at both ends. The part outside log_snr_range changes the density by at
      most about exp(-15) / Var[x_0].
    Source: Song et al. 2021, arXiv:2011.13456, Section 4.3 and Appendix D.2; Grathwohl et al. 2019,
    arXiv:1810.01367.
    """
    _checks.grid("ts", ts)
    _checks.data("x_0", x_0)
    _checks.choice("probe", probe, ("rademacher", "gaussian"))
    _checks.values("log_snr_range", np.array(log_snr_range), "low < high", lambda v: np.diff(v) > 0)
    if tolerance is not None:
        _checks.values("tolerance", tolerance, "a positive tolerance", lambda v: v > 0)
    if num_probes < 0 or (num_probes > 0) != (key is not None):
        raise ValueError(
            "num_probes, key: expected a key with probes and no key without, "
            f"got {num_probes} and {key}"
        )
    probes = None if key is None else _probes(key, probe, num_probes, x_0)
    return density(
        as_function("denoiser", denoiser),
        schedule,
        jnp.asarray(ts),
        x_0,
        probes=probes,
        tolerance=tolerance,
        log_snr_range=log_snr_range,
    )


def _probes(key: jax.Array, kind: str, num_probes: int, x_0: jax.Array) -> jax.Array:
    """Vectors v with E[v v^T] = I, [B, num_probes, *D]."""
    keys = _rows.keys(key, x_0.shape[0])
    draw = jax.random.rademacher if kind == "rademacher" else jax.random.normal
    dtype = _rows.state_dtype(x_0.dtype)
    return jax.vmap(lambda k: draw(k, (num_probes, *x_0.shape[1:])).astype(dtype))(keys)


def bits_per_dim(log_prob: Any, event_size: int, *, bin_width: float | None = None) -> jax.Array:
    """Turn log-probabilities into bits per dimension.

        -log P / (d log 2),   log P = log p + d log(bin_width) where log_prob is of a density

    Args:
      log_prob: in nats, of any shape. Either a log-probability of discrete data, or a log-density
        of data that `decoders.uniform_dequantise` has spread over their bins.
      event_size: d, the number of dimensions.
      bin_width: None for discrete data, or the width of a bin in the units of the density:
        2 / (num_levels - 1) for data in [-1, 1].
    Returns:
      Bits per dimension, of log_prob's shape.
    Raises:
      ValueError: event_size < 1, or bin_width is not positive.
    Source: Theis et al. 2016, arXiv:1511.01844, Section 3.1.
    """
    _checks.positive_int("event_size", event_size)
    nats = jnp.asarray(log_prob)
    if bin_width is not None:
        _checks.values("bin_width", bin_width, "a positive width", lambda v: v > 0)
        nats = nats + event_size * math.log(bin_width)
    return -nats / (event_size * math.log(2))
