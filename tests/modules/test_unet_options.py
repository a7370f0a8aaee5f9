"""The U-Net's layers against formulas written out here, and the options of other latent-diffusion configs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ldm.errors import InputError
from ldm.modules.attention import AttentionBlock, BasicTransformerBlock, CrossAttention
from ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from ldm.modules.diffusionmodules.util import timestep_embedding
from tests.conftest import fill_by_name, golden, relative_error, rnd

SMALL = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": (1, 2),
    "num_heads": 4,
}
CROSS = {"use_spatial_transformer": True, "context_dim": 24}
X, TIMES, CONTEXT = rnd(1, 2, 4, 8, 12), torch.tensor([981, 41]), rnd(2, 2, 5, 24)


def small(**options):
    return fill_by_name(UNetModel(**SMALL | options))


def slow_attention(q, k, v):
    """Each query alone: (N, C), (M, C), (M, C) to (N, C)."""
    return torch.stack([torch.softmax(k @ one / math.sqrt(len(one)), 0) @ v for one in q])


def attention_keys(unet):
    """The layers that hold attention, as input_blocks.1.1."""
    names = (name.split(".") for name in unet.state_dict() if "transformer_blocks" in name)
    return sorted({".".join(parts[: parts.index("transformer_blocks")]) for parts in names})


def test_timesteps_are_embedded_as_the_originals():
    out = timestep_embedding(torch.tensor([0, 1, 501, 999]), 320)
    np.testing.assert_allclose(out, golden("schedule")["timestep_embedding_320"], atol=1e-4)
    assert timestep_embedding(torch.tensor([3]), 5).shape == (1, 5)
    assert timestep_embedding(torch.tensor([3]), 5)[0, -1] == 0


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_block_is_plain_attention(heads):
    block = fill_by_name(AttentionBlock(64, heads))
    x = rnd(3, 1, 64, 3, 5)
    h = F.conv1d(
        F.group_norm(x.flatten(2), 32, block.norm.weight, block.norm.bias), block.qkv.weight, block.qkv.bias
    )
    parts = h[0].view(heads, 3, 64 // heads, 15)
    out = torch.cat([slow_attention(q.T, k.T, v.T).T for q, k, v in parts])  # (C, HW)
    expected = x + F.conv1d(out[None], block.proj_out.weight, block.proj_out.bias).view_as(x)
    assert relative_error(block(x), expected) < 1e-6


def test_attention_block_attends_in_float32_under_autocast_as_training_on_a_cpu_needs_it():
    class Heard(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is F.scaled_dot_product_attention:
                kinds.append(args[0].dtype)
            return function(*args, **(kwargs or {}))

    kinds, block = [], fill_by_name(AttentionBlock(64, 4))
    with torch.autocast("cpu", torch.bfloat16), Heard():
        block(rnd(3, 1, 64, 3, 5))
    assert kinds == [torch.float32]


@pytest.mark.parametrize("context", [None, rnd(5, 1, 7, 24)], ids=["self", "cross"])
def test_cross_attention_is_plain_attention(context):
    layer = fill_by_name(CrossAttention(16, None if context is None else 24, heads=2, dim_head=6))
    x = rnd(4, 1, 9, 16)
    q, k, v = (
        layer.to_q(x)[0],
        layer.to_k(x if context is None else context)[0],
        layer.to_v(x if context is None else context)[0],
    )
    heads = [slow_attention(q[:, i], k[:, i], v[:, i]) for i in (slice(0, 6), slice(6, 12))]
    assert relative_error(layer(x, context), layer.to_out(torch.cat(heads, dim=1))[None]) < 1e-6


def test_a_block_without_self_attention_looks_twice_at_the_context():
    block = fill_by_name(BasicTransformerBlock(16, 2, 8, 24, disable_self_attn=True))
    x, context = rnd(6, 2, 9, 16), rnd(7, 2, 5, 24)
    assert block.attn1.to_k.weight.shape == (16, 24)
    one_by_one = torch.cat([block(token, context) for token in x.split(1, dim=1)], dim=1)
    assert relative_error(block(x, context), one_by_one) < 1e-6  # tokens never see each other


@pytest.mark.parametrize("use_scale_shift_norm", [False, True])
@pytest.mark.parametrize("resize", [0.5, 1, 2])
def test_residual_block_is_its_formula(use_scale_shift_norm, resize):
    block = fill_by_name(ResBlock(32, 20, 0.0, 64, use_scale_shift_norm, 32, resize))
    w = block.state_dict()
    x, emb = rnd(8, 2, 32, 4, 6), rnd(9, 2, 20)

    def resized(x):
        if resize == 0.5:
            return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x.repeat_interleave(int(resize), -1).repeat_interleave(int(resize), -2)

    def normalized(x, layer):
        groups = x.view(2, 32, -1)
        groups = (groups - groups.mean(2, keepdim=True)) / (
            groups.var(2, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        return groups.view_as(x) * w[f"{layer}.weight"][:, None, None] + w[f"{layer}.bias"][:, None, None]

    def silu(x):
        return x * torch.sigmoid(x)

    h = F.conv2d(
        resized(silu(normalized(x, "in_layers.0"))), w["in_layers.2.weight"], w["in_layers.2.bias"], padding=1
    )
    e = (silu(emb) @ w["emb_layers.1.weight"].T + w["emb_layers.1.bias"])[..., None, None]
    if use_scale_shift_norm:
        h = normalized(h, "out_layers.0") * (1 + e[:, :64]) + e[:, 64:]
    else:
        h = normalized(h + e, "out_layers.0")
    h = F.conv2d(silu(h), w["out_layers.3.weight"], w["out_layers.3.bias"], padding=1)
    shortcut = torch.einsum("oc,bchw->bohw", w["skip_connection.weight"][..., 0, 0], resized(x))
    shortcut = shortcut + w["skip_connection.bias"][:, None, None]
    assert relative_error(block(x, emb), shortcut + h) < 1e-5


@pytest.mark.parametrize(
    ("num_classes", "y", "label"),
    [
        (10, torch.tensor([3, 7]), lambda w, y: w["weight"][y]),
        ("continuous", torch.tensor([[0.3], [2.0]]), lambda w, y: y * w["weight"][:, 0] + w["bias"]),
        (
            "sequential",
            rnd(3, 2, 6),
            lambda w, y: F.silu(y @ w["0.0.weight"].T + w["0.0.bias"]) @ w["0.2.weight"].T + w["0.2.bias"],
        ),
    ],
    ids=["table", "continuous", "sequential"],
)
def test_class_labels_are_added_to_the_time(num_classes, y, label):
    unet = small(num_classes=num_classes, adm_in_channels=6 if num_classes == "sequential" else None)
    weights = unet.label_emb.state_dict()
    expected = unet.time_embed(timestep_embedding(TIMES, 32)) + label(weights, y)
    assert relative_error(unet.embed(TIMES, y), expected) < 1e-6

    # The output is that of a U-Net without classes whose time embedding has the label in its last bias.
    plain = small()
    plain.load_state_dict({k: v for k, v in unet.state_dict().items() if not k.startswith("label_emb")})
    plain.time_embed[2].bias += label(weights, y)[0]
    assert relative_error(unet(X[:1], TIMES[:1], y=y[:1]), plain(X[:1], TIMES[:1])) < 1e-5


@pytest.mark.parametrize("num_classes", ["sequential", "other"])
def test_unknown_classes_are_named(num_classes):
    with pytest.raises(InputError, match=f"num_classes is '{num_classes}'"):
        small(num_classes=num_classes)


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, {"input_blocks.3.1.qkv.weight": (192, 64, 1), "output_blocks.1.2.conv.weight": (64, 64, 3, 3)}),
        ({"use_scale_shift_norm": True}, {"input_blocks.1.0.emb_layers.1.weight": (64, 128)}),
        (
            {"resblock_updown": True},
            {
                "input_blocks.2.0.in_layers.2.weight": (32, 32, 3, 3),
                "output_blocks.1.2.in_layers.2.weight": (64, 64, 3, 3),
            },
        ),
        ({"num_res_blocks": [1, 2]}, {"input_blocks.4.0.in_layers.2.weight": (64, 64, 3, 3)}),
        ({"num_heads": -1, "num_head_channels": 16}, {"input_blocks.3.1.qkv.weight": (192, 64, 1)}),
        (
            CROSS | {"transformer_depth": 2},
            {"middle_block.1.transformer_blocks.1.attn2.to_k.weight": (64, 24)},
        ),
        (
            CROSS | {"disable_self_attentions": [False, True]},
            {
                "input_blocks.3.1.transformer_blocks.0.attn1.to_k.weight": (64, 24),
                "middle_block.1.transformer_blocks.0.attn1.to_k.weight": (64, 64),
            },
        ),
        (
            CROSS | {"disable_middle_self_attn": True},
            {
                "input_blocks.3.1.transformer_blocks.0.attn1.to_k.weight": (64, 64),
                "middle_block.1.transformer_blocks.0.attn1.to_k.weight": (64, 24),
            },
        ),
        (CROSS | {"use_linear_in_transformer": True}, {"input_blocks.3.1.proj_in.weight": (64, 64)}),
        ({"norm_groups": 8}, {"out.0.weight": (32,)}),
    ],
    ids=str,
)
def test_options_give_known_names_and_a_picture(options, keys):
    unet = small(**options)
    weights = unet.state_dict()
    assert {name: tuple(weights[name].shape) for name in keys} == keys
    out = unet(X, TIMES, CONTEXT if "context_dim" in options else None)
    assert out.shape == (2, 3, 8, 12)
    assert torch.isfinite(out).all()


def test_list_of_residual_blocks_sets_the_number_of_each_level():
    unet = small(num_res_blocks=[1, 3])
    assert (len(unet.input_blocks), len(unet.output_blocks)) == (1 + 1 + 1 + 3, 4 + 2)
    assert [stage.downsampling for stage in unet.decoder_stages] == [2, 2, 2, 2, 1, 1]


def test_number_of_attention_blocks_is_each_levels():
    options = {"num_res_blocks": 2, "attention_resolutions": [1, 2], "num_attention_blocks": [0, 1], **CROSS}
    assert attention_keys(small(**options)) == ["input_blocks.4.1", "middle_block.1", "output_blocks.0.1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": -1}, "num_heads or num_head_channels"),
        ({"use_spatial_transformer": True}, "context_dim"),
    ],
)
def test_what_a_config_left_out_is_named(options, message):
    with pytest.raises(InputError, match=message):
        small(**options)
