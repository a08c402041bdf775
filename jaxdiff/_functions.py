"""Two decorators: known values inside of jit, and full precision."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


known_ahead = jax.ensure_compile_time_eval()
"""A decorator: without a traced argument, the result is known inside of jit as outside of it.

So a grid made from plain numbers in a compiled function has values, like one made before it.
"""


def exactly(function: Callable[P, R]) -> Callable[P, R]:
    """Run with full float32 matrix products: accelerators use fewer digits by default."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return call
