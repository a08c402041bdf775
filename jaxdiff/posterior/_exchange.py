"""Replica exchange over the levels of a grid: a Markov chain with the posterior as its law.

It is the dual of `sample` with resampling: there rows are particles and go through the levels one
after the other; here rows are levels, and starts go through them one after the other.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows
from jaxdiff._tree import as_function
from jaxdiff.kernels import Kernel
from jaxdiff.work import bennett_acceptance_ratio


class Exchanged(NamedTuple):
    """What a run of `replica_exchange` leaves, after the warm-up.

    Fields:
      x: states of the lowest level, at ts[-1], [num, *D]. All count alike. Neighbours are alike.
      start: which row of x_init each of them came from, [num], integers. Draws of different starts
        share no part of their paths.
      log_evidence: the sum of Bennett's ratios of all pairs of levels, [], in nats.
      accepted: the share of accepted swaps of each pair, [num_steps].
      forward_work: minus the increment of each proposed step, [num, num_steps].
      reverse_work: the increment of the step that the lower path had, [num, num_steps].
    """

    x: jax.Array
    start: jax.Array
    log_evidence: jax.Array
    accepted: jax.Array
    forward_work: jax.Array
    reverse_work: jax.Array


class Node(NamedTuple):
    """States of paths. In a ladder [K + 1, K + 1, ...]: row k is the path of level k, and its nodes
    0 .. k count.

    Fields:
      carry: what the kernel remembers at the state.
      x: the state.
      increment: log weight of the step that led to it, 0 at a start.
      start: index of the start of the path.
    """

    carry: Any
    x: jax.Array
    increment: jax.Array
    start: jax.Array


def replica_exchange(
    key: jax.Array, kernel: Kernel, x_init: jax.Array, ts: jax.Array, *, num_warmup: int = 0
) -> Exchanged:
    """Run replica exchange: levels are the times of the grid, and neighbours exchange their paths.

        pi_k(x at ts[0 .. k]) = q(path) w_k(path) / Z_k,   log w_k = sum of the first k increments
        level k to k + 1:  the path goes on by one step of the kernel, with increment delta'
        level k + 1 to k:  the path forgets its last state, whose increment was delta
        accepted with probability min(1, exp(delta' - delta))

    q is the law of the kernel's own paths. exp(delta) is Crooks' ratio: the target of a path one
    step longer, over the target of the path times the kernel's step. So every swap leaves the law
    pi_0 x ... x pi_K as it is, on any grid and for a trained network too. The last state of pi_K
    has the law that `sample` converges to with many rows. For `twisted` or `mcgdiff` it is
    p(x_0) p(y | x_0) of the finite chain. In a round each level tries both of its neighbours, the
    even pairs first. Before it, the highest level starts anew from a row of x_init.

    This is a reference for many rounds. More rounds need no larger batch, and the number of
    different starts says how many separate paths have come down. Where swaps are refused it is
    small: on an 8x8 digit (a mixture of 40, the middle hidden, noise 0.1, `twisted` with 25 steps)
    .63 of the swaps are accepted, .31 in the worst pair, and 300 rounds show 5 starts
    (benchmarks/references.py). A kernel whose weights have heavy tails, such as `tilted` with large
    steps, is slow here too.

    Args:
      key: typed PRNG key, consumed.
      kernel: a weighted one, such as `twisted`, `mcgdiff`, `tilted` or `composed`.
      x_init: states at ts[0], one for each round, [num_rounds, *D], floating.
      ts: decreasing times in [0, 1], [num_steps + 1].
      num_warmup: the first rounds, which are left out, static. A path takes num_steps / 2 rounds to
        come down at least.
    Returns:
      Exchanged, of num = num_rounds - num_warmup rounds. A round takes num_steps steps of the
      kernel, as many as a row of `sample`; half of them in one batch. The error of log_evidence is
      best seen in several runs: vmap over keys. Memory grows as num_steps^2 states.
    Raises:
      ValueError: ts is not a decreasing grid of at least two times, or num_warmup is not below the
        number of rounds.
      TypeError: key is not a typed key, kernel is not a Kernel, or x_init is not floating.
    Numerics: NaN as an increment is a weight of 0. Called under jit with a static num_warmup, it is
      compiled once for all observations.
    Source: He et al. 2025, arXiv:2509.23265 (CREPE); Zhang et al. 2025, arXiv:2502.10328. There a
    path goes up by the forward process. Here it goes back along itself: that is exact for a chain
    which the forward process does not reverse, too. Even and odd pairs: Okabe et al. 2001, Chem.
    Phys. Lett. 335, 435. The evidence: Bennett 1976, J. Comput. Phys. 22, 245.
    """
    _checks.one_key("key", key)
    _checks.grid("ts", ts)
    _checks.floating("x_init", x_init)
    if not isinstance(kernel, Kernel):
        expected = "a Kernel such as posterior.twisted(denoiser, schedule, likelihood)"
        raise TypeError(f"kernel: expected {expected}, got {type(kernel).__name__}")
    num = x_init.shape[0] if jnp.ndim(x_init) else 0
    if not 0 <= num_warmup < num:
        raise ValueError(
            f"num_warmup: expected fewer than the {num} rows of x_init, got {num_warmup}"
        )
    kernel = Kernel(
        as_function("kernel.init", kernel.init), as_function("kernel.step", kernel.step)
    )
    x_init = x_init.astype(_rows.state_dtype(x_init.dtype))
    ts = jnp.asarray(ts, x_init.dtype)
    key_first, key_run = jax.random.split(key)
    ladder = first_ladder(key_first, kernel, x_init[0], ts)

    def iterate(i: Any, state: tuple) -> tuple:
        ladder, records = state
        ladder = jax.tree.map(
            lambda leaf, new: leaf.at[0, 0].set(new), ladder, begin(kernel, x_init[i], ts[0], i)
        )
        ladder, works = round_of_swaps(jax.random.fold_in(key_run, i), kernel, ladder, ts)
        record = ladder.x[-1, -1], ladder.start[-1, -1], *works
        return ladder, jax.tree.map(lambda all, new: all.at[i].set(new), records, record)

    steps = jnp.zeros((num, len(ts) - 1), x_init.dtype)
    records = jnp.zeros_like(x_init), jnp.zeros(num, jnp.int32), steps > 0, steps, steps
    _, records = jax.lax.fori_loop(0, num, iterate, (ladder, records))
    x, start, accepted, forward, reverse = (record[num_warmup:] for record in records)
    log_ratios = jax.vmap(bennett_acceptance_ratio, 1)(forward, reverse)
    shares = jnp.mean(accepted, axis=0, dtype=x.dtype)
    return Exchanged(x, start, jnp.sum(log_ratios), shares, forward, reverse)


def begin(kernel: Kernel, x: jax.Array, t: Any, i: Any) -> Node:
    """The node of a start, x [*D]."""
    carry = jax.tree.map(lambda leaf: leaf[0], kernel.init(x[None], t))
    return Node(carry, x, jnp.zeros((), x.dtype), jnp.asarray(i, jnp.int32))


def extend(kernel: Kernel, nodes: Node, keys: jax.Array, times: tuple) -> Node:
    """Draw the next node of several paths, each from its own time t to its own s."""

    def one(key: jax.Array, node: Node, t: Any, s: Any) -> Node:
        carry = jax.tree.map(lambda leaf: leaf[None], node.carry)
        stepped = kernel.step(key[None], carry, node.x[None], t, s)
        carry, x, increment = jax.tree.map(lambda leaf: leaf[0], stepped)
        increment = jnp.where(jnp.isnan(increment), -jnp.inf, increment)
        return Node(carry, x, increment.astype(node.increment.dtype), node.start)

    return jax.vmap(one)(keys, nodes, *times)


def first_ladder(key: jax.Array, kernel: Kernel, x: jax.Array, ts: jax.Array) -> Node:
    """A ladder in which all levels have one path, from the start x [*D]."""
    size = len(ts)
    start = begin(kernel, x, ts[0], 0)
    path = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), start)

    def step(k: Any, path: Node) -> Node:
        here = jax.tree.map(lambda leaf: leaf[k][None], path)
        keys = jax.random.fold_in(key, k)[None]
        new = extend(kernel, here, keys, (ts[k][None], ts[k + 1][None]))
        return jax.tree.map(lambda leaf, value: leaf.at[k + 1].set(value[0]), path, new)

    path = jax.lax.fori_loop(0, size - 1, step, path)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), path)


def round_of_swaps(
    key: jax.Array, kernel: Kernel, ladder: Node, ts: jax.Array
) -> tuple[Node, tuple[jax.Array, jax.Array, jax.Array]]:
    """Try a swap of every pair of neighbours: first the even ones at once, then the odd ones.

    Returns:
      (the ladder, and of each pair whether it was accepted, forward work and reverse work).
    """
    num_steps = len(ts) - 1
    keys = _rows.keys(key, num_steps)
    works = jnp.zeros((3, num_steps), ts.dtype)
    for parity in (0, 1):
        upper = jnp.arange(parity, num_steps, 2)
        if len(upper):
            ladder, found = swap(keys[upper], kernel, ladder, (ts, upper))
            works = works.at[:, upper].set(jnp.stack(found))
    return ladder, (works[0] > 0, works[1], works[2])


def swap(
    keys: jax.Array, kernel: Kernel, ladder: Node, where: tuple[jax.Array, jax.Array]
) -> tuple[Node, tuple[jax.Array, jax.Array, jax.Array]]:
    """Try to swap the paths of levels k and k + 1, for several k that share no level.

    The path of level k goes down and gets a new node. That of level k + 1 goes up and forgets its
    last one. Accepted with probability min(1, exp(new increment - old increment)).
    """
    ts, upper = where
    lower = upper + 1
    key_step, key_accept = _rows.split(keys)
    old = ladder.increment[lower, lower]
    here = jax.tree.map(lambda leaf: leaf[upper, upper], ladder)
    new = extend(kernel, here, key_step, (ts[upper], ts[lower]))
    # A path of weight 0 is no part of the target: anything takes its place.
    gain = jnp.where(old > -jnp.inf, new.increment - old, jnp.inf)
    chance = jax.vmap(lambda k: jax.random.uniform(k, (), gain.dtype))(key_accept)
    accepted = jnp.log(chance) < gain
    order = jnp.arange(len(ts))
    order = order.at[upper].set(jnp.where(accepted, lower, upper))
    order = order.at[lower].set(jnp.where(accepted, upper, lower))

    def exchange(leaf: jax.Array, value: jax.Array) -> jax.Array:
        leaf = leaf[order]
        kept = leaf[lower, lower]
        return leaf.at[lower, lower].set(jnp.where(_rows.expand(accepted, value), value, kept))

    ladder = jax.tree.map(exchange, ladder, new)
    return ladder, (accepted.astype(ts.dtype), -new.increment, old)
