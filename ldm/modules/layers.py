"""Linear layers and convolutions: torch's own and, at inference on a CPU, by faster products.

Where gradients are recorded, on other devices and under `torch.compile` everything is torch's own. Maps are
channels last; kernels may be, or lie as files have them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from ldm.modules.doubling import convolved_double
from ldm.modules.onednn import HAS_AMX, is_fast, product
from ldm.modules.winograd import winograd
from ldm.modules.winograd_in_c import has_winograd, winograd_in_c

FEW_POSITIONS = 512  # of a batch of maps: up to there a convolution spends longest on its weights' layout
MANY_POSITIONS, MANY_CHANNELS = 512, 256  # from which Winograd's sums cost less than the products they save
SOME_POSITIONS, SOME_CHANNELS = 128, 64  # and from which those in C do
MANY_DOUBLED = 128  # positions before doubling: below, the kernels cost more to make than they save


def is_its_weights(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer of this kind does what its weights say and no more.

    It does not where another wraps it or its function (as LoRAs do), or where hooks wait for its call.
    """
    if type(layer) is not kind or not is_called_as_made(layer):
        return False
    return not isinstance(layer, Conv3x3) or layer.is_as_made()


def is_called_as_made(layer: nn.Module) -> bool:
    """Whether a call of a layer is one of its class's function: no hooks, no other function in its place."""
    return not is_hooked(layer) and "forward" not in layer.__dict__  # torch.compile of 2.6 knows no `vars`


def is_hooked(layer: nn.Module) -> bool:
    """Whether hooks wait for its call, its own or those of all layers."""
    own = layer._forward_hooks or layer._forward_pre_hooks
    return bool(own or _global_forward_hooks or _global_forward_pre_hooks)


class Linear(nn.Linear):
    """torch's linear layer by the faster library."""

    def forward(self, x: Tensor) -> Tensor:
        if not (is_fast(x, self.weight) and x.shape[-1:] == self.weight.shape[1:]):
            return super().forward(x)  # which says of numbers that do not fit how many they are
        return product(x, self.weight, self.bias)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps height and width, or halves them with `stride` 2.

    With many channels on many positions it is Winograd's. On few positions it is one product of all patches
    with the weights: a convolution of oneDNN would first lay the weights out anew, which takes longer than
    the rest.

    It is made as `nn.Conv2d` is, since LoRAs make their convolutions of the kind that they find, and one with
    other kernels is torch's.
    """

    bias: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] | None = None,
        **how: Any,
    ):
        if padding is None:
            padding = 1 if kernel_size in (3, (3, 3)) else 0
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, **how)

    def is_as_made(self) -> bool:
        """Whether it is a convolution of 3x3 with a bias, zeros around the map, and nothing else.

        It is not where it was told since to pad otherwise (as pictures that tile need it) or to spread its
        kernels (as large pictures do), nor where a LoRA made it.
        """
        how = self.kernel_size, self.padding_mode, self.padding, self.dilation, self.groups
        return (
            how == ((3, 3), "zeros", (1, 1), (1, 1), 1)
            and self.bias is not None
            and "_conv_forward" not in self.__dict__
        )

    def is_in_c(self, x: Tensor) -> bool:
        """Whether `winograd_in_c` convolves these maps, where the layer is as made and `is_fast` holds."""
        positions, fewest = x.numel() // self.in_channels, min(self.in_channels, self.out_channels)
        some = positions >= SOME_POSITIONS and fewest >= SOME_CHANNELS
        return self.stride == (1, 1) and some and has_winograd(x, self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        fast = x.ndim == 4 and self.is_as_made() and is_fast(x, self.weight)
        if not (fast and x.shape[1] == self.weight.shape[1]):
            return super().forward(x)  # which says of channels that do not fit how many they are
        if self.is_in_c(x):
            return winograd_in_c(x, self.weight, self.bias)
        batch, _, height, width = x.shape
        down, right = self.stride
        positions = batch * -(-height // down) * -(-width // right)  # of what comes out
        fewest = min(self.in_channels, self.out_channels) if self.stride == (1, 1) else 0
        many = positions >= MANY_POSITIONS and fewest >= MANY_CHANNELS
        last = self.weight.is_contiguous(memory_format=torch.channels_last)
        # AMX multiplies bfloat16 so fast that nothing is saved by fewer products.
        if many and last and not (HAS_AMX and x.dtype == torch.bfloat16):
            return winograd(x, self.weight, self.bias)
        if positions > FEW_POSITIONS:
            return super().forward(x.contiguous(memory_format=torch.channels_last))
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (B, H + 2, W + 2, C)
        patches = padded.unfold(1, 3, down).unfold(2, 3, right)  # (B, H', W', C, 3, 3)
        patches = patches.permute(0, 1, 2, 4, 5, 3).flatten(3, 4)  # (B, H', W', 9, C)
        if last:
            weight = self.weight.permute(0, 2, 3, 1)  # (out, 3, 3, C)
        else:
            weight, patches = self.weight, patches.transpose(3, 4)  # (out, C, 3, 3), (B, H', W', C, 9)
        h = product(patches.flatten(3), weight.flatten(1), self.bias)  # (B, H', W', out)
        return h.permute(0, 3, 1, 2)


class Upsample(nn.Module):
    """Doubles height and width, (B, C, H, W) to (B, C, 2H, 2W): nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def is_convolved_double(self, x: Tensor) -> bool:
        """Whether `convolved_double` doubles these maps."""
        # A graph is asked for no size, as it would hold for maps of such sizes alone.
        if not (is_its_weights(self.conv, Conv3x3) and is_fast(x, self.conv.weight)):
            return False
        batch, channels, height, width = x.shape
        many = batch * height * width >= MANY_DOUBLED and channels >= MANY_CHANNELS
        return many and channels == self.conv.in_channels

    def forward(self, x: Tensor) -> Tensor:
        if self.is_convolved_double(x):
            return convolved_double(x, self.conv.weight, self.conv.bias)
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def write_inside(layer: Any, x: Tensor, above: int, below: int, y: Tensor) -> None:
    """Writes to y what a layer makes of x but for its halo, so many rows above and below that it only reads.

    The layer keeps height and width or doubles them, (B, C, above + H + below, W) to (B, C', H, W) or
    (B, C', 2H, 2W), and y, channels last and dense, may be on another device.
    """
    here = x.device == y.device
    if here and is_its_weights(layer, Conv3x3) and is_fast(x, layer.weight) and layer.is_in_c(x):
        winograd_in_c(x, layer.weight, layer.bias, above, below, y)
    elif here and is_its_weights(layer, Upsample) and layer.is_convolved_double(x):
        convolved_double(x, layer.conv.weight, layer.conv.bias, above, below, y)
    else:
        made = layer(x)
        scale = made.shape[2] // x.shape[2]
        y.copy_(made[:, :, scale * above : made.shape[2] - scale * below])
