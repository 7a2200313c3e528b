"""The digits that come with scikit-learn."""

from importlib.metadata import distribution

import numpy as np

from gnet_jax.data.sources import DataError, Example, LeftOut, MissingSplitError, Split, digest


class DigitsSource:
    """scikit-learn's digits: 1,797 scans of 8x8 pixels, 1,437 to train and 360 to validate.

    The split is a fixed shuffle, so both parts contain every writer.
    """

    class_names = tuple("0123456789")

    def __init__(self, split: Split) -> None:
        parts = {"train": slice(1437), "val": slice(1437, None)}
        if split not in parts:
            raise MissingSplitError(f"the digits have no {split} split; choose train or val")
        # sklearn.datasets reads this file too, but takes longer to import than this whole project.
        file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        try:
            digits = np.loadtxt(str(file), delimiter=",")
        except OSError as error:
            raise DataError(f"cannot read {file}; reinstall scikit-learn") from error
        order = np.random.RandomState(0).permutation(len(digits))  # its stream is frozen
        chosen = digits[order[parts[split]]]
        self.split = split
        self.left_out: LeftOut = {}
        self._images = np.round(chosen[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        self.labels = chosen[:, 64].astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self._images[index], int(self.labels[index]))

    def describe(self, index: int) -> str:
        """Returns its index in the split."""
        return f"digit {index} of {self.split}"

    def fingerprint(self) -> str:
        """Returns a hash of every pixel and label."""
        return digest(self._images.tobytes(), self.labels.astype("<i8").tobytes())
