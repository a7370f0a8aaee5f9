"""An installation that is no clone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.folders import ROOT

DRAWN = """
import json, sys
from ldm import load_model
from ldm.data.judge import load_judge
from ldm.generate import Sampling, generate
from ldm.folders import CHECKPOINTS, CONFIGS

model = load_model("freeu_tiny.yaml", device="cpu")
[picture] = generate(model, ["a small blue star"], [7], Sampling(64, 64, steps=2))
load_judge()
print(json.dumps([str(CONFIGS), str(CHECKPOINTS), picture.shape]))
"""


@pytest.mark.slow
def test_an_installation_without_a_clone_draws_and_looks_for_checkpoints_where_it_is_used(tmp_path: Path):
    pytest.importorskip("setuptools")
    installed, used = tmp_path / "installed", tmp_path / "used"
    used.mkdir()
    build = [sys.executable, "setup.py", "-q", "build", "-b", tmp_path / "build", "build_py", "-d", installed]
    subprocess.run(build, cwd=ROOT, check=True)
    environment = os.environ | {"PYTHONPATH": str(installed)}
    said = subprocess.run(
        [sys.executable, "-c", DRAWN], cwd=used, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(said) == [
        str(installed / "ldm" / "configs"), str(used / "checkpoints"), [64, 64, 3]
    ]  # fmt: skip
    carried = {path.name for path in (installed / "ldm" / "checkpoints").iterdir()}
    assert carried == {"tiny.safetensors", "judge.safetensors"}


@pytest.mark.skipif(sys.platform != "linux", reason="no library in C is built elsewhere")
def test_each_library_has_an_object_file_of_its_own(tmp_path: Path):
    pytest.importorskip("setuptools")
    compiler, calls = tmp_path / "cc", tmp_path / "calls"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> "{calls}"\n')
    compiler.chmod(0o755)
    build = [sys.executable, "setup.py", "-q", "build_ext", "-b", tmp_path / "lib", "-t", tmp_path / "temp"]
    subprocess.run(build, cwd=ROOT, env=os.environ | {"CC": str(compiler)}, check=True)
    words = [call.split() for call in calls.read_text().splitlines()]
    made = [call[call.index("-o") + 1] for call in words]
    objects = [path for path in made if path.endswith(".o")]
    assert objects and len(made) == 2 * len(objects)  # each is linked
    assert len(set(objects)) == len(objects)
