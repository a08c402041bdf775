"""What every denoiser and every model keeps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxdiff._tree import as_function
from jaxdiff.testing import _claims
from jaxdiff.testing._claims import claim

TIMES = np.linspace(0.2, 0.8, _claims.ROWS)  # one for each row


def check_denoiser(
    denoiser: Callable,
    shape: tuple[int, ...],
    *,
    other: Callable | None = None,
    start: float = 1.0,
    end: float = 0.0,
    tolerance: float = 1e-4,
) -> None:
    """Check that a denoiser keeps the contract of kernels, guidance, likelihoods and posteriors.

        row i of denoiser(x_t, t) depends on (x_t[i], t[i]) alone

    The claims: what it returns has the shape and dtype of x_t (float32 and float64, and nothing
    becomes float64 where it exists); a time [] is that time for every row; it is a pure function,
    the same with and without jit and under vmap; rows never couple, whatever the batch size; it is
    a pytree; it and its gradient are finite from start to end.

    Args:
      denoiser: (x_t [B, *D], t [] or [B]) -> E[x_0 | x_t], [B, *D], or a `Denoised`.
      shape: of one example, *D.
      other: the same denoiser with other numbers (parameters, scales); it has to run without a new
        compilation. None leaves this claim out.
      start: the latest time it is asked at, where there is most noise.
      end: the earliest time.
      tolerance: of float32, relative to the largest value: where a batch of another size or a
        compiled program sums in another order.
    Raises:
      AssertionError: a claim fails; one line that names it.
      ValueError: shape is not that of an example.
      ModuleNotFoundError: chex is not installed.
    """
    _claims.chex()
    _claims.check_event_shape("shape", shape)
    with claim("denoiser: it is a function"):
        denoiser = as_function("denoiser", denoiser)
        other = None if other is None else as_function("other", other)
    for dtype, x64 in _claims.PRECISIONS:
        with jax.enable_x64(x64):
            _check_shapes("denoiser", denoiser, _claims.batch(shape, dtype))
    _check_function("denoiser", denoiser, _claims.batch(shape), tolerance)
    _check_scalar_time(denoiser, _claims.batch(shape), tolerance)
    if other is not None:
        _check_compiled_once("denoiser", denoiser, other, _claims.batch(shape))
    _check_ends("denoiser", denoiser, _claims.batch(shape), (start, end))


def check_model(
    model: Any,
    event_shape: tuple[int, ...],
    *,
    start: float = 1.0,
    end: float = 0.0,
    tolerance: float = 1e-4,
) -> None:
    """Check that a model keeps the contract of training and of `make_denoiser`.

        params = model.init(key, event_shape)
        row i of model.apply(params, x_t, t) depends on (params, x_t[i], t[i]) alone

    The claims: parameters are a function of the key, in float32 also where float64 exists; new
    parameters compile nothing; the output has the shape of x_t, or twice its channels; the gradient
    with respect to the parameters is finite; and what `check_denoiser` claims of a function of
    (x_t, t) with t [B].

    Args:
      model: `init(key, event_shape) -> params` and `apply(params, x_t [B, *D], t [B]) -> [B, *D]`.
      event_shape: of one example, *D.
      start: the latest time the network is asked at.
      end: the earliest time.
      tolerance: as `check_denoiser` takes it.
    Raises:
      AssertionError: a claim fails; one line that names it.
      ValueError: event_shape is not that of an example.
      ModuleNotFoundError: chex is not installed.
    """
    _claims.chex()
    _claims.check_event_shape("event_shape", event_shape)
    with claim("model: it has init(key, event_shape) and apply(params, x_t, t)"):
        init = jax.jit(model.init, static_argnums=1)
        params = _moved(init(jax.random.key(0), event_shape))
        network = Partial(model.apply, params)
    with claim("model: parameters are floating arrays, a function of the key"):
        _check_parameters(init, event_shape)
    x = _claims.batch(event_shape)
    for dtype, x64 in _claims.PRECISIONS:
        with jax.enable_x64(x64):
            _check_shapes("model", network, _claims.batch(event_shape, dtype), channels=2)
    _check_function("model", network, x, tolerance)
    _check_compiled_once("model", network, Partial(model.apply, _moved(params)), x)
    _check_ends("model", network, x, (start, end))
    with claim("model: the gradient with respect to the parameters is finite"):
        loss = jax.grad(lambda params: jnp.sum(model.apply(params, x, _times(x)) ** 2))
        _claims.finite(jax.jit(loss)(params))


def _call(function: Any, x: jax.Array, t: Any) -> Any:
    return function(x, t)


_compiled = jax.jit(_call)


def _times(x: jax.Array) -> jax.Array:
    return jnp.asarray(TIMES[: len(x)], x.dtype)


def _moved(params: Any) -> Any:
    """Parameters away from the zeros of an initialisation, so that every path carries a signal."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.1 * rng.normal(size=jnp.shape(leaf)), leaf.dtype), params
    )


def _check_parameters(init: Callable, event_shape: tuple[int, ...]) -> None:
    one, again = (init(jax.random.key(0), event_shape) for _ in range(2))
    _claims.equal(again, one)
    leaves = jax.tree.leaves(one)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise AssertionError(f"got {sorted({str(leaf.dtype) for leaf in leaves})}")
    another = jax.tree.leaves(init(jax.random.key(1), event_shape))
    if leaves and all(np.array_equal(a, b) for a, b in zip(leaves, another, strict=True)):
        raise AssertionError("expected other parameters from another key, got the same")
    with jax.enable_x64(True):
        _claims.chex().assert_trees_all_equal_shapes_and_dtypes(
            jax.eval_shape(lambda: init(jax.random.key(0), event_shape)), one
        )


def _check_shapes(name: str, function: Any, x: jax.Array, *, channels: int = 1) -> None:
    """Traced only: nothing runs."""
    where = _claims.where(x)
    with claim(f"{name}: it runs {where}"):
        out = jax.eval_shape(function, x, _times(x))
    with claim(f"{name}: what it returns has the shape of x_t {where}"):
        allowed = [(*x.shape[:-1], n * x.shape[-1]) for n in range(1, channels + 1)]
        for leaf in jax.tree.leaves(out):
            if leaf.shape not in allowed:
                raise AssertionError(f"expected {x.shape}, got {leaf.shape}")
    if name == "model" and x.dtype == np.float64:
        return  # a network computes in a dtype of its own
    with claim(f"{name}: what it returns has the dtype of x_t {where}"):
        _claims.chex().assert_type(jax.tree.leaves(out), x.dtype)


def _check_function(name: str, function: Any, x: jax.Array, tolerance: float) -> None:
    t = _times(x)
    with claim(f"{name}: it is a pure function of its arguments"):
        first = function(x, t)
        function(-x, t[::-1])
        _claims.equal(function(x, t), first)
    with claim(f"{name}: it is the same with and without jit"):
        whole = _compiled(function, x, t)
        _claims.close(whole, first, tolerance)
    with claim(f"{name}: rows never couple"):
        strange = _compiled(function, _claims.changed(x, 100.0), _claims.changed(t, 0.9))
        _claims.equal(_claims.unchanged(strange), _claims.unchanged(whole))
    with claim(f"{name}: a row depends neither on the batch size nor on vmap over problems"):
        # Two problems of half the rows: both are proved by one program.
        halves = jax.vmap(_compiled, (None, 0, 0))(function, _claims.halved(x), _claims.halved(t))
        _claims.close(halves, jax.tree.map(_claims.halved, whole), tolerance)
    with claim(f"{name}: it is a pytree, and the same after a round trip through its leaves"):
        leaves, structure = jax.tree.flatten(function)
        _claims.equal(_compiled(jax.tree.unflatten(structure, leaves), x, t), whole)


def _check_scalar_time(denoiser: Any, x: jax.Array, tolerance: float) -> None:
    with claim("denoiser: a time [] is that time for every row"):
        one = _compiled(denoiser, x, jnp.asarray(0.5, x.dtype))
        _claims.close(one, _compiled(denoiser, x, jnp.full(len(x), 0.5, x.dtype)), tolerance)


def _check_compiled_once(name: str, function: Any, other: Any, x: jax.Array) -> None:
    with claim(f"{name}: new numbers compile nothing"):
        _claims.one_program(_call, (x, _times(x)), function, other)


def _check_ends(name: str, function: Any, x: jax.Array, ends: tuple[float, float]) -> None:
    def total(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.stack([leaf.sum() for leaf in jax.tree.leaves(function(x, t))]).sum()

    slope = jax.jit(jax.grad(total))
    for end in ends:
        t = jnp.full(len(x), end, x.dtype)
        with claim(f"{name}: it is finite at t = {end}"):
            _claims.finite(_compiled(function, x, t))
        with claim(f"{name}: its gradient with respect to x_t is finite at t = {end}"):
            _claims.finite(slope(x, t))
