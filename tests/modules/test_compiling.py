"""Blocks that torch compiles give what eager ones do, and FreeU changes between them at no cost."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import _dynamo

from ldm.folders import ROOT
from ldm.image_io import read_picture
from ldm.modules.diffusionmodules.compiling import compiled_blocks
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from tests.conftest import fill_by_name, golden_parameters, relative_error, rnd

pytestmark = pytest.mark.slow  # a compiler takes half a minute where it starts from nothing
Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)


@pytest.mark.parametrize("options", [{}, {"use_spatial_transformer": False, "context_dim": None}])
def test_freeu_changes_without_compiling_again(options: dict) -> None:
    _dynamo.reset()
    small = {"num_res_blocks": 1, "channel_mult": [2, 4], "attention_resolutions": [2]}
    unet = Free_UNetModel(1.3, 1.4, 0.9, 0.2, **golden_parameters("unet_tiny") | small | options)
    fill_by_name(unet)
    x, t = rnd(1, 2, 4, 16, 16), torch.tensor([981, 21])
    context = None if options else rnd(2, 2, 11, 48)
    graphs = []
    with torch.no_grad():
        plain = unet(x, t, context)
        for b1 in (1.3, 1.0, 1.7):
            unet.b1 = b1
            eager = unet(x, t, context)
            with compiled_blocks(unet):
                assert relative_error(unet(x, t, context), eager) < 1e-5
            graphs.append(_dynamo.utils.counters["stats"]["unique_graphs"])
        unet.b1 = 1.3
        assert torch.equal(unet(x, t, context), plain)
    assert graphs[0] > 3 and len(set(graphs)) == 1


def test_a_compiled_run_draws_the_same_and_goes_on_as_one_alone(txt2img: Run) -> None:
    plain, compiled = txt2img(), txt2img("--compile")
    assert (plain.code, compiled.code) == (0, 0) and "--compile is for GPUs" in compiled.err
    ours, theirs = (read_picture(run.pictures()[0]).astype(int) for run in (plain, compiled))
    assert np.abs(ours - theirs).max() <= 1
    assert txt2img("--compile", "--resume", into=compiled.folder).code == 0
    other = txt2img("--resume", into=compiled.folder)
    assert other.code == 2 and "compile" in other.err


def test_a_missing_compiler_is_said_in_two_lines(tmp_path: Path, tiny_checkpoint: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "txt2img.py", "--compile", "--H", "32", "--W", "32"]
    command += ["--ckpt", tiny_checkpoint, "--outdir", tmp_path / "out", "--device", "cpu"]
    nowhere = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | nowhere, check=False)
    assert done.returncode == 2 and not [*(tmp_path / "out").rglob("*.png")]
    first, last = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")][-2:]
    assert first.startswith("error: torch cannot compile here: ") and last == "Leave --compile out."
