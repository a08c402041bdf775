"""The training loop: updates on all devices, until the last one or until the user stops it."""

import collections
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxdiff import _checks
from jaxdiff.training import hosts
from jaxdiff.training.devices import map_step, replicate, shard, unreplicate
from jaxdiff.training.watch import Watch

# Dispatches that may be under way at once. CPU devices that wait for each other in many updates
# run out of threads; an accelerator always has the next one to begin with.
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
    """Where a loop stands after a dispatch, of one update or of several.

    Fields:
      step: number of updates done.
      num_steps: number of updates of the whole.
      metrics: what the dispatch returned by name: scalars, or one for each of its updates.
      stopped: whether the user has asked to stop. This update is then the last one.
      replicated: the state on all devices. The next update deletes it (donation).
      watch: takes what the program waits for next: `watch("the checkpoint")`.
      bar: the progress bar.
      at_once: number of updates in a dispatch, but for those at the ends.
    """

    step: int
    num_steps: int
    metrics: dict[str, jax.Array]
    stopped: bool
    replicated: Any
    watch: Watch
    bar: Any
    at_once: int = 1

    def due(self, every: int) -> bool:
        """Return whether this step is the last or a multiple of a number.

        Args:
          every: the number of steps between two times.
        Returns:
          Whether.
        Raises:
          ValueError: every is not a multiple of at_once, so that some of its steps are never seen.
        """
        if every % self.at_once:
            raise ValueError(f"every: expected a multiple of at_once, {self.at_once}, got {every}")
        return self.step % every == 0 or self.step == self.num_steps

    def scalars(self) -> dict[str, float]:
        """Wait for the metrics.

        Returns:
          Those of the last update, by name.
        """
        return {name: float(np.ravel(value)[-1]) for name, value in self.metrics.items()}

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
    at_once: int = 1,
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
      at_once: number of updates in one dispatch. It pays where an update is short.
      after: called with the Progress after each dispatch, to log, evaluate and save.
      stop: from `stopping`; without it a signal interrupts the loop in the usual way.
      name: of the progress bar.
    Returns:
      The state on the first device. It has fewer updates where the user has stopped it.
    Raises:
      ValueError: the number of rows of a batch is not a multiple of the number of devices, or
        at_once is below 1.
    """
    devices = jax.devices() if devices is None else devices
    update = map_step(step, devices, sharded=sharded)
    several = map_step(step, devices, sharded=sharded, at_once=at_once)
    replicated = replicate(state, devices, sharded=sharded)
    return unreplicate(
        run_updates(
            update,
            replicated,
            batch,
            range(int(state.step), num_steps),
            devices=devices,
            at_once=at_once,
            several=several,
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
    at_once: int = 1,
    several: Callable | None = None,
    after: Callable[[Progress], None] | None = None,
    stop: Stop | None = None,
    name: str = "training",
) -> Any:
    """Run a mapped update on a state that is on the devices already. See `fit`.

    The host runs ahead of an accelerator by at most ELSEWHERE dispatches: it makes and sends the
    next batch while they are under way, and waits for the oldest of them alone.

    Args:
      update: what `map_step` returns, perhaps compiled; it donates the state.
      replicated: the state on all devices, as `replicate` makes it.
      batch: step -> batch.
      steps: numbers of the updates.
      devices: those of the update.
      at_once: number of updates in one dispatch. A dispatch of several begins at a multiple of it,
        so that the dispatches of a run that goes on are those of one that never stopped.
      several: what `map_step` returns for at_once; it is needed where that is above 1.
      after: called with the Progress after each dispatch.
      stop: from `stopping`.
      name: of the progress bar.
    Returns:
      The last state, on all devices.
    Raises:
      ValueError: at_once is below 1, or it is above 1 and several is None.
    """
    _checks.positive_int("at_once", at_once)
    if at_once > 1 and several is None:
        raise ValueError(f"several: expected the update of at_once = {at_once} steps, got None")
    most = UNDER_WAY.get(devices[0].platform, ELSEWHERE)
    under_way: collections.deque[Any] = collections.deque()
    bar = tqdm(
        total=steps.stop, initial=steps.start, unit="step", desc=name, disable=not hosts.is_first()
    )
    with bar, Watch() as watch:
        for part in _dispatches(steps, at_once):
            # The batch is made and sent while the updates before it still run.
            watch(f"the batch of step {part.start + 1}")
            rows = _sent(batch, part, devices)
            watch(f"step {part.stop} of {steps.stop} on {len(devices)} devices")
            while len(under_way) >= most:
                jax.block_until_ready(under_way.popleft())
            if devices[0].platform == "cpu":
                hosts.meet()
            run = update if several is None or len(part) == 1 else several
            replicated, metrics = run(replicated, rows)
            under_way.append(metrics)
            bar.update(len(part))
            # Read once: a later signal counts for the next step.
            stopped = stop is not None and _asked(stop, part)
            if after is not None:
                after(
                    Progress(
                        part.stop, steps.stop, metrics, stopped, replicated, watch, bar, at_once
                    )
                )
            if stopped:
                break
        jax.block_until_ready(list(under_way))
    return replicated


def _dispatches(steps: range, at_once: int) -> Iterator[range]:
    """The steps of each dispatch: at_once of them from its multiples on, single ones elsewhere."""
    start = steps.start
    while start < steps.stop:
        whole = start % at_once == 0 and start + at_once <= steps.stop
        yield range(start, start + (at_once if whole else 1))
        start += at_once if whole else 1


def _sent(batch: Callable[[int], Any], part: range, devices: Sequence[jax.Device]) -> Any:
    """The batches of a dispatch on their devices, stacked where there are several."""
    if len(part) == 1:
        return shard(batch(part.start), devices)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *map(batch, part))
    return shard(stacked, devices, stacked=True)


def _asked(stop: Stop, part: range) -> bool:
    """Whether to stop after these steps: for several processes the same answer on each of them."""
    if jax.process_count() == 1:
        return stop.asked
    due = part.stop // STOP_EVERY > part.start // STOP_EVERY
    return due and hosts.any_of(stop.asked)
