"""A run of txt2img: from its arguments and its config to the files in its folder."""

import hashlib
import json
from argparse import Namespace
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ldm.caveats import caveats, warn
from ldm.checkpoint import fingerprint, load_model
from ldm.device import pick_device, pick_dtype
from ldm.errors import InputError
from ldm.gallery import Gallery
from ldm.generate import check
from ldm.jobs import Job
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.painter import Painter
from ldm.recipe import Recipe
from ldm.request import DTYPES, read_request


class Run:
    """A run of txt2img under its parsed arguments and its config. Raises InputError."""

    def __init__(self, arguments: Namespace, config: DictConfig):
        self.arguments = arguments
        self.request = read_request(arguments, config)
        device = pick_device(arguments.device)
        dtype = DTYPES.get(arguments.precision) or pick_dtype(device)
        self.precision = {dtype: name for name, dtype in DTYPES.items()}[dtype]
        model = load_model(
            config,
            arguments.ckpt,
            device,
            dtype,
            download=arguments.download,
            trust_config=arguments.trust_config,
        )
        if not isinstance(model, LatentDiffusion) or isinstance(model.cond_stage_model, torch.nn.Identity):
            raise InputError("The config's model draws no prompts; its target has to be LatentDiffusion.")
        sampling = self.request.sampling
        check(sampling, model)
        self.painter = Painter(
            model, sampling, arguments.negative_prompt, arguments.compare, arguments.n_samples
        )
        self.gallery = Gallery(arguments, self.request.jobs, self.recipe)
        self.gallery.take_over(self.gallery.open(self.settings(config)))
        for line in caveats(model, self.request.texts):
            warn(line)

    def recipe(self, job: Job) -> Recipe:
        """All that a picture depends on."""
        arguments = self.arguments
        return Recipe(
            prompt=job.prompt,
            negative_prompt=arguments.negative_prompt,
            seed=job.seed,
            config=arguments.config,
            ckpt=arguments.ckpt,
            precision=self.precision,
            overrides=arguments.overrides,
            freeu=self.painter.freeu,
            compare=arguments.compare,
            **asdict(self.request.sampling),
        )

    def settings(self, config: DictConfig) -> dict[str, Any]:
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
            "device": model.device.type,
            "weights": fingerprint(model),
            "model": OmegaConf.to_container(config.model),
        }

    def draw(self) -> None:
        """Makes every picture that is not there yet, and writes it as soon as it is done."""
        gallery, painter, jobs = self.gallery, self.painter, self.request.jobs
        total = len(jobs)
        print(painter.unet.describe() if painter.freeu else "FreeU is off")
        if gallery.resumed:
            print(f"{gallery.done} of {total} pictures are there already")
        for i in gallery.ready_sheets():
            gallery.make_sheet(i)

        # Bars show on a terminal only.
        with tqdm(total=total, initial=gallery.done, unit="picture", disable=None) as bar:
            for unit in gallery.units(painter.at_once):
                pictures = painter.paint([jobs[k] for k in unit])
                for k, picture in zip(unit, pictures, strict=True):
                    gallery.keep(k, picture)
                    bar.update(gallery.done - bar.n)
        kept = "not kept" if not gallery.files.names() else f"in {self.arguments.outdir}"
        print(f"{total} {'picture' if total == 1 else 'pictures'} {kept}")
