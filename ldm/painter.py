"""Pictures of jobs by one model, as many at once as its memory holds."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from ldm.caveats import warn
from ldm.errors import InputError
from ldm.generate import SAMPLERS, Sampling, generate
from ldm.image_io import Picture, side_by_side
from ldm.jobs import Job
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.util import FREEU


class Painter:
    """Draws jobs under one sampling; with `compare` each comes out with FreeU off and on, side by side.

    `at_once` pictures go through the model together. On the CPU a picture is drawn alone, and so comes out
    the same to the bit in whatever company it was asked for; a GPU is faster with more.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        sampling: Sampling,
        negative_prompt: str = "",
        compare: bool = False,
        at_once: int = 1,
    ):
        self.model, self.sampling = model, sampling
        self.negative_prompt, self.compare = negative_prompt, compare
        self.at_once = 1 if model.device.type == "cpu" else at_once
        self.unet = model.model.diffusion_model
        self._halved = False
        if compare and self.freeu is None:
            raise InputError("--compare needs FreeU: take a freeu_ config, or give --b1, --b2, --s1, --s2.")

    @property
    def freeu(self) -> dict[str, Any] | None:
        """FreeU's settings, None where it changes nothing."""
        active = isinstance(self.unet, Free_UNetModel) and self.unet.hit_blocks()
        return {name: getattr(self.unet.freeu, name) for name in FREEU} if active else None

    def paint(self, jobs: Sequence[Job]) -> Iterator[Picture]:
        """The pictures of these jobs, in order.

        A batch that is too large for the device's memory is halved, and with it those that follow. Raises
        InputError where even one picture is too large.
        """
        done = 0
        while done < len(jobs):
            batch = jobs[done : done + self.at_once]
            try:
                pictures = self._batch(batch)
            except torch.OutOfMemoryError:
                self._ask_for_less(len(batch))
                continue
            yield from pictures
            done += len(batch)

    def _ask_for_less(self, too_many: int) -> None:
        if too_many == 1:
            size = f"{self.sampling.width}x{self.sampling.height}"
            raise InputError(
                f"The memory of {self.model.device} does not hold one picture of {size}: "
                "give a smaller --W and --H, or --precision fp16."
            )
        if not self._halved:
            warn(f"{too_many} pictures at once are too many for the memory of {self.model.device}: halved")
        self._halved, self.at_once = True, too_many // 2

    def _batch(self, jobs: Sequence[Job]) -> list[Picture]:
        on = self._generate(jobs)
        if not self.compare:
            return on
        settings = self.unet.freeu
        self.unet.freeu = settings.off()
        try:
            off = self._generate(jobs)
        finally:
            self.unet.freeu = settings
        b, s = f"{settings.b1:g}, {settings.b2:g}", f"{settings.s1:g}, {settings.s2:g}"
        labels = ["FreeU off", f"FreeU V{settings.version}: b {b}; s {s}"]
        return [
            side_by_side([before, after], labels, f"{job.prompt} (seed {job.seed})")
            for job, before, after in zip(jobs, off, on, strict=True)
        ]

    def _generate(self, jobs: Sequence[Job]) -> list[Picture]:
        sampler = SAMPLERS[self.sampling.sampler](self.model)
        total = len(sampler.timesteps(self.sampling.steps))
        with tqdm(total=total, unit="step", leave=False, disable=None) as bar:
            return generate(
                self.model,
                [job.prompt for job in jobs],
                [job.seed for job in jobs],
                self.sampling,
                [self.negative_prompt] * len(jobs),
                on_step=lambda _: bar.update(),
            )
