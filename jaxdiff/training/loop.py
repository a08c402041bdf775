"""The training loop: updates on all devices, until the last one or until the user stops it."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from tqdm import tqdm

from jaxdiff.training.state import pmap_step, replicate, shard, unreplicate
from jaxdiff.training.watch import Watch


class Stop:
    """Whether the user has asked to stop.

    The first signal asks: the step in hand is finished. The second Ctrl-C is an ordinary interrupt.
    """

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Catch Ctrl-C and a scheduler's SIGTERM for the time of a loop.

    Returns:
      A context manager over the Stop, which `fit` takes.
    """
    stop = Stop()
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Progress:
    """Where a loop stands after an update.

    Fields:
      step: number of updates done.
      num_steps: number of updates of the whole.
      metrics: what the update returned: scalars by name.
      stopped: whether the user has asked to stop. This update is then the last one.
      replicated: the state on all devices. The next update deletes it (donation).
      watch: says what is waited for: `watch("the checkpoint")`.
      bar: the progress bar.
    """

    step: int
    num_steps: int
    metrics: dict[str, jax.Array]
    stopped: bool
    replicated: Any
    watch: Watch
    bar: Any

    def due(self, every: int) -> bool:
        """Return whether this step is the last or a multiple of a number.

        Args:
          every: the number of steps between two times.
        Returns:
          Whether.
        """
        return self.step % every == 0 or self.step == self.num_steps

    def state(self) -> Any:
        """Copy the state from the devices.

        Returns:
          The state on the first device, which is kept.
        """
        return unreplicate(self.replicated)


def fit(
    step: Callable,
    state: Any,
    batch: Callable[[int], Any],
    num_steps: int,
    *,
    devices: Sequence[jax.Device] | None = None,
    after: Callable[[Progress], None] | None = None,
    stop: Stop | None = None,
    name: str = "training",
) -> Any:
    """Train a state until it has so many updates.

    Args:
      step: what `make_step` returns.
      state: the state to go on from, as `init_state` makes it.
      batch: step -> batch, a function of the step alone, so that a run can go on.
      num_steps: number of updates, those included that the state has had.
      devices: all local devices if None.
      after: called with the Progress after each update, to log, evaluate and save.
      stop: from `stopping`; without it a signal interrupts the loop in the usual way.
      name: of the progress bar.
    Returns:
      The state on the first device. It has fewer updates where the user has stopped it.
    Raises:
      ValueError: the rows of a batch are no multiple of the number of devices.
    """
    devices = jax.local_devices() if devices is None else devices
    update, replicated = pmap_step(step, devices), replicate(state, devices)
    return unreplicate(
        run_updates(
            update,
            replicated,
            batch,
            range(int(state.step), num_steps),
            num_devices=len(devices),
            after=after,
            stop=stop,
            name=name,
        )
    )


def run_updates(
    update: Callable,
    replicated: Any,
    batch: Callable[[int], Any],
    steps: range,
    *,
    num_devices: int,
    after: Callable[[Progress], None] | None = None,
    stop: Stop | None = None,
    name: str = "training",
) -> Any:
    """Run a mapped update on a state that is on the devices already. See `fit`.

    Args:
      update: what `pmap_step` returns, perhaps compiled; it donates the state.
      replicated: the state on all devices, as `replicate` makes it.
      batch: step -> batch.
      steps: numbers of the updates.
      num_devices: number of devices of the update.
      after: called with the Progress after each update.
      stop: from `stopping`.
      name: of the progress bar.
    Returns:
      The last state, on all devices.
    """
    metrics: dict[str, jax.Array] = {}
    bar = tqdm(total=steps.stop, initial=steps.start, unit="step", desc=name)
    with bar, Watch() as watch:
        for n in steps:
            rows = shard(batch(n), num_devices)
            # The batch is made while the last update still runs. The next update waits for its end,
            # because CPU devices that wait for each other in many updates run out of threads.
            jax.block_until_ready(metrics)
            watch(f"step {n + 1} of {steps.stop} on {num_devices} devices")
            replicated, metrics = update(replicated, rows)
            bar.update()
            # Read once: a later signal counts for the next step.
            stopped = stop is not None and stop.asked
            if after is not None:
                after(Progress(n + 1, steps.stop, metrics, stopped, replicated, watch, bar))
            if stopped:
                break
        jax.block_until_ready(metrics)
    return replicated
