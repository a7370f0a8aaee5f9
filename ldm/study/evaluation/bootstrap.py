"""The paired bootstrap over prompts: how far a difference between two settings may be off by chance.

The pictures of one prompt resemble each other more than those of two, so prompts are resampled and every
prompt brings all of its pictures along. All settings see the same resamples, which keeps the pairs together.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.random import default_rng
from numpy.typing import ArrayLike, NDArray

from ldm.study.claims import CONFIDENCE, t_quantile
from ldm.study.pictures import Numbers

DRAWS, SEED = 1000, 0


class Statistic(Protocol):
    """A number that a set of pictures has, whatever the share of each prompt in the set."""

    biased: bool  # whether it comes out too large for few pictures, as distances of distributions do
    draws: int  # of how many resamples it is taken at most; 0 where they do not tell how far it is off
    prompts: int  # of how many prompts it tells

    def at(self, counts: NDArray[Any]) -> Numbers:
        """The numbers (D,) of D sets in which prompt p comes counts[d, p] times."""
        ...


class Mean:
    """The mean of `values` over prompts and pictures, (P, S), each counted `weights` times, (P, S).

    NaN for sets in which nothing counts.
    """

    biased, draws = False, DRAWS

    def __init__(self, values: ArrayLike, weights: ArrayLike = 1.0):
        self.values = np.asarray(values, np.float64)
        self.weights = np.broadcast_to(np.asarray(weights, np.float64), self.values.shape)
        self.prompts = int((self.weights > 0).any(1).sum())

    def at(self, counts: NDArray[Any]) -> Numbers:
        # A value that does not count may be NaN.
        totals = np.where(self.weights > 0, self.values * self.weights, 0).sum(1)
        with np.errstate(invalid="ignore"):
            return (counts @ totals) / (counts @ self.weights.sum(1))


@dataclass(frozen=True)
class Spread:
    """A statistic of a set of prompts as it is, and of D resamples of them."""

    value: float
    drawn: Numbers  # (D,), or none where resamples tell nothing
    prompts: int  # P, of which the statistic tells
    biased: bool
    few: bool  # whether there are fewer resamples than percentiles need


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


def spread(statistic: Statistic, counts: NDArray[Any]) -> Spread:
    """The statistic of the set as it is and of each resample; `counts` are as of `resamples`.

    Of a statistic of one prompt, whatever the others are, resamples tell nothing.
    """
    as_it_is = float(statistic.at(np.ones((1, counts.shape[1]), np.int64))[0])
    drawn = statistic.at(counts[: statistic.draws if statistic.prompts > 1 else 0])
    return Spread(as_it_is, drawn, statistic.prompts, statistic.biased, few=statistic.draws < DRAWS)


def compare(on: Spread, off: Spread) -> Estimate:
    """The value of `on` and its difference to that of `off`, both over the same resamples.

    The interval reaches as far as the percentiles of the resampled differences, or where these are few as
    Student's quantile times their deviation; and further by what a normal quantile and a deviation over P
    fall short of Student's and one over P - 1, P being the prompts of which the statistic tells. Of a biased
    one the resamples are as far off the set as the set is off the truth, and to the same side: their mean
    bias is taken out of the difference, and the interval is reflected (the basic bootstrap: Davison and
    Hinkley 1997, 5.2). Without resamples there is no interval, and its ends are NaN.
    """
    difference = on.value - off.value
    drawn = on.drawn - off.drawn  # (D,)
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Estimate(on.value, difference, np.nan, np.nan)
    center = drawn.mean() if on.biased else difference
    if on.few:
        reach = t_quantile(CONFIDENCE, len(drawn) - 1) * drawn.std(ddof=1)
        ends = drawn.mean() + reach * np.array([-1, 1])
    else:
        ends = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = (ends - center) * widening(on.prompts)
    if on.biased:
        difference, low, high = 2 * difference - center, -high, -low
    return Estimate(on.value, float(difference), float(difference + low), float(difference + high))


def widening(prompts: int) -> float:
    """How many times wider than by its percentiles the interval from 2 or more prompts has to be."""
    normal = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return t_quantile(CONFIDENCE, prompts - 1) / normal * math.sqrt(prompts / (prompts - 1))
