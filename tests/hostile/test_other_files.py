"""Files that are no checkpoint, or safetensors whose header lies."""

import json
from pathlib import Path

import pytest

from ldm.errors import InputError
from ldm.weights.reading import read_tensors
from ldm.weights.torch_file import LEGACY_START, ZIP_START
from tests.hostile.files import STORAGE, archive, state_dict, tensor


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"a text\nof two lines\n", "is a text"),
        (b"\xef\xbb\xbf  <!DOCTYPE html><html>", "is a web page"),
        (b"<?xml version='1.0'?>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n", "Git LFS pointer"),
        (b"\x1f\x8b\x08" + bytes(99), "neither safetensors nor"),
        (bytes(4096), "neither safetensors nor"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "neither safetensors nor"),
        (b"PK\x05\x06" + bytes(18), "neither safetensors nor"),
        (ZIP_START, "is damaged"),
        (LEGACY_START, "breaks off"),
        (LEGACY_START + b"\x80\x02M\xe9\x03." * 4, "holds no state dict"),
        (b"\x80\x04N.", "a pickle that torch.save did not write"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_tensors(path)
    assert said in str(refused.value) and str(path) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="big-endian"):
        read_tensors(archive(tmp_path / "a.ckpt", state_dict(w=tensor()), byteorder=b"big"))
    assert read_tensors(archive(tmp_path / "b.ckpt", state_dict(w=tensor()), byteorder=b"little"))


HEADERS = {
    "longer than the file": {"length": 10**6},
    "longer than memory": {"length": 2**63},
    "not JSON": {"text": b"{{{{"},
    "not an object": {"text": b"[]"},
    "deep": {"text": b"{" + b'"a":{' * 10_000},
    "past the end": {"end": 1000},
    "short of the shape": {"end": 4},
    "negative shape": {"shape": [-12]},
    "huge shape": {"shape": [2**62, 2**62]},
    "backwards": {"begin": 48, "end": 0},
    "unknown type": {"dtype": "F31"},
}


@pytest.mark.parametrize("lie", HEADERS)
def test_a_lying_safetensors_header_is_refused(lie: str, tmp_path: Path) -> None:
    claim = {"dtype": "F32", "shape": [12], "begin": 0, "end": 48} | HEADERS[lie]
    entry = {"dtype": claim["dtype"], "shape": claim["shape"], "data_offsets": [claim["begin"], claim["end"]]}
    text = claim.get("text", json.dumps({"w": entry}).encode())
    path = tmp_path / "a.safetensors"
    path.write_bytes(claim.get("length", len(text)).to_bytes(8, "little") + text + STORAGE)
    with pytest.raises(InputError):
        read_tensors(path)
