"""Captions as training data for the text encoder: what each word is about."""

import torch
from numpy.random import default_rng
from torch import Tensor
from torch.utils.data import Dataset

from ldm.data.scenes import (
    COLOURS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    draw_scene,
    texture_words,
    words_of,
)
from ldm.errors import InputError

# What a word is about: a thing's shape, colour, texture and place, each one of so many. The last shape is the
# background, the last two places are "alone" and "behind".
FACTS = (len(SHAPES) + 1, len(COLOURS), len(TEXTURES), len(RELATIONS) + 2)
NO_FACT = -100
# The words of the longest caption: two things of five, "left of", and "on a dotted blue background".
LONGEST = 17
# All that captions are made of.
WORDS = sorted(
    {*SHAPES, *COLOURS, *SIZES, "a", "an", "on", "background"}
    | {word for texture in TEXTURES for word in texture_words(texture)}
    | {word for relation in RELATIONS for word in relation.split()}
)


class SceneCaptions(Dataset):
    """`count` scenes as captions, each with the facts that each of its words is about, (length, 4), int64.

    `length` is the text encoder's: a start token, the words, and what fills the rest; other than words have
    `NO_FACT`.
    """

    def __init__(self, count: int, length: int, seed: int):
        if length < LONGEST + 2:
            raise InputError(
                f"The text encoder's max_length is {length}: give {LONGEST + 2} or more, as captions have up "
                f"to {LONGEST} words between a start and an end."
            )
        self.count, self.length, self.seed = count, length, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        rng = default_rng((self.seed, index))
        scene = draw_scene(rng)
        words = words_of(scene, rng)
        facts = torch.full((self.length, len(FACTS)), NO_FACT)
        table = facts_of(scene)
        for position, (_, subject) in enumerate(words, start=1):
            facts[position] = table[subject]
        return " ".join(word for word, _ in words), facts


def facts_of(scene: Scene) -> Tensor:
    """Shape, colour, texture and place, as `FACTS` counts them, of the things and the background, (n, 4)."""
    if scene.relation is None:
        places = [len(RELATIONS)]
    else:
        places = [RELATIONS.index(r) for r in (scene.relation, OPPOSITE[scene.relation])]
    rows = [
        (SHAPES.index(thing.shape), COLOURS.index(thing.colour), TEXTURES.index(thing.texture), place)
        for thing, place in zip(scene.things, places, strict=True)
    ]
    background = (COLOURS.index(scene.background), TEXTURES.index(scene.background_texture))
    return torch.tensor([*rows, (len(SHAPES), *background, len(RELATIONS) + 1)])
