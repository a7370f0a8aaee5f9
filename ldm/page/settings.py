"""What a visitor may set, and the limits that the page's owner puts on it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ldm.config.freeu import FREEU_NAMES
from ldm.errors import InputError, refusing
from ldm.freeu import FreeUSettings
from ldm.generate import SAMPLERS, Sampling

LARGEST_SEED = 2**63 - 1
LONGEST_PROMPT = 2000  # characters; text encoders read far fewer


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for at once."""

    side: int = 1024  # pixels
    steps: int = 150
    samples: int = 4  # pairs drawn by one press
    cells: int = 25  # of a grid
    queue: int = 100  # visitors waiting
    upload: int = 16  # MiB of a dropped picture


def freeu_by_name(it: "Settings | FreeUSettings") -> dict[str, Any]:
    """FreeU's part of a visitor's settings, or as much of FreeU's own as there are controls for."""
    return {name: getattr(it, name) for name in FREEU_NAMES}


@dataclass(frozen=True)
class Settings:
    """A pair of pictures, plain and with FreeU, by the names that txt2img and its PNGs use."""

    prompt: str
    negative_prompt: str
    seed: int
    n_samples: int
    steps: int
    scale: float
    sampler: str
    eta: float
    height: int
    width: int
    b1: float
    b2: float
    s1: float
    s2: float
    version: int
    strength: float
    start: float
    stop: float
    ramp: float
    threshold: int
    match: str
    channels: str | float

    @classmethod
    def read(cls, values: dict[str, Any]) -> "Settings":
        """Settings out of a form's, a link's or a client's values. Raises InputError that names a bad one."""
        return cls(**{name: _READERS[name](name, values[name]) for name in FIELDS})

    @classmethod
    def of(cls, values: Sequence[Any]) -> "Settings":
        """Settings out of the controls' values, in the order of the fields. Raises InputError."""
        return cls.read(dict(zip(FIELDS, values, strict=True)))

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.height, self.width, self.steps, self.scale, self.sampler, self.eta)

    @property
    def freeu(self) -> FreeUSettings:
        """FreeU's share of the settings. Raises InputError where they mean nothing."""
        with refusing():
            return FreeUSettings(**freeu_by_name(self))

    def within(self, limits: Limits) -> None:
        """Raises InputError where the settings ask for more than the page gives."""
        for name in ("prompt", "negative_prompt"):
            if len(getattr(self, name)) > LONGEST_PROMPT:
                raise InputError(
                    f"The {TITLES[name]} is longer than {LONGEST_PROMPT} characters: shorten it."
                )
        ranges = {
            "seed": (0, LARGEST_SEED - self.n_samples),
            "steps": (1, limits.steps),
            "width": (1, limits.side),
            "height": (1, limits.side),
            "n_samples": (1, limits.samples),
        }
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise InputError(
                    f"The {TITLES[name]} is {getattr(self, name)}: this page takes {least} to {most}."
                )

    def clipped(self, limits: Limits, multiple: int) -> tuple["Settings", list[str]]:
        """These settings as the page's controls can show them, and a line for each that had to change."""
        allowed: dict[str, Any] = {
            "steps": min(max(1, self.steps), limits.steps),
            "n_samples": min(max(1, self.n_samples), limits.samples),
            **{
                name: min(max(1, round(getattr(self, name) / multiple)), limits.side // multiple) * multiple
                for name in ("width", "height")
            },
        }
        changed = {name: value for name, value in allowed.items() if value != getattr(self, name)}
        notes = [
            f"The {TITLES[name]} was {getattr(self, name)}; here it is {it}." for name, it in changed.items()
        ]
        return replace(self, **changed), notes

    def each(self) -> list["Settings"]:
        """One pair each, with the seeds counting on as txt2img's do."""
        return [replace(self, seed=self.seed + k, n_samples=1) for k in range(self.n_samples)]

    def values(self) -> list[Any]:
        """The values in the order of the fields, as the page's controls take them."""
        return [str(self.seed) if name == "seed" else value for name, value in asdict(self).items()]


FIELDS = tuple(field.name for field in fields(Settings))
# What sentences call them.
TITLES = dict(zip(FIELDS, FIELDS, strict=True)) | {
    "negative_prompt": "negative prompt",
    "n_samples": "number of pairs",
    "scale": "guidance",
}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"The {TITLES[name]} is {value!r:.60}: give a text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"The {TITLES[name]} is not valid Unicode.") from None
    return value.strip()


def _whole(name: str, value: Any) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
        if isinstance(number, bool) or int(number) != number:
            raise ValueError
        return int(number)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"The {TITLES[name]} is {value!r:.60}: give a whole number.") from None


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        if not math.isfinite(number := float(value)):
            raise ValueError
        return number
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"The {TITLES[name]} is {value!r:.60}: give a finite number.") from None


def _seed(name: str, value: Any) -> int:
    seed = _whole(name, value)
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"The {TITLES[name]} is {value!r:.60}: give 0 to {LARGEST_SEED}.")
    return seed


def _eta(name: str, value: Any) -> float:
    eta = _number(name, value)
    if not 0 <= eta <= 1:
        raise InputError(f"The {TITLES[name]} is {value!r:.60}: give 0 to 1.")
    return eta


def _sampler(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in SAMPLERS:
        raise InputError(f"There is no sampler {value!r:.60}: take one of {', '.join(SAMPLERS)}.")
    return value


def _channels(name: str, value: Any) -> str | float:
    """A number where it is one; FreeU's settings know the names."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


_READERS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("prompt", "negative_prompt", "match"), _text),
    **dict.fromkeys(("n_samples", "steps", "height", "width", "version", "threshold"), _whole),
    **dict.fromkeys(("scale", "b1", "b2", "s1", "s2", "strength", "start", "stop", "ramp"), _number),
    "seed": _seed,
    "eta": _eta,
    "sampler": _sampler,
    "channels": _channels,
}
