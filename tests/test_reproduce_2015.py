"""The 2015 paper's toy problems, small: their exact figures, stopping and going on, mistakes."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import reproduce_2015
from helpers import rejects
from PIL import Image
from reproduce_2015 import Heartbeat, SwissRoll
from scipy import stats

from jaxdiff import data, training
from jaxdiff.runs import build, datasets, estimates, loading, probability
from jaxdiff.runs.config import PRESETS

SMALL = {"steps": 3, "chain_steps": 4, "batch_size": 8, "width": 8, "depth": 1, "examples": 3}


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())["bits"]


def width(path: Path) -> int:
    with Image.open(path) as image:
        return image.size[0]


@pytest.mark.slow
def test_heartbeats_stop_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = Heartbeat(run=tmp_path / "whole", **SMALL)
    assert reproduce_2015.heartbeat(options)
    whole = result(options.run)
    # -20 H(0.2), and one of five sequences for certain: the figures the paper's are measured against.
    np.testing.assert_allclose(whole["L_null"], -20 * stats.entropy([0.2, 0.8], base=2), rtol=1e-12)
    np.testing.assert_allclose(
        whole["the data's own"]["value"], -np.log2(5), rtol=1e-6
    )  # float32 rounding
    np.testing.assert_allclose(
        whole["the data's own"]["gain"], 12.12, atol=0.01
    )  # the optimum, rounded
    assert width(options.run / "heartbeat.png") > 300
    assert "K, the paper" in capsys.readouterr().out

    @contextmanager
    def at_once() -> Iterator[training.Stop]:
        stop = training.Stop()
        stop.asked = True
        yield stop

    parts = dataclasses.replace(options, run=tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(training, "stopping", at_once)
        assert not reproduce_2015.heartbeat(parts)
    assert "stopped at step 1 of 3" in capsys.readouterr().out
    assert reproduce_2015.heartbeat(parts)
    assert result(parts.run) == whole
    with pytest.raises(ValueError, match="was begun with another width; give another --run"):
        reproduce_2015.heartbeat(dataclasses.replace(parts, width=16))


def test_the_heartbeats_are_the_papers() -> None:
    sequences = np.asarray(reproduce_2015.heartbeats().sequences)
    assert len(np.unique(sequences, axis=0)) == 5
    np.testing.assert_array_equal(sequences.sum(1), 4)
    np.testing.assert_array_equal(sequences[:, 5:], sequences[:, :-5])


@pytest.mark.slow
def test_trained_heartbeats_reach_the_papers_bound(tmp_path: Path) -> None:
    assert reproduce_2015.heartbeat(Heartbeat(run=tmp_path / "run"))
    trained, exact = (
        value for name, value in result(tmp_path / "run").items() if name.startswith("K, the")
    )
    assert trained["value"] >= -2.414
    assert (
        trained["value"] - 5 * trained["standard_error"]
        < exact["value"] + 5 * exact["standard_error"]
        < 0
    )
    assert exact["value"] - 5 * exact["standard_error"] < -np.log2(5)  # a bound


@pytest.mark.slow
def test_a_swiss_roll(tmp_path: Path) -> None:
    options = SwissRoll(run=tmp_path / "roll", noise=0.05, **SMALL)
    assert reproduce_2015.swiss_roll(options)
    found = result(options.run)
    np.testing.assert_allclose(
        found["L_null"], -stats.multivariate_normal(np.zeros(2)).entropy() / np.log(2), rtol=1e-12
    )
    assert width(options.run / "swiss_roll.png") > 300


def test_the_roll_has_unit_variance_and_the_density_it_says() -> None:
    options = SwissRoll(noise=0.01)
    x = reproduce_2015.roll(options, 0, 40_000)
    # Monte Carlo: 5 standard errors of moments whose spread is about one.
    np.testing.assert_allclose(x.mean(0), 0, atol=5 / np.sqrt(40_000))
    np.testing.assert_allclose(x.var(0).mean(), 1, atol=5 / np.sqrt(40_000))
    # On the curve, far from its ends: the density along it times that of the noise at 0.
    angles = np.array([2.0, 3.0, 4.0]) * np.pi
    points, next_points = reproduce_2015.curve(angles), reproduce_2015.curve(angles + 1e-6)
    speed = np.linalg.norm(next_points - points, axis=1) / 1e-6
    exact = -np.log(3 * np.pi * speed) - np.log(np.sqrt(2 * np.pi) * options.noise)
    found = reproduce_2015.log_density(options, points.astype(np.float32))
    np.testing.assert_allclose(
        found, exact, atol=0.01
    )  # the curve's bend over a width of the noise; float32


test_mistakes = rejects({
    "no steps": (lambda: reproduce_2015.heartbeat(Heartbeat(steps=0)), ValueError, "steps: expected at least 1, got 0"),
    "one example": (lambda: reproduce_2015.heartbeat(Heartbeat(examples=1)), ValueError, "examples: expected at least 2"),
    "no noise": (lambda: reproduce_2015.swiss_roll(SwissRoll(noise=0.0)), ValueError, "noise: expected a positive width"),
})  # fmt: skip


@pytest.mark.slow
def test_the_protocol_on_data_whose_density_is_known() -> None:
    """Images of one pixel, all real: the window's log-density is that of the normal law, blurred by the width."""
    random = np.random.default_rng(0)
    levels = np.clip(random.normal(128, 20, 14_000), 0, 255).astype(np.uint8).reshape(-1, 1, 1, 1)
    splits = {"train": data.Split(levels[:12_000]), "test": data.Split(levels[12_000:])}
    dataset = datasets.Dataset("one pixel", (1, 1, 1), None, 256, lambda: splits)
    x = (random.normal(127.5, 20, (10_000, 1, 1, 1)) * 2 / 255 - 1).astype(np.float32)
    ours, floor = reproduce_2015.parzen(x, dataset)
    blurred = stats.norm(0.5, np.hypot(20 / 255, 0.1))  # 0.1 is the least width of the protocol
    exact = np.mean(blurred.logpdf(dataset.examples("test")[0] / 2 + 0.5))
    np.testing.assert_allclose(
        [ours.value, floor.value], exact, atol=0.01
    )  # Monte Carlo of 10,000 samples


@pytest.mark.slow
def test_the_null_law_is_the_normal_one(tmp_path: Path) -> None:
    """L_null of levels: a density times the width of a level, for two pixels of unlike means and spreads."""
    random = np.random.default_rng(0)
    levels = random.normal([100, 160], [20, 30], (9000, 2)).astype(np.uint8).reshape(-1, 1, 2, 1)
    splits = {"train": data.Split(levels[:8000]), "test": data.Split(levels[8000:])}
    dataset = datasets.Dataset("two pixels", (1, 2, 1), None, 256, lambda: splits)
    config = dataclasses.replace(PRESETS["digits"][1], run=tmp_path)
    model = build.make_model(config, dataset)
    run = loading.assemble(config, dataset, model, {"network": {}, "schedule": {}})
    found = estimates.null(
        probability.Estimators(run, probability.Probability(), seed=0),
        dataset.examples("test")[0],
    )
    values = levels.reshape(-1, 2).astype(float)
    width = np.sqrt(values[:8000].var(0).mean())
    exact = stats.norm(values[:8000].mean(0), width).logpdf(values[8000:]).sum(1).mean()
    np.testing.assert_allclose(
        found.nats, exact, atol=2e-3
    )  # spread over the bins: 1/12 of a level squared
