"""The presets to choose from, each with where it comes from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm.config.freeu import FACTORS
from ldm.freeu import PRESETS, FreeUSettings

Choices = Mapping[str, tuple[FreeUSettings, str]]  # with their sources

MODELS = {
    "sd14": "Stable Diffusion 1.4",
    "sd15": "Stable Diffusion 1.5",
    "sd21": "Stable Diffusion 2.1",
    "sdxl": "Stable Diffusion XL",
}
AUTHORS = "published by FreeU's authors"
SET = (*FACTORS, "version")  # what a preset sets of FreeU
OWN = "Your own"
OTHERS = {
    ("sd15", 1): "from diffusers' documentation of its first release with FreeU",
    ("sdxl", 1): "from a sweep by the community",
}


def choices(config: str, own: FreeUSettings) -> Choices:
    """Each preset by the name that people see, with its source; the config's own factors come first."""
    source = f"{config} has none, so they are one" if own == own.off() else f"the factors in {config}"
    found = {f"This model ({Path(config).stem})": (own, source)}
    for (model, version), preset in PRESETS.items():
        source = OTHERS.get((model, version), AUTHORS)
        found[f"{MODELS[model]}, version {version}"] = (preset, source)
    return found


def factors(freeu: FreeUSettings) -> tuple[float, ...]:
    """The values of `SET`."""
    return tuple(getattr(freeu, name) for name in SET)


def named(chosen: str, values: Sequence[float], found: Choices) -> tuple[str, str]:
    """The name and the source of these factors: the chosen preset's if they are its, or any other's."""
    for name in (chosen, *found):
        if name in found and factors(found[name][0]) == tuple(values):
            return name, found[name][1]
    return OWN, "set by hand, or as a picture or a link had them"
