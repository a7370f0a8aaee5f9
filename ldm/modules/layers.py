"""Linear layers and convolutions: torch's own and, at inference on a CPU, by faster products.

torch hands float32 products on a CPU to MKL, which takes twice as long as oneDNN on processors that are not
Intel's. Here all of them go to oneDNN, with the weights as they lie: no second copy, so that loading, moving,
copying and training a model are what they are elsewhere. Where gradients are recorded, on other devices and
under `torch.compile` everything is torch's own.
"""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and platform.machine() in ("x86_64", "AMD64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
HAS_BFLOAT16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()

FEW_POSITIONS = (
    512  # of a batch of maps: below, a convolution spends longer on its weights' layout than on the maps
)
MANY_DOUBLED = 2048  # positions before doubling: below, a folded kernel costs more to make than it saves


def is_fast(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies these: at inference, on an x86 CPU, in one precision that it has."""
    kinds = (torch.float32, torch.bfloat16) if HAS_BFLOAT16 else (torch.float32,)
    return (
        HAS_ONEDNN
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in kinds
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none", times: Tensor | None = None
) -> Tensor:
    """x W^T + bias by oneDNN, (..., in) and (out, in) to (..., out); see `is_fast`.

    `then` may name a function of every number, "sigmoid" or "gelu", taken before the number is rounded; or
    each may be multiplied by its own of `times`, (..., out), before that.
    """
    if times is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, times, weight, bias, "mul")
    exact = "none"  # the form of the GELU: no approximation
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], exact)


class Linear(nn.Linear):
    """torch's linear layer by oneDNN where it is faster."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias) if is_fast(x, self.weight) else super().forward(x)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps height and width.

    On few positions it is one product of all patches with the weights: a convolution of oneDNN would first
    lay the weights out anew, which takes longer than the rest.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        few = batch * height * width <= FEW_POSITIONS
        weight = self.weight.permute(0, 2, 3, 1)  # (out, 3, 3, C)
        if not few or not weight.is_contiguous() or not is_fast(x, self.weight):
            return super().forward(x)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (B, H + 2, W + 2, C)
        patches = padded.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)  # (B, H, W, 3, 3, C)
        h = product(patches.flatten(3), weight.flatten(1), self.bias)  # (B, H, W, out)
        return h.permute(0, 3, 1, 2)


class Upsample(nn.Module):
    """Doubles height and width, (B, C, H, W) to (B, C, 2H, 2W): nearest neighbour, then a convolution.

    Every number of the doubled map stands there four times. A transposed convolution, whose kernel holds the
    sums of the weights that meet the same number, gives the same with 4/9 of the arithmetic.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        weight = self.conv.weight
        if batch * height * width < MANY_DOUBLED or not is_fast(x, weight):
            return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        rows = F.pad(turned, (0, 0, 1, 0)) + F.pad(turned, (0, 0, 0, 1))  # (C, out, 4, 3)
        kernel = F.pad(rows, (1, 0)) + F.pad(rows, (0, 1))  # (C, out, 4, 4)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
