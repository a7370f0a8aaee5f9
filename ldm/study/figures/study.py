"""A study: the figures asked for, drawn from runs that they share."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ldm.config.freeu import FACTORS, UNET, remove_freeu, set_freeu, unet_section
from ldm.config.reading import load_config
from ldm.config.trust import trusting
from ldm.device import pick_device, pick_dtype
from ldm.errors import InputError
from ldm.freeu import find_preset
from ldm.generate import check, total_steps
from ldm.image_io import writable_folder
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.plots import style
from ldm.study.figures.figure import Figure, Material, Setup, remove, save
from ldm.study.figures.report import Drawn, write_claims, write_page
from ldm.study.pairs import plan_pairs
from ldm.study.runs import Run, Runs
from ldm.txt2img.caveats import warn_of_mix_up, warn_of_words
from ldm.txt2img.prompted import load_prompted
from ldm.txt2img.request import usual_sampling
from ldm.util import get_class
from ldm.weights.download import sha256
from ldm.weights.place import find_checkpoint
from ldm.wording import counted


class Study:
    """Figures of one model under parsed arguments. Raises InputError where they do not fit."""

    def __init__(self, figures: Sequence[Figure], arguments: Namespace):
        self.figures = figures
        config = load_config(arguments.config, arguments.overrides)
        device = pick_device(arguments.device)
        dtype = pick_dtype(device, arguments.precision)
        name = arguments.ckpt or config.get("checkpoint")
        with trusting(arguments.trust_config):
            add_freeu(config)
        model = load_prompted(config, name, device, dtype, arguments.download, arguments.trust_config)
        self.model, self.unet = model, model.model.diffusion_model

        self.sampling = usual_sampling(config, steps=arguments.steps)
        check(self.sampling, self.model)
        warn_of_mix_up(model)
        self.pairs = plan_pairs(arguments.prompts, arguments.seeds, self.model.cond_stage_model)
        warn_of_words(self.model.cond_stage_model, [pair.prompt for pair in self.pairs])

        digest = sha256(find_checkpoint(name))
        precision = str(dtype).removeprefix("torch.")
        remove_freeu(config)  # which every run names itself
        described = json.dumps(OmegaConf.to_container(config.model), sort_keys=True)
        self.folder = writable_folder(arguments.outdir)
        self.runs = Runs(
            self.model, self.folder / "runs", " ".join([described, digest, precision, device.type])
        )
        self.settings: dict[str, Any] = {
            "config": arguments.config,
            "checkpoint": Path(name).name,
            "sha256": digest,
            "precision": precision,
            "device": device.type,
            "overrides": arguments.overrides,
            "sampling": asdict(self.sampling),
            "freeu": asdict(self.unet.freeu),
            "pairs": [asdict(pair) for pair in self.pairs],
        }

    def draw(self) -> str:
        """Makes what runs are lacking and draws every figure as soon as its own are there.

        Returns the table of claims.
        """
        needed = self.needed()
        drawn: list[Drawn] = []
        with tqdm(total=self.work(needed), unit="step", disable=None) as bar, style():
            for figure in self.figures:
                bar.set_description(f"figure {figure.label}")
                runs = needed[figure.number]
                for batch in self.runs.batches(run for of_variant in runs.values() for run in of_variant):
                    self.runs.make(batch, bar.update)
                kept = {variant: [self.runs.read(run) for run in them] for variant, them in runs.items()}
                drawing = figure.draw(Material(self.pairs, self.unet.decoder_stages, kept))
                variants = {variant: them[0].freeu for variant, them in runs.items()}
                for name in ("figures.html", "claims.md"):  # which tell of all figures as they were
                    remove(self.folder / name)
                save(figure, drawing, variants, self.settings, self.folder)
                drawn.append(Drawn(figure, drawing.checks, variants))
                bar.update()
        write_page(drawn, self.facts(), self.settings["config"], self.folder)
        return write_claims(drawn, self.facts(), self.folder)

    def needed(self) -> dict[int, dict[str, list[Run]]]:
        """For each figure's number the runs of each variant, one a pair; what one watches all share."""
        setup = Setup(self.unet.freeu, self.unet.decoder_stages)
        variants = {figure.number: figure.variants(setup) for figure in self.figures}
        watched = [
            freeu for figure in self.figures if figure.watched for freeu in variants[figure.number].values()
        ]
        return {
            number: {
                name: [Run(pair, freeu, self.sampling, freeu in watched) for pair in self.pairs]
                for name, freeu in of_figure.items()
            }
            for number, of_figure in variants.items()
        }

    def work(self, needed: dict[int, dict[str, list[Run]]]) -> int:
        """How many steps there are to do: of the sampler, and one for each figure."""
        runs = [
            run for of_figure in needed.values() for of_variant in of_figure.values() for run in of_variant
        ]
        return len(self.runs.batches(runs)) * total_steps(self.model, self.sampling) + len(self.figures)

    def facts(self) -> str:
        """What the numbers rest on, in a line."""
        sampling, facts = self.sampling, self.settings
        square = "" if sampling.height == sampling.width else " Spectra are of the middle square."
        return (
            f"Measured on {facts['checkpoint']} (sha256 {facts['sha256'][:12]}…) over "
            f"{counted(len(self.pairs), 'pair')} of prompt and seed: {counted(sampling.steps, 'DDIM step')}, "
            f"guidance {sampling.scale:g}, {sampling.width}x{sampling.height} pixels, {facts['precision']}."
            f"{square} Intervals are Student's t over the pairs, for these prompts; a claim holds where its "
            "whole interval is above zero."
        )


def add_freeu(config: DictConfig) -> None:
    """Gives a config's plain U-Net FreeU with the factors of SD1.4, which are the paper's own model's.

    Raises InputError where there is no U-Net with skips to look at.
    """
    target = unet_section(config).get("target")
    if not issubclass(get_class(target), UNetModel):
        raise InputError(f"The figures look at a U-Net's skip concatenations, but {target} has none.")
    if target == UNET:
        preset = asdict(find_preset("sd14"))
        set_freeu(config, {name: preset[name] for name in FACTORS})
