"""Open a page to play with a network of images: samples, the reverse process, hidden parts.

jaxdiff play mnist

The page is served on this machine alone, at the address that is printed. Ctrl-C ends it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from jaxdiff._extras import needs
from jaxdiff.cli import pictures
from jaxdiff.runs import loading, playing, samplers

WIDTH = 448
"""Of a picture on the page, in pixels, about."""
EVERY, UNKNOWN = "all, in turn", "not known"
HELP = (
    "Paint over the part of the picture that is to be hidden. The network then draws pictures that "
    "agree with the rest. Each comes from a particle system of its own, so that they are "
    "independent."
)


@dataclass(frozen=True)
class Options:
    """Which network, and where the page is."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run of images, or of a network from elsewhere; or mnist, the network that ships
    with jaxdiff."""
    port: int = 7860
    """Port of the page on this machine."""
    open: bool = False
    """Open the page in the browser."""
    best: bool = False
    """Use the checkpoint of the lowest held-out loss instead of the newest."""


def main(options: Options) -> None:
    if not 0 < options.port < 65536:
        raise ValueError(f"port: expected 1 to 65535, got {options.port}")
    needs("gradio", extra="play")
    blocks = page(playing.Player(loading.load_run(options.run, best=options.best)))
    blocks.launch(
        server_name="127.0.0.1",
        server_port=options.port,
        inbrowser=options.open,
        **look(),
    )


def look() -> dict[str, Any]:
    """How the page is launched: fonts of the system, so that it needs no network."""
    gr = needs("gradio", extra="play")
    theme = gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return {"theme": theme, "css": ".pixels img { image-rendering: pixelated }"}


def enlarged(x: np.ndarray, columns: int) -> Image.Image:
    """Images [N, H, W, C] in [-1, 1] as one picture of about WIDTH pixels."""
    sheet = Image.fromarray((255 * pictures.grid(x, columns)).round().astype(np.uint8))
    scale = max(1, WIDTH // sheet.width)
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def painted(layers: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Where someone has painted, [H, W]: at least half of a pixel of the picture.

    Args:
      layers: what was painted on the enlarged picture, each [H', W', 4], uint8.
      shape: of the picture, (H, W, C).
    """
    height, width = shape[:2]
    found = np.zeros((height, width), bool)
    for layer in layers:
        alpha = Image.fromarray(layer[..., 3]).resize((width, height), Image.Resampling.BOX)
        found |= np.asarray(alpha) >= 128
    return found


class Told:
    """A context in which an error that the user can mend is shown on the page."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ValueError | TypeError):
            raise needs("gradio", extra="play").Error(str(error), print_exception=False) from None


@dataclass(frozen=True)
class Events:
    """What the page does with a network."""

    player: playing.Player

    def draw(self, label: str, guidance: float, sampler: str, steps: float, seed: float) -> tuple:
        """Draw samples: their states, the sheet, the slider over steps, and the first one."""
        with Told():
            states = self.player.states(
                label=None if label == EVERY else int(label),
                guidance=guidance,
                sampler=sampler,
                steps=int(steps),
                seed=int(seed),
            )
        last = len(states) - 1
        slider = needs("gradio", extra="play").Slider(maximum=last, value=last)
        return states, enlarged(states[-1], 4), slider, *self.choose(states, 0)

    def choose(self, states: np.ndarray, number: float) -> tuple:
        """One of the samples, and the canvas to paint on it."""
        x = states[-1][int(number)]
        return x, {"background": enlarged(x[None], 1), "layers": [], "composite": None}

    def step(self, states: np.ndarray, number: float) -> Image.Image:
        """The states after a step."""
        x = states[int(number)]
        # A variance-exploding state is shown at the scale of the data.
        return enlarged(x / max(1.0, float(np.std(x))), 4)

    def complete(
        self, x_0: np.ndarray, canvas: dict, label: str, noise: float, seed: float
    ) -> tuple:
        """Draw what a painted part may be: what is seen, the samples, and the evidence in words."""
        hidden = painted(canvas["layers"], x_0.shape)
        with Told():
            found = self.player.complete(
                x_0,
                hidden,
                label=None if label == UNKNOWN else int(label),
                noise_std=noise,
                seed=int(seed),
            )
        grey = np.where(hidden[..., None], 0.0, x_0)
        words = (
            f"log p(what is seen) = **{found.log_evidence:.1f} +- {found.error:.1f}** nats, "
            f"by {len(found.x)} systems of {playing.ROWS} particles. In a system "
            f"{found.lineages:.1f} lineages are left on average, so each gives one sample."
        )
        return enlarged(grey[None], 1), enlarged(found.x, 4), words


def page(player: playing.Player) -> Any:
    """Build the page.

    Args:
      player: the network.
    Returns:
      A gradio Blocks, to be launched.
    """
    gr = needs("gradio", extra="play")
    trained, name = player.run.trained, player.run.folder.name
    events = Events(player)
    with gr.Blocks(title=f"jaxdiff: {name}", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {name}\n`{trained!r}`")
        states, x_0 = gr.State(), gr.State()
        with gr.Tab("Draw"), gr.Row():
            asked, button, sheet, at = _draw_tab(gr, trained.num_classes)
        with gr.Tab("Hide a part"), gr.Row():
            number, canvas, options, ask, found = _hide_tab(gr, trained.num_classes)
        shown = [states, sheet, at, x_0, canvas]
        button.click(events.draw, asked, shown)
        blocks.load(events.draw, asked, shown)
        at.input(events.step, [states, at], sheet, show_progress="hidden")
        number.input(events.choose, [states, number], [x_0, canvas], show_progress="hidden")
        ask.click(events.complete, [x_0, canvas, *options], found)
    return blocks


def _picture(gr: Any, title: str, **options: Any) -> Any:
    gr.Markdown(title)
    return gr.Image(
        show_label=False, type="pil", interactive=False, elem_classes="pixels", **options
    )


def _classes(gr: Any, num_classes: int | None, first: str, label: str) -> Any:
    names = [first, *map(str, range(num_classes or 0))]
    return gr.Dropdown(names, value=first, label=label, visible=num_classes is not None)


def _draw_tab(gr: Any, num_classes: int | None) -> tuple:
    """The options, the button, the sheet of samples and the slider over the steps."""
    with gr.Column(min_width=300):
        options = [
            _classes(gr, num_classes, EVERY, "Class"),
            gr.Slider(
                0, 6, 1.0, step=0.1, label="Guidance (1 is the model)",
                visible=num_classes is not None,
            ),
            gr.Dropdown(list(samplers.SAMPLERS), value=samplers.DEFAULT, label="Sampler"),
            gr.Slider(2, 100, samplers.STEPS, step=1, label="Steps"),
            gr.Number(0, label="Seed", precision=0),
        ]  # fmt: skip
        button = gr.Button("Draw", variant="primary")
    with gr.Column(min_width=300):
        sheet = _picture(gr, "The reverse process")
        at = gr.Slider(0, 20, 20, step=1, label="Step, from noise to samples")
    return options, button, sheet, at


def _hide_tab(gr: Any, num_classes: int | None) -> tuple:
    """The number of the sample, the canvas, the options, the button and what is found."""
    with gr.Column(min_width=300):
        gr.Markdown(HELP)
        number = gr.Slider(0, 15, 0, step=1, label="Which of the samples")
        gr.Markdown("Paint what is hidden")
        canvas = gr.ImageEditor(
            type="numpy", image_mode="RGBA", show_label=False, layers=False,
            brush=gr.Brush(colors=["#e07020"], default_size=40, color_mode="fixed"),
            transforms=(), sources=(), elem_classes="pixels", height=WIDTH + 100,
        )  # fmt: skip
        options = [
            _classes(gr, num_classes, UNKNOWN, "Its class"),
            gr.Slider(0.02, 1, 0.1, step=0.02, label="Noise on what is seen"),
            gr.Number(0, label="Seed", precision=0),
        ]
        ask = gr.Button("Complete it", variant="primary")
    with gr.Column(min_width=300):
        seen = _picture(gr, "What is seen", height=200)
        samples = _picture(gr, "Samples of the posterior")
        words = gr.Markdown()
    return number, canvas, options, ask, [seen, samples, words]
