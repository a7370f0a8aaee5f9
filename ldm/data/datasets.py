"""Scenes as training data: pictures for the autoencoder, latents with captions for the diffusion model."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import default_rng
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ldm.checkpoint import fingerprint
from ldm.data.render import render
from ldm.data.scenes import Scene, describe, draw_scene
from ldm.errors import InputError
from ldm.files import written_whole
from ldm.image_io import writable_folder
from ldm.models.autoencoder import AutoencoderKL


def picture_tensor(picture: np.ndarray) -> Tensor:
    """Bytes (H, W, 3) to a float picture (3, H, W) in [-1, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1


class ScenePictures(Dataset):
    """`count` scenes as pictures (3, side, side), or as crops of them with a thing in it, (3, crop, crop)."""

    def __init__(self, count: int, side: int = 128, crop: int | None = None, seed: int = 1):
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

    The latents are the posterior's means, in float16, encoded once and kept in the file `cache`; InputError
    tells where it holds those of other scenes or of another encoder. A share `unconditional` of the captions
    is empty, so that the model learns what guidance needs. Beside them comes what each position counts in the
    loss, (1, h, w).
    """

    def __init__(
        self, cache: Path, autoencoder: AutoencoderKL, count: int, side: int, seed: int, unconditional: float
    ):
        self.seed, self.unconditional = seed, unconditional
        asked = {"count": count, "side": side, "seed": seed, "encoder": encoder_fingerprint(autoencoder)}
        if not cache.exists():
            encode_scenes(cache, autoencoder, asked)
        self.latents, held = read_latents(cache)
        differing = [
            f"{key} {held.get(key)}, not {value}" for key, value in asked.items() if held.get(key) != value
        ]
        if differing:
            raise InputError(
                f"{cache} holds other latents than the config asks for ({'; '.join(differing)}): "
                "remove it, and they are encoded anew."
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


def encoder_fingerprint(autoencoder: AutoencoderKL) -> str:
    """A short name for the weights that make latents, the same in single and in half precision."""
    encoder = nn.ModuleList([autoencoder.encoder, autoencoder.quant_conv])
    return fingerprint(copy.deepcopy(encoder).half())


@torch.no_grad()
def encode_scenes(cache: Path, autoencoder: AutoencoderKL, asked: dict[str, Any]) -> None:
    """Renders and encodes scenes into the file `cache`, an .npy of (count, C, h, w) in float16.

    Behind the array the file holds what was `asked`, as JSON. The autoencoder is in eval mode then.
    """
    autoencoder.eval()
    writable_folder(cache.parent)
    pictures = ScenePictures(asked["count"], asked["side"], seed=asked["seed"])
    loader = torch.utils.data.DataLoader(pictures, batch_size=16, num_workers=1)
    device = next(autoencoder.parameters()).device
    with written_whole(cache) as file:
        for batch in tqdm(loader, desc="encoding scenes", unit="batch"):
            latents = autoencoder.encode(batch.to(device)).mode().half().cpu().numpy()
            if file.tell() == 0:
                header = np.lib.format.header_data_from_array_1_0(latents)
                shape = (len(pictures), *latents.shape[1:])
                np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
            file.write(latents.tobytes())
        file.write(json.dumps(asked).encode())


def read_latents(cache: Path) -> tuple[np.memmap, dict[str, Any]]:
    """The latents in a file that `encode_scenes` wrote, mapped, and what was asked of it."""
    try:
        latents = np.lib.format.open_memmap(cache, mode="r")
        with cache.open("rb") as file:
            file.seek(latents.offset + latents.nbytes)
            return latents, json.loads(file.read())
    except OSError as fault:
        raise InputError(f"{cache} cannot be read: {fault.strerror or fault}.") from None
    except ValueError:
        raise InputError(
            f"{cache} was cut off, or does not say what its latents are of: "
            "remove it, and they are encoded anew."
        ) from None
