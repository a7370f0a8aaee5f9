"""Draws a pair of pictures, plain and with FreeU, from the same noise."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from ldm.freeu import FreeUSettings
from ldm.generate import Sampling, decode, denoise, total_steps
from ldm.image_io import Picture
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sampling import Step

SHARE = 0.2  # of the time of sampling, that previews may take


@dataclass(frozen=True)
class Progress:
    """Where a pair stands after `steps` of `total`, with pictures as they would be, where some are new."""

    steps: int
    total: int
    seconds: float
    previews: dict[str, Picture]


@dataclass(frozen=True)
class Drawn:
    """The pictures of a pair, by side; unfinished where `steps` is below `total`, but for `ready` ones."""

    steps: int
    total: int
    seconds: float
    pictures: dict[str, Picture]
    ready: frozenset[str] = frozenset()  # sides whose pictures were whole before


def lockstep(
    model: LatentDiffusion,
    prompt: str,
    negative: str,
    seed: int,
    sampling: Sampling,
    sides: dict[str, FreeUSettings],
    around: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[dict[str, Step]]:
    """The sampler's steps of one picture under several settings of FreeU, one step each by turns.

    In one batch their bits would depend on each other's company; so each comes out as if drawn alone, and
    none is finished before the others. Each side's step is made in the context `around(side)`.
    """
    unet: Any = model.model.diffusion_model
    runs = {side: denoise(model, [prompt], [negative], [seed], sampling) for side in sides}
    for _ in range(total_steps(model, sampling)):
        steps = {}
        for side, freeu in sides.items():
            with unet.under(freeu), around(side):
                steps[side] = next(runs[side])
        yield steps


def draw(
    model: LatentDiffusion,
    prompt: str,
    negative: str,
    seed: int,
    sampling: Sampling,
    sides: dict[str, FreeUSettings],
    stopping: threading.Event,
) -> Iterator[Progress | Drawn]:
    """Draws one picture for each side; yields after every step, and at last the pictures.

    Once `stopping` is set they are what the network takes for the finished ones.
    """
    begun = time.monotonic()
    total = total_steps(model, sampling)
    previews = Previews(model)
    yield Progress(0, total, 0.0, {})
    for done, steps in enumerate(lockstep(model, prompt, negative, seed, sampling, sides), start=1):
        if done == total or stopping.is_set():
            break
        yield Progress(done, total, time.monotonic() - begun, previews.take(steps))
    latents = {side: step.x if done == total else step.pred_x0 for side, step in steps.items()}
    pictures = {side: decode(model, x)[0] for side, x in latents.items()}
    yield Drawn(done, total, time.monotonic() - begun, pictures)


class Previews:
    """Decodes, now and then, what the network takes for the finished pictures, in a share of the time."""

    def __init__(self, model: LatentDiffusion):
        self.model = model
        self.begun = time.monotonic()
        self.spent = 0.0
        self.cost: float | None = None  # seconds of the last ones

    def take(self, steps: dict[str, Step]) -> dict[str, Picture]:
        """Previews of these steps by side, none where they would take too long. To be asked at every step."""
        now = time.monotonic()
        sampled = now - self.begun - self.spent
        # What a preview costs is known from the one before; the first is taken for as dear as a step.
        cost = sampled / (steps[next(iter(steps))].index + 1) if self.cost is None else self.cost
        if self.spent + cost > SHARE * sampled:
            return {}
        previews = {side: decode(self.model, step.pred_x0)[0] for side, step in steps.items()}
        self.cost = time.monotonic() - now
        self.spent += self.cost
        return previews
