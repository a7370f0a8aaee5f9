"""Labelled sheets: pictures in rows and columns with their settings' names, to be posted as they are."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm.image_io import INK, PAPER, Picture

FAINT = (118, 118, 124)
WIDE = 1600  # pixels across which small pictures are enlarged
SMALL = 384  # pixels of a side beyond which a picture is not enlarged
LARGEST = 50_000_000  # pixels of a sheet's pictures; what has more is shown smaller
NARROWEST = 420  # pixels across, so that a caption has room
CAPTION_LINES = 6  # of the longest prompts; pictures carry all of it
SEPARATOR = " · "

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Words:
    """What stands on a sheet: over it, under it, and under that in small type."""

    heading: str = ""
    caption: str = ""
    small_print: Sequence[str] = ()  # parts that a line is broken between


def labelled(
    pictures: Sequence[Sequence[Picture]],
    heads: Sequence[Sequence[str]],
    sides: Sequence[str] = (),
    words: Words = Words(),
) -> Picture:
    """Rows of pictures, those of row i under its `heads[i]`, or close together where it has none.

    `sides` are the rows' names, to their left. Small pictures are enlarged by whole factors, and the pictures
    of a huge sheet are made smaller; all are shown in cells that the largest fills.
    """
    columns = max(map(len, pictures))
    height, width = (max(picture.shape[axis] for row in pictures for picture in row) for axis in (0, 1))
    zoom = magnification(height, width, len(pictures), columns)
    height, width = max(1, round(zoom * height)), max(1, round(zoom * width))

    # Type that can still be read where the sheet is shown small, and that fits over a picture.
    size = max(13, min(60, width // 8, max(17, columns * width // 80)))
    font, small = ImageFont.load_default(size), ImageFont.load_default(round(0.8 * size))
    margin, gap, line = round(1.2 * size), max(4, size // 3), round(1.4 * size)
    head_lines = [[wrapped(head, font, width) for head in row] for row in heads]
    head_rows = [line * max(map(len, row)) + gap * (i > 0) for i, row in enumerate(head_lines)]
    beside, most = max(width, 6 * size), max(1, height // line)
    side_lines = [cut(side, font, beside, most) for side in sides]
    side = gap + max((ceil_length(font, text) for lines in side_lines for text in lines), default=-gap)

    block = side + columns * width + (columns - 1) * gap
    total = max(block, NARROWEST) + 2 * margin
    left = (total - block) // 2 + side
    text_width = total - 2 * margin
    heading = wrapped(words.heading, font, text_width) if words.heading else []
    caption = cut(words.caption, font, text_width, CAPTION_LINES) if words.caption else []
    print_lines = joined(words.small_print, small, text_width)
    small_line = round(1.4 * small_size(small))
    above = len(heading) * line + gap * bool(heading)
    body = sum(head_rows) + len(pictures) * height + (len(pictures) - 1) * gap
    below = len(caption) * line + len(print_lines) * small_line + gap * (bool(caption) + bool(print_lines))
    sheet = Image.new("RGB", (total, 2 * margin + above + body + below), PAPER)
    draw = ImageDraw.Draw(sheet)

    def write(lines: Sequence[str], x: float, y: float, anchor: str = "lm") -> None:
        """Lines one under the other; y is the middle of the first."""
        for k, text in enumerate(lines):
            draw.text((x, y + k * line), text, INK, font, anchor=anchor)

    write(heading, margin, margin + line / 2)
    top = margin + above
    for i, row in enumerate(pictures):
        for j, lines in enumerate(head_lines[i] if i < len(head_lines) else []):
            # Short heads stand right over their pictures.
            write(lines, left + j * (width + gap), top + head_rows[i] - (len(lines) - 0.5) * line)
        top += head_rows[i] if i < len(head_rows) else 0
        for j, picture in enumerate(row):
            sheet.paste(zoomed(picture, zoom), (left + j * (width + gap), top))
        if i < len(side_lines):
            first = top + height / 2 - (len(side_lines[i]) - 1) * line / 2
            write(side_lines[i], left - gap, first, anchor="rm")
        top += height + gap
    write(caption, margin, top + line / 2)
    top += len(caption) * line + gap * bool(caption)
    for text in print_lines:
        draw.text((margin, top + small_line / 2), text, FAINT, small, anchor="lm")
        top += small_line
    return np.asarray(sheet)


def tiled(pictures: Sequence[Picture], heads: Sequence[str], words: Words = Words()) -> Picture:
    """Pictures in about as many rows as columns, or in one row where they are few, each under its head."""
    columns = len(pictures) if len(pictures) <= 5 else math.ceil(math.sqrt(len(pictures)))
    starts = range(0, len(pictures), columns)
    return labelled(
        [pictures[start : start + columns] for start in starts],
        [heads[start : start + columns] for start in starts],
        words=words,
    )


def magnification(height: int, width: int, rows: int, columns: int) -> float:
    """By how much pictures of these sides are enlarged: a whole factor, or less than one."""
    pixels = rows * columns * height * width
    if pixels > LARGEST:
        return math.sqrt(LARGEST / pixels)
    return max(1, min(WIDE // (columns * width), math.ceil(SMALL / max(height, width))))


def zoomed(picture: Picture, zoom: float) -> Image.Image:
    """A picture enlarged to sharp squares, or made smaller smoothly."""
    image = Image.fromarray(picture)
    size = (max(1, round(zoom * image.width)), max(1, round(zoom * image.height)))
    way = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.LANCZOS
    return image if zoom == 1 else image.resize(size, way)


def ceil_length(font: Font, text: str) -> int:
    """The pixels that a text is wide."""
    return math.ceil(font.getlength(text))


def small_size(font: Font) -> float:
    return font.size if isinstance(font, ImageFont.FreeTypeFont) else 11


def cut(text: str, font: Font, width: int, most: int) -> list[str]:
    """A text in at most so many lines of `width` pixels."""
    # No letter is narrower than a pixel.
    return shortened(wrapped(text[: most * width], font, width), most)


def shortened(lines: list[str], most: int) -> list[str]:
    """At most so many lines, the last of them then ending in dots."""
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][:-2]} …"]


def joined(parts: Sequence[str], font: Font, width: int) -> list[str]:
    """Parts put into lines of `width` pixels, broken between the parts, or within one that is too long."""
    lines: list[str] = []
    for part in parts:
        if lines and font.getlength(longer := lines[-1] + SEPARATOR + part) <= width:
            lines[-1] = longer
        else:
            lines += wrapped(part, font, width)
    return lines


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """The text in lines of `width` pixels at most, broken between words, or in one that is too wide alone."""
    lines = [""]
    for word in text.split():
        line = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(line) > width:
            lines.append("")
            line = word
        while len(line) > 1 and font.getlength(line) > width:
            end = fitting(line, font, width)
            lines[-1:] = [line[:end], ""]
            line = line[end:]
        lines[-1] = line
    return lines


def fitting(line: str, font: Font, width: int) -> int:
    """How many letters of a line too long for `width` pixels fit into it, or one."""
    ends, most = range(1, len(line)), float(width)
    return max(1, bisect.bisect_right(ends, most, key=lambda end: font.getlength(line[:end])))
