"""Checks of options, which come before any work."""

import math
from collections.abc import Callable
from typing import Any

SEEDS = 2**32  # jax.random.key takes 32 bits of a seed: 2^32 would be 0 again


POSITIVE = ("a positive number", lambda v: 0 < v < math.inf)


NOT_NEGATIVE = ("a number of at least 0", lambda v: 0 <= v < math.inf)


FINITE = ("a finite number", math.isfinite)


SHARE = ("a share in [0, 1]", lambda v: 0 <= v <= 1)


DECAY = ("a decay in [0, 1)", lambda v: 0 <= v < 1)


def counts(options: Any, **least: int) -> None:
    """Require integers, or tuples of integers, of at least so much. None is allowed.

    The name a__b stands for the option b of options.a.
    """
    for name, smallest in least.items():
        value = _named(options, name)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and each < smallest:
                raise ValueError(
                    f"{name.replace('__', '.')}: expected at least {smallest}, got {each}"
                )


def numbers(options: Any, **allowed: tuple[str, Callable[[float], bool]]) -> None:
    """Require numbers in a range such as POSITIVE or SHARE. NaN is refused, None is allowed."""
    for name, (expected, holds) in allowed.items():
        value = _named(options, name)
        if value is not None and not holds(value):
            raise ValueError(f"{name.replace('__', '.')}: expected {expected}, got {value}")


def seed(value: int) -> None:
    """Require a seed whose random numbers are its own."""
    if not 0 <= value < SEEDS:
        raise ValueError(f"seed: expected an integer in [0, 2^32), got {value}")


def _named(options: Any, name: str) -> Any:
    for part in name.split("__"):
        options = getattr(options, part)
    return options
