"""The embedded default: 1,797 handwritten digits of 8x8 pixels and 17 grey levels, with no network and no file."""

import numpy as np

from jaxdiff.data.images import ImageDataset, Split


def load() -> ImageDataset:
    """Load scikit-learn's digits, split once and for all into 1,437 for training and 360 for testing.

    The split is `train_test_split(test_size=360, stratify=labels, random_state=0)`: a digit has the
    same share in both.

    Returns:
      ImageDataset: images uint8 in 0..16, [N, 8, 8, 1]; labels int32 in 0..9, [N].
    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; test part, as
    in `load_digits`.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = source.images.astype(np.uint8)[..., None]
    labels = source.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    splits = {
        "train": Split(images[train], labels[train]),
        "test": Split(images[test], labels[test]),
    }
    return ImageDataset("digits", splits, levels=17, num_classes=10)
