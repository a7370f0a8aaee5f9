"""Zip archives with names that lead elsewhere, and tables of contents that lie."""

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from ldm.errors import InputError
from ldm.weights.reading import read_tensors
from tests.hostile.files import NUMBERS, archive, state_dict, tensor

# Names that lead elsewhere when an archive is unpacked, and what unpackers take for links.
ELSEWHERE = {
    "up": "../../evil",
    "absolute": "/tmp/evil",
    "home": "~/evil",
    "drive": "C:\\evil",
    "backslashes": "..\\..\\evil",
    "nothing": "",
    "long": "a" * 60_000,
    "link": "link",
}


@pytest.mark.parametrize("trick", ELSEWHERE)
def test_a_zip_whose_names_lead_elsewhere_is_only_read(trick: str, tmp_path: Path) -> None:
    root = ELSEWHERE[trick] + "/"
    path = archive(tmp_path / "deep.ckpt", state_dict(w=tensor()), root=root)
    with zipfile.ZipFile(path, "a") as file:
        entry = zipfile.ZipInfo(ELSEWHERE[trick])
        if trick == "link":
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(entry, b"/etc/passwd")
    assert torch.equal(read_tensors(path)["w"], NUMBERS.view(3, 4))
    assert [it.name for it in tmp_path.iterdir()] == ["deep.ckpt"]


def directory(path: Path, change: Callable[[bytearray, int], None]) -> Path:
    """A whole archive whose end record, or what else that function is shown, says something else."""
    archive(path, state_dict(w=tensor()))
    content = bytearray(path.read_bytes())
    change(content, content.rindex(b"PK\x05\x06"))
    path.write_bytes(content)
    return path


def put(offset: int, number: int, width: int) -> Callable[[bytearray, int], None]:
    """Writes a number so many bytes behind the end record, or into the last entry where it is negative."""

    def change(content: bytearray, end: int) -> None:
        start = end + offset if offset >= 0 else content.rindex(b"PK\x01\x02") - offset
        content[start : start + width] = number.to_bytes(width, "little")

    return change


DIRECTORIES = {
    "size that reaches before the file": put(12, 2**32 - 2, 4),
    "size for another layout that is not there": put(12, 2**32 - 1, 4),
    "offset past the end": put(16, 2**31, 4),
    "of other disks": put(4, 7, 2),
    "entry that claims 4 GB": put(-24, 2**32 - 2, 4),
    "entry past the end": put(-42, 2**31, 4),
    "entry with a long name": put(-28, 2**16 - 1, 2),
    "entry with a long field": put(-30, 2**16 - 1, 2),
    "entry of an unknown method": put(-10, 99, 2),
    "encrypted entry": put(-8, 1, 2),
    "entry of a later version": put(-6, 2**16 - 1, 2),
    "end cut off": lambda content, end: content.__delitem__(slice(end + 10, None)),
    "no end": lambda content, end: content.__delitem__(slice(end, None)),
}
SEEN_THROUGH = {"of other disks", "entry with a long name", "entry with a long field"}


@pytest.mark.parametrize("lie", DIRECTORIES)
def test_a_lying_table_of_contents_is_seen_through_or_refused(lie: str, tmp_path: Path) -> None:
    path = directory(tmp_path / "a.ckpt", DIRECTORIES[lie])
    try:
        tensors = read_tensors(path)
    except InputError as refused:
        assert len(str(refused).splitlines()) == 1 and str(path) in str(refused)
    else:
        assert lie in SEEN_THROUGH
        assert torch.equal(tensors["w"], NUMBERS.view(3, 4))


def test_the_last_of_two_entries_of_one_name_is_taken_as_zip_tools_do(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.ckpt", state_dict(w=tensor()), **{"data/1": b""})
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("archive/data/0", bytes(48))
    assert torch.equal(read_tensors(path)["w"], torch.zeros(3, 4))


def test_a_compressed_zip_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", state_dict(w=tensor()))
        file.writestr("archive/data/0", bytes(100 << 20))
    with pytest.raises(InputError, match="compressed"):
        read_tensors(path)


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.safetensors", save({"w": NUMBERS}))
    with pytest.raises(InputError, match="unpack it"):
        read_tensors(path)
