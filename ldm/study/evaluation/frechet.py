"""The Fréchet distance between two sets of features, each taken for a Gaussian (arXiv 1706.08500).

    d² = |m1 - m2|² + Tr(C1 + C2 - 2 (C1 C2)^½)

It comes out too large for few pictures, the more so the fewer there are and the more they vary, so that the
difference of two settings is off too. Resamples tell by how much, where pictures are no fewer than features.

The eigenvalues of one resample of Inception's 2048 features take seconds, and those of 1000 an hour, so that
there are few where features are wide.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ldm.study.evaluation.bootstrap import DRAWS
from ldm.study.pictures import Numbers

WIDE = 1024  # features; from more on a distance is taken of few resamples
FEW = 100  # of these, whose deviation is known to 7 %


class Reference:
    """What features are compared with: the mean and the covariance of others, (N, F)."""

    def __init__(self, features: Numbers):
        features = features.astype(np.float64)
        self.mean = features.mean(0)  # (F,)
        covariance = np.atleast_2d(np.cov(features, rowvar=False))  # (F, F)
        self.trace = float(covariance.trace())
        values, vectors = np.linalg.eigh(covariance)
        self.root = vectors * np.sqrt(values.clip(0)) @ vectors.T  # (F, F), C2^½


class FrechetDistance:
    """The distance d² of features, S for each of P prompts, (P, S, F), to a reference."""

    biased = True

    def __init__(self, features: Numbers, reference: Reference):
        self.prompts, self.pictures, width = features.shape  # pictures of each prompt
        self.draws = 0 if self.prompts * self.pictures < width else FEW if width > WIDE else DRAWS
        self.reference = reference
        self.features = features.reshape(-1, width).astype(np.float64)  # (P S, F)
        self.rooted = self.features @ reference.root  # (P S, F)

    def at(self, counts: NDArray[Any]) -> Numbers:
        sets = tqdm(counts, "distances", unit="set", leave=False, delay=1, disable=None)
        return np.array([self._distance(np.repeat(row, self.pictures)) for row in sets])

    def _distance(self, weights: NDArray[Any]) -> float:
        """d² where each picture comes `weights` times, (P S,); NaN where that is but one picture."""
        there = weights > 0
        weights, total = weights[there].astype(np.float64), float(weights.sum())
        if total < 2:
            return np.nan
        mean = weights @ self.features[there] / total  # (F,)
        share = np.sqrt(weights / (total - 1))[:, None]
        apart = share * (self.features[there] - mean)  # (n, F), whose square is C1
        trace = np.square(apart).sum()

        # (C1 C2)^½ has the trace of (C2^½ C1 C2^½)^½: the singular values of `apart` times C2^½.
        rooted = share * (self.rooted[there] - mean @ self.reference.root)  # (n, F)
        gram = rooted @ rooted.T if len(rooted) < rooted.shape[1] else rooted.T @ rooted
        cross = np.sqrt(np.linalg.eigvalsh(gram).clip(0)).sum()
        return float(np.square(mean - self.reference.mean).sum() + trace + self.reference.trace - 2 * cross)
