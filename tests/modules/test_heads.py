"""What the libraries of attention promise: that of tiles, and each form of that of vectors that runs here."""

import pytest
import torch

from ldm.modules import dot_product, tiles, vectors
from ldm.modules.dot_product import attention
from tests.conftest import on_threads, relative_error, rnd
from tests.modules.kinds import attended, library, only_here

pytestmark = only_here


CASES = {
    "tiles": (torch.bfloat16, 6e-3),
    "avx2": (torch.float32, 1e-6),
    "avx512": (torch.float32, 1e-6),
    "avx512_bf16": (torch.bfloat16, 3e-3),
}


@pytest.fixture(params=CASES)
def case(request, monkeypatch):
    """The name of attention by one library after the other, its precision, and how close it has to come."""
    form, (kind, close) = request.param, CASES[request.param]
    if form == "tiles":
        if tiles.LIBRARY is None:
            pytest.skip("no such processor, or no C compiler for it at the installation")
        return "by_tiles", kind, close
    monkeypatch.setattr(vectors, "LIBRARIES", {kind: library(vectors, form)})
    monkeypatch.setattr(dot_product, "HAS_AMX", False)
    return "by_vectors", kind, close


def test_the_parts_that_threads_take_do_not_show(case):
    name, kind, _ = case
    work = getattr(dot_product, name)
    q, k, v = (rnd(i, 1, 3, 700, 24).to(kind) for i in range(3))
    whole = work(q, k, v)
    with on_threads(2):
        assert torch.equal(work(q, k, v), whole)
    assert torch.equal(work(q[:, 1:, 131:], k[:, 1:], v[:, 1:]), whole[:, 1:, 131:])


def test_any_strides_are_taken_but_the_last_and_no_other_shapes(case):
    name, kind, close = case
    work = getattr(dot_product, name)
    q = rnd(1, 40, 2, 3, 16).to(kind).permute(1, 2, 0, 3)
    k = rnd(2, 1, 1, 50, 16).to(kind).expand(2, 3, 50, 16)
    v = rnd(3, 2, 3, 100, 16).to(kind)[:, :, ::2]
    assert relative_error(work(q, k, v).double(), attended(q, k, v)) < close
    assert work(q.mT, k.mT, v.mT) is None
    assert work(q, k, v[..., :8]) is None and work(q[:0], k[:0], v[:0]) is None


def test_one_key_far_above_the_others_takes_all(case):
    name, kind, _ = case
    work = getattr(dot_product, name)
    # The last block of keys holds it, so that what was summed before is scaled away.
    q, k, v = torch.zeros(3, 1, 1, 300, 16).to(kind)
    q[..., 0] = k[..., 290, 0] = 60
    v[..., 290, :], v[..., :290, :] = 1, 9
    assert torch.equal(work(q, k, v), torch.ones_like(v))
    # And the first, beside which all later weights vanish.
    k = k.roll(-290, dims=2)
    v = v.roll(-290, dims=2)
    assert torch.equal(work(q, k, v), torch.ones_like(v))


def test_a_lone_key_takes_all_however_low_its_score(case):
    name, kind, _ = case
    q, k = torch.zeros(1, 1, 1000, 8, dtype=kind), torch.zeros(1, 1, 1, 8, dtype=kind)
    q[0, 0, :, 0], k[..., 0] = torch.arange(1000), -2
    v = rnd(1, 1, 1, 1, 8).to(kind)
    assert torch.equal(getattr(dot_product, name)(q, k, v), v.expand_as(q))


@pytest.mark.parametrize("size", [2.0**18, 2.0**50])
def test_the_greatest_score_takes_all_however_far_the_others_are_below(case, size):
    name, kind, close = case
    # Whole numbers, of which sums are exact.
    q, k = (size * (4 * rnd(i, 1, 2, 300, 16)).round().to(kind) for i in range(2))
    v = rnd(2, 1, 2, 300, 16).to(kind)
    assert relative_error(attention(q, k, v).double(), attended(q, k, v)) < close
    assert getattr(dot_product, name)(q, k, v) is None  # it is left to torch


def test_it_is_taken_in_its_precision_at_inference_alone(case, monkeypatch):
    name, kind, _ = case
    work, made = getattr(dot_product, name), []

    def noted(*inputs):
        made.append(work(*inputs))
        return made[-1]

    monkeypatch.setattr(dot_product, name, noted)
    q = rnd(1, 1, 2, 64, 8)
    [other] = {torch.float32, torch.bfloat16} - {kind}
    attention(*3 * [q.to(other)])
    with torch.enable_grad():
        attention(*3 * [q.to(kind)])
    assert all(out is None for out in made)
    expected = attention(*3 * [q.to(kind)])
    assert made[-1] is expected
