"""A U-Net's blocks by torch.compile, each form of them once.

The network around them stays as it is. So FreeU, which acts between the blocks, may change at any time, and
nothing is compiled twice. On a CPU compiled layers are torch's own, which take longer than ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ldm.errors import InputError
from ldm.modules.attention import AttentionBlock, SpatialTransformer
from ldm.modules.diffusionmodules.blocks import ResBlock

MOST_FORMS = 256  # of one kind of block, by channels and size of its maps; torch's own limit is 8


@contextmanager
def compiled_blocks(unet: nn.Module) -> Iterator[None]:
    """Within it a U-Net's blocks are compiled, as each form of them is called first.

    Raises InputError where torch finds no compiler for the device, or that fails.
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
