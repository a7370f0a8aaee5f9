"""Attention against its formula in float64, wherever its products come from."""

import pytest
import torch

from ldm.modules import dot_product
from ldm.modules.dot_product import attention
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


class Attention(torch.nn.Module):
    """To be exported."""

    def forward(self, q, k, v):
        return attention(q, k, v)


@pytest.mark.slow
def test_exported_it_takes_any_number_of_keys():
    def inputs(keys):
        return tuple(rnd(i, 1, 2, n, 8) for i, n in enumerate((20, keys, keys)))

    keys = {2: torch.export.Dim("keys", min=2, max=4096)}
    how = {"dynamic_shapes": (None, keys, keys), "strict": False}
    exported = torch.export.export(Attention(), inputs(64), **how).module()
    for given in map(inputs, (64, 77)):
        assert relative_error(exported(*given), attended(*given)) < 2e-6


@with_bfloat16
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("of", range(3), ids=["queries", "keys", "values"])
def test_what_is_no_number_shows(number, of):
    inputs = [rnd(i, 1, 1, 1100, 8).bfloat16() for i in range(3)]
    inputs[of][0, 0, 5, 3] = number
    assert not attention(*inputs).isfinite().all()


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
