"""The embedded model's scenes: what may occur in them, that captions are true, and that pixels match them."""

import errno
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from ldm.config.reading import load_config
from ldm.data.datasets import SceneLatents, ScenePictures, picture_tensor
from ldm.data.render import PALETTE, POLYGONS, polygon_distance, render, shade_of, shape_distance
from ldm.data.scenes import COLOURS, HELD_OUT, RELATIONS, SHAPES, SIZES, TEXTURES, Thing, describe, draw_scene
from ldm.errors import InputError
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.encoders.words import split

SCENES = [draw_scene(default_rng(seed)) for seed in range(2000)]
UNSEEN = [draw_scene(default_rng(seed), held_out=True) for seed in range(500)]
FEW = {"count": 2, "side": 32, "seed": 7, "unconditional": 0.0}


@pytest.fixture
def autoencoder():
    params = load_config("tiny").model.params.first_stage_config.params
    torch.manual_seed(0)
    return AutoencoderKL(**params).eval()


def positions(side):
    """x and y of a picture's pixels, (side, side) each."""
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    return np.meshgrid(centres, centres)


def pairs(scenes):
    return {(thing.shape, thing.colour) for scene in scenes for thing in scene.things}


def test_held_out_pairs_are_never_shown_and_all_others_are():
    assert {shape for shape, _ in HELD_OUT} == set(SHAPES)
    assert {colour for _, colour in HELD_OUT} == set(COLOURS)
    assert pairs(SCENES) == {(shape, colour) for shape in SHAPES for colour in COLOURS} - HELD_OUT
    assert pairs(UNSEEN) == HELD_OUT


def test_everything_occurs():
    things = [thing for scene in SCENES for thing in scene.things]
    assert {thing.texture for thing in things} == set(TEXTURES) == {s.background_texture for s in SCENES}
    assert {thing.size for thing in things} == set(SIZES)
    assert {scene.background for scene in SCENES} == set(COLOURS)
    assert {scene.relation for scene in SCENES} == {*RELATIONS, None}
    two = sum(len(scene.things) == 2 for scene in SCENES) / len(SCENES)
    assert two == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("scenes", [SCENES, UNSEEN], ids=["shown", "held out"])
def test_no_two_colours_of_a_scene_are_alike(scenes):
    for scene in scenes:
        colours = [scene.background, *(thing.colour for thing in scene.things)]
        assert len(set(colours)) == len(colours)


@pytest.mark.parametrize("scenes", [SCENES, UNSEEN], ids=["shown", "held out"])
def test_relations_are_true_of_the_places(scenes):
    for scene in scenes:
        assert (scene.relation is None) == (len(scene.things) == 1)
        if scene.relation is not None:
            first, second = scene.things
            axis, sign = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}[
                scene.relation
            ]
            distance = sign * (getattr(second, axis) - getattr(first, axis))
            assert distance > first.radius + second.radius


def test_things_lie_inside_the_picture_and_do_not_touch():
    x, y = positions(96)
    border = np.ones((96, 96), bool)
    border[1:-1, 1:-1] = False
    for scene in SCENES[:400] + UNSEEN[:100]:
        inside = [shape_distance(thing, x, y) < 0 for thing in scene.things]
        assert not (sum(map(np.int64, inside)) > 1).any(), scene
        assert not (np.logical_or.reduce(inside) & border).any(), scene
        assert all(mask.any() for mask in inside)


def test_a_seed_gives_one_scene_one_caption_and_one_picture():
    again = draw_scene(default_rng(5))
    assert again == SCENES[5]
    assert describe(again, default_rng(1)) == describe(SCENES[5], default_rng(1))
    assert np.array_equal(render(again, 64), render(SCENES[5], 64))


SIZE, COLOUR, SHAPE, RELATION = map("|".join, (SIZES, COLOURS, SHAPES, RELATIONS))
TEXTURE = "|".join(TEXTURES[1:])  # plain has no word
ARTICLE = "(?:an? )?"
THING = rf"{ARTICLE}(?:(?:{SIZE}) )?({COLOUR}) (?:({TEXTURE}) )?({SHAPE})"
BACKGROUND = rf"{ARTICLE}(?:({TEXTURE}) )?({COLOUR}) background"
CAPTION = re.compile(rf"{THING}(?: ({RELATION}) {THING})?(?: on {BACKGROUND})?")


def test_an_stands_before_vowels_and_a_before_everything_else():
    for scene in SCENES:
        for article, word in re.findall(r"\b(an?) (\w+)", describe(scene)):
            assert (article == "an") == (word == "orange")


@pytest.mark.parametrize("reworded", [False, True])
def test_captions_keep_to_the_grammar_and_tell_what_is_there(reworded):
    for i, scene in enumerate(SCENES):
        caption = describe(scene, default_rng(i) if reworded else None)
        match = CAPTION.fullmatch(caption)
        assert match, caption
        told = [word for word in match.groups()[:7] if word not in (None, *RELATIONS)]
        first, *second = scene.things
        there = [
            word
            for thing in (first, *second)
            for word in (thing.colour, thing.texture, thing.shape)
            if word != "plain"
        ]
        assert told == there
        assert match[4] == scene.relation
        assert match[9] == scene.background or (reworded and match[9] is None)
        if not reworded:
            assert len(re.findall(r"\ban?\b", caption)) == len(scene.things) + 1
            assert [word for word in caption.split() if word in SIZES] == [
                thing.size for thing in scene.things
            ]


def test_captions_leave_out_sizes_and_background_at_times():
    captions = [describe(scene, default_rng(i)) for i, scene in enumerate(SCENES)]
    assert sum("background" in caption for caption in captions) / len(captions) == pytest.approx(
        0.85, abs=0.05
    )
    sizes = sum(word in SIZES for caption in captions for word in caption.split())
    assert sizes / sum(len(scene.things) for scene in SCENES) == pytest.approx(0.7, abs=0.05)


def test_the_embedded_model_knows_every_word():
    encoder = load_config("tiny").model.params.cond_stage_config.params
    known = {*encoder["words"], *encoder["synonyms"]}
    assert {word for scene in SCENES + UNSEEN for word in split(describe(scene))} <= known


def test_a_pictures_size_changes_only_its_sharpness():
    differences = []
    for scene in SCENES[:60]:
        small, large = render(scene, 64), render(scene, 128)
        assert (small.shape, large.shape) == ((64, 64, 3), (128, 128, 3))
        differences.append(np.abs(small - large.reshape(64, 2, 64, 2, 3).mean((1, 3))).mean())
    assert max(differences) < 6  # of 255; two scenes differ by 80
    assert np.mean(differences) < 1.5


@pytest.mark.parametrize("textured", [False, True])
def test_things_and_background_have_the_colours_they_are_said_to_have(textured):
    x, y = positions(128)
    seen = 0
    for scene in SCENES[:150]:
        picture = render(scene, 128).astype(float)
        distances = [shape_distance(thing, x, y) for thing in scene.things]
        surfaces = [
            (thing.colour, thing.texture, d < -0.025)
            for thing, d in zip(scene.things, distances, strict=True)
        ]
        surfaces.append((scene.background, scene.background_texture, np.minimum.reduce(distances) > 0.06))
        for colour, texture, where in surfaces:
            if (texture != "plain") == textured and where.sum() > 100:
                shades = np.float64([PALETTE[colour], 255 * shade_of(np.float32(PALETTE[colour]) / 255)])
                pixels = picture[where]  # (pixels, 3)
                nearest = np.abs(pixels[:, None] - shades[: 1 + textured]).max(-1).min(-1)
                assert np.median(nearest) < 30, (scene, colour)
                seen += 1
    assert seen > 50


def brute_distance(point, corners):
    """Signed distance: to the nearest of many points of the outline, negative where it winds around."""
    ends = np.roll(corners, -1, axis=0)
    steps = np.linspace(0, 1, 400)[:, None, None]
    outline = corners + steps * (ends - corners)
    a, b = corners - point, ends - point
    turns = np.arctan2(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], (a * b).sum(1)).sum() / (2 * np.pi)
    return np.hypot(*np.moveaxis(outline - point, -1, 0)).min() * (-1 if round(turns) else 1)


@given(shape=st.sampled_from(sorted(POLYGONS)), x=st.floats(-1.5, 1.5), y=st.floats(-1.5, 1.5))
def test_distance_to_a_polygon_is_the_brute_one(shape, x, y):
    corners = POLYGONS[shape]
    distance = polygon_distance(np.float32([[x]]), np.float32([[y]]), corners)[0, 0]
    brute = brute_distance(np.float32([x, y]), corners.astype(np.float64))
    assert abs(distance) == pytest.approx(abs(brute), abs=5e-3)
    assert abs(brute) < 5e-3 or np.sign(distance) == np.sign(brute)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tilt_turns_the_shape_about_its_centre(shape):
    x, y = positions(48)
    upright = Thing(shape, "red", "plain", "large", x=0.4, y=0.6, radius=0.2, angle=0.0)
    c, s = np.cos(0.5), np.sin(0.5)
    turned_x, turned_y = 0.4 + c * (x - 0.4) - s * (y - 0.6), 0.6 + s * (x - 0.4) + c * (y - 0.6)
    turned = shape_distance(
        replace(upright, angle=0.5), turned_x.astype(np.float32), turned_y.astype(np.float32)
    )
    np.testing.assert_allclose(turned, shape_distance(upright, x, y), atol=1e-5)


def test_pictures_come_as_tensors_whole_or_cropped():
    assert picture_tensor(np.uint8([[[0, 255, 51]]])).flatten().tolist() == pytest.approx([-1, 1, -0.6])
    whole, cropped = ScenePictures(3, side=64, seed=7), ScenePictures(3, side=64, crop=24, seed=7)
    picture = picture_tensor(render(draw_scene(default_rng((7, 2))), 64))
    assert len(whole) == 3
    assert torch.equal(whole[2], picture)
    crops = picture.unfold(1, 24, 1).unfold(2, 24, 1).permute(1, 2, 0, 3, 4)
    assert (crops == cropped[2]).flatten(2).all(-1).any()


def test_latents_are_encoded_once_and_carry_true_captions(autoencoder, tmp_path):
    cache = tmp_path / "latents.npy"
    latents = SceneLatents(cache, autoencoder, count=3, side=64, seed=7, unconditional=0.0)
    latent, caption, weight = latents[1]
    mean = autoencoder.encode(ScenePictures(3, 64, seed=7)[1][None]).mode()[0]
    assert torch.allclose(latent, mean, rtol=1e-2, atol=1e-3)
    scene = draw_scene(default_rng((7, 1)))
    assert all(thing.shape in caption and thing.colour in caption for thing in scene.things)
    assert [weight[0, int(8 * thing.y), int(8 * thing.x)] for thing in scene.things] == [6.0] * len(
        scene.things
    )
    assert weight.shape == (1, 8, 8) and weight.min() == 1

    written = cache.stat().st_mtime_ns
    silent = SceneLatents(cache, autoencoder, count=3, side=64, seed=7, unconditional=1.0)
    assert cache.stat().st_mtime_ns == written
    assert [silent[i][1] for i in range(3)] == ["", "", ""]


@pytest.mark.parametrize("name, value", [("count", 3), ("side", 64), ("seed", 8)])
def test_latents_of_other_scenes_are_refused_and_kept(name, value, autoencoder, tmp_path):
    cache = tmp_path / "latents.npy"
    SceneLatents(cache, autoencoder, **FEW)
    written = cache.read_bytes()
    with pytest.raises(
        InputError, match=rf"latents.npy holds .*\({name} {FEW[name]}, not {value}\): remove it"
    ):
        SceneLatents(cache, autoencoder, **FEW | {name: value})
    assert cache.read_bytes() == written


@pytest.mark.parametrize("name", ["encoder.conv_in", "quant_conv"])
def test_latents_of_another_encoder_are_refused(name, autoencoder, tmp_path):
    SceneLatents(tmp_path / "latents.npy", autoencoder, **FEW)
    torch.nn.init.zeros_(autoencoder.get_submodule(name).bias)
    with pytest.raises(
        InputError, match=r"latents.npy holds other latents .*\(encoder \w+, not \w+\): remove it"
    ):
        SceneLatents(tmp_path / "latents.npy", autoencoder, **FEW)


def test_latents_serve_another_decoder_and_the_same_encoder_in_half_precision(autoencoder, tmp_path):
    made = SceneLatents(tmp_path / "latents.npy", autoencoder, **FEW)
    torch.nn.init.zeros_(autoencoder.decoder.conv_out.weight)
    held = SceneLatents(tmp_path / "latents.npy", autoencoder.half().float(), **FEW)
    assert np.array_equal(held.latents, made.latents)


def test_latents_that_were_cut_off_or_have_no_note_are_refused_plainly(autoencoder, tmp_path):
    SceneLatents(tmp_path / "whole.npy", autoencoder, **FEW)
    whole = (tmp_path / "whole.npy").read_bytes()
    np.save(tmp_path / "plain.npy", np.load(tmp_path / "whole.npy"))
    for length in (0, 40, 200, len(whole) - 1):
        (tmp_path / f"{length}.npy").write_bytes(whole[:length])
    for name in ("0.npy", "40.npy", "200.npy", f"{len(whole) - 1}.npy", "plain.npy"):
        with pytest.raises(InputError, match=f"{name} was cut off, or .*: remove it"):
            SceneLatents(tmp_path / name, autoencoder, **FEW)


def test_latents_appear_only_when_all_of_them_are_on_disk(autoencoder, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"latents.npy cannot be written: No space left on device"):
        SceneLatents(tmp_path / "latents.npy", autoencoder, **FEW)
    assert not list(tmp_path.iterdir())


def test_latents_go_to_any_name_in_a_folder_made_for_them(autoencoder, tmp_path):
    cache = tmp_path / "new" / "folder" / "latents"
    made = SceneLatents(cache, autoencoder, **FEW | {"count": 18})
    assert [path.name for path in cache.parent.iterdir()] == ["latents"]
    assert made.latents.shape == (18, 12, 4, 4)
    mean = autoencoder.encode(ScenePictures(18, 32, seed=7)[17][None]).mode()[0]
    assert torch.allclose(made[17][0], mean, rtol=1e-2, atol=1e-3)


def test_where_no_latents_can_be_written_none_are_encoded(autoencoder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(autoencoder, "encode", lambda _: pytest.fail("encoded"))
    with pytest.raises(InputError, match="Nothing can be written into"):
        SceneLatents(tmp_path / "file" / "latents.npy", autoencoder, **FEW)
    with pytest.raises(InputError, match="cannot be read"):
        SceneLatents(tmp_path, autoencoder, **FEW)


def test_latents_are_encoded_without_dropout(tmp_path):
    params = load_config("tiny", ["model.params.first_stage_config.params.ddconfig.dropout=0.5"])
    network = AutoencoderKL(**params.model.params.first_stage_config.params)
    one, other = (SceneLatents(tmp_path / name, network, **FEW).latents for name in ("one", "other"))
    assert np.array_equal(one, other)
