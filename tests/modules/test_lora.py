"""LoRAs that peft puts on the networks' convolutions and linear layers."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from ldm import strips
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.strips import decode_in_strips, strips_know
from tests.conftest import fill_by_name, golden_parameters, relative_error, rnd
from tests.test_strips import narrow


def with_lora(network, layers):
    """A copy of a network with a LoRA, of weights that change nothing yet, on layers whose names end so."""
    names = rf".*({'|'.join(layers)})"
    return inject_adapter_in_model(LoraConfig(r=2, target_modules=names), copy.deepcopy(network)).eval()


def switch_on(network):
    """Fills those of its weights that are zero as a LoRA is made."""
    for number, (name, weight) in enumerate(network.named_parameters()):
        if "lora_B" in name:
            weight.copy_(0.2 * rnd(number, *weight.shape))


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize(
    "layers",
    [
        [r"in_layers\.2", r"\.op", r"\.conv", r"input_blocks\.0\.0"],
        ["to_q", r"ff\.net\.0\.proj", r"ff\.net\.2"],
    ],
)
def test_a_lora_acts_at_inference_as_where_gradients_are_recorded(layers, size):
    plain = fill_by_name(UNetModel(**golden_parameters("unet_tiny")))
    inputs = rnd(1, 2, 4, size, size), torch.tensor([981, 41]), rnd(2, 2, 11, 48)
    unet = with_lora(plain, layers)
    base = plain(*inputs)
    assert relative_error(unet(*inputs), base) < 1e-5
    switch_on(unet)
    with torch.enable_grad():
        expected = unet(*inputs).detach()
    assert relative_error(unet(*inputs), expected) < 1e-4 < 0.01 < relative_error(base, expected)


def test_a_decoder_with_a_lora_gives_the_same_numbers_in_strips(monkeypatch):
    monkeypatch.setattr(strips, "STRIP", 1000)
    plain, z = narrow([1, 2, 2]), rnd(7, 1, 4, 5, 6)
    autoencoder = with_lora(plain, ["conv1", "conv2", "conv_out", "upsample.conv", "nin_shortcut", "q"])
    switch_on(autoencoder)
    assert strips_know(autoencoder)
    made = decode_in_strips(autoencoder, z)
    assert relative_error(made, autoencoder.decode(z)) < 1e-5 < 0.01 < relative_error(made, plain.decode(z))
