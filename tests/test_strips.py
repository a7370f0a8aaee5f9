"""Decoding in strips is the whole decode."""

import copy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ldm.strips as strips_module
from ldm.checkpoint import load_model
from ldm.generate import Sampling, decode, denoise
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.winograd_in_c import convolves_in_c
from ldm.strips import decode_in_strips
from ldm.util import instantiate_from_config, load_config
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


@pytest.mark.long
def test_stable_diffusion_decodes_2048_pixels_square_in_strips_of_bounded_size() -> None:
    autoencoder = instantiate_from_config(load_config("v1-inference.yaml").model.params.first_stage_config)
    with LittleMemory(2**27) as memory:
        picture = decode_in_strips(autoencoder.eval(), rnd(1, 1, 4, 256, 256))
    assert picture.shape == (1, 3, 2048, 2048) and picture.isfinite().all()
    assert memory.refused == 0
