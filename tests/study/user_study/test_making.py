"""Making a user study: pairs from one noise, FreeU on either side as often, a key of its own."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm import load_model
from ldm.config.reading import load_config
from ldm.errors import InputError
from ldm.generate import Sampling, generate
from ldm.modules.encoders.words import WordEmbedder
from ldm.study.user_study import freeu_sides, refuse_if_all_alike, write_study
from ldm.study.votes import KEY
from tests.study.test_figures_faults import largest_file
from tests.study.user_study.conftest import Run, fault
from tests.study.user_study.studies import SECRET_SEED, SETTINGS, data_of, png_of, some_pairs


def pixels_of(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(png_of(uri))) as image:
        return np.asarray(image.convert("RGB"))


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


def test_the_precision_that_was_asked_for_is_drawn_in_and_told_in_the_key(make: Run, tmp_path: Path) -> None:
    pictures = {}
    for name, told in {"full": "float32", "bf16": "bfloat16"}.items():
        folder = tmp_path / name
        outcome = make("--pairs", 1, "--shuffle-seed", 1, "--precision", name, "--outdir", folder)
        assert outcome.code == 0
        assert json.loads((folder / "key.json").read_text())["settings"]["precision"] == told
        pictures[name] = pixels_of(data_of((folder / "study.html").read_text())["pairs"][0]["left"])
    assert 0 < np.abs(pictures["full"].astype(int) - pictures["bf16"]).mean() < 10


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


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("stop: 0", ["no FreeU to compare with (FreeU is off: it stops where it starts, at 0 of the run)"]),
        ("start: 0.999", ["FreeU changes no picture here", "start, stop and strength"]),
    ],
)
def test_a_study_of_pairs_that_are_all_alike_is_refused(
    when: str, said: list[str], make: Run, tmp_path: Path
) -> None:
    config = tmp_path / "never.yaml"
    config.write_text(
        f"base: {tmp_path / 'small.yaml'}\nmodel: {{params: {{unet_config: {{params: {{{when}}}}}}}}}\n"
    )
    outcome = make("--config", config, "--pairs", 2, "--outdir", tmp_path / "study")
    assert outcome.code == 2 and all(words in outcome.err for words in said)
    assert len(outcome.err.splitlines()) == 1
    assert not [*(tmp_path / "study").glob("*")]


def test_how_many_pairs_are_alike_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = some_pairs(3)
    refuse_if_all_alike(pairs)
    assert capsys.readouterr().err == ""
    refuse_if_all_alike([*pairs, replace(pairs[0], freeu=pairs[0].plain)])
    assert capsys.readouterr().err.startswith("warning: in 1 of 4 pairs FreeU changes nothing")


def test_a_key_is_never_written_over(make: Run, tmp_path: Path) -> None:
    write_study(tmp_path, some_pairs(1), SECRET_SEED, SETTINGS)
    before = (tmp_path / "key.json").read_bytes()
    assert "key of another study" in fault(make("--outdir", tmp_path))
    assert (tmp_path / "key.json").read_bytes() == before


def test_a_page_that_cannot_be_written_leaves_no_key_and_the_same_command_goes_through(
    make: Run, tmp_path: Path
) -> None:
    argv = ("--pairs", 1, "--outdir", tmp_path / "study")
    with largest_file(5000):  # the key is smaller, the page larger
        assert "study.html cannot be written" in fault(make(*argv))
    assert not list((tmp_path / "study").iterdir())
    assert make(*argv).code == 0


def test_a_study_stopped_while_its_page_is_written_leaves_nothing(
    make: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def stopped(part: Path, path: Path) -> Path:
        if path.name == "study.html":
            raise KeyboardInterrupt
        return replace(part, path)

    monkeypatch.setattr(Path, "replace", stopped)
    outcome = make("--pairs", 1, "--outdir", tmp_path / "study")
    assert outcome.code == 130 and "nothing was written" in outcome.err
    assert not list((tmp_path / "study").iterdir())


def test_a_missing_checkpoint_is_fetched_where_that_is_asked_for(
    make: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(name: str, into: Path) -> Path:
        raise InputError(f"{name} is fetched into {into}.")

    monkeypatch.setattr("ldm.weights.place.fetch", fetch)
    argv = ("--ckpt", tmp_path / "sd-v1-4.ckpt", "--outdir", tmp_path / "study")
    assert "or add --download to have it fetched" in make(*argv).err
    assert fault(make(*argv, "--download")) == f"error: sd-v1-4.ckpt is fetched into {tmp_path}."


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pairs", 0], "--pairs is 0"),
        (["--pairs", 500_001], "over 1,000,000 pictures"),
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
