import numpy as np
import pytest
from numpy.random import default_rng
from numpy.typing import NDArray

from ldm.study.evaluation.frechet import FrechetDistance, Reference


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
