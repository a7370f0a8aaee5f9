"""The markup of what was seen inside the networks."""

import math
from html import escape

import numpy as np
from numpy.typing import NDArray

from ldm.freeu.spectrum import diagonal_frequencies
from ldm.image_io import data_uri
from ldm.page import svg
from ldm.page.look import Inside
from ldm.page.stage import SIDE_NAMES
from ldm.page.studio import SIDES

FREQUENCIES = {0.0: "0", math.pi / 4: "π/4", math.pi / 2: "π/2", 3 * math.pi / 4: "3π/4", math.pi: "π"}
NOTHING = (
    '<p class="lead">Draw a pair, then look inside it: its runs are made once more, and listened to.</p>'
)


def markup(seen: Inside, moment: float | None, block: float | None) -> str:
    """Spectra and maps of one moment and one decoder block, the nearest that there are."""
    moment, block = nearest(moment, len(seen.steps)), nearest(block, len(seen.stages))
    stage = seen.stages[block]
    step = f"step {seen.steps[moment]} of {seen.total}"
    pictures = {SIDE_NAMES[side]: seen.pictures[side] for side in SIDES}
    latents = {SIDE_NAMES[side]: seen.latents[side, moment] for side in SIDES}
    features = {
        f"{kind}, {SIDE_NAMES[side]}": seen.curves[side, kind, moment, block]
        for kind in ("backbone", "skip")
        for side in SIDES
    }
    whole = seen.steps[-1] == seen.total
    plots = [
        curves(latents, seen.latent_side, f"Latents after {step}"),
        curves(
            pictures,
            seen.picture_side,
            "The finished pictures" if whole else "The pictures, as far as they came",
        ),
    ]
    shape = seen.maps["plain", "backbone", moment, block].shape
    if min(shape) > 2:
        plots.insert(0, curves(features, min(shape), f"Block {block}, {shape[0]}×{shape[1]}, {step}"))
    maps = "".join(pair_of_maps(seen, kind, moment, block) for kind in ("backbone", "skip"))
    words = (
        f"Decoder block {block} takes {stage.width} channels of the backbone and {stage.skip_width} of the "
        "skip. The maps are means over these channels, after FreeU, light where they are high; the two sides "
        "have one scale."
    )
    caption = escape(f"{seen.settings.prompt} (seed {seen.settings.seed})")
    return (
        f'<div class="inside"><p class="caption">{caption}</p>'
        f'<p class="lead">{words}</p><div class="maps">{maps}</div>'
        f'<div class="plots">{"".join(plots)}</div></div>'
    )


def nearest(index: float | None, count: int) -> int:
    """An index below `count` out of a slider's value; None stands in a number box that is empty."""
    return min(max(0, int(index or 0)), count - 1)


def curves(lines: dict[str, NDArray[np.float32]], side: int, title: str) -> str:
    x = diagonal_frequencies(side).numpy()
    return svg.curves(lines, x, title, "frequency (radians a pixel)", "relative log amplitude", FREQUENCIES)


def pair_of_maps(seen: Inside, kind: str, moment: int, block: int) -> str:
    """One kind of map, plain and with FreeU, on one scale."""
    maps = {side: seen.maps[side, kind, moment, block] for side in SIDES}
    low, high = np.min([*maps.values()]), np.max([*maps.values()])
    return "".join(
        f'<figure><img src="{data_uri(svg.shaded(each, low, high))}" '
        f'alt="{kind}, {SIDE_NAMES[side]}: means from {each.min():.2f} to {each.max():.2f}">'
        f"<figcaption>{kind}, {SIDE_NAMES[side]}</figcaption></figure>"
        for side, each in maps.items()
    )
