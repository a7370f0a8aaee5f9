"""Figures 7, 8 and 14: what the decoder's feature maps look like."""

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.plots import COLOURS, DASHES, PAGE, new_sheet
from ldm.study.claims import Check, half_width, judge, judge_all
from ldm.study.figures.figure import Drawing, Figure, Material, Row
from ldm.study.figures.measures import frequencies_of, high_ends, mean_rows
from ldm.study.figures.process import off_and_on, plain
from ldm.study.figures.style import (
    Grid,
    amplitude_axis,
    draw_curves,
    frequency_axis,
    in_lines,
    legend_above,
)
from ldm.study.pictures import Numbers
from ldm.study.watch import MOMENTS

KINDS = {"x": "backbone", "h": "skip", "fused": "fused"}
SHOWN = 3  # pairs with pictures in a figure


def resolutions(material: Material) -> dict[int, list[int]]:
    """The decoder's concatenations by down-sampling factor, from the lowest resolution to the highest."""
    found: dict[int, list[int]] = defaultdict(list)
    for i, stage in enumerate(material.stages):
        found[stage.downsampling].append(i)
    return dict(found)


def size_name(maps: NDArray[Any]) -> str:
    """How the resolution of maps (..., H, W) is called in a figure."""
    return f"{maps.shape[-2]}×{maps.shape[-1]}"


def draw_features(material: Material) -> Drawing:
    # Maps of side 2 and below have no frequency from pi / 2 up.
    shown = {
        factor: where
        for factor, where in resolutions(material).items()
        if min(material.all("off", f"mean.late.{where[0]}").shape[-2:]) > 2
    }
    sheet = new_sheet(PAGE, 0.5 + 1.6 * len(shown))
    grid = sheet.subplots(len(shown), len(MOMENTS), squeeze=False, sharex=True, sharey=True)
    rows: list[Row] = []
    parts: list[tuple[str, Check]] = []
    for level, where in enumerate(shown.values()):
        for axes, moment in zip(grid[level], MOMENTS, strict=True):
            maps = material.all("off", f"mean.{moment}.{where[0]}")  # (pairs, H, W)
            frequencies = frequencies_of(maps)
            curves: dict[str, Numbers] = {}
            for (kind, name), colour, dashes in zip(KINDS.items(), COLOURS, DASHES, strict=False):
                each = [material.all("off", f"curve.{kind}.before.{moment}.{i}") for i in where]
                curves[kind] = np.mean(each, axis=0)  # (pairs, n), over the concatenations of this size
                draw_curves(axes, frequencies, curves[kind], name, colour, dashes, marker="o")
                who: Row = {"maps": size_name(maps), "moment": moment, "feature": name}
                rows += [who | row for row in mean_rows(frequencies, curves[kind])]
            side = min(maps.shape[-2:])
            lead = high_ends(curves["h"], side) - high_ends(curves["x"], side)  # (pairs,)
            check = judge("", "high end, skip - backbone", lead)
            parts.append((f"{size_name(maps)} {moment}", check))
            spread = f" ± {half_width(lead):.2f}" if len(lead) > 1 else ""
            lead_text = f"{check.mean:+.2f}{spread}".replace("-", "−")
            axes.set_title(f"{size_name(maps)}, {moment}: {lead_text}")
            frequency_axis(axes, label=level == len(shown) - 1)
        amplitude_axis(grid[level, 0])
    legend_above(sheet, grid[0, 0], len(KINDS))
    claim = "The skip lies above the backbone at the high end, at every resolution and moment"
    return Drawing(sheet, rows, [judge_all(claim, parts)])


def to_unit(values: Numbers) -> Numbers:
    """Values moved and scaled into 0 to 1 all together."""
    low, high = values.min(), values.max()
    return (values - low) / max(high - low, 1e-12)


def alikeness(mean_map: Numbers, picture: NDArray[np.uint8]) -> float:
    """How closely a map (H, W) follows a picture's lightness at its size: |r|, from 0 to 1."""
    height, width = mean_map.shape
    grey = Image.fromarray(picture).convert("L").resize((width, height), Image.Resampling.BOX)
    light = np.asarray(grey, float)  # (H, W)
    a, b = mean_map - mean_map.mean(), light - light.mean()
    return float(abs((a * b).sum()) / max(np.sqrt((a**2).sum() * (b**2).sum()), 1e-12))


def draw_maps(material: Material) -> Drawing:
    last = [where[-1] for where in resolutions(material).values()]
    pictures = material.all("off", "picture")
    maps = [material.all("off", f"mean.late.{i}") for i in last]  # (pairs, H, W) each
    shown = range(min(SHOWN, len(pictures)))
    grid = Grid(
        [[pictures[p], *(to_unit(one[p]) for one in maps)] for p in shown],
        [in_lines(material.pairs[p].prompt) for p in shown],
        ["picture", *(f"{size_name(one)} maps" for one in maps)],
    )
    sheet = new_sheet(PAGE, 0.92 * grid.height)  # the colour bar leaves less for the pictures
    axes = grid.draw(sheet)
    bar = sheet.colorbar(axes[0, 1].images[0], ax=axes, shrink=0.6, pad=0.02)
    bar.set_ticks([0, 1], labels=["low", "high"])
    bar.set_label("channel mean", labelpad=2)  # short, as one row of pictures is low
    bar.outline.set_visible(False)

    own = [alikeness(one, picture) for one, picture in zip(maps[-1], pictures, strict=True)]
    others = np.roll(pictures, 1, axis=0)
    other = [alikeness(one, picture) for one, picture in zip(maps[-1], others, strict=True)]
    rows: list[Row] = [
        {"prompt": pair.prompt, "seed": pair.seed, "own_picture": a, "next_picture": b}
        for pair, a, b in zip(material.pairs, own, other, strict=True)
    ]
    check = judge(
        f"The {size_name(maps[-1])} maps show the picture's structure: they follow its lightness more "
        "closely than another picture's",
        "correlation without its sign, own - other picture",
        np.subtract(own, other),
    )
    return Drawing(sheet, rows, [check])


def points_of(maps: Numbers) -> Numbers:
    """Maps (C, H, W) as one point of C numbers for each position, (H W, C)."""
    return maps.reshape(len(maps), -1).T.astype(np.float64)


def joint_components(sides: list[Numbers]) -> list[Numbers]:
    """Maps (C, H, W) on their three joint principal components: each (H, W, 3) in 0 to 1."""
    _, height, width = sides[0].shape
    points = [points_of(side) for side in sides]
    joint = np.concatenate(points)
    _, _, axes = np.linalg.svd(joint - joint.mean(0), full_matrices=False)
    found = [(one - joint.mean(0)) @ axes[:3].T for one in points]  # (H W, 3)
    low, high = np.min(found, axis=(0, 1)), np.max(found, axis=(0, 1))
    return [((one - low) / np.maximum(high - low, 1e-12)).reshape(height, width, -1) for one in found]


def share_of_three(maps: Numbers) -> float:
    """The share of the variance of maps (C, H, W) over positions in their own three principal components.

    Joint components would lean to the side that varies more, and FreeU scales one side up.
    """
    points = points_of(maps)
    variances = np.linalg.svd(points - points.mean(0), compute_uv=False) ** 2
    return float(variances[:3].sum() / max(variances.sum(), 1e-12))


def draw_structure(material: Material) -> Drawing:
    factors = [f for f in resolutions(material) if material.all("off", f"features.{f}").shape[-1] > 2]

    def sides_of(p: int, factor: int) -> list[Numbers]:
        """The features (C, H, W) of a pair at one resolution, without and with FreeU."""
        return [material.kept[side][p][f"features.{factor}"].astype(np.float32) for side in ("off", "on")]

    rows: list[Row] = []
    gains = np.zeros(len(material.pairs))
    for p, pair in enumerate(material.pairs):
        for factor in factors:
            sides = sides_of(p, factor)
            off, on = (share_of_three(side) for side in sides)
            row: Row = {"prompt": pair.prompt, "seed": pair.seed, "maps": size_name(sides[0])}
            rows.append(row | {"share_off": off, "share_on": on})
            gains[p] += (on - off) / len(factors)

    shown: list[list[NDArray[Any]]] = []
    names: list[str] = []
    for p, pair in enumerate(material.pairs[: SHOWN - 1]):
        each = [sides_of(p, factor) for factor in factors]
        means = [to_unit(np.stack([side.mean(0) for side in sides])) for sides in each]  # on one scale
        components = [joint_components(sides) for sides in each]
        for k, side in enumerate(("off", "on")):
            maps = [*(one[k] for one in means), *(one[k] for one in components)]
            shown.append([material.kept[side][p]["picture"], *maps])
            names.append(f"FreeU {side}\n" + in_lines(pair.prompt, lines=4))
    sizes = [size_name(material.all("off", f"features.{factor}")) for factor in factors]
    columns = ["picture", *(f"mean\n{size}" for size in sizes), *(f"components\n{size}" for size in sizes)]
    sheet = Grid(shown, names, columns).on_a_page()
    check = judge(
        "The decoder's features have more structure with FreeU: three components hold more of their variance",
        "share of variance, on - off",
        gains,
    )
    return Drawing(sheet, rows, [check])


FIGURES = [
    Figure(
        7,
        "Backbone, skip and fused features in the decoder",
        "Relative log amplitude without FreeU at each resolution, averaged over the concatenations there, at "
        "an early, a middle and a late step (10, 50 and 90 % of the run). A panel's number is how far the "
        "skip lies above the backbone from π/2 up, with its 95 % interval over the pairs, as the bands are.",
        plain,
        draw_features,
        watched=True,
    ),
    Figure(
        8,
        "Channel means of the backbone",
        "The mean over channels (equation 2) of each resolution's last backbone map at 90 % of a run without "
        "FreeU, each map from its lowest value to its highest.",
        plain,
        draw_maps,
        watched=True,
    ),
    Figure(
        14,
        "Decoder features with FreeU off and on",
        "Each resolution's last backbone map at 90 % of the run, before its own re-weighting: the mean over "
        "channels, on one scale for both, and three principal components, fitted jointly, as colours. The "
        "paper names no measure of structure; the share of each side's variance in its own three is ours.",
        off_and_on,
        draw_structure,
        watched=True,
    ),
]
