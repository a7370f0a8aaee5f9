"""What bad input gets from scripts/figures.py: exit code 2 and a plain line; finished figures are kept."""

import json
import os
import resource
import sys
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ldm.errors import InputError
from ldm.modules.encoders.words import WordEmbedder
from ldm.study.figures.figure import save
from ldm.study.pairs import PAPER_PROMPTS, plan_pairs
from tests.conftest import Outcome

UNET = "model.params.unet_config"


def said(outcome: Outcome) -> str:
    """The one line or two that a fault gets."""
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: ") and len(outcome.err.splitlines()) <= 2, outcome.err
    return outcome.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--figure", "12"], "no figure 12 here: the figures are 3, 4, 5, 6, 7, 8, 9/19, 10/15, 13"),
        (["--figure", "3", "x"], "no figure x here"),
        (["--all", "--prompts", "0"], "--prompts is 0"),
        (["--all", "--prompts", "no-such-file"], "no-such-file cannot be read"),
        (["--all", "--seeds", "0"], "--seeds is 0"),
        (["--all", "--seeds", "999999999999"], "over 1,000,000 pictures"),
        (["--all", "--prompts", "999999999999"], "over 1,000,000 pictures"),
        (["--all", "--prompts", 5000 * "9"], "over 1,000,000 pictures"),
        (["--all", "--steps", "0"], "0 sampling steps asked for, but this model takes 1 to 1000"),
        (["--all", "--steps", "1001"], "1001 sampling steps asked for"),
        (["--all", "--config", "no-such.yaml"], "no-such.yaml"),
        (["--all", "--ckpt", "no-such.ckpt"], "no-such.ckpt"),
        (["--all", "--outdir", "/dev/null/figures"], "/dev/null/figures"),
        (
            ["--all", f"{UNET}.target=torch.nn.Identity"],
            "skip concatenations, but torch.nn.Identity has none",
        ),
        (["--all", f"{UNET}.target=no.such.Class"], "no.such.Class"),
        (["--all", "sampling.height=60"], "height"),
    ],
)
def test_bad_input_is_named_in_a_line(figures: Callable[..., Outcome], words, part):
    outcome = figures(*words)
    assert part in said(outcome)
    assert not list(outcome.folder.glob("*.*"))


def test_an_empty_prompt_file_is_named(figures, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n\n")
    assert "There is no prompt in" in said(figures("--all", "--prompts", tmp_path / "prompts.txt"))


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_names_of_files_may_be_any_bytes(figures, tiny_checkpoint, tmp_path):
    config, weights = (tmp_path / os.fsdecode(name) for name in (b"\xff.yaml", b"\xfe.ckpt"))
    config.write_text("base: freeu_tiny.yaml\nsampling: {prompt: a red star}\n")
    torch.save(load_file(tiny_checkpoint), weights)
    outcome = figures("--figure", "3", "--config", config, "--ckpt", weights)
    assert outcome.code == 0, outcome.err
    assert "\\udcff.yaml" in (outcome.folder / "figures.html").read_text()
    assert "\\udcfe.ckpt" in (outcome.folder / "claims.md").read_text()


def test_words_that_the_model_does_not_know_are_said_once(figures, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red squirrel\n")
    outcome = figures("--figure", "3", "--prompts", tmp_path / "prompts.txt", "--seeds", "2")
    assert outcome.code == 0, outcome.err
    [line] = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert "does not know squirrel;" in line


@pytest.mark.slow
def test_prompts_may_hold_dollars(figures, tmp_path):
    (tmp_path / "prompts.txt").write_text("price $1_$\na sign: $\\foo$\n")
    outcome = figures("--figure", "5", "8", "10", "14", "--prompts", tmp_path / "prompts.txt")
    assert outcome.code == 0, outcome.err
    assert r"a sign: $\foo$" in (outcome.folder / "figure08.csv").read_text()


@pytest.mark.parametrize("words", [[], ["--all", "--figure", "3"]])
def test_figures_are_asked_for_one_way(figures, words):
    outcome = figures(*words)
    assert outcome.code == 2 and "give --all, or --figure" in outcome.err


def test_without_matplotlib_the_remedy_is_told(figures, monkeypatch):
    for name in [
        name for name in sys.modules if name.startswith(("matplotlib", "ldm.plots", "ldm.study.figures"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install -e ".[figures]"' in said(figures("--all"))


@contextmanager
def largest_file(size: int):
    """Makes the system refuse files above a size, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_where_the_disk_is_full_halfway_finished_figures_stay(figures):
    with largest_file(200_000):
        outcome = figures("--figure", "6", "5")  # figure 5's pictures take more room than figure 6's curves
    assert "figure05.png cannot be written" in said(outcome)
    kept = sorted(path.name for path in outcome.folder.glob("*.*"))
    assert kept == ["figure06.csv", "figure06.json", "figure06.pdf", "figure06.png"]
    assert figures("--figure", "6", "5").code == 0


@pytest.mark.slow
def test_a_study_stopped_after_its_first_figure_leaves_no_page_of_two_studies(figures, monkeypatch):
    folder = figures("--figure", "17", "18").folder
    assert {"figures.html", "claims.md"} <= {path.name for path in folder.iterdir()}

    def save_one(figure, *others):
        if figure.number == 18:
            raise KeyboardInterrupt
        save(figure, *others)

    monkeypatch.setattr("ldm.study.figures.study.save", save_one)
    assert figures("--figure", "17", "18", "--steps", "2").code == 130
    steps = [json.loads((folder / f"figure{n}.json").read_text())["sampling"]["steps"] for n in (17, 18)]
    assert steps == [2, 3]
    assert not {"figures.html", "claims.md"} & {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_figure_that_is_only_half_written_anew_has_no_json(figures):
    folder = figures("--figure", "5").folder
    assert (folder / "figure05.json").is_file()
    with largest_file(200_000):
        assert "figure05.png cannot be written" in said(figures("--figure", "5"))
    assert not (folder / "figure05.json").exists()


def test_a_page_that_cannot_be_replaced_is_named(figures):
    folder = figures("--figure", "17").folder
    (folder / "figures.html").unlink()
    (folder / "figures.html").mkdir()
    assert "figures.html cannot be removed" in said(figures("--figure", "17"))


def test_one_step_is_told_as_one(figures):
    outcome = figures("--figure", "17", "--steps", "1", "--prompts", "1")
    assert "over 1 pair of prompt and seed: 1 DDIM step, guidance" in outcome.out


def test_figures_of_the_supplement_are_found(figures):
    outcome = figures("--figure", "15", "10")
    assert outcome.code == 0 and outcome.out.count("| 10/15 |") == 1
    assert "b only" in (outcome.folder / "figure10.csv").read_text()


class TestPairs:
    embedder = WordEmbedder(["a", "star"], max_length=8, width=8, heads=1, layers=1)

    def test_there_are_sixteen_captions_for_the_embedded_model(self):
        pairs = plan_pairs(None, None, self.embedder)
        assert len(pairs) == len({pair.seed for pair in pairs}) == len({pair.prompt for pair in pairs}) == 16
        assert all("background" in pair.prompt for pair in pairs)
        assert plan_pairs("3", None, self.embedder) == plan_pairs("3", 6, self.embedder)

    def test_others_take_the_papers_prompts(self):
        other = nn.Linear(1, 1)
        pairs = plan_pairs(None, None, other)
        assert {pair.prompt for pair in pairs} == set(PAPER_PROMPTS) and len(pairs) == 16
        with pytest.raises(InputError, match="the paper names 8"):
            plan_pairs("9", None, other)

    def test_a_file_gives_its_own(self, tmp_path):
        (tmp_path / "prompts.txt").write_text("a star\n\n a ring \n")
        pairs = plan_pairs(str(tmp_path / "prompts.txt"), 2, self.embedder)
        assert [pair.prompt for pair in pairs] == ["a star", "a star", "a ring", "a ring"]
        assert len({pair.seed for pair in pairs}) == 4
