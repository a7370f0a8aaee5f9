"""A step of Stable Diffusion 1.4's U-Net and its decoder, beside those of diffusers on the same shapes."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import util
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config.reading import load_config
from ldm.freeu import PRESETS
from ldm.modules.winograd_in_c import convolves_in_c
from ldm.strips import decode_in_strips, goes_in_strips
from ldm.study.bench.rounds import Row, Work, alternate, peak_memory, rows
from ldm.util import instantiate_from_config

CONTEXT = (77, 768)


def made_up(build: Callable[[], nn.Module], dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The network with `random_weights`.

    Its kernels are channels last, and as `load_model` has them if it is ours.
    """
    with torch.device("meta"):
        network = build()
    spares = build in (our_unet, our_autoencoder) and convolves_in_c(device, dtype)
    layout = torch.contiguous_format if spares else torch.channels_last
    network = network.to_empty(device=device).to(dtype).to(memory_format=layout)
    parameters = dict(network.named_parameters())
    for name, weight in random_weights(parameters, device):
        parameters[name].data.copy_(weight)
    return network.eval().requires_grad_(False)


def random_weights(
    slots: Mapping[str, Tensor], device: str | torch.device = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Small weights of these shapes, by name, in float32; maps keep a size of about one by them."""
    numbers = torch.randn(2**22 + 7, generator=torch.Generator().manual_seed(0)).to(device)
    for i, (name, slot) in enumerate(slots.items()):
        count = slot.numel()
        weight = numbers.roll(1009 * i).repeat(-(-count // len(numbers)))[:count].view(slot.shape)
        if slot.ndim > 1:
            yield name, weight / math.prod(slot.shape[1:]) ** 0.5
        else:
            yield name, 0.05 * weight + name.endswith("weight")


def our_unet() -> nn.Module:
    return instantiate_from_config(load_config("freeu_sd14.yaml").model.params.unet_config)


def our_autoencoder() -> nn.Module:
    return instantiate_from_config(load_config("v1-inference.yaml").model.params.first_stage_config)


def diffusers_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=(*3 * ["CrossAttnDownBlock2D"], "DownBlock2D"),
        up_block_types=("UpBlock2D", *3 * ["CrossAttnUpBlock2D"]),
        cross_attention_dim=CONTEXT[1],
        attention_head_dim=8,  # the number of heads, despite its name
    )


def diffusers_autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=4 * ("DownEncoderBlock2D",),
        up_block_types=4 * ("UpDecoderBlock2D",),
        layers_per_block=2,
        latent_channels=4,
    )


def guided_inputs(dtype: torch.dtype, device: torch.device, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same latents twice, (2, 4, side, side), their timesteps (2,), and two contexts, (2, 77, 768)."""
    x = torch.randn(1, 4, side, side).repeat(2, 1, 1, 1)
    context = torch.randn(2, *CONTEXT)
    return x.to(device, dtype), torch.full((2,), 501, device=device), context.to(device, dtype)


def step(
    dtype: torch.dtype, device: torch.device, rounds: int, side: int = 64, compiled: bool = False
) -> list[Row]:
    """A guided picture's step of the U-Net with FreeU V1: ours and, where installed, diffusers'."""
    x, t, context = guided_inputs(dtype, device, side)
    unet: Any = made_up(our_unet, dtype, device)
    works: dict[str, Work] = {"ours, FreeU V1": lambda: unet(x, t, context)}
    if compiled:
        # A graph lays kernels out anew in each step where they are not channels last; eager takes both.
        ours_compiled = torch.compile(unet.to(memory_format=torch.channels_last))
        works["ours, compiled"] = lambda: ours_compiled(x, t, context)
    if util.find_spec("diffusers"):
        peer: Any = made_up(diffusers_unet, dtype, device)
        preset = PRESETS["sd14", 1]
        peer.enable_freeu(s1=preset.s1, s2=preset.s2, b1=preset.b1, b2=preset.b2)
        works["diffusers, enable_freeu"] = lambda: peer(x, t, context, return_dict=False)
        if compiled:
            peer_compiled = torch.compile(peer)
            works["diffusers, compiled"] = lambda: peer_compiled(x, t, context, return_dict=False)
    return rows(f"guided U-Net step, 2 x {side}x{side}", dtype, alternate(works, rounds, device))


def overhead(dtype: torch.dtype, device: torch.device, rounds: int) -> list[Row]:
    """One step of the same U-Net with FreeU off, then by each version."""
    x, t, context = guided_inputs(dtype, device, side=64)
    unet: Any = made_up(our_unet, dtype, device)
    first, second = PRESETS["sd14", 1], PRESETS["sd14", 2]

    def under(settings: Any) -> Work:
        def run() -> None:
            unet.freeu = settings
            unet(x, t, context)

        return run

    works = {"FreeU off": under(first.off()), "FreeU V1": under(first), "FreeU V2": under(second)}
    return rows("FreeU on against off", dtype, alternate(works, rounds, device))


def decoding(ours: Any, z: Tensor) -> Work:
    """Our decode of these latents, in strips where pictures are, too."""
    return partial(decode_in_strips, ours, z) if goes_in_strips(ours, z) else partial(ours.decode, z)


def decode(dtype: torch.dtype, device: torch.device, rounds: int, side: int = 64) -> list[Row]:
    """The decoder from latents of that side to a picture eight times as wide, peaks beside the weights."""
    z = torch.randn(1, 4, side, side).to(device, dtype)
    ours: Any = made_up(our_autoencoder, dtype, device)
    works: dict[str, Work] = {"ours": decoding(ours, z)}
    if util.find_spec("diffusers"):
        theirs: Any = made_up(diffusers_autoencoder, dtype, device)
        works["diffusers"] = lambda: theirs.decode(z, return_dict=False)
    peaks = {name: peak_memory(work, device) for name, work in works.items()}
    what = f"decode {side}x{side} to {8 * side}x{8 * side}"
    return rows(what, dtype, alternate(works, rounds, device), peaks)
