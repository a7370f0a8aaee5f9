"""Attention by a processor's vectors, against its formula in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.modules import vectors
from ldm.modules.dot_product import attention
from ldm.modules.vectors import by_vectors
from tests.conftest import on_threads, relative_error, rnd
from tests.modules.kinds import attended, only_here

pytestmark = only_here
with_vectors = pytest.mark.skipif(
    vectors.LIBRARY is None, reason="AVX-512 is here, or no C compiler was there at the installation"
)
CLOSE = 1e-6


@with_vectors
@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    n=st.integers(1, 300),
    m=st.integers(1, 300),
    d=st.integers(1, 40).map(vectors.DOWN.__mul__),
    size=st.sampled_from([0, 0.1, 1, 3]),
    common=st.sampled_from([0, 1, 30]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_it_is_the_formula(batch, heads, n, m, d, size, common, threads, seed):
    # As a U-Net's heads lie: beside each other in every token. What all keys share takes scores far away.
    q, k, v = (rnd(seed + i, batch, length, heads, d).transpose(1, 2) for i, length in enumerate((n, m, m)))
    q, k = size * q, size * k + common * rnd(7, d)
    with on_threads(threads):
        out = by_vectors(q, k, v)
    assert out.dtype == torch.float32 and out.shape == q.shape
    # A score is rounded like the largest that are summed in it, and what it is off by multiplies its weight.
    off = 1e-6 * (1 + (q.abs() @ k.abs().mT).max().item() * d**-0.5)
    assert ((out.double() - attended(q, k, v)).abs() <= off * v.abs().max()).all()


@with_vectors
@pytest.mark.parametrize(
    ("n", "m", "d"), [(4096, 4096, 40), (1024, 1024, 80), (4096, 77, 40), (1024, 1024, 64), (64, 64, 160)]
)
def test_attention_of_a_unet_is_as_near_to_the_formula_as_torchs(n, m, d):
    q, k, v = (rnd(i, 1, length, 2, d).transpose(1, 2) for i, length in enumerate((n, m, m)))
    made, expected = attention(q, k, v), attended(q, k, v)
    assert relative_error(made.double(), expected) < CLOSE
    assert not torch.equal(made, F.scaled_dot_product_attention(q, k, v))


@with_vectors
def test_wide_heads_and_uneven_ones_are_torchs():
    for d in (15, vectors.WIDEST + vectors.DOWN):
        assert by_vectors(*3 * [rnd(4, 1, 1, 8, d)]) is None


@with_vectors
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("of", range(3), ids=["queries", "keys", "values"])
def test_what_is_not_finite_shows(number, of):
    inputs = [1 + rnd(i, 1, 2, 100, 8).abs() for i in range(3)]
    inputs[of][0, 1, 99, 7] = number
    made, expected = by_vectors(*inputs), attended(*inputs)
    assert torch.equal(made.isfinite(), expected.isfinite())
    assert not made.isfinite().all()


def test_without_a_library_attention_is_torchs(monkeypatch):
    monkeypatch.setattr(vectors, "LIBRARY", None)
    q = rnd(1, 1, 2, 64, 8)
    assert torch.equal(attention(q, q, q), F.scaled_dot_product_attention(q, q, q))
