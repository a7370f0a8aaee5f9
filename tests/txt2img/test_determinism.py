"""The same seed, the same picture: what README's table says of runs, batches and threads on a CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.checkpoint import load_model
from ldm.generate import Sampling, generate
from ldm.image_io import Picture

PROMPTS = ["a red star", "a small blue ring above a large green heart", "a cross"]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    return load_model("freeu_tiny", tiny_checkpoint, "cpu", torch.float32)


def drawn(model: Any, *which: int) -> list[Picture]:
    sampling = Sampling(64, 64, steps=6, scale=3.0, eta=0.5)
    return generate(model, [PROMPTS[k] for k in which], [7 + k for k in which], sampling)


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_gives_the_same_picture_each_time_at_any_number_of_threads(
    count: int, model: Any, threads: None
) -> None:
    torch.set_num_threads(count)
    assert np.array_equal(drawn(model, 1)[0], drawn(model, 1)[0])


def test_a_batch_changes_rounding_alone(model: Any) -> None:
    """So txt2img draws each picture alone on a CPU, where they come out the same to the bit."""
    for one, k in zip(drawn(model, 0, 1, 2), range(3), strict=True):
        assert np.abs(one.astype(int) - drawn(model, k)[0]).max() <= 1


def test_the_number_of_threads_changes_rounding_alone(model: Any, threads: None) -> None:
    """torch splits the sums of 1x1 convolutions by threads."""
    one = drawn(model, 1)[0]
    torch.set_num_threads(2)
    difference = np.abs(one.astype(int) - drawn(model, 1)[0])
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
