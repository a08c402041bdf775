"""Data: files are read as they were written or refused in one line, and a batch is a function of its step alone."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import build, png, slow
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxdiff import cli, data
from jaxdiff.data import digits, idx, mnist, pipeline, tfds, toy

REPOSITORY = Path(__file__).resolve().parents[1]
PREPARE = [sys.executable, str(REPOSITORY / "experiments" / "prepare.py")]


def run(*command: str) -> subprocess.CompletedProcess:
    """Run Python in a process of its own, warnings as errors."""
    environment = {**os.environ, "PYTHONWARNINGS": "error", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=600, check=False
    )


# Scaling.


@pytest.mark.parametrize("levels", [2, 3, 17, 255, 256, 1000])
@pytest.mark.parametrize("library", [np.asarray, jnp.asarray, jax.jit(lambda x: x)])
def test_every_level_survives_the_round_trip(levels: int, library) -> None:
    integers = np.arange(levels, dtype=np.uint8 if levels <= 256 else np.int32)
    x = data.to_unit(library(integers), levels)
    assert x.dtype == np.float32
    assert float(x[0]) == -1
    assert float(x[-1]) == 1
    np.testing.assert_array_equal(data.from_unit(x, levels), integers)
    assert data.from_unit(x, levels).dtype == integers.dtype


def test_scaling_inside_jit() -> None:
    integers = np.arange(256, dtype=np.uint8)
    x = jax.jit(data.to_unit, static_argnums=1)(integers, 256)
    # Rounding: XLA may multiply by a rounded reciprocal where NumPy divides, two roundings of numbers up to 1.
    np.testing.assert_allclose(x, np.linspace(-1, 1, 256), rtol=0, atol=2.0**-23)
    assert np.abs(x).max() <= 1
    np.testing.assert_array_equal(jax.jit(data.from_unit, static_argnums=1)(x, 256), integers)


def test_from_unit_takes_the_nearest_level_and_clips() -> None:
    x = np.array([-7, -1.0001, -0.51, -0.49, 0.2, 0.51, 1.5, np.inf], np.float32)
    np.testing.assert_array_equal(data.from_unit(x, 3), [0, 0, 0, 1, 1, 2, 2, 2])
    half = jnp.asarray(
        data.to_unit(np.arange(17), 17), jnp.bfloat16
    )  # sixteenths are exact in bfloat16
    np.testing.assert_array_equal(data.from_unit(half, 17), np.arange(17))


# The embedded digits.


def test_digits() -> None:
    dataset = data.load("digits")
    assert (dataset.levels, dataset.num_classes, dataset.event_shape) == (17, 10, (8, 8, 1))
    assert (dataset.train.num_examples, dataset.test.num_examples) == (1437, 360)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int32
    assert (dataset.train.images.min(), dataset.train.images.max()) == (0, 16)
    shares = np.bincount(dataset.test.labels) / np.bincount(
        np.r_[dataset.train.labels, dataset.test.labels]
    )
    assert (
        np.abs(shares - 360 / 1797).max() < 1 / 170
    )  # stratified: no class is off by more than one image
    # The split is a constant of the benchmark.
    digest = hashlib.sha256(
        dataset.test.images.tobytes() + dataset.test.labels.tobytes()
    ).hexdigest()
    assert digest == "b73ad886c973a728a3983062b04e72cc2f7effc9643c50702683ffd0c5faf323"


def test_digits_are_scikit_learns() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn has the digits to compare with")
    import build_digits

    dataset, expected = data.load("digits"), build_digits.arrays()
    for name, split in dataset.splits.items():
        np.testing.assert_array_equal(split.images, expected[f"{name}/images"])
        np.testing.assert_array_equal(split.labels, expected[f"{name}/labels"])


def test_digits_need_no_other_library() -> None:
    hidden = "sys.modules.update(dict.fromkeys(['sklearn', 'tensorflow_datasets', 'PIL']))"
    code = f"import sys; {hidden}; from jaxdiff import data; print(data.load('digits').event_shape)"
    result = run(sys.executable, "-c", code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "(8, 8, 1)\n", "")


def test_other_digits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"digits.npz: expected SHA-256 0{64}, got 2f81d617"):
        data.load("digits")


def test_no_dtype_is_promoted_by_accident(dtype: str) -> None:
    with jax.numpy_dtype_promotion("strict"):
        for name in toy.names():
            assert toy.sample(jax.random.key(0), name, 3).dtype == np.float32
        x = data.to_unit(jnp.arange(17, dtype=jnp.uint8), 17)
        np.testing.assert_array_equal(data.from_unit(x.astype(dtype), 17), np.arange(17))


# IDX files.


@given(
    array=hnp.arrays(
        st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"]).map(np.dtype),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    ),
    compressed=st.booleans(),
)
def test_idx_round_trip(array: np.ndarray, compressed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("x.gz" if compressed else "x")
        idx.write(path, array)
        assert (path.read_bytes()[:2] == b"\x1f\x8b") == compressed
        path = path.rename(path.parent / "renamed")  # the bytes tell gzip, not the name
        read = idx.read(path)
    assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert read.dtype.isnative


WHOLE = b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an IDX file, got no bytes"),
        (gzip.compress(b"", mtime=0), "expected an IDX file, got no bytes"),
        (b"\x89PNG", r"expected an IDX file .*, got 89 50 4e 47"),
        (b"\0\0\x0a\x01" + WHOLE[4:], r"expected an IDX file .*, got 00 00 0a 01"),
        (WHOLE[:3], r"expected an IDX file .*, got 00 00 08"),
        (WHOLE[:7], "expected 12 bytes of header for 2 axes, got 7"),
        (WHOLE[:-1], r"expected 18 bytes for shape \(2, 3\), got 17 \(cut short\)"),
        (WHOLE + b"g", r"expected 18 bytes for shape \(2, 3\), got 19 \(trailing bytes\)"),
        (
            b"\0\0\x08\x03" + b"\xff" * 12,
            r"expected \d{29} bytes for shape .*, got 16 \(cut short\)",
        ),
        (gzip.compress(WHOLE, mtime=0)[:-9], "expected a whole gzip file, got a damaged one"),
        (
            gzip.compress(WHOLE, mtime=0)[:12] + b"\xff\xff" + gzip.compress(WHOLE, mtime=0)[14:],
            "expected a whole gzip file",
        ),
    ],
)
def test_idx_errors(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "some-idx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        idx.read(path)
    assert str(path) in str(caught.value)


# Batches.


def numbered(num: int, labels: bool = True) -> data.Split:
    """A split whose examples are their own numbers."""
    return data.Split(np.arange(num), np.arange(num, dtype=np.int32) % 7 if labels else None)


@given(
    num=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
    first=st.integers(0, 2**40),
    draw=st.data(),
)
def test_every_epoch_visits_each_example_once(
    num: int, seed: int, first: int, draw: st.DataObject
) -> None:
    batch_size = draw.draw(st.integers(1, num))
    batches = data.batches(numbered(num), batch_size=batch_size, seed=seed)
    # Steps that cover three whole epochs, from an epoch on that may be far into the run.
    begin, end = first * num, (first + 3) * num
    steps = [batches[step] for step in range(begin // batch_size, -(-end // batch_size))]
    images = np.concatenate([batch.images for batch in steps])[begin % batch_size :][: 3 * num]
    for epoch in images.reshape(3, num):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num))
    for batch in steps:
        np.testing.assert_array_equal(batch.labels, batch.images % 7)
        assert batch.images.shape == (batch_size,)


@given(
    rows=st.integers(1, 5),
    world=st.integers(1, 4),
    step=st.integers(0, 10**6),
    seed=st.integers(0, 9),
)
def test_the_batch_does_not_depend_on_the_number_of_processes(
    rows: int, world: int, step: int, seed: int
) -> None:
    split, batch_size = numbered(20, labels=False), rows * world
    whole = data.batches(split, batch_size=batch_size, seed=seed)[step]
    parts = [
        data.batches(split, batch_size=batch_size, seed=seed, rank=r, world=world)[step]
        for r in range(world)
    ]
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
    np.testing.assert_array_equal(np.concatenate([part.index for part in parts]), whole.index)
    np.testing.assert_array_equal(whole.index, step * batch_size + np.arange(batch_size))
    assert whole.labels is None


def test_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    batches = data.batches(numbered(10), batch_size=4, seed=3)
    forwards = [batches[step].images for step in range(50)]
    pipeline._permutation.cache_clear()
    backwards = [batches[np.int64(step)].images for step in reversed(range(50))]
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_orders_differ_between_epochs_and_seeds_and_stay_between_versions() -> None:
    def epoch(number: int, seed: int) -> list[int]:
        return pipeline.example_indices(
            10 * number + np.arange(10), seed=seed, num_examples=10
        ).tolist()

    # Pinned: a run that is resumed under another NumPy must see the batches it would have seen.
    assert epoch(0, 0) == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert epoch(1, 0) == [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]
    # (seed, epoch) must not enter as a sum: epoch 1 of seed 0 is not epoch 0 of seed 1.
    assert len({tuple(epoch(number, seed)) for number in range(5) for seed in range(5)}) == 25


def test_permutations_are_uniform() -> None:
    num_epochs = 6000
    samples = pipeline.example_indices(np.arange(3 * num_epochs), seed=0, num_examples=3).reshape(
        -1, 3
    )
    counts = np.unique(samples, axis=0, return_counts=True)[1]
    # Monte Carlo: 5 standard errors of a binomial count.
    assert len(counts) == 6
    assert np.abs(counts - num_epochs / 6).max() < 5 * np.sqrt(num_epochs * (1 / 6) * (5 / 6))


def test_a_batch_is_a_pytree() -> None:
    batch = data.batches(numbered(8), batch_size=4, seed=0)[1]
    doubled = jax.tree.map(lambda x: 2 * x, batch)
    np.testing.assert_array_equal(doubled.index, 2 * batch.index)
    assert (
        len(jax.tree.leaves(data.batches(numbered(8, labels=False), batch_size=4, seed=0)[0])) == 2
    )


NAN = np.array([[0, 1], [np.nan, 2], [3, 4]], np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: data.batches(numbered(3), batch_size=4, seed=0),
            "batch_size: expected at most the 3 .*, got 4",
        ),
        (
            lambda: data.batches(numbered(3), batch_size=0, seed=0),
            "batch_size: expected a positive int, got 0",
        ),
        (
            lambda: data.batches(numbered(3), batch_size=3, seed=0, world=2),
            "batch_size: expected a multiple of world",
        ),
        (
            lambda: data.batches(numbered(4), batch_size=4, seed=0, rank=2, world=2),
            "rank: expected .* 0..1, got 2",
        ),
        (lambda: data.batches(numbered(3), batch_size=3, seed=-1), "seed: expected .*, got -1"),
        (
            lambda: data.batches(numbered(3), batch_size=3, seed=0)[-1],
            "step: expected an int >= 0, got -1",
        ),
        (
            lambda: data.batches(data.Split(NAN), batch_size=2, seed=0),
            "images: expected finite .* in 1 of 3 examples",
        ),
        (
            lambda: data.batches(data.Split(NAN, np.arange(2)), batch_size=2, seed=0),
            "labels: expected .* 3, got 2",
        ),
        (lambda: data.to_unit(np.arange(2), 1), "levels: expected at least 2, got 1"),
        (lambda: data.from_unit(NAN, 256), r"x: expected numbers, got [^a]*nan"),
    ],
)
def test_argument_errors(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_dtype_errors() -> None:
    with pytest.raises(TypeError, match="images: expected an integer array, got float32"):
        data.to_unit(NAN, 256)
    with pytest.raises(TypeError, match="x: expected a floating dtype, got int"):
        data.from_unit(np.arange(3), 256)
    with pytest.raises(
        TypeError, match="own, train images: expected an integer array, got float32"
    ):
        data.ImageDataset("own", {"train": data.Split(NAN[:, None, :, None])})


IMAGES = np.zeros((3, 4, 4, 1), np.uint8)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "own: expected at least one split"),
        ({"train": data.Split(IMAGES[:0])}, "own, train images: expected .* at least one image"),
        (
            {"train": data.Split(IMAGES[..., 0])},
            r"own, train images: expected \[N, H, W, C\].*, got shape \(3, 4, 4\)",
        ),
        (
            {"train": data.Split(IMAGES + np.uint8(17))},
            r"own, train images: expected values in 0..16, got 17..17",
        ),
        (
            {"train": data.Split(IMAGES, np.array([0, 1, 2]))},
            r"train labels: expected values in 0..1, got 0..2",
        ),
        (
            {"train": data.Split(IMAGES, np.array([0, -1, 1]))},
            r"train labels: expected values in 0..1, got -1..1",
        ),
        (
            {"train": data.Split(IMAGES, np.array([0, 1]))},
            r"train labels: expected .* shape \(3,\), got \(2,\)",
        ),
        (
            {"train": data.Split(IMAGES), "test": data.Split(IMAGES[:, :2])},
            "own: expected one event shape",
        ),
    ],
)
def test_image_dataset_errors(splits: dict[str, data.Split], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.ImageDataset("own", splits, levels=17, num_classes=2)


def test_splits_by_name() -> None:
    dataset = data.ImageDataset("own", {"train": data.Split(IMAGES)})
    assert dataset.train is dataset.splits["train"]
    with pytest.raises(ValueError, match="own: expected a split of 'train', got 'test'"):
        _ = dataset.test
    with pytest.raises(ValueError, match="own, train labels: expected num_classes"):
        data.ImageDataset("own", {"train": data.Split(IMAGES, np.zeros(3, np.int32))})


# What is held out.


def images(first: int, num: int, labels: bool | int = True) -> data.Split:
    """Images that are their own numbers, of 3 classes."""
    numbers = np.arange(first, first + num)
    given = (
        None
        if labels is False
        else np.full(num, labels, np.int32)
        if labels is not True
        else numbers % 3
    )
    return data.Split(numbers.astype(np.uint8).reshape(-1, 1, 1, 1), given)


def own(**splits: data.Split) -> data.ImageDataset:
    return data.ImageDataset("own", splits, num_classes=3)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ("train test validation", "test"),
        ("validation train", "validation"),
        ("train extra val", "val"),
        ("training dev", "dev"),
        ("valid train val", "valid"),
    ],
)
def test_what_is_held_out_by_name(splits: str, expected: str) -> None:
    dataset = own(**{name: images(10 * i, 4) for i, name in enumerate(splits.split())})
    parts = data.hold_out(dataset)
    assert parts.train is dataset.splits["training" if "training" in splits else "train"]
    assert parts.held_out is dataset.splits[expected]
    assert parts.source == f"the split {expected}"


def test_hidden_labels_come_second() -> None:
    """Of a labelled set; of one without labels the order is as ever, and hidden ones are better than none."""
    hidden = images(10, 4, labels=False)
    assert (
        data.hold_out(own(train=images(0, 4), test=hidden, validation=images(20, 4))).source
        == "the split validation"
    )
    assert data.hold_out(own(train=images(0, 4), test=hidden)).held_out is hidden
    assert (
        data.hold_out(
            own(train=images(0, 4, labels=False), test=hidden, validation=images(20, 4))
        ).source
        == "the split test"
    )


@pytest.mark.parametrize("num", [2, 3, 4, 5, 6, 7, 16, 100, 255])
@pytest.mark.parametrize("labels", [True, False, 1])
@pytest.mark.parametrize("name", ["train", "all"])
def test_train_alone_is_cut(num: int, labels: bool | int, name: str) -> None:
    """A fifth or one image, disjoint, whole rows, always the same; a class keeps its share and one image at least."""
    dataset = own(**{name: images(0, num, labels)})  # of one split, whatever its name
    parts, again = data.hold_out(dataset), data.hold_out(dataset)
    np.testing.assert_array_equal(parts.held_out.images, again.held_out.images)
    train, held_out = (part.images.ravel().tolist() for part in parts[:2])
    assert sorted(train + held_out) == list(range(num))
    assert train == sorted(train)
    size = len(held_out)
    assert size == 1 or (num - 3) / 5 - 1 < size <= num / 5  # of 3 classes one image each is spared
    assert (
        parts.source
        == f"{size} of the {num} images, cut off by a fixed seed: there is no split test"
    )
    if labels is True:
        for part in parts[:2]:
            np.testing.assert_array_equal(part.labels, part.images.ravel() % 3)
        if num > 3:
            assert set(parts.train.labels) == {0, 1, 2}
            counts = np.bincount(parts.held_out.labels, minlength=3)
            assert counts.max() - counts.min() <= 1
    if num == 255:
        assert held_out != sorted(held_out)  # the first few are no few of one class


def test_a_large_set_gives_ten_thousand() -> None:
    num = 70_001
    split = data.Split(np.zeros((num, 1, 1, 1), np.uint8), np.zeros(num, np.int32))
    assert 8_000 < data.hold_out(own(train=split)).held_out.num_examples <= 10_000


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": images(0, 1)},
            "own: expected at least 2 images, one of them to hold out, got 1",
        ),
        ({"a": images(0, 5), "b": images(5, 5)}, "own: expected a split train, got a, b"),
    ],
)
def test_what_cannot_be_held_out(splits: dict[str, data.Split], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.hold_out(own(**splits))


# Toy densities.


@pytest.mark.parametrize("name", [n if n == "swiss_roll" else slow(n) for n in toy.names()])
def test_toy_points_depend_on_their_number_alone(name: str) -> None:
    key = jax.random.key(0)
    points = toy.sample(key, name, 4)
    assert (points.shape, points.dtype) == ((4, 2), np.float32)
    np.testing.assert_array_equal(points[1:], toy.sample(key, name, 4, first=1)[:3])
    np.testing.assert_array_equal(points[3:], toy.sample(key, name, 1, first=3))


# E |x|^2 from the equations, by hand; noise adds twice its variance.
ANGLE = (4.5**3 - 1.5**3) / 3 / 3  # mean square of U[1.5, 4.5]
SQUARES = {
    "swiss_roll": ANGLE / 9 + 2 * 0.05**2,
    "two_moons": 1 + 0.25 + 0.0625 - 0.5 * 2 / np.pi + 2 * 0.05**2,
    "checkerboard": 2 * 4 / 3,
    "eight_gaussians": 2 + 2 * 0.1**2,
    "rings": (0.25 + 1 + 2.25) / 3 + 2 * 0.05**2,
    "spiral": 2.25 / 2 + 2 * 0.05**2,
}


@pytest.mark.parametrize("name", toy.names())
def test_toy_scale(name: str) -> None:
    num = 5000
    squares = np.square(toy.sample(jax.random.key(1), name, num)).sum(axis=1)
    assert abs(squares.mean() - SQUARES[name]) < 5 * squares.std() / np.sqrt(
        num
    )  # Monte Carlo: 5 standard errors
    means = np.asarray(toy.sample(jax.random.key(2), name, num))
    if name != "swiss_roll":  # the others have their mean at the origin by symmetry
        assert (np.abs(means.mean(axis=0)) < 5 * means.std(axis=0) / np.sqrt(num)).all()


def on_spiral(x: np.ndarray, turns: float) -> np.ndarray:
    """Distance to the point of radius r at angle 2 pi turns r."""
    r = np.linalg.norm(x, axis=1)
    return np.linalg.norm(
        x - r[:, None] * np.stack([np.cos(turns * r), np.sin(turns * r)], 1), axis=1
    )


MOON = np.array([0.5, 0.25])
OFF_CURVE = {
    "swiss_roll": lambda x: on_spiral(x, 3 * np.pi),
    "two_moons": lambda x: np.minimum(
        np.abs(np.linalg.norm(x + MOON, axis=1) - 1) + np.maximum(0, -(x[:, 1] + 0.25)),
        np.abs(np.linalg.norm(x - MOON, axis=1) - 1) + np.maximum(0, x[:, 1] - 0.25),
    ),
    "checkerboard": lambda x: np.floor(x).sum(axis=1) % 2 + (np.abs(x).max(axis=1) > 2),
    "eight_gaussians": lambda x: np.abs((x[:, 0] + 1j * x[:, 1]) ** 8 - 16),
    "rings": lambda x: np.abs(np.linalg.norm(x, axis=1)[:, None] - [0.5, 1, 1.5]).min(axis=1),
    "spiral": lambda x: np.minimum(on_spiral(x, 2 * np.pi), on_spiral(-x, 2 * np.pi)),
}


@pytest.mark.parametrize("name", toy.names())
def test_toy_points_lie_on_their_curve_without_noise(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "NOISE", 0.0)
    x = np.asarray(toy.sample(jax.random.key(3), name, 5000), np.float64)
    assert (
        OFF_CURVE[name](x).max() < 2e-4
    )  # rounding: float32 angles up to 14, to the eighth power 16 in one case
    assert x.std(axis=0).min() > 0.4


def test_toy_errors() -> None:
    with pytest.raises(ValueError, match=r"name: expected one of 'swiss_roll'.*, got 'moons'"):
        toy.sample(jax.random.key(0), "moons", 3)
    with pytest.raises(ValueError, match="num: expected a positive int, got 0"):
        toy.sample(jax.random.key(0), "rings", 0)


# Prepared sets.


def rows(split: data.Split) -> list[tuple[bytes, int]]:
    """A split without its order: TFDS shuffles what it writes."""
    labels = [-1] * split.num_examples if split.labels is None else split.labels
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(split.images, labels, strict=True)
    )


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A set of 40 colour images of 32x32 in three splits; hidden labels in the last."""
    import tensorflow_datasets

    root = tmp_path_factory.mktemp("colour")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 32, 32, 3), np.uint8), rng.integers(0, 3, 40)
    labels[30:] = -1
    examples = [{"picture": png(x), "kind": int(y)} for x, y in zip(images, labels, strict=True)]
    features = {
        "picture": tensorflow_datasets.features.Image(shape=(32, 32, 3)),
        "kind": tensorflow_datasets.features.ClassLabel(num_classes=3),
    }
    build(
        root,
        "tiny_colour",
        features,
        {"train": examples[:20], "test": examples[20:30], "extra": examples[30:]},
    )
    return root, images, labels


def test_a_colour_set_loads_by_name(colour: tuple[Path, np.ndarray, np.ndarray]) -> None:
    root, images, labels = colour
    dataset = data.load("tiny_colour", data_dir=root)
    assert (dataset.event_shape, dataset.levels, dataset.num_classes) == ((32, 32, 3), 256, 3)
    assert list(dataset.splits) == ["train", "test", "extra"]
    assert rows(dataset.train) == rows(data.Split(images[:20], labels[:20]))
    assert rows(dataset.test) == rows(data.Split(images[20:30], labels[20:30]))
    assert rows(dataset.split("extra")) == rows(data.Split(images[30:]))
    assert dataset.split("extra").labels is None
    with pytest.raises(
        ValueError, match=r"name: no data set 'tiny_color'; did you mean tiny_colour\?"
    ):
        data.load("tiny_color", data_dir=root)


def test_decoded_arrays_are_kept_until_the_set_changes(
    colour: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour[0]
    folder = root / "tiny_colour" / "1.0.0"
    expected = rows(data.load("tiny_colour", root).train)
    decoded = []
    decode = tfds._decode_split
    monkeypatch.setattr(tfds, "_decode_split", lambda *args: decoded.append(1) or decode(*args))

    def decodes() -> bool:
        decoded.clear()
        assert rows(data.load("tiny_colour", root).train) == expected
        return bool(decoded)

    assert not decodes()
    os.utime(folder / "features.json", (1, 1))
    assert decodes()
    assert not decodes()
    content = bytearray((folder / tfds.CACHE).read_bytes())
    content[len(content) // 2] ^= 1  # one flipped bit
    (folder / tfds.CACHE).write_bytes(content)
    assert decodes()
    (folder / tfds.CACHE).write_bytes(content[:1000])  # cut short
    assert decodes()
    assert not decodes()
    assert [path.name for path in folder.glob(f"{tfds.CACHE}*")] == [tfds.CACHE]


def test_a_read_only_folder_loads(colour: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise PermissionError("read-only")

    (colour[0] / "tiny_colour" / "1.0.0" / tfds.CACHE).unlink(missing_ok=True)
    monkeypatch.setattr(np, "savez", refuse)
    assert data.load("tiny_colour", colour[0]).train.num_examples == 20


def test_features_that_are_no_image_set(tmp_path: Path) -> None:
    import tensorflow_datasets

    image, text = tensorflow_datasets.features.Image, tensorflow_datasets.features.Text
    small = png(np.zeros((4, 4), np.uint8))
    cases = {
        "any_size": (
            {"a": image(shape=(None, None, 1))},
            {"a": small},
            "expected uint8 images of one size, got uint8",
        ),
        "deep": (
            {"a": image(shape=(4, 4, 1), dtype=np.uint16)},
            {"a": small},
            "expected uint8 images.*got uint16",
        ),
        "two": (
            {k: image(shape=(4, 4, 1)) for k in "ab"},
            {"a": small, "b": small},
            "expected one image .* got 2",
        ),
        "words": ({"t": text()}, {"t": "word"}, "expected one image feature, got 0 among t"),
        "wrong": (
            {"a": image(shape=(5, 4, 1))},
            {"a": small},
            "expected readable records of split train",
        ),
    }
    for name, (features, example, message) in cases.items():
        build(tmp_path, name, features, {"train": [example]})
        with pytest.raises(ValueError, match=message):
            data.load(name, tmp_path)


@pytest.mark.parametrize(
    ("shape", "extra", "classes", "hidden"),
    [
        ((4, 5, 1), {"id": "text"}, None, False),
        ((4, 5, 4), {"id": "text", "file": "text"}, 1, False),
        ((4, 5, 3), {}, 3, True),
    ],
)
def test_sets_of_all_kinds(
    shape: tuple[int, ...], extra: dict, classes: int | None, hidden: bool, tmp_path: Path
) -> None:
    """Grey, colour and RGBA; an id beside the image; no label, one class, hidden labels; other splits than two."""
    from tensorflow_datasets import features as kinds

    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (9, *shape), np.uint8)
    features = {"image": kinds.Image(shape=shape), **{name: kinds.Text() for name in extra}}
    examples: list[dict] = [{"image": png(x), **dict.fromkeys(extra, "x")} for x in pictures]
    if classes is not None:
        features["label"] = kinds.ClassLabel(num_classes=classes)
        for i, example in enumerate(examples):
            example["label"] = -1 if hidden and i >= 6 else i % classes
    build(
        tmp_path,
        "kind",
        features,
        {"train": examples[:4], "validation": examples[4:6], "test": examples[6:]},
    )
    dataset = data.load("kind", tmp_path)
    assert (dataset.event_shape, dataset.num_classes) == (shape, classes)
    assert sorted(x.tobytes() for x in dataset.train.images) == sorted(
        x.tobytes() for x in pictures[:4]
    )
    assert (dataset.test.labels is None) == (classes is None or hidden)
    assert data.hold_out(dataset).source == f"the split {'validation' if hidden else 'test'}"


def damage(path: Path, how: str) -> None:
    """Harm one file of a prepared set."""
    record = next(path.glob("*train.array_record*"))
    if how == "no record":
        record.unlink()
    elif how == "flipped byte":
        content = bytearray(record.read_bytes())
        content[len(content) // 4] ^= 0xFF
        record.write_bytes(content)
    elif how == "no description":
        (path / "dataset_info.json").unlink()
    else:
        info = json.loads((path / "dataset_info.json").read_text())
        (path / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no record", "expected readable records of split train, got .*; delete the folder"),
        ("flipped byte", "expected readable records of split train, got .*; delete the folder"),
        ("no description", "expected a readable description, got .*; delete the folder"),
        ("tfrecord", "expected array_record files, got tfrecord, which needs TensorFlow"),
    ],
)
def test_damaged_sets(how: str, message: str, tmp_path: Path) -> None:
    import tensorflow_datasets

    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 1), np.uint8)
    features = {"image": tensorflow_datasets.features.Image(shape=(32, 32, 1))}
    path = build(tmp_path, "harmed", features, {"train": [{"image": png(x)} for x in noise]})
    damage(path, how)
    with pytest.raises(ValueError, match=message) as caught:
        data.load("harmed", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "mnist",
            FileNotFoundError,
            "mnist is not prepared in .*: run `jaxdiff prepare --name mnist",
        ),
        (
            "emnist/letters",
            FileNotFoundError,
            "emnist/letters is not .* --name emnist/letters --source FOLDER",
        ),
        (
            "cifar10",
            FileNotFoundError,
            "cifar10 is not prepared in .*: where TensorFlow is installed, run `tfds build",
        ),
        (
            "mnist:9.9.9",
            FileNotFoundError,
            "mnist:9.9.9 is not prepared in .* --name mnist --source",
        ),
        ("minst", ValueError, "name: no data set 'minst'; did you mean mnist,"),
        ("swissroll", ValueError, r"name: no data set 'swissroll'; did you mean swiss_roll\?"),
        ("swiss", ValueError, r"did you mean swiss_roll\?"),
        ("two-moons", ValueError, r"did you mean two_moons\?"),
        ("moons", ValueError, r"did you mean two_moons"),
        ("gaussians", ValueError, r"did you mean eight_gaussians"),
        ("Digits", ValueError, r"did you mean digits,"),
        ("MNIST", ValueError, r"did you mean mnist,"),
        ("fashion-mnist", ValueError, r"did you mean fashion_mnist\?"),
        ("cifar", ValueError, r"did you mean cifar10, cifar100,"),
        ("CIFAR-10", ValueError, r"did you mean cifar10,"),
        ("svhn", ValueError, r"did you mean svhn_cropped\?"),
        (
            "swiss_roll",
            ValueError,
            "name: expected a set of images, got swiss_roll, a 2-D density: draw it by data.toy.sample",
        ),
        (
            "FashionMNIST",
            ValueError,
            r"name: no data set 'FashionMNIST'; did you mean fashion_mnist",
        ),
        (
            "emnist/letter",
            ValueError,
            "name: no data set 'emnist/letter'; did you mean emnist/letters",
        ),
        ("../digits", ValueError, "name: no data set '../digits'"),
        ("", ValueError, "name: no data set ''; expected digits, or an image set as TFDS names it"),
    ],
)
def test_sets_that_are_not_there(
    name: str, error: type, message: str, tmp_path: Path, caplog
) -> None:
    with pytest.raises(error, match=message) as caught:
        data.load(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert not caplog.records
    assert not list(tmp_path.iterdir())


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAXDIFF_DATA_DIR", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert tfds.data_root() == Path("~/tensorflow_datasets").expanduser()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "theirs"))
    assert tfds.data_root() == tmp_path / "theirs"
    monkeypatch.setenv("JAXDIFF_DATA_DIR", str(tmp_path / "ours"))
    assert tfds.data_root() == tmp_path / "ours"
    assert tfds.data_root(tmp_path) == tmp_path


# MNIST and its relatives.


def write_idx(
    folder: Path, *, prefix: str = "", test: str = "t10k", dot: str = "-", gz: str = ""
) -> dict:
    """Four small IDX files, as one of the relatives of MNIST names them."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    splits = {}
    for split, part, num in (("train", "train", 20), ("test", test, 10)):
        images, labels = (
            rng.integers(0, 256, (num, 28, 28), np.uint8),
            rng.integers(0, 10, num).astype(np.uint8),
        )
        idx.write(folder / f"{prefix}{part}-images{dot}idx3-ubyte{gz}", images)
        idx.write(folder / f"{prefix}{part}-labels{dot}idx1-ubyte{gz}", labels)
        splits[split] = data.Split(images[..., None], labels)
    return splits


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("kmnist", {}),
        ("fashion_mnist", {"dot": ".", "gz": ".gz"}),
        ("emnist/digits", {"prefix": "emnist-digits-", "test": "test", "gz": ".gz"}),
    ],
)
def test_relatives_of_mnist_are_prepared(
    name: str, names: dict[str, str], tmp_path: Path, capsys
) -> None:
    import tensorflow_datasets

    expected = write_idx(tmp_path / "idx", **names)
    prepared = data.prepare(name, tmp_path / "idx", tmp_path / "sets")
    assert prepared.new
    assert prepared.num_examples == {"train": 20, "test": 10}
    assert not data.prepare(name, tmp_path / "nowhere", tmp_path / "sets").new
    assert not capsys.readouterr().out
    for _ in range(2):  # decoded, then from the cache
        dataset = data.load(name, tmp_path / "sets")
        assert {split: rows(dataset.split(split)) for split in expected} == {
            k: rows(v) for k, v in expected.items()
        }
    with tfds.quiet():
        stock = tensorflow_datasets.data_source(name, data_dir=tmp_path / "sets", download=False)
        assert len(stock["train"]) == 20
        np.testing.assert_array_equal(stock["test"][0]["image"], dataset.test.images[0])
    assert tensorflow_datasets.builder_cls("mnist").__module__.startswith(
        "tensorflow_datasets"
    )  # still the stock one


def test_an_interrupted_preparation_leaves_no_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(tmp_path / "idx")
    encode, left = mnist._png, iter(range(12))

    def interrupted(image: np.ndarray) -> bytes:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return encode(image)

    monkeypatch.setattr(mnist, "_png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.prepare("kmnist", tmp_path / "idx", tmp_path / "sets")
    with pytest.raises(FileNotFoundError, match="kmnist is not prepared"):
        data.load("kmnist", tmp_path / "sets")
    monkeypatch.setattr(mnist, "_png", encode)
    assert data.prepare("kmnist", tmp_path / "idx", tmp_path / "sets").new
    assert data.load("kmnist", tmp_path / "sets").train.num_examples == 20


def test_a_killed_preparation_can_be_run_again(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    source, sets = str(tmp_path / "idx"), str(tmp_path / "sets")
    kill = "import os; from jaxdiff.data import mnist; mnist._png = lambda image: os.kill(os.getpid(), 9); "
    killed = run(sys.executable, "-c", kill + f"mnist.prepare('kmnist', {source!r}, {sets!r})")
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "sets" / "kmnist").iterdir())  # what it had begun
    assert data.prepare("kmnist", source, sets).new
    assert data.load("kmnist", sets).test.num_examples == 10


def test_prepare_script(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """As a process of its own, then what a second and a third one would do in this one."""
    write_idx(tmp_path / "idx")
    options = {"name": "kmnist", "source": tmp_path / "idx", "data-dir": tmp_path / "sets"}

    def arguments(**others: Path) -> list[str]:
        return [f"--{name}={value}" for name, value in (options | others).items()]

    first = run(*PREPARE, *arguments())
    where = f"in {tmp_path}/sets/kmnist/3.0.1 (20 train, 10 test)\n"
    assert (first.returncode, first.stdout) == (0, f"kmnist: prepared {where}")
    assert "arning" not in first.stderr
    cli.run("prepare", arguments(), prog="prepare.py")
    assert capfd.readouterr() == (f"kmnist: already prepared {where}", "")
    (tmp_path / "idx" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(SystemExit) as end:
        cli.run("prepare", arguments(**{"data-dir": tmp_path / "others"}), prog="prepare.py")
    assert end.value.code == 1
    error = capfd.readouterr().err
    assert "plain or .gz; missing: t10k-labels-idx1-ubyte (JAXDIFF" in error
    assert error.startswith("error: source: expected IDX files in ")
    assert error.count("\n") == 1


def overwrite(name: str, array: np.ndarray):
    """Replace one of the small IDX files."""
    return lambda folder: idx.write(folder / name, array)


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        (
            "cifar10",
            lambda folder: None,
            "name: expected one of mnist, fashion_mnist, .*, got 'cifar10'",
        ),
        (
            "mnist",
            lambda folder: None,
            "train-images-idx3-ubyte: expected MNIST's train-images, SHA-256 ba8910.*, got",
        ),
        (
            "kmnist",
            overwrite("train-images-idx3-ubyte", np.zeros((20, 8, 8), np.uint8)),
            r"train-images-idx3-ubyte: expected uint8 images of shape \(N, 28, 28\), got uint8 \(20, 8, 8\)",
        ),
        (
            "kmnist",
            overwrite("t10k-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8)),
            r"t10k-images-idx3-ubyte: expected .*, got uint8 \(0, 28, 28\)",
        ),
        (
            "kmnist",
            overwrite("train-labels-idx1-ubyte", np.zeros(19, np.uint8)),
            r"train-labels-idx1-ubyte: expected uint8 labels of shape \(20,\), got uint8 \(19,\)",
        ),
        (
            "kmnist",
            overwrite("train-labels-idx1-ubyte", np.arange(20, dtype=np.uint8)),
            "train-labels-idx1-ubyte: expected labels in 0..9, got 19",
        ),
        (
            "kmnist",
            lambda folder: (folder / "t10k-images-idx3-ubyte").write_bytes(b""),
            "t10k-images-idx3-ubyte: expected an IDX file, got no bytes",
        ),
        (
            "kmnist",
            lambda folder: (folder.parent / "sets" / "kmnist" / "3.0.1").mkdir(parents=True),
            "kmnist/3.0.1: expected a whole prepared set, got a part; delete the folder",
        ),
    ],
)
def test_sources_that_are_refused(name: str, harm, message: str, tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    harm(tmp_path / "idx")
    with pytest.raises(ValueError, match=message) as caught:
        data.prepare(name, tmp_path / "idx", tmp_path / "sets")
    assert "\n" not in str(caught.value)


def test_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"source: expected a folder of IDX files, got .*nowhere"
    ):
        data.prepare("mnist", tmp_path / "nowhere", tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match=r"missing: train-images.*, train-labels.*, t10k-images.*, t10k-labels",
    ):
        data.prepare("mnist", tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_mnist_through_tfds_is_the_original_bit_by_bit(mnist_source: Path, tmp_path: Path) -> None:
    data.prepare("mnist", mnist_source, tmp_path)
    dataset = data.load("mnist", tmp_path)
    assert (dataset.event_shape, dataset.levels, dataset.num_classes) == ((28, 28, 1), 256, 10)
    for part, split in (("train", dataset.train), ("t10k", dataset.test)):
        images = idx.read(mnist_source / f"{part}-images-idx3-ubyte.gz")[..., None]
        labels = idx.read(mnist_source / f"{part}-labels-idx1-ubyte.gz")
        assert rows(split) == rows(data.Split(images, labels))
    with pytest.raises(ValueError, match="expected kmnist, got a file of MNIST"):
        data.prepare("kmnist", mnist_source, tmp_path)
