"""Settings as a link, and settings out of the PNGs of this project and of Stable Diffusion webuis."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image, UnidentifiedImageError

from ldm.config.freeu import FREEU_NAMES
from ldm.errors import InputError
from ldm.page.settings import FIELDS, Settings, freeu_by_name
from ldm.page.webui import read_parameters

LARGEST_PICTURE = 64 << 20  # pixels, of a picture that is opened for its settings

# The links' names for settings, where they are other than txt2img's.
LINK_NAMES = {"height": "H", "width": "W"}


def to_query(settings: Settings) -> str:
    """The query part of a link that carries all settings."""
    return urlencode({LINK_NAMES.get(name, name): value for name, value in asdict(settings).items()})


def from_query(query: Mapping[str, str], defaults: Settings) -> tuple[Settings, list[str]]:
    """The settings of a link over the defaults, and a line for each part that means nothing."""
    given = {name: query[key] for name in FIELDS if (key := LINK_NAMES.get(name, name)) in query}
    return over(defaults, given)


def from_picture(
    path: Path, defaults: Settings, config: str, now: Settings | None = None
) -> tuple[Settings, list[str]]:
    """The settings that a PNG carries over the defaults, and lines on what of them is not taken.

    Where it has no FreeU, or no sampler that is here, these stay as they are `now`: as in the defaults if
    that is None. `config` is the page's; a picture of another model is told of. Raises InputError where the
    file is no picture or carries no settings.
    """
    texts = read_texts(path)
    if record := _json(texts.get("freeu")):
        given, notes = _read_record(record, config)
    elif parameters := texts.get("parameters"):
        given, notes = read_parameters(parameters)
    else:
        raise InputError(
            "This picture carries no settings: only PNGs of this project and of Stable Diffusion webuis do, "
            "and many sites and messengers take them out."
        )
    now = now or defaults
    stays = {} if given.keys() & {*FREEU_NAMES} else freeu_by_name(now)
    settings, faults = over(replace(defaults, **stays, sampler=now.sampler, n_samples=1), given)
    return settings, notes + faults


def read_texts(path: Path) -> dict[str, str]:
    """The texts inside a picture. Raises InputError where it is none, or too large to be looked at."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > LARGEST_PICTURE:
                raise InputError(f"The picture is too large: {image.width} by {image.height} pixels.")
            image.load()  # texts may stand behind the pixels
            return {
                key: text
                for key, text in image.info.items()
                if isinstance(key, str) and isinstance(text, str)
            }
    except UnidentifiedImageError:
        raise InputError("This file is not a PNG picture.") from None
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError, MemoryError) as fault:
        raise InputError(f"This picture cannot be read: {str(fault) or type(fault).__name__}.") from None


def _json(text: str | None) -> dict[str, Any]:
    try:
        record = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _read_record(record: dict[str, Any], config: str) -> tuple[dict[str, Any], list[str]]:
    """The settings of one of this project's records by name, and lines on what else there is."""
    freeu, notes = record.get("freeu"), list[str]()
    given = {name: record[name] for name in FIELDS if name in record}
    if isinstance(freeu, dict):
        given |= {name: freeu[name] for name in FREEU_NAMES if name in freeu}
    if isinstance(freeu, dict) and freeu.get("stages"):
        notes.append("The picture gave further stages factors of their own, for which there is no control.")
    if freeu is None:
        notes.append("The picture was made without FreeU, so FreeU's controls stay as they were.")
    theirs = str(record.get("config", ""))
    if Path(theirs).stem != Path(config).stem:
        notes.append(
            f"It was made with {theirs:.60}; this page draws with {config}, so it will look different."
        )
    return given, notes


def over(defaults: Settings, given: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """The given values over the defaults; those that mean nothing are left out and told of."""
    settings, notes = defaults, []
    for name, value in given.items():
        try:
            settings = Settings.read(asdict(settings) | {name: value})
        except InputError as fault:
            notes.append(f"{fault} It is left out.")
    try:
        _ = settings.freeu
    except InputError as fault:
        settings = replace(settings, **freeu_by_name(defaults))
        notes.append(f"{fault} FreeU's settings are left out.")
    return settings, notes
