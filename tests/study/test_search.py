"""scripts/search.py on the embedded model: that it finds what is there, goes on, and is shared."""

import csv
import errno
import importlib.util
import itertools
import json
import os
import re
import runpy
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path, PureWindowsPath
from threading import Thread
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from optuna.storages.journal import JournalFileOpenLock
from optuna.trial import TrialState
from PIL import Image

from ldm.checkpoint import load_model
from ldm.config.reading import load_config
from ldm.errors import InputError, NoNumbers
from ldm.folders import ROOT
from ldm.freeu import PRESETS, FreeUSettings
from ldm.generate import Sampling, generate
from ldm.plots import style
from ldm.study.evaluation import measures
from ldm.study.evaluation.bootstrap import Estimate
from ldm.study.evaluation.measures import MEASURES, Measure
from ldm.study.evaluation.settings import freeu_of
from ldm.study.pairs import FIRST_SEED
from ldm.study.pictures import saturations
from ldm.study.runs import Run, Runs
from ldm.study.search import report
from ldm.study.search import search as searching
from ldm.study.search import trials as trials_module
from ldm.study.search.goals import Goal
from ldm.study.search.plot import draw_trials
from ldm.study.search.space import read_space
from ldm.study.search.trials import NAME, MendingLock, Trials
from ldm.txt2img.request import usual_sampling
from tests.conftest import Outcome
from tests.waiting import wait_until

PROMPTS = ["a red star", "a large blue ring on a green background", "a small white heart"]
FRESH = ["a green cross", "a small black square", "a purple diamond on a white background"]
SMALL = ["sampling.height=64", "sampling.width=64", "--device", "cpu", "--precision", "full"]
FEW_STEPS = ["--steps", "2", "--search-steps", "2"]


@pytest.fixture
def words(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    """What every search here is told: small pictures of three prompts in two steps."""
    for name, prompts in {"prompts": PROMPTS, "fresh": FRESH}.items():
        (tmp_path / name).write_text("\n".join(prompts))
    given = ["--prompts", tmp_path / "prompts", "--fresh-prompts", tmp_path / "fresh"]
    return [*map(str, [*given, "--ckpt", tiny_checkpoint]), *SMALL, *FEW_STEPS]


@pytest.fixture
def search(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs scripts/search.py in this process."""
    spec = importlib.util.spec_from_file_location("search", ROOT / "scripts" / "search.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*argv: object, into: str = "out") -> Outcome:
        capsys.readouterr()
        folder = tmp_path / into
        try:
            code = script.main([*words, "--outdir", str(folder), *map(str, argv)])
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr(), folder)

    return run


def table(folder: Path) -> list[dict[str, str]]:
    """The trials in a search's CSV."""
    with (folder / "search.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pictures_at(freeu: FreeUSettings, checkpoint: Path) -> np.ndarray:
    """The pictures that a search's trial has at these settings, (P, 1, H, W, 3)."""
    model = load_model("freeu_tiny.yaml", checkpoint, "cpu", torch.float32)
    model.model.diffusion_model.freeu = freeu
    seeds = [FIRST_SEED + i for i in range(len(PROMPTS))]
    return np.stack(generate(model, PROMPTS, seeds, Sampling(64, 64, steps=2, scale=3.0)))[:, None]


def test_a_search_finds_the_factor_that_its_measure_is_best_at(
    search: Callable[..., Outcome], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By construction the distance from the pictures at b1 = 1.4 is zero there and nowhere else.
    hidden = pictures_at(FreeUSettings(1.4, 1.2, 0.9, 0.6), tiny_checkpoint).astype(float)

    def distance(pictures: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(pictures - hidden).mean((2, 3, 4)))

    monkeypatch.setitem(MEASURES, "distance", Measure("distance", "lower", of=distance))
    done = search("--metrics", "distance", "--space", "b1=0.8:1.8", "--trials", 20)
    assert done.code == 0, done.err
    tried = table(done.folder)
    assert len(tried) == 20
    best = min(tried, key=lambda row: float(row["distance"]))
    assert float(best["b1"]) == pytest.approx(1.4, abs=0.04)
    found = freeu_of(load_config(done.folder / "found.yaml"))
    assert found == FreeUSettings(float(best["b1"]), 1.2, 0.9, 0.6)
    assert max(map(len, done.out.partition("found.yaml")[0].splitlines()[:-1])) <= 100


def test_off_and_the_published_factors_come_first_and_nothing_found_is_worse_than_these(
    search: Callable[..., Outcome],
) -> None:
    done = search("--metrics", "saturation:lower", "--trials", 7)
    assert done.code == 0, done.err
    tried = table(done.folder)
    assert [row["name"] for row in tried] == ["off", "V1", "config", "", "", "", ""]
    assert [tuple(float(row[name]) for name in ("b1", "b2", "s1", "s2")) for row in tried[:3]] == [
        (1, 1, 1, 1),
        (1.2, 1.4, 0.9, 0.2),
        (1.1, 1.2, 0.9, 0.6),
    ]
    record = json.loads((done.folder / "search.json").read_text())
    values = {int(row["trial"]): float(row["saturation"]) for row in tried}
    assert values[record["best"]] == min(value for number, value in values.items() if number != 0)

    # On fresh prompts: off, what was found, and the published factors of both versions.
    settings = [variant["setting"] for variant in record["check"]["variants"]]
    assert settings[:2] == ["off", "found"]
    best = [row["name"] for row in tried if int(row["trial"]) == record["best"]]
    assert {*settings, *best} >= {"V1", "V2", "config"}
    assert record["check"]["prompts"] == FRESH
    with Image.open(done.folder / "search.png") as plot:
        assert plot.width > 1000


@pytest.mark.parametrize(
    ("space", "plain", "other"),
    [(("b1=1,1.1", "b2=1", "s1=1", "s2=1"), "1", "1.1"), (("strength=0,0.5",), "0", "0.5")],
)
def test_what_is_found_changes_pictures_though_trials_without_a_name_were_the_plain_model(
    space: tuple[str, ...],
    plain: str,
    other: str,
    search: Callable[..., Outcome],
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # By construction nothing comes nearer to the pictures without FreeU than these.
    off = pictures_at(FreeUSettings(1.0, 1.0, 1.0, 1.0), tiny_checkpoint).astype(float)
    distance = Measure("distance", "lower", of=lambda pictures: np.square(pictures - off).mean((2, 3, 4)))
    monkeypatch.setitem(MEASURES, "distance", distance)
    done = search("--metrics", "distance", "--trials", 6, "--space", *space)
    assert done.code == 0, done.err
    rows, name = table(done.folder), space[0].partition("=")[0]
    assert [row for row in rows if not row["name"] and row[name] == plain]
    [best] = [row for row in rows if row["trial"] == best_of(done.folder)]
    assert best[name] == other


def test_a_trials_value_is_the_measure_of_its_pictures(
    search: Callable[..., Outcome], tiny_checkpoint: Path
) -> None:
    done = search("--metrics", "saturation:lower", "clipped:higher", "--trials", 5)
    assert done.code == 0, done.err
    row = table(done.folder)[4]
    freeu = FreeUSettings(*(float(row[name]) for name in ("b1", "b2", "s1", "s2")))
    pictures = pictures_at(freeu, tiny_checkpoint)
    for name in ("saturation", "clipped"):
        assert float(row[name]) == pytest.approx(MEASURES[name].of(pictures).mean(), abs=1e-4)


def test_with_two_goals_nothing_on_the_front_is_beaten_in_both(search: Callable[..., Outcome]) -> None:
    done = search("--metrics", "saturation:higher", "energy:lower", "--space", "b1", "version", "--trials", 9)
    assert done.code == 0, done.err
    tried = [(float(row["saturation"]), -float(row["energy"]), row) for row in table(done.folder)]
    for s, e, row in tried:
        beaten = any(a >= s and b >= e and (a, b) != (s, e) for a, b, _ in tried)
        assert (row["front"] == "1") != beaten
    best = json.loads((done.folder / "search.json").read_text())["best"]
    ranks = {
        row["trial"]: sum(a > s for a, _, _ in tried) + sum(b > e for _, b, _ in tried)
        for s, e, row in tried
        if row["name"] != "off"
    }
    assert ranks[str(best)] == min(ranks.values())


@pytest.mark.slow
def test_a_search_that_went_on_tried_what_an_unbroken_one_tries(search: Callable[..., Outcome]) -> None:
    argv = ("--metrics", "saturation:lower", "--trials")
    search(*argv, 12, into="unbroken")
    search(*argv, 5, into="broken")
    search(*argv, 14, "--seed", 1, into="otherwise")
    done = search(*argv, 12, into="broken")
    assert done.code == 0, done.err
    tried = [
        [tuple(row[name] for name in ("b1", "b2", "s1", "s2")) for row in table(done.folder.parent / name)]
        for name in ("unbroken", "broken", "otherwise")
    ]
    assert tried[0] == tried[1]
    assert tried[0][:3] == tried[2][:3] and not set(tried[0][3:]) & set(tried[2][3:])


def test_the_pictures_that_a_search_may_make_include_those_of_the_check(
    search: Callable[..., Outcome],
) -> None:
    # The check: off, V1, V2, the config's and what was found, three prompts each; then three a trial.
    done = search("--metrics", "saturation:lower", "--pictures", 15 + 3 * 6 + 2)
    assert done.code == 0, done.err
    assert len(table(done.folder)) == 6
    assert len(list((done.folder / "runs").iterdir())) <= 15 + 3 * 6
    few = search("--metrics", "saturation:lower", "--pictures", 15 + 3 * 3, into="few")
    assert few.code == 2 and "--pictures 27 or more" in few.err


def test_a_preset_is_a_config_with_all_that_the_search_was_told(
    search: Callable[..., Outcome], tiny_checkpoint: Path
) -> None:
    done = search("--metrics", "saturation:lower", "--space", "stop=0.2:0.9", "channels", "--trials", 4)
    assert done.code == 0, done.err
    path = done.folder / "found.yaml"
    small = yaml.safe_load(path.read_text())
    assert small["base"] == "freeu_tiny.yaml"
    assert small["sampling"] == {"height": 64, "width": 64, "steps": 2, "scale": 3.0}
    assert Path(small["checkpoint"]).samefile(tiny_checkpoint)
    [row] = [row for row in table(done.folder) if row["trial"] == best_of(done.folder)]
    found = freeu_of(load_config(path))
    assert (found.b1, found.b2, found.s1, found.s2) == (1.1, 1.2, 0.9, 0.6)
    assert (found.stop, found.channels) == (float(row["stop"]), row["channels"])
    assert load_config(path).model.params.channels == 12
    verdict = json.loads((done.folder / "search.json").read_text())["verdict"]
    assert "FreeU off" in verdict and verdict in path.read_text().replace("\n# ", " ")


def test_a_preset_has_the_checkpoint_and_the_lists_that_were_searched_with(
    search: Callable[..., Outcome], tiny_checkpoint: Path
) -> None:
    overrides = ["checkpoint=other.ckpt", "model.params.cond_stage_config.params.words[2]=also"]
    unet = "model.params.unet_config.params"
    overrides += [f"{unet}.stages={{64: [1.1, 0.9]}}", f"{unet}.stages.64=[1.05,0.95]"]
    done = search("--metrics", "saturation:lower", "--trials", 4, *overrides)
    assert done.code == 0, done.err
    preset = load_config(done.folder / "found.yaml")
    assert Path(preset.checkpoint).samefile(tiny_checkpoint)
    assert preset.model.params.cond_stage_config.params.words[:4] == ["a", "on", "also", "of"]
    assert freeu_of(preset).stages == {64: (1.05, 0.95)}


def test_what_is_tried_lies_in_the_space_and_baselines_are_as_given(
    search: Callable[..., Outcome],
) -> None:
    own = "model.params.unet_config.params.s1=0.87654321"
    space = ("b1=1.00012:1.00087", "b2=1.23456,1.34567", "s1")
    done = search("--metrics", "saturation:lower", "--trials", 6, "--space", *space, own)
    assert done.code == 0, done.err
    rows = table(done.folder)
    assert all(1.00012 <= float(row["b1"]) <= 1.00087 for row in rows)
    assert {row["b2"] for row in rows} == {"1.23456", "1.34567"}
    assert all(len(row["b1"]) <= 9 and len(row["s1"]) <= 5 for row in rows)

    argv = ("--metrics", "saturation:lower", "--trials", 4, "--space", "s1")
    done = search(*argv, own, into="own")
    assert {row["name"]: row["s1"] for row in table(done.folder)}["config"] == "0.87654321"


@pytest.mark.slow
@pytest.mark.parametrize("given", ["captions", "one file", "two files"])
def test_the_evaluation_that_a_search_advises_is_on_prompts_and_noise_that_it_did_not_see(
    given: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = [runpy.run_path(str(ROOT / "scripts" / f"{name}.py")) for name in ("search", "evaluate")]
    search, evaluate = (script["main"] for script in scripts)
    prompts = {"captions": ["--prompts", "3", "--fresh-prompts", "2"], "one file": words[:2]}
    argv = [
        *prompts.get(given, words[:4]),
        *words[4:],
        "--outdir",
        str(tmp_path / "out"),
        "--metrics",
        "saturation:lower",
    ]
    assert search([*argv, "--trials", "4"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:2] == ["python", "scripts/evaluate.py"]
    few = ["--steps", "2", "--metrics", "energy", "--settings", "config", "--scale", "1"]
    assert evaluate([*command[2:], *few, "--outdir", str(tmp_path / "check")]) == 0

    record = json.loads((tmp_path / "out" / "search.json").read_text())
    with (tmp_path / "check" / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    prompts = {row["prompt"] for row in rows}
    assert not prompts & set(record["prompts"])
    assert min(int(row["seed"]) for row in rows) >= FIRST_SEED + len(record["prompts"])
    assert given == "captions" or prompts == set(record["check"]["prompts"])
    assert "--unseen-by" in (tmp_path / "out" / "found.yaml").read_text()


def test_the_advised_command_is_one_for_windows_shells_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(searching, "Search", lambda _: SimpleNamespace(run=lambda: None))
    monkeypatch.setattr(report, "as_text", lambda *_: "")
    monkeypatch.setattr(report, "write", lambda *_: [PureWindowsPath(r"C:\runs\found.yaml")])
    assert runpy.run_path(str(ROOT / "scripts" / "search.py"))["main"]([]) == 0
    files = "--config C:/runs/found.yaml --unseen-by C:/runs/search.json"
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"python scripts/evaluate.py {files} --sampler ddim"


def test_the_advised_evaluation_samples_as_the_check_of_the_search_did(
    search: Callable[..., Outcome],
) -> None:
    how = ("--scale", 6, "--steps", 3, "--search-steps", 2, "--sampler", "plms")
    done = search("--metrics", "saturation:lower", "--trials", 4, *how)
    assert done.code == 0, done.err
    evaluate = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"))
    advised = evaluate["parse_arguments"](shlex.split(done.out.splitlines()[-1])[2:])
    given = {name: getattr(advised, name) for name in ("steps", "scale", "sampler")}
    assert usual_sampling(load_config(advised.config), **given) == Sampling(64, 64, 3, 6.0, "plms")


def test_the_advised_evaluation_has_the_weights_the_device_and_the_trust_that_the_search_was_given() -> None:
    search, evaluate = (runpy.run_path(str(ROOT / "scripts" / f"{it}.py")) for it in ("search", "evaluate"))
    paths = ("--clip", "a clip", "--aesthetic", "a.pth", "--inception", "i.pth", "--reference", "true")
    given = search["parse_arguments"]([*paths, "--device", "cpu", "--precision", "full", "--trust-config"])
    command = shlex.split(search["advised"](given, Path("out", "found.yaml")))
    advised = evaluate["parse_arguments"](command[2:])
    for name in ("clip", "aesthetic", "inception", "reference", "device", "precision", "trust_config"):
        assert getattr(advised, name) == getattr(given, name)


@pytest.mark.parametrize(
    ("off", "said"),
    [
        ((0.02, 0.01), "What was found beats FreeU off beyond the noise: "),
        ((0.02, -0.01), "What was found does not beat FreeU off beyond the noise: "),
        ((-0.02, -0.03), "What was found is worse than FreeU off beyond the noise: "),
    ],
)
def test_the_verdict_says_of_what_was_found_no_more_than_the_intervals_do(
    off: tuple[float, float], said: str
) -> None:
    def apart(difference: float, low: float) -> dict[str, Estimate]:
        return {"alignment": Estimate(0.9, difference, low, 2 * difference - low)}

    against = {
        "off": apart(*off),
        "V1": apart(0.01, -0.02),
        "V2": apart(0.04, 0.01),
        "config": apart(-0.04, -0.05),
    }
    made = SimpleNamespace(goals=[Goal("alignment", "higher")])
    came = searching.Outcome([], [], None, None, [], against)
    verdict = report.verdict(made, came)
    assert verdict.startswith(said)
    assert verdict.endswith(
        "It is better than published V2, alignment +4.0 [+1.0, +7.0]*. "
        "It is not told apart from published V1, alignment +1.0 [-2.0, +4.0]. "
        "It is worse than the config's factors, alignment -4.0 [-5.0, -3.0]*."
    )


@pytest.mark.parametrize(
    ("lows", "gain", "said"),
    [
        ((0.01, 0.01), "better", "What was found beats FreeU off beyond the noise"),
        ((0.01, -0.02), "mixed", "better in alignment, undecided in shape"),
        ((-0.07, 0.01), "mixed", "better in shape, worse in alignment"),
        ((-0.02, -0.07), "mixed", "worse in shape, undecided in alignment"),
        ((-0.02, -0.02), "undecided", "What was found does not beat FreeU off beyond the noise"),
        ((-0.07, -0.07), "worse", "What was found is worse than FreeU off beyond the noise"),
    ],
)
def test_of_several_goals_that_do_not_agree_each_is_told_and_off_is_not_beaten(
    lows: tuple[float, float], gain: str, said: str
) -> None:
    goals = [Goal("alignment", "higher"), Goal("shape", "higher")]
    apart = {
        goal.metric: Estimate(0.9, low + 0.03, low, low + 0.06) for goal, low in zip(goals, lows, strict=True)
    }
    came = searching.Outcome([], [], None, None, [], {"off": apart, "V1": apart})
    verdict = report.verdict(SimpleNamespace(goals=goals), came)
    assert came.gain_over("off", goals) == gain
    if gain == "mixed":
        assert verdict.startswith(f"Against FreeU off what was found is {said}: alignment ")
        assert f". Against published V1 it is {said}: alignment " in verdict
    else:
        assert verdict.startswith(f"{said}: alignment ")


def test_a_search_of_match_that_the_u_net_refuses_ends_before_the_first_trial(
    search: Callable[..., Outcome],
) -> None:
    stages = "model.params.unet_config.params.stages={64: [1.1, 0.9]}"
    done = search("--metrics", "saturation:lower", "--space", "match", "b1", "--trials", 4, stages)
    assert done.code == 2
    told = "error: --space match=resolution does not fit this model. FreeU's stages name [64], this U-Net has"
    assert done.err.splitlines()[-1].startswith(told)
    assert not (done.folder / "search.db").exists()


def best_of(folder: Path) -> str:
    return str(json.loads((folder / "search.json").read_text())["best"])


def start(words: list[str], folder: Path, *argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, ROOT / "scripts" / "search.py", *words, "--outdir", folder, *argv]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(word) for word in command], stderr=subprocess.PIPE, text=True, env=one_thread
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both.db", "both.log"])
def test_two_processes_share_one_storage_and_come_to_the_same(
    name: str, words: list[str], tmp_path: Path
) -> None:
    argv = ("--metrics", "saturation:lower", "--trials", 24, "--storage", tmp_path / name)
    processes = [start(words, tmp_path / folder, *argv) for folder in ("one", "two")]
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said

    # Both had a share; one may have begun a last trial while the other did.
    made = [len(list((tmp_path / folder / "runs").iterdir())) for folder in ("one", "two")]
    tried = table(tmp_path / "one")
    assert tried == table(tmp_path / "two")
    assert 24 <= len(tried) <= 25
    assert all("trial" in text for text in said) and min(made) > 3 * 3
    names = [row["name"] for row in tried]
    assert all(name in names for name in ("off", "V1", "config"))
    assert (tmp_path / "one" / "found.yaml").read_text() == (tmp_path / "two" / "found.yaml").read_text()


@pytest.mark.slow
def test_a_search_that_was_killed_leaves_nothing_untried(
    search: Callable[..., Outcome], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("--metrics", "saturation:lower", "--trials", 6)
    process = start(words, tmp_path / "out", *argv)
    wait_until(lambda: list(tmp_path.glob("out/runs/*.npz")), process=process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "out" / "search.csv").exists()

    # Of the trial that was under way nothing is heard any more.
    monkeypatch.setattr(trials_module, "SILENT", 0.0)
    done = search(*argv)
    assert done.code == 0, done.err
    names = [row["name"] for row in table(done.folder)]
    assert len(names) == 6 and sorted(filter(None, names)) == ["V1", "config", "off"]


def test_a_trial_that_another_process_took_for_dead_ends_no_search(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "trials.db", {}, ["maximize"], seed=0, flag="--storage")
    trial = trials.study.ask()
    trials.study.tell(trial.number, state=TrialState.FAIL)
    trials.hear(trial)
    trials.finish(trial, [1.0])
    assert [one.state for one in trials.all()] == [TrialState.FAIL]


@pytest.mark.parametrize("name", ["se{1}", "c{x}d", "what?mode=ro", "100%20b", "a#b", "file:a"])
def test_a_folder_of_any_name_holds_the_trials(name: str, tmp_path: Path) -> None:
    for made in (1, 2):
        trials = Trials(tmp_path / name / "search.db", {}, ["maximize"], seed=0, flag="--outdir")
        trials.finish(trials.study.ask(), [1.0])
        assert len(trials.complete()) == made
    assert sorted(tmp_path.rglob("*")) == [tmp_path / name, tmp_path / name / "search.db"]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_journal_whose_last_line_was_cut_short_goes_on(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "trials.log"

    def opened() -> Trials:
        return Trials(path, {}, ["maximize"], seed=0, flag="--storage")

    running = opened()
    running.finish(running.study.ask(), [1.0])
    opened().study.ask()
    path.write_bytes(path.read_bytes()[:-cut])
    # One that ran all along, on another machine, goes on as well as one that begins.
    for trials in (running, opened()) if cut == 5 else (opened(), running):
        trials.finish(trials.study.ask(), [1.0])
    assert len(opened().complete()) == len(running.complete()) == 3
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_line_that_another_process_is_writing_is_no_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "trials.log"
    trials = Trials(path, {}, ["maximize"], seed=0, flag="--storage")
    trials.finish(trials.study.ask(), [1.0])
    whole = path.read_bytes()
    lock = JournalFileOpenLock(str(path))
    lock.acquire()
    path.write_bytes(whole[:-5])
    other = Thread(target=lambda: trials.study.ask())
    other.start()
    other.join(0.2)
    assert other.is_alive() and path.read_bytes() == whole[:-5]
    path.write_bytes(whole)
    lock.release()
    other.join()
    assert path.read_bytes().startswith(whole) and len(trials.all()) == 2


def test_a_journal_needs_no_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refused)
    trials = Trials(tmp_path / "trials.log", {}, ["maximize"], seed=0, flag="--storage")
    trials.finish(trials.study.ask(), [1.0])
    assert len(trials.complete()) == 1


def test_the_lock_of_a_killed_search_is_taken_over_by_a_relative_path_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shared").mkdir()
    path = Path("shared", "trials.log")
    path.touch()
    MendingLock(path).acquire()
    lock = MendingLock(path)
    lock.grace_period = 0.1  # seconds
    other = Thread(target=lock.acquire, daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive()


def test_a_journal_that_is_spoilt_under_way_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trials.log"
    trials = Trials(path, {}, ["maximize"], seed=0, flag="--storage")
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"wor\n{"op_code":4}\n')
    with pytest.raises(InputError, match=re.escape(f"The storage {path} cannot be used: ")):
        trials.all()


def test_a_killed_search_tries_no_baseline_twice(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "trials.db", {}, ["maximize"], seed=0, flag="--storage")
    space = read_space(["b1"], FreeUSettings(1.1, 1.2, 0.9, 0.6))
    wanted = {name: {"b1": b1} for name, b1 in {"off": 1.0, "V1": 1.2, "config": 1.1}.items()}
    # Killed just before a trial is asked for, the process leaves it waiting.
    trials.study.enqueue_trial(wanted["off"], user_attrs={NAME: "off"})
    for _ in range(4):
        trials.finish(trials.next(space, wanted), [1.0])
    assert [trial.user_attrs.get(NAME) for trial in trials.complete()] == ["off", "V1", "config", None]


def numberless(monkeypatch: pytest.MonkeyPatch, at: Callable[[int], bool]) -> None:
    """Adds a measure `patchy` that is the pictures' saturation, but no number at such calls."""
    calls = count()

    def patchy(pictures: np.ndarray) -> np.ndarray:
        return saturations(pictures) * (np.nan if at(next(calls)) else 1.0)

    monkeypatch.setitem(MEASURES, "patchy", Measure("patchy", "lower", of=patchy))


def test_a_trial_without_a_value_counts_as_failed_and_the_search_goes_on(
    search: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    numberless(monkeypatch, lambda call: call in (1, 4))
    argv = ("--metrics", "patchy", "--trials", 7)
    done = search(*argv)
    assert done.code == 0, done.err
    assert "trial 1 (V1) counts as failed: Its patchy is no number." in done.err
    assert [row["trial"] for row in table(done.folder)] == ["0", "2", "3", "5", "6"]
    assert len({row["b1"] for row in table(done.folder)}) == 5
    before = (done.folder / "search.csv").read_bytes()
    again = search(*argv)
    assert again.code == 0, again.err
    assert (again.folder / "search.csv").read_bytes() == before


def test_factors_too_strong_for_numbers_count_as_failed(search: Callable[..., Outcome]) -> None:
    argv = ("--metrics", "saturation:lower", "--space", "b1=1.1,1e38", "--trials", 6)
    done = search(*argv, "--seed", 1)
    assert done.code == 0, done.err
    assert "counts as failed: The latents are no longer numbers" in done.err
    assert {row["b1"] for row in table(done.folder)} == {"1.1"} and len(table(done.folder)) < 6


def test_published_factors_too_strong_for_numbers_are_left_out_of_the_check(
    search: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, ("sd14", 1), FreeUSettings(1e38, 1.4, 0.9, 0.2))
    done = search("--metrics", "saturation:lower", "--space", "b1=0:1e38", "b2", "s1", "s2", "--trials", 4)
    assert done.code == 0, done.err
    record = json.loads((done.folder / "search.json").read_text())
    assert "V1" not in [variant["setting"] for variant in record["check"]["variants"]]


def test_published_factors_that_the_check_alone_finds_too_strong_are_left_out_with_a_word(
    search: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, ("sd14", 1), FreeUSettings(1e38, 1.4, 0.9, 0.2))
    for _ in range(2):
        done = search("--metrics", "saturation:lower", "--space", "b1=1:1.2", "--trials", 4)
        assert done.code == 0, done.err
        assert "published V1 is left out of the check: The latents are no longer numbers" in done.err
        record = json.loads((done.folder / "search.json").read_text())
        assert {one["setting"] for one in record["check"]["variants"]} >= {"off", "found", "V2"}
        assert "V1" not in [one["setting"] for one in record["check"]["variants"]]
        assert record["verdict"].endswith("The check came to no numbers with published V1.")


def test_where_the_best_trial_comes_to_no_numbers_in_the_check_the_next_best_is_found(
    search: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, strong = Runs.make, set()

    def fail_first(runs: Runs, batch: Sequence[Run], on_step: Callable[[], object]) -> None:
        freeu = batch[0].freeu
        if freeu is not None and batch[0].pair.prompt in FRESH and strong <= {str(freeu)}:
            strong.add(str(freeu))
            raise NoNumbers("Too strong.")
        make(runs, batch, on_step)

    monkeypatch.setattr(Runs, "make", fail_first)
    done = search("--metrics", "saturation:lower", "--space", "b1=1:1.2", "--trials", 6)
    assert done.code == 0, done.err
    ranked = sorted(
        (row for row in table(done.folder) if row["name"] != "off"), key=lambda row: float(row["saturation"])
    )
    record = json.loads((done.folder / "search.json").read_text())
    assert str(record["best"]) == ranked[1]["trial"]
    assert f"The check came to no numbers with trial {ranked[0]['trial']}." in record["verdict"]
    found = freeu_of(load_config(done.folder / "found.yaml"))
    assert found.b1 == float(ranked[1]["b1"])


def test_one_of_a_thing_is_told_as_one(search: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text(PROMPTS[0])
    (tmp_path / "fresh").write_text(FRESH[0])
    argv = ("--metrics", "saturation:lower", "--steps", 1, "--search-steps", 1)
    done = search(*argv, "--trials", 4)
    assert done.code == 0, done.err
    told = " ".join(done.out.split())
    assert "each on the same 1 prompt x 1 seed, in 1 ddim step at guidance" in told
    assert "What was found, on 1 prompt x 1 that the search did not see, with fresh noise, in 1 step." in told
    assert "That makes 1 trial: give" in search(*argv, "--trials", 1, into="few").err


def test_a_search_in_which_no_trial_has_a_value_says_so(
    search: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    numberless(monkeypatch, lambda call: call > 0)
    for _ in range(2):
        done = search("--metrics", "patchy", "--trials", 4)
        assert done.code == 2
        assert done.err.splitlines()[-1].startswith("error: No trial with FreeU has a value in patchy")
        assert not (done.folder / "found.yaml").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["channels", "match", "version", "threshold"],
        ["b1=1,1.05,1.1,1.15,1.2,1.25,1.3,1.35", "s1=0.1,0.2,0.3,0.4", "s2", "stop"],
        ["channels"],
    ],
    ids=str,
)
def test_the_values_under_a_panel_of_the_plot_do_not_run_into_each_other(words: list[str]) -> None:
    base = FreeUSettings(1.1, 1.2, 0.9, 0.6)
    space, study = read_space(words, base), optuna.create_study()
    for _ in range(3):
        study.tell(study.ask(space.distributions), 0.5)
    came = searching.Outcome(study.trials, [0], study.trials[0], base, [], {})
    with style():
        sheet = draw_trials(space, [Goal("alignment", "higher")], came)
        FigureCanvasAgg(sheet).draw()
    for axes in sheet.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert not any(left.overlaps(right) for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--metrics", "beauty"], "There is no metric 'beauty': there are energy,"),
        (["--metrics", "energy"], "say which way is better, energy:higher or energy:lower"),
        (["--metrics", "energy:up"], "give energy:higher or energy:lower"),
        (["--metrics", "clip"], "--metrics clip: it needs --clip"),
        (["--metrics", "clip", "--clip", "/no/clip"], "There is no folder /no/clip"),
        (["--metrics", "shape"], "the judge knows the embedded model's pictures alone"),
        (["--space", "b7=1:2"], "FreeU has no setting 'b7', but b1, b2"),
        (["--space", "b1=1.4:1"], "no range from a lower to a higher number: give it as b1=0.8:1.6"),
        (["--space", "b1=1:1.4:5"], "no range from a lower to a higher number"),
        (["--space", "b1="], "'b1=' is malformed"),
        (["--space", "b1=-1:1"], "FreeU's b1 is -1"),
        (["--space", "version=1,3"], "FreeU's version is 3"),
        (["--space", "s1", "s1=0:1"], "s1 twice"),
        (["--space", "start=0.5:0.8", "stop=0.2:0.6"], "start at 0.8, above its stop at 0.2"),
        (["--space", "stop", "model.params.unet_config.params.start=0.5"], "values of stop from 0.5 up"),
        (["--trials", "2"], "--trials 4 or more"),
        (["--trials", "0"], "--trials is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--pictures", "-3"], "--pictures is -3"),
        (["--search-steps", "0"], "0 sampling steps asked for, but this model takes 1 to 1000"),
        (["--storage", "{text}"], "{text} is no storage of a search"),
        (["--storage", "{other}"], "{other} is no storage of a search"),
        (["--storage", "{lines}"], "{lines} is no storage of a search"),
        (["--storage", "{broken}"], "The storage {broken} cannot be used"),
        (["--storage", "{folder}"], "{folder}"),
        (["--fresh-prompts", "{prompts}"], "--fresh-prompts has what the search is made on: 'a "),
        (["--storage", "/proc/no/search.db"], "Nothing can be written into /proc/no"),
        (["--storage", "postgresql://me:secret@host/db"], "in a file, not at postgresql://...: give"),
        (["--storage", "sqlite:///search.db"], "in a file, not at sqlite://...: give"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_clear_line_and_harms_no_file(
    argv: list[str], told: str, search: Callable[..., Outcome], tmp_path: Path
) -> None:
    paths = {name: tmp_path / name for name in ("text", "other", "lines", "broken", "folder", "prompts")}
    paths["text"].write_text("notes\n")
    with sqlite3.connect(paths["other"]) as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    paths["lines"].write_text('{"op_code": "of another program"}\n')
    paths["broken"].write_bytes(b"SQLite format 3\0" + bytes(2000))
    paths["folder"].mkdir()
    before = {path: path.read_bytes() for path in paths.values() if path.is_file()}
    usual = [] if "--metrics" in argv else ["--metrics", "saturation:lower"]
    done = search(*usual, *(word.format(**paths) for word in argv))
    assert done.code == 2, done.out
    assert done.err.startswith("error: ") and done.err.count("\n") <= 2
    assert told.format(**paths) in done.err
    assert {path: path.read_bytes() for path in before} == before


def test_a_storage_of_a_search_with_other_settings_is_refused_with_what_differs(
    search: Callable[..., Outcome],
) -> None:
    search("--metrics", "saturation:lower", "--trials", 4)
    done = search("--metrics", "saturation:lower", "--trials", 4, "--space", "b1=1:1.2")
    assert done.code == 2
    assert 'holds a search with other settings: space is "b1=1:1.2", was' in done.err
    assert done.err.endswith("Give the same again, or another --outdir or --storage.\n")
    storage = ("--storage", done.folder / "search.db")
    done = search("--metrics", "saturation:lower", "--space", "b1=1:1.2", *storage, into="elsewhere")
    assert done.code == 2 and done.err.endswith("Give the same again, or another --storage.\n")


def test_a_preset_is_refined_elsewhere_and_never_written_over(
    search: Callable[..., Outcome], tmp_path: Path
) -> None:
    preset, above = tmp_path / "out" / "found.yaml", tmp_path / "above.yaml"
    preset.parent.mkdir()
    preset.write_text("base: freeu_tiny.yaml\nmodel: {params: {unet_config: {params: {b1: 1.3}}}}\n")
    above.write_text(f"base: {preset}\n")
    before = preset.read_bytes()
    argv = ("--metrics", "saturation:lower", "--space", "stop=0.4:1", "--trials", 3)
    for config in (preset, above):
        done = search(*argv, "--config", config, "--storage", tmp_path / "second.db")
        assert done.code == 2 and f"{preset} is what this search starts from" in done.err
        assert "give another --outdir" in done.err and not (tmp_path / "second.db").exists()

    done = search(*argv, "--config", preset, into="refined")
    assert done.code == 0, done.err
    assert freeu_of(load_config(done.folder / "found.yaml")).b1 == 1.3
    assert preset.read_bytes() == before


def test_missing_weights_of_the_judge_are_named(
    search: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measures, "EMBEDDED", tmp_path)
    captions = ("--prompts", 4, "--fresh-prompts", 4, "sampling.height=128", "sampling.width=128")
    done = search(*captions, "--metrics", "colour")
    assert done.code == 2
    assert f"The judge's weights are not there: {tmp_path / 'judge.safetensors'}" in done.err
