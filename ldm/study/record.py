"""Hooks that show what a U-Net's decoder concatenates, before FreeU and after it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.freeu import DecoderStage
from ldm.freeu.diffusers import Joint, decoder, forget_compiled, refuse_diffusers_own, uncompiled, unet_of
from ldm.modules.diffusionmodules.openaimodel import UNetModel


@dataclass(frozen=True)
class Fused:
    """Backbone and skip as a decoder block takes them: (B, width + skip width, H, W)."""

    maps: Tensor
    width: int

    @property
    def x(self) -> Tensor:
        """The backbone, (B, width, H, W)."""
        return self.maps[:, : self.width]

    @property
    def h(self) -> Tensor:
        """The skip, (B, skip width, H, W)."""
        return self.maps[:, self.width :]


@dataclass(frozen=True)
class Concatenation:
    """What one decoder block concatenates in one call of the network; equal on both sides where FreeU is off.

    `after` is a view of what the network goes on with: it is to be read at once or copied.
    """

    index: int  # of the concatenation in the decoder, 0 at the lowest resolution
    stage: DecoderStage
    before: Fused
    after: Fused


Callback = Callable[[Concatenation], None]


@contextmanager
def recorded(model: Any, callback: Callback, guided: bool) -> Iterator[None]:
    """Calls `callback` at each decoder concatenation of a U-Net while the context lasts.

    `model` is a latent diffusion model, its U-Net, or a U-Net or a pipeline of diffusers. Of a `guided`
    batch, whose first half is unconditional, only the conditional half is passed on.

    Raises InputError for a model whose U-Net concatenates no skips, and ValueError for one with diffusers'
    own FreeU on.
    """
    unet = uncompiled(getattr(getattr(model, "model", None), "diffusion_model", model))

    def report(index: int, stage: DecoderStage, before: Tensor, after: Tensor) -> None:
        start = len(after) // 2 if guided else 0
        sides = (Fused(maps[start:], stage.width) for maps in (before, after))
        callback(Concatenation(index, stage, *sides))

    with ExitStack() as hooks:
        hooks.callback(forget_compiled)
        if isinstance(unet, UNetModel):
            _hook_output_blocks(unet, report, hooks)
        else:
            for index, joint in enumerate(_joints(unet)):
                _hook_resnet(index, joint, report, hooks)
        forget_compiled()
        yield


def _joints(model: Any) -> list[Joint]:
    """Where the U-Net of diffusers concatenates. Raises InputError where it is none or does not."""
    try:
        unet: Any = unet_of(model)
    except ValueError:
        raise InputError(
            f"The figures look at a U-Net's skip concatenations, but {type(model).__name__} has none."
        ) from None
    refuse_diffusers_own(*unet.up_blocks)
    return decoder(unet)


def _hook_output_blocks(unet: UNetModel, report: Callable[..., None], hooks: ExitStack) -> None:
    """Hooks for this project's U-Nets, where FreeU stands between the blocks.

    What was before it are the maps that the encoder, the middle and the decoder's blocks gave out; what is
    after it goes into the blocks.
    """
    skips: list[Tensor] = []
    backbone: list[Tensor] = []

    def on_output(kept: list[Tensor], most: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            kept.append(out)
            del kept[:-most]  # torch.compile traces no queue of a fixed length

        return hook

    for block in unet.input_blocks:
        hooks.callback(block.register_forward_hook(on_output(skips, len(unet.input_blocks))).remove)
    for block in (unet.middle_block, *unet.output_blocks):
        hooks.callback(block.register_forward_hook(on_output(backbone, 1)).remove)

    def on_input(index: int, stage: DecoderStage) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            before = torch.cat([backbone[0], skips[-1 - index]], dim=1)  # (B, width + skip width, H, W)
            report(index, stage, before, args[0])

        return hook

    for index, (block, stage) in enumerate(zip(unet.output_blocks, unet.decoder_stages, strict=True)):
        hooks.callback(block.register_forward_pre_hook(on_input(index, stage)).remove)


def _hook_resnet(index: int, joint: Joint, report: Callable[..., None], hooks: ExitStack) -> None:
    """Hooks for a resnet of diffusers: one ahead of FreeU's, and one that sees what the resnet was given."""
    before: list[Tensor] = []

    def on_input(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        before[:] = [_first(args, kwargs).clone()]

    def on_output(module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        report(index, joint.stage, before.pop(), _first(args, kwargs))

    first = joint.resnet.register_forward_pre_hook(on_input, prepend=True, with_kwargs=True)
    last = joint.resnet.register_forward_hook(on_output, with_kwargs=True)
    hooks.callback(first.remove)
    hooks.callback(last.remove)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A module's first argument, by place or by name."""
    return args[0] if args else next(iter(kwargs.values()))
