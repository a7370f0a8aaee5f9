"""The study's scripts under SIGTERM, which schedulers send: they stop as by Ctrl-C and leave nothing half."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.folders import ROOT
from tests.waiting import wait_until

LONG = ["--steps", "1000", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "begun"),
    [
        (["bench.py", "--subject", "picture", "--rounds", "1000", "--device", "cpu"], "temp/*"),
        (["evaluate.py", "--outdir", "{out}", *LONG], "out/runs"),
        (["figures.py", "--all", "--outdir", "{out}", *LONG], "out/runs"),
        (["user_study.py", "make", "--outdir", "{out}", *LONG], "out"),
    ],
    ids=["bench", "evaluate", "figures", "user_study"],
)
def test_a_script_stops_when_it_is_asked_to(words: list[str], begun: str, tmp_path: Path) -> None:
    (tmp_path / "temp").mkdir()
    name, *argv = (word.format(out=tmp_path / "out") for word in words)
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / name, *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "temp")},
    )
    wait_until(lambda: list(tmp_path.glob(begun)), process=process)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "\nstopped" in said and "Traceback" not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list((tmp_path / "temp").iterdir())
