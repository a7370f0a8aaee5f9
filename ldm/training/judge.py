"""The stage of the judge, which tells what is in a picture of the embedded model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.random import default_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.data.datasets import picture_tensor
from ldm.data.judge import BEHIND, CELLS, SEEN, SIDE, Judge
from ldm.data.render import render
from ldm.data.scenes import COLOURS, SHAPES, TEXTURES, draw_scene
from ldm.training.stage import Stage, write_weights

NOTHING = -100


class JudgedScenes(Dataset):
    """`count` scenes as pictures (3, 128, 128), each with what is where, (3, 16, 16), and behind, (2,).

    Half of them hold pairs that the generator never sees. Blur and noise spare the judge no softness of a
    generator's pictures.
    """

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = default_rng((self.seed, index))
        scene = draw_scene(rng, held_out=bool(index % 2))
        picture = picture_tensor(render(scene, SIDE))
        picture = blurred(picture, sigma=rng.uniform(0.1, 1.3)) + rng.uniform(0, 0.08) * torch.randn(
            picture.shape
        )
        where = torch.full((3, CELLS, CELLS), NOTHING)
        for thing in scene.things:
            facts = (
                SHAPES.index(thing.shape),
                COLOURS.index(thing.colour),
                TEXTURES.index(thing.texture),
            )
            where[:, int(thing.y * CELLS), int(thing.x * CELLS)] = torch.tensor(facts)
        behind = (COLOURS.index(scene.background), TEXTURES.index(scene.background_texture))
        return picture, where, torch.tensor(behind)


def blurred(picture: Tensor, sigma: float) -> Tensor:
    """A picture (3, H, W) under a Gaussian of `sigma` pixels."""
    kernel = torch.exp(-0.5 * (torch.arange(-4.0, 5.0) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    rows = F.conv2d(F.pad(picture, (4, 4, 0, 0), mode="replicate"), kernel, groups=3)
    return F.conv2d(F.pad(rows, (0, 0, 4, 4), mode="replicate"), kernel.mT, groups=3)


class JudgeTraining(Stage):
    """The judge learns on true renders what is where. `data` goes to `JudgedScenes`.

    Of several processes each normalises by its own share of a batch.
    """

    def __init__(self, data: Mapping[str, Any], batch_size: int, lr: float):
        super().__init__(lr, weight_decay=0.01, batch_size=batch_size)
        self.scenes, self.model = JudgedScenes(**data), Judge()

    def training_step(self, batch: tuple[Tensor, tuple[Tensor, Tensor, Tensor]], _: int) -> Tensor:
        _seeds, (pictures, where, behind) = batch  # (B, 3, 128, 128), (B, 3, 16, 16), (B, 2)
        cells, whole = self.model(pictures)
        presence, *seen = cells.split(SEEN, dim=1)

        # The cells around a thing's middle are neither right nor wrong.
        here = (where[:, :1] != NOTHING).float()
        counted = (F.max_pool2d(here, 3, stride=1, padding=1) == 0) | (here == 1)
        error = F.binary_cross_entropy_with_logits(
            presence, here, pos_weight=presence.new_tensor(30.0), reduction="none"
        )
        losses = [(error * counted).sum() / self.everywhere(counted.sum())]
        things = self.everywhere(here.sum())
        losses += [
            F.cross_entropy(scores, facts, ignore_index=NOTHING, reduction="sum") / things
            for scores, facts in zip(seen, where.unbind(1), strict=True)
        ]
        losses += [
            F.cross_entropy(scores, facts)
            for scores, facts in zip(whole.split(BEHIND, dim=1), behind.unbind(1), strict=True)
        ]
        loss = torch.stack(losses).sum()
        self.log("loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.scenes)

    def export(self, path: Path) -> None:
        """Writes the judge's weights in half precision."""
        weights = self.model.state_dict()
        write_weights(path, {k: v.half() if v.is_floating_point() else v for k, v in weights.items()})
