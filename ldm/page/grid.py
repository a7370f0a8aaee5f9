"""A grid: one or two settings against each other, a picture with FreeU for each pair of values."""

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path

from ldm.errors import InputError
from ldm.image_io import save_png
from ldm.page.pair import Drawn, draw
from ldm.page.settings import TITLES, Settings
from ldm.page.stage import address
from ldm.page.studio import Studio

# What may vary; the others would change the pictures' shape, or are no numbers.
VARIED = (
    "b1",
    "b2",
    "s1",
    "s2",
    "version",
    "strength",
    "start",
    "stop",
    "threshold",
    "scale",
    "steps",
    "seed",
)
NONE = "nothing"


@dataclass(frozen=True)
class Axis:
    """One setting and its values."""

    name: str
    values: tuple[str, ...]

    @classmethod
    def read(cls, name: str, text: str) -> "Axis":
        """An axis as a visitor writes it: `1, 1.2, 1.4`. Raises InputError."""
        if name == NONE:
            return cls(NONE, ("",))
        if name not in VARIED:
            raise InputError(f"A grid varies one of {', '.join(VARIED)}, not {name!r:.40}.")
        values = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if not values:
            raise InputError(f"There are no values for {TITLES[name]}: write them as 1, 1.2, 1.4.")
        return cls(name, values)

    def label(self, value: str) -> str:
        return "" if self.name == NONE else f"{TITLES[self.name]} {value}"


@dataclass(frozen=True)
class Grid:
    """A grid's settings: those of the cell in `row` r and `column` c, and what is drawn already."""

    rows: Axis
    columns: Axis
    cells: list[Settings]
    files: dict[int, Path] = field(default_factory=dict)

    @classmethod
    def plan(cls, base: Settings, rows: Axis, columns: Axis, studio: Studio) -> "Grid":
        """All cells, row by row, checked before any is drawn. Raises InputError."""
        count = len(rows.values) * len(columns.values)
        if count > studio.limits.cells:
            raise InputError(f"That is {count} pictures; a grid has {studio.limits.cells} at most.")
        if rows.name == columns.name != NONE:
            raise InputError(f"Both axes vary {TITLES[rows.name]}: choose two settings.")
        cells = []
        for down in rows.values:
            for across in columns.values:
                given = {rows.name: down, columns.name: across}
                given.pop(NONE, None)
                cells.append(Settings.read(asdict(replace(base, n_samples=1)) | given))
                studio.check(cells[-1])
        return cls(rows, columns, cells)


def draw_cells(studio: Studio, grid: Grid, stopping: threading.Event) -> Iterator[Grid]:
    """Draws the cells one after the other; yields the grid after every step, with what is on disk by then."""
    folder = studio.new_folder()
    for i, cell in enumerate(grid.cells):
        sides = {"freeu": studio.freeu(cell)}
        for news in draw(
            studio.model,
            cell.prompt,
            cell.negative_prompt,
            cell.seed,
            cell.sampling,
            sides,
            threading.Event(),
        ):
            if stopping.is_set():
                return
            if isinstance(news, Drawn):
                path = folder / f"cell-{i + 1}.png"
                recipe = studio.recipe(cell, "freeu")
                save_png(path, news.pictures["freeu"], recipe.parameters(), asdict(recipe))
                grid = replace(grid, files=grid.files | {i: path})
            yield grid


def markup(grid: Grid, message: str) -> str:
    """The grid as HTML; each cell has its place from the beginning."""
    columns = len(grid.columns.values)
    head = "".join(
        f'<div class="name" role="columnheader">{escape(grid.columns.label(value))}</div>'
        for value in grid.columns.values
    )
    rows = []
    for r, value in enumerate(grid.rows.values):
        name = f'<div class="name row" role="rowheader">{escape(grid.rows.label(value))}</div>'
        cells = "".join(cell(grid, r * columns + c) for c in range(columns))
        rows.append(f'<div role="row" class="line">{name}{cells}</div>')
    first = grid.cells[0]
    small = " small" if max(first.width, first.height) <= 256 else ""
    lone = " lone" if grid.rows.name == NONE else ""
    return (
        f'<div class="grid{small}{lone}" role="table" aria-label="Pictures by settings" '
        f'style="--columns: {columns}; --ratio: {first.width} / {first.height}">'
        f'<div role="row" class="line"><div class="name row"></div>{head}</div>{"".join(rows)}</div>'
        f'<p class="status" role="status">{escape(message)}</p>'
    )


def cell(grid: Grid, i: int) -> str:
    path = grid.files.get(i)
    if path is None:
        return '<div class="cell" role="cell"></div>'
    settings = grid.cells[i]
    axes = [axis for axis in (grid.rows, grid.columns) if axis.name != NONE]
    name = ", ".join(axis.label(str(getattr(settings, axis.name))) for axis in axes)
    what = escape(name or "the picture")
    return (
        f'<a class="cell" role="cell" href="{escape(address(path))}" download="{escape(path.name)}" '
        f'title="Download {what}"><img src="{escape(address(path))}" alt="{what}"></a>'
    )
