"""Figures 3, 4 and 13: what happens to low and high frequencies along the denoising run."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ldm.freeu.spectrum import HIGH_END, band_split, relative_log_amplitude
from ldm.plots import PAGE, SEQUENCE, new_sheet
from ldm.study.claims import Check, judge, judge_all
from ldm.study.figures.figure import Drawing, Figure, Material, Row, Setup, Variants
from ldm.study.figures.measures import (
    as_maps,
    frequencies_of,
    high_ends,
    mean_rows,
    picture_curves,
    picture_frequencies,
)
from ldm.study.figures.style import Grid, amplitude_axis, draw_curves, frequency_axis
from ldm.study.pictures import Numbers
from ldm.wording import counted

SHOWN = 8  # steps that figure 3 has pictures of
STATES = {"t": "$x_t$", "0": "predicted $x_0$"}


def plain(setup: Setup) -> Variants:
    return {"off": None}


def off_and_on(setup: Setup) -> Variants:
    return {"off": None, "on": setup.freeu}


def bands(pictures: NDArray[np.uint8]) -> tuple[Numbers, Numbers]:
    """The low and high frequencies of pictures (P, H, W, 3), each (P, 3, H, W) in -1 to 1 about zero."""
    low, high = band_split(2 * as_maps(pictures) - 1)
    return low.numpy(), high.numpy()


def band_changes(band: Numbers) -> Numbers:
    """How much a band (P, 3, H, W) changes to the next kept step, over its norm: (P - 1,)."""
    flat = band.reshape(len(band), -1)
    change = np.linalg.norm(np.diff(flat, axis=0), axis=1)
    return change / np.maximum(np.linalg.norm(flat[:-1], axis=1), 1e-6)


def draw_bands(material: Material) -> Drawing:
    steps = material.all("off", "positions")[0]  # (P,)
    chosen = np.unique(np.linspace(0, len(steps) - 1, SHOWN).round().astype(int))
    pictures, names = [], []
    rows: list[Row] = []
    checks: list[Check] = []
    for state, name in STATES.items():
        kept = material.all("off", f"pictures_{state}")  # (pairs, P, H, W, 3)
        low, high = bands(kept[0, chosen])
        pictures += [kept[0, chosen], shade(low), shade(high)]
        names += [f"{name}", f"{name}\nlow", f"{name}\nhigh"]
        # One pair at a time, as its bands are eight times as large as its pictures.
        each = np.array([[band_changes(band) for band in bands(of_pair)] for of_pair in kept])
        change = {"low": each[:, 0], "high": each[:, 1]}  # (pairs, P - 1)
        for band, values in change.items():
            for k, step in enumerate(steps[1:]):
                rows.append(
                    {
                        "state": f"x_{state}",
                        "band": band,
                        "after_steps": int(step),
                        "relative_change": float(values[:, k].mean()),
                    }
                )
        plain_name = name.replace("$", "")
        claim = f"Low frequencies of the decoded {plain_name} change less from step to step than high ones"
        quantity = "change over the band's norm, high - low"
        checks.append(judge(claim, quantity, (change["high"] - change["low"]).mean(1)))
    sheet = Grid(pictures, names, [counted(steps[k], "step") for k in chosen]).on_a_page()
    return Drawing(sheet, rows, checks)


def shade(band: Numbers) -> Numbers:
    """A band (n, 3, H, W) as pictures (n, H, W, 3) in 0 to 1, zero being middle grey."""
    return np.clip((band.transpose(0, 2, 3, 1) + 1) / 2, 0, 1)


def along(material: Material, variant: str) -> dict[str, tuple[NDArray[Any], Numbers, int]]:
    """For latents and decoded images x_t: frequencies (m,), curves (pairs, P, m), and the maps' side."""
    x_t = material.all(variant, "x_t")  # (pairs, P, C, h, w)
    pictures = material.all(variant, "pictures_t")  # (pairs, P, H, W, 3)
    latent_curves = relative_log_amplitude(torch.from_numpy(x_t.reshape(-1, *x_t.shape[2:]))).numpy()
    image_curves = picture_curves(pictures.reshape(-1, *pictures.shape[2:]))
    return {
        "latents": (
            frequencies_of(x_t),
            latent_curves.reshape(*x_t.shape[:2], -1),
            min(x_t.shape[-2:]),
        ),
        "decoded images": (
            picture_frequencies(pictures),
            image_curves.reshape(*pictures.shape[:2], -1),
            min(pictures.shape[2:4]),
        ),
    }


def step_rows(
    kind: str, steps: NDArray[Any], frequencies: Numbers, curves: Numbers, **more: str
) -> list[Row]:
    """The rows of curves (pairs, P, m), one a step and frequency."""
    return [
        {**more, "of": kind, "after_steps": int(step), **row}
        for p, step in enumerate(steps)
        for row in mean_rows(frequencies, curves[:, p])
    ]


def draw_steps(axes: Axes, steps: NDArray[Any], frequencies: Numbers, curves: Numbers) -> None:
    """One curve a step, (pairs, P, m), from light at the noise to dark at the picture; these have bands."""
    last = len(steps) - 1
    for p, step in enumerate(steps):
        colour = SEQUENCE(p / max(1, last))
        draw_curves(axes, frequencies, curves[:, p], str(step), colour, band=p in (0, last))
    frequency_axis(axes)


def step_legend(sheet: Any, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside right center", title="steps\ndone", handlelength=1.4)


def draw_denoising(material: Material) -> Drawing:
    steps = material.all("off", "positions")[0]
    sheet = new_sheet(PAGE, 2.4)
    rows: list[Row] = []
    checks: list[Check] = []
    panels = sheet.subplots(1, 2)
    for axes, (kind, (frequencies, curves, side)) in zip(panels, along(material, "off").items(), strict=True):
        draw_steps(axes, steps, frequencies, curves)
        axes.set_title(f"{kind} $x_t$")
        rows += step_rows(kind, steps, frequencies, curves)
        ends = high_ends(curves, side)  # (pairs, P)
        falls = [
            (f"{a} to {b}", judge("", "high end before - after", ends[:, p] - ends[:, p + 1]))
            for p, (a, b) in enumerate(pairwise(steps))
        ]
        checks.append(judge_all(f"The high end of the {kind} falls from each kept step to the next", falls))
    # Flat is judged from the first frequency above zero, as the mean's own amplitude is another quantity.
    frequencies, curves, side = along(material, "off")["latents"]
    drops = curves[:, :, 1] - curves[:, :, -1]  # (pairs, P)
    checks.append(
        judge(
            "The first latents' curve is nearly flat: it falls less than a quarter as far as the last one",
            "last fall / 4 - first fall",
            drops[:, -1] / 4 - drops[:, 0],
        )
    )
    amplitude_axis(panels[0])
    step_legend(sheet, panels[0])
    return Drawing(sheet, rows, checks)


def draw_off_and_on(material: Material) -> Drawing:
    steps = material.all("off", "positions")[0]
    both = {variant: along(material, variant) for variant in ("off", "on")}
    sheet = new_sheet(PAGE, 4.4)
    grid = sheet.subplots(2, 3)
    rows: list[Row] = []
    checks: list[Check] = []
    for panels, kind in zip(grid, both["off"], strict=True):
        frequencies, off, _ = both["off"][kind]
        on = both["on"][kind][1]
        for axes, (variant, curves) in zip(panels, {"off": off, "on": on}.items(), strict=False):
            draw_steps(axes, steps, frequencies, curves)
            axes.set_title(f"{kind}, FreeU {variant}")
            rows += step_rows(kind, steps, frequencies, curves, freeu=variant)
        panels[1].sharey(panels[0])
        draw_steps(panels[2], steps, frequencies, on - off)
        panels[2].set_title(f"{kind}, on − off")
        amplitude_axis(panels[0])
        panels[2].set_ylabel("difference (nats)")

        # The first state is the noise that both sides share.
        upper = frequencies >= HIGH_END - 1e-6
        lower = (off - on)[:, 1:, upper].mean((1, 2))
        claim = f"Above half of pi the curves of the {kind} are lower with FreeU, over all steps"
        checks.append(judge(claim, "relative log amplitude, off - on", lower))
    for axes in grid[0]:
        axes.set_xlabel("")
    step_legend(sheet, grid[0, 0])
    return Drawing(sheet, rows, checks)


FIGURES = [
    Figure(
        3,
        "The denoising process and its low and high frequencies",
        "Decoded latents and decoded predictions of the noise-free latents, after so many steps of one run "
        "without FreeU. Low is up to 0.1 cycles a pixel, high above; there zero is middle grey.",
        plain,
        draw_bands,
        watched=True,
    ),
    Figure(
        4,
        "Relative log amplitude along the denoising run",
        "The spectrum of x_t after so many steps without FreeU, along the frequency diagonal and relative to "
        "the mean's. Means over the prompt and seed pairs, the first and the last with their 95 % intervals.",
        plain,
        draw_denoising,
        watched=True,
    ),
    Figure(
        13,
        "Figure 4 with FreeU off and on",
        "From the same noise, with the config's factors. Right: the difference that FreeU makes, pair by "
        "pair. Means over the pairs, the first and the last with their 95 % intervals.",
        off_and_on,
        draw_off_and_on,
        watched=True,
    ),
]
