"""Latent diffusion with FreeU. `load_model` builds a model from a config and a checkpoint."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.checkpoint import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that `import ldm` costs nothing.
    if name == "load_model":
        from ldm.checkpoint import load_model

        return load_model
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
