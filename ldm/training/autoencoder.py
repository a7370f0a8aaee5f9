"""The autoencoder's stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldm.data.datasets import ScenePictures
from ldm.errors import InputError
from ldm.generate import seeded_noise
from ldm.models.autoencoder import AutoencoderKL
from ldm.training.stage import SHOWN, SHOWN_SEED, Stage, load_weights, write_weights
from ldm.util import instantiate_from_config


class AutoencoderTraining(Stage):
    """Reconstruction in L1 of pixels and of their differences, lightly drawn to the normal.

    `data` goes to `ScenePictures`. `kl_weight` multiplies the mean divergence a latent number, in nats.
    `weights` are an autoencoder's to be trained further; with `decoder_only` its latents stay as they are, so
    that a diffusion model of them goes on to fit.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        batch_size: int,
        lr: float,
        kl_weight: float,
        edge_weight: float,
        weights: str | None = None,
        decoder_only: bool = False,
    ):
        super().__init__(lr, weight_decay=0.0, batch_size=batch_size)
        self.pictures, self.kl_weight, self.edge_weight = ScenePictures(**data), kl_weight, edge_weight
        self.decoder_only = decoder_only
        self.model: AutoencoderKL = instantiate_from_config(model).to(memory_format=torch.channels_last)
        side, crop, multiple = self.pictures.side, self.pictures.crop, self.model.downsampling
        if side % multiple or crop % multiple or crop > side:
            raise InputError(
                f"params.data.crop is {crop} and params.data.side {side}: give multiples of {multiple}, the "
                "crop no larger than the side."
            )
        if weights is not None:
            load_weights(self.model, weights, "weights")
        if decoder_only:
            self.model.encoder.requires_grad_(False).eval()
            self.model.quant_conv.requires_grad_(False).eval()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        seeds, pictures = batch
        posterior = self.model.encode(pictures)
        noise = seeded_noise(seeds.tolist())(posterior.mean.shape).to(pictures)
        reconstruction = self.model.decode(posterior.mean + posterior.std * noise)
        error = reconstruction - pictures  # (B, 3, H, W)
        l1 = error.abs().mean()
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1 + self.edge_weight * edges + self.kl_weight * kl
        self.log_dict({"loss": loss, "l1": l1, "edges": edges, "kl": kl}, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, pictures: Tensor, _: int) -> None:
        reconstruction = self.model.decode(self.model.encode(pictures).mode())
        error = (reconstruction.clamp(-1, 1) - pictures).square().mean() / 4
        self.log("psnr", -10 * error.log10(), prog_bar=True)
        rows = torch.cat([pictures, reconstruction]).clamp(-1, 1)
        sheet = (127.5 * (rows + 1)).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        self.save_sheet(list(sheet), columns=SHOWN)

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.pictures)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(ScenePictures(SHOWN, self.pictures.side, seed=SHOWN_SEED), SHOWN)

    def export(self, path: Path) -> None:
        """Writes the autoencoder's weights, its latents brought to mean 0 and deviation 1 over 256 scenes.

        Where the decoder alone was trained they stay what they were, to the last bit.
        """
        if not self.decoder_only:
            standardise(self.model, ScenePictures(256, self.pictures.side, seed=SHOWN_SEED))
        write_weights(path, self.model.state_dict())


@torch.no_grad()
def standardise(autoencoder: AutoencoderKL, pictures: ScenePictures) -> None:
    """Brings each latent channel to mean 0 and deviation 1 on these pictures, in the two 1x1 convolutions.

    The decoder gets the old latents back, so that reconstructions stay the same. It is in eval mode then.
    """
    autoencoder.eval()
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
