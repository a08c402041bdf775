"""The training loop: updates on all devices, until the last one or until the user stops it."""

import collections
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from tqdm import tqdm

from jaxdiff.training import hosts
from jaxdiff.training.devices import map_step, replicate, shard, unreplicate
from jaxdiff.training.watch import Watch

# Updates that may be under way at once. CPU devices that wait for each other in many updates run
# out of threads; an accelerator always has the next one to begin with.
UNDER_WAY = {"cpu": 1}
ELSEWHERE = 3

# With several processes, all of them ask each other at every so many steps whether to stop.
STOP_EVERY = 10


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
      watch: takes what the program waits for next: `watch("the checkpoint")`.
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
    sharded: bool = False,
    after: Callable[[Progress], None] | None = None,
    stop: Stop | None = None,
    name: str = "training",
) -> Any:
    """Train a state until it has so many updates.

    Args:
      step: what `make_step` returns.
      state: the state to go on from, as `init_state` makes it.
      batch: step -> batch, a function of the step alone, so that a run can go on.
      num_steps: number of updates, including those that the state has had.
      devices: all devices of all processes if None.
      sharded: whether the optimiser's state and the average are divided over the devices.
      after: called with the Progress after each update, to log, evaluate and save.
      stop: from `stopping`; without it a signal interrupts the loop in the usual way.
      name: of the progress bar.
    Returns:
      The state on the first device. It has fewer updates where the user has stopped it.
    Raises:
      ValueError: the number of rows of a batch is not a multiple of the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    update = map_step(step, devices, sharded=sharded)
    replicated = replicate(state, devices, sharded=sharded)
    return unreplicate(
        run_updates(
            update,
            replicated,
            batch,
            range(int(state.step), num_steps),
            devices=devices,
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
    devices: Sequence[jax.Device],
    after: Callable[[Progress], None] | None = None,
    stop: Stop | None = None,
    name: str = "training",
) -> Any:
    """Run a mapped update on a state that is on the devices already. See `fit`.

    Args:
      update: what `map_step` returns, perhaps compiled; it donates the state.
      replicated: the state on all devices, as `replicate` makes it.
      batch: step -> batch.
      steps: numbers of the updates.
      devices: those of the update.
      after: called with the Progress after each update.
      stop: from `stopping`.
      name: of the progress bar.
    Returns:
      The last state, on all devices.
    """
    most = UNDER_WAY.get(devices[0].platform, ELSEWHERE)
    under_way: collections.deque[Any] = collections.deque()
    bar = tqdm(
        total=steps.stop, initial=steps.start, unit="step", desc=name, disable=not hosts.is_first()
    )
    with bar, Watch() as watch:
        for n in steps:
            # The batch is made and sent while the updates before it still run.
            watch(f"the batch of step {n + 1}")
            rows = shard(batch(n), devices)
            watch(f"step {n + 1} of {steps.stop} on {len(devices)} devices")
            while len(under_way) >= most:
                jax.block_until_ready(under_way.popleft())
            if devices[0].platform == "cpu":
                hosts.meet()
            replicated, metrics = update(replicated, rows)
            under_way.append(metrics)
            bar.update()
            # Read once: a later signal counts for the next step.
            stopped = stop is not None and _asked(stop, n + 1)
            if after is not None:
                after(Progress(n + 1, steps.stop, metrics, stopped, replicated, watch, bar))
            if stopped:
                break
        jax.block_until_ready(list(under_way))
    return replicated


def _asked(stop: Stop, step: int) -> bool:
    """Whether to stop after this step: for several processes the same answer on each of them."""
    if jax.process_count() == 1:
        return stop.asked
    return step % STOP_EVERY == 0 and hosts.any_of(stop.asked)
