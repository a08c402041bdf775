"""One HTML file that holds a run's pictures and figures, with nothing to fetch."""

import base64
import html
from pathlib import Path
from string import Template
from typing import Any

from jaxdiff.training import atomic

PICTURES = {
    "samples.png": "Samples of the model, one class after the other, next to real digits it was trained on.",
    "reverse.gif": "The reverse process: noise becoming digits.",
    "forward.png": "The forward process: digits dissolving, q(x_t | x_0).",
    "loss.png": "The training loss and the held-out loss of the averaged parameters.",
    "denoising.png": "The error of the denoised image on held-out digits, by noise level, beside two denoisers that "
    "need no network.",
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


def write(run: Path, summary: dict[str, Any], denoising: list[dict[str, float]]) -> None:
    """Write report.html into a run folder."""
    figures = "\n".join(_figure(run / name, text) for name, text in PICTURES.items())
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
    return f'<figure><img src="data:{kind};base64,{encoded}" alt="{path.stem}"><figcaption>{text}</figcaption></figure>'


def _row(name: str, value: Any) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"<tr><th>{html.escape(name)}</th><td>{html.escape(shown)}</td></tr>"
