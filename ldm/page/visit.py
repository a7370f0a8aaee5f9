"""What happens on a page: drawing, stopping, and settings that come and go."""

import contextlib
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.errors import InputError
from ldm.page import controls, exchange, layout, presets, stage
from ldm.page.engine import Engine, Waiting
from ldm.page.pair import Progress
from ldm.page.settings import FIELDS, Settings
from ldm.page.studio import Pair, Studio
from ldm.page.tabs import AT_ONCE, CAN_BE_STOPPED, WORK
from ldm.page.words import lines, sentence

REMEMBERED = 60  # pairs of a visit

# The query becomes a whole address, which is shown, and copied where the browser lets us.
COPY_LINK = """(query) => {
  if (!query) return query;
  const link = `${location.origin}${location.pathname}?${query}`;
  navigator.clipboard?.writeText(link).catch(() => {});
  history.replaceState(null, "", link);
  return link;
}"""


class Visit:
    """The events of a page, for all its visitors; what is one visitor's comes and goes as gradio's state."""

    def __init__(self, studio: Studio, engine: Engine, parts: layout.Parts):
        self.studio, self.engine, self.parts = studio, engine, parts
        self.presets = presets.choices(studio.arguments.config, studio.config_freeu)
        self.newest: dict[str, list[Any]] = {}  # the controls' values at each visitor's newest press of Draw

    async def draw(
        self, pairs: list[Pair], shown: int, request: gr.Request, *values: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        """Draws what the controls say; a newer press of the same visitor takes an older one's place."""
        parts, visitor = self.parts, str(request.session_hash)
        mine = self.newest[visitor] = [*values]
        self.engine.leave(visitor, "draw")
        before = stage.finished(pairs[shown]) if pairs else stage.empty(self.studio.defaults())
        view = before
        try:
            settings = Settings.of(values)
            self.studio.check(settings)
            notes = self.studio.notes(settings)
            view = replace(view, state="running", message="Beginning …", width=settings.width,
                           height=settings.height, files={}, notes=())  # fmt: skip
            stoppable = {parts.stop: CAN_BE_STOPPED}
            yield {parts.stage: stage.markup(view)} | stoppable
            sources: dict[str, str] = {}
            made = 0
            async for news in self.engine.follow((visitor, "draw"), partial(self.studio.pairs, settings)):
                if self.newest.get(visitor) is not mine:
                    return
                if isinstance(news, Waiting):
                    view = stage.waiting(view, news.ahead) if news.ahead else view
                    yield {parts.stage: stage.markup(view)} | stoppable
                    continue
                kept = {}
                for item in news:
                    if isinstance(item, Pair):
                        pairs = [item, *pairs][:REMEMBERED]
                        made += 1
                        before = view = stage.finished(item, notes)
                        kept = {parts.pairs: pairs, parts.history: thumbnails(pairs), parts.shown: 0}
                        sources = {}
                    elif isinstance(item, Progress):
                        sources |= {side: stage.as_data(it) for side, it in item.previews.items()}
                        which = (
                            f"Pair {made + 1} of {settings.n_samples} · " if settings.n_samples > 1 else ""
                        )
                        view = stage.running(settings, item, sources, which)
                yield {parts.stage: stage.markup(view)} | stoppable | kept
            if view.state in ("waiting", "running"):
                view = replace(before, state="stopped", message="Stopped before anything was drawn.")
        except Exception as fault:
            view = stage.failed(before, sentence(fault))
        yield {parts.stage: stage.markup(view), parts.stop: gr.update(interactive=False)}

    async def draw_live(
        self, live: bool, pairs: list[Pair], shown: int, request: gr.Request, *values: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        """Draws again because a control has moved, where that is wished and something was drawn before.

        A number box is let go whenever it is left, though nothing has moved.
        """
        if live and pairs and self.newest.get(str(request.session_hash)) != [*values]:
            async for news in self.draw(pairs, shown, request, *values):
                yield news
        else:
            yield {self.parts.shown: gr.skip()}

    def stop(self, request: gr.Request) -> None:
        """Ends this visitor's work early."""
        self.engine.stop((str(request.session_hash), "draw"))

    def leave(self, request: gr.Request) -> None:
        """Frees the place of a visitor who has closed the page."""
        visitor = str(request.session_hash)
        self.newest.pop(visitor, None)
        self.engine.leave(visitor)

    def choose_preset(self, name: str) -> dict[Any, Any]:
        """Puts a preset's factors into the controls."""
        if name == presets.OWN:
            return {self.parts.shown: gr.skip()}
        values = presets.factors(self.presets[name][0])
        return {self.parts.controls[name]: value for name, value in zip(presets.SET, values, strict=True)}

    def name_preset(self, chosen: str, *values: Any) -> tuple[str, str]:
        """Says which preset the factors are now, and where it comes from."""
        name, source = presets.named(chosen, values, self.presets)
        return name, controls.source_line(source)

    def new_seed(self) -> str:
        return str(secrets.randbelow(2**32))

    def last_seed(self, pairs: list[Pair], seed: str) -> str:
        return str(pairs[0].settings.seed) if pairs else seed

    def words(self, prompt: str) -> str:
        return layout.vocabulary(self.studio, prompt)

    def drop(self, path: str | None, *values: Any) -> dict[Any, Any]:
        """Sets the controls as a dropped picture has it."""
        parts, defaults = self.parts, self.studio.defaults()
        if path is None:
            return {parts.told: ""}
        try:
            now, _ = exchange.over(defaults, dict(zip(FIELDS, values, strict=True)))
            settings, notes = exchange.from_picture(Path(path), defaults, self.studio.arguments.config, now)
        except InputError as fault:
            return {parts.told: lines([str(fault)], "fault"), parts.dropped: None}
        finally:
            forget_upload(Path(path))
        return self.set_controls(settings, ["The controls now have this picture's settings.", *notes]) | {
            parts.dropped: None
        }

    def open_link(self, request: gr.Request) -> dict[Any, Any]:
        """Sets the controls as the page's link has it."""
        query = dict(request.query_params)
        if not query.keys() & {exchange.LINK_NAMES.get(name, name) for name in FIELDS}:
            return {self.parts.told: ""}
        settings, notes = exchange.from_query(query, self.studio.defaults())
        return self.set_controls(settings, ["The controls are set as in the link.", *notes])

    def set_controls(self, settings: Settings, notes: list[str]) -> dict[Any, Any]:
        """The controls' new values, and what is said about them."""
        settings, clipped = settings.clipped(self.studio.limits, self.studio.multiple)
        values = {
            part: with_room(part, value)
            for part, value in zip(self.parts.inputs(), settings.values(), strict=True)
        }
        words = layout.vocabulary(self.studio, settings.prompt)
        return values | {
            self.parts.told: lines([*notes, *clipped], "told"),
            self.parts.words: words,
        }

    def take(self, pairs: list[Pair], shown: int) -> dict[Any, Any]:
        """Sets the controls as they were for the pair on the stage."""
        if shown >= len(pairs):
            return {self.parts.told: lines(["There is no pair yet."], "told")}
        return self.set_controls(pairs[shown].settings, ["The controls are set as they were for this pair."])

    def show_again(self, pairs: list[Pair], chosen: gr.SelectData) -> tuple[str, int]:
        """Puts a pair of this visit on the stage again."""
        index = min(int(chosen.index) // 2, len(pairs) - 1)
        return stage.markup(stage.finished(pairs[index])), index

    def link(self, *values: Any) -> dict[Any, Any]:
        """Shows the query part of a link with all settings, or what is wrong with them."""
        parts = self.parts
        try:
            query = exchange.to_query(Settings.of(values))
        except InputError as fault:
            return {parts.link: gr.update(value="", visible=False), parts.told: lines([str(fault)], "fault")}
        return {parts.link: gr.update(value=query, visible=True), parts.told: ""}

    def wire(self, page: gr.Blocks) -> None:
        """Ties the events to the page's parts."""
        parts, control = self.parts, self.parts.controls
        drawing: Any = WORK | {
            "inputs": [parts.pairs, parts.shown, *parts.inputs()],
            "outputs": [parts.stage, parts.stop, parts.pairs, parts.shown, parts.history],
            "trigger_mode": "multiple",
        }
        parts.draw.click(self.draw, **drawing)
        factors = [control[name] for name in ("b1", "b2", "s1", "s2", "strength", "start", "stop", "ramp")]
        changes = [*(slider.release for slider in factors), control["version"].input]
        gr.on(changes, self.draw_live, **(drawing | {"inputs": [parts.live, *drawing["inputs"]]}))
        parts.stop.click(self.stop, **AT_ONCE)
        page.unload(self.leave)

        of_preset = [control[name] for name in presets.SET]
        chosen = parts.preset.input(self.choose_preset, parts.preset, [*of_preset, parts.shown], **AT_ONCE)
        names = {"inputs": [parts.preset, *of_preset], "outputs": [parts.preset, parts.preset_source]}
        gr.on([it.change for it in of_preset], self.name_preset, **names, **AT_ONCE)
        chosen.then(self.draw_live, **(drawing | {"inputs": [parts.live, *drawing["inputs"]]}))
        parts.dice.click(self.new_seed, None, control["seed"], **AT_ONCE)
        parts.reuse.click(self.last_seed, [parts.pairs, control["seed"]], control["seed"], **AT_ONCE)
        control["prompt"].change(self.words, control["prompt"], parts.words, **AT_ONCE)

        everything = [*parts.inputs(), parts.told, parts.words]
        dropping = {"inputs": [parts.dropped, *parts.inputs()], "outputs": [*everything, parts.dropped]}
        parts.dropped.upload(self.drop, **dropping, **AT_ONCE)
        page.load(self.open_link, None, everything, **AT_ONCE)
        parts.take.click(self.take, [parts.pairs, parts.shown], everything, **AT_ONCE)
        parts.history.select(self.show_again, parts.pairs, [parts.stage, parts.shown], **AT_ONCE)
        asked = parts.link_button.click(self.link, parts.inputs(), [parts.link, parts.told], **AT_ONCE)
        asked.then(None, parts.link, parts.link, js=COPY_LINK, **AT_ONCE)
        parts.inside.wire(parts.pairs, parts.shown)
        parts.grid.wire(parts.inputs())
        parts.explain.wire(control, parts.inputs())


def with_room(part: Any, value: Any) -> Any:
    """A control's new value; a slider that is too short for it is made longer."""
    if isinstance(part, gr.Slider) and not part.minimum <= value <= part.maximum:
        return gr.update(value=value, minimum=min(part.minimum, value), maximum=max(part.maximum, value))
    return value


def forget_upload(path: Path) -> None:
    """Removes an upload, which is read once; gradio keeps each in a folder named by a hash."""
    if re.fullmatch("[0-9a-f]{64}", path.parent.name):
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def thumbnails(pairs: list[Pair]) -> list[tuple[str, str]]:
    """A visit's pictures for the gallery, the newest pair first: under a pair are its seed and factors."""
    found = []
    for pair in pairs:
        under = {"plain": pair.settings.seed, "freeu": stage.factors(pair.settings)}
        for side, path in pair.files.items():
            found.append((str(path), f"{stage.SIDE_NAMES[side]} · {under[side]}"))
    return found
