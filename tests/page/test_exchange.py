"""Settings that come and go as links and as PNGs."""

import json
import math
import re
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.errors import InputError
from ldm.page.exchange import from_picture, from_query, to_query
from ldm.page.settings import LARGEST_SEED, Limits, Settings
from ldm.page.studio import Studio

FIRST = Settings(
    **{
        "prompt": "a red circle",
        "negative_prompt": "",
        "seed": 42,
        "n_samples": 1,
        "steps": 50,
        "scale": 3.0,
    },
    **{
        "sampler": "ddim",
        "eta": 0.0,
        "height": 128,
        "width": 128,
        "b1": 1.1,
        "b2": 1.2,
        "s1": 0.9,
        "s2": 0.6,
    },
    **{"version": 1, "strength": 1.0, "start": 0.0, "stop": 1.0, "ramp": 0.0, "threshold": 1},
    **{"match": "channels", "channels": "first"},
)

# Newlines are trimmed off the ends of prompts, as blanks are.
prompts = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=80).map(str.strip)
fractions = st.floats(0, 1)
settings = st.builds(
    Settings,
    prompt=prompts,
    negative_prompt=prompts,
    seed=st.integers(0, LARGEST_SEED),
    n_samples=st.integers(1, 4),
    steps=st.integers(1, 1000),
    scale=st.floats(-50, 50),
    sampler=st.sampled_from(["ddim", "plms", "dpm"]),
    eta=fractions,
    height=st.integers(1, 4096),
    width=st.integers(1, 4096),
    **dict.fromkeys(("b1", "b2", "s1", "s2"), st.floats(0, 3)),
    version=st.sampled_from([1, 2]),
    strength=fractions,
    start=st.just(0.25),
    stop=st.floats(0.25, 1),
    ramp=fractions,
    threshold=st.integers(1, 20),
    match=st.sampled_from(["channels", "resolution"]),
    channels=st.one_of(st.sampled_from(["first", "second", "alternate", "all"]), fractions),
)


@given(settings)
def test_a_link_gives_back_all_settings(chosen: Settings):
    query = dict(parse_qsl(to_query(chosen), keep_blank_values=True, strict_parsing=True))
    assert from_query(query, FIRST) == (chosen, [])


@given(st.dictionaries(st.sampled_from([*asdict(FIRST), "H", "W", "other"]), st.text(max_size=30)))
def test_any_link_gives_settings_that_mean_something(query: dict[str, str]):
    found, notes = from_query(query, FIRST)
    assert found.freeu is not None
    assert all(isinstance(note, str) and note for note in notes)


def test_what_means_nothing_in_a_link_is_left_out_and_told_of():
    found, notes = from_query({"seed": "7", "steps": "many", "b1": "nan", "sampler": "magic"}, FIRST)
    assert found == replace(FIRST, seed=7)
    assert len(notes) == 3
    assert "'many'" in notes[0] and "'magic'" in notes[1] and "b1 is 'nan'" in notes[2]


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", "nan"), ("scale", "-inf"), ("eta", "nan"), ("eta", "9"), ("seed", "-4"), ("seed", "9" * 30)],
)
def test_a_number_in_a_link_that_cannot_be_drawn_is_left_out_and_told_of(name: str, value: str):
    found, [note] = from_query({name: value}, FIRST)
    assert found == FIRST
    assert value in note and note.endswith("It is left out.")


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        *(("steps", value, "give a whole number") for value in (True, 2.5, math.inf, math.nan, None, "2.5")),
        *(("b1", value, "give a finite number") for value in (True, math.inf, 10**400, None, "wide")),
        *(("eta", value, "give 0 to 1") for value in (-0.1, 1.1)),
        *(("seed", value, f"give 0 to {LARGEST_SEED}") for value in (-1, LARGEST_SEED + 1)),
        *(("prompt", value, "give a text") for value in (None, 7)),
        ("sampler", "euler", "take one of ddim, plms, dpm"),
    ],
    ids=lambda it: repr(it)[:20],
)
def test_a_value_of_the_wrong_kind_is_named_with_the_remedy(name: str, value: object, remedy: str):
    with pytest.raises(InputError, match=f"{name} (is )?{re.escape(repr(value)[:60])}.*: {remedy}"):
        Settings.read(asdict(FIRST) | {name: value})


def test_values_go_to_the_controls_and_come_back():
    # A page's numbers are a browser's, which are whole up to 2**53 only; and prompts have no blanks around.
    chosen = replace(FIRST, seed=LARGEST_SEED)
    values = chosen.values()
    assert values[2] == str(LARGEST_SEED)
    assert Settings.of([" a red circle\n", *values[1:]]) == chosen


def test_what_is_below_the_least_becomes_the_least_and_is_told_of():
    few = replace(FIRST, steps=-5, n_samples=-2, width=-64)
    clipped, told = few.clipped(Limits(), multiple=32)
    assert clipped == replace(FIRST, steps=1, n_samples=1, width=32)
    assert len(told) == 3 and "The steps was -5; here it is 1." in told


def test_a_picture_of_txt2img_gives_back_its_settings(txt2img):
    [path] = txt2img(
        *("--prompt", "a star", "--negative-prompt", "a ring", "--seed", 2**53 + 1, "--plms", "--scale", 4.5),
        *("--b1", 1.3, "--s2", 0.25, "--freeu-version", 2, "--stop", 0.7, "--ramp", 0.1, "--channels", 0.25),
    ).pictures()
    found, notes = from_picture(path, FIRST, "freeu_tiny.yaml")
    assert notes == []
    assert found == replace(
        *(FIRST,),
        **{
            "prompt": "a star",
            "negative_prompt": "a ring",
            "seed": 2**53 + 1,
            "sampler": "plms",
            "scale": 4.5,
        },
        **{"b1": 1.3, "s2": 0.25, "version": 2, "stop": 0.7, "ramp": 0.1, "channels": 0.25},
        **{"height": 32, "width": 32, "steps": 2},
    )


def test_a_picture_of_another_model_or_without_freeu_is_told_of(txt2img):
    [path] = txt2img("--no-freeu").pictures()
    _, notes = from_picture(path, FIRST, "freeu_sd21.yaml")
    assert "without FreeU" in notes[0] and "made with freeu_tiny.yaml" in notes[1]


NOW = replace(FIRST, b1=1.55, s2=0.1, stop=0.4, sampler="plms", steps=7)


def test_what_a_picture_says_nothing_of_stays_as_it_is_now(tmp_path: Path, txt2img):
    [path] = txt2img("--no-freeu", "--seed", 8).pictures()
    found, _ = from_picture(path, FIRST, "freeu_tiny.yaml", NOW)
    assert found.freeu == NOW.freeu and (found.seed, found.sampler, found.steps) == (8, "ddim", 2)

    path = webui_picture(tmp_path / "a.png", "a cat\nSteps: 20, Sampler: Euler a, Seed: 1, freeu_b1: 1.5")
    found, _ = from_picture(path, FIRST, "freeu_tiny.yaml", NOW)
    assert found == replace(FIRST, prompt="a cat", steps=20, seed=1, sampler="plms", b1=1.5, version=2)

    # Of one by a later version, too.
    path = recorded_picture(tmp_path / "b.png", {"sampler": "heun", "seed": 9, "config": "freeu_tiny.yaml"})
    found, notes = from_picture(path, FIRST, "freeu_tiny.yaml", NOW)
    assert (found.sampler, found.seed) == ("plms", 9) and "There is no sampler" in notes[-1]


def test_freeu_of_a_picture_that_means_nothing_is_left_out(tmp_path: Path):
    record = {"config": "freeu_tiny.yaml", "freeu": {"b1": 1.3, "start": 0.8, "stop": 0.2}}
    found, [note] = from_picture(recorded_picture(tmp_path / "a.png", record), FIRST, "freeu_tiny.yaml")
    assert found.freeu == FIRST.freeu and note.endswith("FreeU's settings are left out.")


def recorded_picture(path: Path, record: dict[str, Any]) -> Path:
    info = PngInfo()
    info.add_text("freeu", json.dumps(record))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def webui_picture(path: Path, parameters: str, packed: bool = False) -> Path:
    info = PngInfo()
    info.add_text("parameters", parameters, zip=packed)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, pnginfo=info)
    return path


def test_a_webuis_picture_gives_its_settings(tmp_path: Path):
    path = webui_picture(
        tmp_path / "a.png",
        "a photo of a cat,\nsitting: on a mat\nNegative prompt: blurry, dog\n"
        "Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 1234567890, Size: 512x768, "
        'Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Lora hashes: "one: a, two: b", Version: v1.9.4',
    )
    found, notes = from_picture(path, FIRST, "freeu_tiny.yaml")
    assert found == replace(
        *(FIRST,),
        **{"prompt": "a photo of a cat,\nsitting: on a mat", "negative_prompt": "blurry, dog", "steps": 28},
        **{"sampler": "dpm", "scale": 6.5, "seed": 1234567890, "width": 512, "height": 768},
    )
    assert notes == [
        "Its schedule was Karras; here the steps are spaced evenly.",
        "It was made with the model v1-5-pruned-emaonly.",
    ]
    clipped, told = found.clipped(Limits(side=256, steps=20), multiple=32)
    assert (clipped.width, clipped.height, clipped.steps) == (256, 256, 20)
    assert len(told) == 3 and "The steps was 28; here it is 20." in told


@pytest.mark.parametrize(
    "name",
    ["Euler a", "DPM++ 2M SDE Karras", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2M CFG++", "DDIM CFG++"],
)
def test_a_webuis_sampler_that_is_not_here_is_told_of(tmp_path: Path, name: str):
    path = webui_picture(tmp_path / "a.png", f"a cat\nSteps: 20, Sampler: {name}, Seed: 1")
    found, notes = from_picture(path, replace(FIRST, sampler="plms"), "freeu_tiny.yaml")
    assert (found.sampler, found.seed) == ("plms", 1)
    assert notes == [f"There is no sampler {name} here; the one chosen stays."]


@pytest.mark.parametrize(
    ("name", "ours", "schedule"),
    [
        ("DPM++ 2M", "dpm", None),
        ("DPM++ 2M Karras", "dpm", "Karras"),
        ("DPM++ 2M Exponential", "dpm", "Exponential"),
        ("dpm++ 2m SGM Uniform", "dpm", None),
        ("DPM++ 2M Align Your Steps", "dpm", "Align Your Steps"),
        ("DPM++ 2M, Schedule type: Karras", "dpm", "Karras"),
        ("DPM++ 2M, Schedule type: Automatic", "dpm", None),
        ("DDIM", "ddim", None),
        ("DDIM Uniform", "ddim", None),
        ("PLMS", "plms", None),
    ],
)
def test_a_webuis_sampler_is_known_and_a_schedule_that_is_not_here_is_told_of(
    tmp_path: Path, name: str, ours: str, schedule: str | None
):
    path = webui_picture(tmp_path / "a.png", f"a cat\nSteps: 20, Sampler: {name}, Seed: 1")
    other = "ddim" if ours == "plms" else "plms"
    found, notes = from_picture(path, replace(FIRST, sampler=other), "freeu_tiny.yaml")
    told = [f"Its schedule was {schedule}; here the steps are spaced evenly."] if schedule else []
    assert (found.sampler, notes) == (ours, told)


def stages(*each: dict[str, float]) -> str:
    return json.dumps(json.dumps(each))


@pytest.mark.parametrize(
    ("entries", "changes", "told"),
    [
        (
            f"FreeU Stages: {stages({'backbone_factor': 1.3, 'skip_factor': 0.8}, {'backbone_factor': 1.4})},"
            ' FreeU Schedule: "0.2, 0.75, 0.0", FreeU Version: 2',
            {"b1": 1.3, "s1": 0.8, "b2": 1.4, "s2": 1, "version": 2, "start": 0.2, "stop": 0.75},
            [],
        ),
        (
            f'FreeU Stages: {stages({"skip_factor": 0.5})}, FreeU Schedule: "5, 15, 0.0"',
            {"b1": 1, "s1": 0.5, "b2": 1, "s2": 1, "start": 0.25, "stop": 0.75},
            [],
        ),
        (
            f"FreeU Stages: {stages({'backbone_width': 0.3}, {}, {'skip_factor': 2})}, "
            'FreeU Schedule: "0.0, 1.0, 0.5", FreeU Mood: blue',
            {"b1": 1, "s1": 1, "b2": 1, "s2": 1},
            ["stage 1 this is not taken: backbone_width", "stage 3", "smoothness of 0.5", "FreeU Mood"],
        ),
        ('FreeU Stages: x, FreeU Schedule: "0.1"', {}, ["FreeU Stages is not taken: x", "FreeU Schedule"]),
        (
            "freeu_enabled: True, freeu_b1: 1.5, freeu_b2: 1.6, freeu_s1: 0.7, freeu_s2: 0.3, "
            "freeu_start: 0.1, freeu_end: 0.9",
            {"b1": 1.5, "b2": 1.6, "s1": 0.7, "s2": 0.3, "version": 2, "start": 0.1, "stop": 0.9},
            [],
        ),
        ("freeu_enabled: False, freeu_b1: 1.5", {}, ["made without FreeU"]),
        ('FreeU: "(1.01, 1.02, 0.99, 0.95)"', {}, ["FreeU is not taken: (1.01"]),
    ],
    ids=["extension", "in steps", "more than here", "not readable", "Forge", "Forge, off", "unknown"],
)
def test_freeu_in_a_webuis_picture_is_taken_or_told_of(
    tmp_path: Path, entries: str, changes: dict, told: list[str]
):
    path = webui_picture(tmp_path / "a.png", f"a red circle\nSteps: 20, {entries}")
    found, notes = from_picture(path, replace(FIRST, steps=20), "freeu_tiny.yaml")
    assert found == replace(FIRST, **({"steps": 20} | changes))
    assert len(notes) == len(told) and all(part in note for part, note in zip(told, notes, strict=True))


@given(st.text(st.characters(codec="latin-1", exclude_characters="\0"), max_size=200))
def test_any_webui_text_is_read_without_harm(tmp_path_factory: pytest.TempPathFactory, parameters: str):
    path = webui_picture(tmp_path_factory.getbasetemp() / "any.png", parameters or " ")
    found, _ = from_picture(path, FIRST, "freeu_tiny.yaml") if parameters.strip() else (FIRST, [])
    assert found.freeu is not None


@pytest.mark.parametrize("unit", ["a", " ", "\t", 'a:"', 'a:",'])
def test_a_long_webui_text_keeps_nobody_waiting(tmp_path: Path, unit: str):
    text = unit * (200_000 // len(unit))
    path = webui_picture(tmp_path / "a.png", f"a cat\nSteps: 9, {text}!, Seed: 7", packed=True)
    began = time.process_time()
    found, _ = from_picture(path, FIRST, "freeu_tiny.yaml")
    # Where time grows with the square of the length it takes many minutes.
    assert time.process_time() - began < 5
    assert found.steps == 9


def blank(path: Path, mode: str = "RGB", side: int = 8, kind: str = "PNG") -> None:
    Image.new(mode, (side, side)).save(path, kind)


def cut_off(path: Path) -> None:
    whole = webui_picture(path, "a cat\nSteps: 2").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


BAD = {
    "text": lambda path: path.write_bytes(b"hello"),
    "empty": lambda path: path.write_bytes(b""),
    "html": lambda path: path.write_bytes(b"<html></html>"),
    "cut off": cut_off,
    "bare": blank,
    "jpeg": partial(blank, kind="JPEG"),
    "huge": partial(blank, mode="1", side=30000),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_one_sentence(tmp_path: Path, name: str):
    path = tmp_path / f"{name}.png"
    BAD[name](path)
    with pytest.raises(InputError) as caught:
        from_picture(path, FIRST, "freeu_tiny.yaml")
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_damaged_record_gives_what_of_it_means_something(tmp_path: Path):
    record = {"seed": "x", "steps": 9, "freeu": {"b1": [], "b2": 1.3}, "config": 5}
    found, notes = from_picture(recorded_picture(tmp_path / "a.png", record), FIRST, "freeu_tiny.yaml")
    assert (found.seed, found.steps, found.b1, found.b2) == (42, 9, 1.1, 1.3)
    assert len(notes) == 3


@pytest.mark.parametrize("sampler", [["ddim"], {"a": 1}, None])
def test_a_sampler_that_is_no_text_is_told_of(tmp_path: Path, sampler: object):
    record = {"sampler": sampler, "config": "freeu_tiny.yaml", "freeu": {}}
    found, [note] = from_picture(recorded_picture(tmp_path / "a.png", record), FIRST, "freeu_tiny.yaml")
    assert found == FIRST and "There is no sampler" in note


def test_a_pair_on_disk_gives_back_its_settings(studio: Studio):
    chosen = replace(studio.defaults(), steps=2, height=32, width=32, seed=11, b1=1.4, stop=0.5)
    import threading

    *_, pair = studio.pairs(chosen, threading.Event())
    assert from_picture(pair.files["freeu"], studio.defaults(), "freeu_tiny.yaml") == (chosen, [])
