"""Pictures of jobs by one model, as many at once as its memory holds."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from tqdm import tqdm

from ldm.config.freeu import FREEU
from ldm.device import is_out_of_memory
from ldm.errors import InputError, warn
from ldm.freeu import FreeUSettings
from ldm.generate import Sampling, check, generate, total_steps
from ldm.image_io import Picture
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.txt2img.freeu_each import freeu_of_each
from ldm.txt2img.jobs import Job
from ldm.txt2img.settings_grid import Cell, CellJob

Compare = Callable[[Job, Picture, Picture], Picture]


class Painter:
    """Draws jobs under one sampling, or those of a grid under their own settings.

    With `compare`, a function of a job and its pictures without and with FreeU, that is what comes out.
    `at_once` pictures go through the model together. On the CPU a picture is drawn alone, and so comes out
    the same to the bit in whatever company it was asked for; a GPU is faster with more.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        sampling: Sampling,
        negative_prompt: str = "",
        compare: Compare | None = None,
        at_once: int = 1,
    ):
        self.model, self.sampling = model, sampling
        self.negative_prompt, self.compare = negative_prompt, compare
        self.at_once = 1 if model.device.type == "cpu" else at_once
        self.unet = model.model.diffusion_model
        self._halved = False
        if compare is not None and self.freeu is None:
            if isinstance(self.unet, Free_UNetModel) and self.unet.freeu.never_acts():
                both = f"--start and --stop are both {self.unet.freeu.start:g}"
                raise InputError(f"--compare needs FreeU, but {both}: give a --stop after --start.")
            raise InputError("--compare needs FreeU: take a freeu_ config, or give --b1, --b2, --s1, --s2.")

    @property
    def freeu(self) -> dict[str, Any] | None:
        """FreeU's settings, None where it changes nothing."""
        return self.active(self.unet.freeu) if isinstance(self.unet, Free_UNetModel) else None

    def active(self, settings: FreeUSettings) -> dict[str, Any] | None:
        """These settings of FreeU, None where they change nothing. Raises InputError if they do not fit."""
        hit = self.unet.hit_blocks(settings)
        return {name: getattr(settings, name) for name in FREEU} if hit else None

    def check(self, jobs: Sequence[Job]) -> None:
        """Raises InputError where a job's own settings do not fit the model, before any is drawn."""
        for job in jobs:
            if isinstance(job, CellJob):
                check(job.cell.sampling, self.model)
                if job.cell.freeu is not None:
                    self.active(job.cell.freeu)

    def paint(self, jobs: Sequence[Job]) -> Iterator[Picture]:
        """The pictures of these jobs, in order.

        A batch that is too large for the device's memory is halved, and with it those that follow. Raises
        InputError where even one picture is too large.
        """
        done = 0
        while done < len(jobs):
            batch = [*takewhile(partial(alike, jobs[done]), jobs[done : done + self.at_once])]
            try:
                pictures = self._batch(batch)
            except RuntimeError as fault:
                if not is_out_of_memory(fault):
                    raise
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
        cells = [job.cell for job in jobs if isinstance(job, CellJob)]
        if cells:
            return self._cells(jobs, cells)
        on = self._generate(jobs, self.sampling)
        if self.compare is None:
            return on
        with self.unet.under(self.unet.freeu.off()):
            off = self._generate(jobs, self.sampling)
        return [self.compare(*each) for each in zip(jobs, off, on, strict=True)]

    def _cells(self, jobs: Sequence[Job], cells: Sequence[Cell]) -> list[Picture]:
        """The pictures of a grid's cells, whose sampling is the same."""
        sampling, settings = cells[0].sampling, [cell.freeu for cell in cells if cell.freeu is not None]
        if not settings:
            return self._generate(jobs, sampling)
        same = len(set(map(repr, settings))) == 1
        with self.unet.under(settings[0]) if same else freeu_of_each(self.unet, settings):
            return self._generate(jobs, sampling)

    def _generate(self, jobs: Sequence[Job], sampling: Sampling) -> list[Picture]:
        with tqdm(total=total_steps(self.model, sampling), unit="step", leave=False, disable=None) as bar:
            return generate(
                self.model,
                [job.prompt for job in jobs],
                [job.seed for job in jobs],
                sampling,
                [self.negative_prompt] * len(jobs),
                on_step=lambda _: bar.update(),
            )


def alike(first: Job, other: Job) -> bool:
    """Whether two jobs are sampled alike, and so can be drawn together."""
    if isinstance(first, CellJob) and isinstance(other, CellJob):
        return first.cell.sampling == other.cell.sampling
    return True
