"""The manifest of a run: what it holds, what --resume makes again after it, and what it refuses."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import ldm.txt2img.painter as painter_module
from ldm.errors import InputError
from ldm.image_io import save_png
from ldm.txt2img.manifest import Manifest, differences
from tests.forks import tree

Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_the_manifest_says_how_each_picture_was_made(txt2img: Run, prompts: Path) -> None:
    folder = txt2img("--from-file", prompts, "--seed", 7).folder
    run, *files = lines(folder)
    assert run["run"] == {"folder": "samples", "first": 0, "pictures": 5, "first_sheet": 0, "sheets": 1}
    wanted = {"seed": 7, "steps": 2, "height": 32, "sampler": "ddim", "pictures": 5, "device": "cpu"}
    assert wanted.items() <= run["settings"].items()
    texts = ["a red star", "a blue ring", "a green heart", "a cross above a diamond", "a yellow square"]
    assert [(entry["file"], entry.get("prompt"), entry.get("seed")) for entry in files] == [
        *((f"samples/{k:05}.png", text, 7 + k) for k, text in enumerate(texts)),
        ("grid-0000.png", None, None),
    ]
    for entry in files:
        assert entry["sha256"] == hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()


def test_what_was_removed_or_changed_since_is_made_again_and_nothing_else(
    txt2img: Run, prompts: Path, loaded_once: None
) -> None:
    command = ("--from-file", prompts, "--resume")
    folder = txt2img(*command).folder
    whole = tree(folder)
    before = {path: path.stat().st_ino for path in folder.rglob("*.png")}
    (folder / "samples" / "00001.png").unlink()
    os.truncate(folder / "samples" / "00003.png", 500)
    (folder / "grid-0000.png").write_bytes(b"scribbled over")
    (folder / "samples" / ".00002.png.4711").write_bytes(b"half of a pict")
    (folder / ".grid-0000.png.4711").write_bytes(b"half of a sheet")
    (folder / "samples" / ".00005.png.4711").write_bytes(b"another's")
    outcome = txt2img(*command, into=folder)
    assert outcome.code == 0 and "3 of 5 pictures are there already" in outcome.out
    after = tree(folder)
    assert after.pop("samples/.00005.png.4711") == b"another's"
    del whole["manifest.jsonl"], after["manifest.jsonl"]
    assert after == whole
    for name in ("00000.png", "00002.png", "00004.png"):
        path = folder / "samples" / name
        assert path.stat().st_ino == before[path]
    again = txt2img(*command, into=folder)
    assert again.code == 0 and "5 of 5" in again.out


def test_a_file_in_the_place_of_a_picture_is_not_written_over(txt2img: Run, loaded_once: None) -> None:
    command = ("--n_samples", 2, "--resume")
    folder = txt2img(*command).folder
    content = (folder / "manifest.jsonl").read_bytes()
    stranger = folder / "samples" / "00001.png"
    for other in (b"a letter", (folder / "samples" / "00000.png").read_bytes(), stranger.read_bytes()[:-40]):
        (folder / "manifest.jsonl").write_bytes(content[: content.index(b"\n") + 1])
        stranger.write_bytes(other)
        outcome = txt2img(*command, into=folder)
        assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
        assert f"{stranger} is in the place of a picture" in outcome.err
        assert stranger.read_bytes() == other
    stranger.unlink()
    assert txt2img(*command, into=folder).code == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", 3], "steps is 3, was 2"),
        (["--seed", 5], "seed is 5, was 42"),
        (["--plms"], 'sampler is "plms", was "ddim"'),
        (["--negative-prompt", "blue"], 'negative_prompt is "blue", was ""'),
        (["--n_iter", 2], "pictures is 10, was 5"),
        (["--n_rows", 2], "n_rows is 2, was 0"),
        (["--skip_grid"], "skip_grid is true, was false"),
        (["--precision", "bf16"], 'precision is "bf16", was "full"'),
        (["--b1", 1.2], "freeu.b1 is 1.2, was 1.1"),
        (["--no-freeu"], "freeu is null, was {"),
        (["--compare"], "compare is true, was false"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_another_run_than_the_broken_one_is_refused_by_what_differs(
    flags: list[object], said: str, txt2img: Run, prompts: Path
) -> None:
    folder = txt2img("--from-file", prompts).folder
    before = tree(folder)
    outcome = txt2img("--from-file", prompts, "--resume", *flags, into=folder)
    assert outcome.code == 2 and outcome.out == "" and len(outcome.err.splitlines()) == 1
    assert f"{folder / 'manifest.jsonl'} is of a run with other settings: {said}" in outcome.err
    assert {name: it for name, it in tree(folder).items() if "comparisons" not in name} == before


def test_a_run_stopped_before_it_began_is_told_how_it_begins_beside_others(txt2img: Run) -> None:
    folder = txt2img().folder
    stopped = ("--seed", 7, "--resume")  # as Ctrl-C advises, though it came while torch was imported
    outcome = txt2img(*stopped, into=folder)
    assert outcome.code == 2 and outcome.err.endswith(
        "without --resume or in another --outdir a new run begins.\n"
    )
    assert txt2img(*stopped[:-1], into=folder).code == 0 and len(outcome.pictures()) == 2
    assert txt2img(*stopped, "--outdir", folder / "other").code == 0


def test_other_prompts_weights_or_config_are_refused(
    txt2img: Run, prompts: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    ckpt = tmp_path / "mine.safetensors"
    save_file(load_file(tiny_checkpoint), ckpt)
    command = ("--from-file", prompts, "--ckpt", ckpt, "--resume")
    folder = txt2img(*command).folder

    def refused(*flags: object) -> str:
        outcome = txt2img(*command, *flags, into=folder)
        assert outcome.code == 2
        return outcome.err

    assert "model.params.unet_config.params.threshold" in refused(
        "model.params.unet_config.params.threshold=2"
    )
    prompts.write_text(prompts.read_text().replace("blue", "green"))
    assert 'prompt is "5 prompts of sha256' in refused()
    prompts.write_text(prompts.read_text().replace("a green ring", "a blue ring"))
    assert txt2img(*command, into=folder).code == 0
    weights = load_file(tiny_checkpoint)
    weights["model.diffusion_model.out.2.bias"] += 0.125
    save_file(weights, ckpt)
    assert "weights is" in refused()


@pytest.mark.parametrize(
    ("flags", "count"), [(["--n_iter", 2], 3), (["--n_iter", 2, "--skip_save"], 3), (["--compare"], 1)]
)
def test_sheets_go_on_where_they_were(
    flags: list[object], count: int, txt2img: Run, prompts: Path, small_sheets: None, loaded_once: None
) -> None:
    command = ("--from-file", prompts, *flags, "--resume")
    folder = txt2img(*command).folder
    whole = tree(folder)
    sheets = sorted(folder.glob("grid-*.png"))
    assert len(sheets) == count
    kept = {path: path.stat().st_ino for path in sheets[:-1]}
    sheets[-1].unlink()
    assert txt2img(*command, into=folder).code == 0
    after = tree(folder)
    assert after.pop("manifest.jsonl") and whole.pop("manifest.jsonl") and after == whole
    assert kept == {path: path.stat().st_ino for path in kept}


def test_pictures_that_nobody_keeps_leave_no_manifest(txt2img: Run) -> None:
    outcome = txt2img("--skip_save", "--skip_grid", "--resume")
    assert outcome.code == 0 and not list(outcome.folder.iterdir())


def test_a_batch_with_a_hole_is_drawn_whole(
    txt2img: Run, prompts: Path, loaded_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, where pictures are drawn in batches, the company of a picture may show in its last bits."""
    batches: list[int] = []
    generate = painter_module.generate
    monkeypatch.setattr(
        painter_module, "generate", lambda *a, **k: batches.append(len(a[1])) or generate(*a, **k)
    )
    monkeypatch.setattr(
        painter_module.Painter, "at_once", property(lambda _: 3, lambda *_: None), raising=False
    )
    command = ("--from-file", prompts, "--resume")
    folder = txt2img(*command).folder
    whole = tree(folder)
    (folder / "samples" / "00004.png").unlink()
    assert txt2img(*command, into=folder).code == 0
    assert batches == [3, 2, 2]
    after = tree(folder)
    assert after.pop("manifest.jsonl") and whole.pop("manifest.jsonl") and after == whole


def test_a_manifest_that_cannot_be_used_is_said_plainly(txt2img: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "manifest.jsonl").mkdir(parents=True)
    outcome = txt2img("--resume", into=folder)
    assert outcome.code == 2 and "manifest.jsonl cannot be read: Is a directory" in outcome.err


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "9" * 5000,
        '{"run": 1}',
        '{"file": 3}',
        "null",
        '"\\ud800"',
        # Pictures are written nowhere but into the two folders that this project makes.
        '{"run": {"folder": "..", "first": 0, "pictures": 1, "first_sheet": 0, "sheets": 0}, "settings": {}}',
    ],
    ids=lambda line: line[:20],
)
def test_lines_that_say_nothing_are_passed_over(line: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text(line + "\n")
    manifest = Manifest(tmp_path)
    assert not manifest.runs and not manifest.known and manifest.find({}) is None


def test_numbers_are_counted_once_a_run(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for name in ("00003.png", "me.png"):
        save_png(tmp_path / "samples" / name, np.zeros((8, 8, 3), np.uint8))
    manifest = Manifest(tmp_path)
    files = manifest.begin("samples", 3, 2, {"seed": 1})
    assert [files.picture(k) for k in range(2)] == ["samples/00004.png", "samples/00005.png"]
    assert files.sheet(1) == "grid-0001.png"
    again = Manifest(tmp_path)
    assert again.find({"seed": 1}) == files
    assert again.begin("samples", 1, 0, {"seed": 1}).picture(0) == "samples/00007.png"
    assert again.begin("comparisons", 1, 0, {"seed": 1}).picture(0) == "comparisons/00000.png"


def test_sheets_that_no_manifest_knows_are_not_written_over(tmp_path: Path) -> None:
    save_png(tmp_path / "grid-0004.png", np.zeros((8, 8, 3), np.uint8))
    assert Manifest(tmp_path).begin("samples", 2, 1, {}).sheet(0) == "grid-0005.png"


def test_of_several_runs_the_last_of_these_settings_goes_on_or_the_last_is_told_of(tmp_path: Path) -> None:
    ours = {"seed": 1, "freeu": {"stages": {64: (1.1, 0.5)}}, "config": tmp_path}
    manifest = Manifest(tmp_path)
    _, last, _ = [manifest.begin("samples", 3, 1, it) for it in (ours, ours, {"seed": 2, "steps": 5})]
    assert last.first == 3 and Manifest(tmp_path).find(ours) == last
    for change, said in (
        ({"seed": 3}, "seed is 3, was 2. Give"),
        ({"seed": 3, "steps": 6}, "seed is 3, was 2; steps is 6, was 5. Give"),
        ({"seed": 3, "steps": 6, "eta": 1}, "seed is 3, was 2; steps is 6, was 5 and more. Give"),
    ):
        with pytest.raises(InputError, match=f"with other settings: {said}"):
            manifest.find({"seed": 2, "steps": 5} | change)


def test_differences_name_what_changed() -> None:
    then = {"a": 1, "b": {"c": [1], "d": None}, "e": 0}
    now = {"a": 1, "b": {"c": [2], "d": None}, "f": "x" * 99}
    assert [*differences(then, now)] == [
        "b.c is [2], was [1]",
        "e is null, was 0",
        f'f is "{"x" * 79}, was null',
    ]
