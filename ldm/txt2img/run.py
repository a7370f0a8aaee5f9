"""A run of txt2img: from its arguments and its config to the files in its folder."""

import hashlib
import json
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ldm.checkpoint import fingerprint
from ldm.config.freeu import FREEU_NAMES
from ldm.device import PRECISIONS, pick_dtype, room_for_the_model
from ldm.errors import InputError, warn
from ldm.generate import Sampling, check
from ldm.image_io import Picture
from ldm.modules.diffusionmodules.compiling import compiled_blocks
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.txt2img.caveats import caveats, too_large
from ldm.txt2img.gallery import Gallery, PlainSheets, Sheets
from ldm.txt2img.grid_sheets import GridSheets, side_by_side
from ldm.txt2img.jobs import Job
from ldm.txt2img.manifest import differences
from ldm.txt2img.painter import Painter
from ldm.txt2img.processes import Group
from ldm.txt2img.prompted import load_prompted
from ldm.txt2img.recipe import Recipe
from ldm.txt2img.request import check_latents, freeu_of, read_request
from ldm.txt2img.settings_grid import CellJob
from ldm.wording import counted

GRID_AT_ONCE = 16  # pictures of a grid on a GPU, if its memory holds them


class Run:
    """A run of txt2img under its parsed arguments and its config. Raises InputError."""

    def __init__(self, arguments: Namespace, config: DictConfig, device: torch.device):
        self.arguments = arguments
        self.request = read_request(arguments, config)
        dtype = pick_dtype(device, arguments.precision)
        self.precision = PRECISIONS[dtype]
        model = load_prompted(
            config, arguments.ckpt, device, dtype, arguments.download, arguments.trust_config
        )
        sampling = self.request.sampling
        check(sampling, model)
        check_latents(arguments, model)
        jobs, axes = self.request.jobs, self.request.axes
        compare = self.compared if arguments.compare else None
        at_once = min(len(jobs), GRID_AT_ONCE) if axes else arguments.n_samples
        self.painter = Painter(model, sampling, arguments.negative_prompt, compare, at_once)
        self.painter.check(jobs)
        sheets: Sheets = PlainSheets(arguments, self.recipe(jobs[0]))
        if axes:
            sheets = GridSheets(axes, self.recipe(Job(jobs[0].prompt, arguments.seed)), freeu_of(config))
        self.gallery = Gallery(arguments, jobs, self.recipe, sheets)
        self.settings = self._settings(config)

    def sampling(self, job: Job) -> Sampling:
        """How a picture is sampled."""
        return job.cell.sampling if isinstance(job, CellJob) else self.request.sampling

    def recipe(self, job: Job) -> Recipe:
        """All that a picture depends on."""
        arguments, painter, freeu = self.arguments, self.painter, self.painter.freeu
        if isinstance(job, CellJob):
            freeu = None if job.cell.freeu is None else painter.active(job.cell.freeu)
        return Recipe(
            prompt=job.prompt,
            negative_prompt=arguments.negative_prompt,
            seed=job.seed,
            config=arguments.config,
            ckpt=arguments.ckpt,
            precision=self.precision,
            overrides=arguments.overrides,
            freeu=freeu,
            compare=arguments.compare,
            **asdict(self.sampling(job)),
        )

    def compared(self, job: Job, off: Picture, on: Picture) -> Picture:
        """The picture without FreeU beside that with it, under their names."""
        return side_by_side(off, on, self.recipe(job), self.painter.unet.freeu)

    def _settings(self, config: DictConfig) -> dict[str, Any]:
        """All that the bytes of a run's files depend on: by this a broken run is known again."""
        arguments, model = self.arguments, self.painter.model
        prompts = [job.prompt for job in self.request.jobs]
        digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        several = f"{len(prompts)} prompts of sha256 {digest[:16]}"
        layout = ("n_samples", "n_rows", "fixed_code", "skip_save", "skip_grid")
        return {
            "pictures": len(prompts),
            **asdict(self.recipe(self.request.jobs[0])),
            "prompt": several if len(set(prompts)) > 1 else prompts[0],
            **{name: getattr(arguments, name) for name in layout},
            **({"grid": list(map(str, self.request.axes))} if self.request.axes else {}),
            **({"compile": True} if arguments.compile else {}),
            "device": model.device.type,
            "weights": fingerprint(model),
            "model": OmegaConf.to_container(config.model),
        }

    def begin(self, group: Group) -> None:
        """Settles with the other processes which files there will be, and says what the user should know."""
        told = group.agree(lambda: self._caveats() if group.rank == 0 else [])
        first, opened = group.from_first(lambda: (self.settings, self.gallery.open(self.settings)))
        group.agree(lambda: self._check_same(first))
        group.agree(lambda: self.gallery.take_over(opened, group.rank))
        if group.rank == 0:
            if self.arguments.compile and self.painter.model.device.type == "cpu":
                told.append("--compile is for GPUs: on a CPU steps take up to three times as long with it")
            told += too_large(self.painter.model, self.request.sampling)
            if not opened.resumed:  # else its batches are settled
                told += self._idle(group.size)
            for line in told:
                warn(line)
            print(self._freeu())
            if opened.resumed:
                print(f"{self.gallery.done} of {len(self.request.jobs)} pictures are there already")

    def _freeu(self) -> str:
        """What FreeU does in this run, in a line."""
        if any(axis.name in FREEU_NAMES for axis in self.request.axes):
            return "FreeU is as each cell of the grid says"
        unet = self.painter.unet
        return unet.describe() if isinstance(unet, Free_UNetModel) else "FreeU is off"

    def _caveats(self) -> list[str]:
        """Warnings, for which the model is run once. Raises InputError where the memory is too small."""
        model = self.painter.model
        with room_for_the_model(model.device):
            return [*caveats(model, self.request.texts, map(self.sampling, self.request.jobs))]

    def _idle(self, processes: int) -> Iterator[str]:
        """A line where there is less to deal out than there are processes, though not than pictures."""
        units = self.gallery.units(self.painter.at_once)
        if len(units) >= min(processes, sum(map(len, units))):
            return
        dealt, remedy = f"pictures are dealt in batches of {self.painter.at_once}", "take fewer devices"
        if self.arguments.skip_save and self.gallery.shares:
            dealt = "with --skip_save pictures are dealt in whole sheets"
            remedy = f"leave it out, or {remedy}"
        elif self.arguments.from_file:
            remedy = f"give a smaller --n_samples, or {remedy}"
        elif not self.request.axes:
            remedy = f"give a smaller --n_samples with more --n_iter, or {remedy}"
        yield f"{dealt}, here {len(units)} for {processes} processes; the others stay idle: {remedy}"

    def _check_same(self, first: dict[str, Any]) -> None:
        """Raises InputError where this process would draw something else than the first one."""
        for difference in differences(first, self.settings):
            raise InputError(f"The machines have not the same to draw: {difference}.")

    def draw(self, group: Group) -> None:
        """Makes this process's share of what is missing, and writes each picture as soon as it is done."""
        gallery, painter, jobs = self.gallery, self.painter, self.request.jobs
        total = len(jobs)
        # All shares are dealt before the first file, with which comes word of what others have finished.
        units = group.share(gallery.units(painter.at_once))
        for i in group.share(gallery.ready_sheets()):
            gallery.make_sheet(i)

        # Bars show on a terminal only, and count what all processes do.
        hidden = True if group.rank else None
        with tqdm(total=total, initial=gallery.done, unit="picture", disable=hidden) as bar:
            with compiled_blocks(painter.unet) if self.arguments.compile else nullcontext():
                for unit in units:
                    pictures = painter.paint([jobs[k] for k in unit])
                    for k, picture in zip(unit, pictures, strict=True):
                        gallery.keep(k, picture)
                        bar.update(gallery.done - bar.n)
            is_last = group.ends()
            closes = gallery.closes
            while group.rank == 0 and not bar.disable and group.others_work():
                time.sleep(0.5)
                gallery.catch_up()
                bar.update(gallery.done - bar.n)

        if is_last:
            gallery.catch_up()
            if left := [*gallery.left, *gallery.sheets_left]:
                raise InputError(
                    f"{len(left)} of {len(gallery.files.names())} files are missing, such as {left[0]}: "
                    "give the same command again with --resume."
                )

        # Whoever finished the last file says so.
        if closes if gallery.had_to_write else group.rank == 0:
            files, outdir = gallery.files, self.arguments.outdir
            place = outdir / files.picture(0) if total == 1 == files.pictures else outdir
            kept = f"in {place}" if files.names() else "not kept"
            print(f"{counted(total, 'picture')} {kept}")


def draw(arguments: Namespace, config: DictConfig, device: torch.device, group: Group) -> None:
    """One process's part in a run of txt2img; alone in its group, the whole of it. Raises InputError."""
    run = group.agree(lambda: Run(arguments, config, device))
    try:
        run.begin(group)
        run.draw(group)
    finally:
        run.gallery.leave()
