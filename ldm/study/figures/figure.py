"""What a figure is made of, what comes of it, and the files it becomes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from numpy.typing import NDArray

from ldm.errors import InputError
from ldm.files import write_table, write_text, written_whole
from ldm.freeu import DecoderStage, FreeUSettings
from ldm.study.claims import Check
from ldm.study.watch import Kept
from ldm.txt2img.jobs import Job

Row = dict[str, str | int | float]
Variants = dict[str, FreeUSettings | None]  # None is the plain model


@dataclass(frozen=True)
class Setup:
    """What a figure's variants are made from."""

    freeu: FreeUSettings  # the config's
    stages: tuple[DecoderStage, ...]


@dataclass(frozen=True)
class Material:
    """What a figure is drawn from: for each variant what was kept of every pair, in the pairs' order."""

    pairs: Sequence[Job]
    stages: tuple[DecoderStage, ...]
    kept: dict[str, list[Kept]]

    def all(self, variant: str, name: str) -> NDArray[Any]:
        """One array of all pairs, (pairs, ...)."""
        return np.stack([kept[name] for kept in self.kept[variant]])


@dataclass(frozen=True)
class Drawing:
    """A drawn figure, the numbers in it, and what became of its claims."""

    sheet: matplotlib.figure.Figure
    rows: list[Row]
    checks: list[Check]


@dataclass(frozen=True)
class Figure:
    """One figure of the paper, by its number there (CVPR)."""

    number: int
    title: str
    caption: str
    variants: Callable[[Setup], Variants]
    draw: Callable[[Material], Drawing]
    watched: bool = False  # whether it looks at what happens on the way
    again: int | None = None  # the number under which the supplement shows it with more pictures

    @property
    def label(self) -> str:
        return str(self.number) if self.again is None else f"{self.number}/{self.again}"

    @property
    def stem(self) -> str:
        """How its files are called."""
        return f"figure{self.number:02}"


def save(
    figure: Figure, drawing: Drawing, variants: Variants, settings: dict[str, Any], folder: Path
) -> None:
    """Writes a figure as PNG and PDF, its numbers as CSV, its settings and the outcome of its checks as JSON.

    The JSON goes first and comes last, so that where it lies the others do. Raises InputError where the disk
    refuses.
    """
    remove(folder / f"{figure.stem}.json")
    # Without dates the same numbers give the same bytes.
    for kind, metadata in {"png": {}, "pdf": {"CreationDate": None}}.items():
        with written_whole(folder / f"{figure.stem}.{kind}") as file:
            drawing.sheet.savefig(file, format=kind, metadata=metadata)
    write_table(folder / f"{figure.stem}.csv", drawing.rows)
    record = {
        "figure": figure.label,
        "title": figure.title,
        "caption": figure.caption,
        "checks": [asdict(check) for check in drawing.checks],
        "variants": {name: None if freeu is None else asdict(freeu) for name, freeu in variants.items()},
        **settings,
    }
    write_text(folder / f"{figure.stem}.json", json.dumps(finite(record), indent=1) + "\n")


def remove(path: Path) -> None:
    """Takes a file away that is to be made anew. Raises InputError where the disk refuses."""
    try:
        path.unlink(missing_ok=True)
    except OSError as fault:
        raise InputError(f"{path} cannot be removed: {fault.strerror or fault}.") from None


def finite(value: Any) -> Any:
    """The same with None for what JSON has no number for: the ends of an interval of one pair."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
