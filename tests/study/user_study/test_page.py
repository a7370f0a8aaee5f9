"""The user study's page: it gives nothing away, and asks what the tally reads."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ldm.study.user_study import Pair, blinded, data_uri, freeu_sides, page, page_data, write_study
from ldm.study.votes import QUESTIONS, SIDES, VOTES
from tests.study.user_study.studies import SECRET_SEED, SETTINGS, PageParser, data_of, png_of, some_pairs


def swapped(pair: Pair) -> Pair:
    return replace(pair, plain=pair.freeu, freeu=pair.plain)


@given(lot=st.integers(0, 2**62), count=st.integers(1, 6))
def test_freeu_and_plain_swapped_in_pictures_and_key_leave_the_page_as_it_is(lot: int, count: int) -> None:
    pairs, sides = some_pairs(count), freeu_sides(count, lot)
    others = [SIDES[1 - SIDES.index(side)] for side in sides]
    shown = [blinded(pair, side) for pair, side in zip(pairs, sides, strict=True)]
    mirrored = [blinded(swapped(pair), side) for pair, side in zip(pairs, others, strict=True)]
    assert page(page_data(shown)) == page(page_data(mirrored))


def test_nothing_of_the_key_is_in_the_page(tmp_path: Path) -> None:
    pairs = some_pairs(12)
    path = write_study(tmp_path, pairs, SECRET_SEED, SETTINGS | {"steps": 4817})
    text = path.read_text()
    data = data_of(text)
    assert data.keys() == {"study", "width", "height", "pairs"} and (data["width"], data["height"]) == (12, 8)
    assert all(one.keys() == {"prompt", "left", "right"} for one in data["pairs"])

    # Beside pictures and prompts there is the template, which knows no study.
    rest = text.replace(json.dumps(data), "")
    assert rest == page({"study": 0}).replace('{"study": 0}', "")
    said = rest.lower() + data["study"]
    for secret in ("freeu", "plain", "b1", "tiny", str(SECRET_SEED), "4817", "3000"):
        assert secret not in said

    # A picture's bytes depend on its pixels alone, and hold no text, date or colour profile.
    for pair, shown in zip(pairs, data["pairs"], strict=True):
        assert {shown["left"], shown["right"]} == {data_uri(pair.plain), data_uri(pair.freeu)}
        for side in SIDES:
            assert chunks(png_of(shown[side])) == {b"IHDR", b"IDAT", b"IEND"}


def chunks(png: bytes) -> set[bytes]:
    """The kinds of chunks in a PNG, by the lengths that stand before them."""
    kinds, place = set(), 8
    while place < len(png):
        kinds.add(png[place + 4 : place + 8])
        place += 12 + int.from_bytes(png[place : place + 4], "big")
    return kinds


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    path = write_study(tmp_path, some_pairs(2), SECRET_SEED, SETTINGS)
    parsed = PageParser(path.read_text())
    for tag, attributes in parsed.tags:
        assert tag not in ("iframe", "object", "embed", "form", "base")
        for name in ("src", "href", "srcset", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")
    [policy] = [found["content"] for _, found in parsed.tags if "http-equiv" in found]
    assert policy is not None and "default-src 'none'" in policy and "img-src data:;" in policy
    template = page({})
    assert not any(word in template for word in ("http:", "https:", "@import", "url(", "fetch(", "XMLHttp"))


def test_the_page_asks_and_writes_what_the_tally_reads() -> None:
    parsed = PageParser(page({}))
    fieldsets = [found for tag, found in parsed.tags if tag == "fieldset"]
    assert [fieldset["data-question"] for fieldset in fieldsets] == list(QUESTIONS)
    answers = [(found["name"], found["value"]) for tag, found in parsed.tags if tag == "input"]
    assert answers == [(question, side) for question in QUESTIONS for side in SIDES]
    assert all(f"Which {words}?" in page({}) for words in QUESTIONS.values())
    assert f'kind: "{VOTES}"' in parsed.scripts[None]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_prompt_reaches_the_voter_as_it_is(prompt: str) -> None:
    picture = np.zeros((1, 1, 3), np.uint8)
    for text in (prompt, f"</script><!--<script>{prompt}", "{{study}}" + prompt):
        data = page_data([blinded(Pair(text, 0, picture, picture), "left")])
        assert data_of(page(data)) == data and data["pairs"][0]["prompt"] == text
