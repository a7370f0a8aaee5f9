"""A run shared by several processes leaves the files that one process leaves, whatever becomes of them."""

import json
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.errors import InputError
from ldm.folders import ROOT
from ldm.txt2img.gallery import Gallery, PlainSheets
from ldm.txt2img.jobs import Job
from ldm.txt2img.manifest import Manifest
from ldm.txt2img.processes import Group, _device, _start, in_processes, launched
from ldm.txt2img.run import Run as TxtToImg
from tests.forks import ended, fork, tree
from tests.waiting import wait_until

Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)
SCRIPT = str(ROOT / "scripts" / "txt2img.py")
SMALL = ["--H", "32", "--W", "32", "--steps", "2", "--device", "cpu", "--precision", "full"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
FEW = ["--n_iter", "2", "--prompt", "a red star", "--n_samples", "3"]
MANY = ["--n_iter", "100", "--prompt", "a red star"]


@pytest.fixture
def command(tiny_checkpoint: Path) -> list[str]:
    return [SCRIPT, "--ckpt", str(tiny_checkpoint), *SMALL]


def start(
    argv: list[str], largest_file: int = resource.RLIM_INFINITY, **environment: str
) -> subprocess.Popen[str]:
    def prepare() -> None:
        # Where the tests run in the background the interrupt is ignored, and children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # A file that grows past the limit is cut short and refused, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

    return subprocess.Popen(
        [sys.executable, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | environment,
        preexec_fn=prepare,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def drawing(process: subprocess.Popen[str]) -> list[int]:
    """The ids of a run's drawing processes."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_process_that_is_killed_takes_nothing_along_and_others_go_on_in_another_number(
    txt2img: Run, command: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    process = start([*command, *MANY, "--outdir", str(folder), "--devices", "4"])
    wait_until(lambda: len(list(folder.glob("samples/*.png"))) > 5)
    os.kill(drawing(process)[2], signal.SIGKILL)
    code, _, err = end(process)
    assert code == 128 + signal.SIGKILL
    # Python itself may have a word to say of what a killed process leaves.
    line, *_ = err.splitlines()
    assert line.startswith("error: process ") and "was killed (SIGKILL)" in line and "--resume" in line

    kept = {path.name: path.read_bytes() for path in folder.glob("samples/[!.]*.png")}
    assert 5 < len(kept) < 100
    again = start([*command, *MANY, "--outdir", str(folder), "--devices", "2", "--resume"])
    code, out, err = end(again)
    assert (code, err) == (0, "")
    assert f"{len(kept)} of 100 pictures are there already" in out
    assert out.splitlines()[-1] == f"100 pictures in {folder}" and out.count("100 pictures in") == 1
    assert tree(folder) == tree(txt2img(*MANY).folder)


@pytest.mark.slow
def test_bad_input_is_told_of_once_with_code_2(command: list[str], tmp_path: Path) -> None:
    code, out, err = end(start([*command, "--outdir", str(tmp_path / "o"), "--devices", "2", "--H", "33"]))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "height of 33" in err and not list(tmp_path.glob("o/*"))


@pytest.mark.slow
def test_a_disk_that_fills_up_is_told_of_once_with_code_2(command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "full"
    larger = ["--H", "64", "--W", "64", "--outdir", str(folder), "--devices", "2"]
    process = start([*command, *FEW, *larger], largest_file=6000)  # the processes' own files are smaller
    code, _, err = end(process)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert "File too large" in err
    assert not list(folder.rglob(".*.png.*"))


def test_torchrun_shares_a_run(txt2img: Run, command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    code, out, _ = end(start([*torchrun, *command, *FEW, "--outdir", str(folder)]))
    assert code == 0 and out.splitlines()[-1] == f"6 pictures in {folder}" and len(out.splitlines()) == 2
    assert tree(folder) == tree(txt2img(*FEW).folder)


def srun(command: list[str], *outdirs: Path) -> list[subprocess.Popen[str]]:
    """A task on each of two machines, with the variables that `srun --nodes 2 --ntasks-per-node 1` sets."""
    port = str(free_port())
    return [
        start(
            [*command, "--outdir", str(outdir)],
            **{"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "1"},
            **{"SLURM_NNODES": "2", "SLURM_NODEID": rank, "SLURM_PROCID": rank, "SLURM_LOCALID": "0"},
            **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "draw", "SLURM_NODELIST": "127.0.0.1"},
            MASTER_PORT=port,
        )
        for rank, outdir in zip("01", outdirs, strict=True)
    ]


@pytest.mark.slow
def test_slurm_shares_a_run(txt2img: Run, command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    codes, outs, errs = zip(*map(end, srun([*command, *FEW], folder, folder)), strict=True)
    assert codes == (0, 0) and errs == ("", "")
    assert "".join(outs).count(f"6 pictures in {folder}") == 1
    assert tree(folder) == tree(txt2img(*FEW).folder)


@pytest.mark.slow
def test_machines_that_see_different_folders_end_with_code_2_and_one_line(
    txt2img: Run, command: list[str], tmp_path: Path
) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    assert txt2img("--n_samples", 3, into=other).code == 0
    had = tree(other)
    codes, outs, errs = zip(*map(end, srun([*command, *FEW], own, other)), strict=True)
    assert codes == (2, 2) and outs == ("", "")
    assert "".join(errs) == f"error: The machines do not share {other}: give an --outdir that all see.\n"
    assert tree(other) == had and not list(own.rglob("*.png"))


# Two processes as torchrun starts them; what `faults` faults does so in the second.
PAIR = """
import os, signal, sys, time
from ldm.errors import InputError
from ldm.txt2img.processes import in_processes

def faults():
    if os.environ["RANK"] == "1":
        FAULT

try:
    in_processes(work, 1, "cpu")
except InputError:
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
"""
AGREE = """
def work(device, group):
    group.agree(faults)
"""
# Each stays on one processor with its threads, which run when nothing else wants to.
SLOW_THREADS = """
def work(device, group):
    for task in map(int, os.listdir("/proc/self/task")):
        os.sched_setaffinity(task, {min(os.sched_getaffinity(0))})
        if task != os.getpid():
            os.sched_setscheduler(task, os.SCHED_IDLE, os.sched_param(0))
    group.agree(faults)
"""
# Till then the first, which has the store that all count in, is gone.
SLOW_TO_TELL = """
def work(device, group):
    try:
        group.agree(faults)
    except InputError:
        time.sleep(5)
        raise
"""


def pair(work: str, fault: str = 'raise InputError("no such file")') -> list[subprocess.Popen[str]]:
    """Two processes that torchrun might have started, the second of which has a fault."""
    script = work + PAIR.replace("FAULT", fault)
    met = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    port = str(free_port())
    return [start(["-c", script], **met, MASTER_PORT=port, RANK=rank, LOCAL_RANK=rank) for rank in "01"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it schedules threads as Linux does")
def test_processes_end_with_their_code_though_the_threads_they_met_by_are_slow() -> None:
    for _ in range(5):
        assert [*map(end, pair(SLOW_THREADS))] == [(2, "", "")] * 2


@pytest.mark.slow
def test_a_fault_that_all_have_heard_of_is_told_without_those_that_are_gone() -> None:
    assert [*map(end, pair(SLOW_TO_TELL))] == [(2, "", "")] * 2


def test_a_process_that_a_fault_of_the_program_ends_is_told_of_by_another_that_waits_for_it() -> None:
    (code, out, err), other = map(end, pair(AGREE, "raise RuntimeError('out of memory')"))
    assert (code, out, err) == (1, "", "error: another process of this run was lost; start it again\n")
    assert other[:2] == (1, "") and other[2].endswith("RuntimeError: out of memory\n")


def test_a_process_that_waits_for_another_hears_of_a_stop(tmp_path: Path) -> None:
    waited_for = tmp_path / "waited for"
    first, second = pair(AGREE, f"open({str(waited_for)!r}, 'w').close(); time.sleep(1000)")
    wait_until(waited_for.exists)
    first.send_signal(signal.SIGINT)
    try:
        assert first.wait(60) == 128 + signal.SIGINT
    finally:
        for process in (first, second):
            process.kill()
            end(process)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_stops_in_all_processes_and_says_so_once(
    number: signal.Signals, txt2img: Run, command: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    process = start([*command, *MANY, "--outdir", str(folder), "--devices", "2"])
    wait_until(lambda: len(list(folder.glob("samples/*.png"))) > 5)
    children = drawing(process)
    for pid in [process.pid, *(children if number == signal.SIGINT else [])]:  # as a terminal does
        os.kill(pid, number)
    code, _, err = end(process)
    assert (code, err.split("\n")) == (
        128 + number,
        ["", "stopped; every finished picture is kept, --resume makes the rest", ""],
    )
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert not list(folder.rglob(".*.png.*"))
    assert end(start([*command, *MANY, "--outdir", str(folder), "--resume"]))[0] == 0
    assert tree(folder) == tree(txt2img(*MANY).folder)


@pytest.mark.slow
def test_an_interrupt_while_processes_still_import_torch_is_told_in_one_line(
    command: list[str], tmp_path: Path
) -> None:
    for moment in (0.1, 0.6, 1.5):
        process = start([*command, *MANY, "--outdir", str(tmp_path), "--devices", "2"])
        wait_until(lambda process=process: len(drawing(process)) == 2)
        time.sleep(moment)
        children = drawing(process)
        for pid in [*children, process.pid]:  # as a terminal does
            os.kill(pid, signal.SIGINT)
        code, _, err = end(process)
        said = "\nstopped; every finished picture is kept, --resume makes the rest\n"
        assert (code, err) == (128 + signal.SIGINT, said)
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.slow
def test_no_process_waits_for_one_that_was_killed_before_they_met(command: list[str], tmp_path: Path) -> None:
    process = start([*command, *MANY, "--outdir", str(tmp_path), "--devices", "2"])
    wait_until(lambda: len(drawing(process)) == 2)
    first, other = drawing(process)
    os.kill(first, signal.SIGSTOP)
    time.sleep(5)  # until the other waits for it
    os.kill(first, signal.SIGKILL)
    _, err = process.communicate(timeout=25)  # torch would kill it after thirty seconds
    assert process.returncode == 128 + signal.SIGKILL and "of 2 was killed (SIGKILL)" in err
    assert not Path(f"/proc/{other}").exists()


@pytest.mark.slow
def test_processes_that_have_nothing_to_draw_are_told_of_once(command: list[str], tmp_path: Path) -> None:
    shared = [*command, *FEW, "--outdir", str(tmp_path), "--devices", "2"]
    code, _, err = end(start([*shared, "--skip_save"]))
    assert code == 0 and len(err.splitlines()) == 1
    assert "whole sheets, here 1 for 2 processes" in err and "leave it out" in err
    assert end(start(shared))[2] == ""


@pytest.fixture
def two_machines() -> Iterator[list[str]]:
    """Two network namespaces joined by a cable, at 10.77.0.1 and 10.77.0.2."""
    names = [f"freeu{os.getpid()}{side}" for side in "ab"]
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` command (iproute2) to make network namespaces with")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        for name in names:
            ip("netns", "add", name)
        cable = ("link", "add", "cable", "netns", names[0], "type", "veth")
        ip(*cable, "peer", "name", "cable", "netns", names[1])
        for i, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{i}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"network namespaces cannot be made here: {refused.stderr.strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
def test_two_machines_share_a_run(
    two_machines: list[str], txt2img: Run, command: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    rendezvous = ["--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-id", "freeu"]
    machines = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *rendezvous,
             "--rdzv-endpoint", "10.77.0.1:29500", "--local-addr", f"10.77.0.{i}",
             "--rdzv-conf", f"is_host={i == 1:d}", *command, *MANY,
             "--outdir", str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=ENVIRONMENT,
        )
        for i, name in enumerate(two_machines, start=1)
    ]  # fmt: skip
    codes, outs, errs = zip(*map(end, machines), strict=True)
    assert codes == (0, 0), errs
    assert "".join(outs).count(f"100 pictures in {folder}") == 1
    assert tree(folder) == tree(txt2img(*MANY).folder)


class Recipe:
    """Stands for a picture's settings where no model is needed."""

    def save(self, path: Path, picture: np.ndarray) -> None:
        from ldm.image_io import save_png

        save_png(path, picture)

    def made(self, path: Path) -> bool:
        return True


def gallery(folder: Path, pictures: int, **flags: Any) -> Gallery:
    usual = {"compare": False, "skip_save": False, "skip_grid": False, "resume": True, "compile": False}
    run = {"from_file": folder / "prompts.txt", "n_samples": 1, "n_iter": 1, "n_rows": 0, "fixed_code": False}
    arguments = Namespace(outdir=folder, **(usual | run | flags))
    jobs = [Job("a star", k) for k in range(pictures)]
    sheets = PlainSheets(arguments, Recipe())  # type: ignore[arg-type]
    return Gallery(arguments, jobs, lambda _: Recipe(), sheets)  # type: ignore[arg-type,return-value]


def galleries(folder: Path, count: int, pictures: int, **flags: Any) -> list[Gallery]:
    """One run's galleries in several processes, as they stand when it begins."""
    made = [gallery(folder, pictures, **flags) for _ in range(count)]
    opened = pickle.dumps(made[0].open({"seed": 1}))
    for member in made:
        member.take_over(pickle.loads(opened))
    return made


def test_a_sheet_is_made_once_by_whoever_finishes_its_last_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainSheets, "size", 4)
    picture = np.zeros((8, 8, 3), np.uint8)
    members = galleries(tmp_path, 3, 10)
    shares = [Group(rank, 3).share(member.units(1)) for rank, member in enumerate(members)]
    assert sorted(k for share in shares for [k] in share) == [*range(10)]
    # The first is slow: it draws when the others are through.
    for member, share in [*zip(members, shares, strict=True)][::-1]:
        for [k] in share:
            member.keep(k, picture)
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    sheets = [line["file"] for line in lines if "grid" in line.get("file", "")]
    assert sheets == ["grid-0000.png", "grid-0001.png", "grid-0002.png"]
    assert [member.closes for member in members] == [True, False, False]
    for member in members:
        member.catch_up()
        assert (member.done, member.left, member.sheets_left) == (10, {}, {})

    (tmp_path / "grid-0001.png").unlink()
    members[0].leave()
    members = galleries(tmp_path, 2, 10)
    assert [member.units(1) for member in members] == [[], []]
    assert [Group(rank, 2).share(member.ready_sheets()) for rank, member in enumerate(members)] == [[1], []]


def test_machines_may_see_one_folder_under_different_names_and_others_may_write_there(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "other").symlink_to("own")
    first, other = gallery(tmp_path / "own", 3), gallery(tmp_path / "other", 3)
    opened = pickle.dumps(first.open({"seed": 1}))
    Manifest(tmp_path / "own").begin("samples", 1, 0, {"seed": 2})
    other.take_over(pickle.loads(opened), rank=1)
    other.keep(0, np.zeros((8, 8, 3), np.uint8))
    assert other.done == 1
    other.leave()


class Count(dict[str, int]):
    """Stands for the store of a group whose processes work in turn."""

    def add(self, name: str, more: int) -> int:
        self[name] = self.get(name, 0) + more
        return self[name]


def draw(member: Gallery, group: Group) -> None:
    """One process's share of a run, in black pictures."""
    painter = Namespace(at_once=1, paint=lambda jobs: [np.zeros((8, 8, 3), np.uint8)] * len(jobs))
    request = Namespace(jobs=member.jobs)
    run = Namespace(gallery=member, painter=painter, request=request, arguments=member.arguments)
    TxtToImg.draw(run, group)  # type: ignore[arg-type]


@pytest.mark.parametrize("before", [0, 3, 5], ids=["nothing", "the same", "another"])
def test_a_machine_that_sees_another_folder_is_found_out_whatever_was_drawn_there(
    before: int, tmp_path: Path
) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    if before:
        [member] = galleries(other, 1, before)
        draw(member, Group())
        member.leave()
    first, second = gallery(own, 3), gallery(other, 3)
    opened = pickle.dumps(first.open({"seed": 1}))
    had = tree(other)
    with pytest.raises(InputError, match=r"do not share .*other: give an --outdir that all see"):
        second.take_over(pickle.loads(opened), rank=1)
    assert tree(other) == had
    first.leave()


def test_what_a_resumed_run_lacks_is_drawn_once_whoever_makes_the_sheets_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainSheets, "size", 4)
    [alone] = galleries(tmp_path, 1, 19)
    draw(alone, Group())
    alone.leave()
    whole = tree(tmp_path)
    for name in ("grid-0000", "grid-0001", *(f"samples/{k:05}" for k in range(8, 19))):
        (tmp_path / f"{name}.png").unlink()
    before = len((tmp_path / "manifest.jsonl").read_text().splitlines())
    members, store = galleries(tmp_path, 2, 19), Count()
    # The first is slow: it makes its sheet when the other is through.
    for rank in (1, 0):
        draw(members[rank], Group(rank, 2, store, tended=True))
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    added = [json.loads(line)["file"] for line in lines[before:]]
    assert len(added) == 11 + 2 and len(set(added)) == len(added)
    members[0].leave()
    del whole["manifest.jsonl"]
    assert whole.items() <= tree(tmp_path).items()


def test_the_last_process_says_what_is_missing_in_the_end(tmp_path: Path) -> None:
    class Removed(Recipe):
        """Stands for somebody who removes a picture as soon as it is there."""

        def save(self, path: Path, picture: np.ndarray) -> None:
            if path.name != "00003.png":
                super().save(path, picture)

    members, store = galleries(tmp_path, 2, 6), Count()
    members[1].recipe = lambda _: Removed()  # type: ignore[assignment,return-value]
    draw(members[1], Group(1, 2, store, tended=True))  # which cannot know what the other will do
    with pytest.raises(InputError, match=r"^2 of 7 files are missing, such as samples/00003.png: .*--resume"):
        draw(members[0], Group(0, 2, store, tended=True))


def test_pictures_for_a_sheet_alone_are_one_process_s_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainSheets, "size", 4)
    members = galleries(tmp_path, 2, 10, skip_save=True)
    assert members[0].units(3) == [range(0, 4), range(4, 8), range(8, 10)]
    for rank, member in enumerate(members):
        for unit in Group(rank, 2).share(member.units(3)):
            for done, k in enumerate(unit, start=1):
                before = member.done
                member.keep(k, np.zeros((8, 8, 3), np.uint8))
                assert member.done >= before + 1 or done == len(unit)
    assert members[1].done == 10 and sorted(path.name for path in tmp_path.glob("*.png")) == [
        f"grid-000{i}.png" for i in range(3)
    ]

    # One that is missing is drawn again, and of the others nothing.
    (tmp_path / "grid-0001.png").unlink()
    members[0].leave()
    for member in galleries(tmp_path, 2, 10, skip_save=True):
        assert (member.units(3), member.done) == ([range(4, 8)], 6)


@pytest.mark.parametrize(
    ("pictures", "at_once", "flags", "told"),
    [
        (4, 4, {"from_file": None}, ["batches of 4, here 1 for 4", "smaller --n_samples with more --n_it"]),
        (12, 4, {}, ["in batches of 4, here 3 for 4", "give a smaller --n_samples, or take fewer devices"]),
        (20, 16, {"from_file": None, "axes": ["b1"]}, ["in batches of 16, here 2 for 4", "idle: take fewer"]),
        (70, 70, {"skip_save": True}, ["--skip_save", "sheets, here 2 for 4", "leave it out, or take"]),
        (13, 4, {}, []),
        (70, 1, {}, []),
        (3, 1, {}, []),  # as on a CPU; there are no more pictures
    ],
)  # fmt: skip
def test_fewer_batches_than_processes_are_told_of_with_the_remedy(
    pictures: int, at_once: int, flags: dict[str, Any], told: list[str], tmp_path: Path
) -> None:
    axes = flags.pop("axes", [])
    [member] = galleries(tmp_path, 1, pictures, **flags)
    painter, request = Namespace(at_once=at_once), Namespace(axes=axes)
    run = Namespace(gallery=member, painter=painter, request=request, arguments=member.arguments)
    lines = [*TxtToImg._idle(run, processes=4)]  # type: ignore[arg-type]
    assert len(lines) == bool(told) and all(words in lines[0] for words in told)


def test_runs_begun_at_the_same_instant_take_numbers_of_their_own(tmp_path: Path) -> None:
    moment = time.time() + 0.3

    def begin(seed: int) -> int:
        time.sleep(max(0, moment - time.time()))
        for k in range(5):
            Manifest(tmp_path).begin("samples", 3, 1, {"seed": seed, "k": k})
        return 0

    codes = [ended(pid) for pid in [fork(lambda seed=seed: begin(seed)) for seed in range(8)]]
    assert codes == [0] * 8
    runs = [files for files, _ in Manifest(tmp_path).runs]
    assert sorted(files.first for files in runs) == [3 * i for i in range(40)]
    assert sorted(files.first_sheet for files in runs) == [*range(40)]


def test_many_processes_write_whole_lines(tmp_path: Path) -> None:
    names = [f"{k}.png" for k in range(20)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    Manifest(tmp_path).begin("samples", 1, 0, {})
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(b'{"file": "half a li')

    def write(names: list[str]) -> int:
        manifest = Manifest(tmp_path)
        for name in names:
            assert manifest.add(name, prompt="long " * 2000)[-1] == name
        return 0

    assert [ended(pid) for pid in [fork(lambda i=i: write(names[i::4])) for i in range(4)]] == [0] * 4
    assert Manifest(tmp_path).known.keys() == set(names)
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 21


def test_processes_are_counted_as_torchrun_and_slurm_count_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() == (1, 1)
    with monkeypatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", "4")
        patch.setenv("WORLD_SIZE", "8")
        assert launched() == (4, 2)
        with pytest.raises(InputError, match="4 processes were started here"):
            in_processes(lambda *_: None, 2, "cpu")
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_NTASKS", "6")  # a job's script, which `srun` did not start
        assert launched() == (1, 1)
        patch.setenv("SLURM_STEP_NUM_TASKS", "6")
        patch.setenv("SLURM_NNODES", "3")
        assert launched() == (2, 3)


def test_a_slurm_job_s_script_starts_processes_of_its_own_and_those_of_srun_are_slurm_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the variables that `sbatch` sets for its script, then with those that `srun` adds."""
    joined: list[str] = []
    monkeypatch.setattr("ldm.txt2img.processes._start", lambda *_: joined.append("own"))
    monkeypatch.setattr("ldm.txt2img.processes._join_launched", lambda *_: joined.append("SLURM's"))
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # which are set for the processes
        monkeypatch.setenv(name, os.environ.get(name, ""))
    script = {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "4711"}
    for variables in (script, {"NTASKS": "2", "STEP_NUM_TASKS": "2", "NTASKS_PER_NODE": "2"}):
        for name, value in variables.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        in_processes(lambda *_: None, 2, "cpu")
    assert joined == ["own", "SLURM's"]


def test_each_process_takes_a_gpu_of_its_own_also_where_slurm_shows_it_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr("ldm.txt2img.processes.pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(
        "ldm.txt2img.processes._join_launched", lambda _, kind: chosen.append(_device(kind, 3))
    )
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # which are set for the processes
        monkeypatch.setenv(name, os.environ.get(name, ""))
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for there in (4, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: there)
        in_processes(lambda *_: None, 1, "cuda")
    assert chosen == [torch.device("cuda", 3), torch.device("cuda", 0)]

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="there is only 1"):
        in_processes(lambda *_: None, 1, "cuda")


def test_on_windows_processes_count_without_libuv_which_torch_lacks_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, joined = torch.distributed.TCPStore, []

    def windows_store(*arguments: Any, use_libuv: bool = True, **options: Any) -> Any:
        if use_libuv:
            raise RuntimeError("use_libuv was requested but PyTorch was built without libuv support")
        return store(*arguments, use_libuv=use_libuv, **options)

    def spawn(work: Callable[..., None], arguments: tuple[Any, ...], count: int, join: bool) -> Namespace:
        for rank in range(count):
            work(rank, *arguments)
        return Namespace(join=lambda: True)

    monkeypatch.setattr(torch.distributed, "TCPStore", windows_store)
    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    monkeypatch.setattr("ldm.txt2img.processes.stop_when_asked", lambda: None)
    monkeypatch.setattr(sys, "platform", "win32")
    _start(lambda _, group: joined.append(group.store.add("joined", 1)), "cpu", 2)
    assert joined == [1, 2]


def test_processes_share_the_devices_of_any_kind_and_one_device_is_not_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "set_device", lambda _: None)
    assert [_device("xpu", index) for index in range(3)] == [torch.device("xpu", i) for i in (0, 1, 0)]
    with pytest.raises(InputError, match="--device xpu:1 is one device and --devices 2: give --device xpu"):
        in_processes(lambda *_: None, 2, "xpu:1")


@pytest.mark.parametrize(("devices", "said"), [(0, "--devices is 0"), (-1, "--devices is -1")])
def test_a_number_of_devices_that_is_none_is_refused(devices: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        in_processes(lambda *_: None, devices, "cpu")
