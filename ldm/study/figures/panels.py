"""Parts that several figures have: a grid of variants' pictures, and their spectra."""

from collections.abc import Mapping
from itertools import cycle
from typing import Any

from matplotlib.figure import FigureBase

from ldm.plots import COLOURS, DASHES
from ldm.study.figures.figure import Material, Row
from ldm.study.figures.measures import mean_rows, picture_curves, picture_frequencies
from ldm.study.figures.style import (
    Grid,
    amplitude_axis,
    draw_curves,
    frequency_axis,
    in_lines,
    legend_above,
)

SPECTRA_HEIGHT = 2.5  # inches
SHOWN, SHOWN_ACROSS = 3, 4  # pairs with pictures, where a row is one and where a column is


def variant_grid(material: Material, names: Mapping[str, str]) -> Grid:
    """The pictures of the variants in `names`, one a column under its name; few of them one a row."""
    across = len(names) < SHOWN_ACROSS
    shown = range(min(SHOWN_ACROSS if across else SHOWN, len(material.pairs)))
    prompts = [in_lines(material.pairs[p].prompt, 26 if across else 20) for p in shown]
    pictures = {variant: [material.kept[variant][p]["picture"] for p in shown] for variant in names}
    if across:
        return Grid([*pictures.values()], [*names.values()], prompts)
    return Grid([[pictures[variant][p] for variant in names] for p in shown], prompts, [*names.values()])


def draw_spectra(
    sheet: FigureBase, material: Material, names: Mapping[str, str], colours: Mapping[str, Any]
) -> list[Row]:
    """The variants' relative log amplitudes, and how far they lie from the plain model's, pair by pair."""
    whole, difference = sheet.subplots(1, 2)
    off = picture_curves(material.all("off", "picture"))  # (pairs, m)
    rows: list[Row] = []
    for (variant, name), dashes in zip(names.items(), cycle(DASHES), strict=False):
        pictures = material.all(variant, "picture")
        frequencies, curves = picture_frequencies(pictures), picture_curves(pictures)
        draw_curves(whole, frequencies, curves, name, colours[variant], dashes, band=False)
        draw_curves(difference, frequencies, curves - off, name, colours[variant], dashes)
        away = mean_rows(frequencies, curves - off, "difference_from_off")
        for row, more in zip(mean_rows(frequencies, curves), away, strict=True):
            rows.append({"variant": variant, **row, **more})
    for axes in (whole, difference):
        frequency_axis(axes)
    amplitude_axis(whole)
    difference.set_ylabel("difference from off (nats)")
    legend_above(sheet, whole, len(names))
    return rows


def distinct_colours(variants: Mapping[str, Any]) -> dict[str, Any]:
    """A colour for each variant, the plain model's being black."""
    others = [variant for variant in variants if variant != "off"]
    return {"off": COLOURS[-1], **dict(zip(others, COLOURS, strict=False))}
