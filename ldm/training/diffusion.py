"""The U-Net's stage."""

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from numpy.random import default_rng
from torch import Tensor
from torch.utils.data import DataLoader

from ldm.data.datasets import SceneLatents
from ldm.data.scenes import describe, draw_scene
from ldm.generate import Sampling, check, generate
from ldm.training.stage import SHOWN, SHOWN_SEED, Stage, load_weights, write_weights
from ldm.util import instantiate_from_config


def mostly_late(chance: Tensor) -> Tensor:
    """Fractions of the diffusion run from even chances in [0, 1), by Kumaraswamy's distribution of 2 and 3/2.

    Two thirds of the way into the noise are met most often: there the caption is needed and shapes are made.
    Before it the picture tells what is missing, and after it hardly anything can be made out.
    """
    return (1 - (1 - chance) ** (2 / 3)).sqrt()


class DiffusionTraining(Stage):
    """The U-Net learns on latents of a finished autoencoder and contexts of a finished text encoder.

    `model` is a `LatentDiffusion` config. `autoencoder` and `text_encoder` are those networks' weights, or
    `weights` is a whole model's, to be trained further. `data` goes to `SceneLatents`, which keeps the
    latents in the file `cache`. With `bfloat16` the U-Net multiplies in that, else in the
    trainer's precision.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        autoencoder: str,
        text_encoder: str,
        cache: str,
        batch_size: int,
        lr: float,
        side: int,
        weights: str | None = None,
        bfloat16: bool = False,
    ):
        super().__init__(lr, weight_decay=0.01, batch_size=batch_size)
        self.data, self.cache, self.in_bfloat16 = data, Path(cache), bfloat16
        self.sampling = Sampling(height=side, width=side, steps=25, scale=5.0)
        self.model = instantiate_from_config(model).to(memory_format=torch.channels_last)
        check(self.sampling, self.model)
        # Making the latents takes long, so what does not fit is refused before.
        inspect.signature(SceneLatents).bind(cache, self.model.first_stage_model, side=side, **data)
        if weights is not None:
            load_weights(self.model, weights, "weights", strict=False)  # they hold no schedule
        else:
            load_weights(self.model.first_stage_model, autoencoder, "autoencoder")
            load_weights(self.model.cond_stage_model, text_encoder, "text_encoder")
        self.model.first_stage_model.requires_grad_(False).eval()
        self.model.cond_stage_model.requires_grad_(False).eval()

    def training_step(self, batch: tuple[Tensor, tuple[Tensor, list[str], Tensor]], _: int) -> Tensor:
        seeds, (latents, captions, weight) = batch
        x = self.model.scale_factor * latents  # (B, C, h, w)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)
        chance = torch.cat([torch.rand(1, generator=g) for g in generators]).to(x.device)
        t = (self.model.num_timesteps * mostly_late(chance)).long()  # (B,)
        context = self.model.get_learned_conditioning(captions)
        kind = x.device.type
        with torch.autocast(kind, torch.bfloat16) if self.in_bfloat16 else nullcontext():
            output = self.model.apply_model(self.model.q_sample(x, t, noise), t, context)
        target = noise if self.model.parameterization == "eps" else self.model.get_v(x, noise, t)
        loss = (weight * (output - target).square()).mean() / self.everywhere(weight.mean())
        self.log("loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, captions: list[str], _: int) -> None:
        self.save_sheet(generate(self.model, captions, range(len(captions)), self.sampling), columns=8)

    def train_dataloader(self) -> DataLoader:
        self.check_batches(self.data["count"])

        # The first process encodes the scenes, should they not be there yet, and the others wait.
        def latents() -> SceneLatents:
            side = self.sampling.height
            return SceneLatents(self.cache, self.model.first_stage_model, side=side, **self.data)

        if self.trainer.is_global_zero:
            latents()
        self.trainer.strategy.barrier()
        return self.loader(latents())

    def val_dataloader(self) -> DataLoader:
        captions: Any = [describe(draw_scene(default_rng((SHOWN_SEED, i)))) for i in range(SHOWN)]
        return DataLoader(captions, SHOWN)

    def export(self, path: Path) -> None:
        """Writes all three networks in half precision, without the schedule, which the config holds."""
        write_weights(path, {name: p.half() for name, p in self.model.named_parameters()})
