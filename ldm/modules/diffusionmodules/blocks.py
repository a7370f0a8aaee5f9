"""The blocks that the U-Net is made of: residual ones, and those that change a map's size."""

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.layers import Conv3x3
from ldm.modules.norm import GroupNorm


def norm_and_silu(groups: int, channels: int) -> tuple[nn.Module, nn.Module]:
    """The U-Net's group normalisation and SiLU, done by the first of two layers, as checkpoints count two."""
    return GroupNorm(groups, channels, silu=True), nn.Identity()


class Downsample(nn.Module):
    """Halves height and width by a strided convolution, padded on every side."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = Conv3x3(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)  # (B, C, H/2, W/2)


class ResBlock(nn.Module):
    """Two normalised convolutions beside a shortcut, told the time by an embedding between them.

    With `resize` 2 or 0.5 the block also doubles or halves height and width (`resblock_updown` of configs).
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int,
        use_scale_shift_norm: bool,
        norm_groups: int,
        resize: float,
    ):
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.resize = resize
        self.in_layers = nn.Sequential(*norm_and_silu(norm_groups, channels), Conv3x3(channels, out_channels))
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, (2 if use_scale_shift_norm else 1) * out_channels)
        )
        norm: tuple[nn.Module, ...] = norm_and_silu(norm_groups, out_channels)
        if use_scale_shift_norm:
            norm = GroupNorm(norm_groups, out_channels), nn.SiLU(inplace=True)
        self.out_layers = nn.Sequential(*norm, nn.Dropout(dropout), Conv3x3(out_channels, out_channels))
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == 2:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resize == 0.5 else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, _, conv = self.in_layers
        h = self.in_layers(x) if self.resize == 1 else conv(self._resized(norm(x)))  # (B, out, H, W)
        e = self.emb_layers(emb)[:, :, None, None]  # (B, out or 2 out, 1, 1)
        if self.use_scale_shift_norm:
            scale, shift = e.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(self._resized(x)) + h


class TimestepEmbedSequential(nn.Sequential):
    """Layers in a row, each given what it asks for: the time embedding, the context, or the map alone."""

    def forward(  # type: ignore[override]  # a Sequential takes one argument
        self, x: Tensor, emb: Tensor, context: Tensor | None = None
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x
