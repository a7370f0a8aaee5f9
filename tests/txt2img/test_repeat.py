"""A PNG carries all that it was made from, for webuis and for --from-image."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.config.reading import load_config
from ldm.freeu import FreeUSettings
from ldm.image_io import save_png
from ldm.txt2img.recipe import Recipe, fits, read_recipe

Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)
CPU = ["--device", "cpu"]
FREEU = asdict(FreeUSettings(1.1, 1.2, 0.9, 0.6))
RECIPE = Recipe(
    prompt="a red star",
    negative_prompt="",
    seed=7,
    height=32,
    width=64,
    steps=2,
    scale=5.0,
    sampler="ddim",
    eta=0.0,
    config="freeu_tiny.yaml",
    ckpt=None,
    precision="full",
    overrides=[],
    freeu=FREEU,
    compare=False,
)


def as_webuis_read(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and settings: the last line holds `key: value` pairs, quoted where need be."""
    *lines, last = text.strip("\n").split("\n") if text.startswith("\n") else text.split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    values = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
    cut = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt: ")), len(lines))
    negative = "\n".join(lines[cut:]).removeprefix("Negative prompt: ")
    return "\n".join(lines[:cut]), negative, values


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def texts(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return dict(image.info)


def test_a_picture_says_how_it_was_made_as_webuis_do(txt2img: Run) -> None:
    flags = [
        "--prompt",
        "a red star",
        "--negative-prompt",
        "blue",
        "--plms",
        "--scale",
        6.5,
        "--seed",
        11,
        "--W",
        64,
    ]
    [path] = txt2img(*flags).pictures()
    prompt, negative, values = as_webuis_read(texts(path)["parameters"])
    assert (prompt, negative) == ("a red star", "blue")
    assert values == {
        "Steps": "2",
        "Sampler": "PLMS",
        "CFG scale": "6.5",
        "Seed": "11",
        "Size": "64x32",
        "Model": "tiny",
        "FreeU": "b1=1.1 b2=1.2 s1=0.9 s2=0.6 version=1 threshold=1 match=channels "
        "strength=1.0 start=0.0 stop=1.0 ramp=0.0 channels=first",
    }
    [plain] = txt2img("--no-freeu", "--ddim_eta", 0.5).pictures()
    _, _, values = as_webuis_read(texts(plain)["parameters"])
    assert "FreeU" not in values and values["Eta DDIM"] == "0.5"


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    seed=st.integers(0, 2**63 - 1),
)
def test_webuis_read_back_any_prompt_and_file_name(prompt: str, name: str, seed: int) -> None:
    recipe = Recipe(**{**vars(RECIPE), "prompt": prompt, "seed": seed, "ckpt": f"{name}.ckpt"})
    text = recipe.parameters()
    assert text.split("\n")[0] == prompt
    _, _, values = as_webuis_read(f"words\n{text}")
    assert values["Seed"] == str(seed) and values["Size"] == "64x32"
    if "/" not in name and name.strip() == name:
        assert values["Model"] == Path(f"{name}.ckpt").stem


def test_a_picture_s_record_has_every_setting(txt2img: Run, tiny_checkpoint: Path) -> None:
    params = "model.params.unet_config.params"
    [path] = txt2img("--prompt", "a red star", "--freeu-version", 2, f"{params}.threshold=2").pictures()
    assert json.loads(texts(path)["freeu"]) == {
        "prompt": "a red star",
        "negative_prompt": "",
        "seed": 42,
        "height": 32,
        "width": 32,
        "steps": 2,
        "scale": load_config("freeu_tiny.yaml").sampling.scale,
        "sampler": "ddim",
        "eta": 0.0,
        "config": "freeu_tiny.yaml",
        "ckpt": str(tiny_checkpoint),
        "precision": "full",
        "overrides": [f"{params}.threshold=2"],
        "freeu": FREEU | {"version": 2, "threshold": 2},
        "compare": False,
    }


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--freeu-version", 2, "--b1", 1.3],
        ["--no-freeu"],
        ["--no-freeu", "model.params.unet_config.params.b1=1.3"],
        ["--b1", 1, "--b2", 1, "--s1", 1, "--s2", 1],
        ["--config", "tiny.yaml"],
        ["--config", "tiny.yaml", "--s1", 0.5],
        ["model.params.unet_config.params.threshold=2", "model.params.unet_config.params.match=resolution"],
        ["--ddim_eta", 0.8],
        ["--plms", "--steps", 5],
        ["--dpm", "--scale", 1, "--W", 96],
        ["--negative-prompt", "blue", "--prompt", "a red star, 50% \"off\": 'x'\nsecond line"],
        ["--prompt", ""],
        ["--compare", "--freeu-version", 2],
        ["--precision", "bf16"],
    ],
    ids=lambda flags: " ".join(map(str, flags)).partition("\n")[0] or "plain",
)  # fmt: skip
def test_from_image_repeats_a_picture_to_the_byte(flags: list[object], txt2img: Run) -> None:
    [path] = txt2img(*flags, "--seed", 5).pictures()
    outcome = txt2img("--from-image", path, defaults=CPU)
    [again] = outcome.pictures()
    assert outcome.code == 0
    assert np.array_equal(pixels(path), pixels(again))
    assert path.read_bytes() == again.read_bytes()


def test_from_image_repeats_a_picture_out_of_the_middle_of_a_run(txt2img: Run) -> None:
    paths = txt2img("--n_samples", 2, "--n_iter", 2, "--ddim_eta", 0.5).pictures()
    for path in paths[1:3]:
        [again] = txt2img("--from-image", path, defaults=CPU).pictures()
        assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        ["--n_samples", 3],
        ["--n_iter", 3, "--ddim_eta", 0.5],
        ["--n_samples", 2, "--n_iter", 2, "--fixed_code", "--n_rows", 3, "--no-freeu"],
        ["--n_samples", 2, "--compare"],
        ["--n_samples", 2, "--skip_save"],
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_from_image_repeats_a_sheet_and_all_its_pictures_to_the_byte(
    flags: list[object], txt2img: Run
) -> None:
    made = txt2img(*flags, "--seed", 5)
    again = txt2img(
        "--from-image",
        made.folder / "grid-0000.png",
        *[it for it in flags if it == "--skip_save"],
        defaults=CPU,
    )
    files = [{path.name: path.read_bytes() for path in it.folder.rglob("*.png")} for it in (made, again)]
    assert files[0] == files[1] and "grid-0000.png" in files[0]


@pytest.mark.usefixtures("small_sheets")
def test_each_of_a_run_s_sheets_makes_the_whole_run_again(txt2img: Run) -> None:
    made = txt2img("--n_iter", 3, "--n_samples", 2, "--seed", 5)  # here a sheet holds 4
    for name in ("grid-0000.png", "grid-0001.png"):
        again = txt2img("--from-image", made.folder / name, defaults=CPU)
        files = [{path.name: path.read_bytes() for path in it.folder.rglob("*.png")} for it in (made, again)]
        assert files[0] == files[1] and len(files[0]) == 6 + 2


def test_a_sheet_of_a_file_s_prompts_carries_no_settings_and_that_is_told(
    txt2img: Run, prompts: Path
) -> None:
    sheet = txt2img("--from-file", prompts).folder / "grid-0000.png"
    assert not texts(sheet)
    refused = txt2img("--from-image", sheet, defaults=CPU)
    assert refused.code == 2 and "sheets of --prompt's pictures, not those of --from-file" in refused.err


def test_a_grid_of_what_a_sheet_shows_is_drawn_from_its_first_picture(txt2img: Run) -> None:
    sheet = txt2img("--n_samples", 2, "--seed", 5).folder / "grid-0000.png"
    grid = ("--grid", "b1=1,1.2")
    varied = txt2img("--from-image", sheet, *grid, defaults=CPU)
    assert varied.code == 0, varied.err
    afresh = txt2img("--seed", 5, *grid)
    assert [it.read_bytes() for it in varied.pictures()] == [it.read_bytes() for it in afresh.pictures()]


@pytest.mark.slow
def test_flags_beside_from_image_win(txt2img: Run) -> None:
    threshold = "model.params.unet_config.params.threshold"
    made = [
        "--prompt",
        "a red star",
        "--seed",
        5,
        "--freeu-version",
        2,
        "--sampler",
        "plms",
        "--scale",
        4,
        f"{threshold}=2",
    ]
    [path] = txt2img(*made).pictures()
    for change in (
        ["--prompt", "a blue ring"],
        ["--seed", 6],
        ["--b2", 1.5],
        ["--freeu-version", 1],
        ["--sampler", "dpm"],
        ["--scale", 1],
        ["--steps", 3],
        ["--H", 64],
        ["--no-freeu"],
        ["--compare"],
        [f"{threshold}=1"],
    ):
        [changed] = txt2img("--from-image", path, *change, defaults=CPU).pictures()
        [afresh] = txt2img(*made, *change).pictures()
        assert np.array_equal(pixels(changed), pixels(afresh)), change
        assert changed.read_bytes() != path.read_bytes()


@pytest.mark.parametrize("flags", [["--grid", "b1=1,1.2"], ["--no-freeu"]], ids=["grid", "no FreeU"])
def test_a_flag_that_excludes_a_comparison_wins_over_the_picture_s(flags: list[str], txt2img: Run) -> None:
    [comparison] = txt2img("--seed", 5, "--compare").pictures()
    changed = txt2img("--from-image", comparison, *flags, defaults=CPU)
    assert changed.code == 0, changed.err
    afresh = txt2img("--seed", 5, *flags)
    assert [it.read_bytes() for it in changed.pictures()] == [it.read_bytes() for it in afresh.pictures()]

    refused = txt2img("--from-image", comparison, *flags, "--compare", defaults=CPU)
    assert refused.code == 2 and "--compare" in refused.err and not refused.pictures()


def test_overrides_beside_from_image_lie_on_those_of_the_picture(txt2img: Run) -> None:
    params = "model.params.unet_config.params"
    [path] = txt2img(f"{params}.threshold=2").pictures()
    [changed] = txt2img("--from-image", path, f"{params}.match=resolution", defaults=CPU).pictures()
    [afresh] = txt2img(f"{params}.threshold=2", f"{params}.match=resolution").pictures()
    assert np.array_equal(pixels(changed), pixels(afresh))


def test_factors_beside_a_plain_picture_switch_freeu_on(txt2img: Run) -> None:
    factors = ["--b1", 1.1, "--b2", 1.2, "--s1", 0.9, "--s2", 0.6]
    [plain] = txt2img("--no-freeu").pictures()
    [freeu] = txt2img("--from-image", plain, *factors, defaults=CPU).pictures()
    [afresh] = txt2img(*factors).pictures()
    assert np.array_equal(pixels(freeu), pixels(afresh))
    assert not np.array_equal(pixels(freeu), pixels(plain))


def test_an_override_of_freeu_beside_a_plain_picture_switches_it_on(txt2img: Run) -> None:
    [plain] = txt2img("--no-freeu").pictures()
    for override in ("b1=1.3", "stages.64=[1.3,0.5]"):
        override = f"model.params.unet_config.params.{override}"
        [freeu] = txt2img("--from-image", plain, override, defaults=CPU).pictures()
        [afresh] = txt2img(override).pictures()
        assert np.array_equal(pixels(freeu), pixels(afresh))
        assert not np.array_equal(pixels(freeu), pixels(plain))


def test_an_override_beside_from_image_refers_to_what_the_picture_has(txt2img: Run) -> None:
    params = "model.params.unet_config.params"
    [path] = txt2img("--b2", 1.5).pictures()
    grid = ("--grid", "s1=0.9,0.5")
    changed = txt2img("--from-image", path, f"{params}.b1=${{{params}.b2}}", *grid, defaults=CPU)
    assert changed.code == 0, changed.err
    afresh = txt2img("--b1", 1.5, "--b2", 1.5, *grid)
    assert [pixels(it).tobytes() for it in changed.pictures()] == [
        pixels(it).tobytes() for it in afresh.pictures()
    ]


def test_from_image_repeats_a_picture_whose_config_has_stages(txt2img: Run, tmp_path: Path) -> None:
    path = tmp_path / "stages.yaml"
    path.write_text(
        "base: freeu_tiny.yaml\nmodel: {params: {unet_config: {params: {stages: {64: [1.3, 0.5]}}}}}"
    )
    [made] = txt2img("--config", path).pictures()
    again = txt2img("--from-image", made, defaults=CPU)
    assert again.code == 0, again.err
    assert [it.read_bytes() for it in again.pictures()] == [made.read_bytes()]


@pytest.mark.parametrize("flag", [True, False], ids=["flag", "override"])
@pytest.mark.parametrize("flag_before", [True, False], ids=["after a flag", "after an override"])
def test_a_stage_beside_from_image_wins(flag_before: bool, flag: bool, txt2img: Run) -> None:
    def stage(b: float, s: float, as_flag: bool) -> list[object]:
        override = f"model.params.unet_config.params.stages.64=[{b},{s}]"
        return ["--stage", 64, b, s] if as_flag else [override]

    [path] = txt2img(*stage(1.1, 0.9, flag_before)).pictures()
    changed = txt2img("--from-image", path, *stage(1.5, 0.5, flag), defaults=CPU)
    assert changed.code == 0, changed.err
    [afresh] = txt2img("--stage", 64, 1.5, 0.5).pictures()
    assert [pixels(it).tobytes() for it in changed.pictures()] == [pixels(afresh).tobytes()]
    assert not np.array_equal(pixels(afresh), pixels(path))


def test_a_picture_can_be_varied_in_a_batch(txt2img: Run) -> None:
    [path] = txt2img("--seed", 5).pictures()
    varied = txt2img("--from-image", path, "--n_samples", 3, defaults=CPU).pictures()
    assert [json.loads(texts(one)["freeu"])["seed"] for one in varied] == [5, 6, 7]
    assert np.array_equal(pixels(varied[0]), pixels(path))


def test_a_recipe_comes_back_as_it_went(tmp_path: Path) -> None:
    RECIPE.save(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert read_recipe(tmp_path / "a.png") == RECIPE
    save_png(tmp_path / "b.png", np.zeros((8, 8, 3), np.uint8), record=vars(RECIPE) | {"from_the_future": 1})
    assert read_recipe(tmp_path / "b.png") == RECIPE


def test_a_picture_by_a_recipe_with_stages_is_known_for_it(tmp_path: Path) -> None:
    freeu = FREEU | {"stages": {64: (1.3, 0.5)}}
    recipe = Recipe(**{**vars(RECIPE), "freeu": freeu})
    recipe.save(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert recipe.made(tmp_path / "a.png") and not RECIPE.made(tmp_path / "a.png")


def test_a_file_name_that_is_not_utf_8_keeps_no_picture_from_being_saved(tmp_path: Path) -> None:
    recipe = Recipe(**{**vars(RECIPE), "config": "caf\udce9.yaml"})
    recipe.save(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert read_recipe(tmp_path / "a.png") == recipe
    assert r"Model: caf\udce9" in texts(tmp_path / "a.png")["parameters"]


@pytest.mark.parametrize(
    ("value", "hint", "answer"),
    [
        (1, int, True), (1.0, int, False), (True, int, False), ("1", int, False),
        (1, float, True), (1.5, float, True), (True, float, False), (float("nan"), float, False),
        (float("inf"), float, False), (10**400, float, False), (True, bool, True), (1, bool, False),
        (None, str | None, True), ("a", str | None, True), (1, str | None, False),
        (["a"], list[str], True), (["a", 1], list[str], False), ("a", list[str], False),
        ({"a": 1, "b": "c"}, dict[str, float | str], True), ({"a": None}, dict[str, float | str], False),
        ([], dict[str, float | str] | None, False), (None, dict[str, float | str] | None, True),
    ],
)  # fmt: skip
def test_values_are_held_against_their_types(value: object, hint: Any, answer: bool) -> None:
    assert fits(value, hint) is answer
