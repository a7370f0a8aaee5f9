"""Full-size Stable Diffusion checkpoints, made up, from a file to a picture by scripts/txt2img.py."""

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import Tensor

from ldm.folders import ROOT

pytestmark = pytest.mark.slow
DATA = Path(__file__).parent / "data"


def made_up(version: int) -> dict[str, Tensor]:
    """A state dict with the published files' keys and shapes: small random weights, in half precision."""
    shapes = json.loads((DATA / f"sd-v{version}-keys.json").read_text())
    block = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(version))
    state = {}
    for i, (key, shape) in enumerate(shapes.items()):
        if key.endswith("position_ids"):
            state[key] = torch.arange(77)[None]
            continue
        count = math.prod(shape)
        numbers = block.roll(1009 * i).repeat(-(-count // len(block)))[:count].view(shape)
        if len(shape) > 1:
            numbers = numbers / math.prod(shape[1:]) ** 0.5
        else:
            numbers = 0.05 * numbers + key.endswith("weight")
        state[key] = numbers.half()
    return state


def as_lightning_saves(state: dict[str, Tensor]) -> dict[str, object]:
    """The state dict among what a training leaves in its checkpoints: averages, optimizer, callbacks."""
    name = "model.diffusion_model.out.2.weight"
    averaged = {"model_ema." + name.removeprefix("model.").replace(".", ""): torch.zeros_like(state[name])}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(470_000)}
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    return {
        "epoch": 8,
        "global_step": 470_000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state | averaged | counters,
        "callbacks": {ModelCheckpoint: {"best": Path("epoch=8.ckpt"), "callback": ModelCheckpoint()}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 470_000, "base_lrs": [1e-4]}],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose large files are gone as soon as the test is over."""
    yield tmp_path
    for path in tmp_path.rglob("*.*"):
        if path.suffix in (".safetensors", ".ckpt"):
            path.unlink()


def drawn(config: str, ckpt: Path) -> np.ndarray:
    """The picture of one step at 64 by 64 pixels that the script makes with this checkpoint."""
    flags = [
        "--config",
        config,
        "--ckpt",
        ckpt,
        "--outdir",
        ckpt.with_suffix(""),
        "--prompt",
        "a squirrel, 4k",
    ]
    size = ["--H", "64", "--W", "64", "--steps", "1", "--device", "cpu", "--precision", "full"]
    answer = subprocess.run(
        [sys.executable, ROOT / "scripts" / "txt2img.py", *flags, *size],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "on output blocks 0 1 2 3 4 5 6; " in answer.stdout
    with Image.open(ckpt.with_suffix("") / "samples" / "00000.png") as image:
        assert image.size == (64, 64)
        return np.asarray(image)


def test_sd1_draws_the_same_from_safetensors_and_from_a_lightning_checkpoint(folder: Path) -> None:
    state = made_up(1)
    save_file(state, folder / "sd.safetensors")
    torch.save(as_lightning_saves(state), folder / "trained.ckpt")
    del state
    first = drawn("freeu_sd14.yaml", folder / "sd.safetensors")
    second = drawn("freeu_sd14.yaml", folder / "trained.ckpt")
    assert first.std() > 1
    assert np.array_equal(first, second)

    # The mapped file, the weights in float32 and the program: no second copy of the model.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert peak < (2.2 + 4.3 + 1.5) * 1e9


def test_sd21_draws_from_safetensors_as_a_v_model(folder: Path) -> None:
    save_file(made_up(2), folder / "sd.safetensors")
    assert drawn("freeu_sd21.yaml", folder / "sd.safetensors").std() > 1
