"""Which libraries in C a CPU's vectors take: in float32 those for AVX2 or AVX-512, in bfloat16 for AVX-512.

Processors with AMX have others for bfloat16, and float32 was not tried there. Installing this package builds
the libraries where there is a C compiler.
"""

import ctypes
from pathlib import Path

import torch

from ldm.device import has_avx512_bf16
from ldm.freeu.native import load
from ldm.modules.onednn import CPU_VECTORS, HAS_AMX, HAS_AVX512


def libraries(source: Path) -> dict[torch.dtype, ctypes.CDLL]:
    """What a C file of this package became, by the precisions that this processor is faster in by it."""
    if HAS_AMX:
        return {}
    forms = {torch.float32: CPU_VECTORS}
    if HAS_AVX512 and has_avx512_bf16():
        forms[torch.bfloat16] = "avx512_bf16"
    made = {dtype: load(source, "ldm.modules", form) for dtype, form in forms.items()}
    return {dtype: library for dtype, library in made.items() if library}
