"""The published functions on a diffusers pipeline: the snippet as published, and what it may not do."""

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

from ldm.free_lunch_utils import (
    Fourier_filter,
    register_crossattn_upblock2d,
    register_free_crossattn_upblock2d,
    register_free_upblock2d,
    register_upblock2d,
)
from ldm.freeu import FreeUSettings
from ldm.freeu.diffusers import disable, enable
from tests.conftest import relative_error, rnd
from tests.freeu.test_operator import published_filter
from tests.freeu.unets import inputs, kandinsky2, published_free_u, run, sd1, sdxl

FACTORS = {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2}


@pytest.fixture
def pipe():
    return StableDiffusionPipeline(
        vae=AutoencoderKL(),
        text_encoder=None,
        tokenizer=None,
        unet=sd1(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def output(pipe):
    return run(pipe.unet, inputs(pipe.unet))


def test_the_published_snippet_is_the_published_free_u(pipe):
    with published_free_u(pipe.unet, FreeUSettings(**FACTORS)):
        expected = output(pipe)
    register_free_upblock2d(pipe, b1=1.2, b2=1.4, s1=0.9, s2=0.2)
    register_free_crossattn_upblock2d(pipe, b1=1.2, b2=1.4, s1=0.9, s2=0.2)
    assert relative_error(output(pipe), expected) < 1e-5


def test_the_defaults_are_the_published_factors(pipe):
    register_free_upblock2d(pipe)
    register_free_crossattn_upblock2d(pipe)
    out = output(pipe)
    with enable(pipe, **FACTORS):
        assert torch.equal(output(pipe), out)


def test_the_two_are_independent(pipe):
    without = output(pipe)
    register_free_upblock2d(pipe)
    first = output(pipe)
    register_free_crossattn_upblock2d(pipe)
    both = output(pipe)
    register_free_upblock2d(pipe, b1=1, b2=1, s1=1, s2=1)
    second = output(pipe)
    register_free_crossattn_upblock2d(pipe, b1=1, b2=1, s1=1, s2=1)
    neither = output(pipe)
    assert torch.equal(neither, without)
    outputs = [without, first, second, both]
    assert all(relative_error(a, b) > 1e-3 for i, a in enumerate(outputs) for b in outputs[:i])


def test_called_again_they_change_the_factors(pipe):
    register_free_upblock2d(pipe)
    register_free_crossattn_upblock2d(pipe)
    other = {"b1": 1.1, "b2": 1.3, "s1": 0.0, "s2": 0.5}
    register_free_upblock2d(pipe, **other)
    register_free_crossattn_upblock2d(pipe, **other)
    out = output(pipe)
    with enable(pipe, **other):
        assert torch.equal(output(pipe), out)


def test_disable_takes_them_out(pipe):
    without = output(pipe)
    register_free_upblock2d(pipe)
    register_free_crossattn_upblock2d(pipe)
    disable(pipe)
    assert torch.equal(output(pipe), without)


def test_the_published_ways_back_take_out_one_each(pipe):
    without = output(pipe)
    register_free_crossattn_upblock2d(pipe)
    second = output(pipe)
    register_free_upblock2d(pipe)
    register_upblock2d(pipe)
    assert torch.equal(output(pipe), second)
    register_crossattn_upblock2d(pipe)
    assert torch.equal(output(pipe), without)


def test_the_published_filter_is_there_by_its_name():
    x = rnd(1, 2, 3, 7, 8)
    assert relative_error(Fourier_filter(x, threshold=1, scale=0.2), published_filter(x, 1, 0.2)) < 1e-6


def test_they_warn_where_they_meet_no_block():
    with pytest.warns(
        UserWarning, match="no UpBlock2D: this U-Net's blocks are ResnetUpsampleBlock2D, Simple"
    ):
        register_free_upblock2d(kandinsky2())
    narrow = sdxl()
    narrow.up_blocks = narrow.up_blocks[2:]
    with pytest.warns(UserWarning, match=r"no UpBlock2D\. .* 32 and 16 channels, this U-Net has \[8\]"):
        register_free_upblock2d(narrow)


def test_factors_that_mean_nothing_are_refused(pipe):
    with pytest.raises(ValueError, match="s1 is nan"):
        register_free_upblock2d(pipe, s1=float("nan"))


def test_they_do_not_act_on_top_of_diffusers_own(pipe):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    for register in (register_free_upblock2d, register_free_crossattn_upblock2d):
        with pytest.raises(ValueError, match="diffusers' own FreeU is on"):
            register(pipe)
    pipe.disable_freeu()
    register_free_upblock2d(pipe)
