from statistics import stdev

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.typing import NDArray

from ldm.study.evaluation.bootstrap import Estimate, Mean, compare, resamples, spread


def test_every_resample_has_as_many_prompts_and_the_seed_decides_it() -> None:
    counts = resamples(7, draws=50, seed=3)
    assert counts.shape == (50, 7)
    assert (counts.sum(1) == 7).all()
    assert (counts == resamples(7, draws=50, seed=3)).all()
    assert (counts != resamples(7, draws=50, seed=4)).any()


def test_the_mean_counts_each_value_by_its_weight_and_each_prompt_as_often_as_it_comes() -> None:
    # The first prompt asks for two things a picture, the second for one, the third for none.
    mean = Mean([[0.5, 1.0], [0.0, 1.0], [np.nan, np.nan]], [[2, 2], [1, 1], [0, 0]])
    counts = np.array([[1, 1, 1], [2, 1, 0], [0, 3, 0], [0, 0, 3]])
    expected = [(1 + 2 + 0 + 1) / 6, (2 * 3 + 1) / (2 * 4 + 2), 1 / 2, np.nan]
    np.testing.assert_allclose(mean.at(counts), expected)


def test_the_interval_is_that_of_the_resampled_differences_widened_as_few_prompts_need() -> None:
    # Twenty-one resamples of two prompts, of which k bring the first one k / 20 of the time.
    counts = np.array([[k, 20 - k] for k in range(21)])
    on, off = Mean([[3.0], [1.0]]), Mean([[1.0], [1.0]])
    estimate = compare(spread(on, counts), spread(off, counts))
    assert estimate.value == 2.0
    assert estimate.difference == 1.0
    # The resampled differences are 2 k / 20; a fortieth of them lies outside on either side. For two prompts
    # Student's quantile is 12.7062 where the normal one is 1.9600, and the deviation is sqrt(2) too small.
    widened = 12.7062 / 1.9600 * 2**0.5
    assert estimate.low == pytest.approx(1 + widened * (2 * 0.5 / 20 - 1), rel=1e-4)
    assert estimate.high == pytest.approx(1 + widened * (2 * 19.5 / 20 - 1), rel=1e-4)
    assert not estimate.leaves_out_zero


def test_the_interval_of_few_resamples_is_students_quantile_times_their_deviation() -> None:
    counts = np.array([[k, 20 - k] for k in range(21)])
    on, off = Mean([[3.0], [1.0]]), Mean([[1.0], [1.0]])
    on.draws = off.draws = 21
    estimate = compare(spread(on, counts), spread(off, counts))
    # The resampled differences are 2 k / 20; Student's quantile for 21 of them is 2.0860. Widened as above.
    reach = 2.0860 * 2 / 20 * (21 * 22 / 12) ** 0.5 * 12.7062 / 1.9600 * 2**0.5
    assert (estimate.low, estimate.high) == pytest.approx((1 - reach, 1 + reach), rel=1e-4)


class Biased(Mean):
    biased = True


@pytest.mark.parametrize("kind", [Mean, Biased])
def test_the_interval_is_about_the_difference_and_of_a_biased_statistic_reflected_about_its_own(
    kind: type[Mean],
) -> None:
    # The resampled differences are 2 (k / 20)^2, and their mean is not the difference, 1. A fortieth of them
    # ends half way between the outer two on either side.
    counts = np.array([[k * k, 400 - k * k] for k in range(21)])
    estimate = compare(*(spread(kind([[x], [1.0]]), counts) for x in (3.0, 1.0)))
    mean = 2 * sum(k * k for k in range(21)) / 21 / 400
    low, high = (0**2 + 1**2) / 400, (19**2 + 20**2) / 400
    widened = 12.7062 / 1.9600 * 2**0.5
    if kind is Biased:
        assert estimate.difference == pytest.approx(2 - mean)
        ends = [2 - mean - widened * (high - mean), 2 - mean - widened * (low - mean)]
    else:
        assert estimate.difference == 1
        ends = [1 + widened * (low - 1), 1 + widened * (high - 1)]
    assert (estimate.low, estimate.high) == pytest.approx(ends, rel=1e-4)


def test_the_interval_of_few_resamples_of_a_biased_statistic_is_even_about_its_difference() -> None:
    counts = np.array([[k * k, 400 - k * k] for k in range(21)])  # as above
    on, off = Biased([[3.0], [1.0]]), Biased([[1.0], [1.0]])
    on.draws = off.draws = 21
    estimate = compare(spread(on, counts), spread(off, counts))
    drawn = [2 * k * k / 400 for k in range(21)]
    reach = 2.0860 * stdev(drawn) * 12.7062 / 1.9600 * 2**0.5
    difference = 2 - sum(drawn) / 21
    expected = (difference, difference - reach, difference + reach)
    assert (estimate.difference, estimate.low, estimate.high) == pytest.approx(expected, rel=1e-4)


def test_resamples_in_which_nothing_counts_are_left_out() -> None:
    some = np.array([[k, 20 - k, 0] for k in range(1, 20)])
    none = np.array([[0, 0, 20]])

    def interval(counts: NDArray[np.int64]) -> Estimate:
        weights = [[1], [1], [0]]
        both = ([[3.0], [1.0], [np.nan]], [[1.0], [1.0], [np.nan]])
        return compare(*(spread(Mean(values, weights), counts) for values in both))

    assert interval(np.concatenate([some, none])) == interval(some)


@pytest.mark.parametrize(
    ("low", "high", "clear"),
    [(0.1, 3, True), (-3, -0.1, True), (-1, 2, False), (0, 2, False), (-2, 0, False)],
)
def test_an_interval_on_either_side_of_zero_leaves_it_out(low: float, high: float, clear: bool) -> None:
    assert Estimate(1.0, (low + high) / 2, low, high).leaves_out_zero is clear


def test_what_both_settings_share_is_no_part_of_the_interval() -> None:
    prompts = 50 * default_rng(0).standard_normal((12, 2))
    counts = resamples(12)
    estimate = compare(spread(Mean(prompts + 0.25), counts), spread(Mean(prompts), counts))
    np.testing.assert_allclose([estimate.difference, estimate.low, estimate.high], 0.25)


def test_one_prompt_has_a_difference_and_no_interval() -> None:
    counts = resamples(1)
    estimate = compare(spread(Mean([[2.0, 4.0]]), counts), spread(Mean([[1.0, 1.0]]), counts))
    assert (estimate.value, estimate.difference) == (3.0, 2.0)
    assert np.isnan([estimate.low, estimate.high]).all()
    assert not estimate.leaves_out_zero


def test_what_one_prompt_alone_is_asked_for_has_a_difference_and_no_interval() -> None:
    counts, weights = resamples(4), np.array([[0], [2], [0], [0]])
    on, off = (Mean(np.where(weights > 0, value, np.nan), weights) for value in (0.5, 1.0))
    estimate = compare(spread(on, counts), spread(off, counts))
    assert (estimate.value, estimate.difference) == (0.5, -0.5)
    assert np.isnan([estimate.low, estimate.high]).all()


@pytest.mark.parametrize("prompts", [2, 4, 8])
def test_a_difference_by_chance_alone_gets_a_star_one_time_in_twenty_from_few_prompts_too(
    prompts: int,
) -> None:
    rng, stars, trials = default_rng(prompts), 0, 600
    off = spread(Mean(np.zeros((prompts, 1))), resamples(prompts))
    for trial in range(trials):
        on = Mean(rng.standard_normal((prompts, 1)))
        stars += compare(spread(on, resamples(prompts, seed=trial)), off).leaves_out_zero
    # The percentiles alone gave 51, 21 and 10 in a hundred.
    assert 0.02 <= stars / trials <= 0.09


@pytest.mark.parametrize("asked", [2, 4])
def test_where_few_prompts_ask_for_something_a_difference_in_it_by_chance_gets_a_star_as_seldom(
    asked: int,
) -> None:
    rng, stars, trials = default_rng(asked), 0, 600
    weights = (np.arange(8) < asked)[:, None]
    for trial in range(trials):
        counts = resamples(8, seed=trial)
        on, off = (Mean(values, weights) for values in (rng.standard_normal((8, 1)), np.zeros((8, 1))))
        stars += compare(spread(on, counts), spread(off, counts)).leaves_out_zero
    # Intervals as wide as eight prompts need gave 43 and 10 in a hundred.
    assert 0.02 <= stars / trials <= 0.09


def test_the_interval_covers_the_truth_about_as_often_as_it_says_though_pictures_of_a_prompt_are_alike() -> (
    None
):
    # Each prompt has a difference of its own, by which the mean of all is 0.3; its four pictures hardly vary.
    rng, covered, trials = default_rng(5), 0, 400
    for trial in range(trials):
        off = rng.standard_normal((40, 4))
        own = 0.3 + rng.standard_normal((40, 1))
        on = off + own + 0.1 * rng.standard_normal((40, 4))
        counts = resamples(40, draws=400, seed=trial)
        estimate = compare(spread(Mean(on), counts), spread(Mean(off), counts))
        covered += estimate.low <= 0.3 <= estimate.high
    # 94 % are expected of 40 prompts; resampling the pictures would cover about 65 %.
    assert 0.90 <= covered / trials <= 0.98
