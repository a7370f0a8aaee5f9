"""What a search is for: measures, and which way each of them is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from ldm.errors import InputError
from ldm.modules.encoders.words import WordEmbedder
from ldm.study.evaluation.bootstrap import Estimate
from ldm.study.evaluation.measures import MEASURES, Weights, check_names
from ldm.study.search.trials import Direction

Better = Literal["higher", "lower"]
Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Goal:
    """A measure that is to become higher or lower."""

    metric: str
    better: Better

    @property
    def direction(self) -> Direction:
        """The same for Optuna."""
        return "maximize" if self.better == "higher" else "minimize"

    def gain(self, value: float) -> float:
        """A value or a difference turned so that more is better."""
        return value if self.better == "higher" else -value

    def verdict(self, estimate: Estimate) -> Verdict:
        """What an interval says of its difference: nothing where it holds zero."""
        if not estimate.leaves_out_zero:
            return "undecided"
        return "better" if self.gain(estimate.difference) > 0 else "worse"

    def __str__(self) -> str:
        return f"{self.metric}:{self.better}"


def read_goals(words: Sequence[str], weights: Weights) -> list[Goal]:
    """The goals that words such as `shape` and `energy:lower` ask for.

    Raises InputError for measures that there are not, or of which nobody says which way is better.
    """
    parts = [word.partition(":") for word in words]
    check_names([name for name, _, _ in parts], weights)
    goals: list[Goal] = []
    for name, colon, way in parts:
        better: Any = way if colon else MEASURES[name].better
        if better not in get_args(Better):
            raise InputError(
                f"--metrics {name}: say which way is better, {name}:higher or {name}:lower."
                if not colon
                else f"--metrics {name}:{way}: give {name}:higher or {name}:lower."
            )
        if name in [goal.metric for goal in goals]:
            raise InputError(f"--metrics has {name} twice: write it once.")
        goals.append(Goal(name, better))
    return goals


def usual_goals(text_encoder: nn.Module, weights: Weights) -> list[Goal]:
    """What is searched for unless told otherwise: agreement with the prompts.

    Raises InputError where nothing that tells it is at hand.
    """
    if isinstance(text_encoder, WordEmbedder):
        return read_goals(["alignment"], weights)
    if weights.clip is not None:
        return read_goals(["clip"], weights)
    raise InputError(
        "Without weights nothing says how good this model's pictures are: give --clip with a folder, or name "
        "what you are after, such as --metrics energy:higher."
    )
