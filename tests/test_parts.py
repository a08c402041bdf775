"""The parts that evaluations keep: each is read again exactly where all it depends on is the same, and only whole."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.cli import evaluate, pictures
from jaxdiff.runs import build, cache, datasets, estimates, loading
from jaxdiff.runs.config import PRESETS, Config, Diffusion, Network
from jaxdiff.runs.probability import Estimators, Probability

FEW = Probability(
    examples=70, term_examples=70, steps=2, times=2, paths=2, path_examples=70, ode_steps=2, ode_examples=70,
    ais_examples=9, ais_temperatures=2, baselines=False,
)  # fmt: skip
EVERY = {"continuous", "terms", "paths", "works", "flow", "ais", "ais-both"}


def make_run(folder: Path, **sizes: int) -> loading.Run:
    """A run that was never trained, of a 2-D density."""
    config = dataclasses.replace(
        PRESETS["toy"][1], run=folder, network=Network(channels=8, num_blocks=1),
        diffusion=Diffusion(schedule="edm", prediction="eps"),
    )  # fmt: skip
    points = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    splits = {name: data.Split(points[: sizes.get(name, 100)]) for name in ("train", "test")}
    dataset = datasets.Dataset("points", (2,), None, None, lambda: splits)
    model = build.make_model(config, dataset)
    params = model.init(jax.random.key(0), (2,))
    return loading.assemble(config, dataset, model, {"network": params, "schedule": {}})


def moved_by_one(run: loading.Run) -> loading.Run:
    params = jax.tree.map(lambda leaf: leaf + 1, run.trained.params)
    return dataclasses.replace(run, trained=run.trained.with_params(params))


class Computed:
    """Which estimators computed parts, in place of their programs: all that any of them returns."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        written = cache.write

        def compiled(estimators: Estimators, function: Callable) -> Callable:
            def call(params: dict, keys: jax.Array, x: np.ndarray) -> dict:
                # Of each device's own rows, as a mapped program has it.
                one = np.ones(x.shape[:2]) + x.reshape(len(x), -1).sum(1)[:, None]
                single = ("log_prob", "lower", "upper", "reverse", "accepted")
                return dict.fromkeys(single, one) | dict.fromkeys(
                    ("terms", "log_w", "forward"), one[..., None]
                )

            return call

        def write(path: Path, arrays: dict) -> dict:
            self.names.append(path.stem.rsplit("-", 2)[0])
            return written(path, arrays)

        patch.setattr(Estimators, "compiled", compiled)
        patch.setattr(estimates, "_baselines", lambda *_: None)  # they keep no parts
        patch.setattr(cache, "write", write)

    def __call__(self, run: loading.Run, seed: int = 0, **options: object) -> set[str]:
        """The names of the parts computed, and that they are there the next time."""
        for again in (False, True):
            self.names.clear()
            estimates.estimate(run, dataclasses.replace(FEW, **options), seed=seed)
            if not again:
                found = set(self.names)
        assert not self.names
        return found


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Computed]:
    return Computed(monkeypatch)


def test_an_option_costs_its_own_parts_alone(tmp_path: Path, computed: Computed) -> None:
    """Each option in turn; then the first values again, which are all still there."""
    run = make_run(tmp_path)
    assert computed(run) == EVERY
    changes: dict[str, tuple[int | float, set[str]]] = {
        "steps": (3, {"terms", "paths", "works", "ais", "ais-both"}),
        "times": (3, {"continuous"}),
        "paths": (3, {"paths", "works"}),
        "ode_steps": (3, {"flow"}),
        "ais_temperatures": (3, {"ais", "ais-both"}),
        "ais_step_size": (0.2, {"ais", "ais-both"}),
        "examples": (71, {"continuous"}),
        "term_examples": (69, {"terms"}),
        "path_examples": (69, {"paths", "works"}),
        "simulated_examples": (68, {"works"}),
        "ode_examples": (69, {"flow"}),
        "ais_examples": (10, {"ais", "ais-both"}),
        "baselines": (True, set()),
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Probability)}
    for name, (value, expected) in changes.items():
        assert computed(run, **{name: value}) == expected, name
    assert computed(run) == set()
    assert computed(run, ode_steps=3) == set()  # several values lie side by side


def test_whole_parts_of_fewer_examples_serve_more(tmp_path: Path, computed: Computed) -> None:
    run = make_run(tmp_path)
    computed(run)
    estimates.estimate(run, dataclasses.replace(FEW, examples=90), seed=0)
    assert computed.names == ["continuous"]  # of its two parts the second


def test_nothing_is_read_where_it_does_not_belong(tmp_path: Path, computed: Computed) -> None:
    """Another seed, checkpoint, set, objective or version of the parts computes all of them."""
    run = make_run(tmp_path)
    assert computed(run) == EVERY
    assert computed(run, seed=1) == EVERY
    assert computed(moved_by_one(run)) == EVERY
    other = dataclasses.replace(
        run.config, diffusion=dataclasses.replace(run.config.diffusion, prediction="v")
    )
    assert computed(dataclasses.replace(run, config=other)) == EVERY
    moved = {name: data.Split(split.images + 1) for name, split in run.dataset.splits.items()}
    assert computed(dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, read=lambda: moved))) == EVERY - {
        "works", "ais-both",  # of the model's own data
    }  # fmt: skip


@pytest.mark.parametrize("harm", ["cut short", "flipped", "empty", "no file"])
def test_a_damaged_part_is_made_again(harm: str, tmp_path: Path, computed: Computed) -> None:
    run = make_run(tmp_path)
    computed(run)
    (path,) = tmp_path.glob("probability/terms-1-*.npz")
    whole = cache.read(path)
    assert whole is not None
    content = bytearray(path.read_bytes())
    content[content.index(whole["terms"].tobytes())] ^= 1
    harmed = {"cut short": content[:200], "flipped": content, "empty": b""}
    path.unlink() if harm == "no file" else path.write_bytes(harmed[harm])
    assert cache.read(path) is None
    assert computed(run) == {"terms"}
    again = cache.read(path)
    assert again is not None
    chex.assert_trees_all_equal(
        *({k: v for k, v in part.items() if k != "seconds"} for part in (whole, again))
    )


def test_two_evaluations_at_once(tmp_path: Path, computed: Computed) -> None:
    """What another program writes meanwhile is replaced by the same, and nothing is read of its half."""
    run = make_run(tmp_path)
    computed(run)
    for path in tmp_path.glob("probability/*.npz"):
        path.with_name(f".{path.stem}.1.npz").write_bytes(
            path.read_bytes()[:100]
        )  # the other's draft
        path.unlink()
    assert computed(run) == EVERY


def test_parts_are_bounded(tmp_path: Path) -> None:
    """The oldest go first, drafts of killed programs too."""
    import os

    for age, name in enumerate(["new.npz", "middle.npz", ".draft.1.npz", "old.npy"]):
        path = tmp_path / "of" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    cache.trim(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.rglob("*.np*")) == ["middle.npz", "new.npz"]
    cache.trim(tmp_path / "nowhere")


# Few examples.


@pytest.mark.parametrize(("train", "test"), [(1, 9), (9, 1)])
def test_too_few_examples_are_refused_before_any_work(
    train: int, test: int, tmp_path: Path
) -> None:
    run = make_run(tmp_path, train=train, test=test)
    with pytest.raises(
        ValueError, match=f"expected at least 2 training and 2 held-out .* got {train} and {test}"
    ):
        evaluate.possible(run, evaluate.Options(run=tmp_path))


def test_three_held_out_examples(
    tmp_path: Path,
    computed: Computed,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Samples are not even drawn, and it is said first; the rest has its standard errors."""
    run = make_run(tmp_path, test=3, train=5)
    monkeypatch.setattr(loading, "load_run", lambda *_, **__: run)
    monkeypatch.setattr(evaluate, "sample_quality", None)
    monkeypatch.setattr(pictures, "bound_terms", lambda *_: None)
    few = dataclasses.replace(FEW, ais_examples=0, path_examples=0, baselines=True)
    result = evaluate.main(evaluate.Options(run=tmp_path, num_times=1, probability=few))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("no samples: they are compared with at least 10 training and")
    assert any(
        line.startswith("no baselines: they are fitted to at least 20 training examples")
        for line in lines
    )
    assert len(result["probability"]) == 3
    assert all(np.isfinite(row["nats_se"]) for row in result["probability"])
    assert all(np.isfinite(row["x_0_error_se"]) for row in result["denoising"])
    assert jnp.isfinite(result["denoising"][0]["gaussian_error"])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_baselines_of_few_examples(tmp_path: Path) -> None:
    run = make_run(tmp_path, train=20, test=5)
    estimators = Estimators(run, FEW, seed=0)
    estimates._baselines(estimators, run.dataset.head("test", 5)[0])
    assert [np.isfinite(row.nats) for row in estimators.rows] == [True] * 4


def test_a_set_without_a_test_split_serves_every_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What is held out is said once, and is the same whoever asks; a set that cannot hold out is refused at once."""
    images = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
    sets = {
        "alone": data.ImageDataset("alone", {"train": data.Split(images)}),
        "two": data.ImageDataset(
            "two", {"train": data.Split(images), "validation": data.Split(images[:3])}
        ),
        "one": data.ImageDataset("one", {"train": data.Split(images[:1])}),
        "usual": data.ImageDataset(
            "usual", {"train": data.Split(images), "test": data.Split(images[:3])}
        ),
    }
    monkeypatch.setattr(data, "load", lambda name, **_: sets[name])
    datasets._say.cache_clear()
    said = {
        "alone": "alone: held out: 3 of the 20 images, cut off by a fixed seed: there is no split test\n",
        "two": "two: held out: the split validation\n",
        "usual": "",
    }
    for name, line in said.items():
        one, two = (datasets.of(Config(dataset=name)).splits for _ in range(2))
        np.testing.assert_array_equal(one["test"].images, two["test"].images)
        assert capsys.readouterr().out == line
    with pytest.raises(
        ValueError, match="one: expected at least 2 images, one of them to hold out, got 1"
    ):
        datasets.of(Config(dataset="one"))
