"""Decoding in strips: the numbers of the whole decode, up to rounding, in a fraction of its memory.

Maps lie in the host's memory, and the decoder's device holds a strip of rows at a time. Strips overlap by the
row that a convolution reaches over, and a group normalisation first takes its statistics from the whole map,
so that there is no seam to hide.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.dot_product import attention
from ldm.modules.norm import GroupNorm, group_sums

STRIP = 2**24  # numbers in a strip, or scores of attention at once: 64 MiB in float32

Step = Callable[..., Tensor]


@torch.no_grad()
def decode_in_strips(autoencoder: AutoencoderKL, z: Tensor) -> Tensor:
    """The picture, near [-1, 1], of latents z: (1, embed_dim, h, w) to (1, 3, fh, fw) on the CPU."""
    return _Strips(z.device).decode(autoencoder, z)


class _Strips:
    """The decoder's layers, each from maps (1, C, H, W) in the host's memory to one there."""

    def __init__(self, device: torch.device):
        self.device = device

    def decode(self, autoencoder: AutoencoderKL, z: Tensor) -> Tensor:
        decoder: Any = autoencoder.decoder
        h = decoder.conv_in(autoencoder.post_quant_conv(z)).cpu()  # (1, C, h, w)
        h = self.resnet(decoder.mid.block_1, h)
        h = self.attention(decoder.mid.attn_1, h)
        h = self.resnet(decoder.mid.block_2, h)
        for stage in reversed(decoder.up):
            for i, block in enumerate(stage.block):
                h = self.resnet(block, h)
                if stage.attn:
                    h = self.attention(stage.attn[i], h)
            if stage.upsample is not None:
                h = self.layer(stage.upsample, h, scale=2)
        norm = self.norm(decoder.norm_out, h)
        return self.layer(lambda strip: decoder.conv_out(norm(strip)), h)  # (1, 3, fh, fw)

    def resnet(self, block: Any, x: Tensor) -> Tensor:
        norm1 = self.norm(block.norm1, x)
        h = self.layer(lambda strip: block.conv1(norm1(strip)), x)
        norm2, shortcut = self.norm(block.norm2, h), block.nin_shortcut or nn.Identity()
        return self.layer(lambda h, x: block.conv2(norm2(h)).add_(shortcut(x)), h, x)

    def attention(self, block: Any, x: Tensor) -> Tensor:
        """All positions look at all others, a strip of them at a time, as scores take the most room."""
        if isinstance(block, nn.Identity):
            return x
        on_device = x.to(self.device)
        h = block.norm(on_device)
        q, k, v = (rearrange(f(h), "b c h w -> b 1 (h w) c") for f in (block.q, block.k, block.v))
        at_once = q.shape[2] if h.device.type == "cpu" else max(1, STRIP // q.shape[2])
        h = torch.cat([attention(part, k, v) for part in q.split(at_once, dim=2)], dim=2)
        return (on_device + block.proj_out(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))).cpu()

    def norm(self, norm: GroupNorm, x: Tensor) -> Step:
        """The normalisation by the sums over the whole of x, to be applied to strips of it."""
        parts = (x[:, :, top:bottom].to(self.device) for top, bottom in strips(x))
        sums = torch.stack([group_sums(part, norm.num_groups) for part in parts]).sum(0)
        return partial(norm.by_sums, sums=sums, count=x[0].numel() // norm.num_groups)

    def layer(self, step: Step, *maps: Tensor, scale: int = 1) -> Tensor:
        """What a step makes of maps, (1, C', scale H, scale W); it may look a row beyond the one it makes."""
        height, out = maps[0].shape[2], None
        for top, bottom in strips(maps[0]):
            above, below = min(1, top), min(1, height - bottom)
            made = step(*(x[:, :, top - above : bottom + below].to(self.device) for x in maps))
            made = made[:, :, scale * above : made.shape[2] - scale * below]
            if out is None:
                _, channels, _, width = made.shape
                shape = 1, scale * height, width, channels
                out = torch.empty(shape, dtype=made.dtype, device="cpu").permute(0, 3, 1, 2)
            out[:, :, scale * top : scale * bottom] = made
        assert out is not None
        return out


def strips(x: Tensor) -> Iterator[tuple[int, int]]:
    """The first row of each strip of a map (1, C, H, W), and the first behind it."""
    _, channels, height, width = x.shape
    rows = max(1, STRIP // (channels * width))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)
