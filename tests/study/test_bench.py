"""The bench: what it compares is the same work, and its files hold what it printed. Nothing is timed."""

import json
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import ldm.study.bench
from ldm.device import pick_dtype
from ldm.errors import InputError
from ldm.folders import ROOT
from ldm.image_io import read_picture
from ldm.study.bench import filters, growth, networks, start
from ldm.study.bench.rounds import Row, alternate, taken
from tests.conftest import relative_error
from tests.study.test_figures_faults import largest_file

CPU = torch.device("cpu")
bench = runpy.run_path(str(ROOT / "scripts" / "bench.py"))


def test_it_takes_the_ten_concatenations_of_stable_diffusion():
    joints = filters.joints_of_a_step(torch.float32, CPU, side=8)
    assert [(h.shape[1], skip.shape[1], h.shape[2]) for h, skip, *_ in joints] == [
        *[(1280, 1280, 1), (1280, 1280, 1), (1280, 1280, 1)],
        *[(1280, 1280, 2), (1280, 1280, 2), (1280, 640, 2)],
        *[(1280, 640, 4), (640, 640, 4), (640, 320, 4), (640, 320, 8)],
    ]
    assert [(b, s) for _, _, b, s in joints] == 7 * [(1.2, 0.9)] + 3 * [(1.4, 0.2)]


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("name", ["ours, contiguous", "diffusers", "original"])
@pytest.mark.parametrize("alone", [False, True])
def test_all_contenders_do_the_same(name, dtype, close, alone):
    for h, skip, given, s in filters.joints_of_a_step(dtype, CPU, side=16):
        b = 1 if alone else given
        expected = filters.CONTENDERS["ours, channels last"](h.clone(), skip.clone(), b, s)()
        out = filters.CONTENDERS[name](h.clone(), skip.clone(), b, s)()
        fused = torch.cat(out, dim=1) if isinstance(out, tuple) else out
        assert relative_error(fused.float(), expected.float()) < close


def test_the_networks_compared_have_the_same_weights():
    for ours, theirs in (
        (networks.our_unet, networks.diffusers_unet),
        (networks.our_autoencoder, networks.diffusers_autoencoder),
    ):
        with torch.device("meta"):
            counts = [sum(p.numel() for p in build().parameters()) for build in (ours, theirs)]
        assert counts[0] == counts[1]


def test_contenders_take_turns_and_the_first_round_does_not_count():
    heard = []
    seconds = alternate({name: lambda name=name: heard.append(name) for name in "ab"}, 2, CPU)
    assert heard == ["a", "b", "b", "a", "a", "b"]
    assert [len(counted) for counted in seconds.values()] == [2, 2]
    heard.clear()
    alternate({name: lambda name=name: heard.append(name) for name in "ab"}, 1, CPU, warm=True)
    assert heard == ["a", "a", "b", "b", "b", "b", "a", "a"]


def test_short_works_have_as_long_a_turn_as_asked_for_and_their_mean_counts(monkeypatch):
    clock = {"a": iter([9.0, 1.0, 2.0, 3.0]), "b": iter([9.0, 7.0])}
    monkeypatch.setattr("ldm.study.bench.rounds.taken", lambda work, _device: next(clock[work()]))
    assert alternate({"a": lambda: "a", "b": lambda: "b"}, 1, CPU, least=5.0) == {"a": [2.0], "b": [7.0]}


def test_mps_is_timed_from_rest_to_rest(monkeypatch):
    heard = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: heard.append("rest"))
    assert taken(lambda: heard.append("work"), torch.device("mps")) > 0
    assert heard == ["rest", "work", "rest"]


HELD_AT_ONCE = """
import torch
from ldm.study.bench.rounds import peak_memory

def work():
    first = torch.ones(12 << 20)  # 48 MiB
    both = torch.ones(4 << 20)  # 16 MiB
    del first, both
    torch.ones(13 << 20)  # 52 MiB

work()
print(peak_memory(work, torch.device("cpu")), peak_memory(work, torch.device("cpu")))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts peaks anew")
def test_the_peak_of_memory_is_what_a_work_held_at_once():
    done = subprocess.run([sys.executable, "-c", HELD_AT_ONCE], cwd=ROOT, capture_output=True, check=True)
    assert all(63 << 20 < peak < 70 << 20 for peak in map(int, done.stdout.split()))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts peaks anew")
def test_a_decode_is_told_with_the_peak_of_each_contender():
    found = networks.decode(torch.float32, CPU, rounds=1, side=8)
    assert [row.contender for row in found] == ["ours", "diffusers"]
    picture = 3 * 64 * 64 * 4
    assert all(row.peak is not None and row.peak > picture for row in found)


def test_a_row_holds_the_medians_of_its_rounds():
    row = Row("step", "float32", "other", [0.002, 0.008, 0.003], [0.001, 0.002, 0.003])
    assert row.ratios == [2, 4, 1]
    assert row.cells() == ("step", "float32", "other", 3.0, 2.0, pytest.approx(1.2), pytest.approx(3.6))


def test_the_table_and_the_file_agree(tmp_path, capsys):
    file = tmp_path / "bench.json"
    argv = [
        "--subject",
        "filters",
        "--dtype",
        "float32",
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--json",
        str(file),
    ]
    assert bench["main"](argv) == 0
    printed = capsys.readouterr().out
    told = json.loads(file.read_text())
    assert f"threads {torch.get_num_threads()}" in printed and told["machine"]["cpu"] in printed
    assert [row["contender"] for row in told["rows"]] == 2 * list(filters.CONTENDERS)
    for row in told["rows"]:
        what, dtype, contender, ms, middle, *_ = Row(**row).cells()
        assert f"{what:32} {dtype:9} {contender:25} {ms:10.1f} ms {middle:7.2f} times" in printed


def test_no_rounds_are_refused(capsys):
    assert bench["main"](["--rounds", "0"]) == 2
    assert "--rounds is 0: give a whole number from 1 up" in capsys.readouterr().err


def test_the_arithmetic_of_a_step_is_the_known_sum():
    assert growth.step_arithmetic(2, 64) == pytest.approx(1607e9, rel=0.01)


def test_growth_is_held_against_the_arithmetic_of_the_same_round():
    small, large = growth.grown("step", torch.float32, [10, 40], {"small": [1.0, 2.0], "large": [5.0, 8.0]})
    assert small.ratios == [1, 1] and large.base == [4.0, 8.0] and large.ratios == [1.25, 1]
    assert (large.what, large.contender) == ("step, large", "0.00 TFLOP")


def test_the_growth_is_drawn(tmp_path):
    rows = [
        row
        for what in growth.WHATS
        for row in growth.grown(
            what, torch.float32, [10, 40], {"1 x 8x8": [1.0, 2.0], "1 x 16x16": [5.0, 8.0]}
        )
    ]
    growth.draw(rows, tmp_path / "growth.png")
    assert read_picture(tmp_path / "growth.png").std() > 10


def test_a_plot_of_nothing_is_refused(tmp_path, capsys):
    assert bench["main"](["--plot", str(tmp_path / "a.png"), "--subject", "filters"]) == 2
    assert "add --subject growth" in capsys.readouterr().err and not (tmp_path / "a.png").exists()


@pytest.fixture
def rounds(monkeypatch):
    """What is measured: nothing. The subjects that it was asked for."""
    asked = []
    monkeypatch.setitem(
        bench["run"].__globals__, "rows_of", lambda arguments: asked.extend(arguments.subject) or iter(())
    )
    return asked


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--json", "/dev/null/bench.json"], "Nothing can be written into /dev/null"),
        (["--subject", "growth", "--plot", "/dev/null/growth.png"], "Nothing can be written into /dev/null"),
        (["--subject", "start", "--files", "/dev/null/files"], "Nothing can be written into /dev/null/files"),
        (["--json", "{folder}"], "{folder} is a folder: give the name of a file"),
        (["--subject", "growth", "--plot", "growth.xyz"], "growth.xyz: give a name that ends in .png"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_any_round(argv, said, rounds, tmp_path, capsys):
    assert bench["main"]([word.format(folder=tmp_path) for word in argv]) == 2
    assert said.format(folder=tmp_path) in capsys.readouterr().err and not rounds


def test_a_folder_for_the_file_is_made(rounds, tmp_path):
    assert bench["main"](["--quick", "--device", "cpu", "--json", str(tmp_path / "new" / "bench.json")]) == 0
    assert json.loads((tmp_path / "new" / "bench.json").read_text())["rows"] == []
    assert rounds == ["filters", "step"]


def test_what_was_measured_before_a_stop_is_in_the_file_and_no_round_leaves_an_older_one(
    monkeypatch, tmp_path
):
    file, row = tmp_path / "bench.json", Row("step", "float32", "ours", [0.5], [0.5])
    measured = [row]

    def rows_of(arguments):
        yield from measured
        raise KeyboardInterrupt

    monkeypatch.setitem(bench["run"].__globals__, "rows_of", rows_of)
    argv = ["--quick", "--device", "cpu", "--json", str(file)]
    for _ in range(2):
        assert bench["main"](argv) == 130
        assert [Row(**it) for it in json.loads(file.read_text())["rows"]] == [row]
        measured.clear()


def test_in_a_hurry_the_precision_is_measured_that_the_device_computes_fast(monkeypatch):
    asked = []
    monkeypatch.setattr(filters, "measure", lambda kind, *_: asked.append(kind) or [])
    monkeypatch.setattr(networks, "step", lambda kind, *_, **__: asked.append(kind) or [])
    assert bench["main"](["--quick", "--device", "cpu"]) == 0
    assert asked == 2 * [pick_dtype(torch.device("cpu"))]


def test_in_a_hurry_no_subject_is_chosen(rounds, capsys):
    assert bench["main"](["--quick", "--subject", "decode", "--device", "cpu"]) == 2
    assert "leave out --subject or --quick" in capsys.readouterr().err and not rounds


def test_in_a_hurry_rounds_are_as_many_as_asked_for(monkeypatch):
    asked = []
    monkeypatch.setitem(
        bench["run"].__globals__, "rows_of", lambda arguments: asked.append(arguments.rounds) or iter(())
    )
    for argv in ([], ["--quick"], ["--quick", "--rounds", "7"]):
        assert bench["main"]([*argv, "--device", "cpu"]) == 0
    assert asked == [5, 2, 7]


def test_weights_whose_writing_was_stopped_are_written_again(monkeypatch, tmp_path):
    def stopped(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(start.util, "find_spec", lambda name: None)
    monkeypatch.setattr(start, "write_ours", stopped)
    with pytest.raises(KeyboardInterrupt):
        start.cold_start(torch.float32, tmp_path / "files", rounds=1)
    assert not list((tmp_path / "files").iterdir())

    monkeypatch.setattr(start, "write_ours", lambda path: path.write_bytes(b"whole"))
    monkeypatch.setattr(start, "OURS", "import sys; assert open(sys.argv[1]).read() == 'whole'")
    [row] = start.cold_start(torch.float32, tmp_path / "files", rounds=1)
    assert row.contender == "ours" and [path.name for path in (tmp_path / "files").iterdir()] == [
        "sd14.safetensors"
    ]


def test_weights_are_written_once_for_all_precisions(monkeypatch, tmp_path):
    written = []

    def write(path):
        path.write_bytes(b"whole")
        written.append(path)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(start.util, "find_spec", lambda name: None)
    monkeypatch.setattr(start, "write_ours", write)
    monkeypatch.setattr(start, "OURS", "import sys; assert open(sys.argv[1]).read() == 'whole'")
    argv = ["--subject", "start", "--dtype", "float32", "bfloat16", "--rounds", "1", "--device", "cpu"]
    assert bench["main"](argv) == 0
    assert len(written) == 1 and not list(tmp_path.iterdir())


def test_a_process_that_is_measured_finds_what_a_cluster_s_modules_have_put_on_the_path(
    monkeypatch, tmp_path
):
    (tmp_path / "of_a_module.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert start.seconds_to_end([sys.executable, "-c", "import ldm, of_a_module"]) > 0
    monkeypatch.delenv("PYTHONPATH")
    assert start.environment()["PYTHONPATH"] == str(ROOT)  # an empty part would be the current folder


def test_a_process_that_fails_is_told_with_its_last_words(monkeypatch, tmp_path):
    monkeypatch.setattr(start.util, "find_spec", lambda name: None)
    (tmp_path / "sd14.safetensors").write_bytes(b"half")
    monkeypatch.setattr(start, "OURS", "raise ValueError('no weights')\n")
    damaged = f"code 1: ValueError: no weights\nIf {tmp_path / 'sd14.safetensors'} is damaged, remove it"
    with pytest.raises(InputError, match=re.escape(damaged)):
        start.cold_start(torch.float32, tmp_path, rounds=1)
    with pytest.raises(InputError, match="code 2: error: Nothing can be written into"):
        start.embedded_picture(Path("/dev/null/pictures"), rounds=1, device="cpu")


def test_weights_that_the_disk_refuses_are_told_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(start, "random_weights", lambda slots: {"a": torch.ones(10_000)})
    monkeypatch.setattr(start, "build_on_meta", lambda config: torch.nn.Identity())
    refused = r"sd14\.safetensors cannot be written: .*\nThe start takes 9 GB: give --files a folder"
    with largest_file(5000), pytest.raises(InputError, match=refused):
        start.cold_start(torch.float32, tmp_path, rounds=1)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_growth_names_the_remedy_before_any_round(rounds, monkeypatch, capsys):
    drawing = ("matplotlib", "ldm.plots", "ldm.study.bench.growth")
    for name in [name for name in sys.modules if name.startswith(drawing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(ldm.study.bench, "growth")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert bench["main"](["--subject", "filters", "growth"]) == 2
    assert 'drawn with matplotlib: pip install -e ".[figures]"' in capsys.readouterr().err and not rounds
