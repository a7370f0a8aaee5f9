"""Looks inside the networks while a pair is drawn once more: spectra and maps, by step and decoder block."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ldm.freeu import DecoderStage
from ldm.freeu.spectrum import relative_log_amplitude
from ldm.generate import decode, total_steps
from ldm.page.pair import Progress, lockstep
from ldm.page.settings import Settings
from ldm.page.studio import SIDES, Studio
from ldm.study.record import Concatenation, recorded

MOMENTS = 8  # steps that are looked at, evenly spread over the run

Where = tuple[str, str, int, int]  # side, backbone or skip, place among the moments, decoder block


@dataclass(frozen=True)
class Inside:
    """What was seen of a pair: `maps` (H, W) are means over channels, `curves` relative log amplitudes (n,).

    Both are of what a decoder block is given, thus after FreeU. `latents` are the curves of x_t by side and
    moment, `pictures` those of the pictures by side.
    """

    settings: Settings
    stages: tuple[DecoderStage, ...]
    latent_side: int
    picture_side: int
    total: int
    steps: list[int] = field(default_factory=list)  # of each moment, from 1 on
    maps: dict[Where, NDArray[np.float32]] = field(default_factory=dict)
    curves: dict[Where, NDArray[np.float32]] = field(default_factory=dict)
    latents: dict[tuple[str, int], NDArray[np.float32]] = field(default_factory=dict)
    pictures: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def moments_of(total: int) -> list[int]:
    """Which of so many steps are looked at, from 0 on."""
    return sorted({round(k * (total - 1) / (MOMENTS - 1)) for k in range(MOMENTS)})


def look(studio: Studio, settings: Settings, stopping: threading.Event) -> Iterator[Progress | Inside]:
    """Draws a pair again, with all its steps, and listens to its decoder. Yields after each step.

    Once `stopping` is set what was seen until then is all.
    """
    model, sampling = studio.model, settings.sampling
    freeu = studio.freeu(settings)
    sides = {"plain": freeu.off(), "freeu": freeu}
    total = total_steps(model, sampling)
    moments = moments_of(total)
    f = model.first_stage_model.downsampling
    seen = Inside(
        settings,
        studio.unet.decoder_stages,
        min(sampling.height, sampling.width) // f,
        min(sampling.height, sampling.width),
        total,
    )
    done = 0

    def around(side: str) -> AbstractContextManager[Any]:
        if done not in moments:
            return nullcontext()
        return recorded(model, keep_inside(seen, side, moments.index(done)), guided=sampling.scale != 1)

    run = lockstep(model, settings.prompt, settings.negative_prompt, settings.seed, sampling, sides, around)
    for steps in run:
        if done in moments:
            seen.steps.append(done + 1)
            for side, step in steps.items():
                seen.latents[side, moments.index(done)] = curve_of(step.x)
        done += 1
        yield Progress(done, total, 0.0, {})
        if stopping.is_set():
            break
    for side in SIDES:
        [picture] = decode(model, steps[side].x if done == total else steps[side].pred_x0)
        seen.pictures[side] = curve_of(torch.from_numpy(picture).permute(2, 0, 1)[None])
    yield seen


def keep_inside(seen: Inside, side: str, moment: int) -> Callable[[Concatenation], None]:
    """What keeps the decoder's concatenations of one side at one moment."""

    def keep(concatenation: Concatenation) -> None:
        for kind, maps in {"backbone": concatenation.after.x, "skip": concatenation.after.h}.items():
            where = (side, kind, moment, concatenation.index)
            seen.maps[where] = maps.float().mean((0, 1)).cpu().numpy()  # (H, W)
            seen.curves[where] = curve_of(maps)

    return keep


def curve_of(maps: torch.Tensor) -> NDArray[np.float32]:
    """The relative log amplitude (n,) of maps (1, C, H, W)."""
    return relative_log_amplitude(maps)[0].cpu().numpy()
