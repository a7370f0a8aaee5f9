"""A grid: one or two settings against each other, a picture with FreeU for each pair of values."""

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from html import escape
from itertools import product
from pathlib import Path

from ldm.errors import InputError
from ldm.image_io import read_picture
from ldm.page.pair import Drawn, draw
from ldm.page.settings import Settings
from ldm.page.stage import COARSE, address
from ldm.page.studio import Studio
from ldm.txt2img.grid_sheets import GridSheets
from ldm.txt2img.settings_grid import AXIS_NAMES, Axis, parse_axis

NONE = "nothing"
CHOICES = (*AXIS_NAMES, NONE)


@dataclass(frozen=True)
class Grid:
    """A grid's cells, row by row, and the files of those that are drawn; `sheet` shows all of them."""

    across: Axis | None
    down: Axis | None
    cells: list[Settings]
    files: dict[int, Path] = field(default_factory=dict)
    sheet: Path | None = None

    @property
    def axes(self) -> list[Axis]:
        """Those that there are, as sheets have them: from left to right, then downwards."""
        return [axis for axis in (self.across, self.down) if axis is not None]


def read_axis(name: str, text: str) -> Axis | None:
    """An axis as a visitor writes its values: `1, 1.2, 1.4` or `1:1.4:5`. Raises InputError."""
    if name == NONE:
        return None
    try:
        return parse_axis(f"{name}={','.join(part.strip() for part in text.split(','))}")
    except InputError as fault:
        raise InputError(str(fault).replace("--grid ", "The grid's ")) from None


def plan(base: Settings, across: Axis | None, down: Axis | None, studio: Studio) -> Grid:
    """A grid with all of its cells, checked before any is drawn. Raises InputError."""
    if across and down and across.name == down.name:
        raise InputError(f"Both sides of the grid vary {across.name}: choose two settings.")
    rows, columns = (axis.values if axis else (None,) for axis in (down, across))
    count = len(rows) * len(columns)
    if count > studio.limits.cells:
        raise InputError(f"That is {count} pictures; a grid has {studio.limits.cells} at most.")
    cells = []
    for values in product(rows, columns):
        given = {axis.name: value for axis, value in zip((down, across), values, strict=True) if axis}
        cells.append(Settings.read(asdict(replace(base, n_samples=1)) | given))
        studio.check(cells[-1])
    return Grid(across, down, cells)


def draw_cells(studio: Studio, grid: Grid, stopping: threading.Event) -> Iterator[Grid]:
    """Draws the cells one after the other, and then their sheet; yields the grid after every step.

    Once `stopping` is set, the cell that is being drawn is given up.
    """
    folder = studio.new_folder()
    for i, cell in enumerate(grid.cells):
        words, sides = (cell.prompt, cell.negative_prompt), {"freeu": studio.freeu(cell)}
        for news in draw(studio.model, *words, cell.seed, cell.sampling, sides, threading.Event()):
            if stopping.is_set():
                return
            if isinstance(news, Drawn):
                path = folder / f"cell-{i + 1}.png"
                studio.recipe(cell, "freeu").save(path, news.pictures["freeu"])
                grid = replace(grid, files=grid.files | {i: path})
            yield grid
    if grid.axes:
        sheet = folder / "grid.png"
        pictures, first = [read_picture(path) for path in grid.files.values()], grid.cells[0]
        sheets = GridSheets(grid.axes, studio.recipe(first, "freeu"), studio.freeu(first))
        sheets.save(sheet, 0, pictures)
        yield replace(grid, sheet=sheet)


def markup(grid: Grid, message: str) -> str:
    """The grid as HTML; each cell has its place from the beginning."""
    heads = grid.across.labels if grid.across else [""]
    sides = grid.down.labels if grid.down else [""]
    head = "".join(f'<div class="name" role="columnheader">{escape(name)}</div>' for name in heads)
    rows = []
    for r, side in enumerate(sides):
        cells = "".join(cell(grid, r * len(heads) + c, [side, name]) for c, name in enumerate(heads))
        name = f'<div class="name row" role="rowheader">{escape(side)}</div>'
        rows.append(f'<div role="row" class="line">{name}{cells}</div>')
    first = grid.cells[0]
    small = " small" if max(first.width, first.height) <= COARSE else ""
    lone = "" if grid.down else " lone"
    link = ""
    if grid.sheet:
        link = f' <a href="{escape(address(grid.sheet))}" download="grid.png">All as one picture, PNG ↓</a>'
    return (
        f'<div class="grid{small}{lone}" role="table" aria-label="Pictures by settings" '
        f'style="--columns: {len(heads)}; --ratio: {first.width} / {first.height}">'
        f'<div role="row" class="line"><div class="name row"></div>{head}</div>{"".join(rows)}</div>'
        f'<p class="status" role="status">{escape(message)}{link}</p>'
    )


def cell(grid: Grid, i: int, names: list[str]) -> str:
    """The place of cell i, and its picture once it is drawn."""
    path = grid.files.get(i)
    if path is None:
        return '<div class="cell" role="cell"></div>'
    what = escape(", ".join(name for name in names if name) or "the picture")
    return (
        f'<a class="cell" role="cell" href="{escape(address(path))}" download="{escape(path.name)}" '
        f'title="Download {what}"><img src="{escape(address(path))}" alt="{what}"></a>'
    )
