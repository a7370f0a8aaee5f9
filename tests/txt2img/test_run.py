"""scripts/txt2img.py: what each flag does, from the command line to the files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from ldm.config.reading import load_config
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.txt2img.jobs import Job, plan, read_prompts
from ldm.txt2img.request import DEFAULT_PROMPT

ONES = ["--b1", 1, "--b2", 1, "--s1", 1, "--s2", 1]
Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def same(first: Path, second: Path) -> bool:
    return np.array_equal(pixels(first), pixels(second))


def test_without_flags_the_embedded_model_draws_its_own_prompt(txt2img: Run, tiny_checkpoint: Path) -> None:
    outcome = txt2img(defaults=["--ckpt", str(tiny_checkpoint), "--steps", "1", "--device", "cpu"])
    usual = load_config("tiny.yaml").sampling
    assert (outcome.code, outcome.err) == (0, "")
    assert "FreeU V1: b 1.1, s 0.9 on output blocks" in outcome.out
    [path] = outcome.pictures()
    assert path.relative_to(outcome.folder) == Path("samples/00000.png")
    assert pixels(path).shape == (usual.height, usual.width, 3)
    with Image.open(path) as image:
        assert image.info["parameters"].startswith(usual.prompt + "\n")
    assert not list(outcome.folder.glob("grid*"))


def test_steps_samplers_and_eta_are_the_ones_asked_for(txt2img: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    apply_model = LatentDiffusion.apply_model

    def counted(self, x, t, c):
        calls.append(len(x))
        return apply_model(self, x, t, c)

    monkeypatch.setattr(LatentDiffusion, "apply_model", counted)

    def drawn(*argv: object) -> tuple[np.ndarray, list[int]]:
        calls.clear()
        outcome = txt2img("--steps", 4, *argv)
        assert (outcome.code, outcome.err) == (0, "")
        return pixels(outcome.pictures()[0]), calls[1:]  # the first finds out what the model predicts

    ddim, batches = drawn()
    assert batches == [2] * 4
    assert drawn("--ddim_steps", 5)[1] == [2] * 5
    assert drawn("--scale", 1)[1] == [1] * 4
    assert drawn("--scale", 0)[1] == [2] * 4
    plms, batches = drawn("--plms", "--steps", 40)
    assert batches == [2] * 41  # its first step asks the network twice
    assert np.array_equal(plms, drawn("--sampler", "PLMS", "--steps", 40)[0])
    dpm, batches = drawn("--dpm")
    assert batches == [2] * 4
    assert np.array_equal(dpm, drawn("--dpm_solver")[0]) and np.array_equal(dpm, drawn("--sampler", "dpm")[0])
    noisy = drawn("--ddim_eta", 1)[0]
    assert len({one.tobytes() for one in (ddim, plms, dpm, noisy)}) == 4


def test_pictures_need_not_be_square(txt2img: Run) -> None:
    [path] = txt2img("--H", 32, "--W", 96).pictures()
    assert pixels(path).shape == (32, 96, 3)


def test_picture_k_depends_on_its_seed_and_not_on_the_batch(txt2img: Run) -> None:
    together = txt2img("--n_samples", 3, "--ddim_eta", 0.5, "--prompt", "a red star").pictures()
    assert len(together) == 3
    for k, path in enumerate(together):
        [alone] = txt2img("--seed", 42 + k, "--ddim_eta", 0.5, "--prompt", "a red star").pictures()
        assert same(path, alone)
    in_turn = txt2img("--n_iter", 3, "--ddim_eta", 0.5, "--prompt", "a red star").pictures()
    assert all(map(same, together, in_turn))
    assert not same(together[0], together[1])


def test_fixed_code_starts_every_batch_from_the_same_noise(txt2img: Run) -> None:
    paths = txt2img("--n_samples", 2, "--n_iter", 2, "--fixed_code", "--seed", 7).pictures()
    assert same(paths[0], paths[2]) and same(paths[1], paths[3]) and not same(paths[0], paths[1])
    [alone] = txt2img("--seed", 8).pictures()
    assert same(paths[1], alone)


def test_a_sheet_shows_all_pictures_in_rows(txt2img: Run) -> None:
    outcome = txt2img("--n_samples", 2, "--n_iter", 2)
    sheet = pixels(outcome.folder / "grid-0000.png")
    assert sheet.shape == (2 * 36 + 4, 2 * 36 + 4, 3)
    for i, path in enumerate(outcome.pictures()):
        top, left = 4 + 36 * (i // 2), 4 + 36 * (i % 2)
        assert np.array_equal(sheet[top : top + 32, left : left + 32], pixels(path))
    assert pixels(txt2img("--n_samples", 3, "--n_rows", 2).folder / "grid-0000.png").shape == (76, 76, 3)
    assert pixels(txt2img("--n_iter", 4).folder / "grid-0000.png").shape == (76, 76, 3)


def test_sheet_and_pictures_can_each_be_left_out(txt2img: Run) -> None:
    def files(*argv: object) -> list[str]:
        folder = txt2img(*argv).folder
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))

    assert files("--n_samples", 2, "--skip_grid") == ["samples/00000.png", "samples/00001.png"]
    assert files("--n_samples", 2, "--skip_save") == ["grid-0000.png"]
    assert files("--skip_save") == ["grid-0000.png"]
    assert files("--skip_save", "--skip_grid") == []
    assert "1 picture not kept" in txt2img("--skip_save", "--skip_grid").out


def test_numbering_goes_on_after_what_is_there(txt2img: Run, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    first = txt2img("--n_samples", 2, into=folder).pictures()
    before = [path.read_bytes() for path in first]
    second = txt2img("--n_samples", 2, "--seed", 5, into=folder).pictures()
    assert [path.name for path in second] == [f"{i:05}.png" for i in range(4)]
    assert [path.read_bytes() for path in second[:2]] == before
    assert (folder / "grid-0001.png").is_file()


@pytest.mark.parametrize(
    "content",
    [
        "a red star\na blue ring\n\n  a green heart \na cross\na diamond\n",
        "\ufeffa red star\r\na blue ring\r\n\r\na green heart\r\na cross\r\na diamond",
    ],
)
def test_a_file_of_prompts_is_drawn_to_the_last_line(content: str, txt2img: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content.encode())
    outcome = txt2img("--from-file", path, "--n_samples", 2)
    assert (outcome.code, outcome.err) == (0, "")
    pictures = outcome.pictures()
    assert len(pictures) == 5
    for k, prompt in enumerate(["a red star", "a blue ring", "a green heart", "a cross", "a diamond"]):
        with Image.open(pictures[k]) as image:
            first, *_, last = image.info["parameters"].split("\n")
        assert first == prompt and f"Seed: {42 + k}," in last
    [alone] = txt2img("--prompt", "a cross", "--seed", 45).pictures()
    assert same(pictures[3], alone)


def test_prompts_are_parted_by_the_ends_of_lines_of_every_system_and_by_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(" a star\r a\u2028ring\v\r\n\r\na\x0bheart \n a\x85cross".encode())
    assert read_prompts(path) == ["a star", "a\u2028ring", "a\x0bheart", "a\x85cross"]


def test_lines_of_a_file_can_be_repeated(txt2img: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a star\na ring\n")
    pictures = txt2img("--from-file", path, "--repeat", 2, "--n_iter", 2).pictures()
    prompts = [Image.open(one).info["parameters"].split("\n")[0] for one in pictures]
    assert prompts == ["a star", "a star", "a ring", "a ring"] * 2


@given(
    count=st.integers(1, 7),
    n_iter=st.integers(1, 3),
    n_samples=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    fixed=st.booleans(),
)
def test_a_plan_draws_every_prompt_in_order_with_seeds_that_count_on(
    count: int, n_iter: int, n_samples: int, seed: int, fixed: bool
) -> None:
    prompts = [f"prompt {i}" for i in range(count)]
    jobs = plan(prompts, n_iter, n_samples, seed, fixed)
    assert [job.prompt for job in jobs] == prompts * n_iter
    if fixed:
        assert jobs[:count] * n_iter == jobs
        assert all(job == Job(prompts[i], seed + i % n_samples) for i, job in enumerate(jobs[:count]))
    else:
        assert [job.seed for job in jobs] == list(range(seed, seed + count * n_iter))


def test_prompt_and_negative_prompt_change_the_picture(txt2img: Run) -> None:
    [star] = txt2img("--prompt", "a red star").pictures()
    [ring] = txt2img("--prompt", "a blue ring").pictures()
    [pushed] = txt2img("--prompt", "a red star", "--negative-prompt", "blue background").pictures()
    [empty] = txt2img("--prompt", "").pictures()
    assert len({pixels(path).tobytes() for path in (star, ring, pushed, empty)}) == 4
    with Image.open(empty) as image:
        assert image.info["parameters"].startswith("\nSteps")
    [unguided] = txt2img("--prompt", "a red star", "--scale", 1).pictures()
    [still] = txt2img("--prompt", "a red star", "--scale", 1, "--negative-prompt", "blue").pictures()
    assert same(unguided, still)


def test_no_freeu_and_factors_of_one_are_the_plain_model_bit_for_bit(txt2img: Run) -> None:
    runs = [
        txt2img("--no-freeu"),
        txt2img(*ONES),
        txt2img("--config", "tiny.yaml"),
        txt2img(*ONES, "--freeu-version", 2),
    ]
    assert all("FreeU is off" in run.out for run in runs)
    plain, *others = [run.pictures()[0] for run in runs]
    assert all(same(plain, other) for other in others)
    [freeu] = txt2img().pictures()
    assert not same(plain, freeu)


def test_factors_turn_a_plain_config_into_the_preset(txt2img: Run) -> None:
    given_factors = ["--b1", 1.1, "--b2", 1.2, "--s1", 0.9, "--s2", 0.6]
    swapped = txt2img("--config", "tiny.yaml", *given_factors)
    [preset] = txt2img("--config", "freeu_tiny.yaml").pictures()
    assert swapped.err == "" and same(swapped.pictures()[0], preset)
    [one] = txt2img("--config", "tiny.yaml", "--s2", 0.6).pictures()
    assert not same(one, preset)


def test_version_and_overrides_reach_the_model(txt2img: Run) -> None:
    params = "model.params.unet_config.params"
    pictures = [txt2img(*argv).pictures()[0] for argv in (
        [], ["--freeu-version", 2], ["--b1", 1.15], ["--threshold", 2], ["--match", "resolution"],
        ["--strength", 0.5], ["--start", 0.6], ["--stop", 0.7], ["--channels", "second"],
        ["--channels", 0.25], ["--stage", 64, 1.3, 0.7], ["--start", 0.6, "--ramp", 0.3],
    )]  # fmt: skip
    assert len({pixels(path).tobytes() for path in pictures}) == len(pictures)
    [by_override] = txt2img(f"{params}.version=2").pictures()
    assert same(pictures[1], by_override)
    [by_override] = txt2img(f"{params}.channels=second").pictures()
    assert same(pictures[8], by_override)
    [again] = txt2img("--from-image", pictures[10]).pictures()
    assert same(pictures[10], again)


def test_a_comparison_holds_both_pictures_from_the_same_noise(txt2img: Run) -> None:
    outcome = txt2img("--compare", "--H", 64, "--W", 64, "--ddim_eta", 0.5)
    [path] = outcome.pictures()
    assert path.relative_to(outcome.folder) == Path("comparisons/00000.png")
    sheet = pixels(path)
    for flags in (["--no-freeu"], []):
        [single] = txt2img("--H", 64, "--W", 64, "--ddim_eta", 0.5, *flags).pictures()
        large = pixels(single).repeat(6, axis=0).repeat(6, axis=1)  # to 384
        places = np.argwhere((sheet == large[0, 0]).all(-1))
        assert any(np.array_equal(sheet[y : y + 384, x : x + 384], large) for y, x in places)


def test_comparisons_of_short_and_long_prompts_fit_on_one_sheet(txt2img: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a star\n" + "a red star and " * 9 + "a ring\n")
    outcome = txt2img("--from-file", path, "--compare")
    assert outcome.code == 0 and len(outcome.pictures()) == 2
    heights = [pixels(one).shape[0] for one in outcome.pictures()]
    assert heights[0] < heights[1] and pixels(outcome.folder / "grid-0000.png").shape[0] > heights[1]


@pytest.mark.parametrize("precision", ["auto", "autocast", "fp16", "bf16"])
def test_every_precision_draws_nearly_the_same_picture(precision: str, txt2img: Run) -> None:
    outcome = txt2img("--precision", precision)
    assert (outcome.code, outcome.err) == (0, "")
    [exact] = txt2img().pictures()
    difference = np.abs(pixels(outcome.pictures()[0]).astype(int) - pixels(exact))
    assert difference.mean() < 8


def test_a_stranger_s_config_without_sampling_section_takes_the_usual_settings(
    txt2img: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("freeu_tiny.yaml")
    del config["sampling"], config["checkpoint"], config.model.params["use_ema"]
    config.model.base_learning_rate = 1e-4
    config.model.params.scheduler_config = {"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": {}}
    config.model.params.first_stage_config.params.lossconfig = {"target": "torch.nn.Identity"}
    config.data = {"target": "main.DataModuleFromConfig", "params": {"train": {"target": "no.where"}}}
    (tmp_path / "mine.yaml").write_text(OmegaConf.to_yaml(config))
    monkeypatch.chdir(tmp_path)
    outcome = txt2img("--config", "mine.yaml")
    [usual] = txt2img("--prompt", DEFAULT_PROMPT, "--scale", 7.5).pictures()
    assert outcome.code == 0 and same(outcome.pictures()[0], usual)
    with Image.open(outcome.pictures()[0]) as image:
        assert "CFG scale: 7.5" in image.info["parameters"]
    repeated = txt2img("--from-image", outcome.pictures()[0], defaults=["--device", "cpu"])
    assert repeated.pictures()[0].read_bytes() == outcome.pictures()[0].read_bytes()
