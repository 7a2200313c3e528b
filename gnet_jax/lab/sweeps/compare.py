"""Statistics of a sweep: paired differences over seeds, and the error of the validation set."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean difference of a config from another one, over the seeds that both finished."""

    mean: float
    margin: float | None  # half the width of the 95 % interval; None for a single seed
    seeds: int

    @property
    def verdict(self) -> str:
        """Whether the interval excludes zero: "higher" or "lower"; otherwise, the reason."""
        if self.margin is None:
            return "one seed"
        if abs(self.mean) <= self.margin:
            return "not distinguishable"
        return "higher" if self.mean > 0 else "lower"


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], images: int | None = None
) -> Difference | None:
    """Returns the difference of two configs' values by seed; None if they share no seed.

    The margin is that of Student's t-interval of the differences between runs with the same seed.
    If the values are accuracies on `images`, the standard deviation of the differences is taken to
    be at least one image, because the differences of a few seeds can be equal by chance.
    """
    seeds = values.keys() & baseline.keys()
    if not seeds:
        return None
    differences = np.array([values[seed] - baseline[seed] for seed in sorted(seeds)])
    margin = None
    if len(seeds) > 1:
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1)
        least = 1 / images if images else 0.0
        margin = float(quantile * max(differences.std(ddof=1), least) / math.sqrt(len(seeds)))
    return Difference(float(differences.mean()), margin, len(seeds))


def smallest_detectable(difference: Difference) -> float | None:
    """Returns the true difference that this comparison would find with a probability of 80 %.

    Takes the spread of the measured differences as the true one, and finds the root of the power of
    the two-sided paired t-test, which has a noncentral t-distribution. Returns None for one seed.
    """
    if difference.margin is None:
        return None
    seeds = difference.seeds
    limit = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1)
    # Without the other tail, which adds less than 0.1 %: SciPy returns NaN for parts of it.
    effect: Any = optimize.brentq(lambda x: stats.nct.sf(limit, seeds - 1, x) - POWER, 0, 3 * limit)
    return difference.margin / limit * effect


def validation_margin(accuracy: float, images: int) -> float:
    """Returns half the width of the 95 % Wilson interval of an accuracy measured on `images`."""
    hits = round(accuracy * images)
    interval = stats.binomtest(hits, images).proportion_ci(CONFIDENCE, method="wilson")
    return (interval.high - interval.low) / 2
