"""Annealed importance sampling over the latents of a chain, forward and in reverse."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows, moves
from jaxdiff._tree import pytree, static
from jaxdiff.chain import Chain, log_weight_of_path, noises_of_path, path
from jaxdiff.kernels import Kernel
from jaxdiff.kernels._kernel import Algorithm, lift
from jaxdiff.sampling import Samples, run
from jaxdiff.work._bounds import reverse_run


@pytree
class Annealing(Algorithm):
    """Annealed importance sampling over the noises of paths."""

    chain: Chain
    x_0: jax.Array
    step_size: Any = 0.1
    num_leapfrog: int = static(default=5)

    def __post_init__(self) -> None:
        _checks.positive_int("num_leapfrog", self.num_leapfrog)
        _checks.values("step_size", self.step_size, "a positive step", lambda d: d > 0)

    def step(
        self, key: jax.Array, carry: Any, z: jax.Array, t: Any, s: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Weight, then move; on increasing times move, then weight."""
        keys = _rows.keys(key, z.shape[0])
        beta = 1 - jnp.minimum(t, s)  # both directions move at the end nearer to the posterior

        def log_weight(z: jax.Array) -> jax.Array:
            xs = path(self.chain, self.x_0, jnp.moveaxis(z, 1, 0))
            return log_weight_of_path(self.chain, self.x_0, xs)

        def log_density(z: jax.Array) -> jax.Array:
            return beta * log_weight(z) - jnp.sum(z.reshape(z.shape[0], -1) ** 2, axis=1) / 2

        before = log_weight(z)
        moved = moves.hmc(keys, log_density, z, self.step_size, num_leapfrog=self.num_leapfrog).x
        return carry, moved, (t - s) * jnp.where(s < t, before, log_weight(moved))


def annealing(
    chain: Chain, x_0: jax.Array, *, step_size: Any = 0.1, num_leapfrog: int = 5
) -> Kernel:
    """Return the kernel of annealed importance sampling over the latents of a chain.

        f_beta = q(x_{1:T} | x_0)^(1 - beta) p_theta(x_{0:T})^beta,   beta = 1 - t
        increment = (beta_s - beta_t) log w,   then a Hamiltonian move with invariant f_beta_s

    The state is the noises of the paths, [B, N, *D]. In these f_beta is a standard normal times
    w^beta. On times from 1 to 0 the kernel goes from q to the posterior. On times from 0 to 1 it
    is the exact reverse: first the move, then the weight.

    Args:
      chain: the model.
      x_0: data, [B, *D].
      step_size: step of the leapfrog integrator, in units of the noises, [], positive, traced.
      num_leapfrog: number of gradients of log w in a move, static. A gradient takes all T calls of
        the denoiser, in one batch.
    Returns:
      A Kernel without memory.
    Raises:
      ValueError: num_leapfrog < 1, or step_size is known and not positive.
    Source: Neal 2001, Stat. Comput. 11, 125; Neal 2011, arXiv:1206.1901; Grosse et al. 2015,
    arXiv:1511.02543.
    """
    return lift(Annealing(chain, x_0, step_size, num_leapfrog))


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

        L = sum_k (beta_k - beta_{k-1}) log w(z_{k-1}),   E[L] <= log p_theta(x_0),
        E[exp(L)] = p_theta(x_0)

    Args:
      key: typed PRNG key. Row i depends on (key, i) alone.
      chain: the model.
      x_0: data, [B, *D], floating.
      num_temperatures: number of steps of beta from 0 to 1, static. 1 is importance sampling with
        one path.
      step_size: as in `annealing`.
      num_leapfrog: as in `annealing`.
    Returns:
      [B], in nats: in expectation a lower bound, which rises with num_temperatures.
    Raises:
      ValueError: a number is not positive.
      TypeError: x_0 is not floating, or key is not a typed key.
    Source: see `annealing`.
    """
    return ais_run(
        key,
        chain,
        x_0,
        num_temperatures=num_temperatures,
        step_size=step_size,
        num_leapfrog=num_leapfrog,
    ).log_weights


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
    """Return the whole run behind the estimate of `ais`, for instance to count accepted moves.

    Args:
      key: typed PRNG key. Row i depends on (key, i) alone.
      chain: the model.
      x_0: data, [B, *D], floating.
      num_temperatures: as in `ais`.
      step_size: as in `annealing`.
      num_leapfrog: as in `annealing`.
      save_every: as in `sampling.sample`.
    Returns:
      Samples. The states are the noises of the paths, [B, N, *D]. The log weights estimate log
      p_theta(x_0). A rejected move leaves a state as it was.
    Raises:
      ValueError: a number is not positive.
      TypeError: x_0 is not floating, or key is not a typed key.
    Source: see `annealing`.
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
    """Data from the model, [B, *D], and bounds of log p_theta(x_0), [B], in nats."""

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
    """Bound log p_theta from both sides by annealing: `ais`, and its reverse from an exact path.

    Args:
      key: typed PRNG key. Row i depends on (key, i) alone.
      chain: the model.
      shape: shape of the data to simulate, [B, *D].
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
