import numpy as np
import pytest
from numpy.random import default_rng
from numpy.typing import NDArray

from ldm.study.evaluation import frechet
from ldm.study.evaluation.bootstrap import DRAWS, Estimate, compare, resamples, spread
from ldm.study.evaluation.frechet import FEW, FrechetDistance, Reference


def with_moments(mean: NDArray, covariance: NDArray, count: int, seed: int) -> NDArray:
    """`count` features whose mean and covariance are exactly these."""
    x = default_rng(seed).standard_normal((count, len(mean)))
    x = x - x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def distance(features: NDArray, reference: NDArray) -> float:
    """Of features (N, F) to others."""
    statistic = FrechetDistance(features[:, None], Reference(reference))
    return float(statistic.at(np.ones((1, len(features)), int))[0])


def by_definition(a: NDArray, b: NDArray) -> float:
    """The formula with numpy's eigenvalues of C1 C2, whose roots are those of its square root."""
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex))
    apart = a.mean(0) - b.mean(0)
    return float(apart @ apart + c1.trace() + c2.trace() - 2 * roots.sum().real)


def test_the_distance_of_two_gaussians_along_the_same_axes_is_that_of_their_means_and_deviations() -> None:
    deviations = np.array([1.0, 2.0, 3.0, 0.5]), np.array([2.0, 2.0, 1.0, 0.1])
    means = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 1.0, 0.0, 3.0])
    a, b = (
        with_moments(mean, np.diag(deviation**2), 50, seed)
        for seed, (mean, deviation) in enumerate(zip(means, deviations, strict=True))
    )
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert distance(a, b) == pytest.approx(expected)


@pytest.mark.parametrize("pictures", [60, 20, 9, 3])
def test_the_distance_is_that_of_the_definition_with_few_pictures_too(pictures: int) -> None:
    rng = default_rng(pictures)
    a = rng.standard_normal((pictures, 12)) @ rng.standard_normal((12, 12))
    b = 1 + rng.standard_normal((80, 12)) @ rng.standard_normal((12, 12))
    assert distance(a, b) == pytest.approx(by_definition(a, b), rel=1e-6)


def test_a_set_has_no_distance_to_itself() -> None:
    x = default_rng(1).standard_normal((40, 6))
    assert distance(x, x) == pytest.approx(0, abs=1e-9)


def test_a_prompt_that_comes_twice_brings_all_of_its_pictures_twice() -> None:
    rng = default_rng(2)
    features, true = rng.standard_normal((5, 2, 7)), rng.standard_normal((30, 7))
    statistic = FrechetDistance(features, Reference(true))
    drawn = statistic.at(np.array([[2, 0, 1, 0, 2]]))
    assert drawn[0] == pytest.approx(by_definition(features[[0, 0, 2, 4, 4]].reshape(-1, 7), true))


def test_the_interval_of_a_difference_covers_the_true_one_though_the_distances_are_too_large() -> None:
    # Off has the reference's distribution; on is half as wide again and lies aside. A prompt's four
    # pictures share a third of their variance. The true distances follow from the deviations along the axes.
    deviations = 1 / np.sqrt(np.arange(1, 17))
    reference = Reference(with_moments(np.zeros(16), np.diag(deviations**2), 200, 0))
    truth = ((0.5 * deviations) ** 2).sum() + 16 * 0.05**2
    covered, trials, apart = 0, 100, []
    for trial in range(trials):
        rng = default_rng(trial)
        noise = 0.6 * rng.standard_normal((24, 1, 16)) + 0.8 * rng.standard_normal((24, 4, 16))
        off = deviations * noise
        on = 1.5 * off + 0.05
        counts = resamples(24, draws=200, seed=trial)
        estimate = compare(*(spread(FrechetDistance(x, reference), counts) for x in (on, off)))
        covered += estimate.low <= truth <= estimate.high
        apart.append(estimate.difference)
    assert covered / trials >= 0.9
    assert np.mean(apart) == pytest.approx(truth, rel=0.05)


def test_from_fewer_pictures_than_features_a_difference_has_no_interval() -> None:
    rng = default_rng(3)
    reference = Reference(rng.standard_normal((40, 8)))
    for pictures, some in ((7, False), (8, True)):
        on, off = (FrechetDistance(rng.standard_normal((pictures, 1, 8)), reference) for _ in range(2))
        estimate = compare(spread(on, resamples(pictures)), spread(off, resamples(pictures)))
        assert np.isfinite(estimate.difference)
        assert np.isfinite([estimate.low, estimate.high]).all() == some


def test_where_features_are_wide_a_distance_is_taken_of_few_resamples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 96 < frechet.WIDE < 2048  # the judge's features are not wide, Inception's are
    rng = default_rng(4)
    reference = Reference(rng.standard_normal((40, 8)))
    for wide, draws in ((8, DRAWS), (7, FEW)):
        monkeypatch.setattr(frechet, "WIDE", wide)
        statistic = FrechetDistance(rng.standard_normal((16, 1, 8)), reference)
        assert len(spread(statistic, resamples(16)).drawn) == draws


def test_few_resamples_tell_about_the_same_interval_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = default_rng(5)
    reference = Reference(rng.standard_normal((200, 8)))
    off = rng.standard_normal((64, 1, 8))
    on = 1.2 * off + 0.3 * rng.standard_normal((64, 1, 8))

    def interval(wide: int) -> Estimate:
        monkeypatch.setattr(frechet, "WIDE", wide)
        return compare(*(spread(FrechetDistance(x, reference), resamples(64)) for x in (on, off)))

    many, few = interval(8), interval(7)
    width = many.high - many.low
    assert few.high - few.low == pytest.approx(width, rel=0.2)
    for name in ("difference", "low", "high"):
        assert getattr(few, name) == pytest.approx(getattr(many, name), abs=0.2 * width), name


def test_the_interval_of_few_resamples_covers_the_true_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "WIDE", 7)
    deviations, covered, trials = np.linspace(0.5, 1, 8), 0, 200
    reference = Reference(with_moments(np.zeros(8), np.diag(deviations**2), 200, 0))
    truth = ((0.5 * deviations) ** 2).sum() + 8 * 0.05**2
    for trial in range(trials):
        off = deviations * default_rng(trial).standard_normal((48, 1, 8))
        counts = resamples(48, seed=trial)
        estimate = compare(*(spread(FrechetDistance(x, reference), counts) for x in (1.5 * off + 0.05, off)))
        covered += estimate.low <= truth <= estimate.high
    assert 0.90 <= covered / trials <= 0.99
