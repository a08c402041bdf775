"""Algorithms as pytrees: frozen dataclasses whose fields are traced, or static where marked.

They go through jit, vmap and pmap as arguments. So new parameters never compile a program again.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np
from jax.tree_util import Partial

C = TypeVar("C", bound=type)


def static(**options: Any) -> Any:
    """A field that is part of the compiled program: hashable, compared by value."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def pytree(cls: C) -> C:
    """Make a class a frozen dataclass and a pytree, with one line as its repr.

    A `__post_init__` runs when an instance is made and in `dataclasses.replace`. It does not run
    when jax builds one from its leaves: these may be tracers, gradients, or no arrays at all.
    """
    dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)  # changes the class in place
    if cls.__repr__ is object.__repr__:
        type.__setattr__(cls, "__repr__", one_line)
    fields = dataclasses.fields(cls)
    traced = tuple(field.name for field in fields if not field.metadata.get("static"))
    fixed = tuple(field.name for field in fields if field.metadata.get("static"))

    def flatten_with_keys(tree: Any) -> tuple[tuple, tuple]:
        leaves, meta = flatten(tree)
        return tuple(zip(map(jax.tree_util.GetAttrKey, traced), leaves, strict=True)), meta

    def flatten(tree: Any) -> tuple[tuple, tuple]:
        leaves = tuple(getattr(tree, name) for name in traced)
        return leaves, tuple(getattr(tree, name) for name in fixed)

    def unflatten(meta: tuple, leaves: Any) -> Any:
        tree: Any = object.__new__(cls)
        for name, value in (*zip(traced, leaves, strict=True), *zip(fixed, meta, strict=True)):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def put(tree: Any, **fields: Any) -> None:
    """Set fields of a frozen instance: for `__post_init__` alone."""
    for name, value in fields.items():
        object.__setattr__(tree, name, value)


@pytree
class Method:
    """A method as a function whose leaves are those of its owner.

    Fields:
      owner: the algorithm, a pytree.
      name: of the method.
    """

    owner: Any
    name: str = static()

    def __call__(self, *arguments: Any) -> Any:
        """Call the method."""
        return getattr(self.owner, self.name)(*arguments)

    def __repr__(self) -> str:
        return f"{self.owner!r}.{self.name}"


def as_function(name: str, function: Callable) -> Any:
    """The function as a pytree: a plain callable has no leaves and is compared by identity."""
    if not callable(function):
        raise TypeError(f"{name}: expected a function, got {type(function).__name__}")
    return function if is_node(function) else Partial(function)


def is_node(value: Any) -> bool:
    """Whether jax takes a value apart."""
    return not jax.tree_util.all_leaves([value])


def one_line(tree: Any, *, name: str | None = None) -> str:
    """Name(option=value, ...): the options first, then what the algorithm works on."""
    fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    ordered = sorted(fields, key=lambda name: callable(fields[name]) or _is_named(fields[name]))
    values = [f"{field}={brief(fields[field])}" for field in ordered]
    return f"{name or type(tree).__name__}({', '.join(values)})"


def _is_named(value: Any) -> bool:
    return hasattr(value, "short_name")


def brief(value: Any) -> str:
    """A value in a word: a number itself, an array's dtype and shape, a function's name.

    A class may say itself what stands for it: `short_name`.
    """
    if _is_named(value):
        return value.short_name()
    if isinstance(value, jax.core.Tracer | jax.Array | np.ndarray):
        concrete = not isinstance(value, jax.core.Tracer) and value.ndim == 0
        return str(value) if concrete else f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Partial):
        return brief(value.func)
    if isinstance(value, dict | list | tuple) and not hasattr(value, "_fields"):
        if len(value) <= 4 and not isinstance(value, dict):
            return f"({', '.join(map(brief, value))})"
        return f"<{len(jax.tree.leaves(value))} leaves>"
    if dataclasses.is_dataclass(value) or not callable(value):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__name__).lstrip("_")
