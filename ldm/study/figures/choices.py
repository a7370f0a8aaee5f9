"""Figures 9, 10 and 16: the choices in FreeU, and what pictures look like with others."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes

from ldm.study.claims import Check, half_width, judge, judge_all
from ldm.study.figures.figure import Drawing, Figure, Material, Setup, Variants
from ldm.study.figures.measures import changes, high_shares, measured, picture_high_ends
from ldm.study.figures.panels import SPECTRA_HEIGHT, distinct_colours, draw_spectra, variant_grid
from ldm.study.figures.style import new_halves
from ldm.study.figures.sweeps import USUAL_B, uniform
from ldm.study.pictures import Numbers, saturations

CHANNELS = {
    "off": "FreeU off",
    "all": "all",
    "first": "first half",
    "second": "second half",
    "alternate": "every other",
}
FACTORS = {"off": "FreeU off", "b only": "b only", "on": "b and s"}
VERSIONS = {"off": "FreeU off", "constant": "constant", "structure": "structure-\nrelated"}
DOTS_HEIGHT = 1.4  # inches


def by_channels(setup: Setup) -> Variants:
    usual = uniform(setup.freeu, USUAL_B)
    return {
        "off": None,
        "all": replace(usual, channels="all"),
        "first": usual,
        "second": replace(usual, channels="second"),
        "alternate": replace(usual, channels="alternate"),
    }


def by_factor(setup: Setup) -> Variants:
    stages = {key: (b, 1.0) for key, (b, _) in setup.freeu.stages.items()}
    return {"off": None, "b only": replace(setup.freeu, s1=1.0, s2=1.0, stages=stages), "on": setup.freeu}


def by_version(setup: Setup) -> Variants:
    constant, structure = (uniform(setup.freeu, USUAL_B, version=version) for version in (1, 2))
    return {"off": None, "constant": constant, "structure": structure}


def draw_with_spectra(material: Material, names: Mapping[str, str], checks: list[Check]) -> Drawing:
    """A grid of the variants' pictures over their spectra."""
    grid = variant_grid(material, names)
    sheet, top, bottom = new_halves(grid.height, SPECTRA_HEIGHT)
    grid.draw(top)
    return Drawing(sheet, draw_spectra(bottom, material, names, distinct_colours(names)), checks)


def draw_channels(material: Material) -> Drawing:
    pictures = {variant: material.all(variant, "picture") for variant in CHANNELS}
    ends = {variant: picture_high_ends(them) for variant, them in pictures.items()}
    above = [
        (name, judge("", "high end, that choice - all", ends[variant] - ends["all"]))
        for variant, name in CHANNELS.items()
        if variant != "all"
    ]
    apart = changes(pictures["first"], pictures["second"])
    from_off = changes(pictures["first"], pictures["off"])
    halves = judge(
        "The halves look alike: their pictures differ less from each other than from those without FreeU",
        "mean difference of pixels in grey levels, first half from off - from second half",
        from_off - apart,
    )
    claim = "Scaling all channels oversmooths: its high end is below that of every other choice"
    return draw_with_spectra(material, CHANNELS, [judge_all(claim, above), halves])


def draw_factors(material: Material) -> Drawing:
    only, both = (picture_high_ends(material.all(variant, "picture")) for variant in ("b only", "on"))
    claim = "s brings detail back: the high end is higher with b and s than with b only"
    return draw_with_spectra(material, FACTORS, [judge(claim, "high end, b and s - b only", both - only)])


def draw_dots(axes: Axes, values: Mapping[str, Numbers], name: str) -> None:
    """The mean of each variant's values (pairs,) with its 95 % interval, under a tick for every pair."""
    for k, (variant, colour) in enumerate(distinct_colours(values).items()):
        own = values[variant]
        axes.plot(own, np.full(len(own), k - 0.24), "|", color=colour, alpha=0.5, markersize=5)
        half = half_width(own) if len(own) > 1 else None
        axes.errorbar(own.mean(), k, xerr=half, fmt="o", color=colour, markersize=4, capsize=2.5, linewidth=1)
    axes.set_yticks(range(len(values)), [VERSIONS[variant] for variant in values])
    axes.set_ylim(len(values) - 0.5, -0.6)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.set_xlabel(name)


def draw_versions(material: Material) -> Drawing:
    grid = variant_grid(material, VERSIONS)
    sheet, top, bottom = new_halves(grid.height, DOTS_HEIGHT)
    grid.draw(top)
    left, right = bottom.subplots(1, 2, sharey=True)
    saturation = {variant: saturations(material.all(variant, "picture")) for variant in VERSIONS}
    share = {variant: high_shares(material.all(variant, "picture")) for variant in VERSIONS}
    draw_dots(left, saturation, "saturation (0 to 1)")
    draw_dots(right, share, "share of power above 0.1 cycles a pixel")
    check = judge(
        f"At b = {USUAL_B:g} the constant factor saturates colours more than the structure-related one",
        "saturation, constant - structure-related",
        saturation["constant"] - saturation["structure"],
    )
    return Drawing(sheet, measured(material), [check])


SPECTRA = (
    "Spectra are means over the pairs; right: less the plain model's, pair by pair, with 95 % intervals."
)
FIGURES = [
    Figure(
        9,
        "Which channels are scaled",
        f"b = {USUAL_B:g} of version 1 and s = 1 at both stages, on all channels of the backbone, on either "
        f"half, and on every other one. {SPECTRA}",
        by_channels,
        draw_channels,
        again=19,
    ),
    Figure(
        10,
        "The backbone's factor alone, and both factors",
        f"The config's factors; b only has s = 1. {SPECTRA}",
        by_factor,
        draw_factors,
        again=15,
    ),
    Figure(
        16,
        "A constant and a structure-related backbone factor",
        f"b = {USUAL_B:g} and s = 1 at both stages, versions 1 and 2. Dots are means over the pairs with "
        "their 95 % intervals, ticks the single pictures.",
        by_version,
        draw_versions,
    ),
]
