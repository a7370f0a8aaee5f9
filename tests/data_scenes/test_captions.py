"""Captions for the text encoder: each word is told what it is about, and nothing else is."""

import pytest
import torch
from numpy.random import default_rng

from ldm.config.reading import load_config
from ldm.data.captions import FACTS, LONGEST, NO_FACT, WORDS, SceneCaptions, facts_of
from ldm.data.scenes import COLOURS, OPPOSITE, RELATIONS, SHAPES, TEXTURES, describe, draw_scene
from ldm.errors import InputError
from ldm.modules.encoders.words import START, WordEmbedder
from ldm.util import instantiate_from_config

CAPTIONS = SceneCaptions(300, length=24, seed=5)


def test_the_words_of_a_thing_are_told_of_that_thing():
    for i in range(len(CAPTIONS)):
        caption, facts = CAPTIONS[i]
        for word, (shape, colour, texture, _) in zip(caption.split(), facts[1:].tolist(), strict=False):
            if word in SHAPES:
                assert shape == SHAPES.index(word)
            if word == "background":
                assert shape == len(SHAPES)
            if word in COLOURS:
                assert colour == COLOURS.index(word)
            if word in TEXTURES:
                assert texture == TEXTURES.index(word)


def test_the_facts_stand_where_the_text_encoder_reads_the_words():
    encoder: WordEmbedder = instantiate_from_config(load_config("tiny").model.params.cond_stage_config)
    captions, facts = zip(*(CAPTIONS[i] for i in range(len(CAPTIONS))), strict=True)
    are_words = encoder.tokenize(list(captions)) > START + 1
    assert torch.equal(are_words, torch.stack(facts)[..., 0] != NO_FACT)
    assert torch.stack(facts).amax((0, 1)).tolist() == [count - 1 for count in FACTS]


def test_captions_are_made_of_the_words_that_a_text_encoder_has_to_know_and_of_no_others():
    captions = [describe(draw_scene(default_rng(seed))) for seed in range(500)]
    assert {word for caption in captions for word in caption.split()} == set(WORDS)


def test_the_second_things_place_is_opposite_to_the_firsts():
    scenes = [draw_scene(default_rng(seed)) for seed in range(200)]
    for scene in scenes:
        places = facts_of(scene)[:, 3].tolist()
        if scene.relation is None:
            assert places == [len(RELATIONS), len(RELATIONS) + 1]
        else:
            assert places[2:] == [len(RELATIONS) + 1]
            assert RELATIONS[places[0]] == scene.relation == OPPOSITE[RELATIONS[places[1]]]


def test_captions_are_those_of_the_drawn_scenes():
    for i in range(20):
        rng = default_rng((5, i))
        assert CAPTIONS[i][0] == describe(draw_scene(rng), rng)


def test_the_longest_caption_has_as_many_words_as_a_text_encoder_is_asked_for():
    scenes = [draw_scene(default_rng(seed)) for seed in range(2000)]
    assert max(len(describe(scene).split()) for scene in scenes) == LONGEST
    SceneCaptions(1, length=LONGEST + 2, seed=5)
    with pytest.raises(InputError, match=f"max_length is {LONGEST + 1}: give {LONGEST + 2} or more"):
        SceneCaptions(1, length=LONGEST + 1, seed=5)
