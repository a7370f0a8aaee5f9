"""FreeU beside what else is put onto a pipeline, here one with a ControlNet: adapters and offloading."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import save_file
from torchvision.transforms.functional import to_pil_image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ldm.freeu import FreeUSettings
from ldm.freeu.diffusers import disable, enable
from tests.conftest import fill_by_name, relative_error, rnd
from tests.freeu.test_diffusers_pipelines import IMAGE, controlnet, sampler
from tests.freeu.unets import published_free_u

FACTORS = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
RANK = 2
VISION = {"hidden_size": 8, "intermediate_size": 8, "projection_dim": 6, "num_hidden_layers": 1}


@contextmanager
def lora(pipe, folder):
    """From a file, on the U-Net's attention and on convolutions of the very blocks that FreeU hooks."""
    weights = {}
    for name, layer in pipe.unet.named_modules():
        if name.endswith(("to_q", "to_v", "conv1")):
            width_out, width_in, *kernel = layer.weight.shape
            a = rnd(len(weights), RANK, width_in, *kernel)
            weights[f"unet.{name}.lora_A.weight"] = a / a[0].numel() ** 0.5
            weights[f"unet.{name}.lora_B.weight"] = rnd(len(weights), width_out, RANK, *(1 for _ in kernel))
    save_file(weights, folder / "lora.safetensors")
    pipe.load_lora_weights(folder, weight_name="lora.safetensors")
    yield {}
    pipe.unload_lora_weights()


@contextmanager
def fused_lora(pipe, folder):
    with lora(pipe, folder):
        pipe.fuse_lora()
        yield {}
        pipe.unfuse_lora()


@contextmanager
def ip_adapter(pipe, folder):
    """From a file, with its encoder of pictures beside it."""
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(**VISION, num_attention_heads=2, image_size=32, patch_size=16)
    )
    fill_by_name(encoder).save_pretrained(folder / "image_encoder")
    tokens, context = 4, pipe.unet.config.cross_attention_dim
    weights = {
        "image_proj.proj.weight": rnd(1, tokens * context, VISION["projection_dim"]),
        "image_proj.proj.bias": rnd(2, tokens * context),
        "image_proj.norm.weight": rnd(3, context),
        "image_proj.norm.bias": rnd(4, context),
    }
    crossing = [layer for name, layer in pipe.unet.named_modules() if name.endswith("attn2")]
    for i, attention in enumerate(crossing):
        for kind in ("to_k_ip", "to_v_ip"):
            shape = attention.to_k.weight.shape
            weights[f"ip_adapter.{2 * i + 1}.{kind}.weight"] = rnd(len(weights), *shape)
    save_file(weights, folder / "ip_adapter.safetensors")
    pipe.load_ip_adapter(str(folder), subfolder="", weight_name="ip_adapter.safetensors")
    yield {"ip_adapter_image": to_pil_image(IMAGE[0])}
    pipe.unload_ip_adapter()


@contextmanager
def offloaded_by_layers(pipe, folder):
    """As by `enable_sequential_cpu_offload`, which asks for a GPU: weights come for each layer's call."""
    for model in (pipe.unet, pipe.controlnet, pipe.vae):
        cpu_offload(model, execution_device="cpu")
    yield {}
    pipe.remove_all_hooks()


@contextmanager
def offloaded_by_models(pipe, folder):
    """The hooks of this are taken off and put on again after every picture."""
    pipe.enable_model_cpu_offload(device="cpu")
    yield {}
    pipe.remove_all_hooks()


ADAPTERS = [lora, fused_lora, ip_adapter]
ADDITIONS = [*ADAPTERS, offloaded_by_layers, offloaded_by_models]


def build():
    """The pipeline, and a function that runs it from the same noise."""
    pipe, arguments = controlnet()
    return pipe, partial(sampler(pipe, arguments), num_inference_steps=2)


@pytest.fixture(scope="module")
def alone():
    """What the pipeline gives without any addition and without FreeU."""
    with torch.no_grad():
        return build()[1]()


@pytest.fixture(scope="module", params=ADDITIONS, ids=lambda addition: addition.__name__)
def case(request, tmp_path_factory):
    """An addition, and what a pipeline with it gives without FreeU and with the published formulas."""
    add = partial(request.param, folder=tmp_path_factory.mktemp("weights"))
    pipe, sample = build()
    with torch.no_grad(), add(pipe) as more:
        without = sample(**more)
        with published_free_u(pipe.unet, FreeUSettings(**FACTORS, version=2)):
            return add, without, sample(**more)


@pytest.mark.parametrize("free_u_first", [False, True])
def test_free_u_may_come_before_an_addition_or_after_it(case, free_u_first):
    add, without, expected = case
    pipe, sample = build()
    if free_u_first:
        enable(pipe, version=2, **FACTORS)
    with add(pipe) as more:
        if not free_u_first:
            enable(pipe, version=2, **FACTORS)
        assert relative_error(sample(**more), expected) < 1e-4
        assert relative_error(expected, without) > 1e-2
        disable(pipe)
        assert torch.equal(sample(**more), without)


def test_free_u_stays_when_an_addition_goes(case, alone):
    add, *_ = case
    pipe, sample = build()
    with enable(pipe, version=2, **FACTORS):
        expected = sample()
        with add(pipe):
            pass
        assert relative_error(sample(), expected) < 1e-5
    assert relative_error(sample(), alone) < 1e-5


@pytest.mark.parametrize("case", ADAPTERS, indirect=True)
def test_the_adapters_of_these_tests_change_the_picture(case, alone):
    _, without, _ = case
    assert relative_error(without, alone) > 1e-2
