"""Samples pictures and, where asked, keeps what happens on the way: latents, spectra and maps of features."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.freeu import DecoderStage, FreeUSettings
from ldm.freeu.spectrum import relative_log_amplitude
from ldm.generate import Sampling, decode, denoise, seeded_noise, total_steps
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.study.record import Concatenation, recorded
from ldm.txt2img.jobs import Job

POSITIONS = 10  # how many of a run's latents are kept
MOMENTS = {"early": 0.1, "middle": 0.5, "late": 0.9}  # when features are kept, as fractions of the run

Kept = dict[str, NDArray[Any]]


def positions(total: int) -> list[int]:
    """After how many steps latents are kept: about ten numbers from 0 to all."""
    return sorted({round(k * total / (POSITIONS - 1)) for k in range(POSITIONS)})


def sample(
    model: LatentDiffusion,
    pairs: Sequence[Job],
    sampling: Sampling,
    freeu: FreeUSettings | None,
    watched: bool,
    on_step: Callable[[], object],
) -> list[Kept]:
    """What is kept of each pair's picture, all sampled in one batch; see `Runs` for the names.

    Raises InputError where these factors do not fit the model's U-Net.
    """
    unet: Any = model.model.diffusion_model
    unet.freeu = unet.freeu.off() if freeu is None else freeu
    total = total_steps(model, sampling)
    seeds = [pair.seed for pair in pairs]
    f = model.first_stage_model.downsampling
    shape = (len(pairs), model.channels, sampling.height // f, sampling.width // f)
    watch = Watch(total)
    x = seeded_noise(seeds)(shape)  # (B, C, h, w)

    steps = denoise(model, [pair.prompt for pair in pairs], [""] * len(pairs), seeds, sampling)
    for index in range(total):
        moments = watch.moments_at(index) if watched else []
        callback = watch.callback(moments)
        with recorded(model, callback, guided=sampling.scale != 1) if moments else nullcontext():
            step = next(steps)
        if watched:
            watch.pass_by(index, x, step.pred_x0)
        x = step.x
        on_step()
    if watched:
        watch.pass_by(total, x, x)

    kept = {"latents": x.cpu().numpy(), "picture": np.stack(decode(model, x))}
    if watched:
        kept |= watch.kept(model)
    each = [{name: array[b] for name, array in kept.items()} for b in range(len(pairs))]
    return [one | {"positions": np.array(positions(total))} for one in each] if watched else each


def kept_names(stages: Sequence[DecoderStage], watched: bool) -> list[str]:
    """The names of what `sample` keeps of a picture."""
    names = ["latents", "picture"]
    if watched:
        names += ["positions", "x_t", "x_0", "pictures_t", "pictures_0"]
        names += {f"features.{stage.downsampling}" for stage in stages}
        for place in [f"{moment}.{i}" for moment in MOMENTS for i in range(len(stages))]:
            sides = [f"{kind}.{side}" for kind in ("x", "h", "fused") for side in ("before", "after")]
            names += [f"mean.{place}", *(f"curve.{side}.{place}" for side in sides)]
    return names


class Watch:
    """What is kept of a batch of watched runs beside their pictures."""

    def __init__(self, total: int):
        self.total = total
        self.x_t: list[Tensor] = []
        self.x_0: list[Tensor] = []
        self.features: Kept = {}

    def pass_by(self, index: int, x_t: Tensor, x_0: Tensor) -> None:
        """Keeps the latents after `index` steps, and what the network takes for the noise-free ones."""
        if index in positions(self.total):
            self.x_t.append(x_t.cpu())
            self.x_0.append(x_0.cpu())

    def moments_at(self, index: int) -> list[str]:
        """The moments that fall on the step of this index; in very short runs more than one."""
        return [name for name, share in MOMENTS.items() if round(share * (self.total - 1)) == index]

    def callback(self, moments: Sequence[str]) -> Callable[[Concatenation], None]:
        """What keeps the decoder's concatenations at these moments."""

        def keep(concatenation: Concatenation) -> None:
            for moment in moments:
                self.keep_features(moment, concatenation)

        return keep

    def keep_features(self, moment: str, concatenation: Concatenation) -> None:
        """Curves and the channel mean of one concatenation, and late in the run its backbone."""
        i = concatenation.index
        for side, fused in {"before": concatenation.before, "after": concatenation.after}.items():
            for kind, maps in {"x": fused.x, "h": fused.h, "fused": fused.maps}.items():
                curve = relative_log_amplitude(maps)  # (B, n)
                self.features[f"curve.{kind}.{side}.{moment}.{i}"] = curve.cpu().numpy()
        x = concatenation.before.x.float()  # (B, width, H, W)
        self.features[f"mean.{moment}.{i}"] = x.mean(1).cpu().numpy()  # (B, H, W)
        if moment == "late":
            # A later concatenation at the same resolution takes an earlier one's place.
            self.features[f"features.{concatenation.stage.downsampling}"] = x.half().cpu().numpy()

    def kept(self, model: LatentDiffusion) -> Kept:
        """All of it, the batch first, with the latents decoded."""
        kept = dict(self.features)
        for name, latents in {"t": self.x_t, "0": self.x_0}.items():
            stacked = torch.stack(latents, dim=1)  # (B, P, C, h, w)
            pictures = np.stack(decode(model, stacked.flatten(0, 1).to(model.device)))  # (B P, H, W, 3)
            kept[f"x_{name}"] = stacked.numpy()
            kept[f"pictures_{name}"] = pictures.reshape(*stacked.shape[:2], *pictures.shape[1:])
        return kept
