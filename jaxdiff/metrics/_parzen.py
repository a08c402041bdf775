"""The Parzen-window log-likelihood, which papers reported before they had bounds of log p."""

from typing import Any

import numpy as np
from scipy.special import logsumexp

from jaxdiff import _checks
from jaxdiff.metrics._samples import Estimate, blocks, pair, squared_distances

WIDTHS = np.logspace(-1, 0, 10)
"""The widths of the protocol, for data in [0, 1]."""


def parzen_log_likelihood(x: Any, y: Any, *, validation: Any, widths: Any = WIDTHS) -> Estimate:
    """Return the mean log-density of test data under a Gaussian Parzen window on generated samples.

        1/m sum_j log 1/n sum_i N(y_j; x_i, w^2 I),   w = the best of widths for the validation data

    The protocol of the published MNIST values: data in [0, 1]; n = 10,000 generated samples; the
    width from logspace(-1, 0, 10) by the first 1,000 of the last 10,000 training images; m =
    10,000 test images. Papers report nats (Goodfellow et al. 2014) or bits, nats / log 2 (the 2015
    diffusion paper, Table 2). The "perfect model" of that table has training images in place of
    samples: it is the floor of `compare`. In hundreds of dimensions the density of a Parzen window
    says little about a model (Theis et al. 2016), and it is not comparable with a bound of log p.

    Args:
      x: generated sample, [n, *D].
      y: test data, [m, *D].
      validation: held-out data other than the test data, [k, *D].
      widths: one or several w, in units of the data. With one width validation has no effect.
    Returns:
      Estimate of a log-density, in nats, in the units of the data. The standard error is over the
      test data.
    Raises:
      ValueError: a width is not positive; the samples are of different event shapes, or not finite.
    Source: Breuleux et al. 2011, Neural Comput. 23(8), Section 5; Goodfellow et al. 2014,
      arXiv:1406.2661, Section 5, and its parzen_ll.py; Sohl-Dickstein et al. 2015,
      arXiv:1503.03585, Table 2; Theis et al. 2016, arXiv:1511.01844.
    """
    width = parzen_width(x, validation, widths=widths)
    log_density = _log_densities(*pair(x, y, least=1), np.array([width]))[0]
    return Estimate(
        float(np.mean(log_density)), float(np.std(log_density) / np.sqrt(len(log_density)))
    )


def parzen_width(x: Any, validation: Any, *, widths: Any = WIDTHS) -> float:
    """Return the width with the largest log-likelihood of held-out data.

    Args:
      x: generated sample, [n, *D].
      validation: held-out data other than the test data, [k, *D].
      widths: one or several, in units of the data.
    Returns:
      One of the widths. The first or last of several means that the range was too narrow.
    Raises:
      ValueError: a width is not positive; the samples are of different event shapes, or not finite.
    Source: Breuleux et al. 2011, Neural Comput. 23(8), Section 5.
    """
    widths = np.atleast_1d(np.asarray(widths, np.float64))
    _checks.values("widths", widths, "positive widths", lambda w: w > 0)
    if len(widths) == 1:
        return float(widths[0])
    return float(widths[np.argmax(_log_densities(*pair(x, validation, least=1), widths).mean(1))])


def _log_densities(x: np.ndarray, y: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """log 1/n sum_i N(y_j; x_i, w^2 I) for every width and y_j, [len(widths), m]."""
    parts = [
        [logsumexp(-squared / (2 * w**2), axis=1) for w in widths]
        for squared in (squared_distances(part, x) for part in blocks(y, x))
    ]
    normaliser = np.log(len(x)) + x.shape[1] * np.log(np.sqrt(2 * np.pi) * widths)
    return np.concatenate(parts, axis=1) - normaliser[:, None]
