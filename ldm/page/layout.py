"""The page's parts and their places; what they do is in `visit`."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from ldm.generate import SAMPLERS
from ldm.page import presets, stage
from ldm.page.settings import NAMES, Settings
from ldm.page.studio import Studio

SAMPLER_NAMES = {"ddim": "DDIM", "plms": "PLMS", "dpm": "DPM++ 2M"}
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
    shown: Any  # the place among them of the one on the stage

    def inputs(self) -> list[Any]:
        """The controls in the order of the settings' names."""
        return [self.controls[name] for name in NAMES]


def masthead(studio: Studio) -> str:
    return (
        '<header class="masthead"><h1>FreeU, side by side</h1>'
        "<p>One noise, drawn twice: by the plain model, and with FreeU on the same weights.</p>"
        f'<span class="chip" title="The model of this page">{studio.name}</span>'
        '<button id="light-or-dark" type="button">light / dark</button></header>'
    )


def build(studio: Studio) -> Parts:
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
    with gr.Row(elem_classes="desk"):
        with gr.Column(elem_classes="pictures"):
            pictures = gr.HTML(
                stage.markup(stage.empty(first)), apply_default_css=False, elem_id="stage", padding=False
            )
        with gr.Column(elem_classes="controls"):
            chosen = presets.choices(studio.name, studio.config_freeu)
            preset, source, live = factor_controls(first, controls, chosen)
            dice, reuse = picture_controls(studio, first, controls)
            with gr.Group(elem_id="exchange"):
                gr.HTML(
                    '<p class="lead"><b>Settings from a picture</b><br>'
                    "Drop a PNG of this page, of txt2img or of a webui.</p>"
                )
                dropped = gr.File(
                    label="A PNG with settings inside",
                    show_label=False,
                    file_types=[".png"],
                    height=120,
                    elem_id="dropped",
                )
            told = gr.HTML("", apply_default_css=False, elem_id="told")
            link_button = gr.Button("Copy a link to these settings", size="sm", elem_id="link-button")
            link = gr.Textbox(label="Link", visible=False, buttons=["copy"], elem_id="link")
        with gr.Column(elem_classes="more"), gr.Tabs():
            with gr.Tab("This visit", id="visit"):
                gr.HTML('<p class="lead">The newest first. Choose a picture to see its pair again.</p>')
                history = gr.Gallery(
                    label="Pictures of this visit",
                    show_label=False,
                    columns=6,
                    height="auto",
                    object_fit="contain",
                    allow_preview=False,
                    buttons=[],
                    elem_id="history",
                )
                take = gr.Button(
                    "Set the controls as they were for the pair above", size="sm", elem_id="take"
                )
    ordered = {name: controls[name] for name in NAMES}
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
    )


def factor_controls(
    first: Settings, controls: dict[str, Any], chosen: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """FreeU's controls; with them the presets, their source, and whether to draw at each change."""
    with gr.Group(elem_id="factors"):
        name = next(iter(chosen))
        preset = gr.Dropdown([*chosen], value=name, label="FreeU's factors", elem_id="preset")
        source = gr.HTML(source_line(chosen[name][1]), apply_default_css=False)
        for factor, info in {
            "b1": "backbone, deepest stage: more structure",
            "b2": "backbone, next stage",
            "s1": "skip's lowest frequencies, deepest stage: below 1 damps",
            "s2": "skip's lowest frequencies, next stage",
        }.items():
            most = 2.0 if factor[0] == "b" else 1.5
            controls[factor] = gr.Slider(
                0, most, getattr(first, factor), step=0.01, label=factor, info=info, elem_id=factor
            )
        controls["version"] = gr.Radio(
            [("1: one factor everywhere", 1), ("2: follows the picture's structure", 2)],
            value=first.version,
            label="Version of the backbone's factor",
            elem_id="version",
        )
        live = gr.Checkbox(True, label="Draw again when I let one of these go", elem_id="live")
        with gr.Accordion("When, and how much of it", open=False):
            controls["strength"] = gr.Slider(
                0,
                1,
                first.strength,
                step=0.01,
                label="strength",
                info="0 is the plain model, 1 the factors whole",
            )
            controls["start"] = gr.Slider(
                0,
                1,
                first.start,
                step=0.01,
                label="start",
                info="share of the steps after which FreeU begins",
            )
            controls["stop"] = gr.Slider(
                0,
                1,
                first.stop,
                step=0.01,
                label="stop",
                elem_id="stop-share",
                info="share of the steps after which it ends",
            )
            controls["ramp"] = gr.Slider(
                0,
                1,
                first.ramp,
                step=0.01,
                label="ramp",
                info="over how much of the steps it fades in and out",
            )
        with gr.Accordion("Which channels, stages and frequencies", open=False):
            controls["match"] = gr.Radio(
                [("width, as the paper", "channels"), ("resolution, as diffusers", "resolution")],
                value=first.match,
                label="Tell the stages by their",
            )
            controls["channels"] = gr.Dropdown(
                ["first", "second", "alternate", "all"],
                value=str(first.channels),
                allow_custom_value=True,
                label="Channels that b scales",
                info="a half of them, or a fraction such as 0.25",
            )
            controls["threshold"] = gr.Slider(
                1,
                8,
                first.threshold,
                step=1,
                label="threshold",
                info="half-width of the window of frequencies",
            )
    return preset, source, live


def picture_controls(studio: Studio, first: Settings, controls: dict[str, Any]) -> tuple[Any, Any]:
    """The controls of the pictures themselves; with them the buttons beside the seed."""
    limits, multiple = studio.limits, studio.multiple
    with gr.Group(elem_id="picture"):
        with gr.Row(equal_height=True):
            controls["seed"] = gr.Textbox(
                str(first.seed),
                label="Seed",
                info="same seed, same noise",
                scale=3,
                min_width=120,
                elem_id="seed",
            )
            dice = gr.Button("⚄ New", size="sm", min_width=70, scale=1, elem_id="dice")
            reuse = gr.Button("↺ Last", size="sm", min_width=70, scale=1, elem_id="reuse")
        controls["steps"] = gr.Slider(1, limits.steps, first.steps, step=1, label="Steps", elem_id="steps")
        controls["scale"] = gr.Slider(
            1, 20, first.scale, step=0.1, label="Guidance", info="how closely to follow the words; 1 is none"
        )
        controls["sampler"] = gr.Radio(
            [(SAMPLER_NAMES[name], name) for name in SAMPLERS],
            value=first.sampler,
            label="Sampler",
            elem_id="sampler",
        )
        with gr.Row():
            most = limits.side // multiple * multiple
            for side in ("width", "height"):
                controls[side] = gr.Slider(
                    multiple,
                    most,
                    getattr(first, side),
                    step=multiple,
                    label=side.capitalize(),
                    min_width=120,
                    elem_id=side,
                )
        with gr.Accordion("More", open=False):
            controls["negative_prompt"] = gr.Textbox(
                first.negative_prompt, label="What to keep away from", elem_id="negative_prompt"
            )
            controls["n_samples"] = gr.Slider(
                1, limits.samples, first.n_samples, step=1, label="Pairs", info="the seeds count on"
            )
            controls["eta"] = gr.Slider(
                0, 1, first.eta, step=0.01, label="eta", info="DDIM alone: fresh noise in every step"
            )
    return dice, reuse


def source_line(source: str) -> str:
    return f'<p class="words">Source: {source}.</p>'


def vocabulary(studio: Studio, prompt: str) -> str:
    """What a small model knows, and which words of a prompt it does not."""
    if not studio.words:
        return ""
    unknown = [*dict.fromkeys(studio.encoder.unknown(prompt))]
    summary = f"<summary>This small model knows {len(studio.words)} words</summary>"
    known = f"<details>{summary}<code>{' '.join(studio.words)}</code></details>"
    if unknown:
        listed = escape(", ".join(unknown[:8])) + (" …" if len(unknown) > 8 else "")
        known = f'<span class="unknown">It passes over: {listed}.</span> ' + known
    return f'<div class="words">{known}</div>'


def lines(texts: Sequence[str], kind: str) -> str:
    """Sentences to a visitor, `told` or a `fault`."""
    role = "alert" if kind == "fault" else "status"
    return (
        f'<div class="lines {kind}" role="{role}">'
        + "".join(f"<p>{escape(text)}</p>" for text in texts)
        + "</div>"
    )
