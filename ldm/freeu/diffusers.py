"""FreeU on the U-Nets of diffusers, by hooks.

The U-Nets there have `up_blocks` whose `resnets` are called with the concatenation of backbone and skip. A
hook before each re-weights it where it lies. No forward is copied, so that ControlNet, adapters, compilation
and offloading go on as before, and nothing of diffusers is imported: any module built like this is served.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ldm.freeu.operator import free_u
from ldm.freeu.settings import NEUTRAL, PRESETS, TRAINING_STEPS, DecoderStage, FreeUSettings, find_preset

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def enable(model: Any, preset: str | None = None, version: int = 1, **settings: Any) -> "Enabled":
    """Puts FreeU into a U-Net or a pipeline's U-Net: until `disable`, or until the end of a `with` statement.

    The factors are a preset's ("sd21", see `PRESETS`), or given as b1, b2, s1 and s2, one where left out.
    `settings` takes these and every other field of `FreeUSettings`. The fractions of `start` and `stop` are
    of the pipeline's run, or of 1000 training steps for a U-Net alone. What was enabled before is replaced,
    and comes back at the end of a `with` statement unless `disable` was called in it.

    Each enabling and disabling discards all that torch.compile has made in this process: do it once.

    Raises ValueError for a model without a U-Net that concatenates skips, for a U-Net none of whose blocks
    are met (with the widths found), for one with diffusers' own FreeU on, and for settings that mean nothing.
    """
    unet: Any = unet_of(model)
    refuse_diffusers_own(*unet.up_blocks)
    known = [field.name for field in fields(FreeUSettings)]
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"FreeU has no setting {unknown[0]!r}: there are {', '.join(known)}.")
    if preset is None and not settings.keys() & {"b1", "b2", "s1", "s2", "stages"}:
        names = ", ".join(sorted({name for name, _ in PRESETS}))
        raise ValueError(f"FreeU needs factors: give a preset ({names}), or b1, b2, s1 and s2.")
    base = replace(NEUTRAL, version=version) if preset is None else find_preset(preset, version)
    chosen = replace(base, **settings)
    clock = None if chosen.acts_throughout() else Clock(chosen, model)

    enabled = Enabled(unet)
    attach(unet, chosen, clock)
    _set_hook(unet, clock)
    return enabled


def disable(model: Any) -> None:
    """Takes FreeU out of a U-Net or a pipeline's U-Net; does nothing where there is none."""
    unet = unet_of(model)
    _disabled[unet] = _disabled.get(unet, 0) + 1
    for module in unet.modules():
        _set_hook(module, None)


_disabled: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # how often `disable` met a U-Net


class Enabled:
    """What `enable` gives: the end of its `with` statement puts back what was there before, once."""

    def __init__(self, unet: nn.Module):
        self.unet, self.disabled, self.ended = unet, _disabled.get(unet, 0), False
        self.before = {module: hook for module in unet.modules() for hook in _ours(module).values()}

    def __enter__(self) -> None:
        if self.ended:
            raise RuntimeError("This `with` statement of FreeU's has ended: call enable again for another.")

    def __exit__(self, *_: object) -> None:
        self.ended = True
        if _disabled.get(self.unet, 0) == self.disabled:
            for module in self.unet.modules():
                _set_hook(module, self.before.get(module))


def unet_of(model: Any) -> nn.Module:
    """The U-Net of a pipeline, or the U-Net itself, without what torch.compile wraps around it.

    Raises ValueError where there is none that concatenates skips as FreeU needs it.
    """
    unet = uncompiled(getattr(model, "unet", model))
    if hasattr(unet, "up_blocks"):
        if decoder(unet):
            return unet
        reason = "its decoder's resnets are not given a concatenation of backbone and skip"
    elif hasattr(model, "transformer") or "Transformer" in type(model).__name__:
        reason = "it denoises with a transformer, which has no decoder that concatenates the encoder's maps"
    elif hasattr(getattr(unet, "module", None), "up_blocks"):
        reason = f"{type(unet).__name__} wraps the U-Net, give its .module"
    else:
        reason = "it has no U-Net called unet. Where it has one by another name, give that"
    raise ValueError(f"FreeU cannot act on {type(model).__name__}: {reason}.")


def uncompiled(network: Any) -> Any:
    """The network inside what torch.compile makes of one; any other as it is."""
    return getattr(network, "_orig_mod", network)


def refuse_diffusers_own(*blocks: Any) -> None:
    """Raises ValueError where `enable_freeu` gave factors to up-blocks; `disable_freeu` makes them None."""
    factors = ("b1", "b2", "s1", "s2")
    if any(vars(block).get(name) is not None for block in blocks for name in factors):
        raise ValueError("diffusers' own FreeU is on, and acts before ours: call disable_freeu() first.")


@dataclass(frozen=True)
class Joint:
    """A resnet of the decoder and what is concatenated before it."""

    block: nn.Module
    resnet: nn.Module
    stage: DecoderStage


def decoder(unet: Any) -> list[Joint]:
    """Where a U-Net's decoder concatenates, from the lowest resolution to the highest."""
    joints = []
    backbone = 0
    for block, level in zip(unet.up_blocks, reversed(range(len(unet.up_blocks))), strict=True):
        for resnet in getattr(block, "resnets", ()):
            convs = [layer for layer in resnet.modules() if isinstance(layer, nn.Conv2d)]
            if not convs:
                return []  # of sequences, not of pictures
            given, made = convs[0].in_channels, convs[-1].out_channels
            backbone = backbone or made  # the decoder's first resnet keeps the width
            if given > backbone:
                joints.append(Joint(block, resnet, DecoderStage(backbone, given - backbone, 2**level)))
            backbone = made
    return joints


def attach(
    unet: nn.Module,
    settings: FreeUSettings,
    clock: "Clock | None" = None,
    concerns: Callable[[nn.Module], bool] = lambda block: True,
) -> None:
    """Hooks FreeU before the resnets of the up-blocks that it `concerns`, instead of what was there.

    Raises ValueError, with the widths found, when none of them is met.
    """
    joints = decoder(unet)
    model_channels = joints[-1].stage.skip_width  # the last skip is the first convolution's output
    joints = [joint for joint in joints if concerns(joint.block)]
    factors = settings.factors([joint.stage for joint in joints], model_channels)
    for joint, (b, s) in zip(joints, factors, strict=True):
        hook = Reweighting(joint.block, joint.stage.width, b, s, settings, clock)
        _set_hook(joint.resnet, hook if (b, s) != (1, 1) else None)


class Clock:
    """A hook on the U-Net that reads its timesteps and says how much of FreeU each sample gets.

    Pipelines give their scheduler timesteps anew for each run, and a run that begins with a picture goes
    through the last of them alone: it begins at the noisiest that the U-Net was asked for. A U-Net alone may
    come by all timesteps of the training.
    """

    def __init__(self, settings: FreeUSettings, model: Any):
        self.settings = settings
        self.model = ref(model)  # weakly: a U-Net that is copied or outlives its pipeline carries none along
        self.scheduler = getattr(model, "scheduler", None)
        self.config = getattr(self.scheduler, "config", None)
        self.weight = torch.ones(1)
        self.run, self.begin = torch.arange(TRAINING_STEPS), torch.tensor(TRAINING_STEPS)
        self.steps, self.warned = 0, False

    def __call__(self, unet: nn.Module, args: Args, kwargs: Kwargs) -> None:
        t = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).reshape(-1)
        # Asked for at each step, since pipelines exchange their schedulers.
        scheduler = getattr(self.model(), "scheduler", self.scheduler)
        config = getattr(scheduler, "config", None)
        # A panorama puts a copy of all that its scheduler holds back into it, for each part of a step.
        is_copied = scheduler is self.scheduler and config is not self.config
        goes_on = scheduler is None or scheduler.timesteps is self.run or is_copied
        if scheduler is not None:
            self.begin = self.begin.to(t.device).maximum(t.max()) if goes_on else t.max()
            self.run = scheduler.timesteps
        self.scheduler, self.config = scheduler, config
        run, begin = self.run.to(t.device), self.begin.to(t.device)
        if not torch.compiler.is_compiling():
            self.steps = self.steps + 1 if goes_on else 1
            self.warn_of_another_run(t, run)
        self.weight = self.settings.weight(t, run, begin)  # (B,), or (1,) for all samples

    def warn_of_another_run(self, t: Tensor, run: Tensor) -> None:
        """Says once that a timestep, even if rounded, is none of the run's: another pipeline runs."""
        # An answer of a GPU has to be waited for: there the first step is asked, and those beyond the run's.
        seldom = t.device.type != "cpu" and 1 < self.steps <= len(run)
        capturing = t.is_cuda and torch.cuda.is_current_stream_capturing()
        unknown = t.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(t)
        if self.warned or seldom or capturing or unknown:
            return
        distance = (run - t[:, None]).abs().amin(1)  # (B,)
        if (distance >= 1).any():
            self.warned = True
            warnings.warn(
                f"FreeU's start and stop follow a run without timestep {t[distance.argmax()]:g}: call enable "
                "on the pipeline that runs, or leave them out.",
                stacklevel=3,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "model": NoneType}  # which, called as a weak reference is, says that it is gone


@dataclass(frozen=True)
class Reweighting:
    """A hook on a resnet of an up-block: FreeU on its first argument, the concatenation."""

    block: nn.Module
    width: int
    b: float
    s: float
    settings: FreeUSettings
    clock: Clock | None

    def __call__(self, resnet: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        refuse_diffusers_own(self.block)
        if args:
            return (self.apply(args[0]), *args[1:]), kwargs
        name, fused = next(iter(kwargs.items()))
        return args, {**kwargs, name: self.apply(fused)}

    def apply(self, fused: Tensor) -> Tensor:
        weight = None
        if self.clock is not None:
            frames = len(fused) // len(self.clock.weight)
            weight = self.clock.weight.repeat_interleave(frames)  # a sample's frames follow each other
        how = self.settings
        return free_u(fused, self.width, self.b, self.s, how.version, how.threshold, weight, how.channels)


def _ours(module: nn.Module) -> dict[int, Clock | Reweighting]:
    """Our hooks before a module's forward, by their kind, since a copy has hooks that nobody put there."""
    hooks = module._forward_pre_hooks.items()
    return {key: hook for key, hook in hooks if isinstance(hook, Clock | Reweighting)}


def _set_hook(module: nn.Module, hook: Clock | Reweighting | None) -> None:
    """Puts our hook before a module's forward in the place of an earlier one; None only takes it away."""
    earlier = _ours(module)
    for key in earlier:
        del module._forward_pre_hooks[key], module._forward_pre_hooks_with_kwargs[key]
    if hook is not None:
        module.register_forward_pre_hook(hook, with_kwargs=True)
    if earlier or hook is not None:
        forget_compiled()


def forget_compiled() -> None:
    """Discards what torch.compile has made: it goes on without noticing that hooks came or went."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
