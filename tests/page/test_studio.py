"""What the page draws, against txt2img; and what it keeps."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from ldm.config.reading import load_config
from ldm.errors import InputError
from ldm.freeu import PRESETS
from ldm.image_io import read_record
from ldm.page.controls import factor_controls, picture_controls
from ldm.page.pair import Previews, Progress
from ldm.page.presets import AUTHORS, OWN, choices, factors, named
from ldm.page.settings import Limits, Settings
from ldm.page.stage import finished
from ldm.page.studio import Pair, Studio
from ldm.txt2img.recipe import read_recipe
from tests.page.conftest import demo_arguments


@pytest.fixture
def small(studio: Studio) -> Settings:
    return replace(studio.defaults(), steps=3, height=32, width=32, seed=8)


def drawn(studio: Studio, settings: Settings) -> list[Pair]:
    return [item for item in studio.pairs(settings, threading.Event()) if isinstance(item, Pair)]


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpm"])
def test_both_pictures_are_txt2imgs_to_the_bit(studio: Studio, small: Settings, txt2img, sampler: str):
    [pair] = drawn(studio, replace(small, sampler=sampler, b1=1.5, s2=0.1, negative_prompt="a ring"))
    for side in ("plain", "freeu"):
        # The picture's own record is all that txt2img needs.
        [again] = txt2img("--from-image", pair.files[side], defaults=["--device", "cpu"]).pictures()
        np.testing.assert_array_equal(pixels(pair.files[side]), pixels(again))
        assert again.read_bytes() == pair.files[side].read_bytes()
    assert (pixels(pair.files["plain"]) != pixels(pair.files["freeu"])).any()


def test_fresh_noise_is_txt2imgs_too(studio: Studio, small: Settings, txt2img):
    [pair] = drawn(studio, replace(small, eta=0.8))
    [again] = txt2img("--from-image", pair.files["freeu"], defaults=["--device", "cpu"]).pictures()
    np.testing.assert_array_equal(pixels(pair.files["freeu"]), pixels(again))


def test_every_factor_one_gives_the_plain_picture(studio: Studio, small: Settings):
    [pair] = drawn(studio, replace(small, b1=1.0, b2=1.0, s1=1.0, s2=1.0))
    np.testing.assert_array_equal(pixels(pair.files["plain"]), pixels(pair.files["freeu"]))
    assert read_recipe(pair.files["freeu"]).freeu is None


def test_several_pairs_take_seeds_that_count_on(studio: Studio, small: Settings):
    pairs = drawn(studio, replace(small, n_samples=3))
    assert [pair.settings.seed for pair in pairs] == [8, 9, 10]
    [alone] = drawn(studio, replace(small, seed=10))
    for side in ("plain", "freeu"):
        np.testing.assert_array_equal(pixels(pairs[2].files[side]), pixels(alone.files[side]))


def test_the_plain_picture_is_not_drawn_again_while_only_freeu_changes(
    studio: Studio, small: Settings, monkeypatch
):
    import ldm.page.pair

    runs: list[str] = []
    denoise = ldm.page.pair.denoise
    monkeypatch.setattr(ldm.page.pair, "denoise", lambda *args: runs.append("run") or denoise(*args))
    [first] = drawn(studio, replace(small, seed=1001))
    [second] = drawn(studio, replace(small, seed=1001, b1=1.7))
    assert len(runs) == 3
    np.testing.assert_array_equal(pixels(first.files["plain"]), pixels(second.files["plain"]))
    [other] = drawn(studio, replace(small, seed=1001, scale=4.0))
    assert len(runs) == 5
    assert (pixels(first.files["plain"]) != pixels(other.files["plain"])).any()


def test_a_pair_that_is_stopped_says_so_and_is_not_taken_for_the_plain_picture(
    studio: Studio, small: Settings
):
    stopping = threading.Event()
    items: Iterator = studio.pairs(replace(small, steps=10, seed=77, n_samples=2), stopping)
    assert isinstance(next(items), Progress)
    next(items)
    stopping.set()
    [pair] = [item for item in items if isinstance(item, Pair)]
    assert not pair.whole and pair.steps == 2
    with Image.open(pair.files["plain"]) as image:
        assert image.info["parameters"].endswith("Stopped after: 2 of 10")
    [whole] = drawn(studio, replace(small, steps=10, seed=77))
    assert whole.whole
    assert (pixels(whole.files["plain"]) != pixels(pair.files["plain"])).any()


def test_a_plain_picture_from_before_is_whole_though_freeus_is_stopped(studio: Studio, small: Settings):
    [whole] = drawn(studio, replace(small, seed=78))
    stopping = threading.Event()
    items: Iterator = studio.pairs(replace(small, seed=78, b1=1.6), stopping)
    next(items)
    stopping.set()
    [pair] = [item for item in items if isinstance(item, Pair)]
    assert not pair.whole and pair.steps == 1
    assert pair.files["plain"].read_bytes() == whole.files["plain"].read_bytes()
    assert read_record(pair.files["freeu"])["stopped_after"] == 1
    assert "this is how far the FreeU picture came" in finished(pair).message


def test_previews_take_no_more_than_their_share(studio: Studio, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("ldm.page.pair.time.monotonic", lambda: clock[0])

    def decode(*_):
        clock[0] += 3.0  # as long as three steps
        return [np.zeros((8, 8, 3), np.uint8)]

    monkeypatch.setattr("ldm.page.pair.decode", decode)
    from ldm.models.diffusion.sampling import Step

    previews, taken = Previews(studio.model), 0
    for index in range(100):
        clock[0] += 1.0
        taken += bool(previews.take({"freeu": Step(index, 100, 0.0, None, None)}))
    assert 3 <= taken <= 0.2 * 100 / 3 + 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 33}, "width of 33"),
        ({"width": 4096}, "width is 4096: this page takes 1 to 128"),
        ({"height": 4096}, "height is 4096: this page takes 1 to 128"),
        ({"steps": 201}, "steps is 201"),
        ({"n_samples": 5}, "number of pairs is 5"),
        ({"n_samples": 0}, "number of pairs is 0"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 2**63 - 2, "n_samples": 2}, "seed is 9223372036854775806"),
        ({"prompt": "a" * 3000}, "The prompt is longer than 2000"),
        ({"negative_prompt": "a" * 2001}, "The negative prompt is longer than 2000"),
        ({"scale": float("nan")}, "guidance scale"),
        ({"b1": -1.0}, "b1"),
        ({"start": 0.8, "stop": 0.2}, "after its stop"),
        ({"channels": "some"}, "channels"),
        ({"eta": 0.5, "sampler": "dpm"}, "eta"),
    ],
)
def test_what_is_too_much_or_means_nothing_is_named(
    studio: Studio, small: Settings, changes: dict, named: str
):
    with pytest.raises(InputError, match=named):
        studio.check(replace(small, **changes))


@pytest.mark.parametrize("limits", [Limits(steps=20), Limits(side=64), Limits(side=100, steps=1)])
def test_a_page_takes_its_own_defaults_under_any_limits(studio: Studio, monkeypatch, limits: Limits):
    before = studio.defaults()
    monkeypatch.setattr(studio, "limits", limits)
    first = studio.defaults()
    studio.check(first)
    assert first.steps == min(before.steps, limits.steps)
    assert first.width == first.height == min(before.width, limits.side // studio.multiple * studio.multiple)


def test_the_least_limits_leave_controls_that_are_fixed(studio: Studio, monkeypatch):
    least = {"side": studio.multiple, "steps": 1, "samples": 1}
    monkeypatch.setattr(studio, "limits", Limits(**least))
    first, controls = studio.defaults(), {}
    with gr.Blocks():
        picture_controls(studio, first, controls)
    for name in ("steps", "width", "height", "n_samples"):
        assert controls[name].value == getattr(first, name) == controls[name].minimum
        assert not controls[name].interactive


def test_settings_of_a_config_beyond_the_sliders_fit_into_them(tiny_checkpoint, tmp_path):
    arguments = demo_arguments(tmp_path, tiny_checkpoint)
    unet = "model.params.unet_config.params"
    beyond = [f"{unet}.b1=2.5", f"{unet}.s2=1.75", f"{unet}.threshold=11", "sampling.scale=0.5"]
    studio = Studio(arguments, load_config("freeu_tiny.yaml", beyond), Limits())
    first, controls = studio.defaults(), {}
    with gr.Blocks():
        factor_controls(first, controls, choices(arguments.config, studio.config_freeu))
        picture_controls(studio, first, controls)
    sliders = {name: part for name, part in controls.items() if isinstance(part, gr.Slider)}
    for name, slider in sliders.items():
        assert slider.minimum <= slider.value == getattr(first, name) <= slider.maximum
    assert (first.b1, first.s2, first.threshold, first.scale) == (2.5, 1.75, 11, 0.5)
    assert (sliders["b2"].maximum, sliders["s1"].maximum, sliders["scale"].maximum) == (2, 1.5, 20)


def test_notes_name_unknown_words_cut_ends_and_unusual_factors(studio: Studio, small: Settings):
    notes = studio.notes(replace(small, prompt="a red dragon " + "circle " * 40, b1=1.9))
    assert "dragon" in notes[0] and "leaves out" in notes[1] and "b1 = 1.9" in notes[2]


def test_a_plain_config_begins_with_every_factor_one(tiny_checkpoint, tmp_path, small: Settings):
    arguments = demo_arguments(tmp_path, tiny_checkpoint)
    arguments.config = "tiny.yaml"
    plain = Studio(arguments, load_config("tiny.yaml"), Limits())
    first = plain.defaults()
    assert (first.b1, first.b2, first.s1, first.s2) == (1, 1, 1, 1)
    [pair] = drawn(plain, replace(small, b1=1.3))
    assert (pixels(pair.files["plain"]) != pixels(pair.files["freeu"])).any()
    _, source = next(iter(choices("tiny.yaml", plain.config_freeu).values()))
    assert source == "tiny.yaml has none, so they are one"


def test_factors_are_named_after_the_preset_that_has_them_and_are_else_ones_own(studio: Studio):
    found = choices("freeu_tiny.yaml", studio.config_freeu)
    for name, (freeu, source) in found.items():
        assert named(name, factors(freeu), found) == (name, source)
    sd21 = factors(PRESETS["sd21", 2])
    assert named("This model (freeu_tiny)", sd21, found) == ("Stable Diffusion 2.1, version 2", AUTHORS)
    assert named(OWN, sd21, found)[0] == "Stable Diffusion 2.1, version 2"
    assert named("Stable Diffusion 2.1, version 2", (*sd21[:3], 0.21, 2), found)[0] == OWN


def test_every_preset_has_a_source_and_fits_the_model(studio: Studio):
    found = choices("freeu_tiny.yaml", studio.config_freeu)
    assert len(found) == len(PRESETS) + 1
    for preset, source in found.values():
        assert source and preset.factors(studio.unet.decoder_stages, studio.unet.model_channels)
