"""The judge of the embedded model's pictures: a small detector of what is where, trained on true renders.

It never sees what the generator learns from or makes: see `ldm.training.judge`. Of each picture it tells the
things with shape, colour, surface and place, and the background.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.data.scenes import COLOURS, SHAPES, TEXTURES
from ldm.folders import EMBEDDED
from ldm.image_io import Picture

SIDE = 128  # of the pictures, in pixels
CELLS = 16  # of the grid of answers, on both axes
SEEN = (1, len(SHAPES), len(COLOURS), len(TEXTURES))  # what a cell tells: is a thing's middle here, and which
BEHIND = (len(COLOURS), len(TEXTURES))  # what the picture tells of its background


@dataclass(frozen=True)
class Found:
    """A thing in a picture; x and y are its middle, in fractions of the side from the upper left corner."""

    shape: str
    colour: str
    texture: str
    x: float
    y: float


@dataclass(frozen=True)
class Findings:
    """All that the judge tells of a picture."""

    things: tuple[Found, ...]
    background: str
    background_texture: str


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.convs(x))


class Judge(nn.Module):
    """Pictures (B, 3, 128, 128) in [-1, 1] to logits for each of 16x16 cells and for the background."""

    def __init__(self) -> None:
        super().__init__()
        width = 96
        layers: list[nn.Module] = []
        for before, after in ((3, width // 4), (width // 4, width // 2), (width // 2, width)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, Residual(width), Residual(width), Residual(width))
        self.cells = nn.Conv2d(width, sum(SEEN), 1)
        self.whole = nn.Linear(width, sum(BEHIND))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 21, 16, 16), split by `SEEN`, and (B, 12), split by `BEHIND`."""
        x = self.body(pictures)  # (B, width, 16, 16)
        return self.cells(x), self.whole(x.mean((2, 3)))

    @torch.no_grad()
    def find(self, pictures: Sequence[Picture]) -> list[Findings]:
        """What is in pictures (128, 128, 3)."""
        cells, whole = self(batch_of(pictures).to(self.whole.weight))
        presence, shapes, colours, textures = cells.split(SEEN, dim=1)

        # A thing's middle is the most certain of the 5x5 cells around it; things are further apart than that.
        middle = (presence > 0) & (presence == F.max_pool2d(presence, 5, stride=1, padding=2))
        best = [scores.argmax(1).tolist() for scores in (shapes, colours, textures)]  # 3 of (B, 16, 16)
        behind = [scores.argmax(1).tolist() for scores in whole.split(BEHIND, dim=1)]
        findings = []
        for i, spots in enumerate(middle[:, 0]):
            things = tuple(
                Found(
                    SHAPES[best[0][i][row][column]],
                    COLOURS[best[1][i][row][column]],
                    TEXTURES[best[2][i][row][column]],
                    x=(column + 0.5) / CELLS,
                    y=(row + 0.5) / CELLS,
                )
                for row, column in spots.nonzero().tolist()
            )
            findings.append(Findings(things, COLOURS[behind[0][i]], TEXTURES[behind[1][i]]))
        return findings


def batch_of(pictures: Sequence[Picture]) -> Tensor:
    """Pictures (H, W, 3) as the judge takes them, (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def load_judge() -> Judge:
    """The trained judge that comes with the embedded model."""
    judge = Judge()
    judge.load_state_dict(load_file(EMBEDDED / "judge.safetensors"))
    return judge.eval()
