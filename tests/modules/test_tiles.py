"""Attention by an Intel processor's tiles, against its formula in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.modules import dot_product, tiles
from ldm.modules.dot_product import attention
from ldm.modules.tiles import by_tiles
from tests.conftest import on_threads, relative_error, rnd
from tests.modules.kinds import attended

with_tiles = pytest.mark.skipif(tiles.LIBRARY is None, reason="no tiles here, or no compiler that knows them")
CLOSE = 6e-3  # weights are rounded twice and what they sum once, to eight binary digits each


@with_tiles
@settings(max_examples=100)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    n=st.integers(1, 300),
    m=st.integers(1, 200),
    d=st.integers(1, 256),
    size=st.sampled_from([0, 0.1, 1, 3]),
    common=st.sampled_from([0, 1, 30]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_it_is_the_formula(batch, heads, n, m, d, size, common, threads, seed):
    # As a U-Net's heads lie: beside each other in every token. What all keys share takes scores far away.
    q, k, v = (rnd(seed + i, batch, length, heads, d).transpose(1, 2) for i, length in enumerate((n, m, m)))
    q, k, v = (size * q).bfloat16(), (size * k + common * rnd(7, d)).bfloat16(), v.bfloat16()
    with on_threads(threads):
        out = by_tiles(q, k, v)
    assert out.dtype == torch.bfloat16 and out.shape == q.shape
    # Each weight is rounded, and what is summed by weights may be small beside the values.
    assert ((out.double() - attended(q, k, v)).abs() <= 0.0125 * attended(q, k, v.abs()) + 1e-6).all()


@with_tiles
@pytest.mark.parametrize(
    ("n", "m", "d"), [(4096, 4096, 40), (1024, 1024, 80), (4096, 77, 40), (1024, 1024, 64)]
)
def test_attention_of_a_unet_is_as_near_to_the_formula_as_rounding(n, m, d):
    q, k, v = (rnd(i, 1, length, 2, d).bfloat16().transpose(1, 2) for i, length in enumerate((n, m, m)))
    made, expected = attention(q, k, v).double(), attended(q, k, v)
    assert relative_error(made, expected) < CLOSE
    assert not torch.equal(made, F.scaled_dot_product_attention(q, k, v).double())


@with_tiles
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 2.0**60, 3e38])
@pytest.mark.parametrize("of", range(3), ids=["queries", "keys", "values"])
def test_what_is_not_finite_or_too_large_is_torchs(number, of):
    inputs = [rnd(i, 1, 2, 100, 8).bfloat16() for i in range(3)]
    inputs[of][0, 1, 99, 7] = number
    assert by_tiles(*inputs) is None
    torch.testing.assert_close(
        attention(*inputs), dot_product.by_torch(*inputs), rtol=0, atol=0, equal_nan=True
    )


@with_tiles
def test_scores_too_far_from_zero_are_torchs():
    q = k = torch.full((1, 1, 100, 8), 5e3).bfloat16()
    assert by_tiles(q, k, k) is None
    assert torch.equal(attention(q, k, k), k)


def test_without_a_library_attention_is_torchs(monkeypatch):
    monkeypatch.setattr(tiles, "LIBRARY", None)
    monkeypatch.setattr(dot_product, "HAS_AMX", True)
    q = rnd(1, 1, 2, 64, 8).bfloat16()
    assert torch.equal(attention(q, q, q), F.scaled_dot_product_attention(q, q, q))
