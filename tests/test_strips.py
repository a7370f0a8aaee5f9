"""Decoding in strips is the whole decode."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ldm.strips as strips_module
from ldm.checkpoint import load_model
from ldm.config.reading import load_config
from ldm.generate import Sampling, decode, decode_one, denoise
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.model import AttnBlock, Decoder
from ldm.modules.norm import GroupNorm
from ldm.modules.winograd_in_c import convolves_in_c
from ldm.strips import decode_in_strips, strips_know
from ldm.util import instantiate_from_config
from tests.checkpoints import CPU
from tests.conftest import fill_by_name, relative_error, rnd
from tests.memory import LittleMemory


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    return load_model("freeu_tiny", tiny_checkpoint, "cpu", torch.float32)


@pytest.fixture(scope="module")
def latents(model: LatentDiffusion) -> torch.Tensor:
    """Of real pictures, so that their bytes can be compared."""
    prompts = ["a large red striped circle left of a small blue star on a dotted green background", "a ring"]
    for step in denoise(model, prompts, ["", ""], [3, 4], Sampling(128, 160, steps=8, scale=3.0)):
        last = step
    return last.x


@pytest.fixture
def no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where strips are faster they are not taken for that alone."""
    monkeypatch.setattr(strips_module, "strips_pay", lambda *_: False)


@pytest.mark.usefixtures("no_haste")
@pytest.mark.parametrize("strip", [1, 5000, 2**24])
def test_real_pictures_come_out_the_same(
    strip: int, model: LatentDiffusion, latents: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decode(model, latents)
    monkeypatch.setattr(strips_module, "STRIP", strip)
    monkeypatch.setattr(strips_module, "WHOLE", 0)
    for one, other in zip(whole, decode(model, latents), strict=True):
        difference = np.abs(one.astype(int) - other)
        assert difference.max() <= 1 and difference.mean() < 1e-3
        assert one.std() > 20


def narrow(ch_mult: list[int]) -> Any:
    """Stable Diffusion's autoencoder with few channels, and attention at one of its resolutions."""
    config = load_config("v1-inference.yaml").model.params.first_stage_config
    config.params.ddconfig.update(ch=8, norm_groups=4, attn_resolutions=[64], ch_mult=ch_mult)
    return fill_by_name(instantiate_from_config(config))


@settings(max_examples=18)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    strip=st.integers(1, 3000),
    ch_mult=st.sampled_from([[1, 2, 2], [1, 2, 1], [2, 1, 1, 32]]),  # the last widens where it has room to
)
def test_a_decoder_with_attention_gives_the_same_numbers_in_strips_of_any_size(
    height: int, width: int, strip: int, ch_mult: list[int]
) -> None:
    autoencoder = narrow(ch_mult)
    assert any("attn" in name for name, _ in autoencoder.decoder.up.named_modules())
    z = rnd(7, 1, 4, height, width)
    whole = autoencoder.decode(z)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips_module, "STRIP", strip)
        assert relative_error(decode_in_strips(autoencoder, z), whole) < 1e-5


@pytest.mark.parametrize("strip", [1, 300, 3000, 10**6])
def test_pictures_that_tile_do_so_in_strips(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that pads around knows no border: what its latents are rolled by, the picture is."""
    monkeypatch.setattr(strips_module, "STRIP", strip)
    autoencoder, z = narrow([1, 2, 2]), rnd(7, 1, 4, 5, 6)
    bordered = decode_in_strips(autoencoder, z)
    for layer in autoencoder.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"
    assert strips_know(autoencoder)
    tile = decode_in_strips(autoencoder, z)
    assert relative_error(tile, autoencoder.decode(z)) < 1e-5
    rolled = decode_in_strips(autoencoder, z.roll((2, 1), (2, 3)))
    assert relative_error(rolled, tile.roll((8, 4), (2, 3))) < 1e-5
    assert relative_error(tile, bordered) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_of_any_size_are_decoded_in_strips_where_these_are_convolved_in_c_and_do_not_tile(
    dtype: torch.dtype, model: LatentDiffusion, latents: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Mock(wraps=decode_in_strips)
    monkeypatch.setattr("ldm.generate.decode_in_strips", asked)
    tiling = copy.deepcopy(model).to(dtype)
    in_strips = decode(tiling, latents[:1].to(dtype))[0]
    assert asked.call_count == convolves_in_c(CPU, dtype)
    asked.reset_mock()
    for layer in tiling.first_stage_model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"
    tiled = decode(tiling, latents[:1].to(dtype))[0]
    assert not asked.called
    assert np.abs(tiled.astype(int) - in_strips).max() > 2


def test_half_precision_is_kept(model: LatentDiffusion, latents: torch.Tensor) -> None:
    half = copy.deepcopy(model.first_stage_model).bfloat16()
    whole = model.first_stage_model.decode(latents[:1])
    out = decode_in_strips(half, latents[:1].bfloat16())
    assert out.dtype == torch.bfloat16
    error = (out.float() - whole).abs().mean()
    assert error < 1.5 * (half.decode(latents[:1].bfloat16()).float() - whole).abs().mean()


def test_double_precision_is_kept(model: LatentDiffusion, latents: torch.Tensor) -> None:
    double = copy.deepcopy(model.first_stage_model).double()
    out = decode_in_strips(double, latents[:1].double())
    assert out.dtype == torch.float64
    assert relative_error(out, double.decode(latents[:1].double())) < 1e-12


@pytest.mark.usefixtures("no_haste")
def test_a_decode_that_does_not_fit_is_done_in_strips(
    model: LatentDiffusion, latents: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decode(model, latents[:1])
    monkeypatch.setattr(strips_module, "STRIP", 2**15)
    with LittleMemory(2**19) as memory:
        [picture] = decode(model, latents[:1])
    assert memory.refused == 1 and memory.largest < 2**19
    assert np.abs(picture.astype(int) - whole[0]).max() <= 1


@pytest.mark.usefixtures("no_haste")
def test_large_pictures_are_decoded_in_strips(
    model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips_module, "WHOLE", 128 * 128)
    asked: list[int] = []
    whole = LatentDiffusion.decode_first_stage
    monkeypatch.setattr(
        LatentDiffusion, "decode_first_stage", lambda self, z: asked.append(z.shape[-1]) or whole(self, z)
    )
    assert decode(model, rnd(1, 1, 12, 16, 16))[0].shape == (128, 128, 3) and asked == [16]
    assert decode(model, rnd(1, 1, 12, 16, 24))[0].shape == (128, 192, 3) and asked == [16]


def hooked(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda _layer, _in, out: out.flip(2))  # all of the map upside down


def patched(layer: Any) -> None:
    forward = layer.forward
    layer.forward = lambda x, **how: forward(x, **how).flip(2)


def spread(conv: Any) -> None:
    conv.dilation = conv.padding = (2, 2)


def tiling_inside(conv: Any) -> None:
    conv._conv_forward = lambda x, *given: F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), *given)


def replaced(parent: nn.Module, name: str, by: Callable[[Any], nn.Module]) -> None:
    setattr(parent, name, by(getattr(parent, name)))


def torchs(norm: Any) -> nn.Module:
    return nn.Sequential(nn.GroupNorm(norm.num_groups, norm.num_channels), nn.SiLU())


def two_rows_far(conv: Any) -> nn.Module:
    return nn.Sequential(conv, fill_by_name(nn.Conv2d(conv.out_channels, conv.out_channels, 3, padding=1)))


CHANGES: dict[str, Callable[[Any], None]] = {
    "decoder hooked": hooked,
    "block hooked": lambda decoder: hooked(decoder.mid.block_1),
    "attention hooked": lambda decoder: hooked(decoder.mid.attn_1),
    "norm hooked": lambda decoder: hooked(decoder.up[1].block[0].norm2),
    "convolution hooked": lambda decoder: hooked(decoder.conv_out),
    "decoder patched": patched,
    "middle patched": lambda decoder: patched(decoder.mid),
    "block patched": lambda decoder: patched(decoder.up[0].block[1]),
    "norm patched": lambda decoder: patched(decoder.norm_out),
    "convolution spread": lambda decoder: spread(decoder.mid.block_1.conv2),
    "convolution tiling inside": lambda decoder: tiling_inside(decoder.up[0].block[0].conv1),
    "decoder's middle replaced": lambda decoder: replaced(decoder, "mid", lambda _: nn.Identity()),
    "block replaced": lambda decoder: replaced(decoder.mid, "block_1", lambda _: nn.Identity()),
    "norm replaced": lambda decoder: replaced(decoder, "norm_out", torchs),
    "convolution replaced": lambda decoder: replaced(decoder.up[0].block[0], "conv1", two_rows_far),
}


@pytest.fixture
def to_change(model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy of the model, with attention, whose pictures go in strips at any size."""
    monkeypatch.setattr(strips_module, "WHOLE", 0)
    monkeypatch.setattr(strips_module, "STRIP", 2**15)
    copied: Any = copy.deepcopy(model)
    middle = copied.first_stage_model.decoder.mid
    middle.attn_1 = fill_by_name(AttnBlock(middle.block_1.norm1.num_channels, norm_groups=1))
    return copied


@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_changed_in_a_decoder_acts(change: str, to_change: Any, latents: torch.Tensor) -> None:
    before = decode_one(to_change, latents[:1])
    assert relative_error(before, to_change.decode_first_stage(latents[:1])) < 1e-4
    CHANGES[change](to_change.first_stage_model.decoder)
    made = decode_one(to_change, latents[:1])
    assert torch.equal(made, to_change.decode_first_stage(latents[:1]))
    assert relative_error(made, before) > 0.01
    with LittleMemory(2**19), pytest.raises(torch.OutOfMemoryError):
        decode_one(to_change, latents[:1])


@pytest.mark.parametrize("where", ["decode_first_stage", "first_stage_model.decode"])
def test_another_decode_is_called(where: str, to_change: Any, latents: torch.Tensor) -> None:
    parent, _, name = where.rpartition(".")
    setattr(to_change.get_submodule(parent), name, lambda _: torch.full((1, 3, 2, 2), 0.5))
    assert decode_one(to_change, latents[:1]).shape == (1, 3, 2, 2)


def test_a_hook_of_all_layers_sees_the_decoder(to_change: Any, latents: torch.Tensor) -> None:
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda layer, _in, _out: seen.append(type(layer)))
    try:
        decode_one(to_change, latents[:1])
    finally:
        hook.remove()
    assert seen.count(Decoder) == 1 and seen.count(GroupNorm) > 2


@pytest.mark.long
def test_stable_diffusion_decodes_2048_pixels_square_in_strips_of_bounded_size() -> None:
    autoencoder = instantiate_from_config(load_config("v1-inference.yaml").model.params.first_stage_config)
    with LittleMemory(2**27) as memory:
        picture = decode_in_strips(autoencoder.eval(), rnd(1, 1, 4, 256, 256))
    assert picture.shape == (1, 3, 2048, 2048) and picture.isfinite().all()
    assert memory.refused == 0
