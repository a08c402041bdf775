"""Sets larger than memory: read by index they give what they give in memory, and memory holds no more than batches."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import data as benchmark
import jax
import numpy as np
import pytest
from helpers import build, png, rejects
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxdiff import _machine, data, runs, training
from jaxdiff.cli import evaluate
from jaxdiff.data import pipeline, tfds
from jaxdiff.runs import datasets
from jaxdiff.runs.config import Config, Network
from jaxdiff.runs.probability import Probability

ROOT = Path(__file__).resolve().parents[1]
NAME, NUM = "small_blocks", 60
SHAPE = (12, 12, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set of 60 images with 20 held out, and hidden labels in another split."""
    from tensorflow_datasets import features as kinds

    root = tmp_path_factory.mktemp("sets")
    random = np.random.default_rng(0)
    features = {"image": kinds.Image(shape=SHAPE), "label": kinds.ClassLabel(num_classes=3)}
    examples = [
        {"image": png(random.integers(0, 256, SHAPE, np.uint8)), "label": i % 3 if i < 80 else -1}
        for i in range(85)
    ]
    splits = {"train": examples[:60], "test": examples[60:80], "extra": examples[80:]}
    build(root, NAME, features, splits)
    build(root, "alone", features, {"train": examples[:60]})
    return root


def numbered(num: int, read: list[int] | None = None) -> data.OnDisk:
    """Images of 1x2x1 that hold their own number; the rows that are read are noted."""

    def images(rows: np.ndarray) -> np.ndarray:
        if read is not None:
            read.extend(rows.tolist())
        return np.stack([rows // 256 % 256, rows % 256], 1).astype(np.uint8).reshape(-1, 1, 2, 1)

    return data.OnDisk(images, num, (1, 2, 1), "numbers")


# An array of images.


def test_it_is_the_set_that_memory_holds(folder: Path) -> None:
    disk, memory = (data.load(NAME, folder, in_memory=where) for where in (False, True))
    assert (disk.event_shape, disk.levels, disk.num_classes) == (SHAPE, 256, 3)
    for name, split in memory.splits.items():
        other = disk.split(name)
        assert isinstance(other.images, data.OnDisk)
        assert other.images.shape == split.images.shape
        assert (other.images.dtype, other.images.ndim) == (split.images.dtype, split.images.ndim)
        assert other.images.nbytes == split.images.nbytes
        np.testing.assert_array_equal(other.images[:], split.images)
        if split.labels is None:
            assert other.labels is None
        else:
            np.testing.assert_array_equal(other.labels, split.labels)
    assert disk.split("extra").labels is None
    one, two = (data.batches(each.train, batch_size=16, seed=5) for each in (disk, memory))
    for step in (0, 3, 4, 1000):
        jax.tree.map(np.testing.assert_array_equal, one[step], two[step])


@given(
    num=st.integers(1, 30),
    index=st.one_of(
        st.slices(30),
        st.lists(st.integers(-30, 29), min_size=1).map(np.array),
        st.integers(-30, 29),
    ),
    taken=st.booleans(),
)
def test_an_index_means_what_it_means_for_an_array(num: int, index: object, taken: bool) -> None:
    rows = np.arange(num)[::-2]
    images, array = numbered(num), numbered(num)[:]
    images, array = (images.take(rows), array[rows]) if taken else (images, array)
    try:
        expected = array[index]
    except IndexError:
        with pytest.raises(IndexError, match=r"index: expected rows of \d+ images, got -?\d+\.\."):
            images[index]
    else:
        np.testing.assert_array_equal(images[index], expected)


test_what_is_no_index = rejects({
    "mask": (lambda: numbered(3)[np.ones(3, bool)], TypeError, r"index: expected .*, got bool \[3\]"),
    "float": (lambda: numbered(3)[1.0], TypeError, r"index: expected .*, got float64 \[\]"),
    "matrix": (lambda: numbered(3)[np.ones((1, 1), int)], TypeError, r"got int64 \[1, 1\]"),
    "all": (lambda: np.asarray(numbered(3)), TypeError, r"images: expected rows .* got all 3"),
    "levels": (
        lambda: data.ImageDataset("own", {"train": data.Split(numbered(3))}, levels=17),
        ValueError, "own, train images: expected 256 levels of images on disk, got 17",
    ),
})  # fmt: skip


def test_only_what_is_asked_for_is_read() -> None:
    """The first examples, a batch, and the held-out part of a set of one split: their rows and no other."""
    read: list[int] = []
    labels = np.arange(1000, dtype=np.int32) % 7
    images = data.ImageDataset("own", {"all": data.Split(numbered(1000, read), labels)}, 256, 7)
    parts = data.hold_out(images)
    assert not read
    in_memory = data.ImageDataset("own", {"all": data.Split(numbered(1000)[:], labels)}, 256, 7)
    for part, expected in zip(parts[:2], data.hold_out(in_memory)[:2], strict=True):
        np.testing.assert_array_equal(part.images[:], expected.images)
        np.testing.assert_array_equal(part.labels, expected.labels)
    read.clear()
    splits = {"train": parts.train, "test": parts.held_out}
    dataset = datasets.Dataset("own", (1, 2, 1), 7, 256, lambda: splits)
    dataset.head("test", 5)
    assert len(read) == 5
    data.batches(parts.train, batch_size=8, seed=0)[3]
    assert len(read) == 13


# Where a set lies.


@pytest.mark.parametrize(
    ("asked", "given", "left", "expected"),
    [
        (None, "", None, True),
        (None, "", 4 * 80 * 432 + 4 * 5 * 432, True),  # just a quarter of what is left
        (None, "", 4 * 80 * 432 + 4 * 5 * 432 - 1, False),
        (None, "0", None, False),
        (None, "1", 1, True),
        (False, "1", None, False),
        (True, "0", 1, True),
    ],
)
def test_a_set_lies_where_it_fits(
    asked: bool | None,
    given: str,
    left: int | None,
    expected: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(tfds.IN_MEMORY, given)
    monkeypatch.setattr(_machine, "memory_left", lambda: left)
    images = data.load(NAME, folder, in_memory=asked).train.images
    assert isinstance(images, np.ndarray) == expected


def test_a_large_set_stays_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much memory there is; and the run says so."""
    monkeypatch.delenv(tfds.IN_MEMORY, raising=False)
    monkeypatch.setattr(_machine, "memory_left", lambda: 2**60)
    monkeypatch.setattr(tfds, "MOST_BYTES", 1000)
    assert isinstance(data.load(NAME, folder).train.images, data.OnDisk)
    monkeypatch.setenv(tfds.IN_MEMORY, "yes")
    with pytest.raises(ValueError, match="JAXDIFF_IN_MEMORY: expected 1 or 0, got 'yes'"):
        data.load(NAME, folder)


def test_labels_are_kept_and_images_are_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = folder / NAME / "1.0.0"
    for path in where.glob(f"{tfds.KEPT}*"):
        path.unlink()
    expected = data.load(NAME, folder, in_memory=False).train.labels
    assert [path.name for path in where.glob(f"{tfds.KEPT}*")] == [tfds.LABELS]
    monkeypatch.setattr(tfds, "_read_labels", None)
    np.testing.assert_array_equal(data.load(NAME, folder, in_memory=False).train.labels, expected)


@pytest.mark.parametrize("how", ["flipped", "another size", "no record"])
def test_damage_is_named_where_it_is_read(how: str, tmp_path: Path) -> None:
    from tensorflow_datasets import features as kinds

    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 1), np.uint8)
    features = {"image": kinds.Image(shape=(32, 32, 1))}
    examples = [{"image": png(x[:16] if how == "another size" else x)} for x in noise]
    path = build(tmp_path, "harmed", features, {"train": examples})
    (record,) = path.glob("*train.array_record*")
    if how == "no record":
        record.unlink()
    elif how == "flipped":
        content = bytearray(record.read_bytes())
        content[len(content) // 4] ^= 0xFF
        record.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"expected readable records of split train, got .*; del"
    ) as e:
        data.load("harmed", tmp_path, in_memory=False).train.images[:]
    assert "\n" not in str(e.value)
    assert str(path) in str(e.value)


# The order of an epoch.


@given(num=st.integers(1, 600), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**40))
def test_a_computed_order_visits_each_example_once(num: int, seed: int, epoch: int) -> None:
    order = pipeline._computed(np.arange(num), seed, epoch, num)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(num))
    if num > 2:
        np.testing.assert_array_equal(
            pipeline._computed(np.array([2, 0]), seed, epoch, num), order[[2, 0]]
        )


def test_a_computed_order_is_random() -> None:
    """Places and neighbours are uniform, epochs and seeds differ, and the order is the same for ever."""
    num, epochs = 30, 3000
    orders = np.array([pipeline._computed(np.arange(num), 1, e, num) for e in range(epochs)])
    for counted in (
        np.stack([np.bincount(column, minlength=num) for column in orders.T]),
        np.bincount((np.diff(orders, axis=1) % num).ravel(), minlength=num)[1:],
        np.bincount(orders[:, 0] * num + orders[:, 7], minlength=num**2).reshape(num, num)[
            ~np.eye(num, dtype=bool)
        ],
    ):
        # Monte Carlo: a p-value of 1e-4 under each statistic's own law.
        assert stats.chisquare(counted.ravel()).pvalue > 1e-4
    # As many ascents as descents: a rotation of 0..N - 1 has one descent.
    ascents = (np.diff(orders, axis=1) > 0).mean()
    assert abs(ascents - 0.5) < 5 * np.sqrt(1 / 12 / epochs / num)  # 5 standard errors
    assert (
        len({tuple(pipeline._computed(np.arange(9), s, e, 9)) for s in range(5) for e in range(5)})
        == 25
    )
    # Pinned: a run that is resumed must see the batches that it would have seen.
    pinned = [160871006, 575967002, 236387318, 763320516, 903736760]
    assert pipeline._computed(np.arange(5), 3, 4, 10**9).tolist() == pinned


def test_large_sets_have_a_computed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through batches: every epoch is whole, whatever process a row belongs to."""
    monkeypatch.setattr(pipeline, "LARGEST_TABLE", 16)
    monkeypatch.setattr(pipeline, "_permutation", None)
    batches = data.batches(data.Split(np.arange(17)), batch_size=17, seed=0)
    assert sorted(batches[3].images) == list(range(17))
    parts = [
        data.batches(data.Split(np.arange(17)), batch_size=8, seed=0, rank=r, world=2)
        for r in (0, 1)
    ]
    whole = data.batches(data.Split(np.arange(17)), batch_size=8, seed=0)
    for step in range(5):
        rows = np.concatenate([part[step].images for part in parts])
        np.testing.assert_array_equal(rows, whole[step].images)


@pytest.mark.parametrize(
    ("num", "most"),
    [
        (6_600_000, 160e6),  # 20 GB of 32x32x3; the table and its sorting, 24 bytes an example
        (10**9, 10e6),  # 3 TB; nothing but batches, of 0.2 MB and in the making 0.4 MB
    ],
)
def test_twenty_gigabytes_on_paper(num: int, most: float) -> None:
    """A set that is made as it is read: the memory that batches need does not grow with the set."""

    def read(rows: np.ndarray) -> np.ndarray:
        return np.repeat((rows % 251).astype(np.uint8), 3072).reshape(-1, 32, 32, 3)

    images = data.OnDisk(read, num, (32, 32, 3), "paper")
    assert images.nbytes >= 20e9
    batches = data.batches(data.Split(images), batch_size=64, seed=0)
    pipeline._permutation.cache_clear()
    tracemalloc.start()
    try:
        with data.ahead(batches.__getitem__) as batch:
            last = num // 64 - 1
            for step in (*range(20), last, last + 1):
                found = batch(step)
                assert found.images.shape == (64, 32, 32, 3)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    pipeline._permutation.cache_clear()


# Reading ahead.


@given(
    steps=st.lists(st.integers(0, 12), max_size=20),
    depth=st.integers(1, 5),
    workers=st.integers(1, 3),
)
def test_any_step_in_any_order(steps: list[int], depth: int, workers: int) -> None:
    with data.ahead(lambda step: step**2, depth=depth, workers=workers) as batch:
        assert [batch(step) for step in steps] == [step**2 for step in steps]
    assert [batch(step) for step in steps] == [step**2 for step in steps]  # closed


def test_the_next_steps_are_made_meanwhile_and_no_more() -> None:
    made: list[int] = []
    with data.ahead(lambda step: made.append(step) or step, depth=3) as batch:
        batch(np.int64(10))
        wait(lambda: len(made) == 4)
        time.sleep(0.05)
        assert sorted(made) == [10, 11, 12, 13]
        for step in range(11, 30):
            batch(step)
            assert max(made) <= step + 3
        assert len(made) == len(set(made))  # none twice


def wait(holds: Callable[[], bool]) -> None:
    """Wait for what threads do, for ten seconds at most."""
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_an_error_comes_where_its_step_is_asked_for() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise OSError("record 3")
        return step

    with data.ahead(make) as batch:
        assert [batch(step) for step in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(OSError, match="record 3"):
                batch(3)
        assert batch(4) == 4


def test_threads_end_with_what_they_serve() -> None:
    """When it is closed, when nobody holds it any more, and with steps that nobody asked for."""
    before = threading.active_count()
    with data.ahead(lambda step: time.sleep(0.01) or step, depth=8, workers=3) as batch:
        batch(0)
    assert threading.active_count() == before
    batch = data.ahead(lambda step: step)
    batch(0)
    assert threading.active_count() > before
    del batch
    wait(lambda: threading.active_count() == before)


@pytest.mark.slow
def test_a_program_ends_while_batches_are_made() -> None:
    code = (
        "import time; from jaxdiff import data\n"
        "batch = data.ahead(lambda step: time.sleep(0.2) or step, depth=50)\n"
        "batch(0); raise SystemExit(7)"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert ended.returncode == 7


test_depths_that_mean_nothing = rejects({
    "depth": (lambda: data.ahead(int, depth=0), ValueError, "depth: expected a positive int, got 0"),
    "workers": (lambda: data.ahead(int, workers=1.5), TypeError, "workers: expected a positive int, got 1.5"),
})  # fmt: skip


# Runs.


def config(folder: Path, run: Path, **options: object) -> Config:
    network = Network(channels=8, multipliers=(1,), attention=())
    known = Config(
        run, NAME, folder, steps=4, batch_size=16, log_every=1, eval_every=2, network=network
    )
    return dataclasses.replace(known, **options)


def losses(run: Path) -> list[dict[str, float]]:
    """All that a run logs but its speed."""
    return [
        {name: value for name, value in line.items() if name not in ("time", "examples_per_second")}
        for line in training.read_log(run)
    ]


@pytest.mark.slow
def test_a_run_is_the_same_from_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Bit for bit, also when it goes on."""
    for where in ("0", "1"):
        monkeypatch.setenv(tfds.IN_MEMORY, where)
        for steps in (2, 4):
            assert runs.train(config(folder, tmp_path / where, steps=steps)) == steps
    assert losses(tmp_path / "0") == losses(tmp_path / "1")
    assert f"{NAME}: 0.00 GB of images are read by index" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_evaluation_is_the_same_from_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for where in ("0", "1"):
        monkeypatch.setenv(tfds.IN_MEMORY, where)
        run = config(folder, tmp_path / where).run
        runs.train(config(folder, run))
        options = evaluate.Options(
            run, samples=20, steps=2, num_times=2, examples=16, classifier_steps=3,
            probability=Probability(examples=0, path_examples=0, ode_examples=0, term_examples=4),
        )  # fmt: skip
        found.append({k: v for k, v in evaluate.main(options).items() if isinstance(v, float)})
    assert found[0] == found[1]
    assert len(found[0]) > 10


# Two gigabytes.

# Trains as a command does; then reads all of train once, and tells the peak of its resident memory, in MiB.
CHILD = """
import re, sys
from pathlib import Path
import data as benchmark
from jaxdiff import data, runs
from jaxdiff.runs import datasets
from jaxdiff.runs.config import Config, Network

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

network = Network(channels=8, multipliers=(1, 1, 1), attention=(), patch=2)
config = Config(
    Path(sys.argv[2]), benchmark.NAME, Path(sys.argv[1]), steps=20, batch_size=32, log_every=1, eval_every=20,
    network=network,
)
runs.train(config)
peaks = [peak()]
dataset = datasets.of(config)
batch = dataset.batches(256, 1)
for step in range(dataset.splits["train"].num_examples // 256):
    batch(step)
print(*peaks, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_two_gigabytes_in_bounded_memory(tmp_path: Path) -> None:
    """Training keeps less than a twentieth of the set in memory, a whole epoch less than 64 MiB more; no bit is lost."""
    num = round(2e9 / 64 / 64 / 3)
    benchmark.make_set(tmp_path, num, 64)
    peaks = {}
    for where in ("0", "1"):
        environment = {**os.environ, tfds.IN_MEMORY: where, "JAX_PLATFORMS": "cpu"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(tmp_path / f"run-{where}")]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=1800, check=False
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
        peaks[where] = [int(word) for word in ended.stdout.splitlines()[-1].split()]
    print("peaks of resident memory in MiB, by index and in memory:", peaks)
    trained, read = peaks["0"]
    assert peaks["1"][0] - trained > 0.95 * num * 64 * 64 * 3 / 2**20
    assert read < trained + 64
    assert losses(tmp_path / "run-0") == losses(tmp_path / "run-1")
    assert len(losses(tmp_path / "run-0")) > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = Network(channels=8, multipliers=(1, 1, 1), attention=(), patch=2)
    options = benchmark.Options(tmp_path, 0.007, 64, 32, network, steps=2, rounds=2)
    found = benchmark.main(options)
    assert found["read in memory"] > found["read by index"] > 100
    assert found["ratio"] > 0.2
    assert "by index / in memory: " in capsys.readouterr().out
