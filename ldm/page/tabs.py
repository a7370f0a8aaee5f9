"""The tabs below the pictures: a look inside, a grid, and what FreeU does under the settings at hand."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr

from ldm.errors import InputError
from ldm.page import explain, grid, inside
from ldm.page.engine import Engine, Waiting
from ldm.page.look import MOMENTS, Inside, look
from ldm.page.pair import Progress
from ldm.page.settings import Settings
from ldm.page.studio import Pair, Studio
from ldm.page.words import lines, place, sentence

QUIET: Any = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE: Any = QUIET | {"queue": False}
WORK: Any = QUIET | {"concurrency_limit": None}
# Of a Stop button, told with all news: where several pieces of work are under way gradio may lose it.
CAN_BE_STOPPED: Any = gr.update(interactive=True)


class InsideTab:
    """Spectra and maps of the pair on the stage."""

    def __init__(self, studio: Studio, engine: Engine):
        self.studio, self.engine = studio, engine
        with gr.Row():
            self.go = gr.Button("Look inside the pair above", variant="primary", elem_id="look")
            self.halt = gr.Button("Stop", interactive=False, min_width=80)
        with gr.Row():
            self.moment = gr.Slider(
                1, MOMENTS, MOMENTS // 2, step=1, label="Moment", info="1 is noise", elem_id="moment"
            )
            last = len(studio.unet.decoder_stages) - 1
            self.block = gr.Slider(
                0,
                last,
                last // 2,
                step=1,
                label="Decoder block",
                info="0 is the lowest resolution",
                elem_id="block",
            )
        self.view = gr.HTML(inside.NOTHING, apply_default_css=False, elem_id="inside")
        self.seen = gr.State(None)

    def wire(self, pairs: gr.State, shown: gr.State) -> None:
        chosen = [self.moment, self.block]
        outputs = [self.view, self.seen, self.halt, self.moment]
        self.go.click(self.look, [pairs, shown, *chosen], outputs, **WORK)
        self.halt.click(self.stop, **AT_ONCE)
        gr.on([part.change for part in chosen], self.show, [self.seen, *chosen], self.view, **AT_ONCE)

    async def look(
        self, pairs: list[Pair], shown: int, moment: float | None, block: float | None, request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        """Makes the two runs of a pair once more and listens to them."""
        if shown >= len(pairs):
            yield {self.view: inside.NOTHING}
            return
        owner = (str(request.session_hash), "look")
        self.engine.leave(*owner)
        stoppable = {self.halt: CAN_BE_STOPPED}
        yield stoppable
        try:
            work = partial(look, self.studio, pairs[shown].settings)
            async for news in self.engine.follow(owner, work):
                if isinstance(news, Waiting):
                    yield {self.view: lines([place(news.ahead)], "told")} | stoppable
                    continue
                newest = news[-1] if news else None
                if isinstance(newest, Inside):
                    moments = len(newest.steps)
                    at = inside.nearest(moment, moments + 1) or 1
                    yield {
                        self.seen: newest,
                        self.moment: gr.update(maximum=max(moments, 2), value=at),
                        self.view: inside.markup(newest, at - 1, block),
                    }
                elif isinstance(newest, Progress):
                    progress = f"Listening: step {newest.steps} of {newest.total}"
                    yield {self.view: lines([progress], "told")} | stoppable
        except Exception as fault:
            yield {self.view: lines([sentence(fault)], "fault")}
        yield {self.halt: gr.update(interactive=False)}

    def stop(self, request: gr.Request) -> None:
        self.engine.stop((str(request.session_hash), "look"))

    def show(self, seen: Inside | None, moment: float | None, block: float | None) -> str:
        """Another moment, or another block."""
        return inside.NOTHING if seen is None else inside.markup(seen, (moment or 1) - 1, block)


class GridTab:
    """One or two settings against each other."""

    def __init__(self, studio: Studio, engine: Engine):
        self.studio, self.engine = studio, engine
        with gr.Row():
            choices = [*grid.CHOICES]
            self.across = gr.Dropdown(
                choices, value="b1", label="Across", info="a setting", elem_id="across", min_width=120
            )
            self.across_values = gr.Textbox(
                "1, 1.1, 1.2, 1.4", label="Its values", info="or first:last:count", elem_id="across-values"
            )
        with gr.Row():
            self.down = gr.Dropdown(
                choices, value="s2", label="Down", info="a setting, or nothing", elem_id="down", min_width=120
            )
            self.down_values = gr.Textbox(
                "1, 0.6, 0.2", label="Its values", info="or first:last:count", elem_id="down-values"
            )
        with gr.Row():
            self.go = gr.Button("Draw the grid", variant="primary", elem_id="draw-grid")
            self.halt = gr.Button("Stop", interactive=False, min_width=80, elem_id="stop-grid")
        self.view = gr.HTML(
            '<p class="lead">Everything else is as the controls say. Cells come as they are drawn.</p>',
            apply_default_css=False,
            elem_id="grid",
        )

    def wire(self, inputs: list[Any]) -> None:
        axes = [self.across, self.across_values, self.down, self.down_values]
        self.go.click(self.draw, [*axes, *inputs], [self.view, self.halt], **WORK)
        self.halt.click(self.stop, **AT_ONCE)

    async def draw(
        self, across: str, across_values: str, down: str, down_values: str, request: gr.Request, *values: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        """Draws the cells, each shown as soon as it is on disk."""
        owner = (str(request.session_hash), "grid")
        self.engine.leave(*owner)
        plan = None
        try:
            base = Settings.of(values)
            axes = grid.read_axis(across, across_values), grid.read_axis(down, down_values)
            plan = grid.plan(base, *axes, self.studio)
            stoppable = {self.halt: CAN_BE_STOPPED}
            yield {self.view: grid.markup(plan, "Beginning …")} | stoppable
            async for news in self.engine.follow(owner, partial(grid.draw_cells, self.studio, plan)):
                if isinstance(news, Waiting):
                    yield {self.view: grid.markup(plan, place(news.ahead))} | stoppable
                elif news:
                    plan = news[-1]
                    progress = f"{len(plan.files)} of {len(plan.cells)} pictures"
                    yield {self.view: grid.markup(plan, progress)} | stoppable
            left = len(plan.cells) - len(plan.files)
            said = f"Stopped; {left} are not drawn." if left else "Done. Choose a picture to keep it."
            yield {self.view: grid.markup(plan, said)}
        except Exception as fault:
            message = lines([sentence(fault)], "fault")
            yield {self.view: message if plan is None else grid.markup(plan, "") + message}
        yield {self.halt: gr.update(interactive=False)}

    def stop(self, request: gr.Request) -> None:
        self.engine.stop((str(request.session_hash), "grid"))


class ExplainTab:
    """What FreeU does under the settings at hand."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.view = gr.HTML(
            self.explain(*studio.defaults().values()), apply_default_css=False, elem_id="explain"
        )

    def wire(self, controls: dict[str, Any], inputs: list[Any]) -> None:
        names = ("b1", "b2", "s1", "s2", "version", "strength", "start", "stop", "ramp", "match", "channels")
        changes = [controls[name].change for name in (*names, "threshold", "height", "width")]
        gr.on(changes, self.explain, inputs, self.view, trigger_mode="always_last", **AT_ONCE)

    def explain(self, *values: Any) -> str:
        try:
            settings = Settings.of(values)
            self.studio.check(settings)
            return explain.markup(self.studio, settings)
        except InputError as fault:
            return lines([str(fault)], "fault")
