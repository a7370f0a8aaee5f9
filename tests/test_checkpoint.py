"""Reading checkpoints of every layout, and naming what is none."""

import json
import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ldm.errors import InputError
from ldm.weights.reading import read_tensors
from tests.checkpoints import Tiny


def lightning_checkpoint(model: nn.Module) -> dict[str, object]:
    """What Lightning saves: the state dict among much else, objects of its own and of others included."""
    optimizer = torch.optim.AdamW(model.parameters(), eps=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return {
        "epoch": 3,
        "global_step": 470_000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": model.state_dict(),
        "callbacks": {ModelCheckpoint: ModelCheckpoint(monitor="val/loss"), "path": Path("last.ckpt")},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [torch.optim.lr_scheduler.StepLR(optimizer, 1000).state_dict()],
        "hyper_parameters": OmegaConf.create({"unet_config": {"channels": [1, 2, 4]}}),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_every_value_is_that_of_the_format_s_own_reader(
    layout: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = Tiny().to(dtype)
    path = tmp_path / "misnamed.bin"
    if layout == "safetensors":
        save_file({key: value.clone() for key, value in model.state_dict().items()}, path)
        expected = model.state_dict()
    else:
        torch.save(lightning_checkpoint(model), path, _use_new_zipfile_serialization=layout == "zip")
        expected = torch.load(path, weights_only=False)["state_dict"]

    tensors = read_tensors(path)
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype
        assert tensors[key].stride() == value.stride()
        assert tensors[key].data_ptr() % value.itemsize == 0
        assert torch.equal(tensors[key], value)


def test_safetensors_is_known_whatever_the_length_of_its_header(tmp_path: Path) -> None:
    first_bytes = set()
    for spaces in range(0, 256 * 8, 8):
        save_file({"w": torch.ones(2)}, tmp_path / "a.ckpt", metadata={"note": "x" * spaces})
        first_bytes.add((tmp_path / "a.ckpt").read_bytes()[0])
        assert torch.equal(read_tensors(tmp_path / "a.ckpt")["w"], torch.ones(2))
    assert {0x80, ord("P"), ord(" ")} <= first_bytes


def test_types_without_a_storage_class_and_parameters_are_read(tmp_path: Path) -> None:
    state = {
        "eighth": torch.randn(9).to(torch.float8_e4m3fn),
        "parameter": nn.Parameter(torch.randn(3)),
        "transposed": torch.randn(3, 5).T,
        "scalar": torch.tensor(0.18215),
        "empty": torch.empty(0, 5),
        "truth": torch.tensor([True, False]),
    }
    torch.save(state, tmp_path / "a.pt")
    tensors = read_tensors(tmp_path / "a.pt")
    assert tensors.keys() == state.keys()
    for key, value in state.items():
        assert (tensors[key].dtype, tensors[key].shape) == (value.dtype, value.shape)
        assert torch.equal(tensors[key].float(), value.float())


@pytest.mark.parametrize("kind", ["float8_e4m3fnuz", "float8_e5m2fnuz", "uint16", "uint32", "uint64"])
def test_newer_types_are_read_as_torch_saves_them(kind: str, tmp_path: Path) -> None:
    saved = torch.tensor([1.0, 0.0, 2.0]).to(getattr(torch, kind))
    torch.save({"w": saved}, tmp_path / "a.pt")
    tensor = read_tensors(tmp_path / "a.pt")["w"]
    assert tensor.dtype == saved.dtype
    assert tensor.float().tolist() == [1, 0, 2]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_every_protocol_of_pickles_is_read(layout: str, protocol: int, tmp_path: Path) -> None:
    state, path = Tiny().state_dict(), tmp_path / "a.pt"
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=layout == "zip")
    tensors = read_tensors(path)
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[key], value) for key, value in state.items())


def test_a_tensor_that_repeats_its_numbers_is_refused_with_the_remedy(tmp_path: Path) -> None:
    repeated, path = torch.ones(1).expand(320), tmp_path / "a.pt"
    torch.save({"w": repeated}, path)
    with pytest.raises(InputError) as refused:
        read_tensors(path)
    assert str(refused.value) == (
        f"{path} repeats the numbers of the tensor 'w' (expand): save it after .contiguous()"
    )
    torch.save({"w": repeated.contiguous()}, path)
    assert torch.equal(read_tensors(path)["w"], torch.ones(320))


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_attributes_of_tensors_are_left_out_and_their_values_are_read(layout: str, tmp_path: Path) -> None:
    state = {"w": torch.randn(3, 4).T, "parameter": Tiny().out.weight}
    if layout == "zip":  # the older one knows no such types
        state["eighth"] = torch.randn(9).to(torch.float8_e5m2)
    for value in state.values():
        value.note = {"scale": torch.ones(1)}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=layout == "zip")
    expected = torch.load(tmp_path / "a.pt", weights_only=False)
    tensors = read_tensors(tmp_path / "a.pt")
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert value.note["scale"] == 1 and not hasattr(tensors[key], "note")
        assert (tensors[key].dtype, tensors[key].stride()) == (value.dtype, value.stride())
        assert torch.equal(tensors[key].float(), value.float())


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("marked", [False, True])
def test_a_tensor_whose_sign_stands_apart_is_refused(layout: str, marked: bool, tmp_path: Path) -> None:
    negative = torch.complex(torch.ones(3), torch.ones(3)).conj().imag
    if marked:
        negative.note = "imaginary"
    path = tmp_path / "a.pt"
    torch.save({"w": negative}, path, _use_new_zipfile_serialization=layout == "zip")
    assert torch.equal(torch.load(path, weights_only=False)["w"], -torch.ones(3))
    with pytest.raises(
        InputError, match=r"the tensor 'w' with its sign apart: save it after resolve_neg\(\)"
    ):
        read_tensors(path)
    torch.save({"w": negative.resolve_neg()}, path)
    assert torch.equal(read_tensors(path)["w"], -torch.ones(3))


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_writing_to_a_tensor_changes_no_file(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=layout == "zip")
    before = path.read_bytes()
    read_tensors(path)["w"].zero_()
    assert path.read_bytes() == before


def safetensors_of(kind: str, size: int) -> bytes:
    """A file of one tensor of four numbers of this kind, in so many bytes."""
    header = json.dumps({"w": {"dtype": kind, "shape": [4], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def skip_unless_known(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):
            return
    except SafetensorError:
        pytest.skip("this release of safetensors is older than the kind of number")


@pytest.mark.parametrize(("kind", "size"), [("C64", 32), ("F4", 2), ("F6_E2M3", 3), ("F8_E8M0", 4)])
def test_numbers_that_no_weights_are_made_of_are_told_by_their_kind(
    kind: str, size: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_of(kind, size))
    skip_unless_known(path)
    with pytest.raises(InputError) as refused:
        read_tensors(path)
    assert str(refused.value) == (
        f"{path} has the tensor 'w' in {kind}, which is not read: convert the file to float16 or float32"
    )


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("F64", torch.float64), ("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16),
        ("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2), ("BOOL", torch.bool),
        ("F8_E4M3FNUZ", torch.float8_e4m3fnuz), ("F8_E5M2FNUZ", torch.float8_e5m2fnuz),
        ("I64", torch.int64), ("I32", torch.int32), ("I16", torch.int16), ("I8", torch.int8),
        ("U64", torch.uint64), ("U32", torch.uint32), ("U16", torch.uint16), ("U8", torch.uint8),
    ],
)  # fmt: skip
def test_numbers_of_every_other_kind_are_read(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_of(kind, 4 * dtype.itemsize))
    skip_unless_known(path)
    tensor = read_tensors(path)["w"]
    assert tensor.dtype == dtype
    assert torch.equal(tensor.float(), torch.zeros(4))


@pytest.mark.parametrize("names", [(b"a\xff.safetensors",), (b"folder\xff", b"a.safetensors")])
def test_a_path_that_is_not_utf_8_is_told_from_a_damaged_file(
    names: tuple[bytes, ...], tmp_path: Path
) -> None:
    path = tmp_path.joinpath(*map(os.fsdecode, names))
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(safetensors_of("F32", 16))
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(InputError) as refused:
        read_tensors(path)
    assert str(refused.value) == (
        f"{path} has a name that is not UTF-8, as safetensors needs it: rename the file or its folder"
    )


OTHERS = {
    "empty": (b"", "empty"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n",
        "Git LFS pointer",
    ),
    "HTML": (b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Sign in", "web page"),
    "text": ("Zugang für Mitglieder\r\n".encode() * 40, "text"),
    "JSON": (b'{"error": "Repository not found"}', "text"),
    "zeros": (bytes(4096), "neither safetensors nor"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither safetensors nor"),
    "zip cut off": (b"PK\x03\x04" + bytes(200), "cut off"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_checkpoint_is_called_by_its_name(kind: str, tmp_path: Path) -> None:
    content, name = OTHERS[kind]
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=name) as refused:
        read_tensors(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_folder_and_a_whole_module_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: give the checkpoint in one file"):
        read_tensors(tmp_path)
    torch.save(Tiny(), tmp_path / "whole.pt")
    with pytest.raises(InputError, match="no state dict"):
        read_tensors(tmp_path / "whole.pt")
