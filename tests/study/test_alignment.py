"""The agreement of pictures with captions: what counts as right, on findings made up by hand."""

from dataclasses import replace

import pytest

from ldm.data.judge import Findings, Found
from ldm.data.scenes import Scene, Thing
from ldm.study.alignment import MEASURES, agreement

STAR = Thing("star", "red", "plain", "small", 0.25, 0.5, 0.13, 0.0)
RING = Thing("ring", "blue", "dotted", "large", 0.7, 0.4, 0.2, 0.0)
ASKED = Scene((STAR, RING), "left of", "green", "striped", seed=0)
SEEN_STAR, SEEN_RING = Found("star", "red", "plain", 0.3, 0.5), Found("ring", "blue", "dotted", 0.7, 0.5)
SEEN = Findings((SEEN_STAR, SEEN_RING), "green", "striped")


def wrong(asked: Scene, seen: Findings) -> dict[str, list[int]]:
    """The measures that are not all right, with the places of what is wrong."""
    places = {
        name: [i for i, fine in enumerate(each) if not fine] for name, each in agreement(asked, seen).items()
    }
    return {name: where for name, where in places.items() if where}


def test_a_picture_as_asked_is_right_in_everything_in_whichever_order_it_is_found() -> None:
    assert tuple(agreement(ASKED, SEEN)) == MEASURES
    assert wrong(ASKED, SEEN) == {}
    assert wrong(ASKED, replace(SEEN, things=SEEN.things[::-1])) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"shape": "heart"}, {"shape": [0]}),
        ({"colour": "white"}, {"colour": [0]}),
        ({"texture": "dotted"}, {"texture": [0]}),
        ({"x": 0.65}, {"relation": [0]}),
        ({"x": 0.9}, {"relation": [0]}),
        ({"y": 0.9}, {}),
        ({"shape": "heart", "colour": "white"}, {"shape": [0], "colour": [0]}),
    ],
)
def test_one_thing_amiss_counts_against_its_measure_alone(change: dict, expected: dict) -> None:
    assert wrong(ASKED, replace(SEEN, things=(replace(SEEN_STAR, **change), SEEN_RING))) == expected


def test_things_that_changed_their_colours_have_two_colours_wrong_and_keep_their_shapes() -> None:
    things = (replace(SEEN_STAR, colour="blue"), replace(SEEN_RING, colour="red"))
    assert wrong(ASKED, replace(SEEN, things=things)) == {"colour": [0, 1]}


def test_a_missing_thing_has_nothing_right() -> None:
    alone = wrong(ASKED, replace(SEEN, things=(SEEN_RING,)))
    assert alone == {"number": [0], "shape": [0], "colour": [0], "texture": [0], "relation": [0]}
    nothing = wrong(ASKED, replace(SEEN, things=()))
    assert nothing == {"number": [0], "shape": [0, 1], "colour": [0, 1], "texture": [0, 1], "relation": [0]}


def test_a_thing_too_many_is_a_wrong_number_and_nothing_else() -> None:
    extra = (Found("cross", "white", "plain", 0.5, 0.9), *SEEN.things)
    assert wrong(ASKED, replace(SEEN, things=extra)) == {"number": [0]}


def test_a_scene_of_one_thing_asks_for_no_relation() -> None:
    alone = Scene((STAR,), None, "green", "striped", seed=0)
    assert agreement(alone, replace(SEEN, things=(SEEN_STAR,)))["relation"] == []
    assert wrong(alone, replace(SEEN, things=(SEEN_STAR,), background="red")) == {"background": [0]}


@pytest.mark.parametrize(
    ("relation", "place"),
    [("left of", (0.1, 0.5)), ("right of", (0.9, 0.5)), ("above", (0.5, 0.1)), ("below", (0.5, 0.9))],
)
def test_relations_are_told_from_places(relation: str, place: tuple[float, float]) -> None:
    middle = replace(SEEN_RING, x=0.5, y=0.5)
    first = replace(SEEN_STAR, x=place[0], y=place[1])
    for asked in ("left of", "right of", "above", "below"):
        scene = replace(ASKED, relation=asked)
        assert agreement(scene, replace(SEEN, things=(first, middle)))["relation"] == [asked == relation]
