"""Group normalisation and SiLU against their formulas in float64, by C and by torch, whole and in parts."""

from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrize

from ldm.modules import norm
from ldm.modules.norm import GroupNorm, group_sums, has_norm
from tests.conftest import fill_by_name, on_threads, relative_error, rnd

LAST = torch.channels_last
with_library = pytest.mark.skipif(norm.LIBRARY is None, reason="no C compiler was there at the installation")


def expected(layer, x):
    """The layer's formula in float64."""
    groups = x.double().unflatten(1, (layer.num_groups, -1))  # (B, groups, C / groups, H, W)
    mean = groups.mean((2, 3, 4), keepdim=True)
    var = (groups - mean).square().mean((2, 3, 4), keepdim=True)
    y = ((groups - mean) / (var + layer.eps).sqrt()).flatten(1, 2)
    y = y * layer.weight.double()[:, None, None] + layer.bias.double()[:, None, None]
    return y * torch.sigmoid(y) if layer.silu else y


def made(channels, groups=4, silu=True, kind=torch.float32, eps=1e-5):
    layer = fill_by_name(GroupNorm(groups, channels, eps, silu)).to(kind)
    assert layer.eps == eps
    return layer


@settings(max_examples=100)
@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([8, 12, 32, 320]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    common=st.sampled_from([0, 3, -40]),
    memory=st.sampled_from([LAST, torch.contiguous_format]),
    kind=st.sampled_from([torch.float32, torch.bfloat16]),
    silu=st.booleans(),
    eps=st.sampled_from([1e-5, 0.5]),
    overwrite=st.booleans(),
    threads=st.integers(1, 3),
)
def test_any_map_is_normalised_as_by_the_formula(
    batch, channels, height, width, common, memory, kind, silu, eps, overwrite, threads
):
    layer = made(channels, silu=silu, kind=kind, eps=eps)
    x = (
        (common + rnd(height * width, batch, channels, height, width))
        .to(kind)
        .contiguous(memory_format=memory)
    )
    before, exact = x.clone(), expected(layer, x)
    groups = x.double().unflatten(1, (layer.num_groups, -1))
    var, mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0)
    far = (mean**2 / (var + layer.eps)).max()  # which a difference of squares is rounded relative to
    with torch.no_grad(), on_threads(threads):
        y = layer(x, overwrite)
    assert y.shape == x.shape and y.dtype == kind
    # torch rounds a number in bfloat16 ahead of SiLU as well.
    close = 3e-6 + 3e-7 * far if kind == torch.float32 else 2e-2
    assert (y.double() - exact).abs().max() <= close * (1 + exact.abs().max())
    assert overwrite or torch.equal(x, before)


@with_library
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_the_bits_are_the_same_on_any_number_of_threads(kind):
    layer, x = made(64, kind=kind), rnd(1, 2, 64, 70, 50).to(kind).contiguous(memory_format=LAST)
    assert has_norm(x)
    outs = []
    for threads in (1, 2, 3, 7):
        with on_threads(threads):
            outs.append(layer(x))
    assert all(torch.equal(out, outs[0]) for out in outs)


@with_library
@pytest.mark.parametrize("common", [0, 10, 100])
def test_numbers_far_from_zero_lose_no_more_than_by_torch(common):
    layer, x = made(32), (common + rnd(2, 1, 32, 128, 128)).contiguous(memory_format=LAST)
    exact = expected(layer, x)
    by_torch = F.silu(F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps))
    ours, theirs = (relative_error(y.double(), exact) for y in (layer(x), by_torch))
    assert ours < max(theirs, 2e-6)


@pytest.mark.parametrize("with_c", [True, False])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_parts_are_normalised_by_the_sums_of_the_whole(eps, kind, with_c, monkeypatch):
    if not with_c:
        monkeypatch.setattr(norm, "LIBRARY", None)
    layer, x = (
        made(32, kind=kind, eps=eps),
        (1 + rnd(3, 1, 32, 30, 12)).to(kind).contiguous(memory_format=LAST),
    )
    parts = x.split(7, dim=2)
    sums = sum(group_sums(part, 4) for part in parts)
    numbers = x.double().unflatten(1, (4, -1)).flatten(2)  # (1, groups, numbers)
    assert torch.allclose(sums[..., 0], numbers.sum(-1), rtol=1e-5)
    assert torch.allclose(sums[..., 1], numbers.square().sum(-1), rtol=1e-5)
    room = torch.empty_like(parts[0])
    out = [
        layer.by_sums(part, sums, numbers.shape[-1], room[:, :, : part.shape[2]]).clone() for part in parts
    ]
    out = torch.cat(out, dim=2)
    close = {torch.float64: 1e-13, torch.float32: 3e-5, torch.bfloat16: 2e-2}[kind]
    assert relative_error(out.double(), expected(layer, x)) < close


@pytest.mark.parametrize("with_c", [True, False])
def test_the_sums_of_small_numbers_are_theirs(with_c, monkeypatch):
    if not with_c:
        monkeypatch.setattr(norm, "LIBRARY", None)
    x = (1e-3 * rnd(3, 2, 32, 6, 5)).contiguous(memory_format=LAST)
    numbers = x.double().unflatten(1, (4, -1)).flatten(2)  # (2, groups, numbers)
    assert torch.allclose(group_sums(x, 4)[..., 1], numbers.square().sum(-1), rtol=1e-4)


@pytest.mark.parametrize("size", [0, 1e-3, 1, 30, 1000])
def test_silu_holds_far_from_zero_and_near_it(size):
    layer = made(8, groups=1)
    layer.weight.fill_(size)
    layer.bias.zero_()
    x = rnd(4, 1, 8, 40, 40).contiguous(memory_format=LAST)
    exact = expected(layer, x)
    assert ((layer(x).double() - exact).abs() <= 1e-5 * exact.abs() + 1e-5 * size).all()


def test_a_flat_map_is_its_bias():
    layer = made(8)
    out = layer(torch.full((2, 8, 5, 3), 7.0).contiguous(memory_format=LAST))
    close = 1e-6 if norm.LIBRARY else 1e-4  # torch's own takes a mean in float32
    assert torch.allclose(out, F.silu(layer.bias)[:, None, None].expand_as(out), atol=close)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e38])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_no_number_or_too_large_to_be_squared_shows_in_its_group_alone(number, kind):
    layer, x = made(32, kind=kind), rnd(5, 2, 32, 6, 6).to(kind).contiguous(memory_format=LAST)
    x[1, 9, 2, 3] = number
    out = layer(x)
    assert not out[1, 8:16].isfinite().any()
    out[1, 8:16] = 0
    assert out.isfinite().all()


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("bits", [0x7F81, 0x7FC0, 0x7FFF, 0xFF81, 0xFFFF], ids=hex)
def test_what_is_no_number_in_bfloat16_is_none_whatever_its_bits(bits, silu):
    none = torch.tensor(bits).to(torch.uint16).view(torch.bfloat16)
    layer, x = made(32, silu=silu, kind=torch.bfloat16), rnd(5, 2, 32, 6, 6).bfloat16()
    for place in (layer.weight, layer.bias, x[1, :, 2, 3]):
        before = place[9].clone()
        place[9] = none
        assert place[9].isnan() and layer(x.contiguous(memory_format=LAST))[1, 9].isnan().all()
        place[9] = before


@with_library
def test_plain_maps_at_inference_are_normalised_in_c_and_nothing_else(monkeypatch):
    called = Mock(wraps=norm.LIBRARY)
    monkeypatch.setattr(norm, "LIBRARY", called)
    layer, x = made(32), rnd(6, 2, 32, 8, 8).contiguous(memory_format=LAST)
    for taken in (x, x[1:], x[:1, :, 2:5]):
        layer(taken)
    layer.bfloat16()(x.bfloat16())
    made(12)(rnd(7, 1, 12, 8, 8).contiguous(memory_format=LAST))
    assert called.normalize.call_count == 5
    layer.float()
    for other in (x.contiguous(), x[:, :, :, 1:], x[:0]):
        layer(other)
    for kind in (torch.float64, torch.float16):
        made(32, kind=kind)(x.to(kind))
    made(norm.WIDEST + 8)(rnd(7, 1, norm.WIDEST + 8, 2, 2).contiguous(memory_format=LAST))
    no_bias = made(32)
    no_bias.bias = None
    no_bias(x)
    with pytest.raises(RuntimeError):
        made(32).to("meta")(x)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    with torch.enable_grad():
        layer(x)
    assert called.normalize.call_count == 5


def test_weights_that_lie_apart_are_read_where_they_are():
    layer, x = made(32), rnd(6, 2, 32, 8, 8).contiguous(memory_format=LAST)
    apart = {name: torch.stack([p, p + 9], dim=1)[:, 0] for name, p in layer.named_parameters()}
    assert not apart["weight"].is_contiguous()
    assert relative_error(torch.func.functional_call(layer, apart, x), layer(x)) < 2e-6


class Twice(torch.nn.Module):
    def forward(self, weight):
        return weight * 2


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("names", [["weight"], ["bias"], ["weight", "bias"]])
def test_weights_that_are_made_as_they_are_asked_for_are_read_while_they_are_there(names, kind):
    layer, x = made(320, kind=kind), rnd(9, 1, 320, 8, 8).to(kind).contiguous(memory_format=LAST)
    for name in names:
        parametrize.register_parametrization(layer, name, Twice())
    sums = group_sums(x, layer.num_groups)
    close = 1e-5 if kind == torch.float32 else 2e-2
    for out in (layer(x), layer.by_sums(x, sums, x.numel() // layer.num_groups)):
        assert relative_error(out.double(), expected(layer, x)) < close


def test_gradients_are_torchs():
    layer, plain = made(32), torch.nn.GroupNorm(4, 32)
    plain.load_state_dict(layer.state_dict())
    # torch 2.6 itself dies where the gradient of maps with channels last is not asked for.
    x = rnd(8, 2, 32, 8, 8).contiguous(memory_format=LAST).requires_grad_()
    with torch.enable_grad():
        grads = [
            torch.autograd.grad(one(x).square().sum(), [x, *one.parameters()])
            for one in (layer, torch.nn.Sequential(plain, torch.nn.SiLU()))
        ]
    assert all(map(torch.equal, *grads))
