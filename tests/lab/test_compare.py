import math

import numpy as np
import pytest
from scipy import stats

from gnet_jax.lab.sweeps.compare import paired_difference, smallest_detectable, validation_margin
from gnet_jax.lab.sweeps.sweep import Row

# Top-1 of CIFAR-10 networks with reductions x0.25 and x1, seeds 0 to 4.
NARROW = dict(enumerate((0.4530, 0.4701, 0.4629, 0.4583, 0.4655)))
WIDE = dict(enumerate((0.4938, 0.5010, 0.4907, 0.4871, 0.4902)))


def test_a_difference_has_the_t_interval_of_its_pairs():
    found = paired_difference(WIDE, NARROW)
    test = stats.ttest_rel(list(WIDE.values()), list(NARROW.values()))
    interval = test.confidence_interval(0.95)
    assert found.mean - found.margin == pytest.approx(interval.low)
    assert found.mean + found.margin == pytest.approx(interval.high)
    assert (found.verdict, found.seeds) == ("higher", 5)
    assert paired_difference(NARROW, WIDE).verdict == "lower"


def test_pairs_are_matched_by_seed_and_seeds_without_a_pair_are_left_out():
    shuffled = dict(sorted(WIDE.items(), key=lambda pair: pair[1]))
    assert paired_difference(shuffled, NARROW) == paired_difference(WIDE, NARROW)
    more = paired_difference(WIDE | {7: 0.9}, NARROW | {8: 0.1})
    assert more == paired_difference(WIDE, NARROW)
    assert paired_difference({0: 0.5}, {1: 0.5}) is None


def test_two_equal_configs_are_not_distinguishable():
    assert paired_difference(WIDE, WIDE).verdict == "not distinguishable"
    assert paired_difference(WIDE, WIDE).margin == 0
    generator = np.random.default_rng(0)
    found = [
        paired_difference(*(dict(enumerate(generator.normal(0.7, 0.01, 5))) for _ in range(2)))
        for _ in range(2000)
    ]
    wrong = np.mean([each.verdict != "not distinguishable" for each in found])
    assert 0.03 < wrong < 0.07  # the interval misses the true difference in 5 % of sweeps


def test_a_difference_of_five_points_is_found_with_five_seeds():
    generator = np.random.default_rng(0)
    for _ in range(50):
        low, high = generator.normal(0.70, 0.01, 5), generator.normal(0.75, 0.01, 5)
        assert paired_difference(dict(enumerate(high)), dict(enumerate(low))).verdict == "higher"


def test_one_seed_shows_no_spread():
    found = paired_difference({0: 0.9}, {0: 0.1})
    assert (found.margin, found.verdict) == (None, "one seed")
    assert smallest_detectable(found) is None


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_smallest_detectable_difference_is_found_in_eighty_percent_of_sweeps(seeds):
    generator = np.random.default_rng(0)
    values = dict(enumerate(generator.normal(0, 0.01, seeds)))
    pilot = paired_difference(values, dict.fromkeys(values, 0.0))
    spread = float(np.std(list(values.values()), ddof=1))
    true = smallest_detectable(pilot)
    samples = generator.normal(true, spread, (20_000, seeds))
    errors = samples.std(1, ddof=1) / math.sqrt(seeds)
    significant = abs(samples.mean(1)) > stats.t.ppf(0.975, seeds - 1) * errors
    assert significant.mean() == pytest.approx(0.8, abs=0.01)


def test_equal_differences_of_a_few_images_are_not_distinguishable():
    values, baseline = {0: 0.71, 1: 0.72}, {0: 0.70, 1: 0.71}
    found = paired_difference(values, baseline, images=100)
    assert found.margin == pytest.approx(12.706 * 0.01 / 2**0.5, rel=1e-4)
    assert found.verdict == "not distinguishable"
    assert paired_difference(values, baseline, images=10_000).verdict == "higher"
    rows = [
        Row("", done={n: {"top1": x, "val_images": 100} for n, x in each.items()})
        for each in (values, baseline)
    ]
    assert rows[0].minus(rows[1]) == found


def test_the_error_of_the_validation_set_shrinks_with_its_size():
    assert validation_margin(0.8, 3925) == pytest.approx(0.0125, abs=1e-4)
    assert validation_margin(0.5, 100) == pytest.approx(0.0963, abs=1e-3)
    assert 0 < validation_margin(0.0, 10) < validation_margin(0.5, 10)


def test_rows_are_compared_by_the_seeds_that_both_have_finished():
    rows = [
        Row(name, done={seed: {"top1": top1} for seed, top1 in values.items()})
        for name, values in (("wide", WIDE), ("narrow", NARROW | {5: 0.99}))
    ]
    assert rows[0].minus(rows[1]) == paired_difference(WIDE, NARROW)
    assert rows[0].minus(Row("none")) is None
