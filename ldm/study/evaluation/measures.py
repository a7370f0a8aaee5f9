"""The measures of an evaluation: which there are, which can be had, and how pictures come out in them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.random import default_rng
from tqdm import tqdm

from ldm.data.judge import SIDE, Judge, batch_of, load_judge
from ldm.data.render import render
from ldm.data.scenes import Scene, draw_scene
from ldm.errors import InputError
from ldm.folders import EMBEDDED
from ldm.image_io import Picture, read_picture
from ldm.study import alignment
from ldm.study.evaluation.asked import Asked
from ldm.study.evaluation.bootstrap import Mean, Statistic
from ldm.study.evaluation.clip import AestheticHead, Clip, clip_scores
from ldm.study.evaluation.frechet import FrechetDistance, Reference
from ldm.study.evaluation.inception import Inception
from ldm.study.pairs import SCENES_SEED
from ldm.study.pictures import Numbers, Pictures, clipped_shares, diversities, energies, saturations

RENDERS = 1024  # true ones, that the embedded model's pictures are compared with
AT_ONCE = 64  # pictures before the judge


@dataclass(frozen=True)
class Measure:
    """A measure: what tables say of it, and how it is taken where pictures alone tell it."""

    title: str
    better: Literal["higher", "lower"] | None = None  # None where neither is
    percent: bool = False
    decimals: int | None = None  # None where they follow from the values
    of: Callable[[Pictures], Numbers] | None = None  # (P, S, H, W, 3) to (P, S)


JUDGED = {
    **{name: Measure(f"{name} right, %", "higher", True, 1) for name in alignment.MEASURES},
    "alignment": Measure("alignment, %", "higher", True, 1),
}
MEASURES = {
    "energy": Measure("energy above 0.5 pi, %", percent=True, of=energies),
    "saturation": Measure("saturation, %", percent=True, of=saturations),
    "clipped": Measure("clipped pixels, %", percent=True, of=clipped_shares),
    "diversity": Measure("diversity, grey levels", of=diversities),
    **JUDGED,
    "frechet": Measure("Frechet distance", "lower"),
    "fid": Measure("FID", "lower"),
    "clip": Measure("CLIP score", "higher"),
    "aesthetic": Measure("aesthetic score", "higher"),
}


@dataclass(frozen=True)
class Weights:
    """What the user gave by path for measures that need it."""

    clip: Path | None = None  # a folder
    aesthetic: Path | None = None
    inception: Path | None = None
    reference: Path | None = None  # a folder of true pictures


def check_names(names: Sequence[str], weights: Weights) -> None:
    """Raises InputError for measures that there are not, and for paths at which nothing is."""
    for name in names:
        if name not in MEASURES:
            raise InputError(f"There is no metric {name!r}: there are {', '.join(MEASURES)}.")
    if weights.aesthetic and weights.clip is None:
        raise InputError("--aesthetic works on CLIP's embeddings: give --clip too.")
    if weights.reference and weights.clip is None and weights.inception is None:
        raise InputError("--reference is seen by CLIP or by Inception: give --clip or --inception too.")
    if weights.clip and not weights.clip.is_dir():
        raise InputError(
            f"There is no folder {weights.clip}. --clip takes one with a CLIP model, as this fetches:\n"
            "hf download openai/clip-vit-large-patch14 --local-dir clip-vit-large-patch14"
        )
    if weights.reference and not weights.reference.is_dir():
        raise InputError(f"There is no folder {weights.reference}.")


def choose(names: Sequence[str], asked: Asked, side: tuple[int, int], weights: Weights) -> list[str]:
    """The measures of these names, or where there are none all that can be had.

    Raises InputError for one that cannot be had with these prompts, pictures of these sides and weights.
    """
    unjudged = ""
    if asked.scenes is None:
        unjudged = "the judge knows the embedded model's pictures alone, and what its own captions ask for"
    elif side != (SIDE, SIDE):
        unjudged = f"the judge looks at pictures of {SIDE}x{SIDE} pixels, not {side[1]}x{side[0]}"
    lacks = dict.fromkeys(JUDGED, unjudged) if unjudged else {}
    if len(asked.pairs[0]) == 1:
        lacks["diversity"] = "it needs --seeds 2 or more"
    if unjudged and not (weights.reference and weights.clip):
        lacks["frechet"] = f"{unjudged}; give --clip and --reference"
    if weights.inception is None:
        lacks["fid"] = "it needs --inception, the weights of FID's network"
    elif unjudged and weights.reference is None:
        lacks["fid"] = f"{unjudged}; give --reference"
    if weights.clip is None:
        lacks["clip"] = "it needs --clip, a folder with a CLIP model"
    if weights.aesthetic is None:
        lacks["aesthetic"] = "it needs --clip and --aesthetic, LAION's weights"
    for name in names:
        if name in lacks:
            raise InputError(f"--metrics {name}: {lacks[name]}.")
    return [name for name in MEASURES if name in names or (not names and name not in lacks)]


class Meter:
    """Takes the measures of these names; `held_out` tells which true renders pictures are compared with.

    Raises InputError where weights are missing or unfit.
    """

    def __init__(self, names: Sequence[str], held_out: bool, weights: Weights, device: torch.device):
        self.names, self.held_out = names, held_out
        self.judge: Judge | None = None
        self.clip: Clip | None = None
        self.head: AestheticHead | None = None
        self.inception: Inception | None = None
        self.reference: Reference | None = None  # of the judge or of CLIP
        self.fid_reference: Reference | None = None
        self.renders = 0  # true ones, that pictures are compared with
        # Without pictures to compare with, or a CLIP to see them, the judge looks at true renders.
        self.by_judge = "frechet" in names and (weights.reference is None or weights.clip is None)
        if self.by_judge or any(name in JUDGED for name in names):
            path = EMBEDDED / "judge.safetensors"
            if not path.is_file():
                raise InputError(f"The judge's weights are not there: {path}. Choose other --metrics.")
            self.judge = load_judge()
        if weights.aesthetic is not None:
            self.head = AestheticHead(weights.aesthetic)
        if weights.clip is not None:
            self.clip = Clip(weights.clip, device)
        if "fid" in names and weights.inception is not None:
            self.inception = Inception(weights.inception, device)
        if "frechet" in names or "fid" in names:
            folder = weights.reference
            if "frechet" in names and self.clip is not None and folder is not None:
                self.reference = Reference(self.clip.embed(read_pictures(folder), repeat(""))[0])
            renders = true_renders(held_out) if self.by_judge or folder is None else []
            self.renders = len(renders)
            if self.by_judge and self.judge is not None:
                self.reference = Reference(pooled(self.judge, renders))
            if self.inception is not None:
                true = renders if folder is None else read_pictures(folder)
                self.fid_reference = Reference(self.inception.embed(true))

    def measure(self, pictures: Pictures, asked: Asked) -> dict[str, Statistic]:
        """Each measure of pictures (P, S, H, W, 3), those of asked prompt p with its seeds."""
        shape, flat = pictures.shape[:2], list(pictures.reshape(-1, *pictures.shape[2:]))
        made: dict[str, Statistic] = {
            name: Mean(of(pictures)) for name in self.names if (of := MEASURES[name].of) is not None
        }
        features: Numbers | None = None
        if self.judge is not None and asked.scenes is not None:
            made |= judged(self.judge, flat, asked.scenes, shape[1])
            features = pooled(self.judge, flat) if self.by_judge else None
        if self.clip is not None:
            prompts = [pair.prompt for pairs in asked.pairs for pair in pairs]
            images, texts = self.clip.embed(flat, prompts)
            made["clip"] = Mean(clip_scores(images, texts).reshape(shape))
            if self.head is not None:
                made["aesthetic"] = Mean(self.head.scores(images).reshape(shape))
            features = features if self.by_judge else images
        if self.inception is not None and self.fid_reference is not None:
            seen = self.inception.embed(flat).reshape(*shape, -1)
            made["fid"] = FrechetDistance(seen, self.fid_reference)
        if self.reference is not None and features is not None:
            made["frechet"] = FrechetDistance(features.reshape(*shape, -1), self.reference)
        return {name: made[name] for name in self.names}


def true_renders(held_out: bool) -> list[Picture]:
    """What the embedded model's pictures are compared with: scenes drawn by lot, as they should look."""
    scenes = (draw_scene(default_rng((SCENES_SEED + 1, k)), held_out) for k in range(RENDERS))
    return [
        render(scene, SIDE) for scene in tqdm(scenes, "true renders", RENDERS, unit="picture", disable=None)
    ]


def judged(judge: Judge, pictures: Sequence[Picture], scenes: Sequence[Scene], seeds: int) -> dict[str, Mean]:
    """The shares of what was asked that the judge finds right: of things, relations, pictures, and of all.

    `pictures` holds as many as `seeds` for each scene in turn.
    """
    found = [one for batch in batched(pictures) for one in judge.find(batch)]
    right = [alignment.agreement(scenes[i // seeds], one) for i, one in enumerate(found)]
    right = [{**one, "alignment": [fact for facts in one.values() for fact in facts]} for one in right]
    means = {}
    for name in JUDGED:
        asked = np.array([len(one[name]) for one in right], np.float64)
        share = np.array([np.mean(one[name]) if one[name] else np.nan for one in right])
        means[name] = Mean(share.reshape(-1, seeds), asked.reshape(-1, seeds))
    return means


@torch.no_grad()
def pooled(judge: Judge, pictures: Sequence[Picture]) -> Numbers:
    """What the judge's last layers see of pictures (128, 128, 3), averaged over each: (N, width)."""
    features = [judge.body(batch_of(batch)).mean((2, 3)) for batch in batched(pictures)]  # (n, width) each
    return torch.cat(features).numpy()


def batched(pictures: Sequence[Picture]) -> list[Sequence[Picture]]:
    return [pictures[start : start + AT_ONCE] for start in range(0, len(pictures), AT_ONCE)]


def read_pictures(folder: Path) -> Iterator[Picture]:
    """The PNG and JPEG pictures in a folder, read one by one. Raises InputError where there are not two."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if len(paths) < 2:
        there = "one picture" if paths else "no picture"
        raise InputError(
            f"There is {there} to compare with in {folder}: put two PNGs or JPEGs or more there."
        )
    return map(read_picture, paths)
