"""Guidance: from denoisers to a denoiser."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxdiff import _rows
from jaxdiff._functions import as_function
from jaxdiff.prediction import Denoised, x_0_of


def classifier_free(conditional: Callable, unconditional: Callable, scale: Any) -> Partial:
    """Return the classifier-free guided denoiser.

        D = D_uncond + scale (D_cond - D_uncond)

    The prediction types are joined to x_0 by linear maps, so this is the same combination as one of eps or of scores.

    Args:
      conditional: denoiser given the label, (x_t, t) -> E[x_0 | x_t, y].
      unconditional: denoiser without it.
      scale: [] or [B], traced; 0 is unconditional, 1 conditional, more follows the label harder than the model.
    Returns:
      A denoiser; it calls both. A learned reverse variance is the conditional one's.
    Raises:
      TypeError: a denoiser is no function.
    Source: Ho & Salimans 2022, arXiv:2207.12598, Eq. (6), whose w is scale - 1.
    """
    return Partial(
        _classifier_free, as_function("conditional", conditional), as_function("unconditional", unconditional), scale
    )


def _classifier_free(conditional: Partial, unconditional: Partial, scale: Any, x_t: jax.Array, t: Any) -> Any:
    given, without = conditional(x_t, t), x_0_of(unconditional(x_t, t))
    x_0 = without + _rows.expand(jnp.asarray(scale, x_t.dtype), x_t) * (x_0_of(given) - without)
    return given._replace(x_0=x_0) if isinstance(given, Denoised) else x_0
