"""Settings out of the text that Stable Diffusion webuis write into their PNGs."""

import json
import re
from typing import Any

from ldm.config.freeu import FACTORS, FREEU_NAMES
from ldm.txt2img.recipe import WEBUI_SAMPLERS

# Their samplers that are the same methods under other names, in lower case.
METHODS = {theirs.lower(): ours for ours, theirs in WEBUI_SAMPLERS.items()}
# How they space the steps, which some write behind the sampler's name; evenly, as here, or otherwise.
EVEN = "automatic|uniform|sgm uniform|ddim uniform|simple|normal|ddim"
UNEVEN = "karras|exponential|polyexponential|kl optimal|align your steps|beta|turbo"
SCHEDULE = re.compile(f" ({EVEN}|{UNEVEN})$", re.IGNORECASE)

KNOWN = {"Steps": "steps", "CFG scale": "scale", "Seed": "seed", "Eta DDIM": "eta"}
# Forge's and others' names for the share of the steps over which FreeU acts.
SHARES = {"freeu_start": "start", "freeu_end": "stop"}

# A key, and a value that is quoted where it holds a comma. A key is looked for where its first letter may be
# and not at each one, so that a long text takes no longer than it is.
ENTRY = re.compile(r'(?<![\w /.+-])([\w /.+-]+):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')


def read_parameters(text: str) -> tuple[dict[str, Any], list[str]]:
    """The settings by name, and lines on what else there is: prompt, negative prompt, `key: value` pairs."""
    lines = text.strip().split("\n")
    last = lines.pop() if len(lines) > 1 and re.match(r"\s*Steps: ", lines[-1]) else ""
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    entries = {key.strip(): _unquoted(value) for key, value in ENTRY.findall(last)}
    given: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    given |= {name: entries[key] for key, name in KNOWN.items() if key in entries}
    if size := re.fullmatch(r"(\d+)x(\d+)", entries.get("Size", "")):
        given |= {"width": size[1], "height": size[2]}
    sampler, notes = _sampler(entries)
    freeu, untaken = _freeu(entries)
    if model := entries.get("Model"):
        notes.append(f"It was made with the model {model:.60}.")
    return given | sampler | freeu, notes + untaken


def _unquoted(value: str) -> str:
    value = value.strip()
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value.strip('"')
    return value


def _sampler(entries: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The sampler, and lines on one that is not here or that spaces the steps in another way."""
    method = entries.get("Sampler", "")
    behind = SCHEDULE.search(method)
    schedule = entries.get("Schedule type") or (behind[1] if behind else "")
    ours = METHODS.get(SCHEDULE.sub("", method).lower())
    if not ours:
        return {}, [f"There is no sampler {method:.40} here; the one chosen stays."] if method else []
    if schedule and not re.fullmatch(EVEN, schedule, re.IGNORECASE):
        return {"sampler": ours}, [f"Its schedule was {schedule:.40}; here the steps are spaced evenly."]
    return {"sampler": ours}, []


def _freeu(entries: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """FreeU's settings in the three ways that are written, and a line for each entry that is not taken."""
    theirs = {key: value for key, value in entries.items() if key.lower().startswith("freeu")}
    if theirs.pop("freeu_enabled", "True") != "True":
        return {}, ["The picture was made without FreeU, so FreeU's controls stay as they were."]
    given: dict[str, Any] = {}
    notes: list[str] = []
    # As here.
    pairs = dict(part.partition("=")[::2] for part in theirs.get("FreeU", "").split())
    if pairs.keys() & {*FREEU_NAMES}:
        given |= {name: value for name, value in pairs.items() if name in FREEU_NAMES}
        del theirs["FreeU"]
    # As Forge, whose FreeU follows the picture's structure, as version 2 does.
    if factors := {name: theirs.pop(f"freeu_{name}") for name in FACTORS if f"freeu_{name}" in theirs}:
        given |= factors | {"version": 2}
        given |= {name: theirs.pop(key) for key, name in SHARES.items() if key in theirs}
    # As the extension sd-webui-freeu, whose first versions did not say that they were version 1.
    if stages := _stages(theirs.get("FreeU Stages", "")):
        del theirs["FreeU Stages"]
        given |= _factors(stages, notes) | {"version": theirs.pop("FreeU Version", 1)}
        if schedule := theirs.pop("FreeU Schedule", ""):
            given |= _schedule(schedule, entries.get("Steps", ""), notes)
    return given, notes + [f"What it says of {key:.40} is not taken: {it:.60}." for key, it in theirs.items()]


def _stages(text: str) -> list[dict[str, Any]]:
    """The extension's list of stages; what is 1 there is left out, and an empty list is a single stage."""
    try:
        stages = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return []
    return stages or [{}]


def _factors(stages: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    """b1 to s2 out of the first two stages; what else the stages say becomes lines of the notes."""
    for number, stage in enumerate(stages, start=1):
        taken = {"backbone_factor", "skip_factor"} if number <= 2 else set()
        if further := stage.keys() - taken:
            notes.append(f"Of FreeU's stage {number} this is not taken: {', '.join(sorted(further)):.100}.")
    first, second = [*stages, {}][:2]
    return {
        "b1": first.get("backbone_factor", 1),
        "s1": first.get("skip_factor", 1),
        "b2": second.get("backbone_factor", 1),
        "s2": second.get("skip_factor", 1),
    }


def _schedule(text: str, steps: str, notes: list[str]) -> dict[str, Any]:
    """Start and stop out of `start, stop, smoothness`; whole numbers are steps, others shares of them."""
    start, stop, smoothness = (part.strip() for part in [*text.split(","), "", ""][:3])
    if smoothness.strip("0."):
        notes.append(f"FreeU's smoothness of {smoothness:.20} is not taken: it fades in another way here.")
    return {"start": _share(start, steps), "stop": _share(stop, steps), "ramp": 0}


def _share(number: str, steps: str) -> str | float:
    """A number of steps as a share of all of them; any other number as it is."""
    if all(re.fullmatch("[0-9]{1,4}", it) for it in (number, steps)) and int(steps):
        return min(1.0, int(number) / int(steps))
    return number
