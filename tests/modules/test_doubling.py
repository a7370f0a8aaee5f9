"""A map doubled and convolved with few products, against the formula in float64 and sums known by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.modules import doubling
from tests.conftest import rnd
from tests.modules.kinds import assert_convolved, distance_from_convolved, each_kind, only_here

pytestmark = only_here


def doubled(x):
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@each_kind
@settings(max_examples=60)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 7),
    out=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    above=st.integers(0, 3),
    below=st.integers(0, 3),
    positions=st.integers(1, 60),
    memory=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 99),
)
def test_any_map_is_doubled_and_convolved_as_by_the_formula(
    kind, batch, channels, out, height, width, above, below, positions, memory, seed
):
    x = rnd(seed, batch, channels, above + height + below, width).to(kind)
    weight, bias = rnd(seed + 1, out, channels, 3, 3).to(kind), rnd(seed + 2, out).to(kind)
    weight = weight.contiguous(memory_format=memory)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(doubling, "POSITIONS", positions)
        made = doubling.convolved_double(x, weight, bias, above, below)
    assert_convolved(made, doubled(x), weight, bias, above=2 * above, below=2 * below)


def test_whole_numbers_come_out_exactly():
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    corner = torch.zeros(1, 1, 3, 3)
    corner[0, 0, 0, 0] = 1
    with torch.inference_mode():
        # Doubled, its rows are 112233 and 445566, each twice.
        around = doubling.convolved_double(x, torch.ones(1, 1, 3, 3), torch.tensor([-3.0]))[0, 0]
        assert around[0, 0] == 4 * 1 - 3
        assert around[1, 1] == 4 * 1 + 2 * 2 + 2 * 4 + 5 - 3
        assert around[3, 5] == 4 * 6 - 3
        # The kernel's upper left number alone brings what is above and to the left.
        moved = doubling.convolved_double(x, corner, torch.zeros(1))[0, 0]
        assert torch.equal(moved[1:, 1:], doubled(x)[0, 0, :-1, :-1])
        assert not moved[0].any() and not moved[:, 0].any()


@each_kind
def test_a_layer_of_a_unet_is_as_exact_as_the_kind_allows(kind):
    x, weight = rnd(1, 2, 320, 16, 16).to(kind), (rnd(2, 256, 320, 3, 3) / 54).to(kind)
    bias = rnd(3, 256).to(kind)
    with torch.inference_mode():
        made = doubling.convolved_double(x, weight, bias)
    error = distance_from_convolved(made, doubled(x), weight, bias)
    assert error < {torch.float32: 2e-6, torch.bfloat16: 7e-3}[kind]
