"""Decoding in strips: the numbers of the whole decode, up to rounding, in a fraction of its memory.

Maps lie in the host's memory, and the decoder's device holds a strip of rows at a time. Strips overlap by the
row that a convolution reaches over, and a group normalisation first takes its statistics from the whole map,
so that there is no seam to hide. What is made again and again lies where the last one lay, as a system takes
longer to give new pages than a convolution to fill them.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.diffusionmodules.model import AttnBlock, Decoder, Middle, ResnetBlock, Stage
from ldm.modules.dot_product import attention
from ldm.modules.layers import Conv3x3, Upsample, is_hooked, is_its_weights, write_inside
from ldm.modules.norm import GroupNorm, group_sums
from ldm.modules.winograd_in_c import convolves_in_c

WHOLE = 1024 * 1024  # pixels of the largest picture that is decoded whole
STRIP = 2**23  # numbers in a strip, or scores of attention at once: 32 MiB in float32

# The parts of a decoder and of its parts, by name, with the kind of each. The others are convolutions.
PARTS: dict[type[nn.Module], dict[str, type[nn.Module]]] = {
    Decoder: {"mid": Middle, "up": Stage, "norm_out": GroupNorm},
    Middle: {"block_1": ResnetBlock, "attn_1": AttnBlock, "block_2": ResnetBlock},
    Stage: {"block": ResnetBlock, "attn": AttnBlock, "upsample": Upsample},
    ResnetBlock: {"norm1": GroupNorm, "norm2": GroupNorm, "dropout": nn.Dropout},
    AttnBlock: {"norm": GroupNorm},
}
# Kernel, padding, stride and dilation of those, which reach no further than one row.
KERNELS = {((n, n), (n // 2, n // 2), (1, 1), (1, 1)) for n in (1, 3)}


@torch.no_grad()
def decode_in_strips(autoencoder: AutoencoderKL, z: Tensor) -> Tensor:
    """The picture, near [-1, 1], of latents z: (1, embed_dim, h, w) to (1, 3, fh, fw) on the CPU."""
    return _Strips(z.device).decode(autoencoder, z)


def strips_know(autoencoder: AutoencoderKL) -> bool:
    """Whether strips do what the autoencoder's decode does: not where somebody changed it.

    Its convolutions alone may pad around, or something like LoRAs may wrap them.
    """
    own = getattr(autoencoder.decode, "__func__", None) is AutoencoderKL.decode
    return own and is_known(autoencoder.decoder, Decoder)


def is_known(part: nn.Module, kind: type[nn.Module] | None) -> bool:
    """Whether a part of a decoder is of that kind and as it was made, with all parts of its own.

    None is the kind of convolutions.
    """
    if isinstance(part, nn.ModuleList):
        return all(is_known(it, kind) for it in part)
    if kind is None:
        return looks_a_row_far(part)
    if kind is AttnBlock and isinstance(part, nn.Identity):  # as of a config that asks for none
        kind = nn.Identity
    inside = PARTS.get(kind, {})
    return is_its_weights(part, kind) and all(
        is_known(it, inside.get(name)) for name, it in part.named_children()
    )


def looks_a_row_far(layer: nn.Module) -> bool:
    """Whether a layer, in a convolution's place, can be asked for a strip and reads one row around it.

    What wraps a convolution shows its weight, and no hook may wait for a whole map.
    """
    inside = list(layer.modules())
    return (
        hasattr(layer, "weight")
        and not any(map(is_hooked, inside))
        and all(
            (it.kernel_size, it.padding, it.stride, it.dilation) in KERNELS
            and "_conv_forward" not in vars(it)
            for it in inside
            if isinstance(it, nn.Conv2d)
        )
    )


def goes_in_strips(autoencoder: AutoencoderKL, z: Tensor) -> bool:
    """Whether latents, (1, embed_dim, h, w), are decoded in strips: those of large pictures, or all."""
    return z[0, 0].numel() * autoencoder.downsampling**2 > WHOLE or strips_pay(autoencoder, z)


def strips_pay(autoencoder: AutoencoderKL, z: Tensor) -> bool:
    """Whether strips take less time than a decode in one piece, as they do where they are convolved in C.

    Not where convolutions were changed, say to pad around so that pictures tile: those are torch's own.
    """
    layers = (layer for layer in autoencoder.decoder.modules() if isinstance(layer, Conv3x3))
    return convolves_in_c(z.device, z.dtype) and all(is_its_weights(layer, Conv3x3) for layer in layers)


class _Strips:
    """The decoder's layers, each from maps (1, C, H, W) in the host's memory to one there.

    The map lies in one room, what a layer makes of it comes to the other.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.rooms: dict[str, Tensor] = {}

    def decode(self, autoencoder: AutoencoderKL, z: Tensor) -> Tensor:
        decoder: Any = autoencoder.decoder
        h = decoder.conv_in(autoencoder.post_quant_conv(z)).cpu()  # (1, C, h, w)
        h = self.room("map", h).copy_(h)
        h = self.resnet(decoder.mid.block_1, h)
        h = self.attention(decoder.mid.attn_1, h)
        h = self.resnet(decoder.mid.block_2, h)
        for stage in reversed(decoder.up):
            for i, block in enumerate(stage.block):
                h = self.resnet(block, h)
                if stage.attn:
                    h = self.attention(stage.attn[i], h)
            if stage.upsample is not None:
                h = self.layer(stage.upsample, h, self.room("made of it", h, scale=2))
                self.rooms["map"], self.rooms["made of it"] = self.rooms["made of it"], self.rooms["map"]
        picture = self.room("picture", h, len(decoder.conv_out.weight))  # (1, 3, fh, fw)
        return self.layer(decoder.conv_out, h, picture, decoder.norm_out)

    def resnet(self, block: Any, x: Tensor) -> Tensor:
        """Written over x."""
        channels = block.norm2.num_channels
        h = self.layer(block.conv1, x, self.room("made of it", x, channels), block.norm1)
        if block.nin_shortcut is not None:
            x = self.shortcut(block.nin_shortcut, x, self.room("map", x, channels))
        return self.layer(block.conv2, h, x, block.norm2, add=True)

    def shortcut(self, conv: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Writes to y, which may begin where x does, what a convolution of 1x1 makes of x; returns y."""
        parts = list(strips(x))
        # A narrower map stays behind the rows still to be read; a wider one does, from the last row upwards.
        for top, bottom in parts if y.shape[1] < x.shape[1] else reversed(parts):
            y[:, :, top:bottom] = conv(x[:, :, top:bottom].to(self.device))
        return y

    def attention(self, block: Any, x: Tensor) -> Tensor:
        """Added to x: all positions look at all others, a strip of them at a time where scores take room."""
        if isinstance(block, nn.Identity):
            return x
        on_device = x.to(self.device)
        h = block.norm(on_device)
        q, k, v = (rearrange(f(h), "b c h w -> b 1 (h w) c") for f in (block.q, block.k, block.v))
        at_once = q.shape[2] if h.device.type == "cpu" else max(1, STRIP // q.shape[2])
        h = torch.cat([attention(part, k, v) for part in q.split(at_once, dim=2)], dim=2)
        on_device += block.proj_out(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))
        return x.copy_(on_device)

    def layer(
        self, conv: nn.Module, x: Tensor, y: Tensor, norm: GroupNorm | None = None, add: bool = False
    ) -> Tensor:
        """Writes to y, or adds to it, what a convolution makes of x, normalised if so told; returns y.

        The convolution may look a row beyond those it makes, and double them.
        """
        scale = y.shape[2] // x.shape[2]
        by_sums = self.by_sums(norm, x) if norm else None
        around = any(getattr(it, "padding_mode", None) == "circular" for it in conv.modules())
        for top, bottom in strips(x):
            strip, above, below = with_neighbours(x, top, bottom, around)
            strip = strip.to(self.device)
            if by_sums:
                strip = by_sums(strip, y=self.room("normalised", strip))
            rows = y[:, :, scale * top : scale * bottom]
            made = self.room("made", rows) if add else rows
            write_inside(conv, strip, above, below, made)
            if add:
                rows += made
        return y

    def by_sums(self, norm: GroupNorm, x: Tensor) -> Callable[..., Tensor]:
        """The normalisation by the sums over the whole of x, to be applied to strips of it."""
        parts = (x[:, :, top:bottom].to(self.device) for top, bottom in strips(x))
        sums = torch.stack([group_sums(part, norm.num_groups) for part in parts]).sum(0)
        return partial(norm.by_sums, sums=sums, count=x[0].numel() // norm.num_groups)

    def room(self, what: str, x: Tensor, channels: int | None = None, scale: int = 1) -> Tensor:
        """Memory for a map like x, channels last, where the last one of its kind lay.

        It has its own number of channels and is so many times as high and wide.
        """
        _, own, height, width = x.shape
        shape = 1, scale * height, scale * width, channels or own
        count = math.prod(shape)
        if what not in self.rooms or len(self.rooms[what]) < count:
            self.rooms.pop(what, None)
            self.rooms[what] = torch.empty(count, dtype=x.dtype, device=x.device)
        return self.rooms[what][:count].view(shape).permute(0, 3, 1, 2)


def strips(x: Tensor) -> Iterator[tuple[int, int]]:
    """The first row of each strip of a map (1, C, H, W), and the first behind it."""
    _, channels, height, width = x.shape
    rows = max(1, STRIP // (channels * width))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def with_neighbours(x: Tensor, top: int, bottom: int, around: bool) -> tuple[Tensor, int, int]:
    """Rows of a map with those that a convolution of 3x3 looks at besides: how many above, how many below.

    Beyond the map's borders there are none, but where it pads `around`, its other end.
    """
    height = x.shape[2]
    if around:
        return x[:, :, torch.arange(top - 1, bottom + 1) % height], 1, 1
    above, below = min(1, top), min(1, height - bottom)
    return x[:, :, top - above : bottom + below], above, below
