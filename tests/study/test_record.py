"""What is heard of decoder concatenations, against the concatenations made by hand."""

import pytest
import torch
from diffusers import UNet1DModel
from torch import nn

from ldm.errors import InputError
from ldm.folders import ROOT
from ldm.freeu import FreeUSettings
from ldm.freeu.diffusers import enable
from ldm.freeu.spectrum import relative_log_amplitude
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel, UNetModel
from ldm.study.record import recorded
from tests.conftest import fill_by_name, relative_error, rnd
from tests.freeu.test_diffusers_pipelines import stable_diffusion_1
from tests.freeu.unets import inputs, run, sd1, slow_free_u, text_to_video

SHAPE = {
    **{"image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 8, "num_res_blocks": 2},
    **{"channel_mult": [1, 2, 4], "attention_resolutions": [2], "num_heads": 2, "norm_groups": 4},
    **{"use_spatial_transformer": True, "context_dim": 8},
}
TWICE = (rnd(1, 1, 4, 8, 12).repeat(2, 1, 1, 1), torch.tensor([10, 10]), rnd(2, 2, 3, 8))
GIVEN = (rnd(1, 4, 4, 8, 12), torch.tensor([10, 10, 500, 500]), rnd(2, 4, 3, 8))
FACTORS = FreeUSettings(1.3, 1.4, 0.9, 0.2, version=2)


def heard(unet, call, guided=True):
    told = []
    with recorded(unet, lambda one: told.append((one, one.after.maps.clone())), guided):
        call()
    return told


def concatenations(unet, x, t, context):
    """Backbone and skip of each concatenation of the plain U-Net, by hand."""
    emb = unet.embed(t)
    h, skips = unet.encode(x, emb, context)
    h = unet.middle_block(h, emb, context)
    for block in unet.output_blocks:
        skip = skips.pop()
        yield h, skip
        h = block(torch.cat([h, skip], dim=1), emb, context)


def test_a_plain_unets_concatenations_are_heard_in_order():
    unet = fill_by_name(UNetModel(**SHAPE))
    told = heard(unet, lambda: unet(*GIVEN))
    by_hand = list(concatenations(unet, *GIVEN))
    assert [one.index for one, _ in told] == list(range(9))
    for (one, after), stage, (x, h) in zip(told, unet.decoder_stages, by_hand, strict=True):
        assert one.stage == stage and one.before.x.shape[1] == stage.width
        assert torch.equal(one.before.x, x[2:]) and torch.equal(one.before.h, h[2:])
        assert torch.equal(one.before.maps, after)


def test_both_sides_of_freeu_are_heard():
    unet = fill_by_name(Free_UNetModel(1.3, 1.4, 0.9, 0.2, version=2, **SHAPE))
    told = heard(unet, lambda: unet(*GIVEN))
    changed = set()
    for (one, after), (b, s) in zip(told, unet.factors, strict=True):
        by_hand = torch.cat(slow_free_u(one.before.x, one.before.h, b, s, 2), dim=1)
        assert torch.allclose(after, by_hand, atol=1e-4)
        if not torch.equal(after, one.before.maps):
            changed.add(one.index)
    assert changed == set(unet.hit_blocks())


def test_what_is_heard_before_freeu_is_not_overwritten_by_it():
    free, plain = (fill_by_name(unet) for unet in (Free_UNetModel(2, 2, 0, 0, **SHAPE), UNetModel(**SHAPE)))
    [first, *_], [reference, *_] = (heard(unet, lambda u=unet: u(*GIVEN)) for unet in (free, plain))
    assert torch.equal(first[0].before.maps, reference[0].before.maps)


def test_without_guidance_the_whole_batch_is_heard():
    unet = fill_by_name(UNetModel(**SHAPE))
    halves = heard(unet, lambda: unet(*GIVEN))
    for (one, _), (half, _) in zip(heard(unet, lambda: unet(*GIVEN), guided=False), halves, strict=True):
        assert len(one.before.maps) == 4 and torch.equal(one.before.maps[2:], half.before.maps)


@pytest.mark.parametrize("enabled", ["before", "inside"])
def test_a_diffusers_unet_is_heard_through_its_hooks(enabled):
    unet = sd1()
    given = inputs(unet)
    told = []
    if enabled == "before":
        enable(unet, b1=1.3, b2=1.4, s1=0.9, s2=0.2, version=2)
    with recorded(unet, lambda one: told.append((one, one.after.maps.clone())), guided=True):
        if enabled == "inside":
            enable(unet, b1=1.3, b2=1.4, s1=0.9, s2=0.2, version=2)
        run(unet, given)
    factors = FACTORS.factors([one.stage for one, _ in told], model_channels=8)
    assert len(told) == 12 and set(factors) == {(1.3, 0.9), (1.4, 0.2), (1.0, 1.0)}
    for (one, after), (b, s) in zip(told, factors, strict=True):
        assert len(after) == 1  # the conditional half of two
        by_hand = torch.cat(slow_free_u(one.before.x, one.before.h, b, s, 2), dim=1)
        assert torch.allclose(after, by_hand, atol=1e-4)
        assert relative_log_amplitude(one.before.h).shape == (1, (min(after.shape[-2:]) + 1) // 2)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: fill_by_name(UNetModel(**SHAPE)), sd1])
def test_a_unet_that_was_compiled_and_run_before_is_heard(make):
    unet = make()
    call = (lambda: unet(*GIVEN)) if isinstance(unet, UNetModel) else (lambda: run(unet, inputs(unet)))
    unet.compile(backend="eager")
    call()
    told = heard(unet, call)
    count = len(told)
    call()
    assert len(told) == count > 0


def test_what_diffusers_own_freeu_has_changed_is_not_taken_for_what_was_before():
    unet = sd1()
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    with pytest.raises(ValueError, match=r"diffusers' own FreeU is on.*call disable_freeu\(\) first"):
        heard(unet, lambda: None)


def test_the_frames_of_a_video_are_heard_as_samples():
    unet = text_to_video()
    given = inputs(unet)
    told = heard(unet, lambda: run(unet, given), guided=False)
    samples = {len(one.before.maps) for one, _ in told}
    assert len(samples) == 1 and samples.pop() % 2 == 0
    assert all(one.before.maps.ndim == 4 for one, _ in told)


@pytest.mark.parametrize(
    ("make", "given"), [(lambda: fill_by_name(UNetModel(**SHAPE)), it) for it in (GIVEN, TWICE)] + [(sd1, ())]
)
def test_listening_changes_nothing_and_leaves_nothing_behind(make, given):
    unet = make()
    call = (lambda: unet(*given)) if given else (lambda: run(unet, inputs(unet)))
    before, told = call(), []
    with recorded(unet, told.append, guided=True):
        assert torch.equal(call(), before)
    count = len(told)
    call()
    assert len(told) == count > 0
    hooks = [module._forward_hooks or module._forward_pre_hooks for module in unet.modules()]
    assert not any(hooks)


@pytest.mark.slow
def test_a_compiled_unet_is_heard_as_the_one_inside_it():
    unet = fill_by_name(UNetModel(**SHAPE))
    expected = heard(unet, lambda: unet(*GIVEN))
    compiled = torch.compile(unet, backend="eager")
    told = heard(compiled, lambda: compiled(*GIVEN))
    assert len(told) == len(expected) > 0
    pairs = zip(told, expected, strict=True)
    assert all(relative_error(one, other) < 1e-5 for (_, one), (_, other) in pairs)


def test_hooks_go_when_the_network_fails():
    unet = fill_by_name(UNetModel(**SHAPE))
    with pytest.raises(RuntimeError), recorded(unet, lambda one: None, guided=True):
        unet(rnd(3, 1, 5, 8, 8), torch.tensor([1]), rnd(4, 1, 3, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


@pytest.mark.parametrize("model", [nn.Linear(2, 2), UNet1DModel(block_out_channels=(8, 8, 16))])
def test_a_network_without_skip_concatenations_is_refused(model):
    with pytest.raises(InputError, match=f"skip concatenations, but {type(model).__name__} has none"):
        heard(model, lambda: None)


def test_the_readmes_figure_7_is_drawn_from_a_diffusers_pipeline(tmp_path, monkeypatch):
    """README's lines as they stand, on a pipeline of random weights that takes the prompt for granted."""
    sampled, arguments = stable_diffusion_1()
    sampled.set_progress_bar_config(disable=True)

    class Pipe:
        unet = sampled.unet

        def __call__(self, prompt):
            return sampled(**arguments, num_inference_steps=2, output_type="latent")

    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- figure 7 on diffusers -->")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {"pipe": Pipe()}
    exec(code, names)
    assert {side for side, _ in names["curves"]} == {2, 4, 8, 16}
    assert (tmp_path / "figure7.png").stat().st_size > 10_000
