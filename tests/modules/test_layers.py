"""The layers' fast paths against torch's own and against formulas in float64."""

import copy
import itertools
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, stack_module_state
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from ldm.modules import layers, onednn, winograd_in_c
from ldm.modules.attention import FeedForward
from ldm.modules.layers import Conv3x3, Linear, Upsample, write_inside
from ldm.modules.norm import GroupNorm
from ldm.modules.onednn import is_fast, product
from tests.conftest import fill_by_name, relative_error, rnd
from tests.modules.kinds import FORM_KINDS, KINDS, each_kind, library, only_here

CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@only_here
def test_inference_in_one_precision_is_fast_and_nothing_else():
    x, weight = rnd(1, 3, 8), rnd(2, 4, 8)
    assert is_fast(x, weight)
    assert not is_fast(x.double(), weight.double())
    assert not is_fast(x.bfloat16(), weight)
    assert not is_fast(x[:0], weight)
    assert not is_fast(x.to("meta"), weight.to("meta"))
    with torch.enable_grad():
        assert not is_fast(x, weight)


@each_kind
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 16), (1, 2, 3, 16)])
def test_a_linear_layer_is_its_formula(kind, bias, shape):
    layer = fill_by_name(Linear(16, 7, bias=bias)).to(kind)
    x = rnd(3, *shape).to(kind)
    w = layer.weight.double()
    expected = x.double() @ w.T + (layer.bias.double() if bias else 0)
    assert relative_error(layer(x).double(), expected) < CLOSE[kind]


@each_kind
@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    stride=st.integers(1, 2),
    memory=st.sampled_from(LAYOUTS),
    kernels=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 99),
)
def test_a_convolution_on_few_positions_is_its_formula(
    kind, batch, height, width, stride, memory, kernels, seed
):
    with torch.no_grad():
        conv = fill_by_name(Conv3x3(6, 5, stride=stride)).to(kind).to(memory_format=kernels)
        x = rnd(seed, batch, 6, height, width).to(kind).contiguous(memory_format=memory)
        out = conv(x)
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), stride, padding=1)
    assert out.shape == expected.shape and relative_error(out.double(), expected) < CLOSE[kind]
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("memory", LAYOUTS)
def test_a_convolution_of_few_channels_on_many_positions_is_torchs_with_channels_last(memory):
    conv = fill_by_name(Conv3x3(6, 5)).to(memory_format=memory)
    x = rnd(4, 2, 6, 32, 32)
    out, last = conv(x), x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, F.conv2d(last, conv.weight, conv.bias, padding=1))
    assert out.is_contiguous(memory_format=torch.channels_last) or not onednn.HAS_ONEDNN


@each_kind
@pytest.mark.parametrize("channels", [8, 64, 256])
@pytest.mark.parametrize("hooked", [False, True])
def test_of_rows_above_and_below_nothing_is_written(channels, hooked, kind):
    calls = []
    for layer in (Conv3x3(channels, 96), Upsample(channels), nn.Conv2d(channels, 32, 1)):
        layer = fill_by_name(layer).to(kind)
        if hooked:
            layer.register_forward_hook(lambda *_: calls.append(1))
        x = rnd(2, 1, channels, 21, 12).to(kind).contiguous(memory_format=torch.channels_last)
        whole = layer(x)
        _, out, height, width = whole.shape
        scale = height // 21
        room = torch.full((1, height, width, out), 7, dtype=kind).permute(0, 3, 1, 2)
        calls.clear()
        for top, bottom in ((0, 9), (9, 10), (10, 21)):
            above, below = min(1, top), min(1, 21 - bottom)
            write_inside(
                layer, x[:, :, top - above : bottom + below], above, below,
                room[:, :, scale * top : scale * bottom],
            )  # fmt: skip
        # Of Winograd's two, with tiles that begin on other rows, each is up to 8e-6 off.
        assert relative_error(room.double(), whole.double()) < {torch.float32: 1.6e-5}.get(kind, CLOSE[kind])
        assert len(calls) == 3 * hooked


@only_here
def test_many_channels_on_many_positions_are_convolved_by_winograd_unless_amx_multiplies(monkeypatch):
    by_winograd = Mock(wraps=layers.winograd)
    monkeypatch.setattr(layers, "winograd", by_winograd)
    monkeypatch.setattr(winograd_in_c, "LIBRARIES", {})

    def calls(has_amx, kind, channels, side, memory=torch.channels_last, stride=1):
        by_winograd.reset_mock()
        monkeypatch.setattr(layers, "HAS_AMX", has_amx)
        conv = fill_by_name(Conv3x3(channels, 256, stride=stride)).to(kind).to(memory_format=memory)
        conv(rnd(8, 2, channels, side, 16).to(kind).contiguous(memory_format=memory))
        return by_winograd.call_count

    for kind in KINDS:
        assert calls(False, kind, 256, 16) == 1
        assert calls(False, kind, 255, 16) == calls(False, kind, 256, 15) == 0
        assert calls(False, kind, 256, 16, torch.contiguous_format) == 0
        assert calls(False, kind, 256, 64, stride=2) == 0
        assert calls(True, kind, 256, 16) == (kind == torch.float32)
    with torch.enable_grad():
        assert calls(False, torch.float32, 256, 16) == 0


@only_here
@pytest.mark.parametrize("form", FORM_KINDS)
def test_fewer_positions_and_fewer_channels_are_convolved_in_c(form, monkeypatch):
    kind = FORM_KINDS[form]
    monkeypatch.setattr(winograd_in_c, "LIBRARIES", {kind: library(winograd_in_c, form)})
    in_c = Mock(wraps=layers.winograd_in_c)
    monkeypatch.setattr(layers, "winograd_in_c", in_c)

    def calls(channels, side, memory=torch.contiguous_format, stride=1, kind=kind):
        in_c.reset_mock()
        conv = fill_by_name(Conv3x3(channels, 256, stride=stride)).to(kind).to(memory_format=memory)
        conv(rnd(8, 2, channels, side, 8).to(kind))
        return in_c.call_count

    for memory in LAYOUTS:
        assert calls(64, 8, memory) == calls(128, 16, memory) == 1
        assert calls(56, 8, memory) == calls(65, 8, memory) == calls(64, 7, memory) == 0
    [other] = {torch.float32, torch.bfloat16} - {kind}
    assert calls(64, 32, stride=2) == calls(64, 8, kind=other) == 0
    with torch.enable_grad():
        assert calls(64, 8) == 0


@only_here
@pytest.mark.parametrize("by_onednn", [True, False])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_product_is_its_formula_by_either_library(monkeypatch, by_onednn, gelu):
    monkeypatch.setattr(onednn, "HAS_AVX512", by_onednn)
    monkeypatch.setattr(onednn, "SMALL", 0)
    x, weight, bias = rnd(1, 5, 3, 16), rnd(2, 7, 16), rnd(3, 7)
    expected = x.double() @ weight.double().T + bias.double()
    expected = F.gelu(expected) if gelu else expected
    with torch.inference_mode():
        assert relative_error(product(x, weight, bias, gelu).double(), expected) < CLOSE[torch.float32]


@each_kind
def test_an_upsampling_doubles_and_convolves_however_many_channels_there_are(kind):
    for channels, memory in itertools.product((6, 256), LAYOUTS):
        layer = fill_by_name(Upsample(channels)).to(kind).to(memory_format=memory)
        x = rnd(1, 2, channels, 9, 8).to(kind).contiguous(memory_format=torch.channels_last)
        out = layer(x)
        doubled = x.double().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        expected = F.conv2d(doubled, layer.conv.weight.double(), layer.conv.bias.double(), padding=1)
        assert relative_error(out.double(), expected) < CLOSE[kind]
        assert out.is_contiguous(memory_format=torch.channels_last)


@only_here
def test_many_channels_are_doubled_with_fewer_products_and_few_by_torch(monkeypatch):
    with_fewer = Mock(wraps=layers.convolved_double)
    monkeypatch.setattr(layers, "convolved_double", with_fewer)

    def calls(channels, side):
        with_fewer.reset_mock()
        fill_by_name(Upsample(channels))(rnd(1, 2, channels, side, 8))
        return with_fewer.call_count

    assert calls(256, 8) == 1
    assert calls(255, 8) == calls(256, 7) == 0
    with torch.enable_grad():
        assert calls(256, 8) == 0


@each_kind
@pytest.mark.parametrize("gradients", [False, True])
def test_the_feed_forward_network_is_its_formula(kind, gradients):
    network = fill_by_name(FeedForward(16)).to(kind)
    x = rnd(5, 2, 1500, 16).to(kind)  # more tokens than are taken at a time
    with torch.set_grad_enabled(gradients):
        out = network(x)
    w, bias, w_out, bias_out = (p.double() for p in network.parameters())
    value, gate = (x.double() @ w.T + bias).chunk(2, dim=-1)
    exact = gate * (1 + torch.erf(gate / 2**0.5)) / 2
    assert relative_error(out.double(), value * exact @ w_out.T + bias_out) < CLOSE[kind]


class Adapted(nn.Module):
    """A layer with something added to what it gives, whose weight it shows as its own, as LoRA's does."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    @property
    def weight(self):
        return self.layer.weight

    @property
    def bias(self):
        return self.layer.bias

    def forward(self, x):
        return self.layer(x) + 1


def with_hook(layer):
    layer.register_forward_hook(lambda _layer, _in, out: out + 1)
    return layer


def with_pre_hook(layer):
    layer.register_forward_pre_hook(lambda _layer, inputs: (inputs[0] + 1,))
    return layer


def with_another_function(layer):
    original = layer.forward
    layer.forward = lambda x: original(x) + 1
    return layer


def of_another_class(layer):
    class Own(type(layer)):
        def forward(self, x):
            return super().forward(x) + 1

    layer.__class__ = Own
    return layer


def tiling(layer):
    layer.padding_mode = "circular"
    return layer


def tiling_inside(layer):
    layer._conv_forward = lambda x, weight, bias: F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), weight, bias)
    return layer


def spread(layer):
    layer.dilation = layer.padding = (2, 2)
    return layer


@pytest.mark.parametrize(
    "changed", [Adapted, with_hook, with_pre_hook, with_another_function, of_another_class]
)
def test_what_is_put_on_an_inner_linear_layer_acts_at_inference_too(changed):
    network, x = fill_by_name(FeedForward(16)), rnd(5, 2, 9, 16)
    before = network(x)
    network.net[0].proj = changed(network.net[0].proj)
    with torch.enable_grad():
        expected = network(x).detach()
    assert relative_error(network(x), expected) < 2e-6 < 0.01 < relative_error(before, expected)


@pytest.mark.parametrize(
    "changed",
    [
        Adapted,
        with_hook,
        with_pre_hook,
        with_another_function,
        of_another_class,
        tiling,
        tiling_inside,
        spread,
    ],
)
@pytest.mark.parametrize("channels", [16, 256])
def test_what_is_put_on_an_inner_convolution_acts_at_inference_too(changed, channels):
    layer, x = fill_by_name(Upsample(channels)), rnd(6, 1, channels, 16, 16)
    before = layer(x)
    layer.conv = changed(layer.conv)
    with torch.enable_grad():
        expected = layer(x).detach()
    assert relative_error(layer(x), expected) < 1e-5 < 0.01 < relative_error(before, expected)


@pytest.mark.parametrize("changed", [tiling, tiling_inside, spread])
@pytest.mark.parametrize("size", [8, 40])
def test_a_convolution_that_is_changed_once_it_is_made_is_torchs(changed, size):
    layer, x = changed(fill_by_name(Conv3x3(64, 64))), rnd(6, 1, 64, size, size)
    with torch.enable_grad():
        expected = layer(x).detach()
    assert relative_error(layer(x), expected) < 1e-5
    layer.bias = None
    assert layer(x).shape == expected.shape


@pytest.mark.parametrize(
    "register",
    [nn.modules.module.register_module_forward_hook, nn.modules.module.register_module_forward_pre_hook],
)
def test_a_hook_of_all_layers_sees_the_inner_ones_at_inference_too(register):
    seen = []
    hook = register(lambda layer, *_: seen.append(type(layer)))
    try:
        FeedForward(16)(rnd(5, 2, 9, 16))
        Upsample(256)(rnd(6, 1, 256, 16, 16))
    finally:
        hook.remove()
    assert seen.count(Linear) == 2 and seen.count(Conv3x3) == 1


def test_a_hook_inside_the_feed_forward_network_sees_all_tokens_at_once():
    network, seen = FeedForward(16), []
    network.net[2].register_forward_hook(lambda _layer, inputs, _out: seen.append(inputs[0].shape))
    network(rnd(5, 2, 4096, 16))
    assert seen == [(2, 4096, 64)]


def test_a_trace_of_the_feed_forward_network_takes_any_number_of_tokens():
    network = fill_by_name(FeedForward(16))
    traced = torch.jit.trace(network, rnd(5, 2, 4096, 16))
    for tokens in (9, 8192):
        x = rnd(6, 2, tokens, 16)
        assert relative_error(traced(x), network(x)) < 2e-6


@only_here
def test_layers_compute_where_their_inputs_are_whatever_the_default_device():
    conv, linear = fill_by_name(Conv3x3(256, 256)), fill_by_name(Linear(16, 16))
    x, tokens = rnd(7, 1, 256, 16, 16), rnd(8, 2, 16)
    expected = conv(x), linear(tokens)
    with torch.device("meta"):
        assert all(map(torch.equal, (conv(x), linear(tokens)), expected))


def test_gradients_and_copies_are_torchs():
    ours = nn.Sequential(Conv3x3(4, 6), nn.Flatten(), Linear(6 * 9, 3))
    plain = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Flatten(), nn.Linear(6 * 9, 3))
    plain.load_state_dict(ours.state_dict())
    x = rnd(6, 2, 4, 3, 3)
    assert torch.equal(copy.deepcopy(ours)(x), ours(x))
    with torch.enable_grad():
        for model in (ours, plain):
            model(x).square().sum().backward()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize("layer", [Linear(8, 8), Conv3x3(8, 8), Conv3x3(256, 256)])
def test_forward_gradients_and_vmap_are_torchs(layer):
    fill_by_name(layer)
    shape = (2, 8) if isinstance(layer, Linear) else (2, layer.in_channels, 16, 16)
    x, direction = rnd(8, *shape), rnd(9, *shape)
    with forward_ad.dual_level():
        made, slope = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, direction)))
    assert relative_error(slope, layer(direction) - layer(torch.zeros_like(x))) < 1e-5
    assert relative_error(torch.vmap(lambda it: layer(it[None])[0])(x), made) < 1e-5


@pytest.mark.parametrize("layer", [Linear(8, 8), Conv3x3(8, 8), Conv3x3(64, 64)])
def test_weights_under_vmap_are_torchs(layer):
    shape = (2, 8) if isinstance(layer, Linear) else (2, layer.in_channels, 16, 16)
    x, several = rnd(8, *shape), [fill_by_name(copy.deepcopy(layer)) for _ in range(2)]
    several[1].weight.mul_(2)
    parameters, _ = stack_module_state(several)
    made = torch.vmap(lambda its: functional_call(layer, its, (x,)))(parameters)
    for mine, alone in zip(made, several, strict=True):
        assert relative_error(mine, alone(x)) < 1e-5


class Kept(torch.Tensor):
    """Weights in a form of which `linear` alone knows, as those are that torchao makes."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, bias = args
            return F.linear(x, weight.as_subclass(torch.Tensor), bias)
        if func.__name__.startswith("_linear"):
            raise NotImplementedError(func)
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("rows", [1, 2000])
def test_weights_of_another_kind_are_multiplied_as_they_ask(rows):
    layer, x = fill_by_name(Linear(64, 64)), rnd(10, rows, 64)
    expected = layer(x)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Kept), requires_grad=False)
    assert type(layer.weight) is Kept
    assert relative_error(layer(x), expected) < 1e-5


@pytest.mark.parametrize("layer", [Linear(256, 256), Conv3x3(64, 64), GroupNorm(8, 64, silu=True)])
def test_whoever_notes_operations_is_told_of_them(layer):
    fill_by_name(layer)
    shape = (300, 256) if isinstance(layer, Linear) else (1, 64, 16, 16)
    x, other = (
        rnd(seed, *shape).to(
            memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format
        )
        for seed in (11, 12)
    )
    assert relative_error(make_fx(layer)(x)(other), layer(other)) < 1e-5
    if not isinstance(layer, GroupNorm):
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * layer.weight.numel() * x[:, 0].numel()


@each_kind
@pytest.mark.parametrize("layer", [Conv3x3(64, 64), Upsample(64), GroupNorm(32, 64, silu=True)])
@pytest.mark.parametrize("channels", [32, 128, 4096])
@pytest.mark.parametrize("size", [4, 16, 32])
def test_maps_of_another_width_are_refused_as_by_torch(layer, channels, size, kind):
    with pytest.raises(RuntimeError, match=r"to have 64 channels|weight to be a vector of size"):
        layer.to(kind)(rnd(13, 1, channels, size, size).to(kind).to(memory_format=torch.channels_last))


@each_kind
@pytest.mark.parametrize("rows", [1, 4096])
def test_rows_of_another_width_are_refused_as_by_torch(rows, kind):
    with pytest.raises(RuntimeError, match=f"{rows}x32 and 64x640"):
        Linear(64, 640).to(kind)(rnd(13, rows, 32).to(kind))


@pytest.mark.parametrize("size", [8, 40])
@pytest.mark.parametrize(
    "given", [(3, 1, 1), (3, 2, 1), ((3, 3), (1, 2), (1, 1)), (1,), ((1, 1), 2), (5, 1, 2)]
)
@pytest.mark.parametrize("more", [{}, {"bias": False}, {"groups": 2}, {"dilation": 2}], ids=str)
def test_a_convolution_is_made_and_convolves_as_torchs(given, more, size):
    layer, plain = (fill_by_name(kind(64, 64, *given, **more)) for kind in (Conv3x3, nn.Conv2d))
    x = rnd(15, 1, 64, size, size)
    assert relative_error(layer(x), plain(x)) < 1e-5


@pytest.mark.parametrize("layer", [Conv3x3(64, 64), GroupNorm(8, 64, silu=True), Upsample(256)])
def test_maps_that_lie_there_with_the_other_sign_are_read_as_they_are(layer):
    [channels] = next(it for it in fill_by_name(layer).parameters() if it.ndim == 1).shape
    x = rnd(16, 1, channels, 16, 16).contiguous(memory_format=torch.channels_last)
    assert relative_error(layer(torch._neg_view(-x)), layer(x)) < 1e-4


def test_a_map_without_a_batch_is_convolved_as_by_torch():
    layer, x = fill_by_name(Conv3x3(64, 64)), rnd(14, 64, 16, 16)
    assert relative_error(layer(x), layer(x[None])[0]) < 1e-5


def test_autocast_is_torchs():
    layer = fill_by_name(Linear(8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(rnd(7, 2, 8)).dtype == torch.bfloat16
