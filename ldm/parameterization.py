"""Whether a network predicts the noise (eps) or the velocity (v): asked of the network itself, once.

Checkpoints do not say it, and a model used the wrong way draws noise. But at the noisiest step there is
nothing but noise in the latents, so that an eps-model gives back its input, while a v-model answers with the
picture it expects, which hardly follows the input. Earlier, at little noise over plain grey, both answer with
the noise: a network that does not has learnt neither, and nothing is said of it.
"""

from contextlib import nullcontext
from typing import Final, Literal

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel

# The embedded model, a v-model, follows the noise at a quarter of the timesteps with a correlation of 0.94 to
# 0.98, and gives back up to 0.03 of it at the last one, on latents of its own size, of half and a quarter of
# it alike. An eps-model does so with nearly all of it at both, random weights with nothing.
TRAINED: Final = 0.6  # correlation with the noise at a quarter of the timesteps, least
IS_EPS: Final = 0.8  # share of the noise that comes back at the last timestep, least
IS_V: Final = 0.5  # the same, most
NEARLY_NOISE: Final = 0.2  # how much of the picture may be left at the last timestep for this to hold

STABLE_DIFFUSION_2: Final = {"eps": "freeu_sd21_base.yaml", "v": "freeu_sd21.yaml"}


def predicts(model: LatentDiffusion) -> Literal["eps", "v"] | None:
    """What the network predicts, by two passes on a small latent; None where its answers do not tell."""
    likely = likely_kind(model)
    return likely if likely and has_learnt(model) else None


def likely_kind(model: LatentDiffusion) -> Literal["eps", "v"] | None:
    """What the answer at the noisiest step speaks for; one that has learnt nothing may answer so too."""
    unet = model.model.diffusion_model
    usual = model.model.conditioning_key == "crossattn" and unet.in_channels == model.channels
    if not usual or model.sqrt_alphas_cumprod[-1] > NEARLY_NOISE:
        return None
    noise, answer = noise_and_answer(model, model.num_timesteps - 1)
    share = answer @ noise / (noise @ noise)
    return "eps" if share > IS_EPS else "v" if share < IS_V else None


def has_learnt(model: LatentDiffusion) -> bool:
    """Whether the network follows the noise at a quarter of the timesteps, as both kinds do."""
    noise, answer = noise_and_answer(model, model.num_timesteps // 4)
    return bool(answer @ noise > TRAINED * answer.norm() * noise.norm())


@torch.no_grad()
def noise_and_answer(model: LatentDiffusion, timestep: int) -> tuple[Tensor, Tensor]:
    """Noise over plain grey as of a timestep, and the network's answer to it, flat and in float64."""
    unet = model.model.diffusion_model
    side = 2 * unet.downsampling  # for Stable Diffusion a quarter of its own size
    generator = torch.Generator().manual_seed(0)
    shape = 1, model.channels, side, side
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(model.device)
    t = torch.tensor([timestep], device=model.device)
    context = model.get_learned_conditioning([""])

    # Whatever FreeU is told to do says nothing about the weights.
    with unet.under(unet.freeu.off()) if isinstance(unet, Free_UNetModel) else nullcontext():
        answer = model.apply_model(model.q_sample(torch.zeros_like(noise), t, noise), t, context)
    return noise.cpu().double().flatten(), answer.cpu().double().flatten()


def mix_up(model: LatentDiffusion) -> str | None:
    """What is wrong and the remedy, where the config takes the network for the other kind.

    A network of the kind that the config names is asked once only.
    """
    found = likely_kind(model)
    if found is None or found == model.parameterization or not has_learnt(model):
        return None
    what = {"eps": "the noise (eps)", "v": "the velocity (v)"}
    return (
        f"the checkpoint is of a model that predicts {what[found]}, the config takes it for "
        f"{what[model.parameterization]}: add model.params.parameterization={found}, "
        f"or for Stable Diffusion 2.1 --config {STABLE_DIFFUSION_2[found]}"
    )
