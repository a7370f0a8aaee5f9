"""What the figures draw alike: curves with their bands, axes, grids of pictures."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, FigureBase, SubFigure
from numpy.typing import NDArray

from ldm.plots import PAGE, STYLE, new_sheet
from ldm.study.claims import half_width

MAPS: ListedColormap = matplotlib.colormaps["cividis"]  # type: ignore[assignment]


def new_halves(upper: float, lower: float) -> tuple[Figure, SubFigure, SubFigure]:
    """A page-wide empty figure of two parts, one over the other, heights in inches; with these parts."""
    sheet = new_sheet(PAGE, upper + lower)
    parts: Any = sheet.subfigures(2, 1, height_ratios=[upper, lower])
    return sheet, parts[0], parts[1]


def draw_curves(
    axes: Axes,
    frequencies: NDArray[Any],
    curves: NDArray[Any],
    label: str,
    colour: Any,
    dashes: Any = "-",
    marker: str = "",
    band: bool = True,
) -> None:
    """The mean of curves (pairs, n), and as a band its 95 % interval where there are several."""
    mean, half = curves.mean(0), half_width(curves)
    axes.plot(frequencies, mean, color=colour, linestyle=dashes, label=label, marker=marker, markersize=2.5)
    if band and len(curves) > 1:
        axes.fill_between(frequencies, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)


def frequency_axis(axes: Axes, label: bool = True) -> None:
    """Frequencies from 0 to pi, in quarters of pi."""
    axes.set_xlim(0, np.pi)
    axes.set_xticks(np.linspace(0, np.pi, 5), ["0", "π/4", "π/2", "3π/4", "π"])
    if label:
        axes.set_xlabel("frequency (radians a pixel)")


def amplitude_axis(axes: Axes) -> None:
    axes.set_ylabel("relative log amplitude (nats)")


def legend_above(sheet: FigureBase, axes: Axes, columns: int) -> None:
    """One legend for all panels, over them and so over no curve."""
    handles, labels = axes.get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside upper center", ncols=columns)


@dataclass(frozen=True)
class Grid:
    """Pictures (H, W, 3) of bytes, maps (H, W) or bands (H, W, 3) from 0 to 1, in named rows and columns."""

    pictures: Sequence[Sequence[NDArray[Any]]]
    row_names: Sequence[str]
    column_names: Sequence[str]

    @property
    def cell(self) -> float:
        """The width of a picture in inches, where the grid is as wide as a page."""
        letters = max(len(line) for name in self.row_names for line in name.split("\n"))
        return (PAGE - 0.3 - 0.052 * letters) / len(self.column_names)

    @property
    def height(self) -> float:
        """In inches, where the grid is as wide as a page."""
        of_row, of_column = (
            max(name.count("\n") + 1 for name in names) for names in (self.row_names, self.column_names)
        )
        first = self.pictures[0][0]
        row = max(self.cell * first.shape[0] / first.shape[1], 0.12 * of_row)  # wide pictures are low
        return len(self.pictures) * row + 0.12 + 0.13 * of_column

    def on_a_page(self) -> Figure:
        """A sheet as wide as a page with the grid and nothing else."""
        sheet = new_sheet(PAGE, self.height)
        self.draw(sheet)
        return sheet

    def draw(self, sheet: FigureBase) -> NDArray[Any]:
        """Draws the grid into a sheet or a part of one; returns its axes."""
        grid = sheet.subplots(len(self.pictures), len(self.column_names), squeeze=False)
        room = self.cell * STYLE["savefig.dpi"]  # pixels
        for axes_row, row, name in zip(grid, self.pictures, self.row_names, strict=True):
            for axes, picture in zip(axes_row, row, strict=True):
                # Pixels left out of a large picture would make detail of their own. Maps and bands are not
                # smoothed: there each square is a number, and of high frequencies nothing would be left.
                shrunk = picture.dtype == np.uint8 and picture.shape[1] > room
                how = "hanning" if shrunk else "nearest"
                axes.imshow(picture, cmap=MAPS, vmin=0, vmax=1, interpolation=how)
                axes.set(xticks=[], yticks=[])
                axes.grid(False)
                axes.spines[:].set_visible(False)
            axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=4, fontsize=6.5)
        long = any("\n" in name for name in self.column_names)
        for axes, name in zip(grid[0], self.column_names, strict=True):
            axes.set_title(name, loc="center", fontsize=6.5 if long else None)
        return grid


def in_lines(text: str, width: int = 20, lines: int = 6) -> str:
    """A prompt in lines short enough to stand beside pictures, none of it a formula to matplotlib."""
    wrapped = "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))
    return wrapped.replace("$", r"\$")
