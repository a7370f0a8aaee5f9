"""Files cut off or damaged at any place."""

import io
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ldm.errors import InputError
from ldm.weights.reading import read_tensors

STATE = {"a.weight": torch.randn(3, 5), "a.bias": torch.randn(5).half(), "b": torch.arange(4)}


def whole_files() -> dict[str, bytes]:
    """A small state dict in each layout."""
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": STATE, "epoch": 3}, zipped)
    torch.save(STATE, legacy, _use_new_zipfile_serialization=False)
    return {"zip": zipped.getvalue(), "legacy": legacy.getvalue(), "safetensors": save(STATE)}


WHOLE = whole_files()


@pytest.mark.parametrize("layout", WHOLE)
@settings(max_examples=120)
@given(data=st.data())
def test_a_truncated_file_is_refused_or_read_whole(
    layout: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = WHOLE[layout]
    path = tmp_path_factory.getbasetemp() / "truncated.ckpt"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        tensors = read_tensors(path)
    except InputError as refused:
        assert len(str(refused).splitlines()) == 1
    else:
        assert tensors.keys() == STATE.keys()
        assert all(torch.equal(tensors[key], value) for key, value in STATE.items())


@pytest.mark.parametrize("layout", WHOLE)
@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(
    layout: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(WHOLE[layout])
    places = st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=8)):
        damaged[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.ckpt"
    path.write_bytes(damaged)
    with suppress(InputError):
        for it in read_tensors(path).values():
            it.float().sum()
