"""What has been seen of x_0: likelihoods log r(x_0) = log p(y | x_0) of one example, [*D] -> [], in nats.

Any function of one example will do. The ones here are pytrees, so that a new observation never
compiles again; those that are linear with Gaussian noise are an `Observation`, which says more: how
y is spread where x_0 is known only up to a variance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.tree_util import Partial

from jaxdiff import _checks, _rows
from jaxdiff._functions import Static
from jaxdiff._operators import block_means, blur_matrix, blurred, multiply, squared_rows
from jaxdiff._tree import as_function


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["operator", "y", "noise_std", "gain", "observed"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Observation:
    """A linear observation with Gaussian noise of one example; a function of it.

        y = A x_0 + noise_std n,   log r(x_0) = log N(y; A x_0, noise_std^2 I)

    Fields:
      operator: A, one x_0 [*D] -> [*M], linear.
      y: what was observed, [*M].
      noise_std: standard deviation of the noise, [] or [*M], positive.
      gain: the diagonal of A A^T, [] or [*M]: how a variance of x_0 shows in y. None measures it at
        every call.
      observed: 1 or true where y has an entry, 0 or false where it has none, [] or [*M].
    """

    operator: Partial
    y: jax.Array
    noise_std: Any
    gain: Any = 1.0
    observed: Any = 1.0

    def __call__(self, x_0: jax.Array, spread: Any = None) -> jax.Array:
        """Return log N(y; A x_0, noise_std^2 + gain spread), [], for x_0 [*D] known up to the variance spread, []."""
        predicted = self.operator(x_0)
        _checks.same_shape("what operator returns", predicted, "y", self.y)
        residual = self.y - predicted
        variance = jnp.asarray(self.noise_std, residual.dtype) ** 2
        if spread is not None:
            variance = (
                variance
                + (squared_rows(self.operator, x_0) if self.gain is None else self.gain) * spread
            )
        terms = residual**2 / variance + jnp.log(
            2 * jnp.pi * jnp.broadcast_to(variance, residual.shape)
        )
        return -0.5 * jnp.sum(jnp.where(self.shown(), terms, 0))

    def shown(self) -> jax.Array:
        """Return where y has an entry, [] or [*M], boolean: what is not 0 is true."""
        return jnp.asarray(self.observed).astype(bool)


def _make(
    operator: Partial, y: Any, noise_std: Any, gain: Any = 1.0, observed: Any = True
) -> Observation:
    _checks.floating("y", y)
    _checks.values("y", y, "finite entries", np.isfinite)
    _checks.values("noise_std", noise_std, "a positive standard deviation", lambda v: v > 0)
    return Observation(operator, jnp.asarray(y), noise_std, gain, observed)


def linear(
    operator: Any,
    y: jax.Array,
    noise_std: Any,
    *,
    gain: Any = None,
    event_shape: tuple[int, ...] | None = None,
) -> Observation:
    """Observe a linear map of x_0.

        y = A x_0 + noise_std n

    Args:
      operator: A, a matrix [m, d] that acts on x_0's entries in order, d = prod(D); or a linear
        function of one x_0, [*D] -> [*M], whose arrays are traced if it is a
        `jax.tree_util.Partial`.
      y: [m] or [*M], floating.
      noise_std: [] or shaped like y, positive, traced.
      gain: the diagonal of A A^T, [] or shaped like y, not negative; None takes it from the matrix,
        or measures it of the function. Only the quality of a twist depends on it, never what it
        converges to.
      event_shape: D, for a function whose gain is to be measured here and now, once; without it
        that is done whenever a twist asks, at every step. It is exact for up to 256 entries of y,
        and from 256 random vectors for more.
    Returns:
      An Observation.
    Raises:
      ValueError: shapes do not fit, y is known and not finite, noise_std is not positive, or gain
        is negative.
      TypeError: y is not floating, or operator is neither a matrix nor a function.
    """
    if gain is not None:
        _checks.values(
            "gain",
            gain,
            "a finite diagonal of A A^T, not negative",
            lambda v: (v >= 0) & (v < jnp.inf),
        )
    if callable(operator):
        function = as_function("operator", operator)
        if event_shape is None or gain is not None:
            return _make(function, y, noise_std, gain)
        _checks.floating("y", y)
        like = jax.ShapeDtypeStruct(event_shape, y.dtype)
        _checks.same_shape("what operator returns", jax.eval_shape(function, like), "y", y)
        return _make(function, y, noise_std, squared_rows(function, like))
    _checks.floating("operator", operator)
    if jnp.ndim(operator) != 2 or jnp.shape(y) != operator.shape[:1]:
        shapes = f"{jnp.shape(operator)} and {jnp.shape(y)}"
        raise ValueError(f"operator, y: expected shapes [m, d] and [m], got {shapes}")
    matrix = jnp.asarray(operator)
    return _make(
        Partial(multiply, matrix),
        y,
        noise_std,
        jnp.sum(matrix**2, axis=1) if gain is None else gain,
    )


def mask(y: jax.Array, observed: jax.Array, noise_std: Any) -> Observation:
    """Observe some entries of x_0: inpainting.

        y_i = x_0,i + noise_std n_i   where observed_i

    Args:
      y: [*D], floating; where nothing is observed its entries do not matter: NaN will do.
      observed: [*D] or broadcasting to it, true or 1 where y is an observation, false or 0
        elsewhere: bool, int or float. A traced one counts as true where it is not 0.
      noise_std: [] or [*D], positive, traced.
    Returns:
      An Observation.
    Raises:
      ValueError: observed does not broadcast to y or has other values than 0 and 1, y is known and
        not finite where it is observed, or noise_std is not positive.
      TypeError: y is not floating, or observed no mask.
    """
    shown, y = masked("observed", observed, y)
    weight = shown.astype(y.dtype)
    return _make(Partial(jnp.multiply, weight), y, noise_std, weight, weight)


def masked(name: str, observed: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    """Check a mask and what it shows.

    Args:
      name: of the mask, for the error.
      observed: [*D] or broadcasting to it, as in `mask`.
      y: [*D].
    Returns:
      (the mask, boolean, and y, with 0 where it is not observed), [*D] each.
    Raises:
      ValueError, TypeError: as in `mask`.
    """
    _checks.floating("y", y)
    _checks.mask(name, observed)
    shape = jnp.shape(observed)
    if jnp.broadcast_shapes(shape, y.shape) != y.shape:
        raise ValueError(f"{name}: expected a shape that broadcasts to y's, {y.shape}, got {shape}")
    shown = jnp.broadcast_to(jnp.asarray(observed).astype(bool), y.shape)
    y = jnp.where(shown, y, 0)
    _checks.values("y", y, "finite entries where it is observed", np.isfinite)
    return shown, y


def half(event_shape: tuple[int, ...], side: str = "top") -> jax.Array:
    """Return the mask of one half of an image.

    Args:
      event_shape: (H, W, C).
      side: "top", "bottom", "left" or "right".
    Returns:
      [H, W, C], 1 on that side and 0 on the other; the middle line of an odd length belongs to no
      side.
    Raises:
      ValueError: unknown side, or event_shape is not that of an image.
    """
    _checks.choice("side", side, ("top", "bottom", "left", "right"))
    if len(event_shape) != 3:
        raise ValueError(f"event_shape: expected (H, W, C), got {event_shape}")
    axis = 0 if side in ("top", "bottom") else 1
    size = event_shape[axis]
    place = jnp.arange(size) if side in ("top", "left") else jnp.arange(size)[::-1]
    shape = (size, 1, 1) if axis == 0 else (1, size, 1)
    return jnp.broadcast_to((place < size // 2).astype(float).reshape(shape), event_shape)


def noisy(y: jax.Array, noise_std: Any) -> Observation:
    """Observe all of x_0, with noise: denoising.

        y = x_0 + noise_std n

    Args:
      y: [*D], floating.
      noise_std: [] or [*D], positive, traced.
    Returns:
      An Observation.
    Raises:
      ValueError: noise_std is not positive.
      TypeError: y is not floating.
    """
    return _make(Partial(jnp.asarray), y, noise_std)


def downsample(y: jax.Array, factor: int, noise_std: Any) -> Observation:
    """Observe the means of blocks of pixels: super-resolution.

        y_ij = mean of the block of factor x factor pixels + noise_std n_ij

    Args:
      y: [H / factor, W / factor, C], floating.
      factor: sides of a block, static.
      noise_std: [] or shaped like y, positive, traced.
    Returns:
      An Observation of images [H, W, C].
    Raises:
      ValueError: factor < 1, y is no image, or noise_std is not positive.
      TypeError: y is not floating.
    """
    _checks.positive_int("factor", factor)
    if jnp.ndim(y) != 3:
        raise ValueError(f"y: expected an image [H, W, C], got shape {jnp.shape(y)}")
    return _make(Partial(block_means, Static(factor)), y, noise_std, 1 / factor**2)


def blur(y: jax.Array, width: float, noise_std: Any) -> Observation:
    """Observe the image through a Gaussian blur: deblurring.

        y = K_H x_0 K_W^T + noise_std n,   K_ij = exp(-(i - j)^2 / (2 width^2)) / sum_j

    Args:
      y: [H, W, C], floating.
      width: standard deviation of the blur, in pixels, positive. At the edges the weights add up to
        1 again.
      noise_std: [] or shaped like y, positive, traced.
    Returns:
      An Observation of images shaped like y.
    Raises:
      ValueError: y is no image, or width or noise_std is not positive.
      TypeError: y is not floating.
    """
    _checks.values("width", width, "a positive standard deviation", lambda v: v > 0)
    if jnp.ndim(y) != 3:
        raise ValueError(f"y: expected an image [H, W, C], got shape {jnp.shape(y)}")
    vertical, horizontal = (blur_matrix(size, width).astype(y.dtype) for size in y.shape[:2])
    kept = [jnp.sum(matrix**2, axis=1) for matrix in (vertical, horizontal)]
    gain = jnp.broadcast_to((kept[0][:, None] * kept[1][None])[..., None], y.shape)
    return _make(Partial(blurred, vertical, horizontal), y, noise_std, gain)


def poisson(counts: jax.Array, peak: Any, *, floor: Any = 1e-3) -> Partial:
    """Observe counts of photons, one a pixel.

        y_i ~ Poisson(peak max((x_0,i + 1) / 2, floor))

    Args:
      counts: [*D], floating, not negative.
      peak: mean count of a pixel at 1 (white), [], positive, traced.
      floor: intensity of a dark pixel, as a share of the peak.
    Returns:
      A likelihood of one x_0 in [-1, 1], [*D] -> [], in nats.
    Raises:
      ValueError: counts are negative, or peak or floor is not positive.
      TypeError: counts are not floating.
    """
    _checks.floating("counts", counts)
    _checks.values("counts", counts, "no negative count", lambda v: v >= 0)
    _checks.values("peak", peak, "a positive mean count", lambda v: v > 0)
    _checks.values("floor", floor, "a positive share", lambda v: v > 0)
    return Partial(_poisson, jnp.asarray(counts), peak, floor)


def _poisson(counts: jax.Array, peak: Any, floor: Any, x_0: jax.Array) -> jax.Array:
    rate = peak * jnp.maximum((x_0 + 1) / 2, floor)
    return jnp.sum(counts * jnp.log(rate) - rate - gammaln(counts + 1))


def classified(classifier: Callable, label: Any) -> Partial:
    """Observe a class: what a classifier of clean examples says of x_0.

        log r(x_0) = log softmax(classifier(x_0))[label]

    Args:
      classifier: one x_0 [*D] -> logits [K]; its arrays are traced if it is a
        `jax.tree_util.Partial`.
      label: the class, [], integer, 0 .. K - 1, traced; one outside gives NaN where it is not
        known.
    Returns:
      A likelihood of one x_0, [*D] -> [], in nats.
    Raises:
      TypeError: classifier is no function, or label is not integer.
      ValueError: label is no scalar or negative; when called, not below K.
    """
    _checks.index("label", label)
    if jnp.shape(label) != ():
        raise ValueError(f"label: expected one class, shape (), got {jnp.shape(label)}")
    return Partial(_classified, as_function("classifier", classifier), label)


def _classified(classifier: Partial, label: Any, x_0: jax.Array) -> jax.Array:
    logits = classifier(x_0)
    _checks.index("label", label, len(logits))
    return _rows.pick(jax.nn.log_softmax(logits), label)


def as_likelihood(name: str, likelihood: Any) -> Partial:
    """Return a likelihood as a pytree of a function; an Observation's arrays stay leaves.

    Args:
      name: of the argument, for the error.
      likelihood: an Observation, or one x_0 [*D] -> [].
    Returns:
      A function of (x_0, further arguments).
    Raises:
      TypeError: it is no function.
      ValueError: an Observation's mask is known and has other values than 0 and 1.
    """
    if not isinstance(likelihood, Observation):
        return as_function(name, likelihood)
    _checks.mask(f"{name}.observed", likelihood.observed)
    return Partial(_call, likelihood)


def _call(observation: Observation, x_0: jax.Array, *arguments: Any) -> jax.Array:
    return observation(x_0, *arguments)


def log_likelihoods(likelihood: Callable, x_0: jax.Array, spread: Any = None) -> jax.Array:
    """Evaluate a likelihood at every row.

    Args:
      likelihood: one x_0 [*D] -> []; with spread it is also given that: (x_0, spread) -> [].
      x_0: [B, *D].
      spread: None, or what is given along, [] or [B].
    Returns:
      [B], in nats, in the state's dtype but at least float32.
    Raises:
      ValueError: likelihood returns another shape than [].
    """
    if spread is None:
        values = jax.vmap(likelihood)(x_0)
    else:
        values = jax.vmap(likelihood)(x_0, jnp.broadcast_to(spread, x_0.shape[:1]))
    if values.shape != x_0.shape[:1]:
        raise ValueError(
            f"log_likelihood: expected one value an example, shape (), got {values.shape[1:]}"
        )
    return values.astype(_rows.state_dtype(x_0.dtype))
