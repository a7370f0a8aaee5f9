"""The paper's figures, by number. Importing this needs matplotlib."""

from collections.abc import Iterable

from ldm.errors import InputError
from ldm.study.figures import choices, features, process, sweeps
from ldm.study.figures.figure import Figure

FIGURES: dict[int, Figure] = {
    figure.number: figure
    for figure in sorted(
        [*process.FIGURES, *sweeps.FIGURES, *features.FIGURES, *choices.FIGURES], key=lambda it: it.number
    )
}


def find_figures(numbers: Iterable[str]) -> list[Figure]:
    """The figures of these numbers, those of the supplement included. Raises InputError for others."""
    known = {number: figure for figure in FIGURES.values() for number in figure.label.split("/")}
    found: dict[int, Figure] = {}
    for number in numbers:
        if number not in known:
            labels = ", ".join(figure.label for figure in FIGURES.values())
            raise InputError(f"There is no figure {number} here: the figures are {labels}.")
        found[known[number].number] = known[number]
    return list(found.values())
