"""Verdicts, where the truth is known both ways."""

import math

import numpy as np
import pytest
from numpy.random import default_rng

from ldm.study.claims import half_width, judge, judge_all, t_quantile


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (15, 2.131), (30, 2.042), (1000, 1.962)],
)
def test_students_t_is_that_of_the_tables(freedom, t):
    assert t_quantile(0.95, freedom) == pytest.approx(t, abs=5e-4)
    assert t_quantile(0.0, freedom) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1.0, 1.1, 0.9, 1.2], "holds"),
        ([-1.0, -1.1, -0.9, -1.2], "does not hold"),
        ([1.0, -1.1, 0.9, -1.2], "undecided"),
        ([0.0, 0.0, 0.0], "does not hold"),  # no difference is not the difference that is claimed
        ([5.0], "undecided"),
    ],
)
def test_a_claim_gets_the_verdict_that_its_numbers_allow(differences, verdict):
    check = judge("a is above b", "a - b", differences)
    assert check.verdict == verdict and check.pairs == len(differences)
    assert check.mean == pytest.approx(np.mean(differences)) and check.low <= check.mean <= check.high


def test_the_interval_is_the_textbooks():
    values = np.array([4.1, 5.2, 6.0, 4.7, 5.5])
    half = 2.7764451 * math.sqrt(((values - values.mean()) ** 2).sum() / 4) / math.sqrt(5)
    check = judge("", "", values)
    assert (check.low, check.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert half_width(np.stack([values, 10 * values], 1)) == pytest.approx([half, 10 * half])


@pytest.mark.parametrize("pairs", [4, 16])
def test_wrong_verdicts_are_as_rare_as_promised(pairs):
    rng = default_rng(pairs)
    nothing = [judge("", "", rng.normal(0, 1, pairs)).verdict for _ in range(2000)]
    for verdict in ("holds", "does not hold"):
        assert 0.013 < nothing.count(verdict) / 2000 < 0.037  # 2.5 % on either side
    for truth, right in {3.0: "holds", -3.0: "does not hold"}.items():
        verdicts = [judge("", "", rng.normal(truth, 1, pairs)).verdict for _ in range(500)]
        assert verdicts.count(right) > 430
        assert set(verdicts) <= {right, "undecided"}


@pytest.mark.parametrize("between_prompts", [0.0, 1.0, 5.0])
def test_the_interval_covers_the_mean_over_its_prompts_where_each_has_several_seeds(between_prompts):
    rng = default_rng(1)
    covered = 0
    for _ in range(1000):
        prompts = rng.normal(0, between_prompts, (8, 1))
        check = judge("", "", prompts + rng.normal(0, 1, (8, 2)))
        covered += check.low <= prompts.mean() <= check.high
    assert covered > 930


@pytest.mark.parametrize("differences", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_nothing_is_judged_from_what_is_no_number(differences):
    with pytest.raises(ValueError, match="No claim can be judged"):
        judge("", "", differences)


YES, NO, OPEN = ([1.0, 1.1], [-1.0, -1.1], [1.0, -1.0])


@pytest.mark.parametrize(
    ("parts", "verdict", "note"),
    [
        ({"a": YES, "b": YES}, "holds", ""),
        ({"a": YES, "b": OPEN}, "undecided", "open: b"),
        ({"a": NO, "b": YES, "c": OPEN, "d": NO}, "does not hold", "not: a, d; open: c"),
    ],
)
def test_a_claim_of_several_parts_is_as_good_as_its_weakest(parts, verdict, note):
    checks = [(name, judge("", "difference", values)) for name, values in parts.items()]
    check = judge_all("all of them", checks)
    assert (check.claim, check.verdict, check.note) == ("all of them", verdict, note)
    decisive = [one for _, one in checks if one.verdict == verdict]
    assert check.low == min(one.low for one in decisive)
