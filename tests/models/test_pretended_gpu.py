"""On pretended CUDA tensors, which have shapes and a device but no numbers, nothing mixes devices.

Nor does anything ask for float64, which MPS does not have.
"""

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.checkpoint import build_on_meta
from ldm.config.reading import load_config
from ldm.generate import Sampling, decode_one, denoise
from ldm.models.diffusion import sampling
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.strips import decode_in_strips

UNET = "model.params.unet_config.params."
USUAL: list[str] = []
PART_OF_THE_RUN = [f"{UNET}{name}" for name in ("version=2", "threshold=2", "stop=0.8", "ramp=0.1")]


def can_pretend() -> bool:
    """Whether torch does so where there is no GPU: older ones ask for it all the same."""
    with FakeTensorMode():
        table, which = torch.empty(2, 2, device="cuda"), torch.zeros(1, 1, dtype=torch.long, device="cuda")
        try:
            torch.nn.functional.embedding(which, table)
        except RuntimeError:
            return False
    return True


pytestmark = pytest.mark.skipif(not can_pretend(), reason="this torch pretends no CUDA tensors without a GPU")


class Pretended(TorchDispatchMode):
    """Says that all is finite, as no number is there to ask, and no to float64, as MPS does."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            return True
        out = operation(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and (out.device.type, out.dtype) == ("cuda", torch.float64):
            raise TypeError("this device has no float64")
        return out


@pytest.fixture
def model(request, monkeypatch) -> Iterator[LatentDiffusion]:
    """The embedded model in half precision on a GPU that is not there; its schedule stays on the CPU."""
    made = build_on_meta(load_config("freeu_tiny.yaml", request.param).model).eval()
    levels = sampling.levels

    def levels_in_numbers(*args):
        with unset_fake_temporarily():
            return levels(*args)

    monkeypatch.setattr(sampling, "levels", levels_in_numbers)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in made.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    there = torch.empty(weight.shape, dtype=torch.float16, device="cuda")
                    module._parameters[name] = torch.nn.Parameter(there, requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None and module is not made:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
        with Pretended():
            yield made


@pytest.mark.parametrize(
    ("model", "sampler", "eta"),
    [(USUAL, "ddim", 0.0), (PART_OF_THE_RUN, "ddim", 0.5), (USUAL, "plms", 0.0), (USUAL, "dpm", 0.0)],
    indirect=["model"],
)
def test_from_words_to_a_picture_all_is_on_the_models_device(model, sampler, eta):
    how = Sampling(height=128, width=64, steps=3, scale=5.0, sampler=sampler, eta=eta)
    *_, last = denoise(model, 2 * ["a red circle"], 2 * [""], [1, 2], how)
    assert (last.x.device.type, last.x.shape) == ("cuda", (2, 12, 16, 8))
    pixels = decode_one(model, last.x[:1])
    assert (pixels.device.type, pixels.shape) == ("cuda", (1, 3, 128, 64))


@pytest.mark.parametrize("model", [USUAL], indirect=True)
def test_strips_come_from_the_models_device_to_the_host(model):
    latent = torch.empty(1, 12, 16, 24, dtype=torch.float16, device="cuda")
    pixels = decode_in_strips(model.first_stage_model, latent)
    assert (pixels.device.type, pixels.shape) == ("cpu", (1, 3, 128, 192))
