"""Grids over settings: `b1=1.0:1.4:5 s1=0.2,0.6` as axes, and the settings of each of their cells."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ldm.config.freeu import FREEU_NAMES
from ldm.errors import InputError, refusing
from ldm.freeu import NEUTRAL, FreeUSettings
from ldm.generate import SAMPLERS, Sampling
from ldm.txt2img.jobs import Job

Value = int | float | str

SAMPLING_NAMES = ("steps", "scale", "sampler", "eta")
AXIS_NAMES = (*FREEU_NAMES, "seed", *SAMPLING_NAMES)

MOST_AXES = 3
MOST_VALUES = 10_000  # of one axis
MOST_CELLS = 400  # unless the user says that more are meant
HOPELESS = 100_000


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes along one side of a grid."""

    name: str
    values: tuple[Value, ...]

    def __str__(self) -> str:
        """As it can be written after --grid."""
        return f"{self.name}={','.join(map(repr_of, self.values))}"

    @property
    def labels(self) -> list[str]:
        """Each value under its setting's name, as `b1 = 1.2`."""
        return [f"{self.name} = {shown(value)}" for value in self.values]


@dataclass(frozen=True)
class Cell:
    """The settings of one picture of a grid; `freeu` is None for a model without FreeU."""

    seed: int
    sampling: Sampling
    freeu: FreeUSettings | None

    def having(self, values: dict[str, Value]) -> "Cell":
        """The same with other values of some settings. Raises InputError where they mean nothing."""
        seed = values.get("seed", self.seed)
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise InputError(f"The grid's seed is {seed!r}: give a whole number from 0 to 2**63 - 1.")
        sampling: dict[str, Any] = {name: values[name] for name in SAMPLING_NAMES if name in values}
        for name, value in sampling.items():
            if name == "sampler":
                if value not in SAMPLERS:
                    raise InputError(f"There is no sampler {value!r}: take one of {', '.join(SAMPLERS)}.")
            elif name == "steps":
                if type(value) is not int or value < 1:
                    raise InputError(f"The grid's steps are {value!r}: give a whole number from 1 up.")
            elif isinstance(value, str) or not math.isfinite(value):
                raise InputError(f"The grid's {name} is {value!r}: give a number.")
        factors: dict[str, Any] = {name: values[name] for name in FREEU_NAMES if name in values}
        freeu = self.freeu
        if factors:
            with refusing():
                freeu = replace(freeu or NEUTRAL, **factors)
        return Cell(seed, replace(self.sampling, **sampling), freeu)


@dataclass(frozen=True)
class CellJob(Job):
    """One picture of a grid: it has settings of its own."""

    cell: Cell


def parse_grid(words: Sequence[str], sure: bool = False) -> list[Axis]:
    """One to three axes: columns, rows and sheets.

    Raises InputError for what is none, and for very many pictures where the user is not `sure`.
    """
    axes = [parse_axis(word) for word in words]
    if not 1 <= len(axes) <= MOST_AXES:
        raise InputError(f"--grid has {len(axes)} settings: give 1 to {MOST_AXES}.")
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--grid has {name} twice: write all of its values in one, as {name}=1,2.")
    count = count_cells(axes)
    if count > HOPELESS:
        raise InputError(f"--grid has {count} pictures: {HOPELESS} are the most.")
    if count > MOST_CELLS and not sure:
        raise InputError(f"--grid has {count} pictures, more than {MOST_CELLS}: give --yes if all are meant.")
    return axes


def parse_axis(text: str) -> Axis:
    """`b1=1.0:1.4:5`, five values from 1.0 to 1.4, or `b1=1.0,1.2`, these values. Raises InputError."""
    name, equals, rest = text.partition("=")
    if name not in AXIS_NAMES:
        raise InputError(f"--grid {text!r}: there is no setting {name!r}, but {', '.join(AXIS_NAMES)}.")
    if not equals or not rest:
        raise InputError(f"--grid {text!r} has no values: give them as {name}=1.0:1.4:5 or {name}=1,1.2.")
    values = spaced(text, rest.split(":")) if ":" in rest else tuple(map(value_of, rest.split(",")))
    if "" in values:
        raise InputError(f"--grid {text!r} has a comma too many: give values as {name}=1,1.2.")
    if len(set(values)) < len(values):
        raise InputError(f"--grid {text!r} has the same value twice: take one out.")
    if len(values) > MOST_VALUES:
        raise InputError(f"--grid {name} has {len(values)} values: {MOST_VALUES} are the most.")
    return Axis(name, values)


def spaced(text: str, parts: Sequence[str]) -> tuple[Value, ...]:
    """Evenly spaced values from FIRST, LAST and COUNT, whole where the ends are. Raises InputError."""
    numbers = [value_of(part) for part in parts]
    how = f"--grid {text!r} is no range: give FIRST:LAST:COUNT, as in b1=1.0:1.4:5."
    if len(numbers) != 3 or any(isinstance(it, str) or not math.isfinite(it) for it in numbers):
        raise InputError(how)
    first, last, count = numbers
    if not isinstance(count, int) or not 2 <= count <= MOST_VALUES:
        raise InputError(f"{how} COUNT is {parts[2]}: give a whole number from 2 to {MOST_VALUES}.")
    assert not isinstance(first, str) and not isinstance(last, str)
    values: list[Value] = []
    for i in range(count):
        beyond, rest = divmod((last - first) * i, count - 1)
        whole = isinstance(first, int) and isinstance(last, int) and not rest
        values.append(first + int(beyond) if whole else round(first + (last - first) * i / (count - 1), 10))
    return tuple(values)


def value_of(text: str) -> Value:
    """A text as a whole number, a number or a word, whichever it is first."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def shown(value: Any) -> str:
    """A value as labels have it: 1.2, 0.0001, first."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def repr_of(value: Value) -> str:
    """A value as it is read again: 1.0, 12, first."""
    return value if isinstance(value, str) else repr(value)


def count_cells(axes: Sequence[Axis]) -> int:
    """How many pictures a grid has."""
    return math.prod(len(axis.values) for axis in axes)


def grid_jobs(axes: Sequence[Axis], prompt: str, plain: Cell) -> Iterator[CellJob]:
    """The picture of every cell, row after row and sheet after sheet; `plain` has all that no axis names.

    Raises InputError where values mean nothing or do not fit each other.
    """
    for values in product(*(axis.values for axis in reversed(axes))):
        cell = plain.having(dict(zip((axis.name for axis in reversed(axes)), values, strict=True)))
        yield CellJob(prompt, cell.seed, cell)
