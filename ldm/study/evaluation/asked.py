"""What the pictures of an evaluation are asked to show."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.random import default_rng
from torch import nn

from ldm.data.scenes import Scene, describe, draw_scene
from ldm.errors import InputError
from ldm.modules.encoders.words import WordEmbedder
from ldm.study.pairs import FIRST_SEED, SCENES_SEED, check_seeds, file_or_count, usual_prompts
from ldm.txt2img.jobs import Job, check_number, read_prompts

CAPTIONS = 64  # for the embedded model, unless told otherwise
MOST_DRAWS = 4  # of scenes for each caption: the more there are, the more come again


@dataclass(frozen=True)
class Asked:
    """Prompts, each with several seeds, no seed twice; `scenes` are what captions were made of."""

    pairs: list[list[Job]]  # (P, S)
    scenes: list[Scene] | None

    @property
    def prompts(self) -> list[str]:
        return [pairs[0].prompt for pairs in self.pairs]


def plan(
    prompts: str | None,
    held_out: bool,
    seeds: int,
    text_encoder: nn.Module,
    usual: int = CAPTIONS,
    apart: Asked | None = None,
) -> Asked:
    """What is asked for: a file with a prompt a line, each taken once, or how many of the usual ones.

    These are captions of scenes for the embedded model, `usual` of them unless told otherwise and no two
    alike, with `held_out` those of shape and colour pairs that training never showed, and the paper's prompts
    for others. No seed is one of those that are `apart`, and no caption.

    Raises InputError where there are none.
    """
    check_seeds(seeds)
    file, count = file_or_count(prompts)
    embedded = isinstance(text_encoder, WordEmbedder)
    if held_out and (file or not embedded):
        raise InputError("--held-out chooses among the embedded model's captions; these prompts are none.")

    scenes = None
    if file:
        texts = [*dict.fromkeys(read_prompts(file))]
    elif embedded:
        check_number((count or usual) * seeds)
        drawn = draw_captions(count or usual, held_out, apart.prompts if apart else [])
        texts, scenes = [*drawn], [*drawn.values()]
    else:
        texts = usual_prompts(text_encoder, count)
    return Asked(paired(texts, seeds, apart), scenes)


def draw_captions(count: int, held_out: bool, known: Sequence[str]) -> dict[str, Scene]:
    """So many captions by lot, each with its scene, none twice and none that is known. Raises InputError."""
    captions: dict[str, Scene] = {}
    taken = {*known}
    for k in range(len(known), MOST_DRAWS * (len(known) + count)):
        if len(captions) == count:
            break
        scene = draw_scene(default_rng((SCENES_SEED, k)), held_out)
        if (caption := describe(scene)) not in taken:
            captions.setdefault(caption, scene)
    if len(captions) < count:
        raise InputError(f"There are hardly {count} captions that differ: ask for fewer --prompts.")
    return captions


def plan_apart(
    prompts: str | None, fresh: str | None, seeds: int, text_encoder: nn.Module, usual: tuple[int, int]
) -> tuple[Asked, Asked]:
    """What a search is made on, and what its outcome is checked on: no prompt and no noise is in both.

    Both are as in `plan`, with `usual` numbers of captions. Where `fresh` is not given for prompts that are
    no captions, every second one is kept for the check. Raises InputError where that leaves none, or where
    the two name the same prompt.
    """
    first = plan(prompts, False, seeds, text_encoder, usual[0])
    if fresh is None and first.scenes is None:
        texts = first.prompts
        if len(texts) < 2:
            raise InputError("One prompt cannot be halved for search and check: give --fresh-prompts too.")
        first = Asked(paired(texts[::2], seeds), None)
        return first, Asked(paired(texts[1::2], seeds, first), None)
    second = plan(fresh, False, seeds, text_encoder, usual[1], apart=first)
    if common := set(first.prompts) & set(second.prompts):
        raise InputError(f"--fresh-prompts has what the search is made on: {min(common)!r}. Take it out.")
    return first, second


def plan_unseen(
    prompts: str | None, held_out: bool, seeds: int, text_encoder: nn.Module, seen: Asked
) -> Asked:
    """What is asked for, as in `plan`, less the prompts and the noise that a search saw.

    Raises InputError where that leaves no prompt.
    """
    asked = plan(prompts, held_out, seeds, text_encoder, apart=seen)
    if asked.scenes is not None:
        return asked
    texts = [text for text in asked.prompts if text not in seen.prompts]
    if not texts:
        raise InputError("The search saw all of these prompts: give others, in a file after --prompts.")
    return Asked(paired(texts, seeds, seen), None)


def read_seen(path: Path) -> Asked:
    """What a search was made on, by the search.json that it wrote. Raises InputError."""
    try:
        record = json.loads(path.read_bytes())
        prompts, seeds = record["prompts"], record["seeds_each"]
        whole = isinstance(prompts, list) and all(isinstance(it, str) for it in prompts)
        whole = whole and type(seeds) is int and seeds >= 1
    except OSError as fault:
        raise InputError(f"--unseen-by {path} cannot be read: {fault.strerror}.") from None
    except (ValueError, LookupError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(
            f"--unseen-by {path} is not what a search wrote: give the search.json in its --outdir."
        )
    return Asked(paired(prompts, seeds), None)


def paired(texts: list[str], seeds: int, apart: Asked | None = None) -> list[list[Job]]:
    """Each text with so many seeds, counted on from those that are `apart`: (P, S). Raises InputError."""
    check_number(len(texts) * seeds)
    first = FIRST_SEED + (sum(map(len, apart.pairs)) if apart else 0)
    return [[Job(text, first + seeds * i + k) for k in range(seeds)] for i, text in enumerate(texts)]
