"""The controls of the pictures and of FreeU, under the names of the settings."""

from typing import Any

import gradio as gr

from ldm.generate import SAMPLERS
from ldm.page.presets import OWN, Choices
from ldm.page.settings import Settings
from ldm.page.studio import Studio
from ldm.txt2img.recipe import WEBUI_SAMPLERS


def as_it_is(self: gr.Slider, payload: float) -> float:
    """A slider's value, whatever it is: the settings have sentences for what is too large or missing."""
    return payload


# gradio would raise for what stands in a number box while a visitor still writes. This is no subclass's
# method, as gradio writes a file beside the source of each subclass.
gr.Slider.preprocess = as_it_is  # type: ignore[method-assign]


def factor_controls(first: Settings, controls: dict[str, Any], chosen: Choices) -> tuple[Any, Any, Any]:
    """FreeU's controls; with them the presets, their source, and whether to draw at each change."""
    with gr.Group(elem_id="factors"):
        taken = next(iter(chosen))
        preset = gr.Dropdown([*chosen, OWN], value=taken, label="FreeU's factors", elem_id="preset")
        source = gr.HTML(source_line(chosen[taken][1]), apply_default_css=False)
        for factor, info in {
            "b1": "backbone, deepest stage: more structure",
            "b2": "backbone, next stage",
            "s1": "skip's lowest frequencies, deepest stage: below 1 damps",
            "s2": "skip's lowest frequencies, next stage",
        }.items():
            most = 2.0 if factor[0] == "b" else 1.5
            controls[factor] = roomy_slider(
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
            for name, info in {
                "strength": "0 is the plain model, 1 the factors whole",
                "start": "share of the steps after which FreeU begins",
                "stop": "share of the steps after which it ends",
                "ramp": "over how much of the steps it fades in and out",
            }.items():
                controls[name] = gr.Slider(
                    0, 1, getattr(first, name), step=0.01, label=name, info=info, elem_id=f"{name}-share"
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
            controls["threshold"] = roomy_slider(
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
        controls["steps"] = slider_up_to(limits.steps, 1, first.steps, label="Steps", elem_id="steps")
        controls["scale"] = roomy_slider(
            1, 20, first.scale, step=0.1, label="Guidance", info="how closely to follow the words; 1 is none"
        )
        controls["sampler"] = gr.Radio(
            [(WEBUI_SAMPLERS[name], name) for name in SAMPLERS],
            value=first.sampler,
            label="Sampler",
            elem_id="sampler",
        )
        most = limits.side // multiple * multiple
        for side in ("width", "height"):
            controls[side] = slider_up_to(
                most, multiple, getattr(first, side), label=side.capitalize(), elem_id=side
            )
        with gr.Accordion("More", open=False):
            controls["negative_prompt"] = gr.Textbox(
                first.negative_prompt, label="What to keep away from", elem_id="negative_prompt"
            )
            controls["n_samples"] = slider_up_to(
                limits.samples, 1, first.n_samples, label="Pairs", info="the seeds count on"
            )
            controls["eta"] = gr.Slider(
                0, 1, first.eta, step=0.01, label="eta", info="DDIM alone: fresh noise in every step"
            )
    return dice, reuse


def roomy_slider(least: float, most: float, value: float, **more: Any) -> Any:
    """A slider from `least` to `most`, or further where its first value lies beyond."""
    return gr.Slider(min(least, value), max(most, value), value, **more)


def slider_up_to(most: int, step: int, value: int, **more: Any) -> Any:
    """A slider over the multiples of `step` up to a limit; it is fixed where there is but one."""
    # gradio takes no slider without a range.
    return gr.Slider(step, max(most, 2 * step), value, step=step, interactive=most > step, **more)


def source_line(source: str) -> str:
    return f'<p class="words">Source: {source}.</p>'
