"""Token ids against transformers' CLIPTokenizer (SD 1.x) and OpenCLIP's own (SD 2.x)."""

import gzip
import json
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import bytes_to_unicode
from transformers import CLIPTokenizer

from ldm.errors import InputError
from ldm.modules.encoders.tokenizer import END, START, ClipTokenizer, open_clip_ids, transformers_ids

sd1 = ClipTokenizer(transformers_ids, padding=END)
sd2 = ClipTokenizer(open_clip_ids, padding=0)

PROMPTS = {
    "plain": "a photograph of an astronaut riding a horse",
    "punctuation": "a cat, a dog; (both: asleep)... isn't it?! #1 -- 'twas \"we've\" I'LL &_~^",
    "accents": "café à la crème, Ångström, naïve façade, Đà Nẵng, Łódź",
    "decomposed accents": "cafe\u0301 A\u030angstro\u0308m",
    "final sigma": "ΟΔΟΣ",
    "emoji": "🦄 a unicorn 👩‍🚀 and 🇫🇷 ❤️",
    "other scripts": "一只猫坐在桌子上 кошка на столе قطة على الطاولة ネコ",
    "curly quotes": "“quoted” it’s Ｆｕｌｌ ﬁsh",
    "wrongly decoded": "schÃ¶n",
    "entities": "salt &amp; pepper &lt;b&gt;",
    "empty": "",
    "blank": " \t ",
    "newlines": "a red circle\n\nleft of\r\na blue\tstar\n",
    "numbers": "1024x768 3.14159 ½ ² 2024-01-31 ٣",
    "mixed case": "A Photo Of A CAT, HDR, ISO400",
    "special tokens of transformers": "a<|startoftext|>b <|endoftext|> c <|ENDOFTEXT|>",
    "special tokens of OpenCLIP": "a<start_of_text>b <end_of_text> c",
    "long s after an apostrophe": "it'ſ",
    "exactly full": "word " * 75,
    "one too many": "word " * 76,
    "long": "an oil painting of a lighthouse, " * 40,
    "cut within a word": "word " * 74 + "antidisestablishmentarianism",
}

# From old blocks of Unicode: which newer characters are letters depends on each library's version of it.
letters = st.characters(max_codepoint=0x52F, exclude_categories=("Cn",))
han = st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5)
any_text = st.text(letters | han | st.sampled_from("🦄🚀❤️👩\u200d🇫🇷 '…"), max_size=120)


@pytest.fixture(scope="module")
def transformers_tokens(tmp_path_factory):
    """transformers' tokenizer, its two files written from the vocabulary that comes with open_clip."""
    packed = (Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    signs = list(bytes_to_unicode().values())
    words = [*signs, *(sign + "</w>" for sign in signs), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]

    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder)

    def tokens(text):
        ids = tokenizer(text, truncation=True, max_length=77, padding="max_length", return_tensors="pt")
        return ids.input_ids

    return tokens


def test_the_ids_are_those_of_clip(transformers_tokens):
    known = [49406, 320, 1125, 539, 320, 2368, 49407]  # "a photo of a cat", as published with CLIP
    assert transformers_tokens("a photo of a cat")[0, :7].tolist() == known
    assert sd1("a photo of a cat")[0, :7].tolist() == known


@pytest.mark.parametrize("text", PROMPTS.values(), ids=PROMPTS.keys())
def test_sd1_gives_the_tokens_of_transformers(text, transformers_tokens):
    assert torch.equal(sd1(text), transformers_tokens(text))


@pytest.mark.parametrize("text", PROMPTS.values(), ids=PROMPTS.keys())
def test_sd2_gives_the_tokens_of_open_clip(text):
    assert torch.equal(sd2(text), open_clip.tokenize(text))


def test_any_text_gives_the_tokens_of_both(transformers_tokens):
    @given(any_text)
    @settings(max_examples=300)
    def check(text):
        assert torch.equal(sd1(text), transformers_tokens(text))
        assert torch.equal(sd2(text), open_clip.tokenize(text))

    check()


@pytest.mark.parametrize("case", ["final sigma", "curly quotes", "wrongly decoded", "entities"])
def test_the_two_clean_text_differently_where_the_docstring_says_so(case):
    assert transformers_ids(PROMPTS[case]) != open_clip_ids(PROMPTS[case])


def test_padding_is_the_end_token_in_sd1_and_zero_in_sd2():
    cat = [START, 2368, END]
    assert sd1("cat").tolist() == [cat + [END] * 74]
    assert sd2("cat").tolist() == [cat + [0] * 74]


def test_several_texts_are_the_rows_of_one_tensor():
    texts = ["a cat", "", "word " * 100]
    assert torch.equal(sd1(texts), torch.cat([sd1(text) for text in texts]))
    assert sd1([]).shape == (0, 77)


def test_a_cut_text_keeps_its_end_token():
    tokens = ClipTokenizer(transformers_ids, padding=END, length=5)("one two three four five")
    assert tokens.tolist() == [[START, *transformers_ids("one two three"), END]]


@pytest.mark.parametrize("tokenizer", [sd1, sd2])
def test_truncated_is_what_did_not_fit(tokenizer):
    assert tokenizer.truncated("") == ""
    assert tokenizer.truncated("word " * 75) == ""
    assert tokenizer.truncated("word " * 75 + "Two more") == "two more"
    assert tokenizer.truncated("word " * 75 + "a fox, naïve 🦄") == "a fox , naïve 🦄"


@given(any_text.map(lambda text: text * 3))
@settings(max_examples=100)
def test_truncated_is_empty_exactly_when_the_last_token_is_there(text):
    assert (sd1.truncated(text) == "") == (len(transformers_ids(text)) <= 75)


def test_a_prompt_that_is_not_unicode_is_said_to_be_so():
    with pytest.raises(InputError, match="not valid Unicode"):
        sd1("caf\udce9")


def test_a_tokenizer_can_be_sent_to_another_process():
    sd1("a cat")
    assert torch.equal(pickle.loads(pickle.dumps(sd1))("a cat"), sd1("a cat"))
