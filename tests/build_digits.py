"""Write jaxdiff/data/digits.npz from scikit-learn's digits: `python tests/build_digits.py`.

It prints the file's SHA-256, which stands in jaxdiff/data/digits.py. The arrays are always the same;
another version of zlib may write other bytes.
"""

import hashlib
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FILE = Path(__file__).parents[1] / "jaxdiff" / "data" / "digits.npz"


def arrays() -> dict[str, np.ndarray]:
    """Images, uint8 [N, 8, 8, 1], and labels, uint8 [N], of the two splits."""
    source = load_digits()
    splits = train_test_split(
        np.arange(len(source.target)), test_size=360, stratify=source.target, random_state=0
    )
    return {
        f"{name}/{kind}": values[rows].astype(np.uint8)
        for name, rows in zip(("train", "test"), splits, strict=True)
        for kind, values in (("images", source.images[..., None]), ("labels", source.target))
    }


if __name__ == "__main__":
    np.savez_compressed(FILE, **arrays())  # type: ignore[arg-type]
    print(FILE, hashlib.sha256(FILE.read_bytes()).hexdigest(), FILE.stat().st_size, "bytes")
