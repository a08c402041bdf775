"""Algorithms as pytrees: named fields, static ones compiled in, one readable line."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import Partial

from jaxdiff._tree import Method, as_function, put, pytree, static


@pytree
class Scale:
    """x -> factor x ** power."""

    factor: Any
    power: int = static(default=1)

    def __post_init__(self) -> None:
        if self.power < 1:
            raise ValueError(f"power: expected at least 1, got {self.power}")
        put(self, factor=jnp.asarray(self.factor))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.factor * x**self.power

    def twice(self, x: jax.Array) -> jax.Array:
        return 2 * self(x)


def test_fields_by_name_and_replace() -> None:
    scale = Scale(3.0, power=2)
    assert scale(2.0) == 12
    assert dataclasses.replace(scale, power=1)(2.0) == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        scale.power = 3  # type: ignore[misc]


def test_replace_is_checked_and_unflattening_is_not() -> None:
    with pytest.raises(ValueError, match="power: expected at least 1, got 0"):
        dataclasses.replace(Scale(3.0), power=0)
    leaves, treedef = jax.tree.flatten(Scale(3.0))
    assert jax.tree.unflatten(treedef, ["anything"]).factor == "anything"
    assert len(leaves) == 1


def test_traced_fields_compile_once_and_static_ones_again() -> None:
    traces = []

    @jax.jit
    def run(scale: Scale, x: jax.Array) -> jax.Array:
        traces.append(1)
        return scale(x)

    assert [float(run(Scale(f), jnp.array(2.0))) for f in (1.0, 2.0, 3.0)] == [2, 4, 6]
    assert len(traces) == 1
    assert float(run(Scale(1.0, power=2), jnp.array(3.0))) == 9
    assert len(traces) == 2
    slope = jax.grad(lambda scale: scale(2.0))(Scale(3.0))
    assert isinstance(slope, Scale)
    assert slope.factor == 2


def test_a_method_is_a_function_with_the_owners_leaves() -> None:
    method = Method(Scale(3.0), "twice")
    assert method(2.0) == 12
    assert jax.tree.leaves(method) == [3.0]
    assert jax.jit(lambda f, x: f(x))(method, 2.0) == 12


def test_a_pytree_is_a_function_as_it_is() -> None:
    scale = Scale(3.0)
    assert as_function("f", scale) is scale
    assert isinstance(as_function("f", abs), Partial)
    with pytest.raises(TypeError, match="f: expected a function, got int"):
        as_function("f", 3)  # type: ignore[arg-type]


def test_repr_is_one_readable_line() -> None:
    assert repr(Scale(3.0, power=2)) == "Scale(factor=3.0, power=2)"
    assert repr(Scale(jnp.zeros((2, 3)))) == "Scale(factor=float32[2, 3], power=1)"

    @pytree
    class Holder:
        function: Any
        fields: Any

    two = Holder(abs, (Scale(jnp.zeros(5)), jnp.exp))
    assert repr(two) == "Holder(fields=(Scale(factor=float32[5], power=1), exp), function=abs)"
    held = Holder(Partial(jnp.exp), {"a": 1, "b": jnp.zeros(2)})
    assert repr(held) == "Holder(fields=<2 leaves>, function=exp)"
    texts = []
    jax.jit(lambda scale: texts.append(repr(scale)) or scale.factor)(Scale(3.0))
    assert texts == ["Scale(factor=float32[], power=1)"]
