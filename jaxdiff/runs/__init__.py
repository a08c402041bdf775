"""What a run is: configuration, folder, training, drawing, measuring. Usable from a notebook.

config = dataclasses.replace(runs.PRESETS["digits"][1], run=Path("runs/mine"), steps=2000)
runs.train(config)
trained = runs.load("runs/mine")
x = runs.generate(trained, 64, labels=np.arange(64) % 10).x
"""

from jaxdiff.runs.config import PRESETS, Config, Diffusion, Network, Optimizer
from jaxdiff.runs.loading import Run, load
from jaxdiff.runs.loop import train
from jaxdiff.runs.sampling import Generated, generate

__all__ = [
    "PRESETS",
    "Config",
    "Diffusion",
    "Generated",
    "Network",
    "Optimizer",
    "Run",
    "generate",
    "load",
    "train",
]
