"""Winograd's convolution in C, in each form that runs here, against the formula in float64 and known sums."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldm.modules import winograd_in_c
from ldm.modules.winograd_in_c import has_winograd
from tests.conftest import on_threads, rnd
from tests.modules.kinds import FORM_KINDS, assert_convolved, distance_from_convolved, library, only_here

pytestmark = only_here
LAYOUTS = st.sampled_from([torch.contiguous_format, torch.channels_last])
FEW = st.sampled_from([0, 2**20])  # with up to so many tiles kernels are made a panel at a time


def convolved(x, weight, bias, *how):
    assert has_winograd(x, weight, bias)
    return winograd_in_c.winograd_in_c(x, weight, bias, *how)


@pytest.fixture(params=FORM_KINDS)
def kind(request, monkeypatch):
    """The precision of one form after the other, which alone is there."""
    kind, lanes = FORM_KINDS[request.param], 8 if request.param == "avx2" else 16
    monkeypatch.setattr(winograd_in_c, "LIBRARIES", {kind: library(winograd_in_c, request.param)})
    monkeypatch.setattr(winograd_in_c, "LANES", lanes)
    monkeypatch.setattr(winograd_in_c, "PANEL", 2 * lanes)
    return kind


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3),
    lanes=st.sampled_from([1, 2, 3, 5, 20, 41]),
    panels=st.integers(1, 4),
    height=st.integers(1, 13) | st.just(47),
    width=st.integers(1, 13) | st.just(38),
    memory=LAYOUTS,
    kernels=LAYOUTS,
    most=st.integers(1, 2**18),
    cached=st.integers(1, 2**18),
    few=FEW,
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_map_is_convolved_as_by_the_formula(
    kind, batch, lanes, panels, height, width, memory, kernels, most, cached, few, threads, seed
):
    channels, out = lanes * winograd_in_c.LANES, panels * winograd_in_c.PANEL
    x = rnd(seed, batch, channels, height, width).to(kind).contiguous(memory_format=memory)
    weight = rnd(seed + 1, out, channels, 3, 3).to(kind).contiguous(memory_format=kernels)
    bias = rnd(seed + 2, out).to(kind)
    with on_threads(threads), pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(winograd_in_c, "MOST", most)
        patch.setattr(winograd_in_c, "CACHED", cached)
        patch.setattr(winograd_in_c, "FEW_TILES", few)
        made = convolved(x, weight, bias)
    # In float32 its sums weigh numbers by up to 8, and where these cancel, what they were rounded by stays.
    assert_convolved(made, x, weight, bias, close={torch.float32: 8e-6, torch.bfloat16: 8e-3}[kind])


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    above=st.integers(0, 3),
    below=st.integers(0, 3),
    memory=LAYOUTS,
    few=FEW,
    seed=st.integers(0, 99),
)
def test_rows_above_and_below_are_looked_at_and_none_comes_out_of_them(
    kind, batch, height, width, above, below, memory, few, seed
):
    lanes, panel = winograd_in_c.LANES, winograd_in_c.PANEL
    x = rnd(seed, batch, lanes, above + height + below, width).to(kind).contiguous(memory_format=memory)
    weight, bias = rnd(seed + 1, panel, lanes, 3, 3).to(kind), rnd(seed + 2, panel).to(kind)
    # Written between rows that stay as they are.
    around = torch.full((height + 2, batch, width, panel), 7, dtype=kind)
    y = around[1:-1].permute(1, 3, 0, 2) if batch == 1 else None
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(winograd_in_c, "FEW_TILES", few)
        made = convolved(x, weight, bias, above, below, y)
    close = {torch.float32: 8e-6, torch.bfloat16: 8e-3}[kind]
    assert_convolved(made, x, weight, bias, close, above, below)
    assert y is None or made is y
    assert (around[0] == 7).all() and (around[-1] == 7).all()


def test_sums_known_by_hand_come_out(kind):
    lanes, panel = winograd_in_c.LANES, winograd_in_c.PANEL
    x = torch.arange(30.0).view(1, 1, 5, 6).repeat(1, lanes, 1, 1).to(kind)
    ones, corner = torch.zeros(2, panel, lanes, 3, 3, dtype=kind)
    ones[:, 0], corner[:, 0, 0, 0] = 1, 1
    with torch.inference_mode():
        # Row by row from 0 to 29: next to the corner lie 0, 1, 6 and 7; around 14 all nine are 14 on average.
        around = convolved(x, ones, torch.full((panel,), -3.0, dtype=kind))[0]
        for i, j, total in ((0, 0, 0 + 1 + 6 + 7), (2, 2, 9 * 14), (4, 5, 22 + 23 + 28 + 29)):
            torch.testing.assert_close(around[:, i, j], torch.full((panel,), total - 3.0, dtype=kind))
        # The kernel's upper left number alone brings what is above and to the left.
        moved = convolved(x, corner, torch.zeros(panel, dtype=kind))[0]
    torch.testing.assert_close(moved[:, 1:, 1:], x[0, :1, :-1, :-1].expand(panel, -1, -1), atol=1e-4, rtol=0)
    assert moved[:, 0].abs().max() < 1e-4 and moved[:, :, 0].abs().max() < 1e-4


@pytest.mark.parametrize("channels", [320, 1280])
def test_a_layer_of_a_unet_is_as_exact_as_its_precision_allows(kind, channels):
    x, weight = rnd(1, 2, channels, 16, 16), rnd(2, 256, channels, 3, 3) / (9 * channels) ** 0.5
    x, weight, bias = x.to(kind), weight.to(kind), rnd(3, 256).to(kind)
    with torch.inference_mode():
        made = convolved(x, weight, bias)
    # As in float32 sums of all channels in one go would not be: they are 2.5e-6 off, and 5e-6 of 1,280.
    assert (
        distance_from_convolved(made, x, weight, bias) < {torch.float32: 2.2e-6, torch.bfloat16: 4e-3}[kind]
    )


def test_maps_that_c_cannot_take_are_left_to_torch(kind):
    x, weight, bias = (it.to(kind) for it in (rnd(1, 1, 16, 8, 8), rnd(2, 32, 16, 3, 3), rnd(3, 32)))
    [other] = {torch.float32, torch.bfloat16} - {kind}
    with torch.inference_mode():
        assert has_winograd(x, weight, bias)
        assert not has_winograd(x[:, :15].contiguous(), weight[:, :15].contiguous(), bias)
        assert not has_winograd(rnd(1, 1, 32, 8, 8).to(kind), weight, bias)
        assert not has_winograd(rnd(1, 8, 16, 8).to(kind), weight, bias)  # no batch of maps
        assert not has_winograd(x, weight[:24], bias[:24])
        assert not has_winograd(x[:, :8], weight[:, :8], bias)  # whose numbers lie apart
        assert not has_winograd(x.to(other), weight.to(other), bias.to(other))
        assert not has_winograd(x, weight, bias.double())
        assert not has_winograd(x, weight, rnd(3, 64).to(kind)[::2])
        assert not has_winograd(x.to("meta"), weight.to("meta"), bias.to("meta"))
    with torch.no_grad():
        assert has_winograd(x, weight.requires_grad_(), bias.requires_grad_())
