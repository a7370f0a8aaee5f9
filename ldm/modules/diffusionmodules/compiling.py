"""torch.compile on a U-Net's blocks: one graph for each form, by channels and size of the maps.

The network around the blocks stays eager. So FreeU, which acts between them, may change at any time without
compiling again. On a CPU compiled layers are torch's own, which take longer than ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ldm.errors import InputError
from ldm.modules.attention import AttentionBlock, SpatialTransformer
from ldm.modules.diffusionmodules.blocks import ResBlock

MOST_FORMS = 256  # of one kind of block; torch's own limit is 8


@contextmanager
def compiled_blocks(unet: nn.Module) -> Iterator[None]:
    """Within it a U-Net's blocks are compiled, each form when it is first called.

    Raises InputError where torch finds no compiler for the device, or where that fails.
    """
    from torch import _dynamo  # takes a second, and is needed here alone

    blocks = [it for it in unet.modules() if isinstance(it, ResBlock | SpatialTransformer | AttentionBlock)]
    for block in blocks:
        block.compile(dynamic=False)
    try:
        with _dynamo.config.patch(cache_size_limit=MOST_FORMS):
            yield
    except _dynamo.exc.BackendCompilerFailed as fault:
        reason = str(fault.inner_exception).partition("\n")[0]
        raise InputError(f"torch cannot compile here: {reason:.300}\nLeave --compile out.") from None
    finally:
        for block in blocks:
            block._compiled_call_impl = None
