"""The scripts, as a user runs them: stop and go on, sample, evaluate, and one clear line for every mistake."""

import dataclasses
import importlib
import importlib.metadata
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rates
import reproduce_2015
from helpers import slow
from PIL import Image

import jaxdiff as jd
from jaxdiff import cli, training, zoo
from jaxdiff.cli import (
    compare,
    env,
    errors,
    evaluate,
    export,
    interpolate,
    report,
    sample,
    train,
)
from jaxdiff.runs import build, datasets, folders, loading, loop, quality, recogniser, sampling
from jaxdiff.runs.config import PRESETS, Config, Diffusion, Network, as_json
from jaxdiff.runs.probability import Probability, Row

ROOT = Path(__file__).parents[1]
TINY = dataclasses.replace(
    PRESETS["digits"][1],
    steps=6,
    batch_size=8,
    log_every=1,
    eval_every=3,
    network=Network(channels=8, multipliers=(1, 2), num_blocks=1, attention=()),
)
NONE = Probability(examples=0)
FEW = Probability(
    examples=8, steps=3, times=2, paths=2, path_examples=4, ode_steps=2, ode_examples=4
)


def width_and_frames(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size[0], getattr(image, "n_frames", 1)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert train.main(dataclasses.replace(TINY, run=run))
    return run


def test_training_leaves_what_it_promises(tiny_run: Path) -> None:
    for name in ("samples.png", "forward.png", "loss.png"):
        assert width_and_frames(tiny_run / name)[0] > 300
    assert (
        width_and_frames(tiny_run / "reverse.gif")[1] == 21
    )  # the start, and every one of 20 steps
    assert list(tiny_run.glob("events.out.tfevents.*"))
    log = training.read_log(tiny_run)
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in log if "held_out_loss" in line] == [3, 6]


def test_configuration_round_trip(tiny_run: Path) -> None:
    assert folders.load_config(tiny_run) == dataclasses.replace(TINY, run=tiny_run)


def test_a_finished_run_is_left_alone(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    before = (tiny_run / "metrics.jsonl").read_text()
    assert train.main(dataclasses.replace(TINY, run=tiny_run))
    assert "trained already (6 steps)" in capsys.readouterr().out
    assert (tiny_run / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_comparing_samplers(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = compare.Options(
        run=tiny_run,
        samplers=("ddim", "heun"),
        grids=("uniform", "optimised"),
        calls=(4, 6),
        num=200,
        run_num=16,
        orders=False,
        output=tmp_path,
    )
    results = compare.main(options)
    # heun takes two calls a step, and two steps are too few
    expected = {("ddim", 4), ("ddim", 6), ("heun", 6)}
    for result in results:
        assert {(row["sampler"], row["calls"]) for row in result["rows"]} == expected
        assert all(np.isfinite(row["sliced_wasserstein"]) for row in result["rows"])
    assert len(results) == 2
    assert width_and_frames(tmp_path / "compare.png")[0] > 300
    assert json.loads((tmp_path / "compare.json").read_text())["results"] == results
    assert "between two sets of exact samples" in capsys.readouterr().out


def test_sampling(tiny_run: Path, tmp_path: Path) -> None:
    options = sample.Options(
        run=tiny_run,
        num=6,
        steps=3,
        labels=(3, 7),
        guidance=2.0,
        sampler="ancestral",
        threshold="static",
        output=tmp_path,
    )
    sample.main(options)
    saved = np.load(tmp_path / "samples.npz")
    assert saved["x"].shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(saved["labels"], [3, 7, 3, 7, 3, 7])
    assert width_and_frames(tmp_path / "samples.png")[0] > 300


@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch_size(tiny_run: Path) -> None:
    run = loading.load_run(tiny_run)
    labels = np.arange(10) % 10
    whole, parts = (
        sampling.generate(run.trained, 10, labels=labels, steps=3, batch_size=size).x
        for size in (12, 4)
    )
    np.testing.assert_allclose(
        whole, parts, atol=1e-4
    )  # convolutions sum in another order for another batch size


def test_kept_samples_are_read_again(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = loading.load_run(tiny_run)
    options: dict = {"labels": np.arange(10) % 10, "steps": 3, "batch_size": 4}
    options["keep"] = tiny_run / "samples" / "parts"
    first = sampling.generate(run.trained, 10, **options)
    parts = sorted((tiny_run / "samples" / "parts").glob("*.npz"))
    assert len(parts) == 3
    parts[1].unlink()  # as an interrupted run leaves it
    written = {part: part.stat().st_mtime_ns for part in parts if part.exists()}
    chex.assert_trees_all_equal(sampling.generate(run.trained, 10, **options), first)
    assert {part: part.stat().st_mtime_ns for part in parts if part != parts[1]} == written
    before = set(parts)
    others: list[dict] = [
        {"seed": 1}, {"labels": np.zeros(10, int)}, {"guidance": 2.0}, {"sampler": "heun"}, {"noise": 0.5}, {"steps": 4},
        {"threshold": "static"}, {"grid": "quadratic"}, {"sampler": "ancestral", "variance": "large"},
    ]  # fmt: skip
    monkeypatch.setattr(
        sampling, "program", lambda *args, **_: lambda *_: np.zeros((1, 4, 1, 8, 8, 1))
    )
    for other in others:
        sampling.generate(run.trained, 10, **options | other)
        now = set((tiny_run / "samples" / "parts").glob("*.npz"))
        assert len(now - before) == 3, other  # nothing is read where it does not belong
        before = now
    sampling.generate(run.trained, 14, **options | {"labels": np.arange(14) % 10})
    assert (
        len(set((tiny_run / "samples" / "parts").glob("*.npz")) - before) == 2
    )  # two whole chunks are there


def test_interpolation(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    options = interpolate.Options(run=tiny_run, strips=2, columns=4, steps=40)
    strips = interpolate.main(options)
    assert strips.shape == (2, 4, 8, 8, 1)
    x_0, y_0 = interpolate.pairs(loading.load_run(tiny_run), options)
    # There and back with 40 steps: a few percent of a grey range of 2.
    np.testing.assert_allclose(strips[:, 0], x_0, atol=0.1)
    np.testing.assert_allclose(strips[:, -1], y_0, atol=0.1)
    assert width_and_frames(tiny_run / "interpolation.png")[0] > 300
    np.testing.assert_array_equal(np.load(tiny_run / "interpolation.npz")["strips"], strips)
    assert "differ from the images by" in capsys.readouterr().out


@pytest.mark.parametrize(("batch", "steps", "accuracy"), [(64, 60, 0.85), slow(256, 100, 0.95)])
def test_evaluation(
    batch: int, steps: int, accuracy: float, tiny_run: Path,
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(recogniser, "BATCH", batch)
    result = evaluate.main(
        evaluate.Options(
            run=tiny_run,
            num_times=3,
            examples=32,
            samples=40,
            steps=3,
            classifier_steps=steps,
            probability=NONE,
        )
    )
    assert json.loads((tiny_run / "evaluation.json").read_text()) == result
    assert result["classifier_held_out_accuracy"] > accuracy  # of scikit-learn's own digits
    assert (
        result["features_frechet_distance"] > result["features_frechet_distance_real_vs_real"]
    )  # barely trained
    assert result["features_recall"] < 0.3 < 0.8 < result["features_recall_real_vs_real"]
    assert result["training_distance_ratio"] > 1  # and no copies
    assert width_and_frames(tiny_run / "neighbours.png")[0] > 300
    run = loading.load_run(tiny_run)
    without = quality.measure(
        run, run.dataset.head("train", 40)[0], None, seed=0, classifier_steps=steps
    ).figures
    assert "recognised" not in without  # samples without labels have features all the same
    assert without["training_distance_ratio"] == 0  # and real copies are found
    assert without["nearer_than_1_percent_of_held_out"] == 1
    assert without["features_precision"] > 0.8
    for row in result["denoising"]:
        assert (
            row["gaussian_error"] < 1.01 * row["mean_error"]
        )  # it knows the mean, of the training split
        assert np.isfinite(row["x_0_error"])
    assert "recognised" in capsys.readouterr().out
    page = report.main(report.Options(runs=(tiny_run,))).read_text()
    shown = len(re.findall(r"<img src=", page))
    assert shown == len(list(tiny_run.glob("*.png")))  # each picture of the folder
    assert page.count('<input type="range"') == 1
    assert not re.search(r"https?://|src=\"[^d]", page)  # nothing to fetch
    assert f"{result['recognised']:.1%} +- {result['recognised_se']:.1%}" in page
    assert "jaxdiff train digits --run" in page
    both = report.main(report.Options(runs=(tiny_run, tiny_run), output=tiny_run / "both.html"))
    assert both.read_text().count(f"{result['recognised']:.1%} +- ") >= 2


@pytest.mark.slow
def test_a_run_is_exported_and_read_back(
    tiny_run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = export.main(export.Options(run=tiny_run, source="drawn by hand"))
    assert output == tiny_run / "digits.npz"
    losses = re.search(r"held-out loss (\S+) before rounding, (\S+) after", capsys.readouterr().out)
    assert losses is not None
    np.testing.assert_allclose(*map(float, losses.groups()), rtol=0.01)
    content = output.read_bytes()
    run, read = loading.load(tiny_run), zoo.read("digits", content)
    assert read.model == run.model
    assert read.about["source"] == "drawn by hand"
    chex.assert_trees_all_close(
        read.params, run.params, atol=0.02
    )  # half a scale of the largest weights
    x, t, label = jnp.ones((2, 8, 8, 1)), jnp.full(2, 0.5), jnp.array([1, 2])
    both = [jd.prediction.x_0_of(jax.jit(net.denoiser(label))(x, t), x) for net in (read, run)]
    np.testing.assert_allclose(*both, atol=0.05)
    monkeypatch.setattr(loop, "held_out_loss", lambda *_: lambda _: 0.0)  # it is known already
    export.main(export.Options(run=tiny_run, source="drawn by hand"))
    assert output.read_bytes() == content  # so that its digest can be written down


@pytest.mark.slow
def test_a_run_by_the_mnist_protocol(tiny_run: Path) -> None:
    """Real images beat the samples of a run that has learnt next to nothing."""
    assert reproduce_2015.mnist(
        reproduce_2015.Mnist(run=tiny_run, num=100, steps=3, examples=8, chain_steps=3)
    )
    found = json.loads((tiny_run / "parzen.json").read_text())
    bits = found["parzen_bits"]
    assert bits["perfect model, here"][0] > bits["this model"][0]
    assert bits["diffusion, the 2015 paper"] == [317, 2.7]
    assert np.isfinite(found["K"]["value"])
    assert width_and_frames(tiny_run / "parzen.png")[0] > 300


@pytest.mark.slow
def test_rates_of_a_run(tiny_run: Path) -> None:
    options = rates.Options(
        run=tiny_run, samplers=("heun",), steps=(2, 3), batch=8, guidance=2.0, rounds=2
    )
    rows = rates.main(options)
    assert [(row["sampler"], row["calls"]) for row in rows] == [("heun", 8), ("heun", 12)]
    assert all(len(row["all"]) == 2 and min(row["all"]) > 0 for row in rows)
    assert json.loads((tiny_run / "rates.json").read_text())["rows"] == rows
    assert (tiny_run / "rates.png").exists()


@pytest.mark.slow
def test_a_toy_density_trains(tmp_path: Path) -> None:
    toy = dataclasses.replace(
        PRESETS["toy"][1], run=tmp_path / "toy", steps=4, batch_size=8, eval_every=4,
        network=Network(channels=8, num_blocks=2),
    )  # fmt: skip
    assert train.main(toy)
    assert width_and_frames(toy.run / "samples.png")[0] > 300
    few = dataclasses.replace(FEW, simulated_examples=0)
    result = evaluate.main(
        evaluate.Options(
            run=toy.run, num_times=2, examples=50, samples=50, steps=3, probability=few
        )
    )
    assert "recognised" not in result
    # By terms, and by one and by several paths.
    assert [row["kind"] for row in result["probability"]] == 3 * ["lower"] + 5 * ["density"]
    assert (toy.run / "paths.png").exists()
    assert not (toy.run / "crooks.png").exists()  # without simulated examples


@pytest.mark.slow
def test_a_likelihood_run_and_its_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Trained on the bound, sampled, and evaluated; what is done already is read again, and only where it belongs."""
    config = dataclasses.replace(
        PRESETS["digits-likelihood"][1], run=tmp_path / "run", steps=6, batch_size=8, eval_every=6,
        network=Network(channels=8, multipliers=(1,), attention=(), fourier=(3,)),
    )  # fmt: skip
    assert train.main(config)
    run = loading.load_run(config.run)
    logits = run.trained.schedule.logits
    assert np.abs(np.asarray(logits)).max() > 0  # the interior has moved
    options = evaluate.Options(run=config.run, num_times=2, examples=8, samples=0, probability=FEW)
    first = evaluate.main(options)
    names = [row["name"] for row in first["probability"]]
    assert "bound in continuous time" in names
    assert "full Gaussian" in names
    assert all(
        np.isfinite(row["bits_per_dim"]) and row["bits_per_dim_se"] > 0
        for row in first["probability"]
    )
    for picture in ("terms.png", "crooks.png", "paths.png"):
        assert width_and_frames(config.run / picture)[0] > 300
    assert "probability-flow ODE" in capsys.readouterr().out
    parts = {part: part.stat().st_mtime_ns for part in (config.run / "probability").rglob("*.npz")}
    lost = next(part for part in parts if part.name.startswith("terms"))
    lost.unlink()  # as an interrupted evaluation leaves it
    again = evaluate.main(options)
    assert {part for part in parts if part.stat().st_mtime_ns != parts[part]} == {lost}
    for one, two in zip(first["probability"], again["probability"], strict=True):
        assert dataclasses.replace(Row(**one), seconds=0) == dataclasses.replace(
            Row(**two), seconds=0
        )


@pytest.mark.parametrize(
    ("objective", "time_sampling", "prediction"),
    [("vlb", "loss_aware", "v"), ("hybrid", "uniform", "eps")],
)
@pytest.mark.slow
def test_a_finite_chain_is_trained_resumed_and_evaluated(
    objective: str,
    time_sampling: str,
    prediction: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the middle it goes on bit for bit, the history of its steps included; its chain has its own T."""
    diffusion = Diffusion(
        prediction=prediction, objective=objective, num_steps=3, time_sampling=time_sampling
    )
    network = dataclasses.replace(TINY.network, multipliers=(1,))
    config = dataclasses.replace(
        TINY, run=tmp_path / "run", steps=8, eval_every=8, network=network, diffusion=diffusion
    )
    monkeypatch.setattr(train, "draw_pictures", lambda *_: None)
    assert train.main(config)
    log = training.read_log(config.run)
    stopped = dataclasses.replace(config, run=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(
            training.Stop,
            "asked",
            property(lambda stop: True, lambda stop, value: None),
            raising=False,
        )
        assert not train.main(stopped)  # after its first step
    assert train.main(stopped)
    assert [x["loss"] for x in training.read_log(stopped.run) if "loss" in x] == [
        x["loss"] for x in log if "loss" in x
    ]
    states = [last_state(c) for c in (config, stopped)]
    chex.assert_trees_all_equal(*(state._replace(key=()) for state in states))
    if time_sampling == "loss_aware":
        assert (
            int(states[0].memory.counts.sum()) == 8 * 8
        )  # every row of every step, whichever device it was on
    else:
        assert states[0]._fields == training.TrainState._fields
    few = dataclasses.replace(FEW, steps=None, path_examples=0, ode_examples=0, baselines=False, ais_examples=2, ais_temperatures=2)  # fmt: skip
    options = evaluate.Options(run=config.run, num_times=1, examples=8, samples=0, probability=few)
    rows = evaluate.main(options)["probability"]
    assert rows[0]["name"] == "bound by terms, T = 3"
    assert [row["kind"] for row in rows] == ["lower", "lower", "lower", "upper"]
    assert all(np.isfinite(row["nats"]) for row in rows)
    assert np.isfinite(
        sampling.generate(loading.load(config.run), 2, sampler="ancestral", steps=3).x
    ).all()


def last_state(config: Config) -> training.TrainState:
    dataset = datasets.of(config)
    model = build.make_model(config, dataset)
    with training.Checkpoints(config.run / "checkpoints") as checkpoints:
        return checkpoints.restore(build.abstract_state(config, model, dataset.event_shape))


# --- stopping and going on -----------------------------------------------------------------------------------------

STEPS = 300


def command(run: Path) -> list[str]:
    options = f"--steps {STEPS} --batch-size 8 --log-every 1 --eval-every 10 --network.channels 8"
    return [
        sys.executable,
        "experiments/train.py",
        "digits",
        "--run",
        str(run),
        *options.split(),
        "--network.attention",
    ]


def environment() -> dict[str, str]:
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}


def final_digest(run: Path) -> str:
    """The digest in the last checkpoint: parameters, average, optimiser, key and step."""
    (path,) = (run / "checkpoints" / str(STEPS)).glob("about/metadata")
    return json.loads(path.read_text())["sha256"]


def finish(run: Path) -> None:
    done = subprocess.run(
        command(run),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def stop_after(run: Path, steps: int, number: int) -> subprocess.CompletedProcess:
    """Go on with a run and send it a signal once its log has grown by so many steps."""
    before = max((line["step"] for line in training.read_log(run)), default=0)
    process = subprocess.Popen(
        command(run),
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 600
    while not any(line["step"] >= before + steps for line in training.read_log(run)):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.slow
def test_ctrl_c_and_kill_lose_nothing_but_time(tmp_path: Path) -> None:
    """Interrupted, gone on with, killed in cold blood, gone on with: bit for bit the run that was left in peace."""
    peace, war = tmp_path / "peace", tmp_path / "war"
    finish(peace)
    interrupted = stop_after(war, 3, signal.SIGINT)
    assert interrupted.returncode == 130, interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    step = int(
        re.search(
            rf"stopped at step (\d+) of {STEPS}, saved; to go on, repeat:", interrupted.stdout
        )[1]
    )
    assert (war / "checkpoints" / str(step)).is_dir()
    assert stop_after(war, 15, signal.SIGKILL).returncode == -signal.SIGKILL
    finish(war)
    assert final_digest(war) == final_digest(peace)
    losses = [
        [(x["step"], x["loss"]) for x in training.read_log(run) if "loss" in x]
        for run in (peace, war)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_second_process_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    """Beside a training run: another train.py, samples, an evaluation, an export; the run loses not a line."""
    run = tmp_path / "run"
    first = subprocess.Popen(
        command(run), cwd=ROOT, env=environment(), text=True, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 600
    while not (run / "checkpoints" / "10").exists():
        assert first.poll() is None, first.stderr and first.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = subprocess.run(
        command(run),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert second.returncode == 1
    assert f"is in use by process {first.pid} on " in second.stderr
    assert len([line for line in second.stderr.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in second.stderr
    steps = [loading.load(run, best=best).step for best in (False, True)]
    assert min(steps) >= 10
    assert max(steps) < STEPS
    sample.main(sample.Options(run=run, num=4, steps=2))
    evaluate.main(evaluate.Options(run=run, num_times=1, examples=8, samples=0, probability=NONE))
    export.main(export.Options(run=run))
    _, err = first.communicate(timeout=600)
    assert first.returncode == 0, err
    losses = [line["step"] for line in training.read_log(run) if "loss" in line]
    assert losses == list(range(1, STEPS + 1))
    assert loading.load(run).step == STEPS


def test_a_run_in_use_is_left_alone(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, run=tmp_path / "run")
    with training.lock(config.run), pytest.raises(BlockingIOError, match="is in use by process"):
        train.main(config)
    assert [path.name for path in config.run.iterdir()] == [".lock"]


@pytest.mark.slow
def test_a_run_goes_on_for_longer(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more steps and another learning rate and log: from the last state, said in one line, with new pictures."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    drawn = []
    monkeypatch.setattr(train, "draw_pictures", lambda config, _: drawn.append(config.steps))
    optimizer = dataclasses.replace(TINY.optimizer, learning_rate=1e-3)
    longer = dataclasses.replace(TINY, run=run, steps=9, log_every=2, optimizer=optimizer)
    before = last_state(dataclasses.replace(TINY, run=run))
    assert train.main(longer)
    said = f"{run} goes on from step 6 with steps 9 (was 6), log_every 2 (was 1), optimizer.learning_rate 0.001 (was 0.002)"
    assert said in capsys.readouterr().out
    assert folders.load_config(run) == longer
    after = last_state(longer)
    assert (int(before.step), int(after.step)) == (6, 9)
    adam = [jax.tree.leaves(state.opt_state)[0] for state in (before, after)]
    assert [int(count) for count in adam] == [6, 9]  # Adam and the schedule count on
    assert [line["step"] for line in training.read_log(run) if "loss" in line] == [
        1,
        2,
        3,
        4,
        5,
        6,
        8,
        9,
    ]
    assert drawn == [9]
    assert not any(
        (run / name).exists() for name in train.PICTURES
    )  # those of the shorter run are gone
    assert train.main(dataclasses.replace(TINY, run=run, steps=4))  # fewer than there are
    assert "is trained already (9 steps)" in capsys.readouterr().out
    assert folders.load_config(run) == longer


def test_samples_that_are_not_finite_are_not_saved(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = np.zeros((2, 4, 1, 8, 8, 1))
    bad[-1, 1, 0, 3, 3], bad[-1, 2, 0, 0, 0] = np.nan, np.inf
    monkeypatch.setattr(sampling, "program", lambda *_, **__: lambda *_: bad)
    with pytest.raises(SystemExit) as end, errors.one_line_errors():
        sample.main(sample.Options(run=tiny_run, num=4, steps=2, output=tmp_path / "out"))
    assert end.value.code == 1
    assert "error: samples: 2 of 4 are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(FloatingPointError, match="samples: 2 of 4"):
        sampling.generate(loading.load(tiny_run), 4, steps=2, keep=tmp_path, seed=99)
    (tiny_run / "interpolation.npz").unlink(missing_ok=True)
    monkeypatch.setattr(interpolate, "between", lambda *_: np.full((6, 10, 8, 8, 1), np.nan))
    with pytest.raises(FloatingPointError, match="samples: 6 of 6"):
        interpolate.main(interpolate.Options(run=tiny_run))
    assert not (tiny_run / "interpolation.npz").exists()


# --- mistakes ------------------------------------------------------------------------------------------------------


def bad_input(case: str, run: Path, tmp_path: Path) -> None:
    """Each mistake a user can make on the command line."""
    other = tmp_path / "other"
    calls = {
        "unknown data set": lambda: train.main(
            dataclasses.replace(TINY, run=other, dataset="digitz")
        ),
        "set not prepared": lambda: train.main(
            dataclasses.replace(TINY, run=other, dataset="mnist", data_dir=tmp_path / "nothing")
        ),
        "another configuration": lambda: train.main(
            dataclasses.replace(TINY, run=run, batch_size=16)
        ),
        "batch for no devices": lambda: train.main(
            dataclasses.replace(TINY, run=other, batch_size=6)
        ),
        "no run": lambda: sample.main(sample.Options(run=other)),
        "unknown label": lambda: sample.main(sample.Options(run=run, labels=(10,))),
        "guided without labels": lambda: sample.main(
            sample.Options(run=run, unconditional=True, guidance=2.0)
        ),
        "no log": lambda: train.main(dataclasses.replace(TINY, run=other, log_every=0)),
        "ancestral noise": lambda: sample.main(
            sample.Options(run=run, sampler="ancestral", noise=0.5)
        ),
        "no chunk": lambda: sample.main(sample.Options(run=run, batch_size=0)),
        "no samples": lambda: sample.main(sample.Options(run=run, num=0)),
        "no steps": lambda: sample.main(sample.Options(run=run, steps=0)),
        "no calls": lambda: compare.main(compare.Options(calls=())),
        "levels alone": lambda: train.main(
            dataclasses.replace(TINY, run=other, diffusion=Diffusion(prediction="levels"))
        ),
        "bound of labelled data": lambda: train.main(
            dataclasses.replace(
                TINY,
                run=other,
                diffusion=Diffusion(prediction="levels", schedule="learned"),
            )
        ),
        "another bound of a learned schedule": lambda: train.main(
            dataclasses.replace(
                PRESETS["digits-likelihood"][1],
                run=other,
                diffusion=Diffusion(prediction="levels", schedule="learned", objective="vlb"),
            )
        ),
        "weighted bound": lambda: train.main(
            dataclasses.replace(
                TINY, run=other, diffusion=Diffusion(objective="vlb", weight="min_snr")
            )
        ),
        "no terms": lambda: train.main(
            dataclasses.replace(TINY, run=other, diffusion=Diffusion(time_sampling="loss_aware"))
        ),
        "no chain": lambda: train.main(
            dataclasses.replace(
                TINY, run=other, diffusion=Diffusion(objective="hybrid", num_steps=0)
            )
        ),
        "levels of a density": lambda: train.main(
            dataclasses.replace(PRESETS["digits-likelihood"][1], run=other, dataset="swiss_roll")
        ),
        "no strips": lambda: interpolate.main(interpolate.Options(run=run, strips=0)),
        "too many strips": lambda: interpolate.main(interpolate.Options(run=run, strips=19)),
        "few samples": lambda: evaluate.main(evaluate.Options(run=run, samples=9)),
        "a window of too many": lambda: reproduce_2015.mnist(
            reproduce_2015.Mnist(run=run, num=1199)
        ),
        "another ending": lambda: export.main(export.Options(run=run, output=other)),
        "an uneven batch": lambda: rates.main(rates.Options(run=run, batch=6)),
        "one sample": lambda: reproduce_2015.mnist(reproduce_2015.Mnist(run=run, num=1)),
        "no rounds": lambda: rates.main(rates.Options(run=run, rounds=0)),
        "no times": lambda: evaluate.main(evaluate.Options(run=run, num_times=0)),
    }
    with errors.one_line_errors():
        calls[case]()


MESSAGES = {
    "unknown data set": "did you mean",
    "set not prepared": "jaxdiff prepare",
    "another configuration": "was begun with another batch_size",
    "batch for no devices": "batch: expected a multiple of 4 devices, got 6 rows",
    "no run": "is no run folder",
    "unknown label": "labels: expected classes 0 to 9",
    "guided without labels": "labels, guidance: expected none",
    "no log": "log_every: expected at least 1, got 0",
    "ancestral noise": "noise: expected none with --sampler ancestral",
    "no chunk": "batch_size: expected at least 1, got 0",
    "no samples": "num: expected at least 1, got 0",
    "no steps": "steps: expected at least 1, got 0",
    "no calls": "calls: expected numbers of at least 3, got ()",
    "levels alone": "schedule, prediction: expected learned and levels together",
    "bound of labelled data": "conditional: expected False",
    "another bound of a learned schedule": "objective: expected None with the learned schedule's own bound, got vlb",
    "weighted bound": "weight: expected none but for the simple objective, got min_snr",
    "no terms": "time_sampling: expected loss_aware with vlb or hybrid only, got None",
    "no chain": "diffusion.num_steps: expected at least 1, got 0",
    "levels of a density": "prediction: expected another than levels, because swiss_roll has none",
    "no strips": "strips: expected at least 1, got 0",
    "too many strips": "strips: expected at most a 20th of the 360 held-out images, got 19",
    "few samples": "samples: expected at least 10, or 0 for none, got 9",
    "a window of too many": "num: expected at most 1198, as many as a perfect model has, got 1199",
    "another ending": "output: expected a name that ends in .npz",
    "an uneven batch": "batch: expected a multiple of 4 devices, got 6",
    "one sample": "num: expected at least 2, got 1",
    "no rounds": "rounds: expected at least 1, got 0",
    "no times": "num_times: expected at least 1, got 0",
}


@pytest.mark.parametrize("case", MESSAGES)
def test_mistakes_are_answered_in_one_line(
    case: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        bad_input(case, tiny_run, tmp_path)
    assert exit_info.value.code == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert MESSAGES[case] in error[0]


def test_a_mistake_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "draw_pictures", lambda *_: None)
    network = Network(channels=8, num_blocks=1)
    mistaken = dataclasses.replace(
        PRESETS["toy"][1], run=tmp_path / "run", batch_size=6, network=network
    )
    with pytest.raises(ValueError, match="batch: expected a multiple"):
        train.main(mistaken)
    assert train.main(dataclasses.replace(mistaken, batch_size=8, steps=1))


def test_lost_pictures_are_made_again(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(train, "draw_pictures", lambda config, _: drawn.append(config.run))
    lost, config = tiny_run / "reverse.gif", dataclasses.replace(TINY, run=tiny_run)
    assert train.main(config)
    assert drawn == []
    held = lost.read_bytes()
    lost.unlink()
    assert train.main(config)
    assert drawn == [tiny_run]
    lost.write_bytes(held)


def test_a_damaged_configuration_is_named(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: expected JSON, got"):
        folders.load_config(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tiny_run: Path) -> None:
    wider = dataclasses.replace(
        TINY, run=tiny_run, network=dataclasses.replace(TINY.network, channels=16)
    )
    path = tiny_run / "config.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(as_json(wider))))
        with pytest.raises(
            ValueError, match=r"is of another model: .* leaves differ, the first: expected"
        ):
            loading.load_run(tiny_run)
    finally:
        path.write_text(before)


def help_of(capsys: pytest.CaptureFixture, call: Callable[[], Any]) -> str:
    with pytest.raises(SystemExit) as end:
        call()
    assert not end.value.code
    return re.sub(r"\x1b\[[0-9;]*m|[│─╭╮╰╯]", "", capsys.readouterr().out)


@pytest.mark.parametrize(
    "script", sorted(path.name for path in (ROOT / "experiments").glob("*.py"))
)
def test_help_can_be_read(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli, "set_up", lambda: None)  # this process is set up already
    preset = ["digits"] if script == "train.py" else []
    monkeypatch.setattr(sys, "argv", [script, *preset, "--help"])
    path = str(ROOT / "experiments" / script)
    page = help_of(capsys, lambda: runpy.run_path(path, run_name="__main__"))
    assert re.match(rf"usage: \S*{script} ", page)
    assert len(page.splitlines()) > 8


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_says_what_it_takes_with_its_defaults(
    command: str, capsys: pytest.CaptureFixture
) -> None:
    """Every option by its name; `jaxdiff --help` has a line for every command."""
    preset = ["mnist"] if command == "train" else []
    prog = f"jaxdiff {command}"
    page = help_of(capsys, lambda: cli.run(command, [*preset, "--help"], prog=prog))
    assert page.startswith(f"usage: jaxdiff {command}")
    assert f"\n  {command} " in cli.usage()
    module = importlib.import_module(f"jaxdiff.cli.{command}")
    options = PRESETS["mnist"][1] if command == "train" else module.Options
    for name in named(options):
        assert f"--{name}" in page or f"--no-{name}" in page or name in ("run", "runs"), name
    if command == "train":  # the preset's own
        for default in ("4000", "runs/mnist", "0.999"):
            assert f"(default: {default})" in " ".join(page.split()), default


def named(options: Any, prefix: str = "") -> Iterator[str]:
    """The options of a dataclass as the command line has them."""
    hints = typing.get_type_hints(options if isinstance(options, type) else type(options))
    for name, kind in hints.items():
        if dataclasses.is_dataclass(kind):
            flat = name == "sampling"  # without its prefix, as posterior has it
            yield from named(kind, "" if flat else f"{prefix}{name}.".replace("_", "-"))
        else:
            yield f"{prefix}{name}".replace("_", "-")


def test_a_command_that_is_none_is_answered_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["jaxdiff", "tarin"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no command 'tarin'")
    assert set(re.findall(r"^  (\w+) ", error, re.M)) == set(cli.COMMANDS)


def test_the_program_by_its_name() -> None:
    """`python -m jaxdiff`; the console script calls the same function."""
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="jaxdiff")
    assert script.load() is cli.main
    done = subprocess.run(
        [sys.executable, "-m", "jaxdiff", "env"], cwd=ROOT, env=environment(), capture_output=True, text=True,
        check=True, timeout=600,
    )  # fmt: skip
    assert done.stdout.startswith(f"jaxdiff {jd.__version__} in ")
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint"):
        assert f"{name} {importlib.metadata.version(name)}" in done.stdout
    assert "Python " in done.stdout
    assert re.search(r"^device 0: .* GiB left$", done.stdout, re.M)


def test_a_gpu_that_stands_unused_is_said(tmp_path: Path) -> None:
    assert not any("warning" in line for line in env.lines(tmp_path))
    information = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 1\n")
    (warning,) = (line for line in env.lines(tmp_path) if "warning" in line)
    assert "NVIDIA H100 80GB HBM3 is not used" in warning
    assert 'pip install "jaxdiff[cuda12]"' in warning


def test_what_is_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, expected in (
        (["/v/bin/jaxdiff", "train", "digits", "--run", "a b"], "jaxdiff train digits --run 'a b'"),
        (["/v/jaxdiff/__main__.py", "train"], f"{sys.executable} -m jaxdiff train"),
        (["experiments/train.py", "digits"], f"{sys.executable} experiments/train.py digits"),
    ):
        monkeypatch.setattr(sys, "argv", arguments)
        assert cli.typed() == expected
