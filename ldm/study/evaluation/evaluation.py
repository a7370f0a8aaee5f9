"""An evaluation: FreeU's settings against the plain model, on the same prompts and the same noise."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from torch import nn
from tqdm import tqdm

from ldm.checkpoint import fingerprint, load_model
from ldm.device import pick_device, pick_dtype
from ldm.errors import InputError
from ldm.freeu import FreeUSettings
from ldm.generate import Sampling, check
from ldm.image_io import writable_folder
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.request import DTYPES, usual_settings
from ldm.study.evaluation import bootstrap
from ldm.study.evaluation.asked import plan
from ldm.study.evaluation.bootstrap import Estimate, Numbers, Statistic, compare, resamples, spread
from ldm.study.evaluation.guidance import guidance_ratios
from ldm.study.evaluation.measures import RENDERS, Meter, Weights, check_names, choose
from ldm.study.evaluation.settings import read_settings
from ldm.study.pictures import Pictures
from ldm.study.runs import AT_ONCE, Run, Runs
from ldm.study.watch import total_steps
from ldm.util import load_config, remove_freeu, set_freeu

PROBES = 16  # prompts over which a setting's ratio of guidance is measured, with one seed each
SHOWN = 3  # prompts in the picture


@dataclass(frozen=True)
class Variant:
    """A setting at a scale of guidance; `freeu` is None for the plain model."""

    setting: str
    freeu: FreeUSettings | None
    scale: float
    matched: bool  # whether the scale is that at which it guides as far as the plain model

    @property
    def label(self) -> str:
        return f"{self.setting} matched" if self.matched else self.setting


@dataclass(frozen=True)
class Result:
    """What came out for a variant: its measures, and by how much they differ from those of FreeU off."""

    variant: Variant
    statistics: dict[str, Statistic]
    estimates: dict[str, Estimate]
    shown: Pictures  # of the first prompts with their first seeds, (n, H, W, 3)


class Evaluation:
    """Settings of one model to compare, under parsed arguments. Raises InputError where they do not fit."""

    def __init__(self, arguments: Namespace):
        config = load_config(arguments.config, arguments.overrides)
        name = str(arguments.ckpt or config.get("checkpoint"))
        self.settings = read_settings(arguments.settings, config, name)
        weights = Weights(arguments.clip, arguments.aesthetic, arguments.reference)
        metrics = arguments.metrics or []
        check_names(metrics, weights)
        usual = usual_settings(config)
        usual.pop("prompt", None)
        given = {"steps": arguments.steps, "scale": arguments.scale}
        usual |= {name: value for name, value in given.items() if value is not None}
        self.sampling = Sampling(**usual, sampler=arguments.sampler)

        set_freeu(config, {})  # so that a plain U-Net takes settings too
        device = pick_device(arguments.device)
        dtype = DTYPES.get(arguments.precision) or pick_dtype(device)
        model = load_model(
            config,
            arguments.ckpt,
            device,
            dtype,
            download=arguments.download,
            trust_config=arguments.trust_config,
        )
        self.model = checked(model, self.settings)
        check(self.sampling, self.model)
        self.asked = plan(arguments.prompts, arguments.held_out, arguments.seeds, self.model.cond_stage_model)
        self.metrics = choose(metrics, self.asked, (self.sampling.height, self.sampling.width), weights)
        self.meter = Meter(self.metrics, self.asked, arguments.held_out, weights, device)

        self.folder = writable_folder(arguments.outdir)
        remove_freeu(config)  # which every run names itself
        described = json.dumps(OmegaConf.to_container(config.model), sort_keys=True)
        identity = " ".join([described, fingerprint(self.model), str(dtype), device.type])
        self.runs = Runs(self.model, self.folder / "runs", identity)
        self.facts: dict[str, Any] = {
            "config": arguments.config,
            "checkpoint": name,
            "weights": fingerprint(self.model),
            "device": device.type,
            "precision": str(dtype).removeprefix("torch."),
            "overrides": arguments.overrides,
            "sampling": asdict(self.sampling),
            "prompts": self.asked.prompts,
            "held_out": arguments.held_out,
            "seeds_each": arguments.seeds,
            "paths": {name: path and str(path) for name, path in asdict(weights).items()},
            "true_renders": RENDERS if self.meter.by_judge else None,
            "bootstrap": {
                "draws": bootstrap.DRAWS,
                "seed": bootstrap.SEED,
                "confidence": bootstrap.CONFIDENCE,
                "resampled": "prompts",
            },
        }

    def run(self) -> tuple[list[Result], dict[str, float]]:
        """What came out, FreeU off first, and of each setting how many times it guides as far as without."""
        ratios = self.ratios()
        variants = self.variants(ratios)
        self.draw(variants)
        counts = resamples(len(self.asked.pairs))
        results: list[Result] = []
        off: dict[str, Numbers] = {}
        for variant in tqdm(variants, "measuring", unit="setting", disable=None):
            pictures = self.pictures(variant)
            statistics = self.meter.measure(pictures)
            spreads = {name: spread(statistic, counts) for name, statistic in statistics.items()}
            off = off or spreads
            estimates = {name: compare(spreads[name], off[name]) for name in spreads}
            results.append(Result(variant, statistics, estimates, pictures[:SHOWN, 0]))
        return results, ratios

    def ratios(self) -> dict[str, float]:
        """The ratio of guidance of each setting, rounded; none where sampling is not guided."""
        if self.sampling.scale == 1:
            return {}
        probes = [pairs[0] for pairs in self.asked.pairs[:PROBES]]
        f = self.model.first_stage_model.downsampling
        size = max(1, AT_ONCE // (self.sampling.height // f * (self.sampling.width // f)))
        batches = [probes[start : start + size] for start in range(0, len(probes), size)]
        total = len(batches) * total_steps(self.model, self.sampling)
        with tqdm(total=total, desc="guidance", unit="step", disable=None) as bar:
            settings = list(self.settings.values())
            ratios = guidance_ratios(self.model, batches, self.sampling, settings, bar.update)
        return {name: round(ratio, 3) for name, ratio in zip(self.settings, ratios, strict=True)}

    def variants(self, ratios: dict[str, float]) -> list[Variant]:
        """FreeU off, then each setting at the same guidance and at the matched one."""
        scale = self.sampling.scale
        variants = [Variant("off", None, scale, matched=False)]
        for name, freeu in self.settings.items():
            variants.append(Variant(name, freeu, scale, matched=False))
            if name in ratios:
                variants.append(Variant(name, freeu, round(scale / ratios[name], 3), matched=True))
        return variants

    def runs_of(self, variant: Variant) -> list[Run]:
        """The runs that a variant's pictures come from, prompt after prompt."""
        sampling = replace(self.sampling, scale=variant.scale)
        return [Run(pair, variant.freeu, sampling, False) for pairs in self.asked.pairs for pair in pairs]

    def draw(self, variants: Sequence[Variant]) -> None:
        """Samples what is not there yet."""
        batches = self.runs.batches(run for variant in variants for run in self.runs_of(variant))
        total = len(batches) * total_steps(self.model, self.sampling)
        with tqdm(total=total, desc="pictures", unit="step", disable=None) as bar:
            for batch in batches:
                self.runs.make(batch, bar.update)

    def pictures(self, variant: Variant) -> Pictures:
        """A variant's pictures, (P, S, H, W, 3)."""
        pictures = np.stack([self.runs.read(run)["picture"] for run in self.runs_of(variant)])
        return pictures.reshape(len(self.asked.pairs), -1, *pictures.shape[1:])


def checked(model: Any, settings: dict[str, FreeUSettings]) -> LatentDiffusion:
    """The model. Raises InputError where it draws no prompts, or its U-Net does not take the settings."""
    if not isinstance(model, LatentDiffusion) or isinstance(model.cond_stage_model, nn.Identity):
        raise InputError("The config's model draws no prompts; its target has to be LatentDiffusion.")
    unet = model.model.diffusion_model
    if not isinstance(unet, Free_UNetModel):
        raise InputError(f"FreeU works on a U-Net's skip concatenations, but {type(unet).__name__} has none.")
    for name, freeu in settings.items():
        try:
            unet.freeu = freeu
        except ValueError as fault:
            raise InputError(f"{name} does not fit this model. {fault}") from None
    return model
