"""The page of a report: HTML with everything in it, and nothing to fetch."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from jaxdiff.runs import quality

# Each figure in words that a person uses: its name, and which value is good.
WORDS = {
    "recognised": ("Samples that a classifier reads as their label", "more is better"),
    "classifier_held_out_accuracy": (
        "Real held-out examples that the same classifier reads",
        "the most that samples can reach",
    ),
    "nearest_neighbour_accuracy": (
        "How often a nearest-neighbour test tells samples from real examples",
        "50% if it cannot",
    ),
    "training_distance_ratio": (
        "Distance to the nearest training example, over that of real held-out examples",
        "far below 1 if the network copies",
    ),
    "nearer_than_1_percent_of_held_out": (
        "Samples that are nearer to a training example than 99% of real held-out ones",
        "about 1% if it does not copy",
    ),
    "features_frechet_distance": (
        "Frechet distance in the classifier's features",
        "the nearer to real against real, the better",
    ),
    "features_precision": (
        "Samples that lie among real examples (precision)",
        "as real against real",
    ),
    "features_recall": (
        "Real examples that lie among samples (recall)",
        "as real against real",
    ),
    "num_samples": ("Samples that were measured", ""),
    "num_features": ("Of these, compared in the classifier's features", ""),
}
PERCENT = (
    "recognised", "classifier_held_out_accuracy", "nearest_neighbour_accuracy",
    "nearer_than_1_percent_of_held_out", "features_precision", "features_recall",
)  # fmt: skip
KINDS = {"lower": "at least", "upper": "at most", "density": "density"}

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>jaxdiff: $title</title>
<style>
  :root { color-scheme: light dark; --line: light-dark(#ddd, #444); --soft: light-dark(#555, #aaa) }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem;
    background: light-dark(#fff, #16181c); color: light-dark(#222, #e6e6e6) }
  h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem } p.lead, figcaption, small { color: var(--soft) }
  figure { margin: 1rem 0 } img { max-width: 100%; background: #fff;
    border: 1px solid var(--line); border-radius: 4px }
  .beside { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)) }
  .wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
  td, th { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
    vertical-align: top } td.n { white-space: nowrap; font-variant-numeric: tabular-nums }
  pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); border-radius: 4px }
  input[type=range] { width: 100%; max-width: 30rem } summary { cursor: pointer }
  @media (max-width: 40rem) { td, th { padding: .3rem .35rem } td small { display: block }
    td.n { white-space: normal } td:first-child { min-width: 11rem } }
</style>
<h1>$title</h1>
<p class="lead">$lead</p>
$body
</html>
""")
SLIDER = Template("""<figure><img id="$name" alt="the state after a step" src="$last">
<br><input type="range" min="0" max="$most" value="$most" aria-label="step"
 oninput="document.getElementById('$name').src=frames_$name[this.value]">
<figcaption>From noise to samples: move the slider.</figcaption></figure>
<script>const frames_$name=[$frames]</script>""")


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """The whole page.

    Args:
      title: its heading.
      lead: one sentence under it.
      sections: HTML.
    Returns:
      HTML.
    """
    body = "\n".join(each for each in sections if each)
    return PAGE.substitute(title=html.escape(title), lead=html.escape(lead), body=body)


def section(title: str, *parts: str) -> str:
    """A section, if any of its parts is there."""
    found = [part for part in parts if part]
    return f"<h2>{html.escape(title)}</h2>\n" + "\n".join(found) if found else ""


def picture(path: Path, words: str = "") -> str:
    """A picture file inside the page; nothing if it is not there."""
    if not path.exists():
        return ""
    kind = {".png": "image/png", ".gif": "image/gif"}[path.suffix]
    words = html.escape(words)
    image = f'<img src="{_data(path.read_bytes(), kind)}" alt="{html.escape(path.stem)}">'
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>"


def beside(parts: Sequence[str]) -> str:
    """Parts in columns, as many as the page is wide for."""
    found = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="beside">{found}</div>' if found else ""


def slider(path: Path, name: str = "reverse") -> str:
    """The frames of a GIF under a slider; nothing if it is not there."""
    if not path.exists():
        return ""
    frames = []
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            stream = io.BytesIO()
            image.convert("RGB").quantize(64).save(stream, "PNG", optimize=True)
            frames.append(_data(stream.getvalue(), "image/png"))
    quoted = ",".join(f'"{frame}"' for frame in frames)
    return SLIDER.substitute(name=name, last=frames[-1], most=len(frames) - 1, frames=quoted)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are HTML."""
    top = "".join(f"<th>{html.escape(each)}</th>" for each in head)
    lines = [
        "<tr>" + "".join(f'<td class="n">{cell}</td>' if n else f"<td>{cell}</td>"
                         for n, cell in enumerate(row)) + "</tr>"
        for row in rows
    ]  # fmt: skip
    if not lines:
        return ""
    return f'<div class="wide"><table><tr>{top}</tr>{"".join(lines)}</table></div>'


def figures(found: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """What was measured of samples: a row a figure, a column a run, and real against real.

    Args:
      found: the evaluation of each run.
      names: of the runs, for the head of the table.
    Returns:
      HTML; "" if no samples were measured.
    """
    rows = []
    for name, (words, good) in WORDS.items():
        if not any(name in one for one in found):
            continue
        floor = next((_value(one, name + quality.REAL) for one in found if name in one), "")
        label = html.escape(words) + (f" <small>({html.escape(good)})</small>" if good else "")
        rows.append([label, *(_value(one, name) for one in found), floor])
    head = ["", *(["samples"] if len(found) == 1 else names), "real against real"]
    return table(head, rows)


def probabilities(found: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """The estimates of the probability: a row an estimate, a column a run."""
    by_run = [
        {(row["name"], row["kind"], row["data"]): row for row in one.get("probability", [])}
        for one in found
    ]
    keys = list(dict.fromkeys(key for one in by_run for key in one))
    rows = []
    for key in keys:
        name, kind, data = key
        label = f"{html.escape(name)} <small>({KINDS.get(kind, html.escape(kind))}; {data})</small>"
        cells = []
        for one in by_run:
            row = one.get(key)
            cells.append("" if row is None else _with_error(row, "bits_per_dim") + " bits/dim")
            if len(by_run) == 1 and row is not None:
                cells.append(_with_error(row, "nats") + " nats")
        rows.append([label, *cells])
    head = ["log p(x)", *(["", ""] if len(found) == 1 else names)]
    return table(head, rows)


def denoising(rows: Sequence[dict[str, float]]) -> str:
    """The denoising errors by time."""
    shown = (
        [f"{row['t']:.2f}", f"{row['log_snr']:.1f}", _with_error(row, "x_0_error"),
         f"{row['gaussian_error']:.4f}", f"{row['mean_error']:.4f}"]
        for row in rows
    )  # fmt: skip
    found = table(["t", "log SNR", "network", "best linear", "mean of the data"], shown)
    title = "Mean squared error of the denoised example, in numbers"
    return f"<details><summary>{title}</summary>{found}</details>" if found else ""


def folded(title: str, text: str) -> str:
    """Text that is shown when someone opens it."""
    return (
        f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"
    )


def code(text: str) -> str:
    """Text to be typed."""
    return f"<pre>{html.escape(text)}</pre>"


def _with_error(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.4g} +- {row[name + '_se']:.2g}"


def _value(found: dict[str, Any], name: str) -> str:
    if name not in found:
        return ""
    value, error = found[name], found.get(name + "_se")
    if name.removesuffix(quality.REAL) in PERCENT:
        return f"{value:.1%}" + (f" +- {error:.1%}" if error is not None else "")
    shown = f"{value:.3g}" if isinstance(value, float) else str(value)
    return html.escape(shown) + (f" +- {error:.2g}" if error is not None else "")


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
