"""Figures as they lie on paper: nothing runs into anything else or over the edge, and pixels are true."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from ldm.freeu import DecoderStage
from ldm.plots import PAGE, STYLE, new_sheet, style
from ldm.study.figures import FIGURES
from ldm.study.figures.figure import Material
from ldm.study.figures.style import Grid
from ldm.txt2img.jobs import Job


def on_paper(grid: Grid) -> tuple[Figure, np.ndarray, np.ndarray]:
    """A grid on a sheet of its own, its axes, and the sheet's pixels as they are saved, (H, W, 3)."""
    with style():
        sheet = new_sheet(PAGE, grid.height)
        axes = grid.draw(sheet)
        sheet.set_dpi(STYLE["savefig.dpi"])
        canvas = FigureCanvasAgg(sheet)
        canvas.draw()
    return sheet, axes, np.asarray(canvas.buffer_rgba())[..., :3]


def inside(axes: Axes, pixels: np.ndarray) -> np.ndarray:
    """The pixels of a sheet within axes, but for their border."""
    x0, y0, x1, y1 = (round(edge) for edge in axes.get_window_extent().extents)
    return pixels[len(pixels) - y1 + 3 : len(pixels) - y0 - 3, x0 + 3 : x1 - 3]


@pytest.mark.parametrize(("height", "width", "lines"), [(64, 64, 2), (36, 64, 7), (32, 96, 7)])
def test_what_stands_beside_pictures_is_whole_and_each_row_s_its_own(height, width, lines):
    rows, columns = 3, 7
    name = "\n".join(["a large yellow star"] * lines)
    pictures = [[np.zeros((height, width, 3), np.uint8)] * columns] * rows
    sheet, axes, _ = on_paper(Grid(pictures, [name] * rows, ["b = 1"] * columns))
    boxes = [one.yaxis.label.get_window_extent() for one in axes[:, 0]]
    assert all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))
    assert boxes[-1].y0 >= 0 and boxes[0].y1 <= sheet.bbox.height and boxes[0].x0 >= 0


def test_the_colour_bar_of_one_pair_s_maps_says_all_it_has_to_say():
    maps = np.arange(32, dtype=np.float32).reshape(4, 8)
    kept = {**{f"mean.late.{i}": maps for i in range(4)}, "picture": np.zeros((32, 64, 3), np.uint8)}
    stages = tuple(DecoderStage(8, 8, factor) for factor in (8, 4, 2, 1))  # as in Stable Diffusion
    with style():
        sheet = FIGURES[8].draw(Material([Job("a star", 1)], stages, {"off": [kept]})).sheet
        FigureCanvasAgg(sheet).draw()
    [label] = [text for text in sheet.findobj(Text) if text.get_text() == "channel mean"]
    ticks = [
        text for text in sheet.findobj(Text) if text.get_text() in ("low", "high") and text.get_visible()
    ]
    boxes = [text.get_window_extent() for text in (label, *ticks)]
    assert len(ticks) == 2 and all(box.y0 >= 0 and box.y1 <= sheet.bbox.height for box in boxes)
    assert not any(boxes[0].overlaps(box) for box in boxes[1:])


def test_a_large_picture_is_shrunk_without_details_of_its_own():
    fine = np.repeat(255 * (np.indices((512, 512)).sum(0) % 2)[..., None], 3, axis=-1).astype(np.uint8)
    _, axes, pixels = on_paper(Grid([[fine] * 4], ["a star"], ["b = 1"] * 4))
    drawn = inside(axes[0, 0], pixels)
    assert drawn.mean() == pytest.approx(127.5, abs=2) and drawn.std() < 10  # grey, no other pattern


def test_maps_and_bands_are_drawn_with_the_numbers_they_have():
    band = np.random.default_rng(0).integers(0, 2, (512, 512, 3)).astype(float)
    _, axes, pixels = on_paper(Grid([[band] * 4], ["a star"], ["high"] * 4))
    assert set(np.unique(inside(axes[0, 0], pixels))) == {0, 255}
