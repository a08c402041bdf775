"""A run whose updates are not finite: they are skipped, and then it stops and says why."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import slow

from jaxdiff import training
from jaxdiff.runs import build, loop
from jaxdiff.runs.config import PRESETS, Config, Network

SMALL = Network(channels=8, num_blocks=1)


def config(run: Path, **options: Any) -> Config:
    return dataclasses.replace(
        PRESETS["toy"][1], run=run, batch_size=8, log_every=1, eval_every=50, network=SMALL, **options
    )  # fmt: skip


def broken_above(monkeypatch: pytest.MonkeyPatch, bad_time: float, *, gradient: bool) -> None:
    """Let the loss of training, or its gradient alone, be NaN at the times above one."""
    make = build.make_loss

    def make_loss(config: Config, model: Any, dataset: Any, *, training_time: bool = True) -> Any:
        right = make(config, model, dataset, training_time=training_time)

        def loss(params: Any, rows: training.Rows, batch: Any) -> jax.Array:
            value = right(params, rows, batch)
            if not training_time:
                return value
            hit = training.times_of(rows, "low_discrepancy") > bad_time
            weight = jax.tree.leaves(params)[0].reshape(-1)[0]
            if gradient:  # sqrt(0) is finite, and its slope is not
                return value + jnp.sqrt(jnp.where(hit, 0 * weight, 1.0))
            return value * jnp.where(hit, jnp.inf, 1.0)

        return loss

    monkeypatch.setattr(build, "make_loss", make_loss)


@pytest.mark.parametrize("gradient", [slow(False), True])
def test_a_run_that_is_not_finite_stops_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradient: bool
) -> None:
    """Of eight even times one lies above 7/8, so one row of each batch is bad."""
    broken_above(monkeypatch, 0.875, gradient=gradient)
    message = (
        r"the last 3 updates to step 3 were skipped, because they were not finite: the gradient of "
        r"\['network'\].* at t = 0\.(8[7-9]|9)\d+ \(row \d\); try a lower --optimizer.learning-rate"
    )
    with pytest.raises(FloatingPointError, match=message):
        loop.train(config(tmp_path / "run", steps=20, most_skipped=3))


@pytest.mark.slow
def test_a_run_survives_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_above(monkeypatch, 0.95, gradient=False)
    assert loop.train(config(tmp_path / "run", steps=6, most_skipped=6)) == 6
    lines = [line for line in training.read_log(tmp_path / "run") if "skipped" in line]
    assert 0 < lines[-1]["skipped"] < 6
