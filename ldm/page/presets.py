"""The presets to choose from, each with where it comes from."""

from pathlib import Path

from ldm.freeu import PRESETS, FreeUSettings

MODELS = {
    "sd14": "Stable Diffusion 1.4",
    "sd15": "Stable Diffusion 1.5",
    "sd21": "Stable Diffusion 2.1",
    "sdxl": "Stable Diffusion XL",
}
AUTHORS = "published by FreeU's authors"
OTHERS = {
    ("sd15", 1): "from diffusers' documentation of its first release with FreeU",
    ("sdxl", 1): "from a sweep by the community",
}


def choices(config: str, own: FreeUSettings) -> dict[str, tuple[FreeUSettings, str]]:
    """Each preset by the name that people see, with its source; the config's own factors come first."""
    source = f"{config} has none, so they are one" if own == own.off() else f"the factors in {config}"
    found = {f"This model ({Path(config).stem})": (own, source)}
    for (model, version), preset in PRESETS.items():
        source = OTHERS.get((model, version), AUTHORS)
        found[f"{MODELS[model]}, version {version}"] = (preset, source)
    return found
