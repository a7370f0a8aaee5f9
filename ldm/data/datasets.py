"""Scenes as training data: pictures for the autoencoder, latents with captions for the diffusion model."""

from pathlib import Path

import numpy as np
import torch
from numpy.random import default_rng
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ldm.data.render import render
from ldm.data.scenes import Scene, describe, draw_scene
from ldm.errors import InputError
from ldm.models.autoencoder import AutoencoderKL


def picture_tensor(picture: np.ndarray) -> Tensor:
    """Bytes (H, W, 3) to a float picture (3, H, W) in [-1, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1


class ScenePictures(Dataset):
    """`count` scenes as pictures (3, side, side), or as crops of them with a thing in it, (3, crop, crop)."""

    def __init__(self, count: int, side: int = 128, crop: int | None = None, seed: int = 0):
        self.count, self.side, self.crop, self.seed = count, side, crop or side, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        scene = draw_scene(default_rng((self.seed, index)))
        picture = picture_tensor(render(scene, self.side))
        thing = scene.things[int(torch.randint(len(scene.things), ()))]
        top, left = (
            min(max(0, int(self.side * middle - self.crop * share)), self.side - self.crop)
            for middle, share in zip((thing.y, thing.x), torch.rand(2).tolist(), strict=True)
        )
        return picture[:, top : top + self.crop, left : left + self.crop]


class SceneLatents(Dataset):
    """`count` scenes as latents (C, h, w) with a caption each, worded anew every time.

    The latents are the posterior's means, in float16, encoded once and kept in the file `cache`. A share
    `unconditional` of the captions is empty, so that the model learns what guidance needs. Beside them comes
    what each position counts in the loss, (1, h, w).
    """

    def __init__(
        self, cache: Path, autoencoder: AutoencoderKL, count: int, side: int, seed: int, unconditional: float
    ):
        self.seed, self.unconditional = seed, unconditional
        if not cache.is_file():
            encode_scenes(cache, autoencoder, count, side, seed)
        self.latents = np.load(cache, mmap_mode="r")
        if len(self.latents) != count:
            raise InputError(
                f"{cache} holds {len(self.latents)} latents, the config asks for {count}: remove it."
            )

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> tuple[Tensor, str, Tensor]:
        rng = default_rng(int(torch.randint(2**31, ())))
        latent = torch.from_numpy(self.latents[index].astype(np.float32))
        scene = draw_scene(default_rng((self.seed, index)))
        caption = "" if rng.random() < self.unconditional else describe(scene, rng)
        return latent, caption, loss_weight(scene, *latent.shape[1:])


def loss_weight(scene: Scene, height: int, width: int) -> Tensor:
    """6 where a thing is and 1 elsewhere, (1, height, width): things fill a tenth of a picture, and most of
    its caption is about them.
    """
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    near = [torch.hypot(x - thing.x, y - thing.y) < 1.15 * thing.radius + 0.03 for thing in scene.things]
    return 1.0 + 5.0 * torch.stack(near).any(0, keepdim=True)


@torch.no_grad()
def encode_scenes(cache: Path, autoencoder: AutoencoderKL, count: int, side: int, seed: int) -> None:
    """Renders and encodes `count` scenes into the file `cache`, (count, C, h, w) in float16."""
    pictures = ScenePictures(count, side, seed=seed)
    loader = torch.utils.data.DataLoader(pictures, batch_size=16, num_workers=1)
    device = next(autoencoder.parameters()).device
    latents = [
        autoencoder.encode(batch.to(device)).mode().half().cpu().numpy()
        for batch in tqdm(loader, desc="encoding scenes", unit="batch")
    ]
    np.save(cache, np.concatenate(latents))
