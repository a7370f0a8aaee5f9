"""What a search may change: settings of FreeU, each with the range or the values that are tried."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ldm.config.freeu import FACTORS, FREEU_NAMES
from ldm.errors import InputError, refusing
from ldm.freeu import FreeUSettings
from ldm.txt2img.settings_grid import Value, shown, value_of

# What is tried of a setting that is named without values. The factors' ranges hold all published ones.
USUAL = {
    **dict.fromkeys(("b1", "b2"), "0.8:1.6"),
    **dict.fromkeys(("s1", "s2"), "0:1.4"),
    "version": "1,2",
    "threshold": "1,2,4",
    "match": "channels,resolution",
    "channels": "first,second,alternate,all",
    "strength": "0:1",
    "start": "0:0.4",
    "stop": "0.4:1",
    "ramp": "0:0.5",
}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones where both ends are meant so."""

    low: float
    high: float
    whole: bool

    def holds(self, value: Value) -> bool:
        return not isinstance(value, str) and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Value, Value]:
        return self.low, self.high

    @property
    def distribution(self) -> BaseDistribution:
        if self.whole:
            return IntDistribution(int(self.low), int(self.high))
        return FloatDistribution(float(self.low), float(self.high))

    def __str__(self) -> str:
        return f"{shown(self.low)}:{shown(self.high)}"


@dataclass(frozen=True)
class Choice:
    """These values and no others."""

    values: tuple[Value, ...]

    def holds(self, value: Value) -> bool:
        return value in self.values

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.values

    @property
    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution(self.values)

    def __str__(self) -> str:
        return ",".join(map(shown, self.values))


@dataclass(frozen=True)
class Space:
    """The settings that are searched, by name; all others are as in `base`."""

    base: FreeUSettings
    searched: Mapping[str, Range | Choice]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The same for Optuna."""
        return {name: kind.distribution for name, kind in self.searched.items()}

    def settings(self, params: Mapping[str, Any]) -> FreeUSettings:
        """FreeU with the values of a trial."""
        return replace(self.base, **params)

    def params_of(self, freeu: FreeUSettings) -> dict[str, Value] | None:
        """The values with which a trial has these settings, None where the space does not reach them."""
        params = {name: getattr(freeu, name) for name in self.searched}
        inside = all(kind.holds(params[name]) for name, kind in self.searched.items())
        return params if inside and replace(self.base, **params) == freeu else None

    def __str__(self) -> str:
        return " ".join(f"{name}={kind}" for name, kind in self.searched.items())


def read_space(words: Sequence[str] | None, base: FreeUSettings) -> Space:
    """The space that words such as `b1=1:1.4`, `version=1,2` and `stop` ask for; by default all four factors.

    Raises InputError for settings that there are not, and for values that mean nothing or do not fit each
    other.
    """
    searched: dict[str, Range | Choice] = {}
    throughout: dict[str, Any] = {"start": 0.0, "stop": 1.0}
    for word in words or FACTORS:
        name, equals, text = word.partition("=")
        if name not in FREEU_NAMES:
            raise InputError(
                f"--space {word!r}: FreeU has no setting {name!r}, but {', '.join(FREEU_NAMES)}."
            )
        if name in searched:
            raise InputError(f"--space has {name} twice: write it once.")
        searched[name] = read_values(word, name, text if equals else USUAL[name])
        for value in searched[name].ends:
            with refusing(f"--space {word!r}: "):
                replace(base, **(throughout | {name: value}))

    ends: dict[str, Any] = {
        name: searched[name].ends if name in searched else [getattr(base, name)] for name in throughout
    }
    latest, earliest = max(ends["start"]), min(ends["stop"])
    if latest > earliest:
        raise InputError(
            f"--space lets FreeU start at {latest:g}, above its stop at {earliest:g}: "
            f"give values of stop from {latest:g} up, or of start up to {earliest:g}."
        )
    return Space(base, searched)


def read_values(word: str, name: str, text: str) -> Range | Choice:
    """The range or the values of one setting. Raises InputError."""
    how = f"give it as {name}={USUAL[name]}, a range as 1:1.4 or values as 1,1.2."
    values = [value_of(part) for part in text.replace(":", ",").split(",")]
    if "" in values:
        raise InputError(f"--space {word!r} is malformed: {how}")
    if ":" not in text:
        if len(set(values)) < len(values):
            raise InputError(f"--space {word!r} has the same value twice: take one out.")
        return Choice(tuple(values))
    low, high = values if len(values) == 2 and "," not in text else ("", "")
    if isinstance(low, str) or isinstance(high, str) or not low < high:
        raise InputError(f"--space {word!r} is no range from a lower to a higher number: {how}")
    return Range(low, high, whole=name in ("version", "threshold"))
