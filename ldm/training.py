"""Training of the embedded model's two stages with Lightning: the autoencoder, then the diffusion model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from numpy.random import default_rng
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from ldm.data.datasets import FACTS, NO_FACT, SceneCaptions, SceneLatents, ScenePictures
from ldm.data.scenes import describe, draw_scene
from ldm.generate import Sampling, generate
from ldm.image_io import grid, save_png
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.encoders.words import WordEmbedder
from ldm.util import instantiate_from_config

SHOWN = 16  # pictures on a sheet of samples
SHOWN_SEED = 2**32  # of the scenes that are shown; training's seeds lie below


class Stage(pl.LightningModule):
    """What both stages share: the optimizer, and the weights written for inference at the end.

    The learning rate warms up over 200 steps, stays, and falls to zero over the last fifth of `max_steps`, so
    that a run can be lengthened at any time before that.
    """

    def __init__(self, lr: float, weight_decay: float, batch_size: int):
        super().__init__()
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=(0.9, 0.99), weight_decay=self.weight_decay, fused=True
        )
        total = self.trainer.max_steps

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / 200, max(0.0, (total - step) / (0.2 * total)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loader(self, dataset: torch.utils.data.Dataset) -> DataLoader:
        return DataLoader(
            dataset,
            self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=1,
            persistent_workers=True,
        )

    def save_sheet(self, pictures: list[np.ndarray], columns: int) -> None:
        """Writes pictures into the run's folder under the step's number."""
        folder = Path(self.trainer.default_root_dir) / "samples"
        folder.mkdir(exist_ok=True)
        save_png(folder / f"{self.global_step:06}.png", grid(pictures, columns))


class AutoencoderTraining(Stage):
    """The first stage: reconstruction in L1 of pixels and of their differences, lightly drawn to the normal.

    `data` goes to `ScenePictures`. `kl_weight` multiplies the mean divergence a latent number, in nats.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        batch_size: int,
        lr: float,
        kl_weight: float,
        edge_weight: float,
    ):
        super().__init__(lr, weight_decay=0.0, batch_size=batch_size)
        self.data, self.kl_weight, self.edge_weight = data, kl_weight, edge_weight
        self.model: AutoencoderKL = instantiate_from_config(model).to(memory_format=torch.channels_last)

    def training_step(self, pictures: Tensor, _: int) -> Tensor:
        reconstruction, posterior = self.model(pictures)
        error = reconstruction - pictures  # (B, 3, H, W)
        l1 = error.abs().mean()
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1 + self.edge_weight * edges + self.kl_weight * kl
        self.log_dict({"loss": loss, "l1": l1, "edges": edges, "kl": kl}, prog_bar=True)
        return loss

    def validation_step(self, pictures: Tensor, _: int) -> None:
        reconstruction = self.model.decode(self.model.encode(pictures).mode())
        error = (reconstruction.clamp(-1, 1) - pictures).square().mean() / 4
        self.log("psnr", -10 * error.log10(), prog_bar=True)
        rows = torch.cat([pictures, reconstruction]).clamp(-1, 1)
        sheet = (127.5 * (rows + 1)).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        self.save_sheet(list(sheet), columns=SHOWN)

    def train_dataloader(self) -> DataLoader:
        return self.loader(ScenePictures(**self.data))

    def val_dataloader(self) -> DataLoader:
        return DataLoader(ScenePictures(SHOWN, self.data["side"], seed=SHOWN_SEED), SHOWN)

    def export(self, path: Path) -> None:
        """Writes the autoencoder's weights, its latents brought to mean 0 and deviation 1 over 256 scenes."""
        standardise(self.model, ScenePictures(256, self.data["side"], seed=SHOWN_SEED))
        save_file({name: p.contiguous() for name, p in self.model.state_dict().items()}, path)


@torch.no_grad()
def standardise(autoencoder: AutoencoderKL, pictures: ScenePictures) -> None:
    """Brings each latent channel to mean 0 and deviation 1 on these pictures, in the two 1x1 convolutions.

    The decoder gets the old latents back, so that reconstructions stay the same.
    """
    latents = torch.cat([autoencoder.encode(batch).mode() for batch in DataLoader(pictures, 16)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))  # (C,) each
    channels = len(mean)
    weight, bias = autoencoder.post_quant_conv.parameters()
    bias.add_(weight[:, :, 0, 0] @ mean)
    weight.mul_(std[None, :, None, None])
    weight, bias = autoencoder.quant_conv.parameters()  # of means, then log variances
    weight[:channels] /= std[:, None, None, None]
    bias[:channels] = (bias[:channels] - mean) / std
    bias[channels:] -= 2 * std.log()


class WordsTraining(Stage):
    """The text encoder's own stage: each word's context has to tell all that the caption says of its thing.

    So every word of "a red circle left of a star" knows that the circle is red and that it stands left, and
    the U-Net need not find out which word goes with which. `data` goes to `SceneCaptions`.
    """

    def __init__(self, model: Mapping[str, Any], data: Mapping[str, Any], batch_size: int, lr: float):
        super().__init__(lr, weight_decay=0.01, batch_size=batch_size)
        self.data = data
        self.model: WordEmbedder = instantiate_from_config(model)
        self.answers = torch.nn.Linear(self.model.transformer.final_layer_norm.normalized_shape[0], sum(FACTS))

    def training_step(self, batch: tuple[list[str], Tensor], _: int) -> Tensor:
        captions, facts = batch  # facts (B, L, 4)
        answers = self.answers(self.model(captions)).split(FACTS, dim=-1)  # 4 of (B, L, one of FACTS)
        asked = facts.unbind(-1)
        losses = [
            F.cross_entropy(answer.flatten(0, 1), fact.flatten(), ignore_index=NO_FACT)
            for answer, fact in zip(answers, asked, strict=True)
        ]
        right = [
            (answer.argmax(-1) == fact) | (fact == NO_FACT)
            for answer, fact in zip(answers, asked, strict=True)
        ]
        self.log("right", torch.stack(right).float().mean(), prog_bar=True)
        loss = torch.stack(losses).sum()
        self.log("loss", loss, prog_bar=True)
        return loss

    def train_dataloader(self) -> DataLoader:
        return self.loader(SceneCaptions(length=self.model.max_length, **self.data))

    def export(self, path: Path) -> None:
        """Writes the text encoder's weights."""
        save_file({name: p.contiguous() for name, p in self.model.state_dict().items()}, path)


class DiffusionTraining(Stage):
    """The last stage: the U-Net, on latents of a finished autoencoder and contexts of a finished text encoder.

    `model` is a `LatentDiffusion` config; `autoencoder` and `text_encoder` are those networks' weights,
    `weights` a whole model's, whose U-Net is to be trained further. `data` goes to `SceneLatents`, which keeps
    the latents in the file `cache`.
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
    ):
        super().__init__(lr, weight_decay=0.01, batch_size=batch_size)
        self.data, self.cache = data, Path(cache)
        self.sampling = Sampling(height=side, width=side, steps=25, scale=5.0)
        self.model = instantiate_from_config(model).to(memory_format=torch.channels_last)
        if weights is not None:
            self.model.load_state_dict(load_file(weights), strict=False)  # all but the schedule
        self.model.first_stage_model.load_state_dict(load_file(autoencoder))
        self.model.cond_stage_model.load_state_dict(load_file(text_encoder))
        self.model.first_stage_model.requires_grad_(False)
        self.model.cond_stage_model.requires_grad_(False)
        self.model.model.compile()

    def training_step(self, batch: tuple[Tensor, list[str], Tensor], _: int) -> Tensor:
        latents, captions, weight = batch
        x = self.model.scale_factor * latents  # (B, C, h, w)
        # Late timesteps come more often: there, where little of the picture is left, the caption is needed.
        t = (self.model.num_timesteps * torch.rand(len(x), device=x.device).sqrt()).long()  # (B,)
        noise = torch.randn_like(x)
        context = self.model.get_learned_conditioning(captions)
        output = self.model.apply_model(self.model.q_sample(x, t, noise), t, context)
        target = noise if self.model.parameterization == "eps" else self.model.get_v(x, noise, t)
        loss = (weight * (output - target).square()).mean() / weight.mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    @torch.compiler.set_stance("force_eager")
    def validation_step(self, captions: list[str], _: int) -> None:
        self.save_sheet(generate(self.model, captions, range(len(captions)), self.sampling), columns=8)

    def train_dataloader(self) -> DataLoader:
        return self.loader(
            SceneLatents(self.cache, self.model.first_stage_model, side=self.sampling.height, **self.data)
        )

    def val_dataloader(self) -> DataLoader:
        captions: Any = [describe(draw_scene(default_rng((SHOWN_SEED, i)))) for i in range(SHOWN)]
        return DataLoader(captions, SHOWN)

    def export(self, path: Path) -> None:
        """Writes all three networks in half precision, without the schedule, which the config holds."""
        weights = {name: p.half().contiguous() for name, p in self.model.named_parameters()}
        save_file(weights, path)
