"""Write a run's pictures and figures as one HTML page, with nothing to fetch.

The figures are those of the last `jaxdiff evaluate`. Pictures that do not exist are left out.
"""

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated, Any

import tyro

from jaxdiff.runs import loading, records
from jaxdiff.training import atomic

PICTURES = {
    "samples.png": "Samples of the model, one class after the other, next to real digits it was "
    "trained on.",
    "reverse.gif": "The reverse process: noise becoming digits.",
    "forward.png": "The forward process: digits dissolving, q(x_t | x_0).",
    "loss.png": "The training loss and the held-out loss of the averaged parameters.",
    "denoising.png": "The error of the denoised image on held-out digits, by noise level, beside "
    "two denoisers without a network.",
}

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>jaxdiff: $title</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222 } img { max-width: 100%; image-rendering: pixelated; border: 1px solid #ddd }
  figure { margin: 2rem 0 } figcaption { color: #555 }
  table { border-collapse: collapse } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd;
  text-align: left }
</style>
<h1>$title</h1>
<table>$summary</table>
$figures
<h2>Denoising error on held-out data</h2>
<table>$denoising</table>
</html>
""")


@dataclass(frozen=True)
class Options:
    """Which run to report."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run, or of a network from elsewhere, as `jaxdiff evaluate` left it."""


def main(options: Options) -> Path:
    """Write report.html into the run's folder."""
    run = loading.load_run(options.run)
    config, path = run.config, run.folder / "evaluation.json"
    if not path.exists():
        raise FileNotFoundError(
            f"run: {options.run} is not evaluated yet; call `jaxdiff evaluate {options.run}`"
        )
    found = records.read_json(path)
    chosen = {"dataset": config.dataset, "steps": found["step"], "seed": config.seed}
    write(run.folder, chosen | figures(found), found["denoising"])
    print(f"look at {run.folder / 'report.html'}")
    return run.folder / "report.html"


def figures(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The single figures of an evaluation; its tables are left out."""
    return {name: value for name, value in evaluation.items() if not isinstance(value, list)}


def write(run: Path, summary: dict[str, Any], denoising: list[dict[str, float]]) -> None:
    """Write report.html into a run folder."""
    figures = "\n".join(
        _figure(run / name, text) for name, text in PICTURES.items() if (run / name).exists()
    )
    rows = "\n".join(_row(name.replace("_", " "), value) for name, value in summary.items())
    head = "<tr>" + "".join(f"<th>{name.replace('_', ' ')}</th>" for name in denoising[0]) + "</tr>"
    body = "\n".join(
        "<tr>" + "".join(f"<td>{value:.4g}</td>" for value in row.values()) + "</tr>"
        for row in denoising
    )
    page = PAGE.substitute(
        title=html.escape(run.name), summary=rows, figures=figures, denoising=head + body
    )
    with atomic(run / "report.html") as draft:
        draft.write_text(page)


def _figure(path: Path, text: str) -> str:
    kind = {".png": "image/png", ".gif": "image/gif"}[path.suffix]
    encoded = base64.b64encode(path.read_bytes()).decode()
    image = f'<img src="data:{kind};base64,{encoded}" alt="{path.stem}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _row(name: str, value: Any) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"<tr><th>{html.escape(name)}</th><td>{html.escape(shown)}</td></tr>"
