"""FreeU on every U-Net class of diffusers: against diffusers' own, and against the published formulas."""

import copy
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet1DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import nn

from ldm.freeu import PRESETS, FreeUSettings, free_u
from ldm.freeu.diffusers import decoder, disable, enable
from ldm.freeu.settings import DecoderStage
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from tests.conftest import fill_by_name, golden_parameters, relative_error, rnd
from tests.freeu.unets import UNETS, inputs, plain, published_free_u, run, sd1, text_to_video

FACTORS = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
ODD_FACTORS = {"b1": 0.7, "b2": 1.4, "s1": 0.0, "s2": 1.6}

# UNet2DModel and UNetSpatioTemporalConditionModel have no `enable_freeu`; Kandinsky's blocks ignore it.
NOT_IN_DIFFUSERS = {"plain", "score_sde", "stable_video", "kandinsky2"}


@pytest.fixture(scope="module", params=UNETS)
def case(request):
    """A U-Net, what it is called with, and its output without FreeU."""
    unet = UNETS[request.param]()
    given = inputs(unet)
    with torch.no_grad():
        return unet, given, run(unet, given)


@pytest.fixture(scope="module")
def unet():
    return sd1()


@pytest.fixture
def given(unet):
    return inputs(unet)


def hooks(model):
    return [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("factors", [FACTORS, ODD_FACTORS], ids=["usual", "odd"])
def test_by_channels_it_is_the_published_free_u(case, version, factors):
    unet, given, without = case
    with published_free_u(unet, FreeUSettings(**factors, version=version)):
        expected = run(unet, given)
    with enable(unet, version=version, **factors):
        out = run(unet, given)
    assert relative_error(out, expected) < 1e-5
    assert relative_error(out, without) > 1e-3


@pytest.mark.parametrize("case", sorted(UNETS.keys() - NOT_IN_DIFFUSERS), indirect=True)
def test_by_resolution_it_is_diffusers_own(case):
    unet, given, without = case
    unet.enable_freeu(**FACTORS)
    expected = run(unet, given)
    unet.disable_freeu()
    with enable(unet, match="resolution", **FACTORS):
        assert relative_error(run(unet, given), expected) < 1e-5
    assert relative_error(expected, without) > 1e-3


@pytest.mark.parametrize(
    "neutral",
    [
        {"b1": 1, "b2": 1.0, "s1": 1.0, "s2": 1.0},
        {**FACTORS, "version": 2, "strength": 0.0},
        {**FACTORS, "version": 2, "start": 0.6},
        {**FACTORS, "stop": 0.4},
    ],
    ids=["ones", "strength 0", "before start", "after stop"],
)
def test_where_free_u_does_not_act_the_bits_are_the_models(case, neutral):
    unet, given, without = case
    with enable(unet, **neutral):
        assert torch.equal(run(unet, given, t=500), without)


def test_disable_leaves_nothing_behind(case):
    unet, given, without = case
    before = {name: list(vars(module)) for name, module in unet.named_modules()}
    enable(unet, "sd21", stop=0.9)
    assert not torch.equal(run(unet, given), without)
    disable(unet)
    assert torch.equal(run(unet, given), without)
    assert not hooks(unet)
    assert {name: list(vars(module)) for name, module in unet.named_modules()} == before
    disable(unet)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))])
@pytest.mark.parametrize("stop", [0.9, 1.0])
def test_a_copy_is_enabled_and_disabled_by_itself(unet, given, copied, stop):
    without = run(unet, given)
    with enable(unet, **FACTORS, stop=stop):
        expected, other = run(unet, given), copied(unet)
        enable(other, **FACTORS, stop=stop)
        assert torch.equal(run(other, given), expected)
        disable(other)
        assert torch.equal(run(other, given), without) and not hooks(other)
        assert torch.equal(run(unet, given), expected)


def test_enabling_again_replaces(unet, given):
    with enable(unet, **FACTORS):
        expected = run(unet, given)
    enable(unet, "sd14", version=2, stop=0.2)
    enable(unet, **FACTORS)
    assert torch.equal(run(unet, given), expected)
    disable(unet)
    assert not hooks(unet)


OTHER = {"preset": "sd14", "version": 2, "stop": 0.9}
ONES = {"b1": 1.0}  # which puts in no hook


@pytest.mark.parametrize("outer", [FACTORS, OTHER, ONES], ids=["factors", "stop", "ones"])
@pytest.mark.parametrize("inner", [FACTORS, OTHER, ONES], ids=["factors", "stop", "ones"])
def test_the_end_of_a_with_brings_back_what_was_before_it(unet, given, outer, inner):
    without = run(unet, given)
    enable(unet, **outer)
    first = run(unet, given)
    with enable(unet, **inner):
        second = run(unet, given)
        with pytest.raises(KeyError), enable(unet, **ONES):
            assert torch.equal(run(unet, given), without)
            raise KeyError
        assert torch.equal(run(unet, given), second)
    assert torch.equal(run(unet, given), first)
    disable(unet)
    assert not hooks(unet)


@pytest.mark.parametrize("inner", [FACTORS, ONES], ids=["factors", "ones"])
def test_what_is_disabled_within_a_with_stays_so(unet, inner):
    enable(unet, **OTHER)
    with enable(unet, **inner):
        disable(unet)
    assert not hooks(unet)


def test_a_with_may_not_be_entered_after_its_end(unet):
    with (again := enable(unet, **FACTORS)):
        pass
    with pytest.raises(RuntimeError, match="has ended: call enable again"), again:
        pass
    assert not hooks(unet)


@pytest.mark.parametrize(("name", "version"), PRESETS)
def test_a_preset_is_its_factors_and_may_be_changed(unet, given, name, version):
    published = PRESETS[name, version]
    with enable(unet, name, version, s2=0.5):
        out = run(unet, given)
    with enable(unet, version=version, b1=published.b1, b2=published.b2, s1=published.s1, s2=0.5):
        assert torch.equal(run(unet, given), out)


@pytest.mark.parametrize("build", [sd1, text_to_video, plain])
def test_each_sample_follows_its_own_timestep(build):
    unet = build()
    given, times = inputs(unet), torch.tensor([900, 100])
    without = run(unet, given, times)
    with enable(unet, **FACTORS):
        throughout = run(unet, given, times)
    with enable(unet, **FACTORS, stop=0.5):
        out = run(unet, given, times)
    assert relative_error(out[0], throughout[0]) < 1e-6
    assert torch.equal(out[1], without[1])


def test_a_schedule_goes_by_timesteps_under_vmap_too(unet, given):
    times = torch.tensor([900, 100])
    with enable(unet, **FACTORS, stop=0.5):
        out = torch.vmap(lambda t: run(unet, given, t))(times)
        expected = torch.stack([run(unet, given, t) for t in times])
    assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize("version", [1, 2])
def test_half_way_through_a_ramp_the_factors_are_half_way_to_one(unet, given, version):
    half_way = {name: (1 + value) / 2 for name, value in FACTORS.items()}
    with enable(unet, version=version, **half_way):
        expected = run(unet, given, t=299)
    for schedule in ({"stop": 0.6, "ramp": 0.2}, {"start": 0.75, "ramp": 0.1}, {"strength": 0.5}):
        with enable(unet, version=version, **FACTORS, **schedule):
            assert relative_error(run(unet, given, t=299), expected) < 1e-5


@pytest.mark.parametrize("late_only", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(late_only):
    unet = sd1()
    unet.requires_grad_(not late_only)
    weights = list(unet.up_blocks[1].resnets[1].parameters())
    for weight in weights:
        weight.requires_grad_()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()  # it checkpoints only there; there is no dropout
        with torch.enable_grad(), enable(unet, version=2, **FACTORS, stop=0.9):
            run(unet, inputs(unet)).square().mean().backward()
        gradients.append([weight.grad.clone() for weight in weights])
        unet.zero_grad()
    for one, other in zip(*gradients, strict=True):
        assert relative_error(one, other) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_channels_last(dtype):
    with enable(exact := sd1(), version=2, **FACTORS, stop=0.9):
        given = inputs(exact)
        expected = run(exact, given)
    unet = sd1().to(dtype, memory_format=torch.channels_last)
    given = {name: value.to(dtype) for name, value in given.items()}
    with enable(unet, version=2, **FACTORS, stop=0.9):
        assert relative_error(run(unet, given).float(), expected) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("settings", [PRESETS["sd14", 1], PRESETS["sd21", 2]], ids=["V1", "V2"])
@pytest.mark.parametrize("match", ["channels", "resolution"])
def test_a_converted_checkpoint_gives_what_free_unet_model_gives(settings, match):
    factors = {name: getattr(settings, name) for name in ("b1", "b2", "s1", "s2", "version")} | {
        "match": match
    }
    ours = fill_by_name(Free_UNetModel(**factors, **golden_parameters("unet_tiny")))
    theirs = UNet2DConditionModel(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=(*3 * ["CrossAttnDownBlock2D"], "DownBlock2D"),
        up_block_types=("UpBlock2D", *3 * ["CrossAttnUpBlock2D"]),
        cross_attention_dim=48,
        attention_head_dim=4,
    ).eval()
    weights = {f"model.diffusion_model.{name}": p for name, p in ours.state_dict().items()}
    theirs.load_state_dict(convert_ldm_unet_checkpoint(weights, dict(theirs.config)))
    x, times, context = rnd(1, 2, 4, 16, 24), torch.tensor([981, 41]), rnd(2, 2, 11, 48)
    without = theirs(x, times, context).sample
    with enable(theirs, **factors):
        out = theirs(x, times, context).sample
    assert relative_error(out, ours(x, times, context)) < 1e-5
    assert relative_error(out, without) > 1e-2


@pytest.mark.slow
def test_a_compiled_unet_notices_each_change(given):
    unet = sd1()
    without = run(unet, given)
    with enable(unet, **FACTORS):
        expected = run(unet, given)
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    assert relative_error(run(compiled, given), without) < 1e-5
    for _ in range(2):
        with enable(compiled, **FACTORS):
            assert relative_error(run(compiled, given), expected) < 1e-5
        assert relative_error(run(compiled, given), without) < 1e-5


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "give a preset .sd14, sd15, sd21, sdxl., or b1, b2, s1 and s2"),
        ({"preset": "sd3"}, "no FreeU preset 'sd3' .* sd14, sd15, sd21, sdxl"),
        ({"preset": "sd14", "version": 3}, "preset 'sd14' in version 3"),
        ({"b1": float("nan")}, "b1 is nan"),
        ({"s2": -0.1}, "s2 is -0.1"),
        ({"b1": 1.2, "strength": 1.5}, "strength is 1.5"),
        ({"b1": 1.2, "stpo": 0.5}, "no setting 'stpo': there are b1, b2, .* start, stop, "),
        ({"b1": 1.2, "start": 0.8, "stop": 0.2}, "start, 0.8, is after its stop, 0.2"),
    ],
)
def test_settings_that_mean_nothing_are_told_and_change_nothing(unet, given, wrong, told):
    with enable(unet, **FACTORS):
        expected = run(unet, given)
        with pytest.raises(ValueError, match=told):
            enable(unet, **wrong)
        assert torch.equal(run(unet, given), expected)


def test_stages_alone_are_factors(unet, given):
    with enable(unet, b1=1.0, stages={8: (1.1, 0.9)}):
        expected = run(unet, given)
    with enable(unet, stages={8: (1.1, 0.9)}):
        assert torch.equal(run(unet, given), expected) and len(hooks(unet)) > 0


@pytest.mark.parametrize(
    "how", [{"channels": "second"}, {"channels": 0.25}, {"threshold": 2}, {"version": 2}], ids=str
)
def test_a_resnet_is_given_what_the_operator_makes_under_these_settings(how):
    unet, seen = OfParts(), []
    [resnet] = unet.up_blocks[1].resnets  # whose concatenation is of 4 and 4 channels
    with enable(unet, b1=1.2, b2=1.4, s1=0.9, s2=0.2, match="resolution", **how):
        resnet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        resnet(rnd(3, 2, 8, 6, 5))
    assert torch.equal(seen[0], free_u(rnd(3, 2, 8, 6, 5), 4, 1.4, 0.2, **how))


def test_factors_that_act_throughout_ask_for_no_timesteps():
    unet = UNETS["stable_video"]()
    with enable(unet, **FACTORS), warnings.catch_warnings():
        warnings.filterwarnings("error", "FreeU")
        run(unet, inputs(unet), t=-1.5)  # which no training has


def test_free_u_is_not_put_on_top_of_diffusers_own(given):
    unet = sd1()
    with enable(unet, **FACTORS):
        expected = run(unet, given)
    unet.enable_freeu(**FACTORS)
    with pytest.raises(ValueError, match=r"diffusers' own FreeU is on.*call disable_freeu\(\) first"):
        enable(unet, **FACTORS)
    assert not hooks(unet)
    unet.disable_freeu()
    with enable(unet, **FACTORS):
        assert torch.equal(run(unet, given), expected)


def test_diffusers_own_put_on_top_of_free_u_is_told(given):
    unet = sd1()
    enable(unet, **FACTORS)
    unet.enable_freeu(**FACTORS)
    with pytest.raises(ValueError, match=r"diffusers' own FreeU is on.*call disable_freeu\(\) first"):
        run(unet, given)
    disable(unet)
    run(unet, given)


class OfParts(nn.Module):
    """A decoder whose resnets are convolutions by channel and then over channels, and narrow at their end."""

    def __init__(self):
        super().__init__()
        widths = ((8, 4), 4, 4), ((4, 4), 4, 2), ((2, 2), 2, 2)  # backbone and skip, inside, what comes out
        self.up_blocks = nn.ModuleList(nn.Module() for _ in widths)
        for block, ((h, skip), inside, out) in zip(self.up_blocks, widths, strict=True):
            by_channel = nn.Conv2d(h + skip, h + skip, 3, padding=1, groups=h + skip)
            block.resnets = nn.ModuleList(
                [nn.Sequential(by_channel, nn.Conv2d(h + skip, inside, 1), nn.Conv2d(inside, out, 1))]
            )


def test_a_resnet_is_as_wide_as_its_first_convolution_takes_and_its_last_makes():
    stages = [joint.stage for joint in decoder(OfParts())]
    assert stages[1:] == [DecoderStage(4, 4, 2), DecoderStage(2, 2, 1)]


def test_a_unet_whose_blocks_are_not_met_is_told_its_widths():
    unet = UNet2DConditionModel(
        block_out_channels=(8, 12),
        down_block_types=2 * ("DownBlock2D",),
        up_block_types=2 * ("UpBlock2D",),
        mid_block_type="UNetMidBlock2D",
        norm_num_groups=4,
    )
    with pytest.raises(ValueError, match=r"32 and 16 channels, this U-Net has \[8, 12\]"):
        enable(unet, "sd14")
    assert not hooks(unet)
    with enable(unet, "sd14", match="resolution"):
        assert len(hooks(unet)) == 6


def test_models_without_such_a_decoder_are_told_why():
    dit = DiTTransformer2DModel(2, 4, 4, num_layers=1, sample_size=8, norm_num_groups=4)
    with pytest.raises(ValueError, match="DiTTransformer2DModel: it denoises with a transformer"):
        enable(dit, "sd14")
    with pytest.raises(ValueError, match="UNet1DModel: its decoder's resnets are not given"):
        enable(UNet1DModel(block_out_channels=(8, 8, 16)), "sd14")
    with pytest.raises(ValueError, match="Decoder: its decoder's resnets are not given"):
        enable(AutoencoderKL().decoder, "sd14")
    with pytest.raises(ValueError, match="AutoencoderKL: it has no U-Net"):
        disable(AutoencoderKL())
    with pytest.raises(ValueError, match=r"DataParallel wraps the U-Net, give its \.module"):
        enable(nn.DataParallel(sd1()), "sd14")


def test_a_module_of_another_origin_is_served_and_diffusers_is_not_imported():
    script = """
import sys, torch
from torch import nn
import ldm, ldm.free_lunch_utils
from ldm.freeu import free_u
from ldm.freeu.diffusers import enable

class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_blocks = nn.ModuleList([nn.Module(), nn.Module()])
        self.up_blocks[0].resnets = nn.ModuleList([nn.Conv2d(8 + 4, 4, 1)])
        self.up_blocks[1].resnets = nn.ModuleList([nn.Conv2d(4 + 2, 2, 1)])
    def forward(self, h, skips, then=lambda fused: fused):
        for block, skip in zip(self.up_blocks, skips):
            h = block.resnets[0](then(torch.cat([h, skip], 1)))
        return h

decoder = Decoder()
h, skips = torch.randn(1, 4, 5, 6), [torch.randn(1, 8, 5, 6), torch.randn(1, 2, 5, 6)]
expected = decoder(h, skips, lambda fused: free_u(fused, 4, 1.4, 0.2))
with enable(decoder, b1=1.2, b2=1.4, s1=0.9, s2=0.2):
    out = decoder(h, skips)
assert torch.allclose(out, expected) and not torch.allclose(out, decoder(h, skips))
assert "diffusers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
