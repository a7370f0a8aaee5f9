"""The U-Net with and without FreeU, against the original's outputs and the published forward pass."""

from dataclasses import replace
from importlib import import_module
from unittest.mock import patch

import pytest
import torch

from ldm.config.freeu import FREE_UNET
from ldm.freeu import FreeUSettings
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel, UNetModel
from ldm.modules.diffusionmodules.util import timestep_embedding
from ldm.util import instantiate_from_config
from tests.conftest import fill_by_name, golden, golden_parameters, relative_error, rnd
from tests.freeu.test_operator import published_filter

SHAPE = golden_parameters("unet_tiny")
V1 = FreeUSettings(1.2, 1.4, 0.9, 0.2)
V2 = FreeUSettings(1.3, 1.4, 0.9, 0.2, version=2)
TIMES = torch.tensor([981, 41])
CONTEXT = rnd(2, 2, 11, 48)
X = rnd(1, 2, 4, 16, 16)
WIDE = rnd(3, 2, 4, 8, 24)

each_version = pytest.mark.parametrize("settings", [V1, V2], ids=["v1", "v2"])
each_format = pytest.mark.parametrize(
    "memory", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


@pytest.fixture(scope="module")
def plain():
    return fill_by_name(UNetModel(**SHAPE))


@pytest.fixture
def free(plain):
    """A Free_UNetModel with the plain one's weights and every factor one."""
    unet = Free_UNetModel(1.0, 1.0, 1.0, 1.0, **SHAPE).eval()
    unet.load_state_dict(plain.state_dict(), assign=True)
    return unet


def decoder_written_out(unet, x, settings, context=CONTEXT):
    """FreeU's published forward pass: widths tested, backbone and skip changed apart, then concatenated."""
    emb = unet.time_embed(timestep_embedding(TIMES, 32))
    skips = []
    for block in unet.input_blocks:
        x = block(x, emb, context)
        skips.append(x)
    h = unet.middle_block(x, emb, context)
    for block in unet.output_blocks:
        skip = skips.pop()
        for width, b, s in ((128, settings.b1, settings.s1), (64, settings.b2, settings.s2)):
            if h.shape[1] == width:
                alpha = b
                if settings.version == 2:
                    mean = h.mean(1, keepdim=True)
                    low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
                    alpha = (b - 1) * (mean - low) / (high - low) + 1
                h = torch.cat([h[:, : width // 2] * alpha, h[:, width // 2 :]], dim=1)
                skip = published_filter(skip, settings.threshold, s)
                break
        h = block(torch.cat([h, skip], dim=1), emb, context)
    return unet.out(h)


@each_format
def test_the_plain_unet_gives_the_originals_output(plain, memory):
    out = plain(X.to(memory_format=memory), TIMES, CONTEXT)
    assert relative_error(out, golden("unet_tiny")["plain"]) < 1e-5


@each_format
@each_version
def test_the_unet_with_freeu_gives_the_originals_output(free, settings, memory):
    free.freeu = settings
    out = free(X.to(memory_format=memory), TIMES, CONTEXT)
    assert relative_error(out, golden("unet_tiny")[f"v{settings.version}"]) < 1e-5


@each_format
@each_version
@pytest.mark.parametrize("x", [X, WIDE], ids=["square", "wide"])
def test_factors_of_one_are_the_plain_unet_bit_for_bit(plain, free, settings, memory, x):
    x = x.to(memory_format=memory)
    free.freeu = settings.off()
    assert torch.equal(free(x, TIMES, CONTEXT), plain(x, TIMES, CONTEXT))


@each_version
@pytest.mark.parametrize("threshold", [1, 2])
@pytest.mark.parametrize("x", [X, WIDE, WIDE.mT], ids=["square", "wide", "tall"])
def test_freeu_is_the_published_forward_pass(free, settings, threshold, x):
    free.freeu = FreeUSettings(1.3, 1.1, 0.7, 0.3, settings.version, threshold)
    assert relative_error(free(x, TIMES, CONTEXT), decoder_written_out(free, x, free.freeu)) < 1e-5


def test_the_settings_can_be_changed_between_steps(plain, free):
    outs = []
    for settings in (V1, V2, V1.off(), V1):
        free.freeu = settings
        outs.append(free(X, TIMES, CONTEXT))
    assert torch.equal(outs[0], outs[3])
    assert torch.equal(outs[2], plain(X, TIMES, CONTEXT))
    assert relative_error(outs[0], outs[1]) > 1e-2
    assert relative_error(outs[0], outs[2]) > 1e-2


@pytest.mark.parametrize("name", ["b1", "b2", "s1", "s2"])
def test_a_factor_may_be_set_alone_as_on_the_originals_unet(free, name):
    free.freeu = V2
    before = free(X, TIMES, CONTEXT)
    setattr(free, name, 0.6)
    assert getattr(free, name) == 0.6 and free.freeu == replace(V2, **{name: 0.6})
    out = free(X, TIMES, CONTEXT)
    assert relative_error(out, before) > 1e-3
    assert relative_error(out, decoder_written_out(free, X, free.freeu)) < 1e-5
    with pytest.raises(ValueError, match=f"{name} is -1"):
        setattr(free, name, -1)
    assert getattr(free, name) == 0.6


@each_version
def test_samples_of_a_batch_do_not_meet(free, settings):
    free.freeu = settings
    together = free(X, TIMES, CONTEXT)
    alone = [free(X[i : i + 1], TIMES[i : i + 1], CONTEXT[i : i + 1]) for i in range(2)]
    assert relative_error(torch.cat(alone), together) < 1e-5


@each_version
def test_training_through_freeu_gives_the_same_output_and_gradients(free, settings):
    free.freeu = settings
    expected = free(X, TIMES, CONTEXT)
    with torch.enable_grad():
        context = CONTEXT.clone().requires_grad_()
        inputs = context, free.output_blocks[0][0].in_layers[2].weight
        out, plain = free(X, TIMES, context), decoder_written_out(free, X, settings, context)
        ours, theirs = (torch.autograd.grad(it.square().mean(), inputs) for it in (out, plain))
    assert relative_error(out.detach(), expected) < 1e-5
    for gradient, right in zip(ours, theirs, strict=True):
        assert right.abs().max() > 0 and relative_error(gradient, right) < 1e-5


def test_half_precision_stays_near(free):
    free.freeu = V2
    expected = free(X, TIMES, CONTEXT)
    half = Free_UNetModel(1.3, 1.4, 0.9, 0.2, version=2, **SHAPE).eval()
    half.load_state_dict(free.state_dict())
    out = half.bfloat16()(X.bfloat16(), TIMES, CONTEXT.bfloat16())
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), expected) < 0.05


def test_a_replica_of_data_parallel_computes_as_the_unet_it_is_of(free):
    free.freeu = V2
    # With GPUs torch copies by a function that has no name for others.
    module = import_module("torch.nn.parallel.replicate")
    on_one_device = patch.object(
        module, "_broadcast_coalesced_reshape", lambda tensors, *_, **__: [[it.detach() for it in tensors]]
    )
    with on_one_device:
        [replica] = module.replicate(free, [0])
    assert not list(replica.parameters())
    assert torch.equal(replica(X, TIMES, CONTEXT), free(X, TIMES, CONTEXT))


def test_freeu_is_a_unet_that_loads_the_same_checkpoints(plain, free):
    assert isinstance(free, UNetModel)
    assert list(free.state_dict()) == list(plain.state_dict())


def test_freeu_is_built_by_position_by_name_and_from_a_config():
    by_position = Free_UNetModel(
        1.2, 1.4, 0.9, 0.2, 16, 4, 32, 4, 2, [4, 2, 1], 0.0, (1, 2, 4, 4), num_heads=4
    )
    by_name = Free_UNetModel(
        b1=1.2, b2=1.4, s1=0.9, s2=0.2, version=2, threshold=2, match="resolution", **SHAPE
    )
    params = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2, "version": 2, **SHAPE}
    from_config = instantiate_from_config({"target": FREE_UNET, "params": params})

    assert by_position.freeu == V1
    assert by_name.freeu == FreeUSettings(1.2, 1.4, 0.9, 0.2, 2, 2, "resolution")
    assert from_config.freeu == V2
    assert list(from_config.state_dict()) == list(by_name.state_dict())


def test_freeu_tells_the_blocks_it_changes(free):
    free.freeu = V1
    assert free.hit_blocks() == {
        **dict.fromkeys(range(7), (1.2, 0.9)),
        **dict.fromkeys((7, 8, 9), (1.4, 0.2)),
    }
    assert free.describe() == (
        "FreeU V1: b 1.2, s 0.9 on output blocks 0 1 2 3 4 5 6; b 1.4, s 0.2 on output blocks 7 8 9"
    )
    free.freeu = replace(V1, stop=0.4)
    assert free.describe().endswith("on output blocks 7 8 9; from 0 to 0.4 of the run")
    free.freeu = replace(V1, start=0.4, stop=0.4, ramp=0.1)
    assert len(free.hit_blocks()) == 10
    free.freeu = replace(V1, start=0.4, stop=0.4)
    assert free.hit_blocks() == {}
    assert free.describe() == "FreeU is off: it stops where it starts, at 0.4 of the run"
    free.freeu = V1.off()
    assert free.hit_blocks() == {}
    assert free.describe() == "FreeU is off: every factor is one"


def test_each_sample_gets_as_much_of_freeu_as_its_timestep_says():
    x, context = rnd(1, 3, 4, 16, 16), rnd(2, 3, 11, 48)
    t = torch.tensor([999, 500, 0])  # at the start of a run, in its middle, at its end
    parameters = golden_parameters("unet_tiny")
    factors = {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2}
    unet = fill_by_name(Free_UNetModel(**factors, **parameters, start=0.2, stop=0.6))
    plain = fill_by_name(UNetModel(**parameters))(x, t, context)
    full = fill_by_name(Free_UNetModel(**factors, **parameters))(x, t, context)
    assert relative_error(unet(x, t, context), torch.stack([plain[0], full[1], plain[2]])) < 1e-6


@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_strength_moves_every_factor_from_one(strength):
    inputs = rnd(1, 2, 4, 16, 16), torch.tensor([981, 41]), rnd(2, 2, 11, 48)
    parameters = golden_parameters("unet_tiny")
    weak = fill_by_name(Free_UNetModel(1.2, 1.4, 0.9, 0.2, **parameters, strength=strength))
    moved = [1 + strength * (factor - 1) for factor in (1.2, 1.4, 0.9, 0.2)]
    direct = fill_by_name(Free_UNetModel(*moved, **parameters))
    assert relative_error(weak(*inputs), direct(*inputs)) < 1e-6
    if strength == 0:
        assert torch.equal(weak(*inputs), fill_by_name(UNetModel(**parameters))(*inputs))
