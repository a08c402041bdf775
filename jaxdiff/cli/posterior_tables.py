"""The tables of the posterior command: held-out images, and what decides between methods."""

from typing import Any

import numpy as np

from jaxdiff.posterior import FEW
from jaxdiff.runs import calibration
from jaxdiff.runs.tasks import Task

BASELINE = "pigdm"  # energy scores are compared with this method's, image by image


def show(found: list[dict[str, Any]], task: Task) -> None:
    """Print both tables, and a line for each method whose samples are of few lineages."""
    held_out(found, task)
    if "calibration" in found[0]:
        decide(found)
    for row in found:
        lineages = row["mean"]["lineages"]
        if lineages < FEW:
            print(
                f"{row['method']}: the samples of an image come from {lineages:.1f} lineages on "
                "average; their spread says little"
            )


def held_out(found: list[dict[str, Any]], task: Task) -> None:
    """A line for each method, with means over the held-out images."""
    print(f"{task.name}, held-out images; 1 of residual^2 is the noise")
    head = ("log p(y)", "least ESS", "lineages", "PSNR", "energy score", "residual^2")
    _head(head)
    for row in found:
        mean = row["mean"]
        cells = [f"{mean['log_evidence']:.4g}" if row["weighted"] else "-"]
        cells += [
            f"{mean[field]:.4g}"
            for field in ("least_ess", "lineages", "psnr_of_mean", "energy_score")
        ]
        cells.append(f"{mean['residual']:.4g}" if "residual" in mean else "-")
        _line(row, cells)


def decide(found: list[dict[str, Any]]) -> None:
    """A line for each method, measured on images of the model, where the posterior is known."""
    add_pairs(found)
    print(
        "images of the model: what intervals of the hidden pixels hold, their deviation, uniform "
        f"ranks, energy score less that of {BASELINE}, log-probability of the right class, and the "
        "mean difference of two seeds' log p(y)"
    )
    head = ("50%", "90%", "deviation", "p of ranks", "energy", "class", "two seeds")
    _head(head)
    for row in found:
        own = row["calibration"]
        cells = [
            f"{own[f'pixels_{level}']['value']:.2f}+-{own[f'pixels_{level}']['standard_error']:.2f}"
            for level in (50, 90)
        ]
        cells += [f"{own['deviation']:.3f}", f"{own['p_value']:.2g}"]
        pair = own.get("energy_paired")
        cells.append(
            f"{pair['value']:+.3f}+-{pair['standard_error']:.3f}"
            if pair
            else f"{np.mean(own['energy_score']):.3f}"
        )
        cells.append(f"{np.mean(own['class_score']):.2f}" if "class_score" in own else "-")
        both = own.get("log_evidence")
        cells.append("-" if both is None else f"{np.mean(np.abs(np.subtract(*both))):.2f}")
        _line(row, cells)


def add_pairs(found: list[dict[str, Any]]) -> None:
    """Add the difference of each method's energy score from the baseline's, image by image."""
    base = [row["calibration"] for row in found if row["method"] == BASELINE]
    for row in found if base else []:
        own = row["calibration"]
        if row["method"] != BASELINE:
            own["energy_paired"] = calibration.paired(
                own["energy_score"], base[0]["energy_score"]
            )._asdict()


def _head(names: tuple[str, ...]) -> None:
    print(
        f"{'':17}{'systems':>8}{'rows':>6}{'calls':>8}{'s':>7}"
        + "".join(f"{name:>15}" for name in names)
    )


def _line(row: dict[str, Any], cells: list[str]) -> None:
    line = f"{row['method']:17}{row['systems']:>8}{row['rows']:>6}{row['calls']:>8}"
    line += f"{row['seconds_an_image']:7.1f}"
    print(line + "".join(f"{cell:>15}" for cell in cells))
