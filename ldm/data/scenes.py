"""What a scene holds, how it is drawn by lot, and how it is put into words."""

from dataclasses import dataclass, replace
from itertools import product

from numpy.random import Generator

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "large")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)

# Pairs that training never shows, one a shape and one a colour, so that tests can ask for what was not learnt
# by rote.
HELD_OUT = frozenset((shape, COLOURS[(3 * i + 2) % 8]) for i, shape in enumerate(SHAPES))

# Half-widths of the objects as fractions of the picture's side.
RADII = {"small": (0.125, 0.15), "large": (0.185, 0.21)}


@dataclass(frozen=True)
class Thing:
    """One object: its words and its place, in fractions of the picture's side from the upper left corner."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    angle: float  # radians, a slight tilt


@dataclass(frozen=True)
class Scene:
    """One or two things before a background; `relation` is the first's to the second."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str
    background_texture: str
    seed: int  # of the textures' phases and directions


def draw_thing(rng: Generator, colours: tuple[str, ...], held_out: bool) -> Thing:
    """A thing in the picture's middle, of a pair that `HELD_OUT` holds or not, as asked."""
    pairs = [p for p in product(SHAPES, colours) if (p in HELD_OUT) == held_out]
    shape, colour = pairs[rng.integers(len(pairs))]
    texture = TEXTURES[rng.choice(4, p=(0.55, 0.15, 0.15, 0.15))]
    size = SIZES[rng.integers(2)]
    return Thing(shape, colour, texture, size, 0.5, 0.5, rng.uniform(*RADII[size]), rng.uniform(-0.15, 0.15))


def draw_scene(rng: Generator, held_out: bool = False) -> Scene:
    """A scene by lot: two things in three of five, no two colours alike, nothing touching.

    With `held_out` every thing is of a pair that training never shows.
    """
    background = COLOURS[rng.integers(8)]
    background_texture = TEXTURES[rng.choice(4, p=(0.52, 0.16, 0.16, 0.16))]
    free = tuple(c for c in COLOURS if c != background)
    first = draw_thing(rng, free, held_out)
    seed = int(rng.integers(2**31))
    if rng.random() < 0.4:
        margin = first.radius + 0.05
        x, y = rng.uniform(max(margin, 0.3), 1 - max(margin, 0.3), size=2)
        return Scene((moved(first, x, y),), None, background, background_texture, seed)

    # Two things share the axis of their relation and wander a little across it.
    second = draw_thing(rng, tuple(c for c in free if c != first.colour), held_out)
    relation = RELATIONS[rng.integers(4)]
    gap = rng.uniform(0.04, 0.07)
    span = 2 * first.radius + gap + 2 * second.radius
    start = rng.uniform(0.03, 0.97 - span)
    before, after = (first, second) if relation in ("left of", "above") else (second, first)
    along = {id(before): start + before.radius, id(after): start + span - after.radius}
    across = {
        id(t): rng.uniform(max(0.35, t.radius + 0.04), 1 - max(0.35, t.radius + 0.04))
        for t in (first, second)
    }
    if relation in ("left of", "right of"):
        things = tuple(moved(t, along[id(t)], across[id(t)]) for t in (first, second))
    else:
        things = tuple(moved(t, across[id(t)], along[id(t)]) for t in (first, second))
    return Scene(things, relation, background, background_texture, seed)


def moved(thing: Thing, x: float, y: float) -> Thing:
    """The same thing at another place."""
    return replace(thing, x=float(x), y=float(y))


def texture_words(texture: str) -> tuple[str, ...]:
    """The word for a texture; a plain surface needs none."""
    return () if texture == "plain" else (texture,)


def describe(scene: Scene, rng: Generator | None = None) -> str:
    """The scene in words: "a large red circle left of a small blue star on a dotted green background".

    With `rng` articles, sizes and the background are left out at times, as people leave them out.
    """
    return " ".join(word for word, _ in words_of(scene, rng))


def words_of(scene: Scene, rng: Generator | None = None) -> list[tuple[str, int]]:
    """The words of `describe`, each with the index of the thing it tells of; the background's is the last."""

    def left_out(share: float) -> bool:
        return rng is not None and rng.random() < share

    def phrase(*words: str) -> list[str]:
        article = "an" if words[0][0] in "aeiou" else "a"
        return [*words] if left_out(0.15) else [article, *words]

    phrases: list[list[str]] = []
    for thing in scene.things:
        size = () if left_out(0.3) else (thing.size,)
        phrases.append(phrase(*size, thing.colour, *texture_words(thing.texture), thing.shape))
    if scene.relation is not None:
        phrases[0] += scene.relation.split()
    if not left_out(0.15):
        phrases.append(
            ["on", *phrase(*texture_words(scene.background_texture), scene.background, "background")]
        )
    return [(word, i) for i, words in enumerate(phrases) for word in words]
