"""FreeU's factors: what is refused, what is published, and which decoder blocks they meet."""

import json
import re
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch

from ldm.config.freeu import FREE_UNET, FREEU
from ldm.errors import InputError
from ldm.freeu import PRESETS, DecoderStage, FreeUSettings
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel, UNetModel
from ldm.util import instantiate_from_config
from tests.conftest import DATA

CONFIGS = json.loads((DATA / "sd-configs.json").read_text())
SD14 = FreeUSettings(1.2, 1.4, 0.9, 0.2)
ONE = (1.0, 1.0)


@pytest.fixture(scope="module", params=["sd-v1", "sd-v2"])
def stable_diffusion(request):
    """The U-Net of Stable Diffusion without its weights."""
    with torch.device("meta"):
        return UNetModel(**CONFIGS[request.param]["UNetModel"])


@pytest.mark.parametrize("name", ["b1", "b2", "s1", "s2"])
@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), -0.1, "1.2", None, True, 1j, [1.2]]
)
def test_a_factor_that_means_nothing_is_named(name, value):
    factors = {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2, name: value}
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}")):
        FreeUSettings(**factors)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("version", value) for value in (0, 3, "2", None, True, 1.0)),
        *(("threshold", value) for value in (0, -1, 1.5, "1", None, True)),
        *(("match", value) for value in ("width", "", None)),
        *(("strength", value) for value in (-0.1, 1.1, "1", None, float("nan"))),
    ],
)
def test_another_setting_that_means_nothing_is_named(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}")):
        FreeUSettings(1.2, 1.4, 0.9, 0.2, **{name: value})


@pytest.mark.parametrize("channels", ["third", "", None, 1.5, -0.1, True, float("nan")])
def test_channels_that_mean_nothing_are_named(channels):
    with pytest.raises(ValueError, match=re.escape(f"channels are {channels!r}")):
        FreeUSettings(1.2, 1.4, 0.9, 0.2, channels=channels)


@pytest.mark.parametrize(
    "stages",
    [3, "320", {320: 1.1}, {320: [1.1]}, {320: [1, 1, 1]}, {"wide": [1, 1]}, {float("inf"): [1, 1]}],
)
def test_stages_that_are_no_pairs_by_width_are_shown_how(stages):
    with pytest.raises(ValueError, match=r"stages are .*\{320: \[1.1, 0.9\]\}"):
        FreeUSettings(1.2, 1.4, 0.9, 0.2, stages=stages)


def test_a_factor_of_a_stage_that_means_nothing_is_named():
    with pytest.raises(ValueError, match="s of stage 320 is -1"):
        FreeUSettings(1.2, 1.4, 0.9, 0.2, stages={320: [1.1, -1]})


def test_zero_whole_numbers_and_large_factors_are_allowed():
    assert FreeUSettings(0, 5, 0, 3) == FreeUSettings(0.0, 5.0, 0.0, 3.0)


def test_numbers_of_numpy_are_taken_as_pythons():
    b, s = np.linspace(1, 1.5, 2), np.float32(0.5)
    made = FreeUSettings(b[0], b[1], s, np.int64(0), strength=s, stages={320: (b[1], s)})
    assert made == FreeUSettings(1.0, 1.5, 0.5, 0, strength=0.5, stages={320: (1.5, 0.5)})
    assert json.loads(json.dumps(asdict(made)))["s1"] == 0.5


def test_configs_know_every_setting():
    assert tuple(field.name for field in fields(FreeUSettings)) == FREEU


def test_presets_are_the_published_table():
    table = {
        "sd14": [(1.2, 1.4, 0.9, 0.2), (1.3, 1.4, 0.9, 0.2)],
        "sd15": [(1.2, 1.4, 0.9, 0.2), (1.5, 1.6, 0.9, 0.2)],
        "sd21": [(1.1, 1.2, 0.9, 0.2), (1.4, 1.6, 0.9, 0.2)],
        "sdxl": [(1.1, 1.2, 0.6, 0.4), (1.3, 1.4, 0.9, 0.2)],
    }
    assert {
        (model, version): FreeUSettings(*factors, version=version)
        for model, versions in table.items()
        for version, factors in enumerate(versions, start=1)
    } == PRESETS


def test_stable_diffusion_by_channels(stable_diffusion):
    factors = SD14.factors(stable_diffusion.decoder_stages, stable_diffusion.model_channels)
    assert factors == 7 * [(1.2, 0.9)] + 3 * [(1.4, 0.2)] + 2 * [ONE]


def test_stable_diffusion_by_resolution(stable_diffusion):
    settings = FreeUSettings(1.2, 1.4, 0.9, 0.2, match="resolution")
    factors = settings.factors(stable_diffusion.decoder_stages, stable_diffusion.model_channels)
    assert factors == 3 * [(1.2, 0.9)] + 3 * [(1.4, 0.2)] + 6 * [ONE]


def test_any_stage_can_have_factors_of_its_own(stable_diffusion):
    stages, base = stable_diffusion.decoder_stages, stable_diffusion.model_channels
    by_width = FreeUSettings(1.2, 1.4, 0.9, 0.2, stages={320: (1.1, 0.5), 640: (1, 2)}, strength=0.5)
    assert by_width.factors(stages, base) == 7 * [(1.1, 0.95)] + 3 * [(1.0, 1.5)] + 2 * [(1.05, 0.75)]
    by_level = FreeUSettings(1.2, 1.4, 0.9, 0.2, stages={1: (1.1, 0.5)}, match="resolution")
    assert by_level.factors(stages, base) == (
        3 * [(1.2, 0.9)] + 3 * [(1.4, 0.2)] + 3 * [ONE] + 3 * [(1.1, 0.5)]
    )
    with pytest.raises(ValueError, match=r"stages name \[32\], this U-Net has \[320, 640, 1280\]"):
        FreeUSettings(1.2, 1.4, 0.9, 0.2, stages={32: (1.1, 0.5)}).factors(stages, base)


def test_stages_read_from_json_are_those_written():
    settings = FreeUSettings(1.2, 1.4, 0.9, 0.2, stages={320: [1.1, 0.5]})
    assert FreeUSettings(**json.loads(json.dumps(asdict(settings)))) == settings


def test_one_resolution_gets_the_first_factors():
    settings = FreeUSettings(1.2, 1.4, 0.9, 0.2, match="resolution")
    assert settings.factors(2 * [DecoderStage(32, 32, 1)], 32) == 2 * [(1.2, 0.9)]


def test_a_unet_without_such_widths_is_told_the_widths_it_has():
    shape = {
        "image_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "channel_mult": (1, 1),
        "num_heads": 1,
    }
    with torch.device("meta"):
        with pytest.raises(
            ValueError, match=r"128 and 64 channels, this U-Net has \[32\].*match: resolution"
        ):
            Free_UNetModel(1.2, 1.4, 0.9, 0.2, **shape)
        by_resolution = Free_UNetModel(1.2, 1.4, 0.9, 0.2, match="resolution", **shape)
        with pytest.raises(InputError, match=r"this U-Net has \[32\]"):
            instantiate_from_config(
                {"target": FREE_UNET, "params": dict(b1=1.2, b2=1.4, s1=0.9, s2=0.2, **shape)}
            )
    assert by_resolution.hit_blocks() == {0: (1.2, 0.9), 1: (1.2, 0.9), 2: (1.4, 0.2), 3: (1.4, 0.2)}


def test_settings_that_do_not_fit_leave_the_old_ones_in_force():
    with torch.device("meta"):
        unet = Free_UNetModel(
            1.2, 1.4, 0.9, 0.2, 8, 4, 32, 4, 1, [], channel_mult=(1, 1), num_heads=1, match="resolution"
        )
    before = unet.freeu, unet.factors
    with pytest.raises(ValueError, match="meets no decoder block"):
        unet.freeu = SD14
    assert (unet.freeu, unet.factors) == before


def test_factors_outside_the_published_ranges_are_told():
    assert FreeUSettings(1.25, 1.1, 1.5, 0.0).outside_published_range() == [
        "b1 = 1.25 is outside the published range 1 to 1.2",
        "b2 = 1.1 is outside the published range 1.2 to 1.6",
        "s1 = 1.5 is outside the published range 0 to 1",
    ]


@pytest.mark.parametrize("settings", [*PRESETS.values(), SD14.off()], ids=str)
def test_nothing_is_told_of_published_factors_nor_of_ones(settings):
    assert settings.outside_published_range() == settings.of_the_other_version() == []


def test_factors_published_for_the_other_version_are_told_with_those_for_this_one():
    told = "FreeU's factors are those published for version {}; for version {} they are {}"
    sd15 = replace(PRESETS["sd15", 2], version=1)
    assert sd15.of_the_other_version() == [told.format(2, 1, "1.2 1.4 0.9 0.2 (sd15)")]
    sd21 = replace(PRESETS["sd21", 1], version=2, strength=0.5)
    assert sd21.of_the_other_version() == [told.format(1, 2, "1.4 1.6 0.9 0.2 (sd21)")]
    assert replace(sd21, b1=1.11).of_the_other_version() == []


def test_off_keeps_everything_but_the_factors():
    kept = {"version": 2, "threshold": 3, "match": "resolution"}
    off = FreeUSettings(1.2, 1.4, 0.9, 0.2, stages={1: (1.1, 0.5)}, **kept).off()
    assert off == FreeUSettings(1.0, 1.0, 1.0, 1.0, **kept)
