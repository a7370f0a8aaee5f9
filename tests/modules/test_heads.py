"""What both libraries of attention promise: that of tiles in bfloat16 and that of vectors in float32."""

from unittest.mock import Mock

import pytest
import torch

from ldm.modules import dot_product, tiles, vectors
from ldm.modules.dot_product import attention
from tests.conftest import on_threads, relative_error, rnd
from tests.modules.kinds import attended, only_here

pytestmark = only_here


def library(module, name, kind, close):
    skip = pytest.mark.skipif(module.LIBRARY is None, reason="no such processor, or no C compiler for it")
    return pytest.param(name, kind, close, marks=skip, id=name)


each_library = pytest.mark.parametrize(
    ("name", "kind", "close"),
    [library(tiles, "by_tiles", torch.bfloat16, 6e-3), library(vectors, "by_vectors", torch.float32, 1e-6)],
)


@each_library
def test_the_parts_that_threads_take_do_not_show(name, kind, close):
    work = getattr(dot_product, name)
    q, k, v = (rnd(i, 1, 3, 700, 24).to(kind) for i in range(3))
    whole = work(q, k, v)
    with on_threads(3 - torch.get_num_threads() % 3):
        assert torch.equal(work(q, k, v), whole)
    assert torch.equal(work(q[:, 1:, 131:], k[:, 1:], v[:, 1:]), whole[:, 1:, 131:])


@each_library
def test_any_strides_are_taken_but_the_last_and_no_other_shapes(name, kind, close):
    work = getattr(dot_product, name)
    q = rnd(1, 40, 2, 3, 16).to(kind).permute(1, 2, 0, 3)
    k = rnd(2, 1, 1, 50, 16).to(kind).expand(2, 3, 50, 16)
    v = rnd(3, 2, 3, 100, 16).to(kind)[:, :, ::2]
    assert relative_error(work(q, k, v).double(), attended(q, k, v)) < close
    assert work(q.mT, k.mT, v.mT) is None
    assert work(q, k, v[..., :8]) is None and work(q[:0], k[:0], v[:0]) is None


@each_library
def test_one_key_far_above_the_others_takes_all(name, kind, close):
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


@each_library
def test_it_is_taken_in_its_precision_at_inference_alone(name, kind, close, monkeypatch):
    called = Mock(wraps=getattr(dot_product, name))
    monkeypatch.setattr(dot_product, name, called)
    q = rnd(1, 1, 2, 64, 8)
    [other] = {torch.float32, torch.bfloat16} - {kind}
    attention(*3 * [q.to(other)])
    with torch.enable_grad():
        attention(*3 * [q.to(kind)])
    assert not called.called
    attention(*3 * [q.to(kind)])
    assert called.call_count == 1
