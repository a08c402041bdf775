"""Training: the state, a step over all devices, verified checkpoints and a run's folder."""

from jaxdiff._extras import needs

for _library in ("optax", "orbax.checkpoint", "filelock", "tensorboardX"):
    needs(_library, extra="train")

from jaxdiff.training.checkpoints import Checkpoints
from jaxdiff.training.devices import map_step, placements, replicate, shard, split, unreplicate
from jaxdiff.training.loop import Progress, Stop, fit, run_updates, stopping
from jaxdiff.training.objective import (
    chain_loss,
    denoising_loss,
    learning_rates,
    likelihood_loss,
    make_optimizer,
    times_of,
)
from jaxdiff.training.run import Log, atomic, first_line, lock, read_log, write_json
from jaxdiff.training.state import (
    AXIS,
    RememberingState,
    Rows,
    Step,
    TrainState,
    init_state,
    make_step,
)
from jaxdiff.training.watch import Watch

__all__ = [
    "AXIS",
    "Checkpoints",
    "Log",
    "Progress",
    "RememberingState",
    "Rows",
    "Step",
    "Stop",
    "TrainState",
    "Watch",
    "atomic",
    "chain_loss",
    "denoising_loss",
    "first_line",
    "fit",
    "init_state",
    "learning_rates",
    "likelihood_loss",
    "lock",
    "make_optimizer",
    "make_step",
    "map_step",
    "placements",
    "read_log",
    "replicate",
    "run_updates",
    "shard",
    "split",
    "stopping",
    "times_of",
    "unreplicate",
    "write_json",
]
