"""Winograd's convolution against the formula in float64 and against sums known by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.modules import winograd
from tests.conftest import rnd
from tests.modules.kinds import assert_convolved, distance_from_convolved, each_kind, only_here

pytestmark = only_here


def convolved(x, weight, bias):
    weight = weight.contiguous(memory_format=torch.channels_last)
    return winograd.winograd(x.contiguous(memory_format=torch.channels_last), weight, bias)


@each_kind
@settings(max_examples=60)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 7),
    out=st.integers(1, 5),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    tiles=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_any_map_is_convolved_as_by_the_formula(kind, batch, channels, out, height, width, tiles, seed):
    x = rnd(seed, batch, channels, height, width).to(kind)
    weight, bias = rnd(seed + 1, out, channels, 3, 3).to(kind), rnd(seed + 2, out).to(kind)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(winograd, "TILES", tiles)
        made = convolved(x, weight, bias)
    assert_convolved(made, x, weight, bias)


def test_whole_numbers_come_out_exactly():
    x = torch.arange(30.0).view(1, 1, 5, 6)
    corner = torch.zeros(1, 1, 3, 3)
    corner[0, 0, 0, 0] = 1
    with torch.inference_mode():
        # Row by row from 0 to 29: next to the corner lie 0, 1, 6 and 7; around 14 all nine are 14 on average.
        around = convolved(x, torch.ones(1, 1, 3, 3), torch.tensor([-3.0]))[0, 0]
        assert around[0, 0] == 0 + 1 + 6 + 7 - 3
        assert around[2, 2] == 9 * 14 - 3
        assert around[4, 5] == 22 + 23 + 28 + 29 - 3
        # The kernel's upper left number alone brings what is above and to the left.
        moved = convolved(x, corner, torch.zeros(1))[0, 0]
        assert torch.equal(moved[1:, 1:], x[0, 0, :-1, :-1]) and not moved[0].any() and not moved[:, 0].any()


@each_kind
def test_a_layer_of_a_unet_is_as_exact_as_the_kind_allows(kind):
    x, weight = rnd(1, 2, 320, 32, 32).to(kind), (rnd(2, 256, 320, 3, 3) / 54).to(kind)
    bias = rnd(3, 256).to(kind)
    with torch.inference_mode():
        made = convolved(x, weight, bias)
    error = distance_from_convolved(made, x, weight, bias)
    assert error < {torch.float32: 1e-6, torch.bfloat16: 8e-3}[kind]
