"""The networks against diffusers', with the same weights put through its own checkpoint converters."""

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersAutoencoder
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from ldm.freeu import FreeUSettings
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from tests.conftest import fill_by_name, golden_parameters, relative_error, rnd

TIMES = torch.tensor([981, 41])
CONTEXT = rnd(2, 2, 11, 48)
PICTURE = rnd(11, 1, 3, 64, 48)


def prefixed(prefix, module):
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def pair(request):
    """Our U-Net with FreeU off and diffusers' with its weights, in SD1's style (convolutions and a number
    of heads) and in SD2's (linear projections, heads of one width)."""
    shape = golden_parameters("unet_tiny")
    if request.param == "sd2":
        del shape["num_heads"]
        shape |= {"num_head_channels": 16, "use_linear_in_transformer": True}
    ours = fill_by_name(Free_UNetModel(1.0, 1.0, 1.0, 1.0, **shape))
    theirs = UNet2DConditionModel(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=(*3 * ["CrossAttnDownBlock2D"], "DownBlock2D"),
        up_block_types=("UpBlock2D", *3 * ["CrossAttnUpBlock2D"]),
        cross_attention_dim=48,
        attention_head_dim=4
        if request.param == "sd1"
        else (2, 4, 8, 8),  # the number of heads, despite its name
        use_linear_projection=request.param == "sd2",
    ).eval()
    weights = convert_ldm_unet_checkpoint(prefixed("model.diffusion_model", ours), dict(theirs.config))
    theirs.load_state_dict(weights)
    return ours, theirs


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_the_unet_is_diffusers(pair, size):
    ours, theirs = pair
    ours.freeu = ours.freeu.off()
    x = rnd(1, 2, 4, *size)
    assert relative_error(ours(x, TIMES, CONTEXT), theirs(x, TIMES, CONTEXT).sample) < 1e-5


@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
def test_freeu_by_resolution_is_diffusers(pair, size):
    ours, theirs = pair
    x = rnd(1, 2, 4, *size)
    plain = theirs(x, TIMES, CONTEXT).sample
    ours.freeu = FreeUSettings(b1=1.3, b2=1.4, s1=0.9, s2=0.2, match="resolution")
    theirs.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    try:
        expected = theirs(x, TIMES, CONTEXT).sample
    finally:
        theirs.disable_freeu()
    assert relative_error(expected, plain) > 1e-2
    assert relative_error(ours(x, TIMES, CONTEXT), expected) < 1e-5


@pytest.fixture(scope="module")
def autoencoders():
    """Our autoencoder and diffusers' with its weights."""
    ours = fill_by_name(AutoencoderKL(golden_parameters("vae_tiny"), embed_dim=4))
    theirs = DiffusersAutoencoder(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=4 * ("DownEncoderBlock2D",),
        up_block_types=4 * ("UpDecoderBlock2D",),
        layers_per_block=2,
        latent_channels=4,
    ).eval()
    theirs.load_state_dict(
        convert_ldm_vae_checkpoint(prefixed("first_stage_model", ours), dict(theirs.config))
    )
    return ours, theirs


def test_the_encoder_is_diffusers(autoencoders):
    ours, theirs = (model.encode(PICTURE) for model in autoencoders)
    assert relative_error(ours.mean, theirs.latent_dist.mean) < 1e-5
    assert relative_error(ours.logvar, theirs.latent_dist.logvar) < 1e-5
    assert relative_error(ours.kl(), theirs.latent_dist.kl()) < 1e-5


def test_the_decoder_is_diffusers(autoencoders):
    ours, theirs = autoencoders
    z = rnd(12, 1, 4, 8, 6)
    assert relative_error(ours.decode(z), theirs.decode(z).sample) < 1e-5
