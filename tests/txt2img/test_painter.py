"""Batches of pictures: what does not fit the memory is made smaller."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.checkpoint import load_model
from ldm.errors import InputError
from ldm.generate import Sampling, denoise
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.txt2img.jobs import Job
from ldm.txt2img.painter import Painter
from tests.memory import LittleMemory

Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)
SAMPLING = Sampling(128, 128, steps=1, scale=3.0)
JOBS = [Job("a red star", seed) for seed in range(4)]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    return load_model("freeu_tiny", tiny_checkpoint, "cpu", torch.float32)


def painter(model: Any, at_once: int, **options: Any) -> Painter:
    made = Painter(model, SAMPLING, **options)
    assert made.at_once == 1  # on the CPU
    made.at_once = at_once
    return made


def test_a_batch_too_large_for_the_memory_is_halved_and_that_is_said_once(
    model: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [*painter(model, 1).paint(JOBS)]
    with LittleMemory(2**40) as memory:
        for _ in denoise(model, ["", ""], ["", ""], [0, 1], SAMPLING):
            pass
    sizes: list[int] = []
    generate = Painter._generate
    monkeypatch.setattr(
        Painter, "_generate", lambda self, jobs, *rest: sizes.append(len(jobs)) or generate(self, jobs, *rest)
    )
    monkeypatch.setattr("ldm.strips.STRIP", 2**13)
    with LittleMemory(memory.largest):  # which two pictures fill
        pictures = [*painter(model, 4).paint(JOBS)]
    said = "warning: 4 pictures at once are too many for the memory of cpu: halved\n"
    assert capsys.readouterr().err == said
    for one, other in zip(whole, pictures, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 2
    assert [*dict.fromkeys(sizes)] == [4, 2]


def test_one_picture_that_does_not_fit_is_an_error_with_the_remedy(model: Any) -> None:
    with LittleMemory(1000), pytest.raises(InputError, match="one picture of 128x128: give a smaller --W"):
        next(painter(model, 4).paint(JOBS))
    assert model.model.diffusion_model.freeu.b1 != 1


def test_a_model_that_the_memory_does_not_hold_is_said_before_any_file_is_written(
    txt2img: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_model = LatentDiffusion.apply_model

    def in_little_memory(*arguments: Any) -> torch.Tensor:
        with LittleMemory(1000):
            return apply_model(*arguments)

    monkeypatch.setattr(LatentDiffusion, "apply_model", in_little_memory)
    outcome = txt2img()
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        "error: The memory of cpu does not hold the model: free it of other programs, "
        "or give --precision fp16 or --device cpu.\n"
    )
    assert not [path for path in outcome.folder.rglob("*") if path.is_file()]
