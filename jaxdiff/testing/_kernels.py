"""What every kernel keeps, so that the driver, resampling and compilation work with it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import sampling
from jaxdiff._tree import as_function
from jaxdiff.kernels import Kernel
from jaxdiff.testing import _claims
from jaxdiff.testing._claims import claim


def check_kernel(
    kernel: Kernel,
    shape: tuple[int, ...],
    *,
    other: Kernel | None = None,
    start: float = 1.0,
    end: float = 0.0,
    continuous: bool = True,
    differentiable: bool = True,
    tolerance: float = 1e-4,
) -> None:
    """Check that a kernel keeps the contract of `sample`.

        row i of step(keys, carry, x_t, t, s) depends on (keys[i], carry[i], x_t[i], t, s) alone

    The claims: x_s has the shape and dtype of x_t (float32 and float64, and nothing becomes float64
    where it exists); log weights are [B], finite, float32 or the dtype of x_t; the memory keeps its
    structure and has a leaf's row for each row; a step is a pure function, the same with and
    without jit and under vmap; rows never couple, and their noise does not depend on the batch
    size; the kernel is a pytree; steps at both ends and their gradients are finite; a step from t
    to t is the identity.

    Args:
      kernel: init and step, as `Kernel` says.
      shape: of one example, *D.
      other: the same kernel with other numbers (parameters, scales); it has to run without a new
        compilation. None leaves this claim out.
      start: the earliest time in sampling, where the first step begins.
      end: the last time, where the last step ends.
      continuous: whether a step from t to t is the identity; False for kernels that add noise in
        any step, such as Langevin corrections.
      differentiable: whether gradients with respect to x_t are claimed.
      tolerance: of float32, relative to the largest value: where a batch of another size or a
        compiled program sums in another order.
    Raises:
      AssertionError: a claim fails; one line that names it.
      ValueError: shape is not that of an example.
      ModuleNotFoundError: chex is not installed.
    """
    _claims.chex()
    _claims.check_event_shape("shape", shape)
    with claim("kernel: it is a Kernel(init, step) of two functions"):
        kernel = _functions(kernel)
    middle = (start + end) / 2
    for dtype, x64 in _claims.PRECISIONS:
        with jax.enable_x64(x64):
            _check_shapes(kernel, _claims.batch(shape, dtype), middle)
    x = _claims.batch(shape)
    keys = jax.random.split(jax.random.key(0), len(x))
    ts = jnp.asarray([middle + 0.1 * (start - end), middle, middle - 0.1 * (start - end)], x.dtype)
    _check_purity(kernel, keys, x, ts, tolerance)
    _check_rows(kernel, keys, x, ts, tolerance)
    if other is not None:
        with claim("kernel: new numbers compile nothing"):
            _claims.one_program(_run, (keys, x, ts), kernel, _functions(other))
    _check_ends(kernel, keys, x, jnp.asarray([start, middle, end], x.dtype), differentiable)
    if continuous:
        with claim("kernel: a step from t to t is the identity"):
            _claims.close(_run(kernel, keys, x, jnp.full(3, middle, x.dtype)).x, x, tolerance)


def _functions(kernel: Any) -> Kernel:
    return Kernel(as_function("kernel.init", kernel.init), as_function("kernel.step", kernel.step))


def _run(kernel: Kernel, keys: jax.Array, x: jax.Array, ts: jax.Array) -> sampling.Samples:
    """The driver, with a key for each row: x and log_weights come first in what it returns."""
    return sampling.run(keys, kernel, x, ts)


def _check_shapes(kernel: Kernel, x: jax.Array, time: float) -> None:
    """Traced only: nothing runs."""
    where = _claims.where(x)
    t = jnp.asarray(time, x.dtype)
    keys = jax.random.split(jax.random.key(0), len(x))
    with claim(f"kernel: init and step run {where}"):
        before = jax.eval_shape(kernel.init, x, t)
        carry, x_s, increment = jax.eval_shape(kernel.step, keys, before, x, t, t)
    with claim(f"kernel: x_s has the shape and the dtype of x_t {where}"):
        _claims.chex().assert_shape(x_s, x.shape)
        _claims.chex().assert_type(x_s, x.dtype)
    with claim(f"kernel: log weights are [B], float32 at least and no wider than x_t {where}"):
        _claims.chex().assert_shape(increment, x.shape[:1])
        if increment.dtype not in (np.float32, x.dtype):
            raise AssertionError(f"got {increment.dtype}")
    with claim(f"kernel: step returns a memory with the structure and dtypes of init's {where}"):
        _claims.chex().assert_trees_all_equal_shapes_and_dtypes(before, carry)
    with claim("kernel: every leaf of the memory has a row for each row, [B, ...]"):
        shapes = sorted({leaf.shape for leaf in jax.tree.leaves(carry)})
        if any(shape[:1] != x.shape[:1] for shape in shapes):
            raise AssertionError(f"expected {len(x)} rows, got leaves of shapes {shapes}")


def _steps(kernel: Kernel, keys: jax.Array, x: jax.Array, ts: jax.Array) -> tuple:
    """What the driver does, step by step and not compiled."""
    carry, total = kernel.init(x, ts[0]), jnp.zeros(len(x), x.dtype)
    for n in range(len(ts) - 1):
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, n)
        carry, x, increment = kernel.step(now, carry, x, ts[n], ts[n + 1])
        total = total + increment
    return x, total


def _check_purity(
    kernel: Kernel, keys: jax.Array, x: jax.Array, ts: jax.Array, tolerance: float
) -> None:
    with claim("kernel: a step is a pure function of its arguments"):
        first = _steps(kernel, keys, x, ts)
        _steps(kernel, keys[::-1], -x, ts)
        _claims.equal(_steps(kernel, keys, x, ts), first)
    with claim("kernel: a compiled run is the one without jit"):
        whole = _run(kernel, keys, x, ts)
        _claims.close(whole[:2], first, tolerance)
    with claim("kernel: states and log weights are finite"):
        _claims.finite(whole[:2])


def _check_rows(
    kernel: Kernel, keys: jax.Array, x: jax.Array, ts: jax.Array, tolerance: float
) -> None:
    whole = _run(kernel, keys, x, ts)
    with claim("kernel: rows never couple"):
        strange = jax.random.key(9)
        run = _run(kernel, _claims.changed(keys, strange), _claims.changed(x, 100.0), ts)
        _claims.equal(_claims.unchanged(run[:2]), _claims.unchanged(whole[:2]))
    with claim("kernel: a row depends neither on the batch size nor on vmap over problems"):
        # Two problems of half the rows: both are proved by one program.
        halves = jax.vmap(_run, (None, 0, 0, None))
        run = halves(kernel, _claims.halved(keys), _claims.halved(x), ts)
        _claims.close(run[:2], jax.tree.map(_claims.halved, whole[:2]), tolerance)
    with claim("kernel: it is a pytree, and the same after a round trip through its leaves"):
        leaves, structure = jax.tree.flatten(kernel)
        _claims.equal(_run(jax.tree.unflatten(structure, leaves), keys, x, ts).x, whole.x)


def _check_ends(
    kernel: Kernel, keys: jax.Array, x: jax.Array, ts: jax.Array, differentiable: bool
) -> None:
    with claim(f"kernel: steps from t = {ts[0]} and to s = {ts[-1]} are finite"):
        _claims.finite(_run(kernel, keys, x, ts)[:2])
    if differentiable:
        with claim(f"kernel: the gradient of a step to s = {ts[-1]} is finite"):
            _claims.finite(jax.grad(lambda x: _run(kernel, keys, x, ts[1:]).x.sum())(x))
