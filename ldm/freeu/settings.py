"""FreeU's factors: which they are, which decoder blocks they meet, and the published values."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from ldm.freeu.operator import Channels

Match = Literal["channels", "resolution"]

TRAINING_STEPS = 1000  # the denoising run of a U-Net whose sampler is not known


@dataclass(frozen=True)
class DecoderStage:
    """What one decoder block of a U-Net concatenates."""

    width: int  # channels of the backbone
    skip_width: int  # channels of the skip
    downsampling: int  # of the map against the U-Net's input, 1 at full resolution


@dataclass(frozen=True)
class FreeUSettings:
    """The factors of FreeU.

    b scales half of the backbone's channels, s the skip's lowest frequencies; b1, s1 hold at the first stage
    and b2, s2 at the second. `version` is 1 for a constant backbone factor, 2 for the structure-related one.
    `threshold` is the half-width of the filter's window in frequencies. `match` says which stages are meant:

    - "channels": backbones of 4 and 2 times the U-Net's base width (1280 and 640 in Stable Diffusion), as the
      original code has it: output blocks 0-6 and 7-9 of SD1 and SD2.
    - "resolution": the lowest and the next lowest resolution, as diffusers has it: blocks 0-2 and 3-5.

    `stages` gives (b, s) to any others, or to these in place of b1 to s2: its keys are the backbones' widths
    (320 is the third stage of Stable Diffusion) or, with "resolution", how far the maps are down-sampled.
    `channels` are those that b scales: the "first" half, the "second", "alternate" ones, "all", or a first
    fraction.

    `strength` moves every factor from one, at 0, to its value, at 1. FreeU acts from `start` to `stop`,
    fractions of the denoising run, and fades over a fraction `ramp` before the one and after the other.

    Raises ValueError for values that mean nothing.
    """

    b1: float
    b2: float
    s1: float
    s2: float
    version: int = 1
    threshold: int = 1
    match: Match = "channels"
    strength: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    ramp: float = 0.0
    channels: Channels | float = "first"
    stages: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("b1", "b2", "s1", "s2"):
            object.__setattr__(self, name, read_factor(name, getattr(self, name)))
        object.__setattr__(self, "stages", read_stages(self.stages))
        if type(self.version) is not int or self.version not in (1, 2):
            raise ValueError(
                f"FreeU's version is {self.version!r}: give 1 (constant) or 2 (structure-related)."
            )
        if type(self.threshold) is not int or self.threshold < 1:
            raise ValueError(f"FreeU's threshold is {self.threshold!r}: give a whole number from 1 up.")
        if self.match not in ("channels", "resolution"):
            raise ValueError(f"FreeU's match is {self.match!r}: give 'channels' or 'resolution'.")
        for name in ("strength", "start", "stop", "ramp"):
            value = getattr(self, name)
            if not is_fraction(value):
                raise ValueError(f"FreeU's {name} is {value!r}: give a number from 0 to 1.")
            object.__setattr__(self, name, pythons(value))
        if self.channels not in get_args(Channels) and not is_fraction(self.channels):
            known = ", ".join(get_args(Channels))
            raise ValueError(
                f"FreeU's channels are {self.channels!r}: give {known}, or a number from 0 to 1."
            )
        if self.start > self.stop:
            raise ValueError(f"FreeU's start, {self.start:g}, is after its stop, {self.stop:g}.")

    def off(self) -> "FreeUSettings":
        """The same settings with every factor one: the plain model, bit for bit."""
        return replace(self, b1=1.0, b2=1.0, s1=1.0, s2=1.0, stages={})

    def outside_published_range(self) -> list[str]:
        """One line for each factor outside the ranges that the authors publish for version 1."""
        if self.version != 1:
            return []
        ranges = {"b1": (1.0, 1.2), "b2": (1.2, 1.6), "s1": (0.0, 1.0), "s2": (0.0, 1.0)}
        values = {name: getattr(self, name) for name in ranges}
        return [
            f"{name} = {value:g} is outside the published range {ranges[name][0]:g} to {ranges[name][1]:g}"
            for name, value in values.items()
            if value != 1 and not ranges[name][0] <= value <= ranges[name][1]
        ]

    @property
    def four(self) -> tuple[float, float, float, float]:
        return self.b1, self.b2, self.s1, self.s2

    def of_the_other_version(self) -> list[str]:
        """A line where the factors are those published for the version that is not chosen."""
        other = 3 - self.version
        models = [
            model for (model, version), it in PRESETS.items() if version == other and it.four == self.four
        ]
        if not models:
            return []
        own = [" ".join(map(str, PRESETS[model, self.version].four)) + f" ({model})" for model in models]
        return [
            f"FreeU's factors are those published for version {other}; for version {self.version} they are "
            f"{' or '.join(own)}"
        ]

    def factors(self, stages: Sequence[DecoderStage], model_channels: int) -> list[tuple[float, float]]:
        """(b, s) for each decoder block, (1, 1) where FreeU leaves it alone.

        Raises ValueError, with the widths found, when no block is met, or none of one of the `stages`.
        """
        if self.match == "channels":
            keys = [stage.width for stage in stages]
            first, second = 4 * model_channels, 2 * model_channels
        else:
            keys = [stage.downsampling for stage in stages]
            first, second = [*sorted(set(keys), reverse=True), 0, 0][:2]
        by_key = {first: (self.b1, self.s1), second: (self.b2, self.s2), **self.stages}
        if not by_key.keys() & set(keys):
            raise ValueError(
                f"FreeU meets no decoder block: it looks for backbones of {first} and {second} channels, "
                f"this U-Net has {sorted(set(keys))}. Set match: resolution to go by resolution."
            )
        if absent := self.stages.keys() - set(keys):
            raise ValueError(
                f"FreeU's stages name {sorted(absent)}, this U-Net has {sorted(set(keys))} by {self.match}."
            )
        pairs = [by_key.get(key, (1.0, 1.0)) for key in keys]
        return [(self.weakened(b), self.weakened(s)) for b, s in pairs]

    def weakened(self, factor: float) -> float:
        """A factor at this `strength`."""
        return 1 - self.strength + self.strength * factor

    def acts_throughout(self) -> bool:
        """Whether `weight` is one at every timestep."""
        return self.start == 0 and self.stop == 1

    def never_acts(self) -> bool:
        """Whether `weight` is zero at every timestep."""
        return self.start == self.stop and self.ramp == 0

    def weight(self, t: Tensor, run: Tensor, begin: Tensor | None = None) -> Tensor:
        """How much of FreeU samples at timesteps t, (B,), get: (B,), from 0 to 1; see `free_u`.

        `run`, (T,), holds the timesteps of the denoising run, which may leave out those noisier than `begin`.
        A sample is as far into it as the share of steps that are noisier: at 0 in the first step, at 1 - 1/T
        in the last.
        """
        taken = torch.ones_like(run, dtype=torch.bool) if begin is None else run <= begin  # (T,)
        count = taken.sum().clamp(min=1)
        before = (taken & (run > t[:, None])).sum(1).minimum(count - 1)  # (B,)
        # A GPU divides by a number as it multiplies by its inverse, and 40 of 50 come to less than 0.8.
        fraction = before / count
        if self.ramp == 0:
            return ((self.start <= fraction) & (fraction < self.stop)).float()
        distance = (self.start - fraction).maximum(fraction - self.stop)  # below zero from start to stop
        return (1 - distance / self.ramp).clamp(0, 1)


def pythons(number: Real) -> float:
    """A number as Python's own: those of numpy, which loops over factors give, fit in no JSON."""
    return number if isinstance(number, int) else float(number)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def read_factor(name: str, value: Any) -> float:
    """A factor as it was given. Raises ValueError where it means nothing."""
    if not is_number(value) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"FreeU's {name} is {value!r}: give a finite number, zero or above.")
    return pythons(value)


def is_fraction(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def read_stages(stages: Any) -> dict[int, tuple[float, float]]:
    """`stages` as a config or a picture's JSON holds them, where keys are texts. Raises ValueError."""
    try:
        read = {int(key): (b, s) for key, (b, s) in dict(stages).items()}
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"FreeU's stages are {stages!r}: give a pair of b and s for each width, as {{320: [1.1, 0.9]}}."
        ) from None
    return {
        key: (read_factor(f"b of stage {key}", b), read_factor(f"s of stage {key}", s))
        for key, (b, s) in read.items()
    }


NEUTRAL: Final = FreeUSettings(1.0, 1.0, 1.0, 1.0)  # every factor one, all else as usual

# Published factors. V1 and V2 of SD1.4 and SD2.1, V2 of SD1.5 and SDXL: the authors. V1 of SD1.5: diffusers'
# documentation of its first release with FreeU. V1 of SDXL: a sweep by the community.
PRESETS: dict[tuple[str, int], FreeUSettings] = {
    ("sd14", 1): FreeUSettings(1.2, 1.4, 0.9, 0.2, version=1),
    ("sd14", 2): FreeUSettings(1.3, 1.4, 0.9, 0.2, version=2),
    ("sd15", 1): FreeUSettings(1.2, 1.4, 0.9, 0.2, version=1),
    ("sd15", 2): FreeUSettings(1.5, 1.6, 0.9, 0.2, version=2),
    ("sd21", 1): FreeUSettings(1.1, 1.2, 0.9, 0.2, version=1),
    ("sd21", 2): FreeUSettings(1.4, 1.6, 0.9, 0.2, version=2),
    ("sdxl", 1): FreeUSettings(1.1, 1.2, 0.6, 0.4, version=1),
    ("sdxl", 2): FreeUSettings(1.3, 1.4, 0.9, 0.2, version=2),
}


def find_preset(name: str, version: int = 1) -> FreeUSettings:
    """The published factors of a model. Raises ValueError, with the names there are, for others."""
    if (name, version) not in PRESETS:
        known = ", ".join(sorted({model for model, _ in PRESETS}))
        raise ValueError(
            f"There is no FreeU preset {name!r} in version {version!r}: the models are {known}, the versions "
            "1 and 2."
        )
    return PRESETS[name, version]
