"""Two-dimensional densities at about unit scale, drawn one key a point."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff import _checks, _rows

NOISE = 0.05  # standard deviation of the isotropic noise around curves


def sample(key: jax.Array, name: str, num: int, *, first: int = 0) -> jax.Array:
    """Draw points of a named density; point i depends on (key, first + i) alone.

    Args:
      key: typed PRNG key, consumed.
      name: one of `names()`; the equations are in the function of that name.
      num: number of points.
      first: index of the first point, so that chunks join up.
    Returns:
      Points, float32 [num, 2].
    Raises:
      ValueError: name is unknown, or num < 1.
    """
    _checks.choice("name", name, names())
    _checks.positive_int("num", num)
    return jax.vmap(DENSITIES[name])(_rows.keys(key, num, first=first))


def names() -> tuple[str, ...]:
    """The names that `sample` knows."""
    return tuple(DENSITIES)


def swiss_roll(key: jax.Array) -> jax.Array:
    """a (cos a, sin a) / (3 pi) + noise, a ~ U[1.5 pi, 4.5 pi]: one and a half turns."""
    on_curve, noise = jax.random.split(key)
    angle = _uniform(on_curve, 1.5 * jnp.pi, 4.5 * jnp.pi)
    return angle / (3 * jnp.pi) * _direction(angle) + _noise(noise)


def two_moons(key: jax.Array) -> jax.Array:
    """+-((cos a, sin a) - (1/2, 1/4)) + noise, a ~ U[0, pi]: two interlocking half circles."""
    on_curve, which, noise = jax.random.split(key, 3)
    moon = _direction(_uniform(on_curve, 0, jnp.pi)) - jnp.array([0.5, 0.25], jnp.float32)
    return _sign(which) * moon + _noise(noise)


def checkerboard(key: jax.Array) -> jax.Array:
    """Density 1/8 on the squares of [-2, 2)^2 with floor(x) + floor(y) even, 0 on the others."""
    horizontal, vertical, which = jax.random.split(key, 3)
    x, y = _uniform(horizontal, -2, 2), _uniform(vertical, 0, 1)
    row = jnp.mod(jnp.floor(x), 2) - jnp.where(jax.random.bernoulli(which), 2.0, 0.0)
    return jnp.stack([x, row + y])


def eight_gaussians(key: jax.Array) -> jax.Array:
    """Eight equal Gaussians of standard deviation 0.1 on a circle of radius sqrt(2)."""
    which, noise = jax.random.split(key)
    angle = jax.random.randint(which, (), 0, 8).astype(jnp.float32) * jnp.float32(jnp.pi / 4)
    return jnp.float32(2**0.5) * _direction(angle) + 2 * _noise(noise)


def rings(key: jax.Array) -> jax.Array:
    """r (cos a, sin a) + noise, r in {1/2, 1, 3/2} with equal probability, a ~ U[0, 2 pi]."""
    on_curve, which, noise = jax.random.split(key, 3)
    radius = jax.random.randint(which, (), 1, 4).astype(jnp.float32) * jnp.float32(0.5)
    return radius * _direction(_uniform(on_curve, 0, 2 * jnp.pi)) + _noise(noise)


def spiral(key: jax.Array) -> jax.Array:
    """+-1.5 r (cos a, sin a) + noise, a = 3 pi r, r^2 ~ U[0, 1]: two arms of 1.5 turns."""
    on_curve, which, noise = jax.random.split(key, 3)
    radius = jnp.sqrt(_uniform(on_curve, 0, 1))
    return _sign(which) * 1.5 * radius * _direction(3 * jnp.pi * radius) + _noise(noise)


def _uniform(key: jax.Array, low: float, high: float) -> jax.Array:
    return jax.random.uniform(key, (), jnp.float32, low, high)


def _noise(key: jax.Array) -> jax.Array:
    return NOISE * jax.random.normal(key, (2,), jnp.float32)


def _sign(key: jax.Array) -> jax.Array:
    return jax.random.rademacher(key, (), jnp.float32)


def _direction(angle: jax.Array) -> jax.Array:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


DENSITIES: dict[str, Callable[[jax.Array], jax.Array]] = {
    density.__name__: density
    for density in (swiss_roll, two_moons, checkerboard, eight_gaussians, rings, spiral)
}
