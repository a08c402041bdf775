"""The loop feeds the device: a trace of a fake slow device by a clock that counts, and several updates in one dispatch."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import numpy as np
import pytest
from helpers import rejects, slow
from test_training import LOSS, OPTIMIZER, batch, make_params, plain

from jaxdiff import training
from jaxdiff.runs import loop as runs_loop
from jaxdiff.runs.config import PRESETS
from jaxdiff.training import loop


class Trace:
    """A device that works through a queue, and a host: each call of the host moves the clock by what it costs.

    No time passes, so the figures are exact: `idle` is what the device waited for work since its first update, `waited`
    is which update the host waited for when so many were sent, `most` is how many were under way at once.
    """

    UPDATE, BATCH, DISPATCH = 10.0, 3.0, 1.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
        self.device = SimpleNamespace(platform=platform)
        self.now, self.free, self.idle = 0.0, math.nan, 0.0
        self.ends: list[float] = []
        self.waited: list[tuple[int, int]] = []
        self.most, self.last = 0, 0
        monkeypatch.setattr(loop, "shard", lambda rows, devices, stacked=False: rows)
        monkeypatch.setattr(jax, "block_until_ready", self.wait)

    def batch(self, step: int) -> np.ndarray:
        """Every eighth takes longer than an update."""
        self.now += self.BATCH if step % 8 else 2 * self.UPDATE
        return np.full(2, step)

    def update(self, state: int, rows: np.ndarray) -> tuple[int, Any]:
        return self.run(state, rows[None])

    def run(self, state: int, batches: np.ndarray) -> tuple[int, Any]:
        """Send updates in one dispatch; the next state is there at once, and the metrics are not."""
        np.testing.assert_array_equal(batches[:, 0], state + np.arange(len(batches)))
        self.now += self.DISPATCH
        start = self.now if math.isnan(self.free) else max(self.now, self.free)
        self.idle += 0.0 if math.isnan(self.free) else start - self.free
        self.free = start + self.UPDATE * len(batches)
        self.ends.append(self.free)
        self.most = max(self.most, sum(end > self.now for end in self.ends))
        return state + len(batches), {"loss": Metric(self, len(self.ends) - 1)}

    def wait(self, metrics: Any) -> None:
        for each in metrics if isinstance(metrics, list) else [metrics]:
            self.waited.append((each["loss"].number, len(self.ends)))
            self.now = max(self.now, self.ends[each["loss"].number])

    def train(self, steps: int, **options: Any) -> float:
        """The share of the time in which the device waited, since its first update."""
        state = loop.run_updates(
            self.update, 0, self.batch, range(steps), devices=[self.device], **options
        )
        assert state == steps
        assert self.now == self.free  # nothing is left under way
        return self.idle / (self.idle + steps * self.UPDATE)


@dataclasses.dataclass
class Metric:
    """A number that is not there yet: whoever reads it waits."""

    trace: Trace
    number: int

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.trace.wait([{"loss": self}])
        return np.zeros((), dtype)


def test_an_accelerator_never_waits_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace(monkeypatch, "gpu")
    assert trace.train(200) == 0
    assert trace.most == loop.ELSEWHERE == 3
    # While it runs, the host waits for the third last update or an older one, never for that in hand.
    assert all(sent - number == 3 for number, sent in trace.waited[:-3])


def test_what_is_logged_costs_one_dispatch_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the metrics of every 20th step drains the queue: the device waits for a batch and a dispatch, no more."""
    trace = Trace(monkeypatch, "gpu")

    def log(progress: training.Progress) -> None:
        if progress.due(20):
            assert progress.scalars() == {"loss": 0}

    share = trace.train(200, after=log)
    slow = sum(step % 8 == 0 for step in range(20, 200, 20))
    lost = 9 * trace.DISPATCH + (9 - slow) * trace.BATCH + slow * 2 * trace.UPDATE
    assert trace.idle == lost
    assert share < 0.06


def test_a_cpu_has_one_update_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rule stays. The batch is made meanwhile, so that the device waits for dispatches and slow batches alone."""
    trace = Trace(monkeypatch, "cpu")
    share = trace.train(200)
    assert trace.most == 1
    slow = 200 // 8 - 1
    assert trace.idle == (199 - slow) * trace.DISPATCH + slow * (trace.UPDATE + trace.DISPATCH)
    assert share > 0.15


def test_short_updates_are_fed_by_dispatches_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update of half a dispatch: the device waits most of the time, and hardly with 16 of them at once."""
    monkeypatch.setattr(Trace, "UPDATE", 1.0)
    monkeypatch.setattr(Trace, "DISPATCH", 2.0)
    monkeypatch.setattr(Trace, "BATCH", 0.01)
    monkeypatch.setattr(Trace, "batch", lambda self, step: np.full(2, step))
    single, several = Trace(monkeypatch, "gpu"), Trace(monkeypatch, "gpu")
    monkeypatch.setattr(jax, "block_until_ready", single.wait)
    assert single.train(160) == pytest.approx(0.5, abs=0.01)
    monkeypatch.setattr(jax, "block_until_ready", several.wait)
    assert several.train(160, at_once=16, several=several.run) == 0


@pytest.mark.parametrize(
    ("steps", "at_once", "expected"),
    [
        (range(0, 7), 1, [1] * 7),
        (range(0, 8), 4, [4, 4]),
        (range(3, 14), 4, [1, 4, 4, 1, 1]),  # what goes on after step 3 is in step with what never stopped
        (range(5, 7), 4, [1, 1]),
        (range(4, 4), 4, []),
    ],
)  # fmt: skip
def test_dispatches_begin_at_their_multiples(
    steps: range, at_once: int, expected: list[int]
) -> None:
    parts = list(loop._dispatches(steps, at_once))
    assert [len(part) for part in parts] == expected
    assert [step for part in parts for step in part] == list(steps)
    assert all(part.start % at_once == 0 for part in parts if len(part) > 1)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, slow(True)])
def test_updates_in_one_dispatch_are_single_ones(sharded: bool) -> None:
    """On two devices: state and metrics, up to rounding; bit for bit after a stop in between."""
    step, devices = training.make_step(LOSS, OPTIMIZER), jax.devices()[:2]
    begin = training.init_state(jax.random.key(1), make_params(), OPTIMIZER)

    def fit(state: Any, at_once: int, asked: bool = False) -> tuple[Any, list, list]:
        seen, losses = [], []
        stop = loop.Stop()
        stop.asked = asked

        def after(progress: training.Progress) -> None:
            seen.append(progress.step)
            losses.extend(np.ravel(progress.metrics["loss"]).tolist())
            assert progress.scalars()["loss"] == losses[-1]

        state = training.fit(
            step, state, batch, 7, devices=devices, sharded=sharded, at_once=at_once, after=after, stop=stop
        )  # fmt: skip
        return state, seen, losses

    whole, steps, losses = fit(begin, 1)
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    found, steps, together = fit(begin, 3)
    assert steps == [3, 6, 7]
    np.testing.assert_allclose(together, losses, rtol=1e-5)
    chex.assert_trees_all_close(
        jax.tree.map(plain, found), jax.tree.map(plain, whole), rtol=1e-4, atol=1e-6
    )  # the order of a sum, through Adam
    part, steps, _ = fit(begin, 3, asked=True)
    assert steps == [3]  # the dispatch in hand is finished
    rest, steps, _ = fit(part, 3)
    assert steps == [6, 7]
    chex.assert_trees_all_equal(jax.tree.map(plain, rest), jax.tree.map(plain, found))


RUN: Callable = training.run_updates
PROGRESS: Any = training.Progress
test_wrong = rejects({
    "no update": (
        lambda: training.map_step(training.make_step(LOSS, OPTIMIZER), at_once=0),
        ValueError, "at_once: expected a positive int, got 0",
    ),
    "no program": (
        lambda: RUN(None, None, batch, range(0), devices=jax.devices(), at_once=2),
        ValueError, "several: expected the update of at_once = 2 steps, got None",
    ),
    "steps that are never seen": (
        lambda: PROGRESS(4, 8, {}, False, None, None, None, at_once=4).due(6),
        ValueError, "every: expected a multiple of at_once, 4, got 6",
    ),
    "stacked rows": (
        lambda: training.shard(np.zeros((2, 3, 1), np.float32), jax.devices()[:2], stacked=True),
        ValueError, "batch: expected a multiple of 2 devices, got 3 rows",
    ),
})  # fmt: skip


@pytest.mark.slow
def test_a_run_in_dispatches_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has the steps and the losses of single updates; a run goes on with another number at once."""
    monkeypatch.setattr(runs_loop, "EVAL_EXAMPLES", 16)
    toy = PRESETS["toy"][1]
    small = dataclasses.replace(
        toy, steps=6, batch_size=16, log_every=2, eval_every=4,
        network=dataclasses.replace(toy.network, channels=8, num_blocks=1),
        optimizer=dataclasses.replace(toy.optimizer, warmup=2),
    )  # fmt: skip
    logs = []
    for at_once in (1, 2):
        config = dataclasses.replace(small, run=tmp_path / str(at_once), at_once=at_once)
        assert runs_loop.train(dataclasses.replace(config, steps=5)) == 5
        assert runs_loop.train(dataclasses.replace(config, at_once=1)) == 6
        logs.append(training.read_log(config.run))
    assert [(line["step"], line.keys()) for line in logs[0]] == [
        (line["step"], line.keys()) for line in logs[1]
    ]
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)  # the order of a sum, through Adam
