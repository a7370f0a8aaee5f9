"""The settings of FreeU that are compared, by the names that the command line knows them by."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.config.freeu import FACTORS, FREEU, FREEU_NAMES
from ldm.errors import InputError, refusing
from ldm.freeu import NEUTRAL, FreeUSettings, find_preset
from ldm.txt2img.request import freeu_of
from ldm.txt2img.settings_grid import value_of

# Whose published factors V1 and V2 are, by the weights' file; SD1.4 is the paper's own model.
MODELS = {
    "sd-v1-4.ckpt": "sd14",
    "v1-5-pruned-emaonly.safetensors": "sd15",
    "v2-1_512-ema-pruned.safetensors": "sd21",
    "v2-1_768-ema-pruned.safetensors": "sd21",
}


def read_settings(names: Sequence[str] | None, config: DictConfig, ckpt: str) -> dict[str, FreeUSettings]:
    """The settings of these names beside "off", which is always there; by default V1, V2 and the config's.

    A name is off, V1, V2 (the factors published for the model of these weights, by their file's name or else
    by that in the config, or for SD1.4), config, or values such as `b1=1.2,s1=0.9,version=2`, of which the
    factors left out are one. Raises InputError for others.
    """
    own = freeu_of(config)
    files = [Path(str(path)).name for path in (ckpt, config.get("checkpoint"))]
    model = next((MODELS[name] for name in files if name in MODELS), "sd14")
    published = {f"V{version}": find_preset(model, version) for version in (1, 2)}
    if names is None:
        return published | ({} if own is None or own in published.values() else {"config": own})

    settings: dict[str, FreeUSettings] = {}
    for name in names:
        if name.lower() == "config":
            if own is None:
                raise InputError("--settings config: the config has no FreeU. Give its factors instead.")
            settings["config"] = own
        elif name.upper() in published:
            settings[name.upper()] = published[name.upper()]
        elif name.lower() != "off":
            settings[name] = parse(name)
    if not settings:
        raise InputError("--settings has nothing to compare with off: add V1, V2, config or b1=1.2,s1=0.9.")
    return settings


def parse(text: str) -> FreeUSettings:
    """The settings of a text such as `b1=1.2,s1=0.9,version=2`. Raises InputError."""
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"There is no setting {part!r}: give off, V1, V2, config or b1=1.2,s1=0.9.")
        if name not in FREEU_NAMES:
            raise InputError(f"FreeU has no setting {name!r}: it has {', '.join(FREEU_NAMES)}.")
        if name in values:
            raise InputError(f"{text} has {name} twice: write it once.")
        values[name] = value_of(value)
    with refusing():
        return replace(NEUTRAL, **values)


def in_words(freeu: FreeUSettings) -> str:
    """The settings in a few words: the version, the factors, and what else is not as usual."""
    others = [
        f"{name} {value}"
        for name in FREEU
        if name not in (*FACTORS, "version") and (value := getattr(freeu, name)) != getattr(NEUTRAL, name)
    ]
    factors = f"b {freeu.b1:g}, {freeu.b2:g}; s {freeu.s1:g}, {freeu.s2:g}"
    return "; ".join([f"version {freeu.version}, {factors}", *others])
