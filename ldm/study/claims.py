"""A claim as an inequality, judged by its error bar: it holds, does not hold, or is undecided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Verdict = Literal["holds", "does not hold", "undecided"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Check:
    """A claim of the paper, as measured."""

    claim: str  # "b = 1.8 has less at the high end than b = 1"
    quantity: str  # what `mean` is the mean of; the claim says that it is above zero
    mean: float
    low: float  # of the 95 % t interval of the mean over the pairs
    high: float
    pairs: int
    verdict: Verdict
    note: str = ""


def judge(claim: str, quantity: str, differences: ArrayLike) -> Check:
    """The claim that the mean of `differences`, one a prompt and seed pair, is above zero.

    It holds where the 95 % Student t interval of the mean lies above zero, does not hold where no part of it
    does, and is undecided otherwise; one pair decides nothing. All pairs count alike: where a prompt has
    several seeds, the interval is right or too wide for the mean over these prompts, and may be too narrow
    for prompts in general. Raises ValueError where there is no pair, or a difference that is no number.
    """
    values = np.asarray(differences, np.float64).ravel()
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"No claim can be judged from {len(values)} differences: {values}.")
    mean, half = float(values.mean()), float(half_width(values))
    low, high = mean - half, mean + half
    verdict: Verdict = "holds" if low > 0 else "does not hold" if high <= 0 else "undecided"
    return Check(claim, quantity, mean, low, high, len(values), verdict)


def judge_all(claim: str, parts: Sequence[tuple[str, Check]]) -> Check:
    """The claim that all its named parts hold.

    It holds where all do and fails where one fails. The numbers are those of the part that decides, the
    weakest; the note names the parts that fail ("not") and that are undecided ("open").
    """
    order: list[Verdict] = ["does not hold", "undecided", "holds"]
    weakest = min((check for _, check in parts), key=lambda check: (order.index(check.verdict), check.low))
    notes = [
        f"{word}: {', '.join(names)}"
        for verdict, word in {"does not hold": "not", "undecided": "open"}.items()
        if (names := [name for name, check in parts if check.verdict == verdict])
    ]
    numbers = (weakest.mean, weakest.low, weakest.high, weakest.pairs)
    return Check(claim, weakest.quantity, *numbers, weakest.verdict, "; ".join(notes))


def half_width(values: np.ndarray) -> np.ndarray:
    """Half the 95 % t interval of the mean of `values`, (n, ...), over n: (...); infinite where n is 1."""
    n = len(values)
    if n == 1:
        return np.full(values.shape[1:], np.inf)
    return t_quantile(CONFIDENCE, n - 1) * values.std(0, ddof=1) / math.sqrt(n)


def t_quantile(share: float, freedom: int) -> float:
    """The t within which, on both sides of zero, Student's distribution has this share."""
    low, high = 0.0, math.pi / 2
    while high - low > 1e-13:
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, freedom) < share else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _share_within(theta: float, freedom: int) -> float:
    """Student's share within t, for theta = atan(t / sqrt(freedom)) (Abramowitz and Stegun 26.7.3 and 4)."""
    odd = freedom % 2 == 1
    term, total = (math.cos(theta), 0.0) if odd else (1.0, 0.0)
    for k in range(2 if odd else 1, freedom, 2):
        total += term
        term *= k / (k + 1) * math.cos(theta) ** 2
    total *= math.sin(theta)
    return 2 / math.pi * (theta + total) if odd else total
