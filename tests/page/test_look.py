"""The look inside, against what the network computes when it is asked directly."""

import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.freeu.spectrum import relative_log_amplitude
from ldm.generate import denoise
from ldm.page import inside, svg
from ldm.page.look import Inside, look, moments_of
from ldm.page.settings import Settings
from ldm.page.studio import Pair, Studio
from ldm.study.record import recorded


@pytest.fixture(scope="module")
def settings(studio: Studio) -> Settings:
    return replace(studio.defaults(), steps=4, height=64, width=64, seed=8, b1=1.4, s2=0.2)


@pytest.fixture(scope="module")
def seen(studio: Studio, settings: Settings) -> Inside:
    *_, seen = look(studio, settings, threading.Event())
    return seen


def test_the_moments_go_from_the_first_step_to_the_last():
    assert moments_of(50) == [0, 7, 14, 21, 28, 35, 42, 49]
    assert moments_of(3) == [0, 1, 2]
    assert moments_of(1) == [0]


def test_maps_and_curves_are_those_of_a_run_alone(studio: Studio, settings: Settings, seen: Inside):
    studio.unet.freeu = studio.freeu(settings)
    told = {}
    run = denoise(studio.model, [settings.prompt], [""], [settings.seed], settings.sampling)
    with recorded(studio.model, lambda one: told.__setitem__(one.index, one.after.maps.clone()), guided=True):
        first = next(run)
    for block, stage in enumerate(studio.unet.decoder_stages):
        x, h = told[block][:, : stage.width], told[block][:, stage.width :]
        for kind, maps in {"backbone": x, "skip": h}.items():
            np.testing.assert_allclose(seen.maps["freeu", kind, 0, block], maps[0].mean(0), atol=1e-6)
            curve = relative_log_amplitude(maps)[0]
            np.testing.assert_allclose(seen.curves["freeu", kind, 0, block], curve, atol=1e-6)
    np.testing.assert_allclose(seen.latents["freeu", 0], relative_log_amplitude(first.x)[0], atol=1e-6)


def test_the_pictures_spectra_are_those_of_the_pair(studio: Studio, settings: Settings, seen: Inside):
    *_, pair = studio.pairs(settings, threading.Event())
    assert isinstance(pair, Pair)
    for side, path in pair.files.items():
        pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None]
        np.testing.assert_allclose(seen.pictures[side], relative_log_amplitude(pixels)[0], atol=1e-6)


def test_looking_changes_no_bit_of_later_pictures(studio: Studio, settings: Settings, seen: Inside):
    *_, pair = studio.pairs(replace(settings, seed=9), threading.Event())
    [*look(studio, settings, threading.Event())]
    studio._plain.clear()
    *_, again = studio.pairs(replace(settings, seed=9), threading.Event())
    assert all(pair.files[side].read_bytes() == again.files[side].read_bytes() for side in pair.files)


def test_a_look_that_is_stopped_shows_what_was_seen(studio: Studio, settings: Settings):
    stopping = threading.Event()
    stopping.set()
    *_, seen = look(studio, settings, stopping)
    assert seen.steps == [1]
    html = inside.markup(seen, moment=7, block=99)
    assert "step 1 of 4" in html and "The pictures, as far as they came" in html


def test_every_moment_and_block_can_be_shown(seen: Inside):
    for moment in range(4):
        for block in range(9):
            html = inside.markup(seen, moment, block)
            assert f"step {moment + 1} of 4" in html and html.count("<img") == 4
            assert "The finished pictures" in html
            assert "nan" not in html.lower().replace("nance", "")


def test_a_moment_or_a_block_out_of_range_shows_the_nearest(seen: Inside):
    last = len(seen.stages) - 1
    assert inside.markup(seen, None, None) == inside.markup(seen, -1, -5) == inside.markup(seen, 0, 0)
    assert inside.markup(seen, 99, 99.5) == inside.markup(seen, 3, last)


def test_the_names_of_curves_are_marked_with_their_own_dashes():
    x = np.linspace(0, 1, 3)
    drawing = svg.curves(dict.fromkeys("abcd", x), x, "", "", "", {})
    marks = re.findall(r'class="key"><svg.*?class="(line line\d)".*?</svg>(\w)</span>', drawing)
    curves = re.findall(r'<polyline class="(line line\d)".*?<title>(\w)</title>', drawing)
    assert marks == curves and len(marks) == 4


def test_shades_are_even_in_order():
    ramp = svg.shaded(np.linspace(0, 1, 50)[None], 0, 1)[0].astype(float)
    lightness = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-12.3, 0.4), (0.101, 0.102), (5, 5)])
def test_ticks_are_round_and_inside(low: float, high: float):
    ticks = svg.even_ticks(low, high)
    assert len(ticks) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
