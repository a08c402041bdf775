"""Observations: log-likelihoods log p(y | x_0) of one example, [*D] -> [], in nats.

Any function of one example is a likelihood. The likelihoods here are pytrees, so a new observation
never compiles a program again. A linear one with Gaussian noise is an `Observation`. It also gives
the density of y where x_0 is known only up to a variance.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from jaxdiff import _checks, _rows
from jaxdiff._operators import BlockMeans, Blur, Matrix, blur_matrix, squared_rows
from jaxdiff._tree import as_function, put, pytree


@pytree
class Observation:
    """A linear observation with Gaussian noise. It is a function of one example.

        y = A x_0 + noise_std n,   log p(y | x_0) = log N(y; A x_0, noise_std^2 I)

    Fields:
      operator: A, one x_0 [*D] -> [*M], linear.
      y: observation, [*M], floating.
      noise_std: standard deviation of the noise, [] or [*M], positive.
      gain: the diagonal of A A^T, [] or [*M]: the variance that y has for each unit of variance of
        x_0. None measures it at every call.
      observed: mask, true or 1 where y is observed, false or 0 where it is not, [] or [*M].
    Raises:
      ValueError: noise_std is not positive, y is known and not finite, or observed is not a mask.
      TypeError: operator is not a function, or y is not floating.
    """

    operator: Callable
    y: jax.Array
    noise_std: Any
    gain: Any = 1.0
    observed: Any = True

    def __post_init__(self) -> None:
        _checks.floating("y", self.y)
        _checks.values("y", self.y, "finite entries", np.isfinite)
        _checks.values(
            "noise_std", self.noise_std, "a positive standard deviation", lambda v: v > 0
        )
        _checks.mask("observed", self.observed)
        put(
            self,
            operator=as_function("operator", self.operator),
            y=jnp.asarray(self.y),
            observed=jnp.asarray(self.observed).astype(bool),
        )

    def __call__(self, x_0: jax.Array, variance: Any = None) -> jax.Array:
        """Return log N(y; A x_0, noise_std^2 + gain variance), [], in nats.

        variance is that of x_0 around its estimate, []; None is 0.
        """
        predicted = self.operator(x_0)
        _checks.same_shape("what operator returns", predicted, "y", self.y)
        residual = self.y.astype(predicted.dtype) - predicted
        total = jnp.asarray(self.noise_std, residual.dtype) ** 2
        if variance is not None:
            total = total + jnp.asarray(self.known_gain(x_0), residual.dtype) * variance
        terms = residual**2 / total + jnp.log(2 * jnp.pi * jnp.broadcast_to(total, residual.shape))
        return -0.5 * jnp.sum(jnp.where(self.observed, terms, 0))

    def known_gain(self, x_0: jax.Array) -> Any:
        """Return the diagonal of A A^T, which is measured for x_0's shape if nobody gave it."""
        return squared_rows(self.operator, x_0) if self.gain is None else self.gain


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
      operator: A. Either a matrix [m, d] that acts on x_0's entries in order, d = prod(D); or a
        linear function of one x_0, [*D] -> [*M]. A `jax.tree_util.Partial` has traced arrays.
      y: [m] or [*M], floating.
      noise_std: [] or shaped like y, positive, traced.
      gain: the diagonal of A A^T, [] or shaped like y, at least 0. None takes it from the matrix,
        or measures the function. Only the quality of a twist depends on gain, never the limit.
      event_shape: D. With it a function is measured once, here. Without it a function is measured
        at every step of a sampler that needs its gain. Up to 256 entries of y are exact, more are
        measured with 256 random vectors.
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
            return Observation(function, y, noise_std, gain)
        _checks.floating("y", y)
        like = jax.ShapeDtypeStruct(event_shape, jnp.asarray(y).dtype)
        _checks.same_shape("what operator returns", jax.eval_shape(function, like), "y", y)
        return Observation(function, y, noise_std, squared_rows(function, like))
    _checks.floating("operator", operator)
    if jnp.ndim(operator) != 2 or jnp.shape(y) != operator.shape[:1]:
        shapes = f"{jnp.shape(operator)} and {jnp.shape(y)}"
        raise ValueError(f"operator, y: expected shapes [m, d] and [m], got {shapes}")
    matrix = jnp.asarray(operator)
    gain = jnp.sum(matrix**2, axis=1) if gain is None else gain
    return Observation(Matrix(matrix), y, noise_std, gain)


def mask(y: jax.Array, observed: jax.Array, noise_std: Any) -> Observation:
    """Observe some entries of x_0: inpainting.

        y_i = x_0,i + noise_std n_i   where observed_i

    Args:
      y: [*D], floating. Entries that are not observed do not matter and may be NaN.
      observed: mask, [*D] or a shape that broadcasts to it: true or 1 where y is observed, false or
        0 elsewhere; bool, int or float. Under tracing every value but 0 is true.
      noise_std: [] or [*D], positive, traced.
    Returns:
      An Observation.
    Raises:
      ValueError: observed does not broadcast to y or has other values than 0 and 1, an observed
        entry of y is known and not finite, or noise_std is not positive.
      TypeError: y is not floating, or observed is not a mask.
    """
    observed, y = masked("observed", observed, y)
    gain = observed.astype(y.dtype)
    return Observation(Mask(observed), y, noise_std, gain, observed)


@pytree
class Mask:
    """x -> x where it is observed, and 0 elsewhere."""

    observed: jax.Array

    def __call__(self, x_0: jax.Array) -> jax.Array:
        """Return the observed entries of one example, [*D]."""
        return self.observed.astype(x_0.dtype) * x_0


def masked(name: str, observed: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    """Check a mask and the observation under it.

    Args:
      name: name of the mask in messages.
      observed: mask, [*D] or a shape that broadcasts to it, as in `mask`.
      y: [*D].
    Returns:
      (the mask, boolean, and y, with 0 where it is not observed), [*D] each.
    Raises:
      ValueError: as in `mask`.
      TypeError: as in `mask`.
    """
    _checks.floating("y", y)
    _checks.mask(name, observed)
    shape = jnp.shape(observed)
    if jnp.broadcast_shapes(shape, y.shape) != y.shape:
        raise ValueError(f"{name}: expected a shape that broadcasts to y's, {y.shape}, got {shape}")
    observed = jnp.broadcast_to(jnp.asarray(observed).astype(bool), y.shape)
    y = jnp.where(observed, y, 0)
    _checks.values("y", y, "finite entries where it is observed", np.isfinite)
    return observed, y


def half(event_shape: tuple[int, ...], side: str = "top") -> jax.Array:
    """Return the mask of one half of an image.

    Args:
      event_shape: (H, W, C).
      side: "top", "bottom", "left" or "right".
    Returns:
      [H, W, C], 1 on that side and 0 elsewhere. The middle line of an odd length is 0.
    Raises:
      ValueError: side is unknown, or event_shape is not that of an image.
    """
    _checks.choice("side", side, ("top", "bottom", "left", "right"))
    if len(event_shape) != 3:
        raise ValueError(f"event_shape: expected (H, W, C), got {event_shape}")
    axis = 0 if side in ("top", "bottom") else 1
    size = event_shape[axis]
    index = jnp.arange(size) if side in ("top", "left") else jnp.arange(size)[::-1]
    shape = (size, 1, 1) if axis == 0 else (1, size, 1)
    return jnp.broadcast_to((index < size // 2).astype(float).reshape(shape), event_shape)


def noisy(y: jax.Array, noise_std: Any) -> Observation:
    """Observe x_0 with noise: denoising.

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
    return Observation(Mask(jnp.ones(jnp.shape(y), bool)), y, noise_std)


def downsample(y: jax.Array, factor: int, noise_std: Any) -> Observation:
    """Observe the means of blocks of pixels: super-resolution.

        y_ij = mean of the block of factor x factor pixels + noise_std n_ij

    Args:
      y: [H / factor, W / factor, C], floating.
      factor: side of a block in pixels, static.
      noise_std: [] or shaped like y, positive, traced.
    Returns:
      An Observation of images [H, W, C].
    Raises:
      ValueError: factor < 1, y is not an image, or noise_std is not positive.
      TypeError: y is not floating.
    """
    _checks.positive_int("factor", factor)
    if jnp.ndim(y) != 3:
        raise ValueError(f"y: expected an image [H, W, C], got shape {jnp.shape(y)}")
    return Observation(BlockMeans(factor), y, noise_std, 1 / factor**2)


def blur(y: jax.Array, width: float, noise_std: Any) -> Observation:
    """Observe an image through a Gaussian blur: deblurring.

        y = K_H x_0 K_W^T + noise_std n,   K_ij = exp(-(i - j)^2 / (2 width^2)) / sum_j

    Args:
      y: [H, W, C], floating.
      width: standard deviation of the blur, in pixels, positive. The weights of a pixel add up to
        1, at the edges too.
      noise_std: [] or shaped like y, positive, traced.
    Returns:
      An Observation of images shaped like y.
    Raises:
      ValueError: y is not an image, or width or noise_std is not positive.
      TypeError: y is not floating.
    """
    _checks.values("width", width, "a positive standard deviation", lambda v: v > 0)
    if jnp.ndim(y) != 3:
        raise ValueError(f"y: expected an image [H, W, C], got shape {jnp.shape(y)}")
    y = jnp.asarray(y)
    vertical, horizontal = (blur_matrix(size, width).astype(y.dtype) for size in y.shape[:2])
    rows = [jnp.sum(matrix**2, axis=1) for matrix in (vertical, horizontal)]
    gain = jnp.broadcast_to((rows[0][:, None] * rows[1][None])[..., None], y.shape)
    return Observation(Blur(vertical, horizontal), y, noise_std, gain)


@pytree
class Poisson:
    """The likelihood of photon counts."""

    counts: jax.Array
    peak: Any
    floor: Any

    def __post_init__(self) -> None:
        _checks.floating("counts", self.counts)
        _checks.values("counts", self.counts, "no negative count", lambda v: v >= 0)
        _checks.values("peak", self.peak, "a positive mean count", lambda v: v > 0)
        _checks.values("floor", self.floor, "a positive fraction", lambda v: v > 0)
        put(self, counts=jnp.asarray(self.counts))

    def terms(self, x_0: jax.Array) -> jax.Array:
        """Return log p(count | x_0) of each pixel, [*D], in nats."""
        counts, peak = self.counts.astype(x_0.dtype), jnp.asarray(self.peak, x_0.dtype)
        rate = peak * jnp.maximum((x_0 + 1) / 2, jnp.asarray(self.floor, x_0.dtype))
        return counts * jnp.log(rate) - rate - gammaln(counts + 1)

    def __call__(self, x_0: jax.Array) -> jax.Array:
        """Return log p(counts | x_0), [], in nats."""
        return jnp.sum(self.terms(x_0))

    def normal(self) -> Observation:
        """Return a normal observation that is near: a count has about its own variance.

        y = 2 count / peak - 1,   noise_std = 2 sqrt(count + 1) / peak
        """
        peak = jnp.asarray(self.peak, self.counts.dtype)
        return noisy(2 * self.counts / peak - 1, 2 * jnp.sqrt(self.counts + 1) / peak)


def poisson(counts: jax.Array, peak: Any, *, floor: Any = 1e-3) -> Poisson:
    """Observe photon counts, one for each pixel.

        y_i ~ Poisson(peak max((x_0,i + 1) / 2, floor))

    Args:
      counts: [*D], floating, at least 0.
      peak: mean count of a white pixel, x_0 = 1, [], positive, traced.
      floor: intensity of a black pixel, as a fraction of the peak.
    Returns:
      A likelihood of one x_0 in [-1, 1], [*D] -> [], in nats.
    Raises:
      ValueError: counts are negative, or peak or floor is not positive.
      TypeError: counts are not floating.
    """
    return Poisson(counts, peak, floor)


@pytree
class Classified:
    """The likelihood of a class."""

    classifier: Callable
    label: Any

    def __post_init__(self) -> None:
        _checks.index("label", self.label)
        if jnp.shape(self.label) != ():
            raise ValueError(f"label: expected one class, shape (), got {jnp.shape(self.label)}")
        put(self, classifier=as_function("classifier", self.classifier))

    def __call__(self, x_0: jax.Array) -> jax.Array:
        """Return log p(label | x_0), [], in nats."""
        logits = self.classifier(x_0)
        _checks.index("label", self.label, len(logits))
        return _rows.pick(jax.nn.log_softmax(logits), self.label)


def classified(classifier: Callable, label: Any) -> Classified:
    """Observe a class, through a classifier of clean examples.

        log p(y | x_0) = log softmax(classifier(x_0))[label]

    Args:
      classifier: one x_0 [*D] -> logits [K]. A `jax.tree_util.Partial` has traced arrays.
      label: the class, [], integer, 0 .. K - 1, traced. A traced label outside gives NaN.
    Returns:
      A likelihood of one x_0, [*D] -> [], in nats.
    Raises:
      TypeError: classifier is not a function, or label is not integer.
      ValueError: label is not a scalar, or is negative. When called: label is not below K.
    """
    return Classified(classifier, label)


def log_likelihoods(likelihood: Callable, x_0: jax.Array, variance: Any = None) -> jax.Array:
    """Evaluate a likelihood at every row.

    Args:
      likelihood: one x_0 [*D] -> [], or (x_0, variance) -> [] where a variance is given.
      x_0: [B, *D].
      variance: None, or that of x_0 around its estimate, [] or [B].
    Returns:
      [B], in nats, in the dtype of x_0 but at least float32.
    Raises:
      ValueError: likelihood returns another shape than [].
    """
    if variance is None:
        values = jax.vmap(likelihood)(x_0)
    else:
        values = jax.vmap(likelihood)(x_0, jnp.broadcast_to(variance, x_0.shape[:1]))
    if values.shape != x_0.shape[:1]:
        raise ValueError(
            f"log_likelihood: expected one value an example, shape (), got {values.shape[1:]}"
        )
    return values.astype(_rows.state_dtype(x_0.dtype))
