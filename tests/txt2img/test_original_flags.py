"""Command lines that were written for the original scripts, of CompVis and of Stability."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.command_line import ELSEWHERE
from ldm.image_io import read_record
from tests.txt2img.test_run import same

Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)


def test_the_latents_sizes_are_taken_where_they_are_the_models(txt2img: Run) -> None:
    [plain] = txt2img().pictures()
    [path] = txt2img("--C", 12, "--f", 8).pictures()
    assert same(path, plain)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--C", "4"], "--C is 4, but the model's latents have 12 channels: leave it out."),
        (["--f", "16"], "--f is 16, but a latent of the model stands for 8 pixels a side: leave it out."),
    ],
)
def test_other_latents_than_the_models_are_refused_in_a_line(
    flags: list[str], said: str, txt2img: Run
) -> None:
    outcome = txt2img(*flags)
    assert (outcome.code, outcome.err) == (2, f"error: {said}\n")
    assert not outcome.pictures()


@pytest.mark.parametrize("flags", ["--bf16", "--precision full --bf16", "--bf16 --precision full"])
def test_bf16_is_bfloat16_whatever_the_precision(flags: str, txt2img: Run) -> None:
    [path] = txt2img(*flags.split()).pictures()
    assert read_record(path)["precision"] == "bf16"


def test_a_picture_in_another_precision_can_be_repeated_in_bf16(txt2img: Run) -> None:
    [path] = txt2img("--precision", "fp16").pictures()
    [again] = txt2img("--from-image", path, "--bf16", defaults=["--device", "cpu"]).pictures()
    assert read_record(again)["precision"] == "bf16"


def test_how_stabilitys_script_uses_a_cpu_changes_nothing(txt2img: Run) -> None:
    [plain] = txt2img().pictures()
    [path] = txt2img("--torchscript", "--ipex").pictures()
    assert same(path, plain)


def test_sizes_may_be_written_out(txt2img: Run) -> None:
    [plain] = txt2img("--H", 32, "--W", 64).pictures()
    [path] = txt2img("--height", 32, "--width", 64).pictures()
    assert same(path, plain)


def test_flags_may_have_hyphens_for_underscores_and_underscores_for_hyphens(
    txt2img: Run, prompts: Path
) -> None:
    asked = ["--n_samples", 2, "--skip_grid", "--ddim_eta=0.5", "--from-file", prompts, "--freeu-version=2"]
    other = ["--n-samples", 2, "--skip-grid", "--ddim-eta=0.5", "--from_file", prompts, "--freeu_version=2"]
    short = ["--n-s", 2, "--skip-g", "--ddim-et=0.5", "--from_fi", prompts, "--freeu_ver=2"]
    first, *rest = (txt2img(*flags) for flags in (asked, other, short))
    assert first.code == 0
    for outcome in rest:
        assert outcome.code == 0 and not list(outcome.folder.glob("grid*"))
        assert all(map(same, outcome.pictures(), first.pictures()))


def test_the_spelling_of_values_is_left_alone(txt2img: Run) -> None:
    [path] = txt2img("--prompt=--a_red-star", "--negative_prompt", "blue_ring").pictures()
    record = read_record(path)
    assert (record["prompt"], record["negative_prompt"]) == ("--a_red-star", "blue_ring")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prompt", "a red star", "--from-file", "prompts.txt"], ["--from-file", "--prompt"]),
        (["--plms", "--dpm"], ["--dpm", "--plms"]),
        (["--sampler", "dpm", "--plms"], ["--plms", "--sampler"]),
        (["--repeat", "3"], ["--repeat is 3", "--from-file", "--n_samples"]),
    ],
)
def test_flags_of_which_one_would_be_passed_over_are_refused(
    flags: list[str], said: list[str], txt2img: Run
) -> None:
    outcome = txt2img(*flags)
    assert outcome.code == 2 and not outcome.pictures()
    *_, line = outcome.err.splitlines()
    assert "error: " in line and all(words in line for words in said)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--laion400m", "--config and --ckpt"),
        ("--cfg=7", "--scale"),
        ("--cfg-scale=7", "--scale"),
        ("--guidance_scale=7", "--scale"),
        ("--num_inference_steps=20", "--steps"),
        ("--batch_size=4", "--n_samples"),
        ("--batch-count=4", "--n_iter"),
        ("--model=sd.safetensors", "--ckpt and --config"),
        ("--half", "--precision fp16"),
        ("--no_grid", "--skip_grid"),
    ],
)
def test_another_programs_flag_is_answered_with_the_one_here(flag: str, meant: str, txt2img: Run) -> None:
    outcome = txt2img(flag)
    assert (outcome.code, outcome.pictures()) == (2, [])
    assert outcome.err.endswith(f" there is no {flag.partition('=')[0]}: {meant} may be meant\n")


def test_the_flags_that_are_named_to_others_are_there(txt2img: Run) -> None:
    here = set(re.findall(r"--[\w-]+", txt2img("--help").out))
    named = {flag for words in ELSEWHERE.values() for flag in re.findall(r"--[\w-]+", words)}
    assert named and named <= here
    assert not ELSEWHERE.keys() & {flag.replace("_", "-") for flag in here}


@pytest.mark.parametrize("flag", ["--vae", "--lora", "--init-img", "--hires", "--dtype", "--medvram"])
def test_a_flag_for_which_there_is_none_here_is_not_taken_for_another(flag: str, txt2img: Run) -> None:
    outcome = txt2img(flag)
    assert outcome.code == 2 and outcome.err.endswith(f" unrecognized arguments: {flag}\n")


def test_a_pictures_prompt_gives_way_to_a_file_of_prompts(txt2img: Run, prompts: Path) -> None:
    [path] = txt2img("--prompt", "a red star", "--plms").pictures()
    outcome = txt2img("--from-image", path, "--from-file", prompts, "--dpm", defaults=["--device", "cpu"])
    assert outcome.code == 0 and len(outcome.pictures()) == 5
    assert read_record(outcome.pictures()[1])["sampler"] == "dpm"
