"""What the tests of faster products ask of the machine, and what these are held against."""

import pytest
import torch
import torch.nn.functional as F

from ldm.device import has_avx512_bf16
from ldm.freeu import native
from ldm.modules import onednn

KINDS = [torch.float32, *([torch.bfloat16] if onednn.HAS_BFLOAT16 else [])]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
only_here = pytest.mark.skipif(not onednn.HAS_ONEDNN, reason="torch has no oneDNN on this machine")
with_bfloat16 = pytest.mark.skipif(not onednn.HAS_BFLOAT16, reason="this processor multiplies no bfloat16")

FORMS = {
    "avx2": onednn.CPU_VECTORS in ("avx2", "avx512"),
    "avx512": onednn.HAS_AVX512,
    "avx512_bf16": onednn.HAS_AVX512 and has_avx512_bf16(),
}  # of the libraries in C, and whether they run here
FORM_KINDS = {"avx2": torch.float32, "avx512": torch.float32, "avx512_bf16": torch.bfloat16}

CLOSE = {torch.float32: 2e-6, torch.bfloat16: 3e-2}


def assert_convolved(made, x, weight, bias, close=None, above=0, below=0):
    """That a convolution with fewer products made of x what the formula in float64 makes, channels last.

    Of that it need not have made so many rows above and below.
    """
    close = close or CLOSE[x.dtype]
    whole = x.double(), weight.double(), bias.double()
    expected = F.conv2d(*whole, padding=1)
    expected = expected[:, :, above : expected.shape[2] - below]
    assert made.shape == expected.shape and made.dtype == x.dtype
    assert made.is_contiguous(memory_format=torch.channels_last)
    # Beside the sums that rounding is relative to, which may cancel in the few numbers of a small map.
    size = F.conv2d(*(it.abs() for it in whole), padding=1)
    assert ((made.double() - expected).abs() <= close * size.max()).all()


def distance_from_convolved(made, x, weight, bias):
    """The root mean square of what sets it apart from the formula in float64, beside that of the latter."""
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    return (made.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()


def attended(q, k, v):
    """Attention by its formula in float64."""
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v


def library(module, form):
    """That form of a module's library in C, whether or not the module takes it here."""
    made = native.load(module.SOURCE, "ldm.modules", form) if FORMS[form] else None
    return made or pytest.skip("no such processor, or no C compiler for it at the installation")
