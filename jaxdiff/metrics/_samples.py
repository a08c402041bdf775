"""Samples in and estimates out: what all metrics share."""

from typing import Any, NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """An estimate and its standard error, in the same units."""

    value: float
    standard_error: float


def pair(x: Any, y: Any, *, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Two samples as vectors, [n, d] and [m, d], float64: of one space, large enough and finite."""
    if np.ndim(x) < 1 or np.ndim(y) < 1 or np.shape(x)[1:] != np.shape(y)[1:]:
        raise ValueError(f"y: expected the event shape of x, {np.shape(x)}, got {np.shape(y)}")
    for name, sample in (("x", x), ("y", y)):
        if len(sample) < least:
            raise ValueError(f"{name}: expected at least {least} examples, got {len(sample)}")
    first, second = (np.asarray(sample, np.float64).reshape(len(sample), -1) for sample in (x, y))
    for name, sample in (("x", first), ("y", second)):
        if not np.isfinite(sample).all():
            raise ValueError(
                f"{name}: expected finite values, got {np.sum(~np.isfinite(sample))} others"
            )
    return first, second


PAIRS = 2**26  # the most pairs at once: half a gibibyte in float64


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x_i - y_j|^2, [n, m], float64."""
    centre = x.mean(0)  # the expansion below loses digits far from the origin
    x, y = x - centre, y - centre
    return np.maximum(np.sum(x**2, axis=1)[:, None] - 2 * x @ y.T + np.sum(y**2, axis=1), 0)


def blocks(x: np.ndarray, other: np.ndarray, *, size: int = 2**24) -> list[np.ndarray]:
    """x in blocks, so that the distances of a block from all of other fit in memory."""
    return np.array_split(x, -(-len(x) * len(other) // size))


def require_pairs(name: str, x: np.ndarray, y: np.ndarray, instead: str) -> None:
    """Refuse a matrix of too many pairs, and say what to do instead."""
    if len(x) * len(y) > PAIRS:
        size = 8 * len(x) * len(y) / 2**30
        raise ValueError(
            f"{name}: expected at most {int(PAIRS**0.5)} examples, got {len(x)} and {len(y)}: "
            f"a matrix of all pairs takes {size:.1f} GiB; {instead}"
        )


def proportion(hits: np.ndarray) -> Estimate:
    """The fraction of hits, with the standard error of independent answers."""
    value = float(np.mean(hits))
    return Estimate(value, float(np.sqrt(value * (1 - value) / len(hits))))
