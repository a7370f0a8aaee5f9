"""The page's parts and their places; what they do is in `visit`."""

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from ldm.page import presets, stage
from ldm.page.controls import factor_controls, picture_controls
from ldm.page.engine import Engine
from ldm.page.settings import FIELDS
from ldm.page.studio import Studio
from ldm.page.tabs import ExplainTab, GridTab, InsideTab

# Enough for any model to show what it can do; the embedded one knows but its own words.
PROMPTS = (
    "a squirrel eating a burger",
    "a blue car is being filmed",
    "half human half cat, a human cat hybrid",
    "a drone flying over a snowy forest",
)
SCENES = (
    "a small yellow star above a large purple heart on a checkered white background",
    "a large green ring left of a small orange diamond on a black background",
    "a white cross below a large red dotted square on a blue background",
    "a large purple triangle on a striped yellow background",
)


@dataclass
class Parts:
    """The components that events read and write."""

    controls: dict[str, Any]  # by the names of the settings
    preset: Any
    preset_source: Any
    live: Any
    draw: Any
    stop: Any
    dice: Any
    reuse: Any
    words: Any
    stage: Any
    dropped: Any
    told: Any  # what is said about settings that came from elsewhere
    link_button: Any
    link: Any
    history: Any
    take: Any
    pairs: Any  # of this visit, the newest first
    inside: InsideTab
    grid: GridTab
    explain: ExplainTab
    shown: Any  # the place among them of the one on the stage

    def inputs(self) -> list[Any]:
        """The controls in the order of the settings' names."""
        return [self.controls[name] for name in FIELDS]


def masthead(studio: Studio) -> str:
    return (
        '<header class="masthead"><h1>FreeU, side by side</h1>'
        "<p>One noise, drawn twice: by the plain model, and with FreeU on the same weights.</p>"
        f'<span class="chip" title="The model of this page">{studio.name}</span>'
        '<button id="light-or-dark" type="button">light / dark</button></header>'
    )


def build(studio: Studio, engine: Engine) -> Parts:
    """Lays the page out, inside a `gr.Blocks`."""
    first = studio.defaults()
    controls: dict[str, Any] = {}
    gr.HTML(masthead(studio), apply_default_css=False)
    with gr.Row(equal_height=True):
        controls["prompt"] = gr.Textbox(
            first.prompt,
            label="What to draw",
            placeholder="A few words; Enter draws",
            lines=2,
            max_lines=5,
            scale=6,
            min_width=280,
            elem_id="prompt",
        )
        with gr.Column(scale=1, min_width=150, elem_classes="go"):
            draw = gr.Button("Draw", variant="primary", elem_id="draw")
            stop = gr.Button("Stop", interactive=False, elem_id="stop")
    words = gr.HTML(vocabulary(studio, first.prompt), apply_default_css=False)
    gr.Examples(
        [[text] for text in (SCENES if studio.words else PROMPTS)],
        controls["prompt"],
        label="For example",
        elem_id="examples",
    )
    told = gr.HTML("", apply_default_css=False, elem_id="told")
    with gr.Row(elem_classes="desk"):
        with gr.Column(elem_classes="pictures"):
            pictures = gr.HTML(
                stage.markup(stage.empty(first)), apply_default_css=False, elem_id="stage", padding=False
            )
        with gr.Column(elem_classes="controls"):
            chosen = presets.choices(studio.arguments.config, studio.config_freeu)
            preset, source, live = factor_controls(first, controls, chosen)
            dice, reuse = picture_controls(studio, first, controls)
            with gr.Group(elem_id="exchange"):
                gr.HTML(
                    '<p class="lead"><b>Settings from a picture</b><br>'
                    "Drop a PNG of this page, of txt2img or of a webui, anywhere.</p>"
                )
                dropped = gr.File(
                    label="A PNG with settings inside",
                    show_label=False,
                    file_types=[".png"],
                    height=120,
                    elem_id="dropped",
                )
            link_button = gr.Button("Copy a link to these settings", size="sm", elem_id="link-button")
            link = gr.Textbox(label="Link", visible=False, buttons=["copy"], elem_id="link")
        with gr.Column(elem_classes="more"), gr.Tabs():
            with gr.Tab("This visit", id="visit"):
                gr.HTML('<p class="lead">The newest first. Choose a picture to see its pair again.</p>')
                history = gr.Gallery(
                    label="Pictures of this visit",
                    show_label=False,
                    columns=6,
                    height=250,
                    object_fit="contain",
                    allow_preview=False,
                    buttons=[],
                    elem_id="history",
                )
                take = gr.Button(
                    "Set the controls as they were for the pair above", size="sm", elem_id="take"
                )
            with gr.Tab("Look inside", id="inside"):
                look = InsideTab(studio, engine)
            with gr.Tab("Grid", id="grid"):
                cells = GridTab(studio, engine)
            with gr.Tab("Explain", id="explain"):
                words_on_it = ExplainTab(studio)
    ordered = {name: controls[name] for name in FIELDS}
    return Parts(
        controls=ordered,
        preset=preset,
        preset_source=source,
        live=live,
        draw=draw,
        stop=stop,
        dice=dice,
        reuse=reuse,
        words=words,
        stage=pictures,
        dropped=dropped,
        told=told,
        link_button=link_button,
        link=link,
        history=history,
        take=take,
        pairs=gr.State([]),
        shown=gr.State(0),
        inside=look,
        grid=cells,
        explain=words_on_it,
    )


def vocabulary(studio: Studio, prompt: str) -> str:
    """What a small model knows, and which words of a prompt it does not."""
    if not studio.words:
        return ""
    unknown = [*dict.fromkeys(studio.encoder.unknown(prompt))]
    summary = f"<summary>This small model knows {len(studio.words)} words</summary>"
    known = f"<details>{summary}<code>{' '.join(studio.words)}</code></details>"
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        listed = escape(", ".join(unknown[:8])) + more
        known = f'<span class="unknown">It passes over: {listed}.</span> ' + known
    return f'<div class="words">{known}</div>'
