"""The U-Net classes of diffusers, built small, and FreeU on them as published: slow and with the FFT."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from diffusers import (
    I2VGenXLUNet,
    MotionAdapter,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetControlNetXSModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models import ControlNetXSAdapter
from torch import Tensor, nn

from ldm.freeu import FreeUSettings
from tests.conftest import fill_by_name, rnd
from tests.freeu.test_operator import published_filter

FRAMES = 3
WIDTHS = (8, 16, 32, 32)
WIDE = (32, 64, 128, 128)  # where the groups of a normalisation are fixed
CROSS_DOWN = (*3 * ["CrossAttnDownBlock2D"], "DownBlock2D")
CROSS_UP = ("UpBlock2D", *3 * ["CrossAttnUpBlock2D"])


def conditional(**changes: object) -> UNet2DConditionModel:
    """A U-Net as in Stable Diffusion 1 but for its size and for `changes`."""
    shape = {
        "block_out_channels": WIDTHS,
        "down_block_types": CROSS_DOWN,
        "up_block_types": CROSS_UP,
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return fill_by_name(UNet2DConditionModel(**{**shape, **changes}))


def sd1() -> nn.Module:
    return conditional(layers_per_block=2)


def sd2() -> nn.Module:
    return conditional(use_linear_projection=True, attention_head_dim=(2, 4, 8, 8))


def sdxl(pooled: int = 8, ids: int = 6) -> nn.Module:
    return conditional(
        block_out_channels=WIDTHS[:3],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=pooled + 4 * ids,
    )


def refiner() -> nn.Module:
    return conditional(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 4 * 5,
    )


def kandinsky2() -> nn.Module:
    return conditional(
        down_block_types=("ResnetDownsampleBlock2D", *3 * ["SimpleCrossAttnDownBlock2D"]),
        up_block_types=(*3 * ["SimpleCrossAttnUpBlock2D"], "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    )


def controlnet_xs() -> nn.Module:
    unet = sd1()
    adapter = ControlNetXSAdapter.from_unet(unet, size_ratio=0.5)
    return fill_by_name(UNetControlNetXSModel.from_unet(unet, adapter))


def plain() -> nn.Module:
    return fill_by_name(
        UNet2DModel(
            block_out_channels=WIDTHS,
            down_block_types=(*3 * ["DownBlock2D"], "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", *3 * ["UpBlock2D"]),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
            sample_size=16,
        )
    )


def score_sde() -> nn.Module:
    return fill_by_name(
        UNet2DModel(
            block_out_channels=WIDE[:3],
            down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
            up_block_types=("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
            layers_per_block=1,
            time_embedding_type="fourier",
        )
    )


def text_to_video() -> nn.Module:
    return fill_by_name(
        UNet3DConditionModel(
            block_out_channels=WIDTHS,
            down_block_types=(*3 * ["CrossAttnDownBlock3D"], "DownBlock3D"),
            up_block_types=("UpBlock3D", *3 * ["CrossAttnUpBlock3D"]),
            layers_per_block=1,
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
        )
    )


def image_to_video() -> nn.Module:
    return fill_by_name(
        I2VGenXLUNet(block_out_channels=WIDE, layers_per_block=1, cross_attention_dim=8, attention_head_dim=4)
    )


def motion_adapter() -> MotionAdapter:
    return MotionAdapter(
        block_out_channels=WIDTHS,
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )


def animate() -> nn.Module:
    return fill_by_name(UNetMotionModel.from_unet2d(conditional(), motion_adapter()))


def stable_video() -> nn.Module:
    return fill_by_name(
        UNetSpatioTemporalConditionModel(
            block_out_channels=WIDE,
            num_attention_heads=(2, 4, 4, 4),
            layers_per_block=1,
            cross_attention_dim=8,
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=12,
        )
    )


UNETS: dict[str, Callable[[], nn.Module]] = {
    build.__name__: build
    for build in (
        sd1,
        sd2,
        sdxl,
        refiner,
        kandinsky2,
        controlnet_xs,
        plain,
        score_sde,
        text_to_video,
        image_to_video,
        animate,
        stable_video,
    )
}


def inputs(unet: nn.Module, batch: int = 2, height: int = 16, width: int = 24) -> dict[str, object]:
    """What the U-Net is called with, beside the timestep."""
    made = {"sample": rnd(1, batch, unet.config.get("in_channels", 4), height, width)}
    if isinstance(unet, UNet2DModel):
        return made
    made["encoder_hidden_states"] = rnd(2, batch, 5, 8)
    if isinstance(unet, UNet3DConditionModel | UNetMotionModel | I2VGenXLUNet):
        made["sample"] = rnd(1, batch, 4, FRAMES, height, width)
    if isinstance(unet, UNetMotionModel):
        made["encoder_hidden_states"] = rnd(2, batch * FRAMES, 5, 8)
    if isinstance(unet, I2VGenXLUNet):
        made["image_latents"] = rnd(4, batch, 4, FRAMES, height, width)
        made["image_embeddings"] = rnd(5, batch, 8)
        made["fps"] = torch.tensor(batch * [8])
    if isinstance(unet, UNetSpatioTemporalConditionModel):
        made["sample"] = rnd(1, batch, FRAMES, 8, height, width)
        made["added_time_ids"] = rnd(6, batch, 3)
    if isinstance(unet, UNetControlNetXSModel):
        made["controlnet_cond"] = rnd(7, batch, 3, 8 * height, 8 * width)
    if unet.config.get("addition_embed_type") == "text_time":
        ids = (unet.config.projection_class_embeddings_input_dim - 8) // 4
        made["added_cond_kwargs"] = {"text_embeds": rnd(8, batch, 8), "time_ids": rnd(9, batch, ids)}
    return made


def run(unet: nn.Module, given: dict[str, object], t: int | float | Tensor = 500) -> Tensor:
    """The U-Net's output."""
    return unet(timestep=t, return_dict=False, **given)[0]


def slow_free_u(h: Tensor, skip: Tensor, b: float, s: float, version: int) -> list[Tensor]:
    """The published formulas on a backbone and its skip."""
    alpha = torch.full_like(h[:, :1], b)
    if version == 2:
        for sample, result in zip(h.mean(1, keepdim=True), alpha, strict=True):
            result[:] = (b - 1) * (sample - sample.min()) / (sample.max() - sample.min()) + 1
    half = h.shape[1] // 2
    return [h[:, :half] * alpha, h[:, half:], published_filter(skip, 1, s) if s != 1 else skip]


@contextmanager
def published_free_u(unet: nn.Module, settings: FreeUSettings) -> Iterator[None]:
    """FreeU by widths, done where the up-blocks call `torch.cat` and by what they call it with."""
    base = unet.config.get("block_out_channels", WIDTHS)[0]
    by_width = {4 * base: (settings.b1, settings.s1), 2 * base: (settings.b2, settings.s2)}
    cat, depth = torch.cat, 0

    def inside(change: int) -> Callable[..., None]:
        def count(*_: object) -> None:
            nonlocal depth
            depth += change

        return count

    def re_weighted(tensors: list[Tensor], dim: int = 0, **other: object) -> Tensor:
        if depth and dim == 1 and len(tensors) == 2 and tensors[0].ndim == 4:
            tensors = slow_free_u(*tensors, *by_width.get(tensors[0].shape[1], (1.0, 1.0)), settings.version)
        return cat(tensors, **(other or {"dim": dim}))

    handles = [block.register_forward_pre_hook(inside(+1)) for block in unet.up_blocks]
    handles += [block.register_forward_hook(inside(-1)) for block in unet.up_blocks]
    with patch("torch.cat", re_weighted):
        yield
    for handle in handles:
        handle.remove()
