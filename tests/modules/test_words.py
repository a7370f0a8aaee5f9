"""The embedded model's text encoder: what becomes of a prompt."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.config.reading import load_config
from ldm.modules.encoders.words import END, PAD, START, WordEmbedder
from tests.conftest import relative_error

WORDS = ("a", "red", "circle", "left", "of", "blue", "star")  # ids 3 to 9


@pytest.fixture(scope="module")
def embedder():
    torch.manual_seed(0)
    synonyms = {"an": "a", "disc": "circle"}
    return WordEmbedder(WORDS, max_length=8, width=32, heads=4, layers=2, synonyms=synonyms).eval()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [START, END]),
        ("a red circle", [START, 3, 4, 5, END]),
        ("  A RED,\ncircle!", [START, 3, 4, 5, END]),
        ("a left-of star", [START, 3, 6, 7, 9, END]),
        ("an red disc", [START, 3, 4, 5, END]),
        ("a shiny red dragon", [START, 3, 4, END]),
        ("a red circle left of a blue star", [START, 3, 4, 5, 6, 7, 3, END]),
    ],
)
def test_known_words_stand_between_start_and_end_and_padding_fills_the_rest(embedder, text, ids):
    assert embedder.tokenize(text).tolist() == [ids + [PAD] * (8 - len(ids))]


@given(st.lists(st.sampled_from([*WORDS, "dragon", "é", "42"]), max_size=12))
def test_every_word_is_read_unknown_or_cut_off(embedder, words):
    text = " ".join(words)
    known = [word for word in words if word in WORDS]
    read = [WORDS[i - 3] for i in embedder.tokenize(text)[0].tolist() if i > END]
    assert read + embedder.truncated(text).split() == known
    assert embedder.unknown(text) == [word for word in words if word not in WORDS]


def test_several_texts_are_embedded_as_each_alone(embedder):
    texts = ["a red circle", "", "blue star left of a circle"]
    together = embedder(texts)
    assert together.shape == (3, 8, 32)
    assert relative_error(together, torch.cat([embedder(text) for text in texts])) < 1e-6


def test_order_and_every_word_matter_and_unknown_words_do_not(embedder):
    contexts = [embedder(text) for text in ("red circle", "circle red", "blue circle", "red circle star", "")]
    for i, one in enumerate(contexts):
        for other in contexts[:i]:
            assert relative_error(one, other) > 1e-2
    assert torch.equal(embedder("the red shiny circle"), contexts[0])


def test_every_word_is_told_of_those_behind_it(embedder):
    one, other = embedder("red circle left"), embedder("red circle blue")
    for position in range(4):
        assert relative_error(one[:, position], other[:, position]) > 1e-3


def test_half_precision_stays_near(embedder):
    half = WordEmbedder(WORDS, max_length=8, width=32, heads=4, layers=2).eval()
    half.load_state_dict(embedder.state_dict())
    out = half.bfloat16()("a red circle")
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), embedder("a red circle")) < 0.03


def test_the_embedded_models_words_are_each_given_once():
    words = load_config("tiny").model.params.cond_stage_config.params["words"]
    assert all(isinstance(word, str) for word in words)
    assert len(set(words)) == len(words)
