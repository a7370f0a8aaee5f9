"""Attention against its formula in float64, wherever its products come from."""

from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.modules import dot_product
from ldm.modules.dot_product import attention, by_sigmoid
from tests.conftest import relative_error, rnd
from tests.modules.kinds import attended, with_bfloat16

CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
each_kind = pytest.mark.parametrize("kind", CLOSE, ids=str)


@pytest.fixture(autouse=True)
def as_without_amx(monkeypatch):
    monkeypatch.setattr(dot_product, "HAS_AMX", False)


@each_kind
@pytest.mark.parametrize(("n", "m"), [(1, 1), (9, 5), (64, 64), (256, 77), (1100, 1000), (4096, 300)])
def test_attention_is_its_formula(kind, n, m):
    # As a U-Net's heads lie: beside each other in every token.
    q, k, v = (rnd(i, 2, length, 3, 8).to(kind).transpose(1, 2) for i, length in enumerate((n, m, m)))
    assert relative_error(attention(q, k, v).double(), attended(q, k, v)) < CLOSE[kind]


@each_kind
@pytest.mark.parametrize("size", [20, 200])
def test_attention_holds_where_scores_are_large(kind, size):
    q, k, v = (size * rnd(i, 1, 1, 1100, 8).to(kind) for i in range(3))
    assert relative_error(attention(q, k, v).double(), attended(q, k, v)) < 1e-3 + CLOSE[kind]


@with_bfloat16
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    d=st.integers(1, 70),
    size=st.sampled_from([0, 0.1, 1, 3, 10]),
    common=st.sampled_from([0, 1, 30]),
    seed=st.integers(0, 99),
)
def test_by_sigmoid_is_the_formula_or_says_that_it_cannot(n, m, d, size, common, seed):
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(dot_product, "BLOCK", (16, 11))
        # What all keys share adds the same to all scores of a query.
        q, k, v = size * rnd(seed, n, d), size * rnd(seed + 1, m, d) + common * rnd(3, d), rnd(seed + 2, m, d)
        q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
        out = by_sigmoid(q, k, v)
        spread = torch.softmax(q.double() @ k.double().T * d**-0.5, dim=-1)
        if out is None:
            assert size == 10
        else:
            # Rounding moves a score by its 256th part, and a weight by as much as the score.
            scores = (q.double().abs() @ (k.double() - k.double().mean(0)).abs().T * d**-0.5).max()
            assert (out.double() - spread @ v.double()).abs().max() < (0.03 + scores / 64) * v.abs().max()


@pytest.mark.parametrize("common", [0, 9_000, 11_000, 20_000])
def test_what_all_keys_share_is_taken_out_of_the_scores_exactly(common, monkeypatch):
    def in_float32(x, weight, then="none"):
        y = x.float() @ weight.float().T
        y = torch.sigmoid(y) if then == "sigmoid" else y
        return torch.where(y.abs() < 2**-126, 0, y).to(x.dtype)

    monkeypatch.setattr(dot_product, "product", in_float32)  # not every processor has it in bfloat16
    q, k, v = rnd(1, 200, 40), rnd(2, 300, 40), rnd(3, 300, 40).bfloat16()
    q[:, 0], k[:, 0] = 64, common * 40**0.5 / 64  # which adds to every score what all keys share
    q, k = q.bfloat16(), k.bfloat16()
    out = by_sigmoid(q, k, v)
    assert out is not None and relative_error(out.double(), attended(q, k, v)) < 1e-2


@pytest.mark.parametrize("queries", [20, 1100])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_one_batch_of_keys_serves_all_queries_and_others_must_match(queries, kind):
    q, k, v = rnd(0, 2, 4, queries, 8), rnd(1, 1, 4, 1100, 8), rnd(2, 1, 4, 1100, 8)
    q, k, v = (it.to(kind) for it in (q, k, v))
    expected = attention(q, k.repeat(2, 1, 1, 1), v.repeat(2, 1, 1, 1))
    assert relative_error(attention(q, k, v), expected) < (2e-6 if kind == torch.float32 else 2e-2)
    for other in (k.repeat(3, 1, 1, 1), k[..., :1000, :], k.half(), k[..., :4]):
        with pytest.raises(RuntimeError):
            attention(q, other, v.repeat(len(other), 1, 1, 1))


def test_attention_computes_where_its_inputs_are_whatever_the_default_device():
    for q, k, v in ((rnd(i, 1, 2, n, 8) for i in range(3)) for n in (20, 1100)):
        expected = attention(q, k, v)
        with torch.device("meta"):
            assert torch.equal(attention(q, k, v), expected)


@with_bfloat16
def test_scores_too_far_apart_for_a_sigmoid_are_torchs():
    # The first query's score on the eighth key is 90 above all others.
    q, k, v = torch.zeros(3, 1, 1, 1100, 16).bfloat16()
    q[..., 0, 0] = k[..., 7, 0] = 360**0.5
    v[..., 7, :] = 1
    assert by_sigmoid(q[0, 0], k[0, 0], v[0, 0]) is None
    out = attention(q, k, v)[0, 0]
    assert torch.equal(out[0], torch.ones(16).bfloat16())
    assert relative_error(out[1:].double(), torch.full((1099, 16), 1 / 1100).double()) < 1e-2


@with_bfloat16
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("of", range(3), ids=["queries", "keys", "values"])
def test_what_is_no_number_shows(number, of):
    inputs = [rnd(i, 1, 1, 1100, 8).bfloat16() for i in range(3)]
    inputs[of][0, 0, 5, 3] = number
    assert not attention(*inputs).isfinite().all()


@with_bfloat16
def test_many_scores_in_bfloat16_without_amx_are_by_sigmoid_and_nothing_else(monkeypatch):
    called = Mock(wraps=by_sigmoid)
    monkeypatch.setattr(dot_product, "by_sigmoid", called)
    many, few = rnd(1, 1, 2, 1024, 8), rnd(2, 1, 2, 1023, 8)
    attention(many, many, many)
    attention(*3 * [few.bfloat16()])
    with torch.enable_grad():
        attention(*3 * [many.bfloat16()])
    assert not called.called
    attention(*3 * [many.bfloat16()])
    assert called.call_count == 2  # each head
    monkeypatch.setattr(dot_product, "HAS_AMX", True)
    attention(*3 * [many.bfloat16()])
    assert called.call_count == 2


def test_attention_in_mixed_precision_is_float32_forwards_and_backwards():
    q, k, v = (rnd(seed, 2, 2, 12, 8).bfloat16().requires_grad_() for seed in (1, 2, 3))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        with torch.autocast("cpu", torch.bfloat16):
            out = attention(q, k, v)
        expected = attended(*exact)
        gradients = torch.autograd.grad(out.float().sum(), (q, k, v))
        exact_gradients = torch.autograd.grad(expected.sum(), exact)
    assert out.dtype == torch.bfloat16
    assert relative_error(out.double(), expected) < 2**-8  # rounded once
    for gradient, known in zip(gradients[1:], exact_gradients[1:], strict=True):
        assert relative_error(gradient.double(), known) < 5e-3
