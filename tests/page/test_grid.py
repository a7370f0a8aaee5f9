"""Grids: what they hold, and that their cells are txt2img's pictures."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldm.errors import InputError
from ldm.page.grid import draw_cells, markup, plan, read_axis
from ldm.page.settings import Settings
from ldm.page.studio import Studio
from ldm.txt2img.grid_sheets import read_grid
from ldm.txt2img.recipe import read_recipe


@pytest.fixture
def small(studio: Studio) -> Settings:
    return replace(studio.defaults(), steps=2, height=32, width=32)


def test_cells_are_txt2imgs_pictures(studio: Studio, small: Settings, txt2img):
    planned = plan(small, read_axis("b1", "1, 1.6"), read_axis("seed", "1:2:2"), studio)
    *_, done = draw_cells(studio, planned, threading.Event())
    assert [(cell.seed, cell.b1) for cell in done.cells] == [(1, 1.0), (1, 1.6), (2, 1.0), (2, 1.6)]
    for cell, path in zip(done.cells, done.files.values(), strict=True):
        [again] = txt2img("--seed", cell.seed, "--b1", cell.b1).pictures()
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(again)))


def test_the_sheet_is_txt2imgs(studio: Studio, small: Settings, txt2img):
    planned = plan(small, read_axis("b1", "1,1.6"), read_axis("s2", "1,0.2"), studio)
    *_, done = draw_cells(studio, planned, threading.Event())
    assert read_grid(done.sheet) == ["b1=1,1.6", "s2=1,0.2"]
    run = txt2img("--grid", "b1=1,1.6", "s2=1,0.2")
    [sheet] = run.folder.glob("grid-*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(done.sheet)), np.asarray(Image.open(sheet)))


def test_a_sheet_whose_first_cell_is_plain_makes_its_grid_again(studio: Studio, small: Settings, txt2img):
    axis = read_axis("strength", "0, 0.5, 1")
    planned = plan(replace(small, b1=1.5, stop=0.8), axis, read_axis("nothing", ""), studio)
    *_, done = draw_cells(studio, planned, threading.Event())
    assert read_recipe(done.files[0]).freeu is None
    again = txt2img("--from-image", done.sheet, defaults=["--device", "cpu"])
    [sheet] = again.folder.glob("grid-*.png")
    assert sheet.read_bytes() == done.sheet.read_bytes()
    for path, other in zip(done.files.values(), again.pictures(), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(other)))


def test_cells_come_one_after_the_other_and_a_stop_keeps_them(studio: Studio, small: Settings):
    planned = plan(small, read_axis("s2", "0.2,0.4,0.6"), read_axis("nothing", ""), studio)
    stopping = threading.Event()
    counts = []
    for grid in draw_cells(studio, planned, stopping):
        counts.append(len(grid.files))
        if counts[-1] == 2:
            stopping.set()
    assert counts == sorted(counts) and {*counts} == {0, 1, 2}


def test_every_cell_has_its_place_before_it_is_drawn(studio: Studio, small: Settings):
    planned = plan(small, read_axis("s1", "1, 0.5, 0"), read_axis("version", "1, 2"), studio)
    html = markup(planned, "")
    assert html.count('class="cell"') == 6 and "<img" not in html
    assert all(name in html for name in ("version = 1", "version = 2", "s1 = 1", "s1 = 0.5", "s1 = 0"))


@pytest.mark.parametrize(
    ("rows", "columns", "named"),
    [
        (("b1", ""), ("s1", "1"), "no values"),
        (("b1", "1"), ("b1", "2"), "vary b1"),
        (("b1", "1,x"), ("s1", "1"), "b1 is 'x'"),
        (("prompt", "a"), ("s1", "1"), "no setting 'prompt'"),
        (("b1", "1,2,3,4,5,6"), ("s1", "0,0.1,0.2,0.3,0.4"), "30 pictures; a grid has 25"),
        (("steps", "1,1000"), ("s1", "1"), "this page takes 1 to 200"),
        (("start", "0.9"), ("stop", "0.1"), "after its stop"),
    ],
)
def test_a_grid_that_cannot_be_drawn_says_why_before_it_begins(studio, small, rows, columns, named):
    with pytest.raises(InputError, match=named):
        plan(small, read_axis(*columns), read_axis(*rows), studio)
