"""The user study's tally: votes that add up, and what is said of those that do not."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.study.user_study import write_study
from ldm.study.votes import (
    PAPER,
    QUESTIONS,
    SIDES,
    VOTES,
    Ballot,
    Key,
    read_ballots,
    read_key,
    save_tally,
    tally,
    wilson,
)
from tests.study.user_study.conftest import SCRIPT, Run, fault
from tests.study.user_study.studies import SECRET_SEED, SETTINGS, some_pairs


@given(st.data())
def test_a_tally_is_the_count_of_votes_on_freeu_s_side(data: st.DataObject) -> None:
    side = st.sampled_from(SIDES)
    pairs, voters = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    freeu = data.draw(st.lists(side, min_size=pairs, max_size=pairs))
    vote = st.fixed_dictionaries(dict.fromkeys(QUESTIONS, side))
    ballots = [
        Ballot(str(i), data.draw(st.lists(vote, min_size=pairs, max_size=pairs))) for i in range(voters)
    ]
    rows = tally(Key("study", tuple(freeu)), ballots)
    assert [row.question for row in rows] == ["text", "quality"]
    for row in rows:
        hits = 0
        for ballot in ballots:
            for i in range(pairs):
                if ballot.answers[i][row.question] == freeu[i]:
                    hits += 1
        assert (row.votes_for_freeu, row.votes, row.voters) == (hits, voters * pairs, voters)
        assert row.share == hits / (voters * pairs) and row.low <= row.share <= row.high
        assert row.paper_share == PAPER[row.question]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_that_of_newcombe_s_table(k: int, n: int, low: float, high: float) -> None:
    """Method 3 of table I in R. G. Newcombe, Statistics in Medicine 17 (1998), 857."""
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(n=st.integers(1, 5000), part=st.floats(0, 1))
def test_an_end_of_the_interval_is_a_share_from_which_the_votes_are_1_96_deviations_off(
    n: int, part: float
) -> None:
    k = round(part * n)
    for end in wilson(k, n):
        deviation = math.sqrt(end * (1 - end) / n)
        assert abs(k / n - end) == pytest.approx(1.959964 * deviation, abs=1e-6)


def votes_file(folder: Path, voter: str, answers: list[dict[str, str]], study: str) -> Path:
    path = folder / f"votes-{voter}.json"
    path.write_text(json.dumps({"kind": VOTES, "study": study, "voter": voter, "votes": answers}))
    return path


def test_votes_are_counted_from_files_to_table_csv_and_json(run: Run, tmp_path: Path) -> None:
    write_study(tmp_path, some_pairs(4), SECRET_SEED, SETTINGS)
    key = read_key(tmp_path / "key.json")
    plain = [{"left": "right", "right": "left"}[side] for side in key.freeu]
    always = [{"text": side, "quality": side} for side in key.freeu]
    once = [{"text": side, "quality": side} for side in plain]
    once[2]["text"] = key.freeu[2]
    files = [votes_file(tmp_path, name, votes, key.study) for name, votes in {"a": always, "b": once}.items()]
    files[0].write_bytes(b"\xef\xbb\xbf" + files[0].read_bytes())  # as editors on Windows do
    assert [ballot.voter for ballot in read_ballots(files, key)] == ["a", "b"]

    outcome = run("tally", tmp_path / "key.json", *files, "--outdir", tmp_path / "result")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    # 5 of 8 and 4 of 8; the intervals by hand from Wilson's formula.
    assert [" ".join(line.split()) for line in lines[:3]] == [
        "votes for FreeU share 95 % interval the paper*",
        "fits the text better 62.5% 30.6% to 86.3% 84.58%",
        "looks better 50.0% 21.5% to 78.5% 86.27%",
    ]
    assert "2 voters, 4 pairs: 8 votes on each question." in lines
    assert "The interval is Wilson's" in outcome.out and "* As the paper reports it" in outcome.out

    content = json.loads((tmp_path / "result/tally.json").read_text())
    with (tmp_path / "result/tally.csv").open(newline="") as file:
        sheet = list(csv.DictReader(file))
    assert sheet == [{name: str(value) for name, value in row.items()} for row in content["questions"]]
    assert [(row["question"], row["votes_for_freeu"]) for row in sheet] == [("text", "5"), ("quality", "4")]
    assert "Wilson" in content["interval"] and "not measured here" in content["paper_share"]


def test_a_pattern_that_no_shell_took_names_the_files_that_fit_it(tmp_path: Path) -> None:
    vote = {"text": "left", "quality": "right"}
    key = Key("0123456789abcdef", ("left",))
    for name in ("b", "a", "[1]", "long"):
        votes_file(tmp_path, name, [vote], key.study)
    ballots = read_ballots([tmp_path / "votes-?.json", tmp_path / "votes-[1].json"], key)
    assert [ballot.voter for ballot in ballots] == ["a", "b", "[1]"]
    with pytest.raises(InputError, match=r"votes-\*\.txt cannot be read"):
        read_ballots([tmp_path / "votes-*.txt"], key)


def test_bad_votes_get_one_line_and_leave_no_tally(run: Run, tmp_path: Path) -> None:
    write_study(tmp_path, some_pairs(2), SECRET_SEED, SETTINGS)
    key = tmp_path / "key.json"
    study = read_key(key).study
    vote = {"text": "left", "quality": "right"}
    good = votes_file(tmp_path, "good", [vote, vote], study)
    copy = tmp_path / "copy.json"
    copy.write_bytes(good.read_bytes())
    bad: dict[str, tuple[bytes, list[str]]] = {
        "cut.json": (good.read_bytes()[:-9], ["cut.json is damaged", "not JSON"]),
        "empty.json": (b"", ["empty.json is damaged"]),
        "bytes.json": (b"\xff\xfe\x00", ["bytes.json is damaged"]),
        "deep.json": (b"[" * 100_000, ["deep.json is damaged"]),
        "list.json": (b"[]", ["list.json is no user study votes"]),
        "key2.json": (key.read_bytes(), ["key2.json is no user study votes file, but a user study key"]),
    }
    wrong: dict[str, tuple[dict[str, Any], list[str]]] = {
        "other.json": ({"study": "0123456789abcdef"}, ["'0123456789abcdef'", study, "leave the file out"]),
        "none.json": ({"study": None}, ["None", study]),
        "nobody.json": ({"voter": ""}, ["names no voter", "Ask for it again"]),
        "number.json": ({"voter": 7}, ["names no voter"]),
        "short.json": ({"votes": [vote]}, ["on 1 pairs", "has 2", "or leave this one out"]),
        "long.json": ({"votes": [vote, vote, vote]}, ["on 3 pairs", "has 2"]),
        "novotes.json": ({"votes": None}, ["on no pairs"]),
        "half.json": ({"votes": [vote, {"text": "left"}]}, ["pair 2", "or leave this one out"]),
        "odd.json": ({"votes": [{"text": ["left"], "quality": 3}, vote]}, ["pair 1"]),
        "flat.json": ({"votes": ["left", "right"]}, ["pair 1"]),
    }
    for name, (change, said) in wrong.items():
        bad[name] = (json.dumps(json.loads(good.read_bytes()) | {"voter": "x"} | change).encode(), said)
    for name, (content, said) in bad.items():
        (tmp_path / name).write_bytes(content)
        line = fault(run("tally", key, good, tmp_path / name))
        assert all(word in line for word in said), line

    assert "good.json and" in (line := fault(run("tally", key, good, copy))) and "same voter" in line
    assert "same voter" in fault(run("tally", key, good, good))
    assert "missing.json cannot be read" in fault(run("tally", key, tmp_path / "missing.json"))
    assert "no user study key file, but a user study votes file" in fault(run("tally", good, good))
    for change in (
        {"pairs": [{"freeu": "up"}]},
        {"pairs": []},
        {"pairs": ["left"]},
        {"pairs": 2},
        {"study": 1},
    ):
        cut = json.loads(key.read_bytes()) | change
        (tmp_path / "cutkey.json").write_text(json.dumps(cut))
        assert "cutkey.json is damaged" in fault(run("tally", tmp_path / "cutkey.json", good))
    assert not (tmp_path / "tally.json").exists() and not (tmp_path / "tally.csv").exists()


def test_help_and_tally_need_no_torch(tmp_path: Path) -> None:
    write_study(tmp_path, some_pairs(1), SECRET_SEED, SETTINGS)
    key = read_key(tmp_path / "key.json")
    file = votes_file(tmp_path, "a", [{"text": "left", "quality": "left"}], key.study)
    code = (
        "import runpy, sys\n"
        f"sys.argv[0] = {str(SCRIPT)!r}\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    for argv in (["--help"], ["make", "--help"], ["tally", str(tmp_path / "key.json"), str(file)]):
        answer = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
        assert (answer.returncode, answer.stderr) == (0, "")


def test_help_of_each_command_names_numbers_and_paths_by_what_they_are(run: Run) -> None:
    told = run("make", "--help").out + run("tally", "--help").out
    for flag in ("--pairs N", "--seed N", "--shuffle-seed N", "--steps N", "--scale X", "--outdir PATH"):
        assert f"[{flag}]" in told


def test_a_tally_s_files_say_which_numbers_are_the_paper_s(tmp_path: Path) -> None:
    rows = tally(Key("study", ("left",)), [Ballot("a", [{"text": "left", "quality": "right"}])])
    paths = save_tally(tmp_path, rows)
    assert [path.name for path in paths] == ["tally.csv", "tally.json"]
    assert paths[0].read_text().splitlines()[0] == (
        "question,votes_for_freeu,votes,voters,share,low,high,paper_share"
    )
