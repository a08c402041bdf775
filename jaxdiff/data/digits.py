"""The digits in the package: 1,797 handwritten digits of 8x8 pixels and 17 grey levels.

They are the test part of the UCI set, as scikit-learn ships it. The file is made by
`python tests/build_digits.py`.
"""

import hashlib
import io
from importlib import resources

import numpy as np

from jaxdiff.data.images import ImageDataset, Split

FILE = "digits.npz"
SHA256 = "2f81d61784c68a0adf5cf5efb6e965c87c15c09d28f889b7c0b3f1007e3dde53"


def load() -> ImageDataset:
    """Load the digits, in a fixed split: 1,437 for training and 360 for testing.

    The split is scikit-learn's `train_test_split(test_size=360, stratify=labels, random_state=0)`:
    each digit has the same share in both parts.

    Returns:
      ImageDataset: images uint8 in 0..16, [N, 8, 8, 1]; labels int32 in 0..9, [N].
    Raises:
      ValueError: the file in the package is not the one that was shipped (its SHA-256 differs).
    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI (CC BY 4.0).
    """
    content = resources.files("jaxdiff.data").joinpath(FILE).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(f"{FILE}: expected SHA-256 {SHA256}, got {found}; install jaxdiff again")
    with np.load(io.BytesIO(content)) as file:
        splits = {
            name: Split(file[f"{name}/images"], file[f"{name}/labels"].astype(np.int32))
            for name in ("train", "test")
        }
    return ImageDataset("digits", splits, levels=17, num_classes=10)
