"""What bad input gets from scripts/txt2img.py: exit code 2, a plain line or two, and no file."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.config.freeu import FREE_UNET, UNET
from ldm.config.reading import load_config
from ldm.folders import CHECKPOINTS, CONFIGS, ROOT
from ldm.generate import Sampling
from ldm.image_io import save_png
from ldm.txt2img.caveats import too_few_steps, webui_syntax
from tests.waiting import wait_until

Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)
CPU = ["--device", "cpu"]
SMALL = [*CPU, "--H", 32, "--W", 32, "--steps", 2]
UNET_PARAMS = "model.params.unet_config.params"
RECORD: dict[str, Any] = {
    **{"prompt": "a red star", "negative_prompt": "", "seed": 7, "height": 32, "width": 32, "steps": 2},
    **{"scale": 5.0, "sampler": "ddim", "eta": 0.0, "config": "freeu_tiny.yaml", "precision": "full"},
    **{"overrides": [], "freeu": {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.6}, "compare": False},
}


def fault(outcome: Any, most: int = 2) -> str:
    """What was said, once it is seen to be plain: code 2, few lines, nothing printed or written."""
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    assert 1 <= len(lines) <= most, outcome.err
    assert "Traceback" not in outcome.err and outcome.out == ""
    assert not outcome.folder.is_dir() or not list(outcome.folder.rglob("*")), list(outcome.folder.rglob("*"))
    return outcome.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config", "freeu_sd12.yaml"], ["no config 'freeu_sd12.yaml'", "freeu_sd14.yaml", str(CONFIGS)]),
        (["--config", "freeu_sd14.yaml", "--ckpt", "no.ckpt"], [f"no.ckpt, here or in {CHECKPOINTS}."]),
        (["--ckpt", "judge"], [f"judge, here or in {CHECKPOINTS}. Is judge.safetensors meant?"]),
        (["--config", "freeu_sd21_base.yaml", "--ckpt", "v2-1_512-ema-pruned.safetensors"],
         ["on the hub is meant, 5.2 GB: put it there."]),
        (["--config", "freeu_sd21.yaml", "--ckpt", "v2-1_768-ema-pruned.safetensors"],
         [f"v2-1_768-ema-pruned.safetensors, here or in {CHECKPOINTS}", "dcd69012", "5.2 GB"]),
        (["--ckpt", "/no/where/tiny.safetensors"], ["no checkpoint at /no/where/tiny.safetensors"]),
        (["model.params.unet_config.target=ldm.nowhere.UNet"], ["ldm.nowhere.UNet"]),
        ([f"{UNET_PARAMS}.treshold=1"], ["treshold", "threshold"]),
        ([f"model.params.unet_config.target={UNET}"], ["b1, b2, s1, s2", FREE_UNET]),
        (["model=null", "--b1", "1.2"], ["no U-Net"]),
        (["model=null"], ["no `target:`"]),
        (["model.target=ldm.models.autoencoder.AutoencoderKL"], ["AutoencoderKL knows no parameter"]),
        (["model.params.cond_stage_config=__is_unconditional__"], ["does not fit the config"]),
        (["a cat on a mat"], ["'a cat on a mat'", "behind txt2img.py's --prompt"]),
        (["--H", "100"], ["height of 100", "take 96"]),
        (["--W", "0"], ["width of 0", "take 32"]),
        (["--H", "32000000000"], ["height of 32000000000"]),
        (["--steps", "0"], ["0 sampling steps", "1 to 1000"]),
        (["--steps", "1001"], ["1001 sampling steps", "1 to 1000"]),
        (["--b1", "nan"], ["b1 is nan"]),
        (["--b1", "inf"], ["b1 is inf, which is no finite number"]),
        (["--b2", "inf"], ["b2 is inf"]),
        (["--s1", "-0.1"], ["s1 is -0.1"]),
        (["--config", "tiny.yaml", "--s2=-inf"], ["s2 is -inf"]),
        (["--b1", "1,2"], ["--b1", "'1,2'"]),
        (["--match", "${"], ["cannot take FreeU's settings: match: no viable alternative"]),
        (["--freeu-version", "3"], ["--freeu-version", "3"]),
        (["--scale", "nan"], ["scale is nan"]),
        (["--ddim_eta", "2"], ["eta is 2.0"]),
        (["--plms", "--ddim_eta", "0.5"], ["eta is 0.5"]),
        (["--sampler", "euler"], ["euler"]),
        (["--seed", "-1"], ["--seed is -1"]),
        (["--seed", str(2**63)], ["--seed is"]),
        (["--seed", str(2**63 - 3), "--n_samples", "4"], ["--seed is", "4 pictures", "2**63"]),
        (["--n_samples", "0"], ["--n_samples is 0"]),
        (["--n_iter", "-2"], ["--n_iter is -2"]),
        (["--n_rows", "-1"], ["--n_rows is -1"]),
        (["--repeat", "0"], ["--repeat is 0"]),
        (["--device", "abacus"], ["abacus"]),
        (["--compare", "--no-freeu"], ["leave out --no-freeu"]),
        (["--compare", "--config", "tiny.yaml"], ["--compare needs FreeU"]),
        (["--compare", "--start=0.5", "--stop=0.5"], ["are both 0.5: give a --stop after --start"]),
        (["--from-file", "/no/where.txt"], ["/no/where.txt", "No such file"]),
        (["--from-image", "/no/where.png"], ["no picture /no/where.png"]),
        (["--prompt", "caf\udce9"], ["not valid Unicode"]),
        (["--negative-prompt", "caf\udce9"], ["not valid Unicode"]),
        (["--colour", "red"], ["--colour"]),
        (["--promt", "a star"], ["there is no --promt: --prompt may be meant"]),
        (["--ddim-stpes=3"], ["there is no --ddim-stpes: --ddim_steps may be meant"]),
        (["--config", "tiny_words.yaml"], ["Near it: train/tiny_words.yaml"]),
        (["sampling.steps=ten"], ["sampling.steps is 'ten': give a whole number."]),
        (["sampling.height=1e400"], ["sampling.height is"]),
        (["sampling.step=10"], ["'step'", "steps"]),
        (["sampling=5"], ["sampling section is 5"]),
        (["sampling.prompt=???"], ["sampling.prompt is '???': give a text."]),
        (["--no-freeu", f"{UNET_PARAMS}.dropout=???"], [f"Missing mandatory value: {UNET_PARAMS}.dropout"]),
    ],
    ids=lambda words: ascii(" ".join(words)[:40]),
)  # fmt: skip
def test_bad_input_is_answered_in_a_line_or_two(flags: list[str], said: list[str], txt2img: Run) -> None:
    # A model that the checkpoint does not fit is answered with a line for each part of it.
    message = fault(txt2img(*flags), most=6 if "fit the config" in said[0] else 2)
    for words in said:
        assert words in message


def test_a_device_that_is_not_there_is_named(txt2img: Run) -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    assert missing in fault(txt2img("--device", missing))


@pytest.mark.parametrize("content", [b"", b"\n \r\n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_prompts_is_named(content: bytes, txt2img: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    assert f"no prompt in {path}" in fault(txt2img("--from-file", path))


def test_a_file_of_prompts_that_is_no_text_is_named(txt2img: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    for encoding in ("latin-1", "utf-16-le"):
        path.write_bytes("a café".encode(encoding))
        assert f"{path} is not UTF-8" in fault(txt2img("--from-file", path))
    path.write_bytes("a star".encode("utf-16-le"))  # which is UTF-8 too, with NULs
    assert "holds NULs" in fault(txt2img("--from-file", path))
    path.write_bytes("a star\na ring\n\na café\n".encode("latin-1"))
    assert "its line 4 is not" in fault(txt2img("--from-file", path))
    assert "cannot be read" in fault(txt2img("--from-file", tmp_path))


def test_a_config_without_a_checkpoint_asks_for_one(txt2img: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(OmegaConf.to_yaml({"model": load_config("tiny.yaml").model}))
    assert "--ckpt" in fault(txt2img("--config", tmp_path / "mine.yaml", defaults=CPU))


def test_a_checkpoint_of_another_model_is_told_apart_by_its_parts(
    txt2img: Run, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    message = fault(txt2img(f"{UNET_PARAMS}.model_channels=64"), most=4)
    assert str(tiny_checkpoint) in message and "U-Net" in message and "another shape" in message
    assert "autoencoder" not in message
    weights = load_file(tiny_checkpoint)
    for name, kind in {
        "lora_unet.down": "LoRA",
        "unet.down_blocks.0.attn1.to_q.lora_A.weight": "LoRA",
        "down_blocks.0.attn1.processor.to_q_lora.down.weight": "LoRA",
        "control_model.input_blocks.0.0.weight": "ControlNet",
        "emb_params": "textual inversion",
        "first_stage_model.decoder.conv_in.weight": "autoencoder (VAE) alone",
    }.items():
        save_file({name: torch.zeros(2)}, tmp_path / "other.safetensors")
        assert kind in fault(txt2img("--ckpt", tmp_path / "other.safetensors"), most=1)
    del weights["cond_stage_model.transformer.final_layer_norm.weight"]
    save_file(weights, tmp_path / "short.safetensors")
    message = fault(txt2img("--ckpt", tmp_path / "short.safetensors"))
    assert "text encoder: 1 missing ('cond_stage_model.transformer.final_layer_norm.weight')" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("share", [0, 5e-7, 1e-4, 0.5, 0.9999])
def test_a_truncated_checkpoint_is_named(
    share: float, suffix: str, txt2img: Run, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    path = tmp_path / f"cut{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": load_file(tiny_checkpoint)}, path)
    else:
        path.write_bytes(tiny_checkpoint.read_bytes())
    os.truncate(path, int(share * path.stat().st_size))
    assert str(path) in fault(txt2img("--ckpt", path))


def test_a_pickle_with_code_in_it_is_not_run(txt2img: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    marker = tmp_path / "it ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    torch.save({"state_dict": load_file(tiny_checkpoint), "callbacks": Bomb()}, tmp_path / "whole.ckpt")
    whole = txt2img("--ckpt", tmp_path / "whole.ckpt")
    assert whole.code == 0 and len(whole.pictures()) == 1
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.ckpt")
    assert "holds no state dict" in fault(txt2img("--ckpt", tmp_path / "bomb.ckpt"))
    assert not marker.exists()


def test_numbers_that_are_none_stop_the_run_with_the_likely_cause(
    txt2img: Run, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    weights = load_file(tiny_checkpoint)
    weights["model.diffusion_model.out.2.bias"][0] = torch.nan
    save_file(weights, tmp_path / "nan.safetensors")
    outcome = txt2img("--ckpt", tmp_path / "nan.safetensors")
    assert outcome.code == 2 and not outcome.pictures() and len(outcome.err.splitlines()) == 1
    assert "checkpoint is damaged" in outcome.err and "model.diffusion_model.out.2.bias" in outcome.err
    half = txt2img("--ckpt", tmp_path / "nan.safetensors", "--precision", "bf16")
    assert half.code == 2 and "checkpoint is damaged" in half.err


@pytest.mark.parametrize("blocked", ["", "below", "samples"])
def test_an_outdir_that_cannot_be_written_is_said_before_sampling(
    blocked: str, txt2img: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("ldm.models.diffusion.ddpm.LatentDiffusion.apply_model", lambda *_: asked.append(1))
    folder = tmp_path / "out"
    if blocked == "samples":
        folder.mkdir()
        (folder / "samples").write_text("in the way")
    else:
        folder.write_text("in the way")
    outcome = txt2img(into=folder / blocked if blocked == "below" else folder)
    assert outcome.code == 2 and not asked and outcome.out == ""
    assert "Nothing can be written into" in outcome.err and str(folder) in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_factors_outside_the_published_range_are_warned_of_and_drawn(txt2img: Run) -> None:
    outcome = txt2img("--b1", 2, "--s2", 1.5)
    assert outcome.code == 0 and len(outcome.pictures()) == 1
    assert outcome.err.splitlines() == [
        "warning: b1 = 2 is outside the published range 1 to 1.2",
        "warning: s2 = 1.5 is outside the published range 0 to 1",
    ]
    assert txt2img("--b1", 2, "--freeu-version", 2).err == ""
    assert txt2img("--b1", 2, "--no-freeu").err == ""
    assert txt2img("--b1", 2, "--strength", 0).err == ""


def test_factors_of_the_other_version_are_told_with_those_of_this_one(txt2img: Run) -> None:
    sd14 = ("--b1", 1.2, "--b2", 1.4, "--s1", 0.9, "--s2", 0.2)
    assert txt2img(*sd14).err == ""
    [line] = txt2img(*sd14, "--freeu-version", 2).err.splitlines()
    assert line == (
        "warning: FreeU's factors are those published for version 1; for version 2 they are "
        "1.3 1.4 0.9 0.2 (sd14) or 1.5 1.6 0.9 0.2 (sd15)"
    )


def test_plms_in_few_steps_is_warned_of(txt2img: Run) -> None:
    [line] = txt2img("--plms", "--steps", 5).err.splitlines()
    assert line.startswith("warning: PLMS draws wrong colours in 5 steps with this model")
    [line] = txt2img("--grid", "sampler=ddim,plms", "steps=3,7").err.splitlines()
    assert "in 3 steps" in line


def test_plms_in_few_steps_is_not_warned_of_with_stable_diffusions_schedule() -> None:
    left = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0).sqrt()
    model: Any = Namespace(sqrt_alphas_cumprod=left)
    assert not [*too_few_steps(model, [Sampling(steps=20, sampler="plms")])]


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a (red:1.4) star", "(red:1.4) is"),
        (
            "a star <lora:ink:0.8> BREAK a __colour__ {ring|heart}",
            "<lora:ink:0.8>, BREAK, __colour__, {ring|heart} are",
        ),
        ("a star (red), [blue]: 1.4 <3 breaks a_b", None),
    ],
)
def test_what_webuis_do_not_read_as_words_is_told(txt2img: Run, prompt: str, told: str | None) -> None:
    lines = [line for line in txt2img("--prompt", prompt).err.splitlines() if "read as words" in line]
    assert lines == (
        [f"warning: {told} read as words: prompts have no weights, LoRAs, breaks or choices here"]
        if told
        else []
    )


def test_of_many_that_webuis_do_not_read_as_words_ten_are_named_and_the_rest_counted() -> None:
    weights = [f"(red:1.{k:02})" for k in range(13)]
    [line] = webui_syntax(["a star " + " ".join(weights), *weights])
    assert line.startswith(f"{', '.join(weights[:10])} and 3 more are read as words")
    [line] = webui_syntax(weights[:10])
    assert line.startswith(f"{', '.join(weights[:10])} are read as words")


def test_what_of_a_long_prompt_is_cut_off_is_said(txt2img: Run) -> None:
    outcome = txt2img("--prompt", "a red star and " * 6 + "a blue ring")
    assert outcome.code == 0 and len(outcome.pictures()) == 1
    [line] = outcome.err.splitlines()
    assert line.startswith("warning: the prompt is too long") and line.endswith(
        "leaves out: star and a blue ring"
    )
    assert "too long" in txt2img("--negative-prompt", "a red star and " * 6).err


def test_of_a_very_long_prompt_the_beginning_of_what_is_cut_off_is_said(txt2img: Run) -> None:
    outcome = txt2img("--prompt", "a red star and " * 100_000)
    [line] = outcome.err.splitlines()
    assert outcome.code == 0 and len(line) < 300 and line.endswith(" ...")


def test_unknown_words_are_named_in_one_line_with_the_way_to_draw_them(txt2img: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a squirrel eating a burger\na red squirrel\na red star\n")
    outcome = txt2img("--from-file", path, "--negative-prompt", "blurry")
    assert outcome.code == 0 and len(outcome.pictures()) == 3
    [line] = outcome.err.splitlines()
    assert "does not know squirrel, eating, burger, blurry" in line
    for word in load_config("tiny.yaml").model.params.cond_stage_config.params.words:
        assert f" {word}" in line
    command = line.partition("python scripts/txt2img.py")[2].split()
    assert command[:2] == ["--config", "freeu_sd21.yaml"]


def test_a_hundred_thousand_prompts_are_taken_in_within_seconds_and_warned_of_in_few_lines(
    txt2img: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"a red star {'and a blue ring ' * 7}number {k}\n" for k in range(100_000)))
    monkeypatch.setattr("ldm.txt2img.run.Run.draw", lambda *_: None)
    start = time.process_time()
    outcome = txt2img("--from-file", path)
    assert outcome.code == 0 and time.process_time() - start < 20
    *_, cut, unknown = outcome.err.splitlines()
    assert len(outcome.err.splitlines()) == 12
    assert cut == "warning: 99990 more prompts are too long"
    assert "does not know number, 0, 1, 2, 3, 4, 5, 6, 7, 8 and 99991 more words; it knows a on " in unknown


def test_a_picture_whose_config_is_not_there_says_so_and_how_to_give_another(
    txt2img: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.yaml").write_text("base: freeu_tiny.yaml\n")
    monkeypatch.chdir(tmp_path)
    [path] = txt2img("--config", "own.yaml").pictures()
    monkeypatch.chdir("/")
    message = fault(txt2img("--from-image", path, defaults=CPU))
    assert f"{path} names a config, and --config takes another. There is no config 'own.yaml'" in message
    assert txt2img("--from-image", path, "--config", tmp_path / "own.yaml", defaults=CPU).code == 0
    assert str(path) not in fault(txt2img("--from-image", path, "--config", "typo.yaml", defaults=CPU))


def test_a_picture_without_settings_or_damaged_is_named(txt2img: Run, tmp_path: Path) -> None:
    plain, words, cut = tmp_path / "plain.png", tmp_path / "words.png", tmp_path / "cut.png"
    save_png(plain, np.zeros((8, 8, 3), np.uint8), "a cat\nSteps: 2")
    words.write_text("this is no picture")
    save_png(cut, np.zeros((8, 8, 3), np.uint8), record=RECORD)
    cut.write_bytes(cut.read_bytes()[:200])
    no_picture = "not a picture"
    for path, said in ((plain, "carries a webui's settings"), (words, no_picture), (tmp_path, no_picture)):
        message = fault(txt2img("--from-image", path, defaults=CPU))
        assert str(path) in message and said in message
    assert str(cut) in fault(txt2img("--from-image", cut, defaults=CPU))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 7}, {"prompt": None}, {"prompt": "\ud800"}, {"seed": "x"}, {"seed": 1.5}, {"seed": -1},
        {"seed": 10**400}, {"height": 10**400}, {"height": True}, {"width": "32"}, {"steps": 10**30},
        {"steps": []}, {"scale": "7"}, {"scale": 10**400}, {"scale": float("nan")}, {"scale": float("inf")},
        {"sampler": "x"}, {"sampler": ["ddim"]}, {"eta": 1e308}, {"eta": None}, {"config": "no/where.yaml"},
        {"config": 3},
        {"config": "x" * 5000}, {"config": "/"}, {"config": "a\0b"}, {"ckpt": "no/where.ckpt"}, {"ckpt": 5},
        {"ckpt": "x" * 5000}, {"precision": "half"}, {"precision": 16}, {"overrides": "model=1"},
        {"overrides": [1]}, {"overrides": ["words"]}, {"overrides": ["model=1"]}, {"overrides": ["model=${"]},
        {"freeu": []}, {"freeu": {"b1": "x"}}, {"freeu": {"b1": 10**400}}, {"freeu": {"b1": None}},
        {"freeu": {"b1": float("nan")}}, {"freeu": {"b1": -1}}, {"freeu": {"b1": {"b1": 1}}},
        {"freeu": {"c": 1}}, {"freeu": {"b1": "${oc.env:HOME"}}, {"freeu": {"match": "???"}},
        {"freeu": {"stages": {"x": [1, 1]}}}, {"freeu": {"stages": {"9" * 5000: [1, 1]}}},
        {"freeu": {"version": 7}}, {"freeu": {"threshold": 0}}, {"compare": "yes"}, {"compare": 1},
    ],
    ids=lambda change: ascii(change)[:40],
)  # fmt: skip
def test_hostile_settings_in_a_picture_are_refused(
    change: dict[str, Any], txt2img: Run, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    path = tmp_path / "a.png"
    save_png(path, np.zeros((8, 8, 3), np.uint8), record=RECORD | {"ckpt": str(tiny_checkpoint)} | change)
    fault(txt2img("--from-image", path, defaults=CPU))


def test_a_reference_in_a_picture_s_freeu_is_not_followed(
    txt2img: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    monkeypatch.setenv("SECRET", "the user's own")
    save_png(
        path,
        np.zeros((8, 8, 3), np.uint8),
        record=RECORD | {"ckpt": None, "freeu": {"match": "${oc.env:SECRET}"}},
    )
    message = fault(txt2img("--from-image", path, defaults=CPU))
    assert f"The settings in {path} are damaged: freeu holds a reference, " in message
    assert "the user's own" not in message


def test_settings_in_a_picture_are_taken_whole_or_not_at_all(
    txt2img: Run, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    path, record = tmp_path / "a.png", RECORD | {"ckpt": str(tiny_checkpoint)}
    save_png(path, np.zeros((8, 8, 3), np.uint8), record=record)
    assert txt2img("--from-image", path, defaults=CPU).code == 0
    for name in record:
        rest = {key: value for key, value in record.items() if key != name}
        save_png(path, np.zeros((8, 8, 3), np.uint8), record=rest)
        assert f"lack '{name}'" in fault(txt2img("--from-image", path, defaults=CPU))


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.target=os.mkdir", "model.params={path: %s}"],
        ["model.params.unet_config={target: os.mkdir, params: {path: %s}}"],
        ["model.target=pathlib.Path", "model.params={}"],
        ["checkpoint={t: os.mkdir}", "model.params.unet_config.target=${checkpoint.t}"],
        ["model.params.cond_stage_config=\"${oc.decode:'{target: os.mkdir, params: {path: %s}}'}\""],
    ],
)
def test_a_picture_cannot_have_foreign_code_run(
    overrides: list[str], txt2img: Run, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.png"
    overrides = [override.replace("%s", str(marker)) for override in overrides]
    save_png(path, np.zeros((8, 8, 3), np.uint8), record=RECORD | {"ckpt": None, "overrides": overrides})
    message = fault(txt2img("--from-image", path, "--ckpt", tiny_checkpoint, defaults=CPU))
    assert "add --trust-config" in message or "cannot be resolved" in message  # by OmegaConf 2.3
    assert not marker.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_every_finished_picture_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    argv = ["--ckpt", tiny_checkpoint, "--outdir", tmp_path, *SMALL, "--n_iter", 10_000]
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "txt2img.py", *map(str, argv)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # Where the tests run in the background the interrupt is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(lambda: len(list(tmp_path.glob("samples/*.png"))) >= 3, 300, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert err.split("\n") == ["", "stopped; every finished picture is kept, --resume makes the rest", ""]

    books = ("manifest.jsonl", ".manifest.lock")
    finished = sorted(path for path in tmp_path.rglob("*.*") if path.name not in books)
    assert len(finished) >= 3
    assert [str(path.relative_to(tmp_path)) for path in finished] == [
        f"samples/{i:05}.png" for i in range(len(finished))
    ]
    for path in finished:
        with Image.open(path) as image:
            image.load()
            assert image.size == (32, 32) and json.loads(image.info["freeu"])["seed"] == 42 + int(path.stem)


def test_a_picture_whose_decoding_the_memory_does_not_hold_is_warned_of(
    txt2img: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.txt2img.caveats.installed", lambda: 16 * 10**9)
    monkeypatch.setattr("ldm.txt2img.run.Run.draw", lambda *_: None)
    large = txt2img("--H", 16384, "--W", 16384)
    assert large.err == (
        "warning: to decode 16384x16384 takes over 68 GB, and this machine has 16: "
        "give a smaller --W and --H\n"
    )
    assert txt2img("--H", 4096, "--W", 4096).err == ""
