"""Tables of one's own: what is read of each format, what is refused by name, and their scale."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdiff.data import table

VALUES = np.random.default_rng(0).normal([5.0, 0.0], [1.0, 100.0], (40, 2))
TEXT = "\n".join(",".join(map(repr, row)) for row in VALUES.tolist())


def write(path: Path, content: Any) -> Path:
    """A file of any of the formats."""
    if isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


GOOD: dict[str, tuple[str, Any]] = {
    "npy": ("t.npy", VALUES),
    "columns first": ("t.npy", np.asfortranarray(VALUES)),
    "npz": ("t.npz", {"anything": VALUES}),
    "x": ("t.npz", {"x": VALUES, "labels": np.arange(40) % 3}),
    "csv": ("t.csv", TEXT),
    "names of columns": ("my table.CSV", "\ufeffheight, width\r\n" + TEXT.replace("\n", "\r\n") + "\r\n\r\n"),
    "semicolons": ("t.csv", TEXT.replace(",", ";")),
    "tabs": ("t.csv", "a\tb\n" + TEXT.replace(",", "\t")),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_table_is_standardised_by_its_training_rows(name: str, tmp_path: Path) -> None:
    file, content = GOOD[name]
    found = table.load(write(tmp_path / file, content))
    train, test = (found.splits[split].images for split in ("train", "test"))
    assert train.dtype == np.float32
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)  # rounding of float32
    np.testing.assert_allclose(train.std(0), 1, atol=1e-6)
    back = np.concatenate([train, test]) * found.scale + found.centre
    np.testing.assert_allclose(
        back[np.argsort(back[:, 0])], VALUES[np.argsort(VALUES[:, 0])], rtol=1e-4, atol=1e-4
    )
    assert (found.event_shape, found.levels) == ((2,), None)
    assert found.num_classes == (3 if name == "x" else None)
    if name == "x":
        order = np.argsort(np.concatenate([train, test])[:, 0])
        labels = np.concatenate([found.splits[each].labels for each in ("train", "test")])[order]
        np.testing.assert_array_equal(labels, (np.arange(40) % 3)[np.argsort(VALUES[:, 0])])


def test_a_row_keeps_its_side_and_the_scale_can_be_another_s(tmp_path: Path) -> None:
    first = table.load(write(tmp_path / "t.npy", VALUES))
    more = np.concatenate([np.random.default_rng(1).normal(size=(60, 2)), VALUES])
    standard = (first.centre, first.scale)
    second = table.load(write(tmp_path / "t.npy", more), standard=standard)
    for split in ("train", "test"):
        rows = {row.tobytes() for row in first.splits[split].images}
        assert rows <= {row.tobytes() for row in second.splits[split].images}
    assert (second.centre, second.scale) == standard
    assert len({first.fingerprint, second.fingerprint}) == 2
    with pytest.raises(ValueError, match=r"t.npy: expected 1 columns, got 2"):
        table.load(tmp_path / "t.npy", standard=((0.0,), (1.0,)))


def test_arrays_of_other_shapes(tmp_path: Path) -> None:
    """Bytes are images; other numbers are rows; a column that does not vary stays as it is."""
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    found = table.load(write(tmp_path / "t.npy", images))
    assert (found.event_shape, found.levels, found.scale) == ((4, 4, 3), 256, ())
    assert found.splits["train"].images.dtype == np.uint8
    assert table.load(write(tmp_path / "t.npy", images[..., 0])).event_shape == (4, 4, 1)
    assert table.load(write(tmp_path / "t.npy", images.astype(float))).event_shape == (48,)
    assert table.load(write(tmp_path / "t.npy", VALUES[:, 0])).event_shape == (1,)
    constant = table.load(write(tmp_path / "t.npy", np.column_stack([VALUES, [0.1] * 40])))
    assert constant.scale[2] == 1
    np.testing.assert_allclose(constant.splits["train"].images[:, 2], 0, atol=1e-6)


HUGE = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000, 9), }".ljust(117) + b"\n"  # fmt: skip
REFUSED: dict[str, tuple[str, Any, str]] = {
    "pickle": ("t.npy", np.array([{}, []], object), "t.npy: expected an array of numbers, got"),
    "pickle by itself": ("t.npy", pickle.dumps(VALUES), "t.npy: expected an array that np.save wrote"),
    "pickle in an archive": ("t.npz", {"x": np.array([{}, []], object)}, "t.npz: expected a NumPy archive"),
    "cut": ("t.npy", HUGE[:40], "t.npy: expected an array of numbers, got"),
    "longer than it is": ("t.npy", HUGE, "t.npy: expected an array of numbers, got"),
    "no archive": ("t.npz", b"PK\x03\x04", "t.npz: expected a NumPy archive"),
    "two arrays": ("t.npz", {"a": VALUES, "b": VALUES}, "t.npz: expected one array, or x with labels, got a, b"),
    "text": ("t.npy", np.array(["a", "b"]), "t.npy: expected numbers, .N, D., got <U1"),
    "a number": ("t.npy", np.array(3.0), "t.npy: expected numbers"),
    "nothing": ("t.npy", np.zeros((0, 3)), "t.npy: expected numbers"),
    "no text": ("t.csv", b"\xff\xfe\x00", "t.csv: expected lines of numbers"),
    "empty text": ("t.csv", "", "t.csv: expected numbers"),
    "names alone": ("t.csv", "a,b\n", "t.csv: expected numbers"),
    "short line": ("t.csv", "1,2\n3\n", "t.csv, line 2: expected 2 numbers, as in line 1, got 1"),
    "a word": ("t.csv", "a,b\n1,2\n3,four\n", "t.csv, line 3: expected a number, got 'four'"),
    "not finite": ("t.csv", "1,2\n3,nan\n", "t.csv: expected finite numbers, got nan in column 2 of example 2"),
    "one row": ("t.csv", "1,2\n", "t.csv: expected at least 2 rows that differ, .* got 1 of 1 kind"),
    "equal rows": ("t.csv", "1,2\n1,2\n", "got 2 of 1 kind"),
    "channels": ("t.npy", np.zeros((3, 4, 4, 2), np.uint8), "t.npy: expected images of 1 or 3 channels"),
    "labels": ("t.npz", {"x": VALUES, "labels": np.zeros(40) - 1}, "t.npz: expected labels of integers from 0 on"),
    "few labels": ("t.npz", {"x": VALUES, "labels": np.zeros(3, int)}, "t.npz: expected labels of integers"),
    "another format": ("t.txt", "1,2\n", "t.txt: expected a folder of pictures or a table of .npy, .npz, .csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_table_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file, content, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        table.load(write(tmp_path / file, content))
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folder: expected a table of .npy, .npz, .csv"):
        table.load(tmp_path / "t.npy")
