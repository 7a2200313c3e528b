"""The digits that come with scikit-learn."""

from importlib.metadata import distribution

import numpy as np

from gnet_jax.data.sources.source import DataError, Example, MissingSplitError, Split, digest
from gnet_jax.data.sources.walk import LeftOut


class DigitsSource:
    """scikit-learn's digits: 1,797 scans of 8x8 pixels, 1,437 to train and 360 to validate.

    The split is a fixed shuffle, so that both parts hold every writer.
    """

    def __init__(self, split: Split) -> None:
        parts = {"train": slice(1437), "val": slice(1437, None)}
        if split not in parts:
            raise MissingSplitError(f"the digits have no {split} split; take train or val")
        self.split = split
        # sklearn.datasets reads it too, but its import takes longer than all of ours.
        file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        try:
            digits = np.loadtxt(str(file), delimiter=",")
        except OSError as error:
            raise DataError(
                f"cannot read scikit-learn's digits in {file}; install scikit-learn anew"
            ) from error
        order = np.random.RandomState(0).permutation(len(digits))  # its stream is frozen
        chosen = digits[order[parts[split]]]
        self.left_out: LeftOut = {}
        self.class_names = tuple(str(digit) for digit in range(10))
        self._images = np.round(chosen[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        self.labels = chosen[:, 64].astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self._images[index], int(self.labels[index]))

    def describe(self, index: int) -> str:
        """Its place in the split."""
        return f"digit {index} of {self.split}"

    def fingerprint(self) -> str:
        """Hash of every pixel and label."""
        return digest(self._images.tobytes(), self.labels.astype("<i8").tobytes())
