"""What every test shares: the recipe of the golden inputs and weights, and one thread, so that runs are alike."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

torch.set_num_threads(1)

DATA = Path(__file__).parent / "data"


def rnd(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, as the goldens' inputs were drawn."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, np.float32))


def fill_by_name(module: nn.Module) -> nn.Module:
    """Gives every weight the values that its name stands for, as the goldens' networks had them."""
    weights = {}
    for name, p in module.state_dict().items():
        a = rnd(zlib.crc32(name.encode()), *p.shape)
        if p.ndim >= 2:
            a = a * (1 / np.prod(p.shape[1:])) ** 0.5
        elif name.endswith(".weight"):
            a = 1 + 0.1 * a
        else:
            a = 0.05 * a
        weights[name] = a
    module.load_state_dict(weights)
    return module.eval()


def relative_error(out: Tensor, reference: np.ndarray | Tensor) -> float:
    """The largest difference over the largest value."""
    reference = torch.as_tensor(reference)
    return ((out - reference).abs().max() / reference.abs().max()).item()


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / f"{name}.npz"))


def golden_parameters(name: str) -> dict:
    return json.loads((DATA / f"{name}.json").read_text())


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield
