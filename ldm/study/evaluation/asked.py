"""What the pictures of an evaluation are asked to show."""

from dataclasses import dataclass
from pathlib import Path

from numpy.random import default_rng
from torch import nn

from ldm.data.scenes import Scene, describe, draw_scene
from ldm.errors import InputError
from ldm.jobs import Job, read_prompts
from ldm.modules.encoders.words import WordEmbedder
from ldm.study.pairs import FIRST_SEED, SCENES_SEED, usual_prompts

CAPTIONS = 64  # for the embedded model, unless told otherwise


@dataclass(frozen=True)
class Asked:
    """Prompts, each with several seeds, no seed twice; `scenes` are what captions were made of."""

    pairs: list[list[Job]]  # (P, S)
    scenes: list[Scene] | None

    @property
    def prompts(self) -> list[str]:
        return [pairs[0].prompt for pairs in self.pairs]


def plan(prompts: str | None, held_out: bool, seeds: int, text_encoder: nn.Module) -> Asked:
    """What is asked for: a file with a prompt a line, or how many of the usual ones.

    These are captions of scenes for the embedded model, with `held_out` those of shape and colour pairs that
    training never showed, and the paper's prompts for others. Raises InputError where there are none.
    """
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}: give how many to take with each prompt, 1 or more.")
    count = int(prompts) if prompts is not None and prompts.isdecimal() else None
    if count == 0:
        raise InputError("--prompts is 0: give a number from 1 up, or a file with a prompt a line.")
    from_file = prompts is not None and count is None
    embedded = isinstance(text_encoder, WordEmbedder)
    if held_out and (from_file or not embedded):
        raise InputError("--held-out chooses among the embedded model's captions; these prompts are none.")

    scenes = None
    if prompts is not None and from_file:
        texts = read_prompts(Path(prompts))
    elif embedded:
        scenes = [draw_scene(default_rng((SCENES_SEED, k)), held_out) for k in range(count or CAPTIONS)]
        texts = [describe(scene) for scene in scenes]
    else:
        texts = usual_prompts(text_encoder, count)
    pairs = [[Job(text, FIRST_SEED + seeds * i + k) for k in range(seeds)] for i, text in enumerate(texts)]
    return Asked(pairs, scenes)
