"""Warnings before a run: what of the model, the prompts and the factors will not work as one might think."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ldm.errors import warn
from ldm.generate import Sampling
from ldm.memory import installed
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.modules.encoders.words import WordEmbedder
from ldm.parameterization import mix_up

SHOWN = 200  # letters of what is cut off a prompt
NAMED = 10  # prompts or words that a warning names; the rest it counts
# What webuis do not take for words: weights, LoRAs, breaks, wildcards and choices.
WEBUI = re.compile(r"\([^()]+:\s*[\d.]+\)|<\w+:[^<>]+>|\bBREAK\b|__\w+__|\{[^{}|]*\|[^{}]*\}")
# The noise at which PLMS begins, by how much of a picture it leaves, and the steps that it then needs: each
# estimate is divided by it. On the embedded model (0.015) it draws other colours in up to 30 steps.
LITTLE_LEFT, ENOUGH_STEPS = 0.03, 40


def caveats(model: LatentDiffusion, texts: list[str], samplings: Iterable[Sampling]) -> Iterator[str]:
    """A line for each; `texts` are all that the text encoder will read."""
    if wrong := mix_up(model):
        yield wrong
    yield from _about_texts(model.cond_stage_model, texts)
    yield from too_few_steps(model, samplings)
    unet = model.model.diffusion_model
    if isinstance(unet, Free_UNetModel) and unet.hit_blocks():
        yield from unet.freeu.outside_published_range()
        yield from unet.freeu.of_the_other_version()


def too_few_steps(model: LatentDiffusion, samplings: Iterable[Sampling]) -> Iterator[str]:
    """A line where PLMS gets so few steps from so much noise that colours come out wrong."""
    steps = min((it.steps for it in samplings if it.sampler == "plms"), default=ENOUGH_STEPS)
    if steps < ENOUGH_STEPS and model.sqrt_alphas_cumprod[-1] < LITTLE_LEFT:
        yield (
            f"PLMS draws wrong colours in {steps} steps with this model, whose noise hides pictures nearly "
            f"whole: give it {ENOUGH_STEPS} or more, or take another sampler"
        )


def too_large(model: LatentDiffusion, sampling: Sampling) -> Iterator[str]:
    """A line where the machine's memory does not hold what a picture's decoding takes at the very least."""
    # The last layers make one map of the whole picture out of another, in strips too.
    channels = model.first_stage_model.decoder.conv_out.in_channels
    least = 2 * channels * sampling.height * sampling.width * model.dtype.itemsize
    there = installed()
    if there is not None and least > there:
        yield (
            f"to decode {sampling.width}x{sampling.height} takes over {least // 10**9} GB, and this machine "
            f"has {there // 10**9}: give a smaller --W and --H"
        )


def _about_texts(encoder: Any, texts: list[str]) -> Iterator[str]:
    cut = [end for text in texts if (end := encoder.truncated(text))]
    for end in cut[:NAMED]:
        end = end if len(end) <= SHOWN else f"{end[:SHOWN]} ..."
        yield f"the prompt is too long for the text encoder, which leaves out: {end}"
    if len(cut) > NAMED:
        yield f"{len(cut) - NAMED} more prompts are too long"
    yield from webui_syntax(texts)
    if isinstance(encoder, WordEmbedder):
        unknown = [*dict.fromkeys(word for text in texts for word in encoder.unknown(text))]
        if unknown:
            more = f" and {len(unknown) - NAMED} more words" if len(unknown) > NAMED else ""
            yield (
                f"this small model does not know {', '.join(unknown[:NAMED])}{more}; it knows "
                f"{' '.join(encoder.words)}. For all else there is Stable Diffusion: "
                "python scripts/txt2img.py --config freeu_sd21.yaml --prompt ..."
            )


def webui_syntax(texts: Iterable[str]) -> Iterator[str]:
    """A line where prompts hold what webuis read as more than words."""
    found = [*dict.fromkeys(mark for text in texts for mark in WEBUI.findall(text))]
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        are = "is" if len(found) == 1 else "are"
        yield (
            f"{', '.join(found[:NAMED])}{more} {are} read as words: prompts have no weights, LoRAs, breaks "
            "or choices here"
        )


def warn_of_mix_up(model: LatentDiffusion) -> None:
    """Says it where the config takes the network for one of the other kind, eps or v."""
    if wrong := mix_up(model):
        warn(wrong)


def warn_of_words(encoder: Any, texts: Iterable[str]) -> None:
    """Says what of these texts the text encoder will not read as one might think."""
    for line in _about_texts(encoder, [*dict.fromkeys(texts)]):
        warn(line)
