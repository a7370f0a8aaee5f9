"""Labelled sheets: whole pictures, words that are all there, and even margins, whatever is shown."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from ldm.image_io import INK, PAPER, Picture
from ldm.txt2img.sheets import (
    CAPTION_LINES,
    LARGEST,
    SEPARATOR,
    Words,
    joined,
    labelled,
    shortened,
    tiled,
    wrapped,
)

FONT = ImageFont.load_default(17)
SIZES = [(64, 64), (128, 128), (512, 512), (768, 512), (512, 64), (64, 320)]
CAPTIONS = ["a cat", "a very detailed painting of a cat, " * 9, "x" * 300, "so many words " * 200]


def picture(height: int, width: int, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 200, (height, width, 3), np.uint8)


def place(sheet: Picture, one: Picture) -> tuple[int, int]:
    """Where a picture stands whole on a sheet, its upper left corner; it stands there once."""
    candidates = np.argwhere((sheet == one[0, 0]).all(-1))
    [found] = [
        (int(top), int(left))
        for top, left in candidates
        if np.array_equal(sheet[top : top + one.shape[0], left : left + one.shape[1]], one)
    ]
    return found


def margins(sheet: Picture) -> list[int]:
    """How much paper there is at the top, at the bottom, to the left and to the right."""
    written = (sheet != PAPER).any(-1)
    rows, columns = np.flatnonzero(written.any(1)), np.flatnonzero(written.any(0))
    return [rows[0], sheet.shape[0] - 1 - rows[-1], columns[0], sheet.shape[1] - 1 - columns[-1]]


@settings(max_examples=50)
@given(text=st.text(max_size=200), width=st.integers(20, 400))
def test_wrapped_lines_fit_and_keep_every_letter(text: str, width: int) -> None:
    lines = wrapped(text, FONT, width)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert all(FONT.getlength(line) <= width or len(line) == 1 for line in lines)
    words = text.split()
    if all(FONT.getlength(word) <= width for word in words):
        assert " ".join(lines).split() == words


@settings(max_examples=50)
@given(
    parts=st.lists(st.sampled_from(["seed 42", "guidance 7.5", "50 steps", "b1 = 1.2"]), max_size=12),
    width=st.integers(150, 600),
)
def test_small_print_is_put_into_as_few_lines_as_fit(parts: list[str], width: int) -> None:
    lines = joined(parts, FONT, width)
    assert SEPARATOR.join(lines) == SEPARATOR.join(parts)
    assert all(FONT.getlength(line) <= width for line in lines)
    for line, after in itertools.pairwise(lines):
        assert FONT.getlength(f"{line}{SEPARATOR}{after.split(SEPARATOR)[0]}") > width
    long = joined(["seed 42", "x" * 300], FONT, width)
    assert "".join(long) == f"seed 42{'x' * 300}" and all(FONT.getlength(line) <= width for line in long)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("caption", CAPTIONS, ids=["short", "long", "one word", "very long"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_picture_stands_whole_under_its_head_between_even_margins(
    count: int, size: tuple[int, int], caption: str
) -> None:
    height, width = size
    pictures = [picture(height, width, k) for k in range(count)]
    heads = [f"b1 = 1.{k}" for k in range(count)]
    sheet = tiled(pictures, heads, Words("stop = 0.5", caption, ["seed 42", "guidance 7.5"] * 4))
    columns = min(count, 3 if count > 5 else count)
    zoom = max(1, min(1600 // (columns * width), -(-384 // max(height, width))))
    places = [place(sheet, one.repeat(zoom, axis=0).repeat(zoom, axis=1)) for one in pictures]

    tops, lefts = sorted({top for top, _ in places}), sorted({left for _, left in places})
    assert (len(tops), len(lefts)) == (-(-count // columns), columns)
    gaps = {b - a - zoom * width for a, b in itertools.pairwise(lefts)}
    assert len(gaps) <= 1 and all(gap >= 4 for gap in gaps)

    # Over each picture are its words; the paper around is about the same on all sides.
    for top, left in places:
        over = sheet[top - 16 : top, left : left + zoom * width]
        assert np.abs(over.astype(int) - INK).sum(-1).min() < 120
    smallest, largest = min(margins(sheet)), max(margins(sheet))
    assert smallest >= 10
    if sheet.shape[1] > 470:  # else a narrow picture stands in the middle of a broader sheet
        assert largest - smallest <= 0.05 * max(sheet.shape) + 12


def lines_of_words(part: Picture) -> list[float]:
    """How light the darkest pixel of each line of words on a part of a sheet is, from INK, 0, to PAPER, 1."""
    written = np.flatnonzero((part != PAPER).any((1, 2)))
    lines = np.split(written, np.flatnonzero(np.diff(written) > 2) + 1)
    return [float((part[rows].min() - min(INK)) / (min(PAPER) - min(INK))) for rows in lines]


def test_heading_head_caption_and_small_print_can_be_read_in_this_order() -> None:
    one = picture(512, 512)
    words = Words("stop = 0.5", "a cat", ["seed 42", "guidance 7.5"])
    sheet = labelled([[one]], [["b1 = 1.2"]], words=words)
    top, _ = place(sheet, one)
    heading, head = lines_of_words(sheet[:top])
    caption, small_print = lines_of_words(sheet[top + 512 :])
    assert max(heading, head, caption) < 0.1 and 0.3 < small_print < 0.6


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_have_names_to_their_left_and_columns_have_heads_once(rows: int) -> None:
    pictures = [[picture(200, 160, 10 * i + k) for k in range(4)] for i in range(rows)]
    names = [f"s1 = 0.{i}" for i in range(rows)]
    sheet = labelled(pictures, [["b1 = 1", "b1 = 1.1", "b1 = 1.2", "b1 = 1.3"]], names)
    zoomed = [[one.repeat(2, axis=0).repeat(2, axis=1) for one in row] for row in pictures]
    places = [[place(sheet, one) for one in row] for row in zoomed]
    for row in places:
        assert len({top for top, _ in row}) == 1
        top, left = row[0]
        assert (sheet[top : top + 400, :left] != PAPER).any()
    for above, below in itertools.pairwise(places):
        between = sheet[above[0][0] + 400 : below[0][0]]
        assert (between == PAPER).all() and len(between) < 16


def test_a_narrow_picture_stands_in_the_middle_of_a_sheet_that_has_room_for_its_caption() -> None:
    one = picture(512, 100)
    sheet = labelled([[one]], [], words=Words(caption="a cat"))
    _, left = place(sheet, one)
    right = sheet.shape[1] - left - 100
    assert abs(left - right) <= 1 and 420 <= sheet.shape[1] < 520


def test_a_long_name_of_a_row_takes_no_more_room_than_a_picture() -> None:
    pictures = [picture(512, 400, k) for k in range(2)]
    sheet = labelled([pictures], [], ["a very detailed painting of a cat " * 4])
    top, left = place(sheet, pictures[0])
    assert 300 < left < 400 + 100
    written = np.flatnonzero((sheet[:, :left] != PAPER).any((1, 2)))
    assert (written[0] + written[-1]) / 2 == pytest.approx(top + 256, abs=5)  # in the middle of its row


def test_a_caption_without_end_is_cut_with_dots_and_the_sheet_stays_a_sheet() -> None:
    one = picture(512, 512)
    short = labelled([[one]], [["a"]], words=Words(caption="word " * 30))
    long = labelled([[one]], [["a"]], words=Words(caption="word " * 5000))
    line = (long.shape[0] - short.shape[0]) / (CAPTION_LINES - 3)
    assert 0 < line < 40


@pytest.mark.parametrize("unit", ["x", "so many words "])
def test_a_very_long_prompt_under_a_sheet_keeps_nobody_waiting(unit: str) -> None:
    one = picture(512, 512)
    began = time.process_time()

    def named(letters: int) -> np.ndarray:
        words = unit * (letters // len(unit))
        sheet = labelled([[one]], [["a"]], [words], Words(caption=words))
        assert time.process_time() - began < 5
        return sheet

    # Where time grows with the square of the length the first takes 22 s, and the last would take hours.
    expected = named(2000)
    assert np.array_equal(named(1_000_000), expected)


def test_of_a_caption_of_too_many_lines_the_last_that_is_shown_ends_in_dots() -> None:
    lines = [f"line {k}" for k in range(CAPTION_LINES)]
    assert shortened(lines, CAPTION_LINES) == lines
    assert shortened([*lines, "one more"], CAPTION_LINES) == [*lines[:-1], "line …"]


def test_a_huge_grid_is_shown_smaller() -> None:
    one = picture(1024, 1024)
    sheet = labelled([[one] * 12] * 12, [[f"b1 = {k}" for k in range(12)]])
    assert 0.9 * LARGEST < sheet.shape[0] * sheet.shape[1] < 1.2 * LARGEST


def test_five_pictures_stand_in_one_row_and_six_in_two() -> None:
    five, six = (tiled([picture(512, 512)] * count, [str(k) for k in range(count)]) for count in (5, 6))
    assert five.shape[1] > 5 * 512 > five.shape[0] * 3 and 3 * 512 < six.shape[1] < 4 * 512


def test_a_name_of_a_row_that_is_longer_than_its_picture_is_high_is_cut() -> None:
    pictures = [[picture(384, 384, k)] for k in range(2)]
    sheet = labelled(pictures, [], [CAPTIONS[-1]] * 2)
    (first, left), (second, _) = (place(sheet, one) for [one] in pictures)
    named = (sheet[:, :left] != PAPER).any((1, 2))
    assert named[first : first + 384].any() and named[second : second + 384].any()
    assert not named[:first].any() and not named[first + 384 : second].any()
    assert not named[second + 384 :].any()


def test_sixty_pictures_make_a_sheet_of_about_as_many_rows_as_columns() -> None:
    sheet = tiled([picture(64, 64)] * 60, [f"seed = {k}" for k in range(60)])
    assert 0.5 < sheet.shape[0] / sheet.shape[1] < 2
