"""The driver: one compiled scan of a kernel over a grid, with weights and resampling."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _checks, _lineages, _progress, _rows
from jaxdiff._functions import known_ahead
from jaxdiff._tree import as_function
from jaxdiff.forward import no_noise
from jaxdiff.kernels import Kernel
from jaxdiff.resampling import effective_sample_size, log_mean_weight
from jaxdiff.schedules import Schedule


class Samples(NamedTuple):
    """What a run of the driver leaves.

    Fields:
      x: states at ts[-1], [B, *D].
      log_weights: log weights since the last resampling, [B], in nats. They are zero for an
        unweighted kernel, -inf for a row of weight zero, and NaN for a row that has failed, which
        counts as a weight of zero.
      log_evidence: log of the mean weight, [], in nats, with the factors of every resampling; -inf
        where every weight is zero.
      ess: effective sample size after each step, before resampling, [num_steps], in rows; 0 where
        every weight is zero.
      trajectory: None, or the states at the start, after every save_every-th step and at the end,
        oldest first, [ceil(num_steps / save_every) + 1, B, *D].
      origins: the row of x_init from which each row descends, [B], int32. Rows that were never
        resampled descend from themselves.
      lineages: number of rows of x_init that have descendants after each step and its resampling,
        [num_steps], int32. Rows of one origin are not independent draws. A large effective sample
        size says only that the last weights are even: after a resampling it is B, and the rows may
        be copies of one.
      ancestors: None, or with a trajectory the row of trajectory[n] from which each row of
        trajectory[n + 1] descends, [ceil(num_steps / save_every), B], int32.
    """

    x: jax.Array
    log_weights: jax.Array
    log_evidence: jax.Array
    ess: jax.Array
    trajectory: jax.Array | None
    origins: jax.Array
    lineages: jax.Array
    ancestors: jax.Array | None


def prior_sample(
    key: jax.Array, schedule: Schedule, shape: tuple[int, ...], *, t: Any = 1.0, first: Any = 0
) -> jax.Array:
    """Draw the state at the start of a grid from the noise it has become: N(0, sigma_t^2 I).

    Args:
      key: typed PRNG key.
      schedule: the noise schedule.
      shape: [B, *D].
      t: time at which the grid starts, [], in [0, 1].
      first: index of the first sample, an integer of 32 bits without sign; sample i depends on
        (key, first + i) alone, so that chunks join up.
    Returns:
      x_init, [B, *D], default floating dtype.
    Raises:
      ValueError: shape has no batch axis, t or first is out of range, or the key's impl is rbg,
        whose draws depend on the batch.
      TypeError: key is not a typed key, t is an integer array, or first is not an integer.
    Source: Ho et al. 2020, arXiv:2006.11239, Algorithm 2, line 1; sigma_1 for families that do not
    preserve variance.
    """
    _checks.one_key("key", key)
    if not isinstance(shape, tuple) or len(shape) < 1:
        raise ValueError(f"shape: expected a tuple [B, *D], got {shape}")
    _checks.time("t", t)
    like = jax.ShapeDtypeStruct(shape, jnp.zeros(()).dtype)
    noise = _rows.normal(_rows.keys(key, shape[0], first=first), like)
    return schedule.sigma(t).astype(noise.dtype) * noise


def sample(
    key: jax.Array,
    kernel: Kernel,
    x_init: jax.Array,
    ts: jax.Array,
    *,
    first: Any = 0,
    resample: Callable | None = None,
    save_every: int | None = None,
    progress: bool = False,
) -> Samples:
    """Run a kernel over a grid of times.

        x_{n+1}, dlog w_n ~ kernel.step(x_n, ts[n], ts[n+1]),   log w_N = sum_n dlog w_n

    Args:
      key: typed PRNG key, consumed; sample i depends on (key, first + i) alone unless rows are
        resampled.
      kernel: the reverse step, a traced argument: new parameters or scales do not compile again.
      x_init: states at ts[0], [B, *D], floating.
      ts: decreasing times in [0, 1], [num_steps + 1].
      first: index of the first sample, so that chunks of a run join up to the whole.
      resample: None, or (key, log_weights [B]) -> (ancestors [B], resampled []), such as
        `resampling.systematic()`. An ancestor outside 0 .. B - 1 makes its row NaN.
      save_every: None, or keep the state every so many steps.
      progress: whether to show a progress bar. The call then waits for the samples, and each step
        reports to the host; without it nothing of this is compiled.
    Returns:
      Samples. Memory does not grow with the number of steps; a trajectory adds its own size.
    Raises:
      ValueError: ts is not a decreasing grid of at least two times, save_every < 1, first is out of
        range, the key's impl is rbg, whose draws depend on the batch, or progress is asked for
        inside of a transformation such as jit.
      TypeError: key is not a typed key, x_init is not floating, or first or an ancestor is not an
        integer.
    Numerics: the state is float32 at least.
    Source: one loop for Ho et al. 2020, Algorithm 2, and for sequential Monte Carlo (Del Moral et
    al. 2006).
    """
    _checks.one_key("key", key)
    kernel = _check_kernel(kernel, "x_init", x_init)
    _checks.grid("ts", ts)
    if save_every is not None:
        _checks.positive_int("save_every", save_every)
    first = _rows.first_index(first, x_init.shape[0])
    resampler = None if resample is None else as_function("resample", resample)
    ts = jnp.asarray(ts)
    options = {"first": first, "resample": resampler, "save_every": save_every}
    if not progress:
        return run(key, kernel, x_init, ts, **options)
    if any(
        isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((key, kernel, x_init, ts))
    ):
        raise ValueError(
            "progress: expected False inside of jit, vmap or another transformation, got True"
        )
    with _progress.bar(len(ts) - 1):
        return jax.block_until_ready(run(key, kernel, x_init, ts, **options, report=True))


def encode(kernel: Kernel, x_0: jax.Array, ts: jax.Array) -> jax.Array:
    """Run a kernel of the probability-flow ODE from data to noise; `sample` on `ts` goes back.

        x_{n+1} = kernel.step(x_n, t_n, s_n),   t_n < s_n

    Args:
      kernel: a deterministic kernel, such as `kernels.ddim`, `kernels.dpmpp_2m`, `kernels.unipc`.
        It is given no key.
      x_0: states at ts[-1], [B, *D], floating.
      ts: the decreasing grid of the way back, [num_steps + 1]. It is run in reverse. It must end
        with some noise left (`grids.uniform(50, end=1e-3)`), unless the schedule itself does:
        without noise, data tell nothing about eps. More noise than rounding is enough.
    Returns:
      The states at ts[0], [B, *D]. There and back is the identity up to the kernel's order in the
      step size.
    Raises:
      ValueError: ts is not a decreasing grid of at least two times, or ends without noise in a
        schedule that the kernel holds; the kernel draws from its key.
      TypeError: kernel is not a Kernel, x_0 is not floating.
    Numerics: NaN where only traced values tell that the grid ends without noise, or that the kernel
      draws.
    Source: Song et al. 2021, arXiv:2010.02502, Section 4.3.
    """
    _checks.grid("ts", ts)
    kernel = _check_kernel(kernel, "x_0", x_0)
    _check_deterministic(kernel, x_0, ts)
    clean = _ends_without_noise(kernel, x_0, ts)
    if _checks.known(clean) is None:
        return jnp.where(clean, jnp.nan, run(None, kernel, x_0, jnp.asarray(ts)[::-1]).x)
    if clean:
        raise ValueError(
            "ts: expected a grid that ends with noise left, as grids.uniform(50, end=1e-3) does, "
            f"got {ts[-1]} for an end, where the schedule leaves none"
        )
    return run(None, kernel, x_0, jnp.asarray(ts)[::-1]).x


@known_ahead
def _ends_without_noise(kernel: Kernel, x_0: jax.Array, ts: Any) -> jax.Array:
    """Whether a schedule of the kernel has no noise at the grid's end."""
    t = jnp.asarray(ts, _rows.state_dtype(x_0.dtype))[-1]
    leaves = jax.tree.leaves(kernel, is_leaf=lambda node: isinstance(node, Schedule))
    hidden = [jnp.any(no_noise(leaf.log_snr(t))) for leaf in leaves if isinstance(leaf, Schedule)]
    return jnp.any(jnp.stack(hidden)) if hidden else jnp.asarray(False)


def _check_deterministic(kernel: Kernel, x_0: jax.Array, ts: Any) -> None:
    """Require a kernel that needs no key. It is traced here, not run."""
    x = jax.ShapeDtypeStruct(x_0.shape, _rows.state_dtype(x_0.dtype))
    t = jax.ShapeDtypeStruct((), x.dtype)

    def step(keys: jax.Array | None) -> None:
        jax.eval_shape(lambda x, t, s: kernel.step(keys, kernel.init(x, t), x, t, s), x, t, t)

    try:
        step(None)
    except (AttributeError, TypeError, ValueError) as error:
        # Another fault of the kernel comes out here.
        step(jax.random.split(jax.random.key(0, impl="threefry2x32"), len(x_0)))
        raise ValueError(
            "kernel: expected a deterministic one, such as kernels.ddim(denoiser, schedule), "
            "got one that draws from its key"
        ) from error


def slerp(x: jax.Array, y: jax.Array, weight: Any) -> jax.Array:
    """Interpolate between latents along the great circle, which keeps the norm of noise.

        sin((1 - w) theta) / sin(theta) x + sin(w theta) / sin(theta) y
        cos(theta) = <x, y> / (|x| |y|)

    Args:
      x: latents, [B, *D].
      y: latents, shaped like x.
      weight: w, [] or [B], traced; 0 gives x, 1 gives y.
    Returns:
      [B, *D], dtype of x.
    Raises:
      ValueError: shapes do not fit, or weight is known and not finite.
    Source: Shoemake 1985, SIGGRAPH; for latents Song et al. 2021, arXiv:2010.02502, Appendix D.5.
    """
    _checks.floating("x", x)
    _checks.floating("y", y)
    _checks.same_shape("y", y, "x", x)
    _checks.finite("weight", weight)
    dtype, x, y = (
        x.dtype,
        x.astype(_rows.state_dtype(x.dtype)),
        y.astype(_rows.state_dtype(x.dtype)),
    )
    flat = (x.reshape(x.shape[0], -1), y.reshape(x.shape[0], -1))
    size = [jnp.linalg.norm(v, axis=1) for v in flat]
    product = size[0] * size[1]
    cosine = jnp.where(
        product > 0, jnp.sum(flat[0] * flat[1], axis=1) / jnp.where(product > 0, product, 1), 1
    )
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    weight = jnp.broadcast_to(jnp.asarray(weight, x.dtype), x.shape[:1])
    straight = angle < 1e-3  # the sines cancel: a chord is as good
    safe = jnp.where(straight, 1, jnp.sin(angle))
    left = jnp.where(straight, 1 - weight, jnp.sin((1 - weight) * angle) / safe)
    right = jnp.where(straight, weight, jnp.sin(weight * angle) / safe)
    return (_rows.expand(left, x) * x + _rows.expand(right, x) * y).astype(dtype)


def _check_kernel(kernel: Any, name: str, x: Any) -> Kernel:
    _checks.floating(name, x)
    if jnp.ndim(x) < 1 or jnp.shape(x)[0] < 1:
        raise ValueError(
            f"{name}: expected a batch of states, [B, *D] with B >= 1, got shape {jnp.shape(x)}"
        )
    if not isinstance(kernel, Kernel):
        expected = "a Kernel such as kernels.ddim(denoiser, schedule)"
        raise TypeError(f"kernel: expected {expected}, got {type(kernel).__name__}")
    return Kernel(as_function("kernel.init", kernel.init), as_function("kernel.step", kernel.step))


@partial(jax.jit, static_argnames=("save_every", "rejoin", "report"))
def run(
    key: Any,
    kernel: Kernel,
    x_init: jax.Array,
    ts: jax.Array,
    *,
    first: Any = 0,
    resample: Partial | None = None,
    save_every: int | None = None,
    reference: jax.Array | None = None,
    rejoin: bool = False,
    report: bool = False,
) -> Samples:
    """Run a kernel over times in any order, without a check: `sample` is this on a decreasing grid.

    Args:
      key: typed PRNG key; or one a row, [B], or None for a kernel that draws nothing, without
        resampling.
      kernel: the step.
      x_init: state at ts[0], [B, *D], floating.
      ts: times, [num_steps + 1]; a single one leaves the state as it is.
      first: index of the first row.
      resample: as in `sample`.
      save_every: as in `sample`.
      reference: None, or a path that the first row follows, [num_steps + 1, *D]: conditional
        sequential Monte Carlo. The kernel's step takes a reference, and resample has `beside`.
      rejoin: whether the path may go on from another row's past after each step: ancestor sampling.
      report: whether each step tells the progress bar.
    Returns:
      Samples.
    """
    x = x_init.astype(_rows.state_dtype(x_init.dtype))
    ts = ts.astype(x.dtype)
    num_steps, num_rows = len(ts) - 1, x.shape[0]
    row_keys: Any = None if key is None else _rows.keys(key, num_rows, first=first)
    # The key of resampling belongs to no row. Without resampling there may be a key a row instead.
    resample_key = key if resample is None else jax.random.fold_in(key, _rows.NO_ROW)
    zeros = jnp.zeros(num_rows, x.dtype)
    x = x if reference is None else x.at[0].set(reference[0].astype(x.dtype))
    everyone = jnp.arange(num_rows, dtype=jnp.int32)
    advance, scheme = kernel.step, resample
    if reference is not None:
        advance, scheme = _lineages.beside(kernel, resample)

    def step(state: Any, inputs: Any) -> Any:
        carry, x, log_weights, log_evidence, origins, kept = state
        n, t, s = inputs
        keys = None if key is None else _rows.fold(row_keys, n)
        goal = {} if reference is None else {"reference": reference[n + 1].astype(x.dtype)}
        carry, x, increment = advance(keys, carry, x, t, s, **goal)
        log_weights = log_weights + increment
        ess = effective_sample_size(log_weights)
        ancestors = everyone
        if scheme is not None:
            ancestors, resampled = scheme(jax.random.fold_in(resample_key, n), log_weights)
            _checks.index("ancestors", ancestors)
            ancestors = ancestors.astype(jnp.int32)
            carry, x = jax.tree.map(lambda leaf: _rows.pick(leaf, ancestors), (carry, x))
            # The mean weight moves into the evidence before the weights are reset.
            log_evidence = log_evidence + jnp.where(resampled, log_mean_weight(log_weights), 0)
            log_weights = jnp.where(resampled, 0, log_weights)
        if rejoin:
            key_n = jax.random.fold_in(jax.random.fold_in(resample_key, _rows.NO_ROW), n)
            rows = carry, x, log_weights
            order = _lineages.exchange(key_n, kernel, rows, ts=ts, n=n, path=reference)
            carry, x, log_weights = jax.tree.map(lambda leaf: leaf[order], rows)
            ancestors = ancestors[order]
        origins = origins[ancestors]
        kept = _lineages.keep(kept, x, ancestors, n=n, save_every=save_every)
        if report:
            # An argument that hangs on the state is there when the step is done.
            jax.debug.callback(_progress.reached, n + 1, x[:1].sum())
        state = (carry, x, log_weights, log_evidence, origins, kept)
        return state, (ess, _lineages.number_of(origins))

    kept = _lineages.nothing_kept(x, num_steps, save_every)
    start = (kernel.init(x, ts[0]), x, zeros, jnp.zeros((), x.dtype), everyone, kept)
    end, (ess, lineages) = jax.lax.scan(step, start, (jnp.arange(num_steps), ts[:-1], ts[1:]))
    _, x, log_weights, log_evidence, origins, (trajectory, descent) = end
    log_evidence = log_evidence + log_mean_weight(log_weights)
    return Samples(x, log_weights, log_evidence, ess, trajectory, origins, lineages, descent)
