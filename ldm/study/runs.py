"""Sampling runs, each made once and kept as a file: figures share them, and a stopped study goes on."""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from zipfile import ZipFile

import numpy as np

from ldm.errors import InputError
from ldm.files import written_whole
from ldm.freeu import FreeUSettings
from ldm.generate import Sampling
from ldm.image_io import writable_folder
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.study.watch import Kept, kept_names, sample
from ldm.txt2img.jobs import Job

T = TypeVar("T")

LAYOUT = 1  # of the files; with another number all of them are made anew
AT_ONCE = 4096  # positions of a batch's latents: one picture of Stable Diffusion's size, or many small ones


@dataclass(frozen=True)
class Run:
    """One picture to sample: all that decides it but the model. `freeu` is None for the plain model."""

    pair: Job
    freeu: FreeUSettings | None
    sampling: Sampling
    watched: bool  # whether what happens on the way is kept too


class Runs:
    """The runs of one model, kept in a folder.

    A run's file is named by a hash of the run and of `identity`, which tells models and precisions apart. It
    holds `latents` (C, h, w) and `picture` (H, W, 3); a watched run's also

    - `positions` (P,) with `x_t` and `x_0` (P, C, h, w), the latents after so many steps and what the network
      takes for the noise-free ones in them, and both decoded, `pictures_t` and `pictures_0` (P, H, W, 3);
    - for each moment and decoder concatenation i, `curve.KIND.SIDE.MOMENT.i` (n,): the relative log amplitude
      of the backbone x, the skip h or the fused map, before or after FreeU;
    - `mean.MOMENT.i` (H, W), the backbone's mean over channels before FreeU (paper eq. 2);
    - `features.F` (C, H, W), the backbone late in the run of the last concatenation down-sampled by F.
    """

    def __init__(self, model: LatentDiffusion, folder: Path, identity: str):
        self.model, self.folder, self.identity = model, writable_folder(folder), identity

    def path(self, run: Run) -> Path:
        """The file that keeps a run."""
        decisive = json.dumps([LAYOUT, self.identity, asdict(run)])
        return self.folder / f"{hashlib.sha256(decisive.encode()).hexdigest()[:24]}.npz"

    def find(self, run: Run) -> Path | None:
        """The file that a run can be read from: its own, or that of the same run watched."""
        paths = (self.path(run), self.path(replace(run, watched=True)))
        return next((path for path in paths if path.is_file()), None)

    def batches(self, runs: Iterable[Run]) -> list[list[Run]]:
        """The runs that are not there yet, in groups that can be sampled together."""
        lacking = {self.path(run): run for run in runs if self.find(run) is None}
        groups: dict[str, list[Run]] = defaultdict(list)
        for run in lacking.values():
            if run.watched or self.path(replace(run, watched=True)) not in lacking:
                groups[json.dumps(asdict(replace(run, pair=Job("", 0))))].append(run)
        return [batch for group in groups.values() for batch in self.split(group, group[0].sampling)]

    def split(self, pictures: list[T], sampling: Sampling) -> list[list[T]]:
        """What stands for pictures of this sampling, in as many as are sampled together."""
        f = self.model.first_stage_model.downsampling
        size = max(1, AT_ONCE // (sampling.height // f * (sampling.width // f)))
        return [pictures[start : start + size] for start in range(0, len(pictures), size)]

    def make(self, batch: Sequence[Run], on_step: Callable[[], object]) -> None:
        """Samples a batch of `batches` and keeps it. Raises InputError where the disk is full."""
        first = batch[0]
        pairs = [run.pair for run in batch]
        made = sample(self.model, pairs, first.sampling, first.freeu, first.watched, on_step)
        for run, kept in zip(batch, made, strict=True):
            with written_whole(self.path(run)) as file:
                np.savez(file, **dict[str, Any](kept))  # one of them could be allow_pickle to mypy

    def read(self, run: Run) -> Kept:
        """What was kept of a run. Raises InputError where its file is not there or damaged."""
        path = self.find(run) or self.path(run)
        unet: Any = self.model.model.diffusion_model
        names = kept_names(unet.decoder_stages, run.watched)
        try:
            with ZipFile(path) as file:
                # What is read wholly is held against its checksum.
                return {name: np.load(io.BytesIO(file.read(f"{name}.npy"))) for name in names}
        except Exception as fault:  # any of a dozen, by where the damage is
            raise InputError(f"{path} cannot be read ({fault}): remove it, and it is made again.") from None
