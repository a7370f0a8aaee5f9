"""The markup of the two pictures: before, while and after they are drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from ldm.config.freeu import FACTORS
from ldm.image_io import Picture, data_uri
from ldm.page.pair import Progress
from ldm.page.settings import Settings
from ldm.page.studio import SIDES, Pair
from ldm.page.words import place

PREVIEW = 512  # pixels, the longest side of a preview
COARSE = 256  # pixels; pictures up to this side are enlarged without smoothing, as what they are

SIDE_NAMES = {"plain": "Plain", "freeu": "FreeU"}
WIPE = (
    '<input class="wipe" type="range" min="0" max="100" step="0.5" value="50" '
    'aria-label="Wipe between plain and FreeU">'
)


@dataclass(frozen=True)
class View:
    """What the stage shows. `sources` are the pictures' addresses by side, `files` those to download."""

    state: str  # empty, waiting, running, done, stopped or error
    width: int
    height: int
    message: str
    share: float = 0.0  # of the work that is done
    sources: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    caption: str = ""
    notes: Sequence[str] = ()


def address(path: Path) -> str:
    """Where the browser finds a file of the output folder, from the page."""
    return f"gradio_api/file={quote(str(path))}"


def as_data(picture: Picture) -> str:
    """A preview inside the page itself, so that no file is written for it."""
    image = Image.fromarray(picture)
    image.thumbnail((PREVIEW, PREVIEW))
    return data_uri(np.asarray(image), "JPEG", quality=85)


def empty(settings: Settings) -> View:
    """The stage before the first picture."""
    return View("empty", settings.width, settings.height, "Write what to draw, then press Draw.")


def waiting(view: View, ahead: int) -> View:
    """The stage of a visitor who waits for others."""
    return View("waiting", view.width, view.height, place(ahead), sources=view.sources, caption=view.caption)


def running(settings: Settings, progress: Progress, sources: dict[str, str], which: str) -> View:
    """The stage while a pair is drawn; `which` says which one of several."""
    speed = ""
    if progress.steps and progress.seconds > 0:
        rate = progress.steps / progress.seconds
        left = math.ceil((progress.total - progress.steps) / rate)
        speed = f" · {per_second(rate)} · {duration(left)} left"
    message = f"{which}Step {progress.steps} of {progress.total}{speed}"
    share = progress.steps / progress.total
    return View(
        "running", settings.width, settings.height, message, share, sources, caption=caption(settings)
    )


def finished(pair: Pair, notes: Sequence[str] = ()) -> View:
    """The stage with a pair that was drawn to its end, or stopped."""
    settings = pair.settings
    took = f"{duration(pair.seconds)} · {per_second(pair.steps / max(pair.seconds, 1e-3))}"
    message = f"{pair.steps} steps in {took}"
    if not pair.whole:
        what = "FreeU picture" if "plain" in pair.ready else "pictures"
        message = f"Stopped after step {pair.steps} of {pair.total}; this is how far the {what} came."
    sources = {side: address(path) for side, path in pair.files.items()}
    state = "done" if pair.whole else "stopped"
    return View(
        *(state, settings.width, settings.height, message, 1.0, sources, pair.files),
        *(caption(settings), tuple(notes)),
    )


def caption(settings: Settings) -> str:
    """What a pair is of, and what makes it differ from others."""
    return f"{settings.prompt} (seed {settings.seed}, FreeU {factors(settings)})"


def factors(settings: Settings) -> str:
    """b1, b2, s1 and s2 in few letters."""
    return " ".join(f"{getattr(settings, name):g}" for name in FACTORS)


def failed(view: View, fault: str) -> View:
    """The stage with a sentence on what went wrong, beside what was there before."""
    return View(
        "error", view.width, view.height, fault, sources=view.sources, files=view.files, caption=view.caption
    )


def per_second(rate: float) -> str:
    return f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s a step"


def duration(seconds: float) -> str:
    """A time in the unit that people would use."""
    if seconds < 10:
        return f"{seconds:.1f} s" if isinstance(seconds, float) else f"{seconds} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def markup(view: View) -> str:
    """The stage as HTML. It keeps its shape in every state, so that nothing moves when pictures come."""
    small = " small" if max(view.width, view.height) <= COARSE else ""
    busy = "true" if view.state in ("waiting", "running") else "false"
    role = "alert" if view.state == "error" else "status"
    notes = "".join(f"<li>{escape(note)}</li>" for note in view.notes)
    return f"""
<section class="stage{small}" data-state="{view.state}" aria-busy="{busy}"
    style="--ratio: {view.width} / {view.height}; --shape: {view.width / view.height:.4f}"
    aria-label="The two pictures">
  <fieldset class="views"><legend>Show the pictures</legend>
    <label><input type="radio" name="view" value="beside" checked><span>side by side</span></label>
    <label><input type="radio" name="view" value="wipe"><span>one over the other</span></label>
  </fieldset>
  <div class="pair">
    {"".join(figure(view, side) for side in SIDES)}
  </div>
  <div class="bar" aria-hidden="true"><i style="width: {100 * view.share:.1f}%"></i></div>
  <p class="status" role="{role}">{escape(view.message)}</p>
  <p class="caption">{escape(view.caption)}</p>
  <ul class="notes">{notes}</ul>
</section>"""


def figure(view: View, side: str) -> str:
    """One of the two pictures, or its empty place, with its name and its download."""
    source, name = view.sources.get(side), SIDE_NAMES[side]
    picture = '<span class="blank"></span>'
    if source:
        picture = f'<img src="{escape(source)}" alt="{name}: {escape(view.caption)}" draggable="false">'
    download = ""
    if path := view.files.get(side):
        what = f"Download the {name} picture, with its settings inside"
        download = (
            f'<a href="{escape(address(path))}" download="{escape(path.name)}" title="{what}" '
            f'aria-label="{what}">PNG ↓</a>'
        )
    wipe = WIPE if side == "freeu" else ""
    return (
        f'<figure class="{side}"><div class="frame">{picture}{wipe}</div>'
        f"<figcaption><b>{name}</b>{download}</figcaption></figure>"
    )
