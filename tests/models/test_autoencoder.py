"""The autoencoder against the original's outputs and formulas written out here."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.config.reading import load_config
from ldm.errors import InputError
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.diffusionmodules.model import AttnBlock, Downsample, ResnetBlock
from ldm.modules.distributions import DiagonalGaussianDistribution
from tests.conftest import fill_by_name, golden, golden_parameters, relative_error, rnd

DDCONFIG = golden_parameters("vae_tiny")
SMALL = DDCONFIG | {"ch_mult": [1, 2], "num_res_blocks": 1, "resolution": 32}


@pytest.fixture(scope="module")
def autoencoder():
    return fill_by_name(AutoencoderKL(DDCONFIG, embed_dim=4))


def test_the_posterior_is_the_originals(autoencoder):
    posterior = autoencoder.encode(rnd(11, 1, 3, 64, 64))
    assert relative_error(posterior.mean, golden("vae_tiny")["mean"]) < 1e-5
    assert relative_error(posterior.logvar, golden("vae_tiny")["logvar"]) < 1e-5


def test_the_picture_is_the_originals(autoencoder):
    assert relative_error(autoencoder.decode(rnd(12, 1, 4, 8, 8)), golden("vae_tiny")["decoded"]) < 1e-5


def test_a_picture_of_any_proportions_comes_back_at_its_size(autoencoder):
    assert autoencoder.downsampling == 8
    reconstruction, posterior = autoencoder(rnd(1, 2, 3, 32, 56), sample_posterior=False)
    assert posterior.mode().shape == (2, 4, 4, 7)
    assert reconstruction.shape == (2, 3, 32, 56)
    assert torch.equal(reconstruction, autoencoder.decode(posterior.mean))


def test_reconstruction_draws_from_the_posterior(autoencoder):
    picture = rnd(2, 1, 3, 16, 16)
    torch.manual_seed(3)
    reconstruction, posterior = autoencoder(picture)
    latent = posterior.sample(torch.Generator().manual_seed(3))
    assert torch.equal(reconstruction, autoencoder.decode(latent))


@pytest.mark.parametrize("resolution", [32, 16])
def test_attention_stands_at_the_resolutions_asked_for(resolution):
    level = {32: 0, 16: 1}[resolution]
    with_attention = fill_by_name(AutoencoderKL(SMALL | {"attn_resolutions": [resolution]}, embed_dim=4))
    weights = with_attention.state_dict()
    blocks = {name.removesuffix(".q.weight") for name in weights if name.endswith(".q.weight")}
    stages = {f"encoder.down.{level}.attn.0", *(f"decoder.up.{level}.attn.{i}" for i in range(2))}
    assert blocks == {"encoder.mid.attn_1", "decoder.mid.attn_1"} | stages

    # Attention whose last layer is zero adds nothing, so that what is left is the autoencoder without it.
    picture = rnd(4, 1, 3, 16, 24)
    without = AutoencoderKL(SMALL, embed_dim=4).eval()
    without.load_state_dict({k: v for k, v in weights.items() if ".attn." not in k})
    before = with_attention(picture, sample_posterior=False)[0]
    for name in stages:
        with_attention.get_submodule(name).proj_out.requires_grad_(False).weight.zero_()
        with_attention.get_submodule(name).proj_out.bias.zero_()
    expected = without(picture, sample_posterior=False)[0]
    assert relative_error(with_attention(picture, sample_posterior=False)[0], expected) < 1e-6
    assert relative_error(before, expected) > 1e-3


def test_attention_is_its_formula():
    block = fill_by_name(AttnBlock(64, 32))
    x = rnd(5, 2, 64, 3, 5)
    h = torch.nn.functional.group_norm(x, 32, block.norm.weight, block.norm.bias, eps=1e-6)
    q, k, v = (
        torch.einsum("oc,bchw->bhwo", f.weight[..., 0, 0], h) + f.bias for f in (block.q, block.k, block.v)
    )
    weights = torch.einsum("bijc,bklc->bijkl", q, k).div(64**0.5).flatten(3).softmax(-1).view(2, 3, 5, 3, 5)
    out = torch.einsum("bijkl,bklc->bcij", weights, v)
    out = (
        torch.einsum("oc,bchw->bohw", block.proj_out.weight[..., 0, 0], out)
        + block.proj_out.bias[:, None, None]
    )
    assert relative_error(block(x), x + out) < 1e-6


@pytest.mark.parametrize("gradients", [False, True])
def test_maps_that_hooks_keep_are_not_written_over(gradients):
    block, kept = fill_by_name(ResnetBlock(32, 32, 0.0, 8)), []
    x = rnd(1, 1, 32, 8, 8).contiguous(memory_format=torch.channels_last)
    expected = block(x)
    for layer in (block.conv1, block.norm2, block.conv2):
        layer.register_forward_hook(lambda _layer, _in, out: kept.append((out, out.clone())))
    with torch.set_grad_enabled(gradients):
        assert relative_error(block(x), expected) < 1e-5
    assert len(kept) == 3 and all(torch.equal(out, before) for out, before in kept)


def test_a_plain_normalisation_may_take_the_place_of_a_blocks():
    block, x = fill_by_name(ResnetBlock(32, 32, 0.0, 8)), rnd(1, 1, 32, 8, 8)
    expected = block(x)
    plain = torch.nn.GroupNorm(8, 32, eps=1e-6)
    plain.load_state_dict(block.norm2.state_dict())
    plain.register_forward_hook(lambda _layer, _in, out: out * torch.sigmoid(out))
    block.norm2 = plain
    assert relative_error(block(x), expected) < 1e-5


def test_downsampling_pads_on_the_right_and_at_the_bottom():
    layer = Downsample(1)
    layer.conv.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
    layer.conv.bias.zero_()
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 3, 3] = 1.0
    assert layer(x).flatten().tolist() == [0, 0, 0, 4]  # the corner meets the middle of the kernel


def test_without_attention_the_middle_has_none():
    names = AutoencoderKL(SMALL | {"attn_type": "none"}, embed_dim=4).state_dict()
    assert not [name for name in names if "attn" in name]


def test_an_unknown_kind_of_attention_is_named():
    with pytest.raises(InputError, match="attn_type 'cosine'"):
        AutoencoderKL(SMALL | {"attn_type": "cosine"}, embed_dim=4)


def test_the_embedded_models_autoencoder_makes_latents_of_an_eighth():
    params = load_config("tiny").model.params.first_stage_config.params
    picture = rnd(6, 1, 3, 64, 64)
    reconstruction, posterior = fill_by_name(AutoencoderKL(**params))(picture, sample_posterior=False)
    assert posterior.mean.shape == (1, params.embed_dim, 8, 8)
    assert reconstruction.shape == picture.shape


def test_a_generator_makes_the_draw_repeatable():
    posterior = DiagonalGaussianDistribution(rnd(7, 2, 8, 3, 5))
    draws = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_draws_have_the_posteriors_mean_and_spread():
    moments = torch.tensor([1.5, -2.0, 0.0, 2.0]).view(1, 4, 1, 1)
    draws = DiagonalGaussianDistribution(moments.expand(20000, 4, 1, 1)).sample(
        torch.Generator().manual_seed(0)
    )
    assert torch.allclose(draws.mean(0).flatten(), torch.tensor([1.5, -2.0]), atol=0.06)
    assert torch.allclose(draws.std(0).flatten(), torch.tensor([1.0, torch.e]), rtol=0.02)


def test_divergence_from_the_standard_normal():
    assert DiagonalGaussianDistribution(torch.zeros(2, 8, 3, 5)).kl().tolist() == [0, 0]
    moments = rnd(8, 2, 8, 3, 5)
    posterior = DiagonalGaussianDistribution(moments)
    expected = kl_divergence(Normal(moments[:, :4], (moments[:, 4:] / 2).exp()), Normal(0.0, 1.0)).sum(
        (1, 2, 3)
    )
    assert torch.allclose(posterior.kl(), expected, rtol=1e-5)


def test_the_log_variance_is_held_in_bounds():
    posterior = DiagonalGaussianDistribution(torch.tensor([0.0, 0.0, -100.0, 100.0]).view(1, 4, 1, 1))
    assert posterior.logvar.flatten().tolist() == [-30, 20]
    assert torch.isfinite(posterior.sample()).all()
