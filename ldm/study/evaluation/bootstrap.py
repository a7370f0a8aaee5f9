"""The paired bootstrap over prompts: how far a difference between two settings may be off by chance.

The pictures of one prompt resemble each other more than those of two, so prompts are resampled and every
prompt brings all of its pictures along. All settings see the same resamples, which keeps the pairs together.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.random import default_rng
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.floating[Any]]

DRAWS, SEED = 1000, 0
CONFIDENCE = 0.95


class Statistic(Protocol):
    """A number that a set of pictures has, whatever the share of each prompt in the set."""

    def at(self, counts: NDArray[Any]) -> Numbers:
        """The numbers (D,) of D sets in which prompt p comes counts[d, p] times."""
        ...


class Mean:
    """The mean of `values` over prompts and pictures, (P, S), each counted `weights` times, (P, S).

    NaN for sets in which nothing counts.
    """

    def __init__(self, values: ArrayLike, weights: ArrayLike = 1.0):
        self.values = np.asarray(values, np.float64)
        self.weights = np.broadcast_to(np.asarray(weights, np.float64), self.values.shape)

    def at(self, counts: NDArray[Any]) -> Numbers:
        # A value that does not count may be NaN.
        totals = np.where(self.weights > 0, self.values * self.weights, 0).sum(1)
        with np.errstate(invalid="ignore"):
            return (counts @ totals) / (counts @ self.weights.sum(1))


@dataclass(frozen=True)
class Estimate:
    """A setting's number and its difference to another's, with the difference's 95 % interval."""

    value: float
    difference: float
    low: float
    high: float

    @property
    def leaves_out_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def resamples(prompts: int, draws: int = DRAWS, seed: int = SEED) -> NDArray[np.int64]:
    """How often each of P prompts comes in each of D sets of P, drawn with replacement: (D, P).

    One prompt tells nothing of others: D is 0 then.
    """
    size = draws if prompts > 1 else 0
    return default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=size)


def spread(statistic: Statistic, counts: NDArray[Any]) -> Numbers:
    """The number of the set as it is, and then of each resample: (1 + D,). `counts` are (D, P)."""
    as_it_is = np.ones((1, counts.shape[1]), np.int64)
    return statistic.at(np.concatenate([as_it_is, counts]))


def compare(on: Numbers, off: Numbers) -> Estimate:
    """The first of `on` and its difference to that of `off`, both from `spread` over the same resamples.

    The interval is that of the percentiles; without resamples there is none, and its ends are NaN.
    """
    differences = on - off  # (1 + D,)
    drawn = differences[1:][~np.isnan(differences[1:])]
    ends = np.array([np.nan, np.nan])
    if len(drawn):
        ends = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(on[0]), float(differences[0]), float(ends[0]), float(ends[1]))
