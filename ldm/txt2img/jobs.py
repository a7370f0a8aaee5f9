"""Which pictures a run makes, from which prompts and seeds."""

from dataclasses import dataclass
from pathlib import Path

from ldm.config.reading import decode
from ldm.errors import InputError

MOST_PICTURES = 1_000_000


@dataclass(frozen=True)
class Job:
    """One picture to make."""

    prompt: str
    seed: int


def check_number(pictures: int) -> None:
    """Raises InputError where a run is asked for more pictures than anybody means."""
    if pictures > MOST_PICTURES:
        raise InputError(f"That would be over {MOST_PICTURES:,} pictures: ask for fewer at a time.")


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file, one a line, blank lines left out. Raises InputError where there is none."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise InputError(f"The prompt file {path} cannot be read: {reason}.") from None
    try:
        text = decode(content)
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise InputError(
            f"The prompt file {path} is not UTF-8 text (its line {line} is not): save it as UTF-8."
        ) from None
    if "\0" in text:
        raise InputError(f"The prompt file {path} is not UTF-8 text, as it holds NULs: save it as UTF-8.")
    # Only these end a line, and not all that Unicode has beside them.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"There is no prompt in {path}: write one a line.")
    return prompts


def plan(prompts: list[str], n_iter: int, n_samples: int, seed: int, fixed_code: bool) -> list[Job]:
    """The pictures of a run: all prompts in order, `n_iter` times over.

    Picture k takes the seed `seed + k`, or with `fixed_code` its place among `n_samples` instead of k.
    """
    jobs: list[Job] = []
    for _ in range(n_iter):
        for i, prompt in enumerate(prompts):
            jobs.append(Job(prompt, seed + (i % n_samples if fixed_code else len(jobs))))
    return jobs
