"""What the checks share: a claim that fails in one line, and how two results are compared."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import _extras

ROWS = 4  # of the batch that is tried
# The row that is changed, and the rows that are tried without others.
CHANGED, ALONE = 2, slice(1, 3)

# A claim holds in each: the dtype of the input, and whether float64 exists. The second one finds
# constants in float64, which the first one rounds silently.
PRECISIONS = (("float32", False), ("float32", True), ("float64", True))


def chex() -> Any:
    """The library of assertions; imported where a check runs."""
    return _extras.needs("chex", extra="testing")


@contextlib.contextmanager
def claim(text: str) -> Iterator[None]:
    """Turn any error inside into an AssertionError of one line that begins with text."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        said = " ".join(line for line in lines if line)
        said = said if len(said) < 300 else f"{said[:300]}..."
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        raise AssertionError(f"{text}: {kind}{said}") from error


def where(x: Any, name: str = "x_t") -> str:
    """In which precision a claim is tried, in words."""
    wide = jnp.zeros(()).dtype == np.float64
    return f"for {name} of {x.dtype}" + (" where float64 exists" if wide else "")


def check_event_shape(name: str, shape: Any) -> None:
    """Require the shape of one example: a tuple of positive ints."""
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"{name}: expected the shape of one example, such as (2,), got {shape!r}")


def batch(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """A batch of states, [ROWS, *D]: standard normal, the same always."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, *shape)), dtype)


def changed(values: jax.Array, row: Any) -> jax.Array:
    """The values with another row CHANGED."""
    return values.at[CHANGED].set(row)


def unchanged(tree: Any) -> Any:
    """The rows that `changed` leaves alone."""
    return jax.tree.map(lambda leaf: np.delete(np.asarray(leaf), CHANGED, axis=0), tree)


def halved(values: jax.Array) -> jax.Array:
    """The rows as two problems of half the rows, [2, B / 2, ...]."""
    return values.reshape(2, -1, *values.shape[1:])


def equal(found: Any, expected: Any) -> None:
    """Require equality to the last bit."""
    close(found, expected, 0.0)


def close(found: Any, expected: Any, tolerance: float) -> None:
    """Require trees of one shape that differ by at most tolerance times their largest value."""
    chex().assert_trees_all_equal_shapes(found, expected)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if not jnp.issubdtype(two.dtype, jnp.inexact):
            continue  # counts and keys of a memory
        one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
        both = np.isnan(one) & np.isnan(two) | (one == two)
        error = np.abs(np.where(both, 0, one) - np.where(both, 0, two))
        largest = max(1.0, float(np.max(np.abs(np.where(np.isfinite(two), two, 0)), initial=0)))
        if not np.all(error <= tolerance * largest):  # NaN is no small error
            worst = np.max(error, initial=0)
            raise AssertionError(
                f"expected a difference of at most {tolerance * largest:.3g}, got {worst:.3g}"
            )


def finite(tree: Any) -> None:
    """Require finite numbers only."""
    bad = sum(
        int(np.sum(~np.isfinite(np.asarray(leaf, np.float64)))) for leaf in jax.tree.leaves(tree)
    )
    if bad:
        total = sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
        raise AssertionError(f"expected finite numbers, got NaN or infinity in {bad} of {total}")


def one_program(function: Any, kept: tuple, first: Any, second: Any) -> None:
    """Require that function(first, *kept) and function(second, *kept) are one compiled program."""
    structures = {jax.tree.structure(tree) for tree in (first, second)}
    if len(structures) > 1:
        raise AssertionError(
            "the two differ in more than the values of their leaves: numbers that change have to "
            "be leaves, as in jax.tree_util.Partial(function, numbers)"
        )
    chex().clear_trace_counter()
    traced = jax.jit(chex().assert_max_traces(lambda tree, kept: function(tree, *kept), n=1))
    traced(first, kept)
    traced(second, kept)
