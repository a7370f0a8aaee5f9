"""Two thousand pictures in one process: memory, open files and handles stay as they were."""

import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import pytest

from ldm.folders import ROOT
from tests.conftest import SMALL

PICTURES = 2000


@pytest.mark.long
def test_two_thousand_pictures_take_no_more_memory_and_no_more_handles_than_the_first_ones(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    argv = ["--ckpt", tiny_checkpoint, "--outdir", tmp_path, *SMALL, "--n_iter", PICTURES]
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "txt2img.py", *map(str, argv)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    place, done = Path(f"/proc/{process.pid}"), 0
    memory: dict[int, int] = {}  # pages, by the pictures that were done
    handles: dict[int, int] = {}
    while process.poll() is None and done < PICTURES:
        done = len(list(tmp_path.glob("samples/*.png")))
        memory[done] = int((place / "statm").read_text().split()[1])
        handles[done] = len(list((place / "fd").iterdir()))
        time.sleep(0.1)
    assert process.wait(300) == 0

    early = [k for k in memory if 200 <= k < 600]
    late = [k for k in memory if PICTURES - 400 <= k < PICTURES]
    first, last = (mean(memory[k] for k in these) for these in (early, late))
    print(f"{first * 4 / 1024:.1f} MiB at first, {last * 4 / 1024:.1f} MiB at last")
    assert last < 1.02 * first
    assert max(handles[k] for k in late) <= max(handles[k] for k in early)
