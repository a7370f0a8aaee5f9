"""A run killed at any moment and started again with --resume ends as if nothing had happened."""

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.forks import ended, fork, tree
from tests.waiting import wait_until

Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)


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


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    txt2img: Run, prompts: Path, tmp_path: Path, small_sheets: None
) -> None:
    def run(folder: Path) -> int:
        return txt2img("--from-file", prompts, "--n_iter", 5, "--ddim_eta", 0.5, "--resume", into=folder).code

    killed_at_random(run, tmp_path, moments=5, seed=int(time.time()))


@pytest.mark.slow
def test_a_run_killed_at_fifty_random_moments_ends_with_the_same_bytes(
    txt2img: Run, prompts: Path, tmp_path: Path, small_sheets: None
) -> None:
    def run(folder: Path) -> int:
        return txt2img("--from-file", prompts, "--n_iter", 60, "--steps", 1, "--resume", into=folder).code

    killed_at_random(run, tmp_path, moments=50, seed=int(time.time()))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_that_somebody_is_at_is_left_to_them(
    txt2img: Run, prompts: Path, tmp_path: Path, small_sheets: None
) -> None:
    command = partial(txt2img, "--from-file", prompts, "--n_iter", 10, "--resume", into=tmp_path / "out")
    pid = fork(lambda: command().code)
    wait_until(lambda: list(tmp_path.glob("out/samples/[!.]*.png")))
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
    txt2img: Run, prompts: Path, loaded_once: None
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


@pytest.mark.slow
def test_runs_in_one_folder_keep_to_their_own_numbers(
    txt2img: Run, prompts: Path, tmp_path: Path, loaded_once: None
) -> None:
    folder = tmp_path / "shared"
    first = ("--from-file", prompts)
    pid = fork(lambda: txt2img(*first, "--steps", 10, into=folder).code)
    wait_until((folder / "samples" / "00001.png").exists)
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
