"""Attention by a processor's vectors, against its formula in float64, in each form that runs here."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldm.modules import vectors
from ldm.modules.dot_product import attention
from ldm.modules.onednn import HAS_AVX512
from ldm.modules.vectors import by_vectors
from ldm.study.bench.rounds import peak_memory
from tests.conftest import on_threads, rnd
from tests.modules.kinds import FORM_KINDS, attended, library, only_here

pytestmark = only_here
ROUNDED = {torch.float32: 0, torch.bfloat16: 2**-8}  # by which weights and what comes out are, of the largest


@pytest.fixture(params=FORM_KINDS)
def kind(request, monkeypatch):
    """The precision of one form after the other, which alone is there."""
    kind = FORM_KINDS[request.param]
    monkeypatch.setattr(vectors, "LIBRARIES", {kind: library(vectors, request.param)})
    monkeypatch.setattr("ldm.modules.dot_product.HAS_AMX", False)
    return kind


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    n=st.integers(1, 300),
    m=st.integers(1, 300),
    parts=st.integers(1, 40),
    size=st.sampled_from([0, 0.1, 1, 3]),
    common=st.sampled_from([0, 1, 30]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_it_is_the_formula(kind, batch, heads, n, m, parts, size, common, threads, seed):
    d = parts * vectors.DOWN[kind]
    # As a U-Net's heads lie: beside each other in every token. What all keys share takes scores far away.
    q, k, v = (rnd(seed + i, batch, length, heads, d).transpose(1, 2) for i, length in enumerate((n, m, m)))
    q, k, v = (size * q).to(kind), (size * k + common * rnd(7, d)).to(kind), v.to(kind)
    with on_threads(threads):
        out = by_vectors(q, k, v)
    assert out.dtype == kind and out.shape == q.shape
    # A score is rounded like the largest that are summed in it, and what it is off by multiplies its weight.
    largest = (q.double().abs() @ k.double().abs().mT).max().item() * d**-0.5
    off = ROUNDED[kind] + 1e-6 * (1 + largest)
    assert ((out.double() - attended(q, k, v)).abs() <= off * v.abs().max()).all()


@pytest.mark.parametrize(
    ("n", "m", "d", "times"),
    [
        (4096, 4096, 40, 1.1),
        (1024, 1024, 80, 1.1),
        (4096, 77, 40, 1.1),
        (1024, 1024, 64, 1.1),
        (64, 64, 160, 1.1),
        (512, 512, 512, 2),  # since a score is one sum after the other
    ],
)
def test_attention_of_a_network_is_about_as_near_to_the_formula_as_torchs(kind, n, m, d, times, monkeypatch):
    monkeypatch.setattr(vectors, "WIDEST", 512)
    q, k, v = (rnd(i, 1, length, 2, d).to(kind).transpose(1, 2) for i, length in enumerate((n, m, m)))
    made, torchs, expected = attention(q, k, v), F.scaled_dot_product_attention(q, k, v), attended(q, k, v)
    assert (made.double() - expected).norm() < times * (torchs.double() - expected).norm()
    assert not torch.equal(made, torchs)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts peaks anew")
@pytest.mark.skipif(not HAS_AVX512, reason="AVX2 leaves heads of 512 to torch")
def test_a_wide_heads_keys_lie_in_memory_once_however_many_threads_there_are(kind):
    q, k, v = (rnd(seed, 1, 1, length, 512).to(kind) for seed, length in enumerate((400, 8192, 8192)))
    peaks = []
    for threads in (1, 16):
        with on_threads(threads):
            peaks.append(peak_memory(lambda: by_vectors(q, k, v), torch.device("cpu")))
    blocks = 4 * 2 * 512 * 48 * 4  # bytes: queries and sums of four blocks of 48, which each thread has
    assert peaks[1] - peaks[0] < 16 * blocks + k.nbytes / 2


def test_wide_heads_and_uneven_ones_are_torchs(kind, monkeypatch):
    monkeypatch.setattr(vectors, "WIDEST", 160)
    for d in (vectors.DOWN[kind] // 2, 15, 160 + vectors.DOWN[kind]):
        assert by_vectors(*3 * [rnd(4, 1, 1, 8, d).to(kind)]) is None


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("of", range(3), ids=["queries", "keys", "values"])
def test_what_is_not_finite_shows(kind, number, of):
    inputs = [1 + rnd(i, 1, 2, 100, 8).abs().to(kind) for i in range(3)]
    inputs[of][0, 1, 99, 7] = number
    made, expected = by_vectors(*inputs), attended(*inputs)
    assert torch.equal(made.isfinite(), expected.isfinite())
    assert not made.isfinite().all()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_without_a_library_attention_is_torchs(kind, monkeypatch):
    monkeypatch.setattr(vectors, "LIBRARIES", {})
    monkeypatch.setattr("ldm.modules.dot_product.HAS_AMX", False)
    q = rnd(1, 1, 2, 64, 8).to(kind)
    assert torch.equal(attention(q, q, q), F.scaled_dot_product_attention(q, q, q))
