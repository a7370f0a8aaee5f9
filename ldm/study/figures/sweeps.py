"""Figures 5, 6, 17 and 18: what pictures do as one factor changes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ldm.freeu import FreeUSettings
from ldm.plots import PAGE, SEQUENCE, new_sheet
from ldm.study.claims import judge, judge_all
from ldm.study.figures.figure import Drawing, Figure, Material, Setup, Variants
from ldm.study.figures.measures import changes, measured, picture_high_ends
from ldm.study.figures.panels import SPECTRA_HEIGHT, draw_spectra, variant_grid
from ldm.study.figures.style import Grid, in_lines

AROUND_ONE = (0.6, 0.8, 1.0, 1.2, 1.4)  # of both factors, in figures 5 and 6
RISING_B = (1.0, 1.2, 1.4, 1.6, 1.8)
FALLING_S = (1.0, 0.8, 0.6, 0.4, 0.2)
USUAL_B = 1.4  # where the paper's figure names none


def uniform(freeu: FreeUSettings, b: float, s: float = 1.0, version: int = 1) -> FreeUSettings:
    """The same b and s at both stages that the config's FreeU meets, all along the run."""
    return FreeUSettings(b, b, s, s, version, freeu.threshold, freeu.match)


def everywhere(setup: Setup, b: float, s: float) -> FreeUSettings:
    """b on all channels and s, at every decoder concatenation."""
    by_width = setup.freeu.match == "channels"
    keys = {stage.width if by_width else stage.downsampling for stage in setup.stages}
    return replace(
        uniform(setup.freeu, b, s), channels="all", stages=dict.fromkeys(sorted(keys, reverse=True), (b, s))
    )


def sweep(name: str, values: Sequence[float]) -> list[str]:
    """The variants along a sweep that has the plain model at one."""
    return ["off" if value == 1 else f"{name} = {value:g}" for value in values]


def vary_b_everywhere(setup: Setup) -> Variants:
    return {"off": None, **{f"b = {b:g}": everywhere(setup, b, 1.0) for b in AROUND_ONE if b != 1}}


def vary_both_everywhere(setup: Setup) -> Variants:
    varied = {f"s = {s:g}": everywhere(setup, 1.0, s) for s in AROUND_ONE if s != 1}
    return {**vary_b_everywhere(setup), **varied}


def vary_b(setup: Setup) -> Variants:
    return {"off": None, **{f"b = {b:g}": uniform(setup.freeu, b) for b in RISING_B[1:]}}


def vary_s(setup: Setup) -> Variants:
    return {"off": None, **{f"s = {s:g}": uniform(setup.freeu, USUAL_B, s) for s in FALLING_S}}


def draw_both(material: Material) -> Drawing:
    shown, names = [], []
    for p, pair in enumerate(material.pairs[:2]):
        for factor, other in {"b": "s", "s": "b"}.items():
            shown.append([material.kept[v][p]["picture"] for v in sweep(factor, AROUND_ONE)])
            names.append(f"{factor} varies, {other} = 1\n{in_lines(pair.prompt)}")
    sheet = Grid(shown, names, [f"{value:g}" for value in AROUND_ONE]).on_a_page()

    off = material.all("off", "picture")
    change = {}  # of each factor, (pairs,)
    for factor in ("b", "s"):
        varied = [variant for variant in sweep(factor, AROUND_ONE) if variant != "off"]
        each = [changes(material.all(variant, "picture"), off) for variant in varied]
        change[factor] = np.mean(each, axis=0)
    check = judge(
        "The factor s changes pictures less than b does, over 0.6 to 1.4",
        "mean change of pixels in grey levels, b - s",
        change["b"] - change["s"],
    )
    return Drawing(sheet, measured(material), [check])


def draw_against_b(material: Material) -> Drawing:
    variants = sweep("b", AROUND_ONE)
    names = {variant: f"b = {b:g}" for variant, b in zip(variants, AROUND_ONE, strict=True)}
    colours = {variant: SEQUENCE(k / (len(variants) - 1)) for k, variant in enumerate(variants)}
    sheet = new_sheet(PAGE, SPECTRA_HEIGHT)
    rows = draw_spectra(sheet, material, names, colours)
    ends = [picture_high_ends(material.all(variant, "picture")) for variant in variants]  # (pairs,) each
    steps = [
        (f"{a:g} to {b:g}", judge("", "high end, lower b - higher b", ends[k] - ends[k + 1]))
        for k, (a, b) in enumerate(pairwise(AROUND_ONE))
    ]
    return Drawing(sheet, rows, [judge_all("The pictures' high end falls with every step of b", steps)])


def draw_b(material: Material) -> Drawing:
    names = {v: f"b = {b:g}" for v, b in zip(sweep("b", RISING_B), RISING_B, strict=True)}
    sheet = variant_grid(material, names).on_a_page()
    least, most = (picture_high_ends(material.all(v, "picture")) for v in ("off", "b = 1.8"))
    claim = "b = 1.8 oversmooths: the pictures' high end is lower than at b = 1"
    return Drawing(sheet, measured(material), [judge(claim, "high end, b = 1 - b = 1.8", least - most)])


def draw_s(material: Material) -> Drawing:
    sheet = variant_grid(material, {f"s = {s:g}": f"s = {s:g}" for s in FALLING_S}).on_a_page()
    most, least = (picture_high_ends(material.all(v, "picture")) for v in ("s = 0.2", "s = 1"))
    claim = f"s = 0.2 gives more detail than s = 1, at b = {USUAL_B:g}: a higher high end"
    return Drawing(sheet, measured(material), [judge(claim, "high end, s = 0.2 - s = 1", most - least)])


FIGURES = [
    Figure(
        5,
        "What b and s do",
        "Factors of version 1 from 0.6 to 1.4 on all channels at every decoder concatenation, the other "
        "factor being one; the middle column is the plain model.",
        vary_both_everywhere,
        draw_both,
    ),
    Figure(
        6,
        "Relative log amplitude of pictures against b",
        "The pictures of figure 5 over b of version 1, with s = 1: means over the pairs. Right: less the "
        "plain model's, pair by pair, with 95 % intervals.",
        vary_b_everywhere,
        draw_against_b,
    ),
    Figure(
        17,
        "A sweep of b",
        "FreeU, version 1, with b at both stages and s = 1, from the same noise in each row. b = 1 is the "
        "plain model.",
        vary_b,
        draw_b,
    ),
    Figure(
        18,
        "A sweep of s",
        f"FreeU, version 1, with b = {USUAL_B:g} and s at both stages, from the same noise in each row.",
        vary_s,
        draw_s,
    ),
]
