"""A run killed at any moment and started again with --resume ends as if nothing had happened."""

import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm.txt2img.painter as painter_module
from ldm.checkpoint import load_model
from ldm.image_io import save_png
from ldm.txt2img.gallery import PlainSheets
from ldm.txt2img.manifest import Manifest, differences

Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)
Tree = dict[str, bytes]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red star\na blue ring\na green heart\n\na cross above a diamond\na yellow square\n")
    return path


@pytest.fixture
def small_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainSheets, "size", 4)


@pytest.fixture
def loaded_once(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the many runs of a test the time to read the same weights."""
    model = load_model("freeu_tiny", tiny_checkpoint, "cpu", torch.float32)
    monkeypatch.setattr("ldm.txt2img.run.load_prompted", lambda *_, **__: model)


def tree(folder: Path) -> Tree:
    """Every file with its content; the manifest's lines sorted, as their order is that of the finishing."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files.pop(".manifest.lock", None)
    if "manifest.jsonl" in files:
        files["manifest.jsonl"] = b"\n".join(sorted(files["manifest.jsonl"].split(b"\n")))
    return files


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def fork(work: Callable[[], int]) -> int:
    """Starts a copy of this process that does some work and ends with its code; returns its id.

    What other threads have locked stays locked in the copy. So this file stands ahead of test_training.py,
    whose tests leave threads behind, and not in the folder of the other tests of txt2img.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = work()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """The code that a process ends with; minus the signal where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at_random(run: Callable[[Path], int], folder: Path, moments: int, seed: int) -> None:
    """Kills a run that often, each time at a random moment, and then lets it come to its end."""
    start = time.time()
    assert ended(fork(lambda: run(folder / "whole"))) == 0
    whole = tree(folder / "whole")
    stamps = [path.stat().st_mtime for path in (folder / "whole").rglob("*.png")]
    startup, work = min(stamps) - start, max(stamps) - min(stamps)

    def finished() -> int:
        return len([*(folder / "broken").rglob("[!.]*.png")])

    # Each life may take its share of the work and no more, however fast it is, so that none comes to the end.
    share = len(stamps) // (moments + 1)
    draw, kept, deaths = random.Random(seed), {}, 0
    for _ in range(moments):
        pid = fork(lambda: run(folder / "broken"))
        ends, begun = time.time() + draw.uniform(0, startup + work / moments), finished()
        while time.time() < ends and finished() - begun < share:
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        deaths += ended(pid) == -signal.SIGKILL
        for path in (folder / "broken").rglob("[!.]*.png"):
            name = str(path.relative_to(folder / "broken"))
            assert path.read_bytes() == whole[name]
            # A sheet whose line the kill forestalled is written once more, a picture never.
            if path.parent.name == "samples":
                assert kept.setdefault(name, path.stat().st_ino) == path.stat().st_ino
    assert deaths >= 0.8 * moments
    assert ended(fork(lambda: run(folder / "broken"))) == 0
    assert tree(folder / "broken") == whole
    assert all((folder / "broken" / name).stat().st_ino == inode for name, inode in kept.items())


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    txt2img: Run, prompts: Path, tmp_path: Path, small_sheets: None
) -> None:
    def run(folder: Path) -> int:
        return txt2img("--from-file", prompts, "--n_iter", 5, "--ddim_eta", 0.5, "--resume", into=folder).code

    killed_at_random(run, tmp_path, moments=8, seed=int(time.time()))


@pytest.mark.slow
def test_a_run_killed_at_fifty_random_moments_ends_with_the_same_bytes(
    txt2img: Run, prompts: Path, tmp_path: Path, small_sheets: None
) -> None:
    def run(folder: Path) -> int:
        return txt2img("--from-file", prompts, "--n_iter", 60, "--steps", 1, "--resume", into=folder).code

    killed_at_random(run, tmp_path, moments=50, seed=int(time.time()))


def test_a_run_killed_at_each_step_of_its_writing_ends_with_the_same_bytes(
    txt2img: Run, tmp_path: Path, loaded_once: None
) -> None:
    folder = tmp_path / "broken"

    def run(into: Path, death: int | None = None) -> int:
        """A run that is killed before its file operation of that number."""
        count, fsync = 0, os.fsync

        def operation(event: str, arguments: tuple) -> None:
            nonlocal count
            if event not in ("open", "os.rename", "fsync"):
                return
            if event == "fsync" or str(arguments[0]).startswith(str(into)):
                if count == death:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        def heard_fsync(file: int) -> None:
            operation("fsync", ())
            fsync(file)

        os.fsync = heard_fsync
        sys.addaudithook(operation)
        return txt2img("--n_samples", 2, "--resume", into=into).code

    assert ended(fork(lambda: run(tmp_path / "whole"))) == 0
    whole = tree(tmp_path / "whole")
    deaths = 0
    while ended(fork(partial(run, folder, deaths))):
        assert ended(fork(lambda: run(folder))) == 0
        assert tree(folder) == whole
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        deaths += 1
    # The manifest's first line takes two operations, each of the three files and its line six.
    assert deaths >= 2 + 3 * 6
    assert tree(folder) == whole


def test_a_run_that_somebody_is_at_is_left_to_them(
    txt2img: Run, prompts: Path, tmp_path: Path, small_sheets: None
) -> None:
    command = partial(txt2img, "--from-file", prompts, "--n_iter", 10, "--resume", into=tmp_path / "out")
    pid = fork(lambda: command().code)
    while not list(tmp_path.glob("out/samples/[!.]*.png")):
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)  # in the midst of its work
    second = command()
    os.kill(pid, signal.SIGCONT)
    assert second.code == 2 and f"another command is at this run in {tmp_path / 'out'}" in second.err
    assert ended(pid) == 0
    whole = tree(tmp_path / "out")
    assert len([name for name in whole if name.startswith("samples/")]) == 50
    assert not [name for name in whole if name.endswith(".lock")]
    assert command().code == 0 and tree(tmp_path / "out") == whole


@pytest.mark.parametrize("limit", [0, 300, 2000, 4500, 5000])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing_half_written(
    limit: int, txt2img: Run, prompts: Path, tmp_path: Path, loaded_once: None
) -> None:
    def limited() -> int:
        # A file that grows past the limit is cut short and refused, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        outcome = txt2img("--from-file", prompts, "--n_samples", 3, into=tmp_path / "full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (tmp_path / "said").write_text(outcome.err)
        return outcome.code

    assert ended(fork(limited)) == 2
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"error: {tmp_path / 'full'}") and said.endswith(": File too large.\n")
    assert len(said.splitlines()) == 1

    whole = tree(txt2img("--from-file", prompts, "--n_samples", 3).folder)
    left = tree(tmp_path / "full")
    manifest = left.pop("manifest.jsonl", b"").split(b"\n")
    assert all(whole[name] == content for name, content in left.items())
    assert set(manifest) <= {b"", *whole["manifest.jsonl"].split(b"\n")}
    again = txt2img("--from-file", prompts, "--n_samples", 3, "--resume", into=tmp_path / "full")
    assert (again.code, tree(again.folder)) == (0, whole)


def test_a_torn_or_shortened_manifest_costs_no_picture(
    txt2img: Run, prompts: Path, tmp_path: Path, loaded_once: None
) -> None:
    command = ("--from-file", prompts, "--resume")
    folder = txt2img(*command).folder
    whole = tree(folder)
    inodes = {path: path.stat().st_ino for path in folder.glob("samples/*")}
    content = (folder / "manifest.jsonl").read_bytes()
    header = content.index(b"\n") + 1
    for end in (header, header + 1, header + 150, (header + len(content)) // 2, len(content) - 1):
        for tail in (b"", bytes(9)):
            (folder / "manifest.jsonl").write_bytes(content[:end] + tail)
            outcome = txt2img(*command, into=folder)
            assert (outcome.code, outcome.err) == (0, "")
            assert "5 of 5 pictures are there already" in outcome.out
            assert tree(folder) == whole
    # A hole in the middle is passed over, and what it held is found again.
    (folder / "manifest.jsonl").write_bytes(
        content[:header] + b"\0" * 99 + b"\n{}\n[" + content[header + 9 :]
    )
    assert txt2img(*command, into=folder).code == 0
    assert set(content.split(b"\n")) <= set((folder / "manifest.jsonl").read_bytes().split(b"\n"))
    assert inodes == {path: path.stat().st_ino for path in folder.glob("samples/*")}


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
    flags: list[object], said: str, txt2img: Run, prompts: Path, tmp_path: Path
) -> None:
    folder = txt2img("--from-file", prompts).folder
    before = tree(folder)
    outcome = txt2img("--from-file", prompts, "--resume", *flags, into=folder)
    assert outcome.code == 2 and outcome.out == "" and len(outcome.err.splitlines()) == 1
    assert f"{folder / 'manifest.jsonl'} is of a run with other settings: {said}" in outcome.err
    assert {name: it for name, it in tree(folder).items() if "comparisons" not in name} == before


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


def test_runs_in_one_folder_keep_to_their_own_numbers(
    txt2img: Run, prompts: Path, tmp_path: Path, loaded_once: None
) -> None:
    folder = tmp_path / "shared"
    first = ("--from-file", prompts)
    pid = fork(lambda: txt2img(*first, "--steps", 10, into=folder).code)
    while not (folder / "samples" / "00001.png").exists():
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL and not (folder / "samples" / "00004.png").exists()

    # Another run takes numbers above those that the broken one still needs.
    assert txt2img("--n_samples", 2, "--prompt", "a red ring", into=folder).code == 0
    assert sorted(path.name for path in folder.rglob("*.png"))[-3:] == [
        "00005.png",
        "00006.png",
        "grid-0001.png",
    ]
    other = (folder / "samples" / "00005.png").read_bytes()
    assert txt2img(*first, "--steps", 10, "--resume", into=folder).code == 0
    alone = tree(txt2img(*first, "--steps", 10).folder)
    del alone["manifest.jsonl"]
    assert alone.items() <= tree(folder).items()
    assert (folder / "samples" / "00005.png").read_bytes() == other


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


def test_differences_name_what_changed() -> None:
    then = {"a": 1, "b": {"c": [1], "d": None}, "e": 0}
    now = {"a": 1, "b": {"c": [2], "d": None}, "f": "x" * 99}
    assert [*differences(then, now)] == [
        "b.c is [2], was [1]",
        "e is null, was 0",
        f'f is "{"x" * 79}, was null',
    ]
