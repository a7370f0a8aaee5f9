"""Latent diffusion with FreeU. `load_model` builds a model from a config and a checkpoint."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.checkpoint import load_model

__all__ = ["load_model"]

# Weights and maps in large pages, where Linux has them: torch reads this as it first takes memory.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that `import ldm` costs nothing.
    if name == "load_model":
        from ldm.checkpoint import load_model

        return load_model
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
