"""The user study's kit: pairs from one noise, a page that gives nothing away, votes that add up."""

import base64
import csv
import importlib.util
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm import load_model
from ldm.generate import Sampling, generate
from ldm.modules.encoders.words import WordEmbedder
from ldm.study.user_study import (
    Pair,
    blinded,
    data_uri,
    freeu_sides,
    page,
    page_data,
    write_study,
)
from ldm.study.votes import (
    KEY,
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
from ldm.util import CONFIGS, ROOT, load_config

SCRIPT = ROOT / "scripts" / "user_study.py"
SECRET_SEED = 902_571_833
SETTINGS = {"config": "freeu_tiny.yaml", "freeu": {"b1": 1.1}}


class PageParser(HTMLParser):
    """What stands in a page: its tags with their attributes, and the text of its scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.setdefault(self.tags[-1][1].get("id"), data)


def data_of(text: str) -> dict[str, Any]:
    """The page's block of data, as a browser finds it."""
    return json.loads(PageParser(text).scripts["study"])


def png_of(uri: str) -> bytes:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return base64.b64decode(content, validate=True)


def pixels_of(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(png_of(uri))) as image:
        return np.asarray(image.convert("RGB"))


def some_pairs(count: int, prompt: str = "a red star") -> list[Pair]:
    rng = np.random.default_rng(count)
    pictures = rng.integers(256, size=(count, 2, 8, 12, 3), dtype=np.uint8)
    return [Pair(f"{prompt} {k}", 3000 + k, *two) for k, two in enumerate(pictures)]


def swapped(pair: Pair) -> Pair:
    return replace(pair, plain=pair.freeu, freeu=pair.plain)


@dataclass(frozen=True)
class Outcome:
    """What a run of the script came to."""

    code: int | str | None
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("user_study", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script: Any, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs scripts/user_study.py."""

    def run(*argv: object) -> Outcome:
        capsys.readouterr()
        try:
            code = script.main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def make(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> Run:
    """Runs `make` on the embedded model with small pictures and few steps."""
    config = tmp_path / "small.yaml"
    size = "sampling: {height: 32, width: 32, scale: 3.0}"
    config.write_text(f"base: {CONFIGS / 'freeu_tiny.yaml'}\n{size}\n")

    def make(*argv: object) -> Outcome:
        small = ["--config", config, "--ckpt", tiny_checkpoint, "--steps", 2, "--device", "cpu"]
        return run("make", *small, *argv)

    return make


def fault(outcome: Outcome) -> str:
    """What was said, once it is seen to be one plain line and exit code 2."""
    assert outcome.code == 2 and outcome.out == "", outcome
    [line] = outcome.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_study_holds_the_plain_and_the_freeu_picture_of_each_prompt_from_one_noise(
    make: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star\na blue ring above a green heart\n")
    folder = tmp_path / "study"
    outcome = make("--prompts", prompts, "--pairs", 3, "--seed", 7, "--shuffle-seed", 1, "--outdir", folder)
    assert (outcome.code, outcome.err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == ["key.json", "study.html"]
    assert str(folder / "study.html") in outcome.out and str(folder / "key.json") in outcome.out

    # The plain pictures are made anew by a U-Net without FreeU in it.
    models = {
        name: load_model(f"{name}.yaml", tiny_checkpoint, device="cpu") for name in ("tiny", "freeu_tiny")
    }
    shown = data_of((folder / "study.html").read_text())["pairs"]
    key = json.loads((folder / "key.json").read_text())
    texts = ["a red star", "a blue ring above a green heart", "a red star"]
    assert [one["prompt"] for one in shown] == [one["prompt"] for one in key["pairs"]] == texts
    assert [one["seed"] for one in key["pairs"]] == [7, 8, 9]
    for text, picture, secret in zip(texts, shown, key["pairs"], strict=True):
        freeu = secret["freeu"]
        [plain] = {"left", "right"} - {freeu}
        for side, name in {freeu: "freeu_tiny", plain: "tiny"}.items():
            [expected] = generate(models[name], [text], [secret["seed"]], Sampling(32, 32, 2, 3.0))
            assert np.array_equal(pixels_of(picture[side]), expected)
        assert not np.array_equal(pixels_of(picture["left"]), pixels_of(picture["right"]))

    # All settings are in the key.
    factors = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.6, "version": 1}
    assert key["kind"] == KEY and key["shuffle_seed"] == 1
    assert key["settings"].items() >= {"height": 32, "steps": 2, "scale": 3.0, "sampler": "ddim"}.items()
    assert key["settings"]["ckpt"] == str(tiny_checkpoint) and len(key["settings"]["weights"]) == 16
    assert key["settings"]["freeu"].items() >= factors.items()


def test_the_same_seeds_make_the_same_files_and_no_shuffle_seed_makes_a_new_lot(
    make: Run, tmp_path: Path
) -> None:
    def files(name: str, *argv: object) -> tuple[bytes, bytes]:
        folder = tmp_path / name
        assert make("--pairs", 1, "--outdir", folder, *argv).code == 0
        return (folder / "key.json").read_bytes(), (folder / "study.html").read_bytes()

    again = files("first", "--shuffle-seed", SECRET_SEED)
    assert files("second", "--shuffle-seed", SECRET_SEED) == again
    lots = {json.loads(files(name)[0])["shuffle_seed"] for name in ("third", "fourth")}
    assert len(lots | {SECRET_SEED}) == 3


def test_without_prompts_the_model_draws_captions_it_knows_over_again_where_there_are_too_few(
    make: Run, tmp_path: Path
) -> None:
    assert make("--steps", 1, "--pairs", 20, "--outdir", tmp_path / "study").code == 0
    pairs = json.loads((tmp_path / "study/key.json").read_text())["pairs"]
    prompts = [pair["prompt"] for pair in pairs]
    encoder = WordEmbedder(**load_config("tiny.yaml").model.params.cond_stage_config.params)
    assert not any(encoder.unknown(prompt) or encoder.truncated(prompt) for prompt in prompts)
    assert len(set(prompts)) == 16 and prompts[16:] == prompts[:4]
    assert [pair["seed"] for pair in pairs] == list(range(42, 62))


def test_without_pairs_a_file_of_prompts_is_drawn_once_and_unknown_words_are_said(
    make: Run, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star\na red squirrel\n")
    outcome = make("--prompts", prompts, "--outdir", tmp_path / "study")
    assert outcome.code == 0 and len(data_of((tmp_path / "study/study.html").read_text())["pairs"]) == 2
    [line] = outcome.err.splitlines()
    assert line.startswith("warning:") and "squirrel" in line


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_freeu_is_on_either_side_as_often_and_in_no_order(count: int) -> None:
    seeds = 2000
    left = np.array([[side == "left" for side in freeu_sides(count, seed)] for seed in range(seeds)])
    assert np.abs(left.sum(1) - count / 2).max() == count % 2 / 2

    # Over many seeds each pair is a fair coin, to five standard deviations.
    bound = 5 * math.sqrt(seeds) / 2
    assert np.abs(left.sum(0) - seeds / 2).max() < bound
    if count > 2:
        # Two pairs agree as often as two cards of a deck of so many red and black ones, by counting.
        reds = [count // 2, count - count // 2]
        alike = sum(r * (r - 1) for r in reds) / (count * (count - 1))
        for i, j in ((0, 1), (1, 2), (0, count - 1)):
            assert abs((left[:, i] == left[:, j]).sum() - seeds * alike) < bound
        assert len(np.unique(left, axis=0)) > 2 * count


@given(lot=st.integers(0, 2**62), count=st.integers(1, 6))
def test_freeu_and_plain_swapped_in_pictures_and_key_leave_the_page_as_it_is(lot: int, count: int) -> None:
    pairs, sides = some_pairs(count), freeu_sides(count, lot)
    others = [SIDES[1 - SIDES.index(side)] for side in sides]
    shown = [blinded(pair, side) for pair, side in zip(pairs, sides, strict=True)]
    mirrored = [blinded(swapped(pair), side) for pair, side in zip(pairs, others, strict=True)]
    assert page(page_data(shown)) == page(page_data(mirrored))


def test_nothing_of_the_key_is_in_the_page(tmp_path: Path) -> None:
    pairs = some_pairs(12)
    path = write_study(tmp_path, pairs, SECRET_SEED, SETTINGS | {"steps": 4817})
    text = path.read_text()
    data = data_of(text)
    assert data.keys() == {"study", "width", "height", "pairs"} and (data["width"], data["height"]) == (12, 8)
    assert all(one.keys() == {"prompt", "left", "right"} for one in data["pairs"])

    # Beside pictures and prompts there is the template, which knows no study.
    rest = text.replace(json.dumps(data), "")
    assert rest == page({"study": 0}).replace('{"study": 0}', "")
    said = rest.lower() + data["study"]
    for secret in ("freeu", "plain", "b1", "tiny", str(SECRET_SEED), "4817", "3000"):
        assert secret not in said

    # A picture's bytes depend on its pixels alone, and hold no text, date or colour profile.
    for pair, shown in zip(pairs, data["pairs"], strict=True):
        assert {shown["left"], shown["right"]} == {data_uri(pair.plain), data_uri(pair.freeu)}
        for side in SIDES:
            assert chunks(png_of(shown[side])) == {b"IHDR", b"IDAT", b"IEND"}


def chunks(png: bytes) -> set[bytes]:
    """The kinds of chunks in a PNG, by the lengths that stand before them."""
    kinds, place = set(), 8
    while place < len(png):
        kinds.add(png[place + 4 : place + 8])
        place += 12 + int.from_bytes(png[place : place + 4], "big")
    return kinds


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    path = write_study(tmp_path, some_pairs(2), SECRET_SEED, SETTINGS)
    parsed = PageParser(path.read_text())
    for tag, attributes in parsed.tags:
        assert tag not in ("iframe", "object", "embed", "form", "base")
        for name in ("src", "href", "srcset", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")
    [policy] = [found["content"] for _, found in parsed.tags if "http-equiv" in found]
    assert policy is not None and "default-src 'none'" in policy and "img-src data:;" in policy
    template = page({})
    assert not any(word in template for word in ("http:", "https:", "@import", "url(", "fetch(", "XMLHttp"))


def test_the_page_asks_and_writes_what_the_tally_reads() -> None:
    parsed = PageParser(page({}))
    fieldsets = [found for tag, found in parsed.tags if tag == "fieldset"]
    assert [fieldset["data-question"] for fieldset in fieldsets] == list(QUESTIONS)
    answers = [(found["name"], found["value"]) for tag, found in parsed.tags if tag == "input"]
    assert answers == [(question, side) for question in QUESTIONS for side in SIDES]
    assert all(f"Which {words}?" in page({}) for words in QUESTIONS.values())
    assert f'kind: "{VOTES}"' in parsed.scripts[None]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_prompt_reaches_the_voter_as_it_is(prompt: str) -> None:
    picture = np.zeros((1, 1, 3), np.uint8)
    for text in (prompt, f"</script><!--<script>{prompt}", "{{study}}" + prompt):
        data = page_data([blinded(Pair(text, 0, picture, picture), "left")])
        assert data_of(page(data)) == data and data["pairs"][0]["prompt"] == text


def test_a_key_is_never_written_over(make: Run, tmp_path: Path) -> None:
    write_study(tmp_path, some_pairs(1), SECRET_SEED, SETTINGS)
    before = (tmp_path / "key.json").read_bytes()
    assert "key of another study" in fault(make("--outdir", tmp_path))
    assert (tmp_path / "key.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pairs", 0], "--pairs is 0"),
        (["--seed", -1], "--seed is -1"),
        (["--shuffle-seed", 2**62], "--shuffle-seed is"),
        (["--steps", 0], "0 sampling steps"),
        (["--scale", "nan"], "scale is nan"),
        (["--prompts", "/no/where.txt"], "/no/where.txt cannot be read"),
        (["--config", "tiny.yaml"], "has no FreeU"),
        (["--config", "nowhere.yaml"], "no config 'nowhere.yaml'"),
        (["--ckpt", "/no/where.ckpt"], "no checkpoint at /no/where.ckpt"),
    ],
)
def test_bad_input_of_make_is_said_and_nothing_is_written(
    flags: list[object], said: str, make: Run, tmp_path: Path
) -> None:
    outcome = make("--outdir", tmp_path / "study", *flags)
    assert outcome.code == 2 and outcome.out == "" and said in outcome.err
    assert len(outcome.err.splitlines()) <= 2 and not (tmp_path / "study").exists()


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
        "other.json": ({"study": "0123456789abcdef"}, ["'0123456789abcdef'", study]),
        "none.json": ({"study": None}, ["None", study]),
        "nobody.json": ({"voter": ""}, ["names no voter"]),
        "short.json": ({"votes": [vote]}, ["on 1 pairs", "has 2"]),
        "novotes.json": ({"votes": None}, ["on no pairs"]),
        "half.json": ({"votes": [vote, {"text": "left"}]}, ["pair 2"]),
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
    cut = {"kind": KEY, "study": study, "pairs": [{"freeu": "up"}]}
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


def test_a_tally_s_files_say_which_numbers_are_the_paper_s(tmp_path: Path) -> None:
    rows = tally(Key("study", ("left",)), [Ballot("a", [{"text": "left", "quality": "right"}])])
    paths = save_tally(tmp_path, rows)
    assert [path.name for path in paths] == ["tally.csv", "tally.json"]
    assert paths[0].read_text().splitlines()[0] == (
        "question,votes_for_freeu,votes,voters,share,low,high,paper_share"
    )
