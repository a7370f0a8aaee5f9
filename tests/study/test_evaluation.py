"""scripts/evaluate.py on the embedded model, and what its settings and measures are made of."""

import csv
import importlib.util
import io
import json
import math
import runpy
import struct
import tracemalloc
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image
from torch import nn

from ldm.config.reading import load_config
from ldm.data.judge import Findings, Found
from ldm.data.scenes import HELD_OUT, describe, draw_scene
from ldm.errors import InputError
from ldm.folders import ROOT
from ldm.freeu import FreeUSettings, find_preset
from ldm.modules.encoders.words import WordEmbedder
from ldm.study.evaluation import asked as asked_for
from ldm.study.evaluation import evaluation, measures
from ldm.study.evaluation.asked import Asked, plan, plan_apart, plan_unseen, read_seen
from ldm.study.evaluation.bootstrap import DRAWS, Mean, resamples
from ldm.study.evaluation.evaluation import SHOWN, read_evaluation
from ldm.study.evaluation.measures import JUDGED, judged, read_pictures
from ldm.study.evaluation.report import legend
from ldm.study.evaluation.settings import parse, read_settings
from ldm.study.evaluation.subject import Subject
from tests.conftest import Outcome

CUSTOM = "b1=1.3,s1=0.6,version=2"
PLAIN = ("energy", "saturation", "clipped", "diversity")


@pytest.fixture
def evaluate(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Runs scripts/evaluate.py on the embedded model, in two steps, into the same folder each time."""
    spec = importlib.util.spec_from_file_location("evaluate", ROOT / "scripts" / "evaluate.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(measures, "RENDERS", 40)

    def run(*argv: object) -> Outcome:
        folder = tmp_path / "out"
        usual = ("--outdir", folder, "--ckpt", tiny_checkpoint, "--device", "cpu", "--precision", "full")
        try:
            code = script.main([str(word) for word in (*usual, "--steps", 2, *argv)])
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr(), folder)

    return run


def by_hand(lines: list[dict[str, str]], name: str, prompts: list[str]) -> float:
    """A measure's mean over the lines of these prompts, each as often as it comes."""
    total = weight = 0.0
    for prompt in prompts:
        for line in lines:
            if line["prompt"] == prompt and line[name]:
                asked = float(line.get(f"{name}_asked", 1))
                total += asked * float(line[name])
                weight += asked
    return total / weight if weight else math.nan


def test_one_command_leaves_a_table_the_numbers_and_a_picture(evaluate: Callable[..., Outcome]) -> None:
    done = evaluate("--prompts", 4, "--settings", "off", "v2", CUSTOM)
    assert done.code == 0, done.err
    assert max(map(len, done.out.partition("Every number")[0].splitlines())) <= 100
    summary = json.loads((done.folder / "evaluation.json").read_text())
    lines = list(csv.DictReader((done.folder / "evaluation.csv").open()))

    # Off, and each setting at the same guidance and at the matched one.
    variants = summary["variants"]
    of_variant: dict[int, list[dict[str, str]]] = {}
    for i, variant in enumerate(variants):
        key = (variant["setting"], str(int(variant["matched"])), str(variant["guidance"]))
        of_variant[i] = [
            line for line in lines if (line["setting"], line["matched"], line["guidance"]) == key
        ]
        assert [line["seed"] for line in of_variant[i]] == [str(42 + k) for k in range(8)]
        if variant["matched"]:
            assert variant["guidance"] == pytest.approx(
                variants[0]["guidance"] / variant["guidance_ratio"], abs=1e-3
            )
        assert (variant["freeu"] is None) == (variant["setting"] == "off")
    names = [(variant["setting"], variant["matched"]) for variant in variants]
    assert names == [
        ("off", False),
        *((name, matched) for name in ("V2", CUSTOM) for matched in (False, True)),
    ]
    assert len(lines) == 5 * 8

    # Every number and every interval comes out of the CSV once more.
    assert tuple(variants[0]["measures"]) == (*PLAIN, *JUDGED, "frechet")
    assert summary["true_renders"] == 40
    prompts = list(dict.fromkeys(line["prompt"] for line in lines))
    drawn = [
        list(np.repeat(prompts, row))
        for row in resamples(4, summary["bootstrap"]["draws"], summary["bootstrap"]["seed"])
    ]
    for i, variant in enumerate(variants):
        for name in (*PLAIN, *JUDGED):
            told = variant["measures"][name]
            assert told["value"] == pytest.approx(by_hand(of_variant[i], name, prompts))
            if i > 0:
                off = by_hand(of_variant[0], name, prompts)
                assert told["difference"] == pytest.approx(told["value"] - off, abs=1e-12)
    for name in ("saturation", "shape", "relation"):
        apart = [by_hand(of_variant[1], name, d) - by_hand(of_variant[0], name, d) for d in drawn]
        ends = np.nanquantile(apart, [0.025, 0.975])
        told = variants[1]["measures"][name]
        # Four prompts: Student's quantile is 3.1824 for 1.9600, and the deviation sqrt(4 / 3) too small.
        widened = told["difference"] + (ends - told["difference"]) * 3.1824 / 1.9600 * (4 / 3) ** 0.5
        assert [told["low"], told["high"]] == pytest.approx(widened, rel=1e-4)
    assert any(variants[1]["measures"][name]["difference"] != 0 for name in PLAIN)

    # Three prompts below each other, five variants beside each other.
    width, height = Image.open(done.folder / "evaluation.png").size
    assert width > 5 * 256
    assert height > 3 * 256


def test_what_the_model_will_not_read_of_the_prompts_is_said(
    evaluate: Callable[..., Outcome], tmp_path: Path
) -> None:
    (tmp_path / "prompts").write_text(f"a red squirrel\na red star {'and a blue ring ' * 7}\n")
    usual = ("--settings", "V1", "--seeds", 1, "--metrics", "saturation", "--scale", 1)
    done = evaluate("--prompts", tmp_path / "prompts", *usual)
    assert done.code == 0, done.err
    warned = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 2
    assert "too long for the text encoder, which leaves out: ring and a blue ring" in warned[0]
    assert "does not know squirrel" in warned[1]
    assert "warning" not in evaluate("--prompts", 2, *usual).err


def test_one_of_a_kind_is_counted_as_one(evaluate: Callable[..., Outcome]) -> None:
    usual = ("--settings", "V1", "--seeds", 1, "--metrics", "saturation", "--scale", 1)
    head = " ".join(evaluate("--prompts", 1, "--steps", 1, *usual).out.split())
    assert ": 1 prompt x 1 seed, 1 ddim step, " in head
    head = " ".join(evaluate("--prompts", 2, "--steps", 2, *usual).out.split())
    assert ": 2 prompts x 1 seed, 2 ddim steps, " in head


def test_the_table_says_of_which_measures_there_are_fewer_draws() -> None:
    drawn = {"frechet": DRAWS, "fid": 100, "saturation": DRAWS}
    one = SimpleNamespace(
        estimates=drawn, statistics={name: SimpleNamespace(draws=n, prompts=4) for name, n in drawn.items()}
    )
    facts = {"sampling": {"scale": 3}}
    assert "Of fid there are 100 draws" in " ".join(legend([one], {}, facts))
    one.statistics["fid"].draws = 0  # which has no interval at all
    assert "draws" not in " ".join(legend([one], {}, facts))


def test_the_table_says_of_which_measures_one_prompt_alone_tells() -> None:
    four, one = (SimpleNamespace(draws=DRAWS, prompts=prompts) for prompts in (4, 1))
    facts = {"sampling": {"scale": 3}}
    result = SimpleNamespace(estimates={}, statistics={"shape": four, "relation": one, "texture": one})
    assert "there is no interval of relation, texture." in " ".join(legend([result], {}, facts))
    result.statistics = {"shape": four}
    assert "no interval" not in " ".join(legend([result], {}, facts))


def test_a_second_command_samples_nothing_again_and_prints_the_same(evaluate: Callable[..., Outcome]) -> None:
    argv = ("--prompts", 2, "--seeds", 1, "--settings", "V1", "--metrics", "energy", "saturation")
    first = evaluate(*argv)
    made = {path: path.stat().st_mtime_ns for path in (first.folder / "runs").iterdir()}
    assert len(made) == 3 * 2
    again = evaluate(*argv)
    assert (again.code, again.out) == (0, first.out)
    assert {path: path.stat().st_mtime_ns for path in (first.folder / "runs").iterdir()} == made


def test_how_far_a_setting_guides_is_measured_once(
    evaluate: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, measured = evaluation.guidance_ratios, []
    monkeypatch.setattr(
        evaluation, "guidance_ratios", lambda *given: measured.append(given[3]) or measure(*given)
    )

    def ratios(*argv: object) -> dict[str, float]:
        small = (
            "--prompts",
            1,
            "--seeds",
            1,
            "--metrics",
            "energy",
            "sampling.height=32",
            "sampling.width=32",
        )
        done = evaluate(*small, *argv)
        assert done.code == 0, done.err
        variants = json.loads((done.folder / "evaluation.json").read_text())["variants"]
        return {variant["setting"]: variant["guidance_ratio"] for variant in variants}

    first = ratios("--settings", "V1")
    second = ratios("--settings", "V2", "V1")
    assert second["V1"] == first["V1"] != second["V2"]
    assert ratios("--settings", "V1", "--steps", 1)["V1"] != first["V1"]
    v1, v2 = (find_preset("sd14", version) for version in (1, 2))
    assert measured == [[v1], [v2], [v1]]


def test_damaged_ratios_of_guidance_are_named(tmp_path: Path) -> None:
    path = tmp_path / "guidance.json"
    for content in ("", "[]", '{"a": null}', '{"a": "b"}'):
        path.write_text(content)
        with pytest.raises(InputError, match=f"{path} cannot be read .*: remove it"):
            evaluation.read_ratios(path)


def test_without_guidance_there_is_nothing_to_match_and_the_table_says_so(
    evaluate: Callable[..., Outcome], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a red star\na blue ring\n")
    # A change to the config may stand anywhere, behind --settings too.
    prompts = ("--prompts", tmp_path / "prompts.txt")
    done = evaluate(*prompts, "--scale", 1, "--settings", "config", "sampling.height=64")
    assert done.code == 0, done.err
    assert "not guided at scale 1" in done.out
    summary = json.loads((done.folder / "evaluation.json").read_text())
    assert [variant["setting"] for variant in summary["variants"]] == ["off", "config"]
    assert summary["sampling"]["height"] == 64
    assert tuple(summary["variants"][0]["measures"]) == PLAIN  # the prompts are no captions of known scenes


def test_of_each_settings_pictures_only_those_that_are_shown_are_kept(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"))
    words = ["--outdir", tmp_path, "--ckpt", tiny_checkpoint, "--device", "cpu", "--steps", 2, "--scale", 1]
    words += ["--prompts", 5, "--metrics", "saturation", "--settings", "V1", "sampling.height=64"]
    results, _ = read_evaluation(script["parse_arguments"]([str(word) for word in words])).run()
    assert [result.shown.shape for result in results] == [(SHOWN, 64, 128, 3)] * 2
    assert all(result.shown.base is None for result in results), "a view keeps the whole array alive"


def test_a_settings_pictures_are_held_once_and_are_gone_before_the_next_ones_are_read(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"))
    words = ["--outdir", tmp_path, "--ckpt", tiny_checkpoint, "--device", "cpu", "--steps", 1, "--scale", 1]
    words += ["--prompts", 6, "--metrics", "saturation", "--settings", "V1"]
    read, held, peaks = Subject.pictures, [], []

    def watched(*given: Any) -> np.ndarray:
        assert not any(one() is not None for one in held), "the setting before is still held"
        tracemalloc.start()
        pictures = read(*given)
        peaks.append(tracemalloc.get_traced_memory()[1] / pictures.nbytes)
        tracemalloc.stop()
        held.append(weakref.ref(pictures))
        return pictures

    monkeypatch.setattr(Subject, "pictures", watched)
    read_evaluation(script["parse_arguments"]([str(word) for word in words])).run()
    assert len(held) == 2
    assert max(peaks) < 1.6  # its own size, and one picture of twelve with what its file takes


def test_factors_under_which_nothing_guides_are_not_matched(evaluate: Callable[..., Outcome]) -> None:
    mute = "b1=0,b2=0,s1=0,s2=0,channels=all"
    done = evaluate("--settings", mute, "--prompts", 2, "--seeds", 1, "--metrics", "saturation")
    assert done.code == 0, done.err
    variants = json.loads((done.folder / "evaluation.json").read_text())["variants"]
    assert {variant["setting"]: variant["matched"] for variant in variants} == {"off": False, mute: False}


def test_the_setting_under_which_pictures_are_no_numbers_is_named(evaluate: Callable[..., Outcome]) -> None:
    strong = "b1=1e30,b2=1e30"
    done = evaluate(
        "--settings", "V1", strong, "--prompts", 1, "--seeds", 1, "--metrics", "energy", "--scale", 2
    )
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(
        f"error: {strong}, guidance 2: The latents are no longer numbers"
    )


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--settings", "V3"], "There is no setting 'V3'"),
        (["--settings", "b7=1.2"], "FreeU has no setting 'b7': it has b1, b2, s1, s2, version"),
        (["--settings", "b1=1.2,b1=1.4"], "b1=1.2,b1=1.4 has b1 twice"),
        (["--settings", "b1=-1"], "FreeU's b1 is -1"),
        (["--settings", "off"], "nothing to compare with off"),
        (["--config", "tiny.yaml", "--settings", "config"], "the config has no FreeU"),
        (["--metrics", "beauty"], "There is no metric 'beauty': there are energy,"),
        (["--metrics", "clip"], "--metrics clip: it needs --clip"),
        (["--metrics", "diversity", "--seeds", "1"], "it needs --seeds 2 or more"),
        (["--clip", "/no/clip"], "There is no folder /no/clip"),
        (["--clip", "/no/clip"], "\nhf download openai/clip-vit-large-patch14 --local-dir "),
        (["--clip", "."], "There is no CLIP model in ."),
        (["--aesthetic", "."], "give --clip too"),
        (["--metrics", "fid"], "--metrics fid: it needs --inception"),
        (["--inception", "/no/file", "--metrics", "fid"], "There is no file of Inception weights /no/file"),
        (["--inception", "/no/file", "--metrics", "fid"], "weights-inception-2015-12-05-6726825d.pth"),
        (["--clip", ".", "--reference", "/no/pictures"], "There is no folder /no/pictures"),
        (["--reference", "."], "give --clip or --inception too"),
        (["--ckpt", "/no/model.ckpt"], "There is no checkpoint at /no/model.ckpt"),
        (["--prompts", "0"], "--prompts is 0"),
        (["--prompts", "/no/prompts"], "/no/prompts cannot be read"),
        (["--prompts", "{captions}", "--metrics", "shape"], "the judge knows the embedded model's"),
        (["--prompts", "{captions}", "--held-out"], "--held-out chooses among the embedded model's captions"),
        (["sampling.height=64", "--metrics", "shape"], "pictures of 128x128 pixels, not 128x64"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--seeds", "999999999999"], "over 1,000,000 pictures"),
        (["--prompts", "999999999999"], "over 1,000,000 pictures"),
        (["--prompts", 5000 * "9"], "over 1,000,000 pictures"),
        (["--clip", 300 * "c"], f"{40 * 'c'}... is too long a name"),
        (["--scale", "nan"], "The guidance scale is nan"),
        (["--steps", "0"], "0 sampling steps asked for, but this model takes 1 to 1000"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_clear_line(
    argv: list[str], told: str, evaluate: Callable[..., Outcome], tmp_path: Path
) -> None:
    (tmp_path / "captions").write_text("a red star\n")
    done = evaluate(*(word.format(captions=tmp_path / "captions") for word in argv))
    assert done.code == 2
    assert done.err.startswith("error: ") and done.err.count("\n") <= 2
    assert told in done.err


def test_missing_weights_of_the_judge_are_named(
    evaluate: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measures, "EMBEDDED", tmp_path)
    done = evaluate("--metrics", "colour", "--prompts", 1)
    assert done.code == 2
    assert f"The judge's weights are not there: {tmp_path / 'judge.safetensors'}" in done.err


def test_settings_are_the_models_published_factors_the_configs_or_any_given() -> None:
    tiny, sd21 = load_config("freeu_tiny.yaml"), load_config("freeu_v2_sd21.yaml")
    assert read_settings(None, sd21, sd21.checkpoint) == {
        "V1": find_preset("sd21"),
        "V2": find_preset("sd21", 2),
    }
    assert read_settings(None, tiny, tiny.checkpoint) == {
        "V1": find_preset("sd14"),
        "V2": find_preset("sd14", 2),
        "config": FreeUSettings(1.1, 1.2, 0.9, 0.6),
    }
    # Weights of another name are taken for what the config's are.
    tuned, sd14 = load_config("freeu_sd21.yaml"), load_config("freeu_sd14.yaml")
    for config, ckpt, model in (
        (tuned, "tuned.ckpt", "sd21"),
        (sd14, "a/v2-1_512-ema-pruned.safetensors", "sd21"),
        (tiny, "tuned.ckpt", "sd14"),
    ):
        assert read_settings(["V1"], config, ckpt) == {"V1": find_preset(model)}
    given = parse("b1=1.3,s2=0,version=2,channels=alternate,match=resolution,stop=0.5")
    assert given == FreeUSettings(1.3, 1, 1, 0, 2, channels="alternate", match="resolution", stop=0.5)
    assert parse("b1=1e-2,s1=1E0,stop=5e-1") == FreeUSettings(0.01, 1, 1, 1, stop=0.5)
    for text, told in {"b1=": "b1 is ''", "b1=nan": "b1 is nan", "version=1e0": "version is 1.0"}.items():
        with pytest.raises(InputError, match=told):
            parse(text)


def test_a_reference_picture_too_large_to_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "small.png").write_bytes(png_of_size(8, 8))
    (tmp_path / "vast.png").write_bytes(png_of_size(20_000, 20_000))
    with pytest.raises(InputError, match=r"vast\.png cannot be read: Image size \(400000000 pixels\)"):
        list(read_pictures(tmp_path))


def test_a_folder_with_one_true_picture_is_told_that_two_are_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no picture .* put two PNGs or JPEGs or more there"):
        read_pictures(tmp_path)
    (tmp_path / "small.png").write_bytes(png_of_size(8, 8))
    with pytest.raises(InputError, match=r"There is one picture .* put two PNGs or JPEGs or more there"):
        read_pictures(tmp_path)


def png_of_size(width: int, height: int) -> bytes:
    """The head of a PNG of that size, and all of it where that is small."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    head = b"IHDR" + struct.pack(">II", width, height) + file.getvalue()[24:29]
    return file.getvalue()[:12] + head + struct.pack(">I", zlib.crc32(head)) + file.getvalue()[33:]


def text_encoder() -> WordEmbedder:
    return WordEmbedder(("a", "red", "star"), max_length=5, width=8, heads=1, layers=1)


def test_captions_are_asked_for_with_their_scenes_and_no_seed_twice() -> None:
    asked = plan("5", False, 3, text_encoder())
    assert len({pair.seed for pairs in asked.pairs for pair in pairs}) == 15
    assert len(set(asked.prompts)) == 5
    for prompt, scene in zip(asked.prompts, asked.scenes, strict=True):
        assert all(f"{thing.size} {thing.colour}" in prompt for thing in scene.things)
    with pytest.raises(InputError, match="paper names 8"):
        plan("9", False, 1, nn.Identity())


@pytest.mark.parametrize("held_out", [False, True])
def test_no_caption_is_asked_for_twice(held_out: bool) -> None:
    first = plan("256", held_out, 1, text_encoder())
    assert len(set(first.prompts)) == 256
    assert [describe(scene) for scene in first.scenes] == first.prompts
    second = plan("256", held_out, 1, text_encoder(), apart=first)
    assert len({*first.prompts, *second.prompts}) == 512


def test_more_captions_than_there_are_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = draw_scene(default_rng(0))
    monkeypatch.setattr(asked_for, "draw_scene", lambda *_: scene)
    assert plan("1", False, 1, text_encoder()).prompts == [describe(scene)]
    with pytest.raises(InputError, match="hardly 2 captions that differ: ask for fewer --prompts"):
        plan("2", False, 1, text_encoder())


def test_held_out_captions_hold_only_pairs_that_training_never_showed() -> None:
    usual, held_out = (
        {
            (thing.shape, thing.colour)
            for scene in plan("64", flag, 1, text_encoder()).scenes
            for thing in scene.things
        }
        for flag in (False, True)
    )
    assert held_out == HELD_OUT
    assert not usual & HELD_OUT


@pytest.mark.parametrize("captions", [True, False], ids=["captions", "the paper's prompts"])
def test_a_search_and_the_check_of_it_share_no_prompt_and_no_noise(captions: bool) -> None:
    encoder = text_encoder() if captions else nn.Identity()
    first, second = plan_apart(None, None, 2, encoder, (20, 50))
    assert (len(first.pairs), len(second.pairs)) == ((20, 50) if captions else (4, 4))
    assert not set(first.prompts) & set(second.prompts)

    def seeds(asked: Asked) -> list[int]:
        return [pair.seed for pairs in asked.pairs for pair in pairs]

    assert len({*seeds(first), *seeds(second)}) == len(seeds(first)) + len(seeds(second))
    if captions:
        assert [describe(scene) for scene in second.scenes] == second.prompts


def test_a_prompt_that_a_file_repeats_is_not_in_both_the_search_and_the_check(
    tmp_path: Path,
) -> None:
    file = tmp_path / "prompts"
    file.write_text("a cat\na cat\na dog\na dog\n")
    first, second = plan_apart(str(file), None, 1, text_encoder(), (20, 50))
    assert (first.prompts, second.prompts) == (["a cat"], ["a dog"])
    file.write_text("a cat\na cat\n")
    with pytest.raises(InputError, match="give --fresh-prompts too"):
        plan_apart(str(file), None, 1, text_encoder(), (20, 50))


@pytest.mark.parametrize("encoder", [text_encoder(), nn.Identity()], ids=["captions", "the paper's prompts"])
def test_what_a_search_saw_is_left_out(encoder: nn.Module, tmp_path: Path) -> None:
    saw = plan("3", False, 2, encoder)
    told = tmp_path / "search.json"
    told.write_text(json.dumps({"prompts": saw.prompts, "seeds_each": 2}))
    unseen = plan_unseen(None, False, 1, encoder, read_seen(told))
    assert not set(unseen.prompts) & set(saw.prompts)
    assert [pair.seed for [pair] in unseen.pairs] == [48 + k for k in range(len(unseen.pairs))]
    assert len(unseen.pairs) == (64 if isinstance(encoder, WordEmbedder) else 5)

    file = tmp_path / "prompts"
    file.write_text("\n".join([*saw.prompts, "a green cross"]))
    assert plan_unseen(str(file), False, 1, encoder, read_seen(told)).prompts == ["a green cross"]
    file.write_text(saw.prompts[0])
    with pytest.raises(InputError, match="saw all of these prompts: give others"):
        plan_unseen(str(file), False, 1, encoder, read_seen(told))


@pytest.mark.parametrize("content", [
    None, "{", "[]", '{"prompts": [1], "seeds_each": 1}', '{"prompts": []}',
    '{"prompts": ["a star"], "seeds_each": 0}'])  # fmt: skip
def test_a_file_that_no_search_wrote_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"--unseen-by {path} "):
        read_seen(path)


class HandMade:
    """Stands in for the judge: it finds what it is given, one picture after the other."""

    def __init__(self, findings: list[Findings]):
        self.findings = findings

    def find(self, pictures: list[Any]) -> list[Findings]:
        found, self.findings = self.findings[: len(pictures)], self.findings[len(pictures) :]
        return found


def as_seen(scene: Any, **changes: str) -> Findings:
    """A scene's true findings, with changes to its first thing."""
    things = [Found(it.shape, it.colour, it.texture, it.x, it.y) for it in scene.things]
    things[0] = Found(**{**vars(things[0]), **changes})
    return Findings(tuple(things), scene.background, scene.background_texture)


def test_the_judges_findings_count_once_for_each_thing_relation_and_picture() -> None:
    drawn = [draw_scene(default_rng(k)) for k in range(20)]
    two = next(scene for scene in drawn if len(scene.things) == 2)
    one = next(scene for scene in drawn if len(scene.things) == 1)
    wrong = next(shape for shape in ("star", "ring", "heart") if shape not in {t.shape for t in two.things})
    findings = [as_seen(two), as_seen(two, shape=wrong), as_seen(one), as_seen(one, texture="none")]
    means = judged(HandMade(findings), [np.zeros(1)] * 4, [two, one], seeds=2)

    # Things: 2 + 2 with one shape wrong, 1 + 1 with one texture wrong. Two pictures have a relation.
    together = np.ones((1, 2), int)
    values = {name: mean.at(together)[0] for name, mean in means.items()}
    assert values == pytest.approx(
        {"number": 1, "shape": 5 / 6, "colour": 1, "texture": 5 / 6, "relation": 1, "background": 1}
        # Asked of the first picture of two are 2 * 3 things' facts and 3 more, of one 3 and 2 more.
        | {"alignment": 26 / 28}
    )
    assert means["relation"].weights.tolist() == [[1, 1], [0, 0]]
    assert isinstance(means["shape"], Mean) and means["shape"].values.tolist() == [[1, 0.5], [1, 1]]
