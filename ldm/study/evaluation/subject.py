"""The model that is measured: how it is sampled, and where the pictures of it are kept."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from ldm.checkpoint import fingerprint
from ldm.config.freeu import remove_freeu, set_freeu
from ldm.device import pick_device, pick_dtype
from ldm.errors import InputError, refusing
from ldm.freeu import FreeUSettings
from ldm.generate import check, total_steps
from ldm.image_io import writable_folder
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.study.evaluation.asked import Asked
from ldm.study.evaluation.measures import Weights
from ldm.study.pictures import Pictures
from ldm.study.runs import Run, Runs
from ldm.txt2img.caveats import warn_of_mix_up
from ldm.txt2img.prompted import load_prompted
from ldm.txt2img.request import usual_sampling


class Subject:
    """A model under parsed arguments and its config. Raises InputError where they do not fit.

    `sampling` is how its pictures are made, `runs` keeps them, `facts` say all of it.
    """

    def __init__(self, arguments: Namespace, config: DictConfig):
        given = {name: getattr(arguments, name) for name in ("steps", "scale", "sampler")}
        self.sampling = usual_sampling(config, **given)

        config = config.copy()
        set_freeu(config, {})  # so that a plain U-Net takes settings too
        device = pick_device(arguments.device)
        dtype = pick_dtype(device, arguments.precision)
        model = load_prompted(
            config, arguments.ckpt, device, dtype, arguments.download, arguments.trust_config
        )
        unet = model.model.diffusion_model
        if not isinstance(unet, Free_UNetModel):
            raise InputError(
                f"FreeU works on a U-Net's skip concatenations, but {type(unet).__name__} has none."
            )
        self.model, self.unet = model, unet
        check(self.sampling, model)
        warn_of_mix_up(model)

        self.folder = writable_folder(arguments.outdir)
        remove_freeu(config)  # which every run names itself
        described = json.dumps(OmegaConf.to_container(config.model), sort_keys=True)
        self.identity = " ".join([described, fingerprint(model), str(dtype), device.type])
        self.runs = Runs(model, self.folder / "runs", self.identity)
        self.facts: dict[str, Any] = {
            "config": arguments.config,
            "checkpoint": checkpoint_name(arguments, config),
            "weights": fingerprint(model),
            "device": device.type,
            "precision": str(dtype).removeprefix("torch."),
            "overrides": arguments.overrides,
            "sampling": asdict(self.sampling),
            "paths": {name: path and str(path) for name, path in asdict(weights_of(arguments)).items()},
        }

    @property
    def side(self) -> tuple[int, int]:
        """Height and width of its pictures."""
        return self.sampling.height, self.sampling.width

    def fit(self, settings: dict[str, FreeUSettings]) -> None:
        """Raises InputError where the U-Net does not take one of these settings."""
        for name, freeu in settings.items():
            with refusing(f"{name} does not fit this model. "):
                self.unet.factors_of(freeu)

    def runs_of(self, asked: Asked, freeu: FreeUSettings | None, **changes: Any) -> list[Run]:
        """The runs of what is asked, prompt after prompt; `changes` are to how they are sampled."""
        sampling = replace(self.sampling, **changes)
        return [Run(pair, freeu, sampling, False) for pairs in asked.pairs for pair in pairs]

    def work(self, runs: Sequence[Run]) -> int:
        """How many steps it takes to sample those of the runs that are not there yet."""
        return sum(total_steps(self.model, batch[0].sampling) for batch in self.runs.batches(runs))

    def draw(self, runs: Sequence[Run], on_step: Callable[[], object]) -> None:
        """Samples those of the runs that are not there yet."""
        for batch in self.runs.batches(runs):
            self.runs.make(batch, on_step)

    def pictures(self, asked: Asked, runs: Sequence[Run]) -> Pictures:
        """The pictures of such runs, (P, S, H, W, 3)."""
        pictures = np.empty((len(runs), *self.side, 3), np.uint8)  # filled one by one, not held twice
        for i, run in enumerate(runs):
            pictures[i] = self.runs.read(run)["picture"]
        return pictures.reshape(len(asked.pairs), -1, *pictures.shape[1:])


def checkpoint_name(arguments: Namespace, config: DictConfig) -> str:
    """The weights' file as the arguments name it, or else the config."""
    return str(arguments.ckpt or config.get("checkpoint"))


def weights_of(arguments: Namespace) -> Weights:
    """What measures are given by path."""
    return Weights(arguments.clip, arguments.aesthetic, arguments.inception, arguments.reference)
