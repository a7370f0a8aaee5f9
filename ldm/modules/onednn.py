"""Products on a CPU by oneDNN where it is faster, which torch takes there for bfloat16 alone.

torch hands float32 products to MKL. Where there is AVX-512 that takes twice as long as oneDNN on processors
that are not Intel's, so there they go to oneDNN, but for small ones, which MKL begins sooner; by AVX2, oneDNN
takes 1.1 times as long as MKL. Weights stay as they lie: no second copy, so that loading, moving, copying and
training a model are as they are elsewhere.
"""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.device import has_amx
from ldm.freeu.native import is_plain

HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and platform.machine() in ("x86_64", "AMD64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
HAS_BFLOAT16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
HAS_AMX = has_amx()
CPU_VECTORS = torch.backends.cpu.get_cpu_capability().lower()  # "avx2", "avx512" or others
HAS_AVX512 = CPU_VECTORS == "avx512"
SMALL = 2**21  # multiplications


def is_fast(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies these: at inference, on an x86 CPU, in one precision that it has."""
    kinds = (torch.float32, torch.bfloat16) if HAS_BFLOAT16 else (torch.float32,)
    return (
        HAS_ONEDNN
        and is_plain(x)
        and type(weight) in (Tensor, nn.Parameter)  # quantised ones are of other kinds
        and not torch._C._functorch.is_functorch_wrapped_tensor(weight)
        and weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in kinds
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x W^T + bias by the faster library, (..., in) and (out, in) to (..., out); see `is_fast`.

    With `gelu` it is the GELU of that, taken before the numbers are rounded.
    """
    if x.dtype == torch.float32 and not (HAS_AVX512 and x.numel() * len(weight) > SMALL):
        y = F.linear(x, weight, bias)
        return torch.ops.aten.gelu_(y) if gelu else y
    exact = "none"  # the form of the GELU: no approximation
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], exact)
