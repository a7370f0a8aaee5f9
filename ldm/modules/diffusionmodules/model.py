"""The convolutional encoder and decoder of the autoencoder, under the original's names."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.modules.dot_product import attention
from ldm.modules.layers import Conv3x3, Upsample, is_its_weights
from ldm.modules.norm import GroupNorm


def normalize(channels: int, groups: int, silu: bool = True) -> GroupNorm:
    """The autoencoder's group normalisation, with an eps of 1e-6 (the U-Net's is 1e-5), and SiLU."""
    return GroupNorm(groups, channels, eps=1e-6, silu=silu)


class Downsample(nn.Module):
    """Halves height and width by a strided convolution padded on the right and at the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H/2, W/2)


class ResnetBlock(nn.Module):
    """Two normalised convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, norm_groups: int):
        super().__init__()
        self.norm1 = normalize(in_channels, norm_groups)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.norm2 = normalize(out_channels, norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        # One name for all maps, so that none outlives its use; what hooks may have kept is not written over.
        h = self.conv1(self.norm1(x))
        own = is_its_weights(self.conv1, Conv3x3) and is_its_weights(self.norm2, GroupNorm)
        h = self.norm2(h, overwrite=True) if own else self.norm2(h)
        h = self.conv2(self.dropout(h))
        shortcut = self.nin_shortcut(x) if self.nin_shortcut is not None else x
        return h.add_(shortcut) if is_its_weights(self.conv2, Conv3x3) else h + shortcut


class AttnBlock(nn.Module):
    """Self-attention of one head over all positions of a map."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.norm = normalize(channels, norm_groups, silu=False)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(f(h), "b c h w -> b 1 (h w) c") for f in (self.q, self.k, self.v))
        h = attention(q, k, v)
        return x + self.proj_out(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))


def make_attention(channels: int, attn_type: str, norm_groups: int) -> nn.Module:
    """The attention that a config names; the original's `vanilla-xformers` is the same function."""
    if attn_type in ("vanilla", "vanilla-xformers"):
        return AttnBlock(channels, norm_groups)
    if attn_type == "none":
        return nn.Identity()
    raise InputError(f"attn_type {attn_type!r} of the autoencoder is not known: use 'vanilla' or 'none'.")


class Middle(nn.Module):
    """The narrowest stage of encoder and decoder alike."""

    def __init__(self, channels: int, dropout: float, attn_type: str, norm_groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout, norm_groups)
        self.attn_1 = make_attention(channels, attn_type, norm_groups)
        self.block_2 = ResnetBlock(channels, channels, dropout, norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Stage(nn.Module):
    """The residual blocks of one resolution, each with attention where the config asks for it.

    It has no `forward`: a call of the whole would hold on to its first map until its end.
    """

    def __init__(
        self, channels: list[int], attention: bool, dropout: float, attn_type: str, norm_groups: int
    ):
        super().__init__()
        pairs = list(pairwise(channels))
        self.block = nn.ModuleList(ResnetBlock(c_in, c_out, dropout, norm_groups) for c_in, c_out in pairs)
        self.attn = nn.ModuleList(
            make_attention(c_out, attn_type, norm_groups) for _, c_out in pairs if attention
        )
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def layers(self) -> Iterator[nn.Module]:
        """What a map passes, in order."""
        for i, block in enumerate(self.block):
            yield block
            if self.attn:
                yield self.attn[i]
        yield from (resize for resize in (self.downsample, self.upsample) if resize is not None)


class Encoder(nn.Module):
    """Pictures to the moments of a latent, (B, in_channels, H, W) to (B, 2 z_channels, H/f, W/f).

    f is `2 ** (len(ch_mult) - 1)`. The arguments are those of `ddconfig` in latent-diffusion configs.
    """

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: tuple[int, ...],
        num_res_blocks: int,
        attn_resolutions: tuple[int, ...],
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        dropout: float = 0.0,
        attn_type: str = "vanilla",
        norm_groups: int = 32,
    ):
        super().__init__()
        self.conv_in = Conv3x3(in_channels, ch)
        self.down = nn.ModuleList()
        width = ch
        for level, mult in enumerate(ch_mult):
            attention = resolution // 2**level in attn_resolutions
            stage = Stage([width] + num_res_blocks * [ch * mult], attention, dropout, attn_type, norm_groups)
            width = ch * mult
            if level + 1 < len(ch_mult):
                stage.downsample = Downsample(width)
            self.down.append(stage)
        self.mid = Middle(width, dropout, attn_type, norm_groups)
        self.norm_out = normalize(width, norm_groups)
        self.conv_out = Conv3x3(width, (2 if double_z else 1) * z_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)  # (B, ch, H, W)
        stage: Any
        for stage in self.down:
            for layer in stage.layers():
                h = layer(h)
        h = self.mid(h)  # (B, C, H/f, W/f)
        return self.conv_out(self.norm_out(h))  # (B, 2 z_channels, H/f, W/f)


class Decoder(nn.Module):
    """Latents to pictures, (B, z_channels, H/f, W/f) to (B, out_ch, H, W): the encoder in reverse.

    Each stage has one residual block more than the encoder's.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: tuple[int, ...],
        num_res_blocks: int,
        attn_resolutions: tuple[int, ...],
        resolution: int,
        z_channels: int,
        dropout: float = 0.0,
        attn_type: str = "vanilla",
        norm_groups: int = 32,
    ):
        super().__init__()
        width = ch * ch_mult[-1]
        self.conv_in = Conv3x3(z_channels, width)
        self.mid = Middle(width, dropout, attn_type, norm_groups)
        stages = []
        for level, mult in reversed(list(enumerate(ch_mult))):
            attention = resolution // 2**level in attn_resolutions
            stage = Stage(
                [width] + (num_res_blocks + 1) * [ch * mult], attention, dropout, attn_type, norm_groups
            )
            width = ch * mult
            if level > 0:
                stage.upsample = Upsample(width)
            stages.append(stage)
        self.up = nn.ModuleList(reversed(stages))  # up.0 is the finest, as checkpoints have it
        self.norm_out = normalize(width, norm_groups)
        self.conv_out = Conv3x3(width, out_ch)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))  # (B, C, H/f, W/f)
        stage: Any
        for stage in reversed(self.up):
            for layer in stage.layers():
                h = layer(h)
        return self.conv_out(self.norm_out(h))  # (B, out_ch, H, W)
