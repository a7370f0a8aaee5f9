"""The bench: what it compares is the same work, and its files hold what it printed. Nothing is timed."""

import csv
import json
import runpy

import pytest
import torch

from ldm.util import ROOT
from tests.conftest import relative_error

bench = runpy.run_path(str(ROOT / "scripts" / "bench.py"))


def test_it_takes_the_ten_concatenations_of_stable_diffusion():
    joints = bench["joints_of_a_step"](torch.float32, side=8)
    assert [(h.shape[1], skip.shape[1], h.shape[2]) for h, skip, *_ in joints] == [
        *[(1280, 1280, 1), (1280, 1280, 1), (1280, 1280, 1)],
        *[(1280, 1280, 2), (1280, 1280, 2), (1280, 640, 2)],
        *[(1280, 640, 4), (640, 640, 4), (640, 320, 4), (640, 320, 8)],
    ]
    assert [(b, s) for _, _, b, s in joints] == 7 * [(1.2, 0.9)] + 3 * [(1.4, 0.2)]


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("name", ["ours, channels last", "diffusers", "original"])
def test_all_contenders_do_the_same(name, dtype, close):
    for h, skip, b, s in bench["joints_of_a_step"](dtype, side=16):
        expected = bench["CONTENDERS"]["ours, in place"](h.clone(), skip.clone(), b, s)()
        out = bench["CONTENDERS"][name](h.clone(), skip.clone(), b, s)()
        fused = torch.cat(out, dim=1) if isinstance(out, tuple) else out
        assert relative_error(fused.float(), expected.float()) < close


def test_the_table_its_csv_and_the_rounds_agree(tmp_path, capsys):
    bench["main"](["--rounds", "2", "--outdir", str(tmp_path)])
    printed = capsys.readouterr().out
    rounds = json.loads((tmp_path / "bench.json").read_text())
    assert f"threads {torch.get_num_threads()}" in printed and rounds["cpu"] in printed
    with (tmp_path / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    for row in rows:
        first, second = rounds[row["dtype"]][row["implementation"]]
        assert float(row["ms"]) == pytest.approx(500 * (first + second))
        base = rounds[row["dtype"]]["ours, in place"]
        ratios = sorted([first / base[0], second / base[1]])
        assert float(row["10 %"]) == pytest.approx(0.9 * ratios[0] + 0.1 * ratios[1])
        assert f"{row['dtype']:15} {row['implementation']:20}{float(row['ms']):8.2f} ms" in printed


def test_no_rounds_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        bench["main"](["--rounds", "0"])
    assert "--rounds is 0: give a whole number from 1 up" in capsys.readouterr().err
