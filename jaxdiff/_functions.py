"""Functions as pytrees: what is static, what is traced, and the one place where it is decided.

Schedules, denoisers and kernels are `jax.tree_util.Partial`: a static function whose array
arguments are leaves. They go through jit, vmap and pmap as arguments, so new parameters never
compile a program again.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """A hashable option inside a Partial: part of the compiled program, compared by value."""

    value: Any


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
