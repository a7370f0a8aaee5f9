"""What guidance asks of the U-Net twice is computed once, and comes out as if it had been computed twice."""

from unittest.mock import patch

import pytest
import torch
from einops import rearrange

from ldm.modules.attention import CrossAttention, SpatialTransformer
from ldm.modules.diffusionmodules.blocks import ResBlock, TimestepEmbedSequential
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel, UNetModel
from tests.conftest import fill_by_name, golden_parameters, relative_error, rnd

SHAPE = golden_parameters("unet_tiny")
LEVELS = len(SHAPE["channel_mult"])

VARIANTS = {
    "as SD1": {},
    "as SD2": {"use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 16},
    "two blocks deep": {"transformer_depth": 2},
    "no self-attention": {"disable_self_attentions": LEVELS * [True], "disable_middle_self_attn": True},
    "attention in the middle alone": {"attention_resolutions": []},
    "attention without context": {"use_spatial_transformer": False, "context_dim": None},
    "labels": {"num_classes": 5},
    "residual blocks that resize": {"resblock_updown": True},
}


def make(**options):
    unet = Free_UNetModel(1.3, 1.4, 0.9, 0.2, version=2, start=0.2, ramp=0.5, **SHAPE | options)
    return fill_by_name(unet)


def samples_before_context(unet, *inputs):
    """How many samples go through the residual block ahead of the first context; all blocks give out all."""
    given, out = [], []
    resnet, block = ResBlock.forward, TimestepEmbedSequential.forward

    def noted_resnet(layer, x, emb):
        if layer is unet.input_blocks[1][0]:
            given.append(len(x))
        return resnet(layer, x, emb)

    def noted_block(*inputs):
        h = block(*inputs)
        out.append(len(h))
        return h

    # On the classes, as a hook on a layer would have it see all samples.
    with (
        patch.object(ResBlock, "forward", noted_resnet),
        patch.object(TimestepEmbedSequential, "forward", noted_block),
    ):
        unet(*inputs)
    assert set(out) == {len(inputs[0])}
    return given[0]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("pictures", [1, 3])
def test_guided_pictures_come_out_as_each_half_alone(options, pictures):
    unet = make(**options)
    x, contexts = rnd(1, pictures, 4, 16, 16), rnd(2, 2 * pictures, 11, 48).chunk(2)
    times = torch.tensor([981, 601, 41])[:pictures]
    labels = torch.arange(pictures) if unet.num_classes else None
    apart = torch.cat([unet(x, times, context, labels) for context in contexts])
    together = (
        torch.cat([x, x]),
        torch.cat([times, times]),
        torch.cat(contexts),
        None if labels is None else torch.cat([labels, labels]),
    )
    meets_it = any(isinstance(layer, SpatialTransformer) for layer in unet.input_blocks[1])
    assert samples_before_context(unet, *together) == (pictures if meets_it else 2 * pictures)
    assert relative_error(unet(*together), apart) < 1e-5


@pytest.mark.parametrize("options", [{}, {"num_classes": 5}], ids=["no labels", "labels"])
def test_halves_that_differ_are_both_computed(options):
    unet = fill_by_name(UNetModel(**SHAPE | options))
    x, times, context = rnd(1, 1, 4, 16, 16).repeat(2, 1, 1, 1), torch.tensor([41, 41]), rnd(2, 2, 11, 48)
    other = x.clone()
    other[1, 3, 15, 15] += 1
    same = torch.tensor([2, 2]) if options else None
    assert samples_before_context(unet, x, times, context, same) == 1
    assert samples_before_context(unet, other, times, context, same) == 2
    assert samples_before_context(unet, x, torch.tensor([41, 40]), context, same) == 2
    assert samples_before_context(unet, x[:1].repeat(3, 1, 1, 1), times[:1].repeat(3), rnd(3, 3, 11, 48),
                              same if same is None else same[:1].repeat(3)) == 3  # fmt: skip
    if options:
        assert samples_before_context(unet, x, times, context, torch.tensor([2, 3])) == 2


def test_a_trace_of_equal_halves_computes_both_of_others():
    unet = make()
    times, context = torch.tensor([41, 41]), rnd(2, 2, 11, 48)
    traced = torch.jit.trace(unet, (torch.zeros(2, 4, 16, 16), times, context), check_trace=False)
    x = rnd(1, 2, 4, 16, 16)
    assert relative_error(traced(x, times, context), unet(x, times, context)) < 1e-5


def test_a_trace_of_one_sample_takes_several_each_at_its_own_time():
    unet = make(num_res_blocks=1, channel_mult=[1, 2], attention_resolutions=[2])
    x, times, context = rnd(1, 3, 4, 16, 16), torch.tensor([981, 601, 41]), rnd(2, 3, 11, 48)
    traced = torch.jit.trace(unet, (x[:1], times[:1], context[:1]), check_trace=False)
    assert relative_error(traced(x, times, context), unet(x, times, context)) < 1e-5


def test_a_hook_may_tell_the_halves_apart():
    unet, x, times, context = make(), rnd(1, 1, 4, 16, 16), torch.tensor([41]), rnd(2, 2, 11, 48)

    def add(_layer, _inputs, h):
        added = torch.zeros_like(h)
        added[-1] = 1
        return h + added

    first = unet(x, times, context[:1])
    unet.input_blocks[0].register_forward_hook(add)
    apart = torch.cat([first, unet(x, times, context[1:])])
    together = unet(x.repeat(2, 1, 1, 1), times.repeat(2), context)
    assert relative_error(together, apart) < 1e-5


def listened(layer, seen):
    layer.register_forward_hook(lambda _layer, inputs, _out: seen.append(len(inputs[0])))


def listened_before(layer, seen):
    layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(len(inputs[0])))


def replaced(layer, seen):
    forward = layer.forward
    layer.forward = lambda x, *more: seen.append(len(x)) or forward(x, *more)


def listened_to_outputs(layer, seen):
    layer.register_forward_hook(lambda _layer, _inputs, out: seen.append(len(out)))


INSIDE = ("1.0.in_layers.2", "1.1.transformer_blocks.0.attn1.to_q", "1.1")


@pytest.mark.parametrize(
    ("put_on", "name"),
    [
        *((put_on, name) for put_on in (listened, listened_before, replaced) for name in INSIDE),
        *((put_on, "1") for put_on in (listened_to_outputs, listened_before, replaced)),
    ],
)
def test_whoever_looks_into_the_block_of_the_first_context_sees_all_samples(put_on, name):
    unet, x, context = make(), rnd(1, 1, 4, 16, 16).repeat(2, 1, 1, 1), rnd(2, 2, 11, 48)
    put_on(unet.input_blocks.get_submodule(name), seen := [])
    unet(x, torch.tensor([41, 41]), context)
    assert seen == [2]


def slow_attention(self, x, context=None):
    """As the original's and those that scripts put in its place, which take as many samples as contexts."""
    context = x if context is None else context
    q, k, v = (
        rearrange(it, "b n (h d) -> (b h) n d", h=self.heads)
        for it in (self.to_q(x), self.to_k(context), self.to_v(context))
    )
    weights = (torch.bmm(q, k.mT) * q.shape[-1] ** -0.5).softmax(-1)
    return self.to_out(rearrange(torch.bmm(weights, v), "(b h) n d -> b n (h d)", h=self.heads))


@pytest.mark.parametrize("variant", ["as SD1", "no self-attention"])
def test_another_attention_in_the_place_of_all_gets_as_many_samples_as_contexts(variant):
    unet, context = make(**VARIANTS[variant]), rnd(2, 2, 11, 48)
    guided = rnd(1, 1, 4, 16, 16).repeat(2, 1, 1, 1), torch.tensor([41, 41]), context
    expected = unet(*guided)
    with patch.object(CrossAttention, "forward", slow_attention):
        assert relative_error(unet(*guided), expected) < 1e-5


def test_gradients_of_equal_halves_are_each_its_own():
    unet = make().requires_grad_(False)
    x, times, context = rnd(1, 1, 4, 16, 16).repeat(2, 1, 1, 1), torch.tensor([41, 41]), rnd(2, 2, 11, 48)

    def gradient(x, times, context):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(unet(x, times, context).square().sum(), x)[0]

    with torch.enable_grad():
        apart = [gradient(x[:1], times[:1], one[None]) for one in context]
        assert relative_error(gradient(x, times, context), torch.cat(apart)) < 1e-5


def test_gradients_are_those_of_both_halves():
    unet = make()
    x, context = rnd(1, 1, 4, 16, 16), rnd(2, 2, 11, 48)
    with torch.enable_grad():
        once = unet(x.repeat(2, 1, 1, 1), torch.tensor([41, 41]), context).square().sum()
        apart = sum(unet(x, torch.tensor([41]), one[None]).square().sum() for one in context)
        mine, both = (
            torch.cat([gradient.flatten() for gradient in torch.autograd.grad(out, list(unet.parameters()))])
            for out in (once, apart)
        )
    assert relative_error(mine, both) < 1e-5
