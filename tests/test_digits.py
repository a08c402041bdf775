"""The worked case: a network trained on the real digits draws what it is asked for."""

import dataclasses
from pathlib import Path

import pytest

from jaxdiff import data, training
from jaxdiff.cli import evaluate, train
from jaxdiff.runs.config import PRESETS
from jaxdiff.runs.probability import Probability


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_digits_are_recognised(tmp_path: Path) -> None:
    """At least 95% of class-conditional samples are read as their label by an independent classifier.

    n = 360 samples: at the rate of a good model (99%) fewer than 95% has probability below 1e-6.
    """
    config = dataclasses.replace(PRESETS["digits"][1], run=tmp_path / "digits")
    assert train.main(config)
    result = evaluate.main(
        evaluate.Options(run=config.run, samples=360, probability=Probability(examples=0))
    )
    assert result["classifier_held_out_accuracy"] > 0.97
    assert result["recognised"] >= 0.95
    # Above one half the samples can be told from real digits; real against real stands at one half, within its error.
    floor = result["nearest_neighbour_accuracy_real_vs_real"]
    assert abs(floor - 0.5) < 5 * result["nearest_neighbour_accuracy_real_vs_real_se"] + 0.05
    assert result["nearest_neighbour_accuracy"] < 0.75
    for row in result["denoising"]:
        if (
            -6 < row["log_snr"] < 6
        ):  # where there is something to know beyond the mean, and something left to denoise
            assert row["x_0_error"] < row["gaussian_error"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_bound_of_the_digits_beats_every_density_without_a_network(tmp_path: Path) -> None:
    """A third of the preset's steps are enough: fewer held-out bits than the best Gaussian mixture, by many errors."""
    config = dataclasses.replace(
        PRESETS["digits-likelihood"][1], run=tmp_path / "digits", steps=400, eval_every=400
    )
    assert train.main(config)
    options = Probability(examples=360, steps=20, path_examples=0, ode_examples=0)
    result = evaluate.main(evaluate.Options(run=config.run, samples=0, probability=options))
    rows = {row["name"]: row for row in result["probability"]}
    ours = rows["bound in continuous time"]
    best = min(row["bits_per_dim"] for row in rows.values() if row["kind"] == "density")
    assert ours["bits_per_dim"] < best - 10 * ours["bits_per_dim_se"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mnist_trains_on_the_real_files(mnist_source: Path, tmp_path: Path) -> None:
    """A few hundred steps on MNIST, prepared from its own four files, lower the held-out loss."""
    data.prepare("mnist", mnist_source, tmp_path / "tfds")
    config = dataclasses.replace(
        PRESETS["mnist"][1],
        run=tmp_path / "mnist",
        data_dir=tmp_path / "tfds",
        steps=300,
        eval_every=100,
    )
    assert train.main(config)
    losses = [
        line["held_out_loss"] for line in training.read_log(config.run) if "held_out_loss" in line
    ]
    assert losses[-1] < 0.7 * losses[0]
