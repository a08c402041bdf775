"""Simulation-based calibration: the rank of the truth among posterior samples.

Draw x_0 from the model, y from p(y | x_0), and samples x from the posterior p(x | y). Then the rank
of f(x_0, y) among the f(x, y) is uniform for any function f (Talts et al. 2018, arXiv:1804.06788).
The log-likelihood as f finds errors that functions of x alone do not find (Modrak et al. 2023,
arXiv:2211.02383).
"""

from typing import Any

import numpy as np
from scipy.stats import binom, chisquare

from jaxdiff.metrics import Estimate

LEVELS = (0.5, 0.9)


def ranks(truth: np.ndarray, draws: np.ndarray, log_weights: np.ndarray, u: Any) -> np.ndarray:
    """The rank of the truth among weighted draws, in [0, 1], for the values of F functions: [F].

        (N (sum_i W_i [f_i < f] + u sum_i W_i [f_i = f]) + u) / (N + 1),   u ~ U[0, 1]

    It is exactly uniform if the N draws have equal weights and are exchangeable with the truth.
    """
    weights = normalised(log_weights)
    below = weights @ (draws < truth[None]) + u * (weights @ (draws == truth[None]))
    return (len(draws) * below + u) / (len(draws) + 1)


def normalised(log_weights: np.ndarray) -> np.ndarray:
    """Weights that add up to one, in float64."""
    weights = np.exp(np.asarray(log_weights, np.float64) - np.max(log_weights))
    return weights / weights.sum()


def num_bins(num: int) -> int:
    """Number of bins for a histogram of so many ranks: about five ranks in each, at most ten."""
    return int(np.clip(num // 5, 2, 10))


def histogram(shares: np.ndarray, bins: int) -> np.ndarray:
    """How many of the ranks [K] lie in each bin."""
    return np.histogram(shares, bins, (0, 1))[0]


def band(num: int, bins: int) -> tuple[float, float]:
    """The band that holds the count of a bin with 99% probability, if num ranks are uniform."""
    low, high = binom.ppf([0.005, 0.995], num, 1 / bins)
    return float(low), float(high)


def uniformity(shares: np.ndarray, bins: int | None = None) -> tuple[float, float]:
    """Pearson's chi-square of ranks [K] against the uniform distribution, and its p-value."""
    found = chisquare(histogram(shares, num_bins(len(shares)) if bins is None else bins))
    return float(found.statistic), float(found.pvalue)


def coverage(shares: np.ndarray, level: float) -> Estimate:
    """How often the central credible interval holds the truth, for ranks [K, F].

    The standard error counts images: the K images are independent, the F functions are not.
    """
    inside = np.mean(np.abs(shares - 0.5) <= level / 2, axis=1)
    return Estimate(float(inside.mean()), float(inside.std(ddof=1) / np.sqrt(len(inside))))


def summary(shares: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Tests and coverage for ranks [K, F]: of each function, and of all functions together."""
    functions = {}
    for name, column in zip(names, shares.T, strict=True):
        statistic, p_value = uniformity(column)
        covered = {
            f"coverage_{round(100 * level)}": coverage(column[:, None], level)._asdict()
            for level in LEVELS
        }
        functions[name] = {
            "chi_square": statistic,
            "p_value": p_value,
            **covered,
            "ranks": column.tolist(),
        }
    overall = {
        f"coverage_{round(100 * level)}": coverage(shares, level)._asdict() for level in LEVELS
    }
    # Bonferroni: the functions' tests are dependent.
    smallest = min(f["p_value"] for f in functions.values())
    return {
        "images": len(shares),
        "bins": num_bins(len(shares)),
        **overall,
        "p_value": min(1.0, len(names) * smallest),
        "functions": functions,
    }


def of_pixels(x_0: np.ndarray, drawn: Any, hidden: np.ndarray) -> dict[str, Any]:
    """Coverage of the hidden pixels' central intervals, and their width.

    Args:
      x_0: truths, [K, *D].
      drawn: with samples x [K, N, *D] and log_weights [K, N].
      hidden: 1 where the observation leaves a pixel open, [*D].
    Returns:
      pixels_50 and pixels_90, with the error over images; deviation, the root mean square standard
      deviation of a hidden pixel.
    """
    place = hidden.reshape(-1) > 0
    shares, squares = [], []
    for truth, x, log_weights in zip(x_0, drawn.x, drawn.log_weights, strict=True):
        weights, draws = normalised(log_weights), x.reshape(len(x), -1)[:, place]
        shares.append(ranks(truth.reshape(-1)[place], draws, log_weights, 0.5))
        mean = weights @ draws
        unbiased = 1 - np.sum(weights**2)  # of one draw alone there is no deviation
        variance = weights @ (draws - mean) ** 2
        squares.append(np.mean(variance) / unbiased if unbiased > 1e-9 else 0.0)
    found = {
        f"pixels_{round(100 * level)}": coverage(np.stack(shares), level)._asdict()
        for level in LEVELS
    }
    return found | {"deviation": float(np.sqrt(np.mean(squares)))}


def paired(ours: list[float], theirs: list[float]) -> Estimate:
    """The mean difference of two lists of figures, image by image."""
    difference = np.asarray(ours) - np.asarray(theirs)
    return Estimate(
        float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))
    )


class Functions:
    """Test functions of an image: projections, and the log-likelihood.

    The projections are two hidden pixels, the mean of the hidden pixels, and the data's three
    leading principal components.
    """

    def __init__(self, train: np.ndarray, hidden: np.ndarray) -> None:
        flat, size = train.reshape(len(train), -1), hidden.size
        open_ = hidden.reshape(-1) > 0
        varied = np.argsort(np.where(open_, -flat.var(0), 1))[:2]
        rows = [np.eye(size)[place] for place in varied] + [open_ / open_.sum()]
        names = [
            f"pixel {place // hidden.shape[1]},{place % hidden.shape[1]}"
            for place in varied // hidden.shape[2]
        ]
        centred = flat.astype(np.float64) - flat.mean(0, dtype=np.float64)
        # The covariance of few images has few directions. A size x size matrix is not needed then.
        few = len(flat) < size
        vectors = (
            np.linalg.svd(centred, full_matrices=False)[2].T
            if few
            else np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
        )
        components = vectors[:, :3].T
        self.rows = np.stack([*rows, *components])
        self.names = [
            *names,
            "mean intensity",
            *(f"component {n + 1}" for n in range(3)),
            "log-likelihood",
        ]

    def __call__(self, x: np.ndarray, log_likelihoods: np.ndarray) -> np.ndarray:
        """Their values at images [N, *D], [N, F]."""
        return np.concatenate(
            [x.reshape(len(x), -1) @ self.rows.T, log_likelihoods[:, None]], axis=1
        )
