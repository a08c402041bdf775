"""The posterior script: its observations, its ranks, and tiny runs from end to end."""

import dataclasses
import json
import typing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.neural_network import MLPClassifier

import jaxdiff as jd
from jaxdiff import data as jd_data
from jaxdiff.cli import posterior, posterior_pictures, train
from jaxdiff.runs import (
    calibration,
    datasets,
    loading,
    posteriors,
    problems,
    tasks,
)
from jaxdiff.runs.config import PRESETS, Network

CONFIG = dataclasses.replace(
    PRESETS["digits"][1],
    steps=1,
    batch_size=8,
    network=Network(channels=8, multipliers=(1,), num_blocks=1, attention=()),
)
FEW = problems.Particles(draws=3, rows=2, steps=4)
TASKS = typing.get_args(tasks.TaskName)


@pytest.fixture(scope="module")
def dataset() -> datasets.Dataset:
    return datasets.of(CONFIG)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_pictures", lambda *_: None)
        assert train.main(dataclasses.replace(CONFIG, run=folder))
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_observations_of_digits(name: str, dataset: datasets.Dataset) -> None:
    """Finite at the truth, of a size that the noise explains, an image to look at; one pytree for every y."""
    task = tasks.make_task(name, dataset, noise=None, peak=8.0, seed=0)
    x, labels = dataset.head("test", 20)
    ys = [
        np.asarray(
            task.draw(
                jax.random.key(i),
                jnp.asarray(x[i]),
                jnp.asarray(-1 if name == "class" else labels[i]),
            )
        )
        for i in range(20)
    ]
    assert all(
        np.isfinite(task.likelihood(jnp.asarray(y))(jnp.asarray(v)))
        for y, v in zip(ys, x, strict=True)
    )
    assert task.picture(ys[0]).shape == (8, 8, 1)
    one, two = (jax.tree.structure(task.likelihood(jnp.asarray(y))) for y in ys[:2])
    assert one == two
    if task.residuals is not None:
        size = np.mean(
            [np.mean(task.residuals(y, v[None]) ** 2) for y, v in zip(ys, x, strict=True)]
        )
        assert 0.8 < size < 1.2  # of 20 images: 1 but for Monte Carlo's .1
    if name == "class":
        right = [
            int(task.draw(jax.random.key(i), jnp.asarray(x[i]), -1)) == labels[i] for i in range(20)
        ]
        assert np.mean(right) > 0.8


@pytest.mark.parametrize(
    ("schedule", "start"), [("cosine", -8.0), ("edm", -8.0), ("linear", -30.0)]
)
def test_grids_begin_where_next_to_no_signal_is_left(schedule: str, start: float) -> None:
    """At the log-SNR that is asked for, or at t = 1 where the schedule does not go there; the noise has that width."""
    made = getattr(jd.schedules, schedule)()
    problem = problems.Problem(
        typing.cast(typing.Any, None),
        made,
        problems.Particles(start=start),
        1.0,
        jnp.zeros(1),
        jnp.ones(1),
        None,
    )
    least = max(start, float(made.log_snr(1.0)))
    np.testing.assert_allclose(made.log_snr(problem.ts[0]), least, rtol=1e-4)
    x = jd.prior_sample(jax.random.key(0), made, (1, 20_000), t=problem.ts[0])
    np.testing.assert_allclose(
        np.std(x), made.sigma(problem.ts[0]), rtol=0.025
    )  # 5 standard errors


def test_ranks_of_exact_draws_are_uniform() -> None:
    """Truth and draws of one law: uniform ranks and honest coverage; draws that are too narrow have neither."""
    random = np.random.default_rng(0)

    def shares(spread: float) -> np.ndarray:
        return np.stack(
            [
                calibration.ranks(
                    random.normal(size=1), spread * random.normal(size=(19, 1)), np.zeros(19), u
                )
                for u in random.random(2000)
            ]
        )

    good, narrow = shares(1.0), shares(0.6)
    assert calibration.uniformity(good[:, 0])[1] > 1e-3
    assert calibration.uniformity(narrow[:, 0])[1] < 1e-6
    for level in calibration.LEVELS:
        covered = calibration.coverage(good, level)
        assert abs(covered.value - level) < 4 * covered.standard_error
        assert calibration.coverage(narrow, level).value < level - 0.1


def test_a_weight_is_so_many_copies() -> None:
    draws, weights = np.array([[0.1], [0.5], [0.9]]), np.log([1.0, 2.0, 1.0])
    copies = np.array([[0.1], [0.5], [0.5], [0.9]])
    truth, u = np.array([0.6]), 0.3
    ours = (
        calibration.ranks(truth, draws, weights, u) * 4 - u
    )  # of N draws: (N share + u) / (N + 1)
    theirs = calibration.ranks(truth, copies, np.zeros(4), u) * 5 - u
    np.testing.assert_allclose(ours / 3, theirs / 4)


def run_script(run: Path, **options: object) -> dict:
    defaults = {"images": 2, "calibration": 0, "sampling": FEW}
    return posterior.main(posterior.Options(run=run, **(defaults | options)))


def test_inpainting_from_end_to_end(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Files that can be looked at, figures that can be read, and nothing done twice."""
    result = run_script(run, task="half", calibration=10)
    folder = run / "posterior" / "half-twisted"
    for name in ("posterior.png", "calibration.png"):
        with Image.open(folder / name) as picture:
            assert picture.size[0] > 300
    saved = json.loads((folder / "posterior.json").read_text())
    assert saved["methods"] == result["methods"]
    row = result["methods"][0]
    assert row["calls"] == 3 * 2 * 4  # one call a step and row: no gradient
    assert set(row["mean"]) == {
        "log_evidence",
        "ess",
        "least_ess",
        "lineages",
        "psnr_of_mean",
        "energy_score",
        "residual",
    }
    assert all(np.isfinite(value) for value in row["mean"].values())
    assert len(row["images"]) == 2
    assert row["mean"]["lineages"] == 3
    own = row["calibration"]
    assert own["images"] == 10
    assert np.shape(own["log_evidence"]) == (2, 10)  # of two seeds
    assert 0 <= own["pixels_90"]["value"] <= 1
    out = capsys.readouterr().out
    assert "p of ranks" in out
    assert "twisted: the samples of an image come from 3.0 lineages on average" in out
    parts = {part: part.stat().st_mtime_ns for part in run.glob("posterior/parts/*.npz")}
    assert len(parts) == 10 + 2 + 2 * 10  # the model's images, held-out ones, two seeds
    again = run_script(run, task="half", calibration=10)
    assert {part: part.stat().st_mtime_ns for part in run.glob("posterior/parts/*.npz")} == parts
    assert again["methods"] == result["methods"]


@pytest.mark.slow
def test_an_option_costs_its_own_images_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option in turn, with methods that it is nothing to; more images draw the new ones alone."""
    drawn: list[int] = []
    read = loading.load_run(run)
    train, _ = read.dataset.head("train", 10)

    def instead(run, problem, name, size, **_):  # of the programs
        sizes = {
            "x": (size.systems, 8, 8, 1),
            "log_weights": (size.systems,),
            "log_evidence": (),
            "ess": (2,),
            "lineages": (),
            "seconds": (),
        }

        def make(numbers: list[int]) -> list[dict]:
            drawn.extend(numbers)
            return [{f: np.ones(s) for f, s in sizes.items()} for _ in numbers]

        return make

    monkeypatch.setattr(posteriors, "_maker", instead)

    def made(
        method: str,
        num: int = 2,
        seed: int = 0,
        run: loading.Run = read,
        noise: float = 0.1,
        **options,
    ) -> list:
        drawn.clear()
        task = tasks.make_task("half", run.dataset, noise=noise, peak=8.0, seed=0)
        problem = problems.make_problem(task, run, dataclasses.replace(FEW, **options))
        posteriors.draw(run, problem, method, list(train[:num]), seed=seed, what="a test")
        return list(drawn)

    names = ["twisted", "mcgdiff", "dps", "pigdm"]
    assert [made(method) for method in names] == [[0, 1]] * 4
    assert [made(method) for method in names] == [[]] * 4
    assert made("twisted", num=3) == [2]
    changes: dict[str, tuple[object, str]] = {
        "draws": (5, "twisted mcgdiff dps pigdm"), "rows": (5, "twisted mcgdiff"),
        "spread": ("isotropic", "twisted mcgdiff dps pigdm"), "steps": (5, "twisted mcgdiff dps pigdm"),
        "start": (-7.0, "twisted mcgdiff dps pigdm"), "scheme": ("residual", "twisted mcgdiff"),
        "threshold": (0.7, "twisted mcgdiff"), "prior_std": (0.7, "twisted pigdm"), "belief": ("flat", "mcgdiff"),
        "at_once": (2, ""), "seed": (1, "twisted mcgdiff dps pigdm"), "noise": (0.2, "twisted mcgdiff dps pigdm"),
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(FEW)} < set(changes)
    for option, (value, expected) in changes.items():
        assert [m for m in names if made(m, **{option: value})] == expected.split(), option
    params = jax.tree.map(lambda leaf: leaf + 1, read.trained.params)
    moved = dataclasses.replace(read, trained=read.trained.with_params(params))
    assert [made(method, run=moved) for method in names] == [[0, 1]] * 4
    assert [made(method) for method in names] == [[]] * 4
    part = next(run.glob("posterior/parts/dps-1-*.npz"))
    for path in run.glob("posterior/parts/dps-1-*.npz"):
        path.write_bytes(part.read_bytes()[:50])  # cut short
    assert made("dps") == [1]


def test_an_image_costs_the_same_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work before the program is for its own images, not for all with lower numbers."""
    monkeypatch.setattr(posteriors.sampling, "require_finite", lambda x: None)
    devices, last, key = jax.local_device_count(), 10**9, jax.random.key(3)
    likelihoods = {i: {"y": jnp.full(2, i, "float32")} for i in (7, last)}
    problem = SimpleNamespace(options=SimpleNamespace(at_once=2))
    run = SimpleNamespace(
        trained=SimpleNamespace(params=None), dataset=SimpleNamespace(event_shape=())
    )
    seen = []

    def program(params: Any, *given: Any) -> dict[str, jax.Array]:
        seen.append(given)
        return {"x": jnp.zeros((devices, 2))}

    monkeypatch.setattr(posteriors, "_program", lambda *_: program)
    make: Any = posteriors._maker
    parts = make(run, problem, "twisted", None, likelihoods=likelihoods, key=key, labels=None)(
        [7, last]
    )
    assert len(parts) == 2
    ((keys, given, label),) = seen
    numbers = np.resize([7, last], 2 * devices)
    expected = [jax.random.key_data(jax.random.fold_in(key, int(i))) for i in numbers]
    np.testing.assert_array_equal(jax.random.key_data(keys).reshape(2 * devices, -1), expected)
    np.testing.assert_array_equal(given["y"][..., 0].ravel(), np.float32(numbers))
    assert label is None


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("classes", [(0, 1), (0, 2), (1, 2, 3)])
def test_a_classifier_of_the_classes_there_are(classes: tuple[int, ...]) -> None:
    """scikit-learn's probabilities, of two classes too; a class that it never saw is next to impossible."""
    random = np.random.default_rng(0)
    x, labels = random.normal(size=(60, 4)), np.repeat(classes, 60 // len(classes))
    network = MLPClassifier((8,), max_iter=20, random_state=0).fit(x, labels)
    hidden, last = zip(network.coefs_, network.intercepts_, strict=True)
    layers = [hidden, tasks._of_all_classes(last, network.classes_, 4)]
    layers = [(jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)) for w, b in layers]
    found = jax.nn.softmax(
        jax.vmap(partial(tasks._perceptron, layers))(jnp.asarray(x, jnp.float32))
    )
    np.testing.assert_allclose(found[:, classes], network.predict_proba(x), atol=1e-5)  # rounding
    assert np.asarray(found).sum(1, where=~np.isin(range(4), classes)).max() < 1e-10


@pytest.mark.parametrize("counts", [(9, 0), (2, 2)])
def test_too_few_images_for_a_classifier(counts: tuple[int, int]) -> None:
    labels = np.repeat([0, 1], counts).astype(np.int32)
    split = jd_data.Split(np.zeros((len(labels), 2, 2, 1), np.uint8), labels)
    few = datasets.Dataset("own", (2, 2, 1), 2, 2, lambda: {"train": split})
    with pytest.raises(
        ValueError,
        match=r"task: expected at least 2 classes and 5 training images for each .*, got",
    ):
        tasks._classifier(few, 0)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_compares_its_methods(task: str, run: Path) -> None:
    result = run_script(run, task=task, compare=True)
    names = [row["method"] for row in result["methods"]]
    assert "twisted" in names
    assert ("mcgdiff" in names) == (task not in ("poisson", "class"))
    assert ("repaint" in names) == (task in ("inpaint", "half"))
    calls = {row["method"]: row["calls"] for row in result["methods"]}
    sizes = {row["method"]: (row["systems"], row["rows"]) for row in result["methods"]}
    for name, number in calls.items():
        assert number <= calls["twisted"] or 2 in sizes[name]  # the least that has a spread
    assert (run / "posterior" / f"{task}-compare" / "posterior.png").exists()


@pytest.mark.slow
def test_classes_by_their_evidence(run: Path) -> None:
    result = run_script(run, task="half", classes=True)
    probability = np.asarray(result["classes"]["probability"])
    assert probability.shape == (2, 10)
    np.testing.assert_allclose(probability.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "class", "method": "mcgdiff"}, "method: expected one of twisted, .* with --task class, got mcgdiff"),
        ({"task": "deblur", "method": "repaint"}, "method: expected one of .* with --task deblur, got repaint"),
        ({"task": "class", "noise": 0.1}, "noise: expected none with --task class"),
        ({"noise": -1.0}, "noise: expected a positive standard deviation, got -1"),
        ({"task": "poisson", "peak": 0.0}, "peak: expected a positive mean count"),
        ({"images": 0}, "images: expected at least 1, got 0"),
        ({"calibration": 5}, "calibration: expected 0, or at least 10 images, got 5"),
        ({"sampling": problems.Particles(start=0.0)}, "start: expected a log-SNR of at most -4"),
        ({"sampling": problems.Particles(steps=0)}, "steps: expected at least 2, got 0"),
        ({"among": ("pigdm",)}, "among: expected none without --compare"),
        ({"method": "conditioned", "sampling": problems.Particles(spread="isotropic")}, "spread: expected measured with --method conditioned"),
    ],
)  # fmt: skip
def test_mistakes_are_named(options: dict, message: str, run: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run_script(run, **options)


def test_pictures_of_draws_are_in_no_order() -> None:
    drawn = posteriors.Drawn(
        np.arange(8.0).reshape(1, 8, 1, 1, 1), np.zeros((1, 8)), np.zeros(1), np.ones((1, 2)),
        np.full(1, 8), 0.0,
    )  # fmt: skip
    picked = posterior_pictures._picked(jax.random.key(0), drawn, 0).ravel()
    assert len(picked) == 6
    assert not np.all(np.diff(picked) >= 0)
