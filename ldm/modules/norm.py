"""Group normalisation, and SiLU behind it: torch's own and, at inference on a CPU, norm.c's.

norm.c reads a map twice and writes it once, over what it read where nobody needs that; torch's own goes over
it once more for SiLU. A strip of a map is normalised by the sums of the whole.
"""

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.freeu.native import is_plain, load, pointer

WIDEST = 2**14  # channels, for which there is room beside a thread's stack

LIBRARY = load(Path(__file__).with_name("norm.c"), "ldm.modules")


def has_norm(x: Tensor) -> bool:
    """Whether norm.c is there for these maps, (B, C, H, W): in one precision, channels last."""
    return (
        LIBRARY is not None
        and x.dtype in (torch.float32, torch.bfloat16)
        and is_plain(x)
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > 0
        and x.shape[1] <= WIDEST
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def group_sums(x: Tensor, groups: int) -> Tensor:
    """The sums of maps' numbers, (B, C, H, W), and of their squares, in each group of channels.

    (B, groups, 2), in float64 on the CPU, wherever x is.
    """
    if has_norm(x):
        sums = sums_in_c(x, groups)
        if sums is not None:
            return sums
    batch, channels, height, width = x.shape
    # In the layout in which torch takes the statistics of groups fastest.
    layout = torch.channels_last if x.device.type == "cpu" else torch.contiguous_format
    x = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous(memory_format=layout)
    shape = batch, channels, height * width, groups
    _, mean, rstd = torch.native_group_norm(x, None, None, *shape, eps=0)
    mean, var = mean.cpu().double(), rstd.cpu().double() ** -2  # (B, groups)
    return torch.stack([mean, var + mean**2], dim=-1) * (x[0].numel() // groups)


def shape_in_c(x: Tensor, groups: int) -> ctypes.Array[ctypes.c_long]:
    """norm.c's `struct maps`."""
    batch, channels, height, width = x.shape
    return (ctypes.c_long * 4)(batch, height * width, channels, groups)


def sums_in_c(x: Tensor, groups: int) -> Tensor | None:
    """`group_sums` of maps that `has_norm` is for; None where there is no memory."""
    assert LIBRARY is not None
    sums = torch.zeros(len(x), groups, 2, dtype=torch.float64, device="cpu")
    how = x.dtype == torch.bfloat16, torch.get_num_threads()
    failed = LIBRARY.add_sums(pointer(x), shape_in_c(x, groups), pointer(sums), *how)
    return None if failed else sums


class GroupNorm(nn.GroupNorm):
    """torch's group normalisation, with SiLU behind it where `silu` says so."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, silu: bool = False):
        super().__init__(groups, channels, eps)
        self.silu = silu

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """Normalises maps (B, C, H, W); where `overwrite` allows it, in their own memory."""
        sums = sums_in_c(x, self.num_groups) if self._has_c(x) else None
        if sums is not None:
            y = x if overwrite else torch.empty_like(x)
            return self._in_c(x, sums, x[0].numel() // self.num_groups, y)
        y = super().forward(x)
        return F.silu(y, inplace=True) if self.silu else y

    def _has_c(self, x: Tensor) -> bool:
        return (
            has_norm(x)
            and x.shape[1] == self.num_channels
            and all(
                it is not None and is_plain(it.detach()) and it.dtype == x.dtype and it.is_contiguous()
                for it in (self.weight, self.bias)
            )
        )

    def _in_c(self, x: Tensor, sums: Tensor, count: int, y: Tensor) -> Tensor:
        assert LIBRARY is not None
        # Held until C has read them: a parametrisation makes them anew each time they are asked for.
        weight, bias = self.weight, self.bias
        inputs = pointer(sums), ctypes.c_double(count), pointer(weight), pointer(bias)
        how = ctypes.c_double(self.eps), self.silu, x.dtype == torch.bfloat16, torch.get_num_threads()
        LIBRARY.normalize(pointer(x), pointer(y), shape_in_c(x, self.num_groups), *inputs, *how)
        return y

    def by_sums(self, x: Tensor, sums: Tensor, count: int, y: Tensor | None = None) -> Tensor:
        """As `forward`, by sums as of `group_sums` over `count` numbers of each group.

        They are x's own, or those of a map that x, (1, C, H, W), is a strip of. What is made may lie in y,
        which is like x.
        """
        if self._has_c(x):
            return self._in_c(x, sums, count, torch.empty_like(x) if y is None else y)
        mean, squares = (
            (sums[0] / count).repeat_interleave(x.shape[1] // self.num_groups, 0).unbind(-1)
        )  # (C,)
        # Once the statistics are given, a normalisation over groups is one over a batch. They are in float32
        # at least; MPS takes them in the maps' own precision alone.
        finer = torch.promote_types(x.dtype, torch.float32)
        kind = finer if x.device.type == "mps" else x.dtype
        mean, var = (it.to(finer).to(x.device) for it in (mean, squares - mean**2))
        weight, bias = self.weight.to(finer), self.bias.to(finer)
        y = F.batch_norm(x.to(kind), mean, var, weight, bias, eps=self.eps).to(x.dtype)
        return F.silu(y, inplace=True) if self.silu else y
