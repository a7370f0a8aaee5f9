"""How far a picture of the embedded model agrees with its caption, by the judge's findings."""

from itertools import permutations

from ldm.data.judge import Findings, Found
from ldm.data.scenes import Scene

APART = 0.1  # how far, as a share of the side, a thing has to lie on the asked side of the other

# What is counted, in the order of tables: each thing counts by itself, all else once a picture.
MEASURES = ("number", "shape", "colour", "texture", "relation", "background")


def agreement(asked: Scene, seen: Findings) -> dict[str, list[bool]]:
    """For each of `MEASURES` whether the picture is as asked: once, or for each thing, or not asked at all.

    A thing that is missing has nothing right.
    """
    found = assigned(asked, seen.things)
    pairs = list(zip(asked.things, found, strict=True))
    return {
        "number": [len(seen.things) == len(asked.things)],
        "shape": [other is not None and other.shape == thing.shape for thing, other in pairs],
        "colour": [other is not None and other.colour == thing.colour for thing, other in pairs],
        "texture": [other is not None and other.texture == thing.texture for thing, other in pairs],
        "relation": [] if asked.relation is None else [related(asked.relation, *found)],
        "background": [
            (seen.background, seen.background_texture) == (asked.background, asked.background_texture)
        ],
    }


def assigned(asked: Scene, things: tuple[Found, ...]) -> tuple[Found | None, ...]:
    """The found thing that each asked one is taken for, so that most is right; None for a missing one."""

    def right(order: tuple[Found | None, ...]) -> int:
        pairs = [(a, b) for a, b in zip(asked.things, order, strict=True) if b is not None]
        same = sum((a.shape == b.shape) + (a.colour == b.colour) + (a.texture == b.texture) for a, b in pairs)
        as_related = asked.relation is not None and related(asked.relation, *order)
        return 8 * same + 2 * len(pairs) + as_related

    candidates = (*things[:6], *[None] * len(asked.things))
    return max(permutations(candidates, len(asked.things)), key=right)


def related(relation: str, first: Found | None, second: Found | None) -> bool:
    """Whether both are there, and the first lies on the named side of the second."""
    if first is None or second is None:
        return False
    along = {
        "left of": second.x - first.x,
        "right of": first.x - second.x,
        "above": second.y - first.y,
        "below": first.y - second.y,
    }
    return along[relation] >= APART
