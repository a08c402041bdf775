"""What the posterior script leaves to be looked at."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from jaxdiff import resampling
from jaxdiff.cli import pictures
from jaxdiff.runs import calibration
from jaxdiff.runs.tasks import Task

DRAWS = 6


def samples(task: Task, seen: Any, draws: dict[str, Any], path: Path, *, key: jax.Array) -> None:
    """A row an image: truth, observation, posterior samples, their mean and standard deviation.

    Of several methods one draw and the mean of each.
    """
    num = min(8, len(seen.ys))
    columns = [
        ("truth", list(seen.x_0[:num])),
        ("observed", [task.picture(y) for y in seen.ys[:num]]),
    ]
    for name, drawn in draws.items():
        picked = [_picked(key, drawn, i) for i in range(num)]
        mean, std = zip(*(_moments(drawn, i) for i in range(num)), strict=True)
        if len(draws) == 1:
            columns += [("samples" if n == 0 else "", [p[n] for p in picked]) for n in range(DRAWS)]
            columns += [("mean", list(mean)), ("deviation", [2 * s - 1 for s in std])]
        else:
            columns += [(name, [p[0] for p in picked]), ("mean", list(mean))]
    size = (0.95 * len(columns), num)
    figure, axes = plt.subplots(
        num, len(columns), figsize=size, layout="constrained", squeeze=False
    )
    if len(draws) == 1:
        (drawn,) = draws.values()
        lineages = sorted({int(number) for number in drawn.lineages[:num]})
        span = f"{lineages[0]}" if len(lineages) == 1 else f"{lineages[0]} to {lineages[-1]}"
        figure.suptitle(f"{drawn.x.shape[1]} samples of {span} lineages for an image", fontsize=8)
    for column, (title, images) in enumerate(columns):
        axes[0, column].set_title(title, fontsize=8)
        for row, image in enumerate(images):
            shown = np.clip((np.asarray(image, np.float32) + 1) / 2, 0, 1)
            axes[row, column].imshow(
                shown if shown.shape[2] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1
            )
            axes[row, column].axis("off")
    pictures.save(figure, path)


def _picked(key: jax.Array, drawn: Any, i: int) -> np.ndarray:
    """Equally weighted draws of one image, in no order."""
    key_draw, key_order = jax.random.split(jax.random.fold_in(key, i))
    x = resampling.draw(
        key_draw, jnp.asarray(drawn.log_weights[i]), jnp.asarray(drawn.x[i]), 4 * DRAWS
    )
    return np.asarray(jax.random.permutation(key_order, x))[:DRAWS]


def _moments(drawn: Any, i: int) -> tuple[np.ndarray, np.ndarray]:
    weights = calibration.normalised(drawn.log_weights[i])
    mean = np.tensordot(weights, drawn.x[i], 1)
    return mean, np.sqrt(np.tensordot(weights, (drawn.x[i] - mean) ** 2, 1))


def ranks(found: list[dict[str, Any]], path: Path) -> None:
    """Histograms of ranks, a row a method; grey: where 99% of the counts of a uniform rank lie."""
    names = list(found[0]["calibration"]["functions"])
    figure, axes = plt.subplots(
        len(found),
        len(names),
        figsize=(1.9 * len(names), 0.6 + 1.3 * len(found)),
        layout="constrained",
        squeeze=False,
    )
    for row, method in enumerate(found):
        summary = method["calibration"]
        bins, total = summary["bins"], summary["images"]
        for column, name in enumerate(names):
            axis, function = axes[row, column], summary["functions"][name]
            axis.axhspan(*calibration.band(total, bins), color="0.85")
            axis.hist(function["ranks"], bins, range=(0, 1), histtype="step", color="C0")
            axis.set(xticks=[0, 1], yticks=[], ylim=(0, 3 * total / bins))
            axis.set_title(f"p = {function['p_value']:.2g}", fontsize=7)
            if row == 0:
                axis.set_title(f"{name}\np = {function['p_value']:.2g}", fontsize=8)
        axes[row, 0].set_ylabel(method["method"], fontsize=8)
    figure.supxlabel("rank of the truth among the posterior samples", fontsize=9)
    pictures.save(figure, path)


def decision(found: list[dict[str, Any]], path: Path) -> None:
    """What 50% and 90% intervals hold, against the energy score: the lower left corner wins."""
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained", sharey=True)
    for n, row in enumerate(found):
        own, style = row["calibration"], {"color": f"C{n % 10}", "markersize": 5}
        energy, marker = np.mean(own["energy_score"]), "o" if row["weighted"] else "s"
        for axis, level in zip(axes, (50, 90), strict=True):
            held = own[f"pixels_{level}"]
            error = 2 * held["standard_error"]
            axis.errorbar(
                held["value"], energy, xerr=error, fmt=marker, label=row["method"], **style
            )
    for axis, level in zip(axes, (50, 90), strict=True):
        axis.axvline(level / 100, color="0.8", zorder=0)
        axis.set_xlabel(f"share of hidden pixels in their {level}% intervals")
    axes[0].set_ylabel("energy score (less is better)")
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    pictures.save(figure, path)
