"""How much FreeU acts like guidance, so that it can be compared where both guide equally.

Classifier-free guidance goes `scale` times the way from the network's answer without the caption to that with
it. FreeU lengthens that way, so a FreeU picture differs from a plain one as one of a larger scale does.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.files import write_text
from ldm.freeu import FreeUSettings
from ldm.generate import Sampling, denoise
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.txt2img.jobs import Job

RATIOS = "guidance.json"  # the file that keeps the ratios


def guidance_ratios(
    model: LatentDiffusion,
    batches: Sequence[Sequence[Job]],
    sampling: Sampling,
    settings: Sequence[FreeUSettings],
    on_step: Callable[[], object] = lambda: None,
) -> list[float]:
    """r of each of `settings`: the mean of |given - without| with FreeU over the same mean without FreeU.

    The means go over the steps and the pairs of all `batches`, along the trajectory of the plain model, where
    every setting is asked at the same latents; |.| is the Euclidean norm of the network's own output. At
    scale / r FreeU guides as far as the plain model at scale.

    Raises InputError where the captions make no difference to the plain model. `sampling` has to be guided.
    """
    unet: Any = model.model.diffusion_model
    off = unet.freeu.off()
    reach = torch.zeros(1 + len(settings), dtype=torch.float64)

    def ask_all(module: nn.Module, args: Any, kwargs: dict[str, Any], plain: Tensor) -> None:
        reach[0] += way(plain)
        for i, freeu in enumerate(settings, start=1):
            unet.freeu = freeu
            reach[i] += way(unet.forward(*args, **kwargs))
        unet.freeu = off

    unet.freeu = off
    hook = unet.register_forward_hook(ask_all, with_kwargs=True)
    try:
        for pairs in batches:
            prompts, seeds = [pair.prompt for pair in pairs], [pair.seed for pair in pairs]
            for _ in denoise(model, prompts, [""] * len(pairs), seeds, sampling):
                on_step()
    finally:
        hook.remove()
    if reach[0] == 0:
        raise InputError("The model answers these prompts as it does none: it knows none of their words.")
    return (reach[1:] / reach[0]).tolist()


def read_ratios(path: Path) -> dict[str, float]:
    """The ratios that a file keeps by names, none where it is not there. Raises InputError."""
    if not path.exists():
        return {}
    try:
        return {name: float(ratio) for name, ratio in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as fault:
        raise InputError(f"{path} cannot be read ({fault}): remove it, and it is made again.") from None


def write_ratios(path: Path, ratios: Mapping[str, float]) -> None:
    """Writes what `read_ratios` reads. Raises InputError where the disk refuses it."""
    write_text(path, json.dumps(ratios, indent=1) + "\n")


def way(out: Tensor) -> float:
    """The length of the way from without the caption to given it, summed over a batch (2B, C, h, w)."""
    without, given = out.cpu().double().chunk(2)  # (B, C, h, w) each
    return (given - without).flatten(1).norm(dim=1).sum().item()
