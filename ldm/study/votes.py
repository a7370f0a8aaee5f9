"""The user study's votes: read with the study's key, counted, and set beside the paper's."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, get_args

from ldm.errors import InputError
from ldm.files import write_table, write_text
from ldm.wording import counted

Side = Literal["left", "right"]
SIDES: Final[tuple[Side, ...]] = get_args(Side)
KEY, VOTES = "user study key", "user study votes"  # the `kind` of the two files
QUESTIONS: Final = {"text": "fits the text better", "quality": "looks better"}

# The paper's shares (CVPR 2024): Stable Diffusion, 120 people.
PAPER: Final = {"text": 0.8458, "quality": 0.8627}
Z: Final = 1.959964  # 95 % of a normal distribution lies within this many standard deviations


@dataclass(frozen=True)
class Key:
    """Which study it opens, and where FreeU's picture stands in each of its pairs."""

    study: str
    freeu: tuple[Side, ...]


@dataclass(frozen=True)
class Ballot:
    """One voter's answers: for each pair the side that is better, by question."""

    voter: str
    answers: list[dict[str, Side]]


@dataclass(frozen=True)
class Row:
    """What one question came to."""

    question: str
    votes_for_freeu: int
    votes: int
    voters: int
    share: float
    low: float  # end of the 95 % interval
    high: float
    paper_share: float  # the paper's own, on another model, of other prompts and voters


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """The object in a JSON file of this kind. Raises InputError where the file holds anything else."""
    what = kind.removeprefix("user study ")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as fault:
        raise InputError(f"The {what} file {path} cannot be read: {fault.strerror}.") from None
    except (ValueError, RecursionError):
        raise InputError(f"The {what} file {path} is damaged: it is not JSON. Ask for it again.") from None
    found = content.get("kind") if isinstance(content, dict) else None
    if found != kind:
        instead = f", but a {found} file" if found in (KEY, VOTES) else ""
        raise InputError(f"{path} is no {kind} file{instead}. The key comes first, then the votes.")
    return content


def read_key(path: Path) -> Key:
    """The key that `ldm.study.user_study.write_study` wrote. Raises InputError."""
    content = read_json(path, KEY)
    study, pairs = content.get("study"), content.get("pairs")
    whole = isinstance(pairs, list) and all(isinstance(it, dict) and it.get("freeu") in SIDES for it in pairs)
    if not isinstance(study, str) or not pairs or not whole:
        raise InputError(f"The key file {path} is damaged: it does not tell FreeU's side in every pair.")
    return Key(study, tuple(pair["freeu"] for pair in pairs))


def read_ballot(path: Path, key: Key) -> Ballot:
    """One voter's file, as the page writes it, whole and of the key's study. Raises InputError."""
    content = read_json(path, VOTES)
    study, voter, votes = (content.get(name) for name in ("study", "voter", "votes"))
    if study != key.study:
        raise InputError(
            f"{path} holds votes on the study {study!r:.40}, the key is of {key.study!r}: give that study's "
            "key, or leave the file out."
        )
    if not isinstance(voter, str) or not voter:
        raise InputError(f"The votes file {path} is damaged: it names no voter. Ask for it again.")
    if not isinstance(votes, list) or len(votes) != len(key.freeu):
        count = len(votes) if isinstance(votes, list) else "no"
        raise InputError(
            f"The votes file {path} has votes on {count} pairs; the study has {len(key.freeu)}. Ask for the "
            "file that the page saves at its end, or leave this one out."
        )
    for number, vote in enumerate(votes, start=1):
        answers = [vote.get(question) for question in QUESTIONS] if isinstance(vote, dict) else [None]
        if any(answer not in SIDES for answer in answers):
            raise InputError(
                f"The votes file {path} is damaged: pair {number} has no left or right in it. Ask for the "
                "file that the page saves at its end, or leave this one out."
            )
    return Ballot(voter, [{question: vote[question] for question in QUESTIONS} for vote in votes])


def files_named(path: Path) -> list[Path]:
    """The file of that path, or those that fit it: Windows' shells leave votes-*.json to us."""
    found = [] if path.exists() else sorted(path.parent.glob(path.name))
    return found or [path]


def read_ballots(paths: Sequence[Path], key: Key) -> list[Ballot]:
    """The ballots in these files (see `files_named`), each by another voter. Raises InputError."""
    by_voter: dict[str, Path] = {}
    ballots = []
    for path in chain.from_iterable(map(files_named, paths)):
        ballot = read_ballot(path, key)
        if ballot.voter in by_voter:
            raise InputError(f"{by_voter[ballot.voter]} and {path} are by the same voter: leave one out.")
        by_voter[ballot.voter] = path
        ballots.append(ballot)
    return ballots


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, of which k in n were seen (Wilson 1927).

    It is where the true share p has |k/n - p| <= Z sqrt(p (1 - p) / n), and stays within 0 and 1.
    """
    middle = (k + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * math.sqrt(k * (n - k) / n + Z**2 / 4)
    return 0.0 if k == 0 else middle - half, 1.0 if k == n else middle + half


def tally(key: Key, ballots: Sequence[Ballot]) -> list[Row]:
    """The share of votes for FreeU, a row for each question."""
    votes = len(ballots) * len(key.freeu)
    hits = Counter(
        question
        for ballot in ballots
        for answer, freeu in zip(ballot.answers, key.freeu, strict=True)
        for question in QUESTIONS
        if answer[question] == freeu
    )
    return [
        Row(q, hits[q], votes, len(ballots), hits[q] / votes, *wilson(hits[q], votes), PAPER[q])
        for q in QUESTIONS
    ]


def table(rows: Sequence[Row]) -> str:
    """The tally for people, with what its interval and the paper's numbers mean."""
    head = f"{'votes for FreeU':22}{'share':>9}{'95 % interval':>20}{'the paper*':>13}"
    lines = [
        f"{QUESTIONS[row.question]:22}{row.share:9.1%}{f'{row.low:.1%} to {row.high:.1%}':>20}"
        f"{row.paper_share:13.2%}"
        for row in rows
    ]
    voters, pairs = rows[0].voters, rows[0].votes // rows[0].voters
    return "\n".join([
        head,
        *lines,
        "",
        f"{counted(voters, 'voter')}, {counted(pairs, 'pair')}: {rows[0].votes} votes on each question.",
        "The interval is Wilson's, with every vote taken as independent. It is about these pairs, not about",
        "other prompts or models.",
        "* As the paper reports it: Stable Diffusion, 120 people, other prompts. Not measured here.",
    ])  # fmt: skip


def save_tally(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Writes the rows as tally.csv and tally.json; returns their paths. Raises InputError."""
    records = [asdict(row) for row in rows]
    about = {
        "interval": "Wilson, 95 %, every vote taken as independent",
        "paper_share": "reported by the paper: Stable Diffusion, 120 people; not measured here",
    }
    sheet, record = folder / "tally.csv", folder / "tally.json"
    write_table(sheet, records)
    write_text(record, json.dumps({**about, "questions": records}, indent=1) + "\n")
    return [sheet, record]
