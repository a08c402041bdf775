"""The pictures of the commands: PNGs and GIFs, written atomically."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from jaxdiff.runs.datasets import Dataset

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from PIL import Image

import jaxdiff as jd
from jaxdiff.training import atomic

DPI = 120


def save(figure: Any, path: Path) -> None:
    """Write a figure and forget it."""
    with atomic(path) as draft:
        figure.savefig(draft, dpi=DPI, bbox_inches="tight")
    plt.close(figure)


def grid(x: np.ndarray, columns: int = 8, pad: int = 1) -> np.ndarray:
    """Images [N, H, W, C] in [-1, 1] as one picture [H', W', 3] in [0, 1], row by row."""
    num, height, width, channels = x.shape
    rows = -(-num // columns)
    cells = np.ones((rows * columns, height + pad, width + pad, 3), np.float32)
    cells[:num, :height, :width] = np.clip((x[..., : 3 if channels >= 3 else 1] + 1) / 2, 0, 1)
    sheet = cells.reshape(rows, columns, height + pad, width + pad, 3).swapaxes(1, 2)
    return sheet.reshape(rows * (height + pad), columns * (width + pad), 3)[
        : -pad or None, : -pad or None
    ]


def show(axis: Any, x: np.ndarray, title: str, columns: int = 8) -> None:
    """Draw examples on an axis: images as a sheet, vectors as points."""
    if x.ndim == 4:
        axis.imshow(grid(x, columns), interpolation="nearest")
        axis.axis("off")
    elif x.shape[1] == 1:
        axis.hist(x[:, 0], bins=30, range=(-3, 3), density=True)
    else:
        axis.scatter(*x[:, :2].T, s=2, alpha=0.5, linewidths=0)
        axis.set(aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    axis.set_title(title)


def samples(dataset: Dataset, x: np.ndarray, real: np.ndarray | None, path: Path) -> None:
    """Draw samples, next to real examples if those can be read."""
    shown = {"samples": x} | ({} if real is None else {f"real {dataset.name}": real})
    figure, axes = plt.subplots(
        1, len(shown), figsize=(5 * len(shown), 5.2), layout="constrained", squeeze=False
    )
    for axis, (title, images) in zip(axes[0], shown.items(), strict=True):
        show(axis, images, title)
    save(figure, path)


def neighbours(
    x: np.ndarray, distance: np.ndarray, nearest: np.ndarray, path: Path, *, num: int = 16
) -> None:
    """Draw samples above their nearest training examples: the first ones, and the nearest ones."""
    figure, axes = plt.subplots(2, 1, figsize=(10, 3.2), layout="constrained")
    order = {
        "the first samples": np.arange(len(x))[:num],
        "the samples nearest to training data": np.argsort(distance)[:num],
    }
    for axis, (title, index) in zip(axes, order.items(), strict=True):
        show(
            axis,
            np.concatenate([x[index], nearest[index]]),
            f"{title}, above their nearest training examples",
            len(index),
        )
    save(figure, path)


def strips(shown: dict[str, np.ndarray], path: Path) -> None:
    """Rows of images [K, columns, *D], a block a title."""
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(8, 4.6 * len(shown)), layout="constrained", squeeze=False
    )
    for axis, (title, x) in zip(axes[:, 0], shown.items(), strict=True):
        show(axis, x.reshape(-1, *x.shape[2:]), title, x.shape[1])
    save(figure, path)


def forward(schedule: jd.Schedule, dataset: Dataset, real: np.ndarray, path: Path) -> None:
    """Examples dissolving: q(x_t | x_0) at nine times, with one noise for each example."""
    ts = np.linspace(0, 1, 9)
    x_0 = jnp.asarray(real[:6] if real.ndim == 4 else real)
    eps = jax.random.normal(jax.random.key(0), x_0.shape)
    states = [np.asarray(jd.q_sample(schedule, x_0, float(t), eps)) for t in ts]
    figure, axes = plt.subplots(
        1, len(ts), figsize=(1.5 * len(ts), 9 if real.ndim == 4 else 2), layout="constrained"
    )
    scale = [float(np.hypot(*map(np.asarray, schedule.alpha_sigma(float(t))))) for t in ts]
    for axis, t, x, size in zip(axes, ts, states, scale, strict=True):
        # A variance-exploding state is shown at the scale of the data.
        show(axis, x / max(size, 1.0), f"t = {t:.3g}", columns=1)
    save(figure, path)


def reverse(
    dataset: Dataset, trajectory: np.ndarray, path: Path, *, scale: int = 6, milliseconds: int = 80
) -> None:
    """Write the states [S, N, *D] of the reverse process as a GIF, with a pause at the end."""
    if trajectory.ndim == 5:
        frames = [grid(x / max(1.0, float(np.std(x)))) for x in trajectory]
        stills = [Image.fromarray((255 * frame).astype(np.uint8)) for frame in frames]
        scale = max(1, min(scale, 640 // stills[0].width))
        stills = [
            still.resize((still.width * scale, still.height * scale), Image.Resampling.NEAREST)
            for still in stills
        ]
    else:
        stills = [_points(x) for x in trajectory]
    pauses = [milliseconds] * (len(stills) - 1) + [1500]
    with atomic(path) as draft:
        stills[0].save(
            draft, save_all=True, append_images=stills[1:], duration=pauses, loop=0, optimize=True
        )


def _points(x: np.ndarray) -> Image.Image:
    figure, axis = plt.subplots(figsize=(4, 4))
    show(axis, x, "")
    figure.canvas.draw()
    still = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])  # type: ignore[attr-defined]
    plt.close(figure)
    return still


def loss_curve(log: list[dict[str, float]], path: Path) -> None:
    """Training loss, its running mean, and the held-out loss."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    steps, losses = _column(log, "loss")
    axis.plot(steps, losses, alpha=0.3, label="training")
    if len(losses) >= 10:
        width = max(2, len(losses) // 20)
        mean = np.convolve(losses, np.ones(width) / width, mode="valid")
        axis.plot(steps[width - 1 :], mean, color="C0", label=f"running mean of {width}")
    axis.plot(
        *_column(log, "held_out_loss"), "o-", color="C1", label="held out, averaged parameters"
    )
    axis.set(xlabel="step", ylabel="loss", yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    save(figure, path)


def _column(log: list[dict[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    lines = [(line["step"], line[name]) for line in log if name in line]
    steps, values = zip(*lines, strict=True) if lines else ((), ())
    return np.asarray(steps), np.asarray(values)


def error_by_time(rows: list[dict[str, float]], path: Path) -> None:
    """Draw held-out denoising error against noise level, beside two denoisers without a network."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    log_snr = [row["log_snr"] for row in rows]
    error = np.asarray([row["x_0_error"] for row in rows])
    axis.plot(log_snr, error, "o-", label="network")
    axis.fill_between(
        log_snr,
        *(error + sign * 2 * np.asarray([row["x_0_error_se"] for row in rows]) for sign in (-1, 1)),
        alpha=0.3,
    )
    axis.plot(log_snr, [row["mean_error"] for row in rows], "--", label="the data's mean")
    axis.plot(log_snr, [row["gaussian_error"] for row in rows], ":", label="best linear denoiser")
    axis.set(
        xlabel="log signal-to-noise ratio (nats)", ylabel="mean squared error of x_0", yscale="log"
    )
    axis.invert_xaxis()
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    save(figure, path)


def samplers(results: list[dict[str, Any]], path: Path) -> None:
    """Draw error against network calls: each sampler's best grid, and each grid's best sampler."""
    panels = [
        (
            "sampler",
            "sliced_wasserstein",
            "sliced Wasserstein-2 to reference samples\neach sampler, its best grid",
        ),
        (
            "grid",
            "sliced_wasserstein",
            "sliced Wasserstein-2 to reference samples\neach grid, its best sampler",
        ),
        ("sampler", "moments", "Frechet distance of the moments\neach sampler, its best grid"),
        (
            "sampler",
            "same_noise",
            "distance from the ODE from the same noise\neach solver, its best grid",
        ),
    ]
    figure = plt.figure(figsize=(20, 5.4 * len(results)), layout="constrained")
    parts: Any = figure.subfigures(len(results), 1, squeeze=False)
    for part, result in zip(parts[:, 0], results, strict=True):
        part.suptitle(result["title"])
        for axis, (by, name, title) in zip(part.subplots(1, len(panels)), panels, strict=True):
            _lines(axis, result, by, name, title=title)
    save(figure, path)


def _lines(axis: Any, result: dict[str, Any], by: str, figure_name: str, *, title: str) -> None:
    rows = [row for row in result["rows"] if row[figure_name] is not None]
    names = list(dict.fromkeys(row[by] for row in result["rows"]))
    for number, name in enumerate(names):
        best: dict[int, float] = {}
        for row in rows:
            if row[by] == name:
                best[row["calls"]] = min(row[figure_name], best.get(row["calls"], np.inf))
        if best:
            marker, style = "o^sDvP*Xd<>p"[number % 12], "-" if number < 10 else "--"
            line = zip(*sorted(best.items()), strict=True)
            axis.plot(*line, style, marker=marker, color=f"C{number % 10}", label=name)
    floors = {"sliced_wasserstein": "floor", "moments": "moments_floor"}
    if figure_name in floors:
        axis.axhline(
            result[floors[figure_name]],
            color="k",
            linestyle=":",
            linewidth=1,
            label="exact samples",
        )
    calls = sorted({row["calls"] for row in result["rows"]})
    axis.set(xscale="log", yscale="log", xlabel="network calls", xticks=calls, xticklabels=calls)
    axis.set_title(title, fontsize=10)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def orders(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw error against number of steps on logarithmic axes: the slope is the order."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    figure, axes = plt.subplots(
        1, len(families), figsize=(5.5 * len(families), 5), layout="constrained", sharey=True
    )
    for axis, family in zip(np.atleast_1d(axes), families, strict=True):
        for number, row in enumerate(row for row in rows if row["family"] == family):
            label = f"{row['sampler']}: {row['slope']:.2f}"
            axis.plot(
                row["steps"],
                row["errors"],
                marker="o^sDvP*X"[number % 8],
                markersize=4,
                label=label,
            )
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="steps",
            title=f"{family}: slopes of the last three points",
        )
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    np.atleast_1d(axes)[0].set_ylabel("median error of the end state")
    save(figure, path)


def bound_terms(terms: dict[str, np.ndarray], path: Path) -> None:
    """Draw the terms of the variational bound by noise level, and their cumulative sum."""
    log_snr, bits = terms["log_snr"], terms["bits"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    inner = bits[1:-1]
    axes[0].step(log_snr[:-1], inner, where="post", label="transitions")
    errors = 2 * terms["bits_se"][1:-1]
    axes[0].fill_between(log_snr[:-1], inner - errors, inner + errors, step="post", alpha=0.3)
    axes[0].set_title(
        f"bits per dimension of each step (prior {bits[0]:.2g}, decoder {bits[-1]:.2g})",
        fontsize=10,
    )
    axes[1].plot(log_snr, np.cumsum(bits[:-1]), label="from noise to data")
    axes[1].axhline(bits.sum(), color="k", linestyle=":", label="with the decoder")
    axes[1].set_title(f"adding up to {bits.sum():.3f}", fontsize=10)
    for axis in axes:
        axis.set(xlabel="log signal-to-noise ratio (nats)", ylabel="bits per dimension")
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)


def crooks(works: dict[str, np.ndarray], path: Path) -> None:
    """Draw log-weights of forward and reverse paths: their densities cross at log p.

    They are relative to the middle of each example's two bounds.
    """
    centre = (works["lower"] + works["upper"]) / 2
    forward = (-works["forward"] - centre[:, None]).ravel()
    reverse = works["reverse"] - centre
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    low, high = np.quantile(np.concatenate([forward, reverse]), [0.002, 0.998])
    bins = np.linspace(low, high, 41).tolist()
    axis.hist(
        forward, bins, density=True, alpha=0.5, label=f"forward paths (mean {forward.mean():.2f})"
    )
    axis.hist(
        reverse, bins, density=True, alpha=0.5, label=f"reverse paths (mean {reverse.mean():.2f})"
    )
    axis.axvline(0, color="k", linestyle=":", label="log p(x_0), the middle of its bounds")
    axis.set(xlabel="log weight of a path minus log p(x_0), nats", ylabel="density")
    axis.legend()
    save(figure, path)


def bound_by_paths(shown: dict[str, dict[str, np.ndarray]], size: int, path: Path) -> None:
    """Draw the bounds against the number of paths K: simulated data have an upper one too."""
    to_bits = -1 / (size * np.log(2))

    def curve(log_w: np.ndarray, first: np.ndarray | None = None) -> tuple[list[int], list[float]]:
        """log-mean-exp over the first K paths; `first` stands in for one of them."""
        counts = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= log_w.shape[1]]
        columns = (
            log_w if first is None else np.concatenate([first[:, None], log_w[:, :-1]], axis=1)
        )
        return counts, [
            float(np.mean(np.logaddexp.reduce(columns[:, :k], axis=1) - np.log(k))) * to_bits
            for k in counts
        ]

    lines = {}
    if "paths" in shown:
        lines["held out"] = {"upper bound of the bits": curve(shown["paths"]["log_w"])}
    if "works" in shown:
        forward, reverse = -shown["works"]["forward"], shown["works"]["reverse"]
        lines["simulated"] = {
            "from forward paths": curve(forward), "with the reverse path": curve(forward, reverse),
        }  # fmt: skip
    figure, axes = plt.subplots(
        1, len(lines), figsize=(5.5 * len(lines), 4), layout="constrained", squeeze=False
    )
    for axis, (data, curves) in zip(axes[0], lines.items(), strict=True):
        for (label, points), marker in zip(curves.items(), "os", strict=False):
            axis.plot(*points, f"{marker}-", label=f"{data}: {label}")
        axis.set(xscale="log", xlabel="number of paths K", ylabel="bits per dimension")
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)
