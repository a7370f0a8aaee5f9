"""Which prompt and seed pairs a study is made over."""

from pathlib import Path

from numpy.random import default_rng
from torch import nn

from ldm.data.scenes import describe, draw_scene
from ldm.errors import InputError
from ldm.modules.encoders.words import WordEmbedder
from ldm.txt2img.jobs import MOST_PICTURES, Job, check_number, read_prompts

PAIRS = 16  # at least, unless told otherwise
FIRST_SEED = 42
SCENES_SEED = 2309_11497  # of captions; the seeds of training are 1 to 4

# The paper's prompts, of pictures and of videos.
PAPER_PROMPTS = (
    "A squirrel eating a burger",
    "A synthwave style sunset above the reflecting water of the sea, digital art",
    "Flying through fantasy landscapes, 4k, high resolution.",
    "a blue car is being filmed",
    "a photo of action figure riding a motorcycle",
    "A toy on a beach",
    "A cinematic view of the ocean, from a cave.",
    "An astronaut flying in space.",
)


def usual_prompts(text_encoder: nn.Module, count: int | None) -> list[str]:
    """The prompts a model is studied on: captions of scenes for the embedded one, else the paper's.

    Raises InputError where more are asked for than the paper has, or than anybody means.
    """
    check_number(count or 0)
    if isinstance(text_encoder, WordEmbedder):
        return [
            describe(draw_scene(default_rng((SCENES_SEED, k))))
            for k in range(PAIRS if count is None else count)
        ]
    if count is not None and count > len(PAPER_PROMPTS):
        raise InputError(
            f"--prompts is {count}, but the paper names {len(PAPER_PROMPTS)}: give a file, a prompt a line."
        )
    return list(PAPER_PROMPTS[:count])


def file_or_count(prompts: str | None) -> tuple[Path | None, int | None]:
    """What `--prompts` is, a file or how many of the usual ones to take. Raises InputError for none."""
    if prompts is None or not prompts.isdecimal():
        return (None if prompts is None else Path(prompts)), None
    count = int(min(float(prompts), MOST_PICTURES + 1))  # as int takes no thousands of digits
    if count == 0:
        raise InputError("--prompts is 0: give a number from 1 up, or a file with a prompt a line.")
    return None, count


def check_seeds(seeds: int | None) -> None:
    """Raises InputError where no seeds are asked for."""
    if seeds is not None and seeds < 1:
        raise InputError(f"--seeds is {seeds}: give how many to take with each prompt, 1 or more.")


def plan_pairs(prompts: str | None, seeds: int | None, text_encoder: nn.Module) -> list[Job]:
    """The pairs of a study: each prompt with `seeds` seeds, no seed twice, so that no two share their noise.

    `prompts` is a file with a prompt a line, or how many of the usual ones to take. Without `seeds` there are
    as many as it takes to have 16 pairs. Raises InputError where there are none.
    """
    file, count = file_or_count(prompts)
    texts = read_prompts(file) if file else usual_prompts(text_encoder, count)
    check_seeds(seeds)
    each = -(-PAIRS // len(texts)) if seeds is None else seeds
    check_number(len(texts) * each)
    return [Job(text, FIRST_SEED + each * i + k) for i, text in enumerate(texts) for k in range(each)]
