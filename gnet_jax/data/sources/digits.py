"""The digits that come with scikit-learn."""

from typing import Any

import numpy as np

from gnet_jax.data.sources.source import Example, MissingSplitError, Split, digest


class DigitsSource:
    """scikit-learn's digits: 1,797 scans of 8x8 pixels, 1,437 to train and 360 to validate.

    The split is a fixed shuffle, so that both parts hold every writer.
    """

    def __init__(self, split: Split) -> None:
        from sklearn.datasets import load_digits

        if split == "test":
            raise MissingSplitError("the digits have no test split; take train or val")
        self.split = split
        digits: Any = load_digits()
        order = np.random.RandomState(0).permutation(len(digits.target))  # its stream is frozen
        chosen = order[:1437] if split == "train" else order[1437:]
        self.class_names = tuple(str(name) for name in digits.target_names)
        self._images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        self._labels = digits.target[chosen]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self._images[index], int(self._labels[index]))

    def describe(self, index: int) -> str:
        """Its place in the split."""
        return f"digit {index} of {self.split}"

    def fingerprint(self) -> str:
        """Hash of every pixel and label."""
        return digest(self._images.tobytes(), self._labels.astype("<i8").tobytes())
