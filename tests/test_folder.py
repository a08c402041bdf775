"""Pictures of one's own: every format by its rule, what is refused by name, a split that stays, and a run on them."""

import dataclasses
import hashlib
import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxdiff import data, training
from jaxdiff.cli import evaluate, sample, train
from jaxdiff.data import folder, parts, pictures, tfds
from jaxdiff.runs import checks, datasets, folders, loading, loop, sizes
from jaxdiff.runs.config import PRESETS, Config, Network
from jaxdiff.runs.probability import Probability

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)
GREY = RGB[..., 0]
SMOOTH = np.stack(np.meshgrid(np.arange(8), np.arange(8), [0, 1, 2]), 3)[..., 0, :] * 30 + 20
HALF = np.where(np.arange(8) < 4, 0, 255).astype(np.uint8) * np.ones((8, 1), np.uint8)
WHITE = np.full((8, 8, 3), 255, np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes to the user's cache."""
    monkeypatch.setenv("JAXDIFF_DATA_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(root: Path, num: int = 12, *, kind: str = "rgb", first: int = 0, side: int = 8) -> Path:
    """A folder of pictures that differ, by their numbers."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + num):
        random = np.random.default_rng(number)
        shape = (side, side, 3) if kind == "rgb" else (side, side)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(
            root / f"{number:03}.png"
        )
    return root


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, 2)


# --- one picture -----------------------------------------------------------------------------------------------------

PALETTE = Image.fromarray(RGB).quantize(16)
CLEAR = Image.fromarray(np.concatenate([RGB, HALF[..., None]], 2))
SIXTEEN = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)
ON_WHITE = np.where(HALF[..., None] > 0, RGB, 255)

# (picture, ending, options of saving, expected pixels, the largest difference)
FORMATS: dict[str, tuple[Image.Image, str, dict, np.ndarray, int]] = {
    "PNG": (Image.fromarray(RGB), "png", {}, RGB, 0),
    "BMP": (Image.fromarray(RGB), "bmp", {}, RGB, 0),
    "WebP": (Image.fromarray(RGB), "webp", {"lossless": True}, RGB, 0),
    "JPEG": (Image.fromarray(SMOOTH.astype(np.uint8)), "JPG", {"quality": 95, "subsampling": 0}, SMOOTH, 12),
    "JPEG for print": (
        Image.fromarray(SMOOTH.astype(np.uint8)).convert("CMYK"), "jpeg", {"quality": 95, "subsampling": 0}, SMOOTH, 12
    ),
    "grey": (Image.fromarray(GREY), "png", {}, three(GREY), 0),
    "grey JPEG": (Image.fromarray(three(HALF)).convert("L"), "jpg", {"quality": 95}, three(HALF), 12),
    "black and white": (Image.fromarray(HALF).convert("1"), "png", {}, three(HALF), 0),
    "palette": (PALETTE, "png", {}, np.asarray(PALETTE.convert("RGB")), 0),
    "transparent": (CLEAR, "png", {}, ON_WHITE, 0),
    "transparent WebP": (CLEAR, "webp", {"lossless": True}, ON_WHITE, 0),
    "transparent grey": (
        Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(HALF)]), "png", {},
        np.where(HALF[..., None] > 0, three(GREY), 255), 0,
    ),
    "transparent colour of a palette": (
        Image.fromarray(HALF).convert("P"), "png", {"transparency": 0}, WHITE, 0,
    ),
    "16 bits": (Image.fromarray(SIXTEEN), "png", {}, three(np.round(SIXTEEN / 257)), 0),
    "another ending": (Image.fromarray(RGB), "jpg", {"format": "png"}, RGB, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_of_any_mode_becomes_eight_bit_colours(name: str, tmp_path: Path) -> None:
    image, ending, options, expected, most = FORMATS[name]
    path = tmp_path / f"a picture.{ending}"
    image.save(path, **options)
    found = pictures.read(path, 8).pixels
    assert (found.dtype, found.shape) == (np.uint8, (8, 8, 3))
    assert abs(found.astype(int) - expected.astype(int)).max() <= most  # 0, or a lossy format


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright(orientation: int, tmp_path: Path) -> None:
    """As Pillow's own function turns it, whether it is wide or high."""
    image, path = Image.fromarray(RGB), tmp_path / "turned.png"
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    image.save(path, exif=exif)
    with Image.open(path) as saved:
        expected = np.asarray(ImageOps.exif_transpose(saved))
    np.testing.assert_array_equal(pictures.read(path, 8).pixels, expected)


def test_a_picture_is_cropped_in_the_middle_and_resized_without_aliasing(tmp_path: Path) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200
    path = tmp_path / "wide.png"
    for turned in (wide, wide.swapaxes(0, 1)):
        Image.fromarray(turned).save(path)
        assert (pictures.read(path, 8).pixels == 200).all()
        assert 60 < pictures.read(path, 8, "stretch").pixels.mean() < 75  # a third of it
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(path)
    found = pictures.read(path, 8).pixels
    assert 120 < found.min() <= found.max() < 135  # not black and white


# --- files that are no pictures ----------------------------------------------------------------------------------


def saved(path: Path, **options: object) -> bytes:
    Image.fromarray(np.tile(RGB, (4, 4, 1))).save(path, **options)
    return path.read_bytes()


def cut(path: Path) -> None:
    content = saved(path)
    path.write_bytes(content[: len(content) // 2])


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 10^10 pixels."""
    size = struct.pack(">II5B", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    )


def outside(path: Path) -> None:
    fill(path.parents[1] / "elsewhere", 1)
    path.symlink_to(path.parents[1] / "elsewhere" / "000.png")


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "text": ("a.png", lambda path: path.write_text("no picture"), "expected a PNG, JPEG, WebP or BMP file, got none"),
    "nothing": ("a.jpg", lambda path: path.write_bytes(b""), "expected 1 byte to 1 GiB, got 0 bytes"),
    "GIF": ("a.png", lambda path: saved(path, format="gif"), "expected a PNG, JPEG, WebP or BMP file, got none"),
    "first bytes": ("a.png", lambda path: path.write_bytes(saved(path)[:12]), "expected a"),
    "cut PNG": ("a.png", cut, "expected a whole picture, got a damaged one"),
    "cut JPEG": ("a.jpg", cut, "expected a whole picture, got a damaged one"),
    "cut WebP": ("a.webp", cut, "expected a"),
    "cut BMP": ("a.bmp", cut, "expected a whole picture, got a damaged one"),
    "small": ("a.png", lambda path: Image.new("RGB", (20, 7)).save(path), "expected at least 8 x 8 pixels, got 20 x 7"),
    "bomb": ("a.png", bomb, "expected at most 134217728 pixels, got"),
    "link out": ("a.png", outside, "a link that leads out of the folder"),
    "link to nothing": ("a.png", lambda path: path.symlink_to(path.parent / "b.png"), "cannot be read (No such file"),
    "link to itself": ("a.png", lambda path: path.symlink_to(path), "cannot be read ("),
    "link to a folder": ("a", lambda path: path.symlink_to(path.parent), "a link to a folder, which is not followed"),
    "pipe": ("a.png", os.mkfifo, "expected a file, got a folder, a pipe or a device"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_skipped_with_its_reason(name: str, tmp_path: Path) -> None:
    file, make, reason = BAD[name]
    root = fill(tmp_path / "P", 3)
    make(root / file)
    for _ in range(2):  # the cache knows it too
        found = folder.load(root, 8)
        assert found.skipped.keys() == {file}
        assert found.skipped[file].startswith(reason)
        assert sum(split.num_examples for split in found.dataset.splits.values()) == 3


def test_names_of_any_kind(tmp_path: Path) -> None:
    root = fill(tmp_path / "my photos", 2)
    names = ["two words.png", "ночь.png", "写真.PNG", "new\nline.png", os.fsdecode(b"\xff.png")]
    for number, name in enumerate(names):
        Image.fromarray(RGB ^ np.uint8(number + 1)).save(root / name, format="png")
    (root / ".hidden.png").write_text("no picture")
    (root / "notes.txt").write_text("no picture")
    for _ in range(2):
        found = folder.load(root, 8)
        assert (found.skipped, found.others) == ({}, 2)
        assert sum(split.num_examples for split in found.dataset.splits.values()) == 7
    shown = [folder.shown(name) for name in names]
    assert shown == ["two words.png", "ночь.png", "写真.PNG", "new\\nline.png", "\\udcff.png"]


REFUSED: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "empty": (lambda root: root.mkdir(), {}, r"P: expected at least 2 pictures \(PNG, .* got 0 that can be read$"),
    "other files": (lambda root: (root.mkdir(), (root / "a.txt").touch()), {}, "got 0 that can be read, 1 other files"),
    "one picture": (lambda root: fill(root, 1), {}, "one of them to hold out, got 1 that can be read"),
    "copies": (
        lambda root: [fill(root / name, 1) for name in "ab"], {},
        "P: expected at least 2 pictures that differ, .*got 2 of one kind",
    ),
    "small ones": (
        lambda root: fill(root, 3), {"size": 16},
        r"3 skipped \(the first is 000.png: expected at least 16 x 16 pixels, got 8 x 8\)",
    ),
    "no folder": (lambda root: None, {}, "folder: expected a folder of pictures, got .*P"),
    "parts": (
        lambda root: [fill(root / name / "cat", 2) for name in ("train", "test")], {},
        "P: expected a folder a class, got the parts test, train: give the folder of one part, such as .*P/train",
    ),
    "no size": (lambda root: fill(root), {"size": 0}, "size: expected"),
    "no such colour": (lambda root: fill(root), {"colour": "blue"}, "colour: expected"),
    "no such fit": (lambda root: fill(root), {"fit": "pad"}, "fit: expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_is_refused_is_named(name: str, tmp_path: Path) -> None:
    make, options, message = REFUSED[name]
    make(tmp_path / "P")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        folder.load(tmp_path / "P", **{"size": 8} | options)
    assert "\n" not in str(error.value)


# --- a folder --------------------------------------------------------------------------------------------------------


def test_classes_are_the_first_folders(tmp_path: Path) -> None:
    root = tmp_path / "P"
    for number, name in enumerate(("dog/large", "cat", "dog")):
        fill(root / name, 3, first=10 * number)
    found = folder.load(root, 8)
    splits = found.dataset.splits.values()
    assert (found.classes, found.dataset.num_classes) == (("cat", "dog"), 2)
    assert sorted(np.concatenate([split.labels for split in splits])) == [0] * 3 + [1] * 6
    fill(root, 1, first=50)  # a picture beside the folders
    assert folder.load(root, 8).dataset.train.labels is None
    assert folder.load(root / "dog" / "large", 8).classes == ()
    assert folder.load(root / "cat", 8).classes == ()


def sides(found: folder.Folder) -> dict[bytes, str]:
    return {
        image.tobytes(): name
        for name, split in found.dataset.splits.items()
        for image in split.images[:]
    }


def test_a_picture_keeps_its_side_when_others_are_added(tmp_path: Path) -> None:
    root = fill(tmp_path / "P", 40)
    before = sides(folder.load(root, 8))
    fill(root, 200, first=40)
    (root / "copies").mkdir()
    for number in range(40):
        (root / "copies" / f"{number:03}.png").write_bytes((root / f"{number:03}.png").read_bytes())
    after = folder.load(root, 8)
    assert before.items() <= sides(after).items()
    assert sides(after).keys() == {
        image.tobytes() for split in after.dataset.splits.values() for image in split.images
    }
    num = after.dataset.test.num_examples
    assert 8 <= num <= 48  # a tenth of 280, copies in pairs, within 4 standard deviations
    whole = data.by_content([f"{n:08x}" for n in range(0, 16**8, 16**5)])
    assert whole.mean() == pytest.approx(0.1, abs=1e-3)  # of a grid of 4096


@pytest.mark.parametrize("digits", ["0", "f"])
def test_each_side_has_a_picture(digits: str) -> None:
    held = data.by_content([digits * 8 + end for end in "132"])
    assert held.tolist() == ([True, False, True] if digits == "0" else [True, False, False])
    with pytest.raises(ValueError, match=r"contents: expected at least 2 .* got 3 of 1 kind"):
        data.by_content(["a"] * 3)


def test_the_fingerprint_is_that_of_the_data(tmp_path: Path) -> None:
    root = fill(tmp_path / "P", 6)
    first = folder.load(root, 8)
    os.utime(root / "001.png", (0, 0))
    (root / "note.txt").touch()
    root = root.rename(tmp_path / "moved")
    assert folder.load(root, 8).fingerprint == first.fingerprint
    changes = [
        lambda: (root / "001.png").rename(root / "0015.png"),
        lambda: Image.fromarray(RGB).save(root / "002.png"),
        lambda: fill(root, 1, first=8),
        lambda: (root / "003.png").unlink(),
    ]
    seen = {first.fingerprint}
    for change in changes:
        change()
        seen.add(folder.load(root, 8).fingerprint)
    options = [{"size": 4}, {"fit": "stretch"}, {"colour": "grey"}]
    seen |= {folder.load(root, **{"size": 8} | each).fingerprint for each in options}
    assert len(seen) == 1 + len(changes) + len(options)
    assert re.fullmatch("[0-9a-f]{16}", first.fingerprint)


def test_colours_are_those_of_the_pictures(tmp_path: Path) -> None:
    root = fill(tmp_path / "P", 4, kind="grey")
    grey = folder.load(root, 8)
    assert grey.dataset.event_shape == (8, 8, 1)
    colour = folder.load(root, 8, colour="rgb").dataset
    for name, split in grey.dataset.splits.items():  # a grey keeps its level
        np.testing.assert_array_equal(colour.splits[name].images[..., :1], split.images)
    fill(root, 1, first=4)
    assert folder.load(root, 8).dataset.event_shape == (8, 8, 3)
    assert folder.load(root, 8, colour="grey").dataset.event_shape == (8, 8, 1)
    expected = np.asarray(Image.fromarray(RGB).convert("L"))
    np.testing.assert_array_equal(folder.luminance(RGB)[..., 0], expected)


def test_in_memory_and_by_index_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART", 5)
    root = fill(tmp_path / "P", 13)
    here, there = (folder.load(root, 8, in_memory=asked).dataset for asked in (True, False))
    assert isinstance(there.train.images, data.OnDisk)
    for name, split in here.splits.items():
        np.testing.assert_array_equal(there.splits[name].images[:], split.images)
    assert tfds.fits(None, 10**6)


# --- the cache -------------------------------------------------------------------------------------------------------


class Reader:
    """Counts the files that are read, and stops at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.last = 10**6
        read = pictures.read

        def counted(path: Path, *options: object) -> pictures.Picture:
            if len(self.names) == self.last:
                raise KeyboardInterrupt
            self.names.append(path.name)
            return read(path, *options)

        patch.setattr(pictures, "read", counted)
        patch.setattr(parts, "PART", 4)
        patch.setattr(parts._machine, "cores", lambda: 1)

    def __call__(self, root: Path, last: int = 10**6) -> tuple[int, folder.Folder | None]:
        self.names.clear()
        self.last = last
        try:
            found = folder.load(root, 8)
        except KeyboardInterrupt:
            found = None
        return len(self.names), found


def test_preparing_goes_on_where_it_was_stopped(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, reader = fill(tmp_path / "P", 14), Reader(monkeypatch)
    assert reader(root, last=10) == (10, None)
    assert len(list(cache.rglob("*.np[yz]"))) == 4  # two parts of two files, and no draft
    number, resumed = reader(root)
    assert number == 14 - 8
    (tmp_path / "cache").rename(tmp_path / "aside")
    number, whole = reader(root)
    assert number == 14
    assert resumed.fingerprint == whole.fingerprint
    for name, split in whole.dataset.splits.items():
        np.testing.assert_array_equal(resumed.dataset.splits[name].images, split.images)
    fill(root, 1, first=20)
    Image.fromarray(RGB).save(root / "003.png")
    os.utime(root / "003.png", ns=(5, 5))
    assert reader(root)[0] == 2
    assert sorted(reader.names) == ["003.png", "020.png"]
    assert reader(root)[0] == 0


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize("harm", ["cut", "gone", "noise"])
def test_a_damaged_part_is_made_again(
    ending: str, harm: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, reader = fill(tmp_path / "P", 8), Reader(monkeypatch)
    _, whole = reader(root)
    path = next(cache.rglob(f"*.{ending}"))
    content = {"cut": path.read_bytes()[:-9], "noise": b"\x93NUMPY" + bytes(300), "gone": b""}[harm]
    path.unlink()
    if content:
        path.write_bytes(content)
    number, again = reader(root)
    assert number == 4
    assert again.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(again.dataset.train.images, whole.dataset.train.images)


def test_what_is_of_no_use_is_deleted(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of files that are gone, and drafts of programs that were killed; not those of the last hour."""
    root, reader = fill(tmp_path / "P", 8), Reader(monkeypatch)
    reader(root)
    place = next(cache.rglob("*.npz")).parent
    for name in (".old-1.npy", ".old-2.npz", ".new-1.npy"):
        (place / name).touch()
    for number in range(4):
        (root / f"{number:03}.png").unlink()
    assert reader(root)[0] == 0
    assert len(list(place.iterdir())) == 4 + 3
    for path in place.iterdir():
        if path.name != ".new-1.npy":
            os.utime(path, (0, 0))
    assert reader(root)[0] == 0
    assert len(list(place.glob("[!.]*"))) == 2
    assert [path.name for path in place.glob(".*")] == [".new-1.npy"]


def test_what_the_system_refused_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, read = fill(tmp_path / "P", 4), pictures.read

    def refused(path: Path, *options: object) -> pictures.Picture:
        if path.name == "002.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *options)

    monkeypatch.setattr(pictures, "read", refused)
    assert folder.load(root, 8).skipped == {"002.png": "cannot be read (Permission denied)"}
    monkeypatch.setattr(pictures, "read", read)
    assert folder.load(root, 8).skipped == {}


# --- mirrored images -------------------------------------------------------------------------------------------------


def test_flips_are_a_function_of_the_seed_and_the_step() -> None:
    """Each row is the example or its mirror image, half of them; the same for any number of processes."""
    images = np.arange(64 * 6, dtype=np.uint8).reshape(64, 1, 3, 2)
    split = data.Split(images)
    plain, flipped = (data.batches(split, batch_size=64, seed=3, flip=flip) for flip in (0, 1))
    coins = []
    for step in (0, 1, 50):
        one, two = plain[step].images, flipped[step].images
        mirrored = (two != one).any((1, 2, 3))
        np.testing.assert_array_equal(two[mirrored], one[mirrored][:, :, ::-1])
        np.testing.assert_array_equal(flipped[step].images, two)
        halves = [
            data.batches(split, batch_size=64, seed=3, flip=True, rank=rank, world=2)[step].images
            for rank in (0, 1)
        ]
        np.testing.assert_array_equal(np.concatenate(halves), two)
        coins.append(mirrored)
    assert 76 < np.sum(coins) < 116  # of 192 fair coins, within 3 standard deviations
    assert (coins[0] != coins[1]).any()
    with pytest.raises(ValueError, match=r"flip: expected images, \[N, H, W, C\], got \[4, 2\]"):
        data.batches(data.Split(np.zeros((4, 2), "f")), batch_size=2, seed=0, flip=True)


# --- runs ------------------------------------------------------------------------------------------------------------

GIVEN = Network(channels=None, multipliers=None, num_blocks=None, attention=None, patch=None)
SIZES: dict[tuple[int, ...], tuple] = {
    (8, 8, 1): (32, (1, 2), 1, (4,), 1),
    (8, 8, 3): (48, (1, 2), 1, (4,), 1),
    (12, 9, 1): (32, (1, 2), 2, (6,), 1),
    (32, 32, 3): (96, (1, 2), 2, (8,), 2),
    (64, 64, 1): (64, (1, 2, 2), 2, (8,), 2),
    (128, 128, 3): (96, (1, 2, 2, 2), 2, (4,), 4),
    (300, 300, 3): (96, (1, 2, 2, 2), 2, (10,), 4),
    (3,): (128, 4),
    (100,): (256, 4),
    (5000,): (512, 4),
}


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_a_network_has_a_size_that_suits_the_data(
    shape: tuple[int, ...], capsys: pytest.CaptureFixture
) -> None:
    config = sizes.fill(PRESETS["images"][1], shape)
    network, expected = config.network, SIZES[shape]
    names = ("channels", "num_blocks") if len(shape) == 1 else ("channels", "multipliers", "num_blocks", "attention", "patch")  # fmt: skip
    assert tuple(getattr(network, name) for name in names) == expected
    checks.check_network(config, datasets.Dataset("own", shape, None, None, dict))
    assert capsys.readouterr().err == ""  # attention has its places
    assert str(network.channels) in sizes.describe(config, shape)
    given = dataclasses.replace(GIVEN, channels=8, num_blocks=3)
    kept = sizes.fill(Config(network=given), shape).network
    assert (kept.channels, kept.num_blocks) == (8, 3)
    assert sizes.fill(Config(), shape) == Config()


TINY = dataclasses.replace(
    PRESETS["images"][1],
    steps=2, batch_size=8, log_every=1, eval_every=2, size=8,
    network=dataclasses.replace(GIVEN, channels=8, multipliers=(1,), num_blocks=1),
)  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run on twelve pictures of two classes, and a file that is none."""
    monkeypatch.setattr(train, "draw_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    datasets._say.cache_clear()
    for name, first in (("cat", 0), ("dog", 20)):
        fill(Path("my photos") / name, 6, first=first)
    Path("my photos/dog/none.jpg").write_text("no picture")
    return dataclasses.replace(TINY, run=tmp_path / "run", folder=Path("my photos"), flip=True)


def test_a_run_keeps_what_its_pictures_were(
    photos: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It goes on with the same ones alone; what reads it says that they have changed, and works without them."""
    config, dataset, model = loop.prepare(photos)
    skipped, line = capsys.readouterr().out.splitlines()
    assert skipped.startswith("skipped my photos/dog/none.jpg: expected a PNG")
    assert re.match(r"my photos: 1\d training and [12] held-out pictures of 8x8, colour, 2 classes; 1 skipped", line)  # fmt: skip
    assert (config.folder, model.num_classes) == (tmp_path / "my photos", 2)
    assert dataset.source.classes == ("cat", "dog")
    plain = dataclasses.replace(dataset).batches(8, 0)(0)[0]
    assert (dataset.batches(8, 0, flip=True)(0)[0] != plain).any()
    folders.save_facts(config.run, dataset.facts)
    facts = folders.load_facts(config.run)
    assert facts == dataset.facts
    folders.check_data(config.run, dataset.facts)
    monkeypatch.chdir("/")
    assert datasets.later(config, facts).head("test", 1)[0].shape == (1, 8, 8, 3)
    assert capsys.readouterr().out == ""
    fill(config.folder / "cat", 1, first=7)
    with pytest.raises(ValueError, match=r"begun with data of the fingerprint \w+, and it is \w+"):
        folders.check_data(config.run, datasets.of(config).facts)
    capsys.readouterr()
    assert datasets.later(config, facts).is_here
    assert "has changed since the run began" in capsys.readouterr().out
    fill(config.folder, 1, first=8)  # no classes any more
    with pytest.raises(ValueError, match=r"and 2 classes, as when the run began, got .* None"):
        datasets.later(config, facts).head("test", 1)
    config.folder.rename(tmp_path / "gone")
    assert not datasets.later(config, facts).is_here


@pytest.mark.slow
def test_a_run_on_a_folder(photos: Config, capsys: pytest.CaptureFixture) -> None:
    """It says how large it is before it begins; every command reads it, and samples come without the pictures."""
    for name, first in (("cat", 100), ("dog", 200)):
        fill(photos.folder / name, 20, first=first)
    assert train.main(photos)
    out = capsys.readouterr().out
    assert re.search(r"network: a UNet of 8 channels, .* parameters; an update takes 0.0\d GiB of", out)  # fmt: skip
    longer = dataclasses.replace(photos, steps=4, flip=False)
    assert train.main(longer)
    assert "goes on from step 2 with" in capsys.readouterr().out
    options = {"num_times": 1, "samples": 0, "probability": Probability(examples=0)}
    assert evaluate.main(evaluate.Options(run=photos.run, **options))["step"] == 4
    fill(photos.folder, 1, first=50)
    with pytest.raises(ValueError, match="begun with data of the fingerprint"):
        train.main(dataclasses.replace(longer, steps=6))
    photos.folder.rename("gone")
    sample.main(sample.Options(run=photos.run, num=2, steps=2))
    assert (photos.run / "samples" / "samples.png").exists()


@pytest.mark.slow
def test_samples_of_a_table_are_in_its_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "draw_pictures", lambda *_: None)
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(5.0, 10.0, (40, 1)))
    config = dataclasses.replace(
        TINY,
        run=tmp_path / "run",
        folder=tmp_path / "t.npy",
        network=dataclasses.replace(GIVEN, channels=8),
    )
    assert train.main(config)
    sample.main(sample.Options(run=tmp_path / "run", num=4, steps=2))
    with np.load(tmp_path / "run" / "samples" / "samples.npz") as drawn:
        np.testing.assert_allclose(
            drawn["table"], loading.load_run(config.run).dataset.in_units(drawn["x"])
        )


def test_a_run_on_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale is kept in the run, and samples come in the units of the table too."""
    monkeypatch.setattr(train, "draw_pictures", lambda *_: None)
    values = np.random.default_rng(0).normal([5.0, 0.0, 3.0], [1.0, 100.0, 0.0], (40, 3))
    np.save(tmp_path / "t.npy", values)
    config = dataclasses.replace(
        TINY, run=tmp_path / "run", folder=tmp_path / "t.npy",
        network=dataclasses.replace(GIVEN, channels=8, num_blocks=1),
    )  # fmt: skip
    assert train.main(config)
    run = loading.load_run(tmp_path / "run")
    rows = run.dataset.splits["train"].images
    source = run.dataset.source
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)  # rounding
    np.testing.assert_allclose(rows.std(0), [1, 1, 0], atol=1e-5)
    back = np.concatenate(
        [run.dataset.in_units(run.dataset.splits[each].images) for each in ("train", "test")]
    )
    np.testing.assert_allclose(
        np.sort(back[:, 1]), np.sort(values[:, 1]), rtol=1e-4, atol=1e-4
    )  # float32
    assert (source.scale[2], source.centre[2]) == (1.0, 3.0)
    with pytest.raises(ValueError, match="flip: expected False"):
        train.main(dataclasses.replace(config, flip=True))
    assert training.read_log(tmp_path / "run")[-1]["step"] == 2


MISTAKEN: dict[str, tuple[dict, str]] = {
    "no folder": ({}, "folder: expected a folder of pictures, or a table .* got none"),
    "beside a set": ({"dataset": "digits", "folder": Path("P")}, "expected none beside --dataset digits, got P"),
    "not there": ({"folder": Path("/no/such")}, "got /no/such, which does not exist"),
    "a text": ({"folder": Path(__file__)}, "test_folder.py: expected a folder of pictures or a table of .npy"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKEN)
def test_a_mistaken_folder_is_named_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    options, message = MISTAKEN[name]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train.main(dataclasses.replace(TINY, run=tmp_path / "run", **options))
    assert not (tmp_path / "run" / "config.json").exists()


# --- a set that the library `datasets` has saved -----------------------------------------------------------------------


def pets(root: Path, *, num: int = 12, test: int = 4, shift: int = 0) -> Path:
    """A set of pictures with two classes; train has one picture that is none, and a label that is missing."""
    library = pytest.importorskip("datasets")

    def part(first: int, many: int, *, broken: bool) -> object:
        rows = [png_of(number) for number in range(first, first + many)]
        labels = [(number + shift) % 2 for number in range(many)]
        if broken:
            rows[1], labels[2] = b"no picture", -1
        kinds = {"photo": library.Image(), "kind": library.ClassLabel(names=["cat", "dog"])}
        values = {"photo": [{"bytes": row, "path": None} for row in rows], "kind": labels}
        features = library.Features(kinds | {"text": library.Value("string")})
        return library.Dataset.from_dict(values | {"text": ["?"] * many}, features=features)

    splits = {"train": part(0, num, broken=True)}
    if test:
        splits |= {"test": part(100, test, broken=False), "other": part(200, 3, broken=False)}
    library.DatasetDict(splits).save_to_disk(str(root))
    return root


def png_of(number: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.filterwarnings("default")
def test_a_saved_set_has_its_classes_and_its_own_held_out_split(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets")
    found = folder.load(root, 8)
    assert found.classes == ("cat", "dog")
    assert found.skipped == {
        "train/00000001": "expected a PNG, JPEG, WebP or BMP file, got none of them, or its first bytes alone",
        "train/00000002": "has no label, in a set with classes",
    }
    train, test = found.dataset.train, found.dataset.test
    assert (train.num_examples, test.num_examples) == (10, 4)
    expected = {pictures.decoded(png_of(100 + n), "", 8).pixels.tobytes(): n % 2 for n in range(4)}
    assert {
        x.tobytes(): label for x, label in zip(test.images, test.labels, strict=True)
    } == expected
    # It is prepared once, and its fingerprint follows its content.
    assert folder.load(root, 8).fingerprint == found.fingerprint
    assert folder.load(pets(tmp_path / "more", num=13), 8).fingerprint != found.fingerprint
    # Labels stand beside the pictures here, and not in their names.
    assert folder.load(pets(tmp_path / "other", shift=1), 8).fingerprint != found.fingerprint


@pytest.mark.filterwarnings("default")
def test_a_saved_set_of_one_split_is_held_out_by_content(tmp_path: Path) -> None:
    found = folder.load(pets(tmp_path / "pets", num=60, test=0), 8)
    contents = [hashlib.sha256(png_of(n)).hexdigest() for n in range(60) if n not in (1, 2)]
    held = sum(int(each[:8], 16) < 0.1 * 16**8 for each in contents)
    assert found.dataset.test.num_examples == held > 0


@pytest.mark.filterwarnings("default")
def test_saved_sets_that_are_refused(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    library.Dataset.from_dict({"x": [1, 2]}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"none: expected one column of pictures .* got 0 among x"):
        folder.load(tmp_path / "none", 8)
    features = library.Features({"photo": library.Image()})
    photos = [None, *({"bytes": png_of(n), "path": None} for n in range(3))]
    library.Dataset.from_dict({"photo": photos}, features=features).save_to_disk(
        str(tmp_path / "absent")
    )
    skipped = {"train/00000000": "expected a picture in the set itself, got none"}
    assert folder.load(tmp_path / "absent", 8).skipped == skipped
    (tmp_path / "none" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="none: expected a set that datasets has saved"):
        folder.load(tmp_path / "none", 8)
