"""Annealed importance sampling over a chain's latents, and its mirror image."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _rows, moves
from jaxdiff._functions import Static
from jaxdiff.chain import Chain, log_weight_of_path, noises_of_path, path
from jaxdiff.kernels import Kernel, without_memory
from jaxdiff.sampling import Samples, run
from jaxdiff.work._bounds import reverse_run


def annealing(
    chain: Chain, x_0: jax.Array, *, step_size: Any = 0.1, num_leapfrog: int = 5
) -> Kernel:
    """Return the kernel of annealed importance sampling over a chain's latents, from forward paths to the posterior.

        f_beta = q(x_{1:T} | x_0)^(1 - beta) p_theta(x_{0:T})^beta,   beta = 1 - t
        increment = (beta_s - beta_t) log w,   then a Hamiltonian Monte Carlo move that leaves f_beta_s as it is

    The state is the paths' noises, [B, N, *D], in which f_beta is a standard normal times w^beta.
    Run from t = 1 to 0 it goes from q to the posterior; from 0 to 1 it is the exact mirror image:
    first the move, then the weight.

    Args:
      chain: the model.
      x_0: data, [B, *D].
      step_size: of the leapfrog integrator, in units of the noises, [], positive, traced.
      num_leapfrog: gradients of log w a move, static: each takes all T calls of the denoiser, in
        one batch.
    Returns:
      A Kernel without memory.
    Raises:
      ValueError: num_leapfrog < 1, or step_size is known and not positive.
    Source: Neal 2001, Stat. Comput. 11, 125; Neal 2011, arXiv:1206.1901; Grosse et al. 2015,
    arXiv:1511.02543.
    """
    _checks.positive_int("num_leapfrog", num_leapfrog)
    _checks.values("step_size", step_size, "a positive step", lambda d: d > 0)
    return without_memory(Partial(_anneal, chain, x_0, step_size, Static(num_leapfrog)))


def _anneal(
    chain: Chain, x_0: jax.Array, step_size: Any, num_leapfrog: Static,
    key: jax.Array, carry: Any, z: jax.Array, t: Any, s: Any,
) -> Any:  # fmt: skip
    keys = _rows.keys(key, z.shape[0])
    beta = 1 - jnp.minimum(t, s)  # both directions move at the end that is nearer to the posterior

    def log_weight(z: jax.Array) -> jax.Array:
        return log_weight_of_path(chain, x_0, path(chain, x_0, jnp.moveaxis(z, 1, 0)))

    def log_density(z: jax.Array) -> jax.Array:
        return beta * log_weight(z) - jnp.sum(z.reshape(z.shape[0], -1) ** 2, axis=1) / 2

    upwards = s < t
    before = log_weight(z)
    moved = moves.hmc(keys, log_density, z, step_size, num_leapfrog=num_leapfrog.value).x
    return carry, moved, (t - s) * jnp.where(upwards, before, log_weight(moved))


def ais(
    key: jax.Array,
    chain: Chain,
    x_0: jax.Array,
    *,
    num_temperatures: int,
    step_size: Any = 0.1,
    num_leapfrog: int = 5,
) -> jax.Array:
    """Estimate log p_theta(x_0) by annealed importance sampling over the latents.

        log p_theta(x_0) >= E[sum_k (beta_k - beta_{k-1}) log w(z_{k-1})],   E[exp of the sum] = p_theta(x_0)

    Args:
      key: typed PRNG key; row i depends on (key, i) alone.
      chain: the model.
      x_0: data, [B, *D], floating.
      num_temperatures: steps of beta from 0 to 1, static; 1 is importance sampling with one path.
      step_size: as in `annealing`.
      num_leapfrog: as in `annealing`.
    Returns:
      [B], in nats: a lower bound in expectation, that rises with num_temperatures.
    Raises:
      ValueError: a number is not positive.
      TypeError: x_0 is not floating, or key is no typed key.
    Source: as of `annealing`.
    """
    options = {
        "num_temperatures": num_temperatures,
        "step_size": step_size,
        "num_leapfrog": num_leapfrog,
    }
    return ais_run(key, chain, x_0, **options).log_weights


def ais_run(
    key: jax.Array,
    chain: Chain,
    x_0: jax.Array,
    *,
    num_temperatures: int,
    step_size: Any = 0.1,
    num_leapfrog: int = 5,
    save_every: int | None = None,
) -> Samples:
    """Return the run that `ais` takes its estimate from; a state that is kept twice in a row is a refused move.

    Args:
      key: typed PRNG key; row i depends on (key, i) alone.
      chain: the model.
      x_0: data, [B, *D], floating.
      num_temperatures: as in `ais`.
      step_size: as in `annealing`.
      num_leapfrog: as in `annealing`.
      save_every: as in `sampling.sample`.
    Returns:
      Samples: the states are the paths' noises, [B, N, *D], the log weights the estimate of log
        p_theta(x_0).
    Raises:
      ValueError: a number is not positive.
      TypeError: x_0 is not floating, or key is no typed key.
    Source: as of `annealing`.
    """
    _checks.one_key("key", key)
    _checks.data("x_0", x_0)
    _checks.positive_int("num_temperatures", num_temperatures)
    key_start, key_run = jax.random.split(key)
    shape = (x_0.shape[0], len(chain.times), *x_0.shape[1:])
    z = _rows.normal(key_start, jax.ShapeDtypeStruct(shape, x_0.dtype))
    kernel = annealing(chain, x_0, step_size=step_size, num_leapfrog=num_leapfrog)
    betas = jnp.linspace(1, 0, num_temperatures + 1, dtype=z.dtype)
    return run(key_run, kernel, z, betas, save_every=save_every)


class AisBounds(NamedTuple):
    """Data simulated by the model, [B, *D], and bounds of log p_theta of them, [B], in nats, in expectation."""

    x_0: jax.Array
    lower: jax.Array
    upper: jax.Array


def ais_bounds(
    key: jax.Array,
    chain: Chain,
    shape: tuple[int, ...],
    *,
    num_temperatures: int,
    step_size: Any = 0.1,
    num_leapfrog: int = 5,
) -> AisBounds:
    """Bound log p_theta from both sides by annealing: `ais`, and its mirror image from an exact posterior path.

    Args:
      key: typed PRNG key; row i depends on (key, i) alone.
      chain: the model.
      shape: of the data to be simulated, [B, *D].
      num_temperatures: as in `ais`.
      step_size: as in `annealing`.
      num_leapfrog: as in `annealing`.
    Returns:
      AisBounds.
    Raises:
      ValueError: shape has no batch axis, or a number is not positive.
    Source: Grosse et al. 2015, arXiv:1511.02543, Section 3.
    """
    _checks.positive_int("num_temperatures", num_temperatures)
    _checks.one_key("key", key)
    key_path, key_lower, key_upper = jax.random.split(key, 3)
    x_0, drawn, _ = reverse_run(key_path, chain, shape, save_every=1)
    options = {"step_size": step_size, "num_leapfrog": num_leapfrog}
    lower = ais(key_lower, chain, x_0, num_temperatures=num_temperatures, **options)
    assert drawn.trajectory is not None  # asked for
    z = jnp.moveaxis(noises_of_path(chain, x_0, drawn.trajectory[::-1]), 0, 1)
    betas = jnp.linspace(0, 1, num_temperatures + 1, dtype=z.dtype)
    mirror = run(key_upper, annealing(chain, x_0, **options), z, betas)
    return AisBounds(x_0, lower, -mirror.log_weights)
