"""Prompts to pictures: noise, context, the sampler's steps, decoding, as plain functions."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

from ldm.config.parts import check_parts
from ldm.device import is_out_of_memory
from ldm.errors import InputError, NoNumbers
from ldm.image_io import Picture
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampling import Sampler, Step
from ldm.modules.diffusionmodules.schedule import check_steps
from ldm.parameterization import mix_up
from ldm.strips import decode_in_strips, goes_in_strips, strips_know

LARGEST = 16384  # pixels of a side
SEEDS = range(-(2**63), 2**64)  # that torch takes
SAMPLERS: dict[str, type[Sampler]] = {"ddim": DDIMSampler, "plms": PLMSSampler, "dpm": DPMSolverSampler}
# Each fails for what is no such number, or says False.
WHOLE, FINITE = (index, "a whole number"), (math.isfinite, "a finite number")
NUMBERS: dict[str, tuple[Callable[[Any], int], str]] = {
    "height": WHOLE, "width": WHOLE, "steps": WHOLE, "scale": FINITE, "eta": FINITE
}  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How latents are sampled: everything but the words and the seeds."""

    height: int = 512  # of the picture, in pixels
    width: int = 512
    steps: int = 50
    scale: float = 7.5  # of classifier-free guidance; 1 is none
    sampler: str = "ddim"
    eta: float = 0.0  # how much noise DDIM adds again, 0 to 1


def check(sampling: Sampling, model: LatentDiffusion) -> None:
    """Raises InputError where the settings do not fit each other or the model, before any work is done."""
    check_parts(model)
    for name, (read, kind) in NUMBERS.items():
        value = getattr(sampling, name)
        try:
            fits = not isinstance(value, bool) and read(value) is not False
        except (TypeError, OverflowError):
            fits = False
        if not fits:
            title = "guidance scale" if name == "scale" else name
            raise InputError(f"The {title} is {value!r:.99}: give {kind}.")
    if sampling.sampler not in list(SAMPLERS):  # a list can be asked for what cannot be hashed
        raise InputError(f"There is no sampler {sampling.sampler!r}: take one of {', '.join(SAMPLERS)}.")
    multiple = model.first_stage_model.downsampling * model.model.diffusion_model.downsampling
    for name in ("height", "width"):
        pixels = getattr(sampling, name)
        if not 0 < pixels <= LARGEST or pixels % multiple:
            near = max(1, round(min(pixels, LARGEST) / multiple)) * multiple
            raise InputError(
                f"The {name} of {pixels} pixels is no multiple of {multiple} up to {LARGEST}: take {near}."
            )
    check_steps(sampling.steps, model.num_timesteps)
    if not 0 <= sampling.eta <= SAMPLERS[sampling.sampler].max_eta:
        raise InputError(f"eta is {sampling.eta}: DDIM takes 0 to 1, the other samplers 0 alone.")


def total_steps(model: LatentDiffusion, sampling: Sampling) -> int:
    """How many steps a run takes, which may be more than were asked for."""
    return len(SAMPLERS[sampling.sampler](model).timesteps(sampling.steps))


def seeded_noise(seeds: Sequence[int]) -> Callable[[Sequence[int]], Tensor]:
    """A source of noise that draws every picture's share from its own CPU generator.

    So picture k depends on its seed alone, not on the batch it is made in nor on a device or a default dtype.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise(shape: Sequence[int]) -> Tensor:
        each = tuple(shape[1:])
        return torch.stack(
            [torch.randn(each, generator=g, dtype=torch.float32, device="cpu") for g in generators]
        )  # (B, C, h, w)

    return noise


@torch.no_grad()
def denoise(
    model: LatentDiffusion,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
) -> Iterator[Step]:
    """The sampler's steps from noise to latents, (B, C, h, w), one picture for each prompt and seed.

    Raises InputError, with the likely cause, when the context is no numbers, and NoNumbers when the latents
    are none any more.
    """
    context = embed(model, prompts)
    unconditional = None if sampling.scale == 1 else embed(model, negative_prompts)
    noise = seeded_noise(seeds)
    f = model.first_stage_model.downsampling
    x_T = noise((len(seeds), model.channels, sampling.height // f, sampling.width // f))
    steps = SAMPLERS[sampling.sampler](model).steps(
        sampling.steps,
        x_T,
        context,
        eta=sampling.eta,
        noise=noise,
        unconditional_guidance_scale=sampling.scale,
        unconditional_conditioning=unconditional,
    )
    for step in steps:
        if not step.x.isfinite().all():
            where, cause = f"after step {step.index + 1} of {step.total}", cause_of_nan(model, "model")
            raise NoNumbers(f"The latents are no longer numbers {where}: {cause}.")
        yield step


def embed(model: LatentDiffusion, prompts: Sequence[str]) -> Tensor:
    """The context of prompts, (B, tokens, context_dim). Raises InputError where it is no longer numbers."""
    context = model.get_learned_conditioning(list(prompts))
    for prompt, row in zip(prompts, context, strict=True):
        if not row.isfinite().all():
            cause = cause_of_nan(model, "cond_stage_model")
            raise InputError(
                f"The text encoder's answer to {prompt[:60]!r} holds values that are no numbers: {cause}."
            )
    return context


def cause_of_nan(model: LatentDiffusion, part: str) -> str:
    """What is likely to have made numbers overflow in that part of the model, and the remedy."""
    precision = str(model.dtype).removeprefix("torch.")
    for name, weight in model.get_submodule(part).named_parameters(part):
        # Numbers too large for half precision turn into infinity as they are loaded, but never into NaN.
        if weight.isinf().any() and model.dtype != torch.float32:
            return f"the checkpoint's {name} is too large for {precision}; try --precision full"
        if not weight.isfinite().all():
            return f"the checkpoint is damaged, its {name} holds NaN or infinity; download it again"
    if model.dtype != torch.float32:
        return f"too large for {precision}; try --precision full"
    return mix_up(model) or "too strong a --scale or FreeU factor"


@torch.no_grad()
def decode(model: LatentDiffusion, latents: Tensor) -> list[Picture]:
    """Latents (B, C, h, w) as B pictures (H, W, 3), one after the other to spare memory.

    Raises NoNumbers, with the likely cause, when a picture is none.
    """
    pictures = []
    for latent in latents:
        pixels = decode_one(model, latent[None])[0].float()  # (3, H, W)
        if not pixels.isfinite().all():
            cause = cause_of_nan(model, "first_stage_model")
            raise NoNumbers(f"The decoded picture holds values that are no numbers: {cause}.")
        pixels = (127.5 * (pixels + 1)).clamp(0, 255).round().byte()
        pictures.append(pixels.permute(1, 2, 0).cpu().numpy())  # (H, W, 3)
    return pictures


def decode_one(model: LatentDiffusion, latent: Tensor) -> Tensor:
    """A latent (1, C, h, w) as pixels near [-1, 1], (1, 3, H, W).

    In strips where that takes less time, where the picture is large, or where the device's memory does not
    hold the whole decode; never where somebody changed the decode and strips do not know how.
    """
    autoencoder, z = model.first_stage_model, latent.to(model.dtype) / model.scale_factor
    own = getattr(model.decode_first_stage, "__func__", None) is LatentDiffusion.decode_first_stage
    known = own and strips_know(autoencoder)
    if not (known and goes_in_strips(autoencoder, z)):
        try:
            return model.decode_first_stage(latent)
        except RuntimeError as fault:
            if not (known and is_out_of_memory(fault)):
                raise
    return decode_in_strips(autoencoder, z)


def read_seed(seed: Any) -> int:
    """A seed, numpy's among them, as Python's own whole number. Raises InputError."""
    try:
        number = index(seed)
    except TypeError:
        raise InputError(f"The seed is {seed!r}: give a whole number.") from None
    if number not in SEEDS:
        raise InputError(f"The seed is {number}: give a whole number from -2**63 to 2**64 - 1.")
    return number


def generate(
    model: LatentDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    negative_prompts: Sequence[str] | None = None,
    on_step: Callable[[Step], Any] | None = None,
) -> list[Picture]:
    """Pictures (H, W, 3), one for each prompt and seed; `on_step` hears of each denoising step.

    Raises InputError where the settings do not fit the model, or prompts, seeds and negative prompts do not
    fit each other.
    """
    check(sampling, model)
    negative_prompts = [""] * len(prompts) if negative_prompts is None else negative_prompts
    for name, texts in (("prompts", prompts), ("negative_prompts", negative_prompts)):
        if isinstance(texts, str):
            raise InputError(f"{name} is the text {texts!r}: give a list of texts.")
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"{name} holds {text!r:.99}, which is no text: give texts alone.")
    if not hasattr(seeds, "__len__"):
        raise InputError(f"seeds is {seeds}: give a list of seeds.")
    if not len(prompts) == len(seeds) == len(negative_prompts) > 0:
        counts = f"{len(prompts)} prompts, {len(seeds)} seeds and {len(negative_prompts)} negative prompts"
        raise InputError(f"There are {counts}: give one of each for each picture.")
    seeds = [read_seed(seed) for seed in seeds]
    for step in denoise(model, prompts, negative_prompts, seeds, sampling):
        if on_step is not None:
            on_step(step)
    return decode(model, step.x)
