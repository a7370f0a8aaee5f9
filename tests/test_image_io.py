"""Pictures on disk: whole files or none, settings that come back, sheets with even margins."""

import errno
import json
import os
import stat
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.errors import InputError
from ldm.files import written_whole
from ldm.image_io import (
    PAPER,
    Picture,
    grid,
    is_whole,
    next_number,
    read_picture,
    read_record,
    save_png,
    writable_folder,
)


def picture(height: int, width: int, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_picture_comes_back_with_its_texts(tmp_path: Path) -> None:
    record = {"prompt": "ein Käfer 🐞, 甲虫", "scale": 7.5, "overrides": [], "freeu": None}
    save_png(tmp_path / "a.png", picture(16, 24), "ein Käfer 🐞\nSteps: 2", record)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(image, picture(16, 24))
        assert image.info["parameters"] == "ein Käfer 🐞\nSteps: 2"
        assert json.loads(image.info["freeu"]) == record
    assert read_record(tmp_path / "a.png") == record


def test_plain_text_is_written_in_the_chunk_that_every_reader_knows(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", picture(8, 8), "a cat\nSteps: 2", {"prompt": "a cat 🐞"})
    content = (tmp_path / "a.png").read_bytes()
    assert content.count(b"tEXt") == 2 and b"iTXt" not in content


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_a_fault_in_writing_leaves_the_folder_as_it_was(fault: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(fault), written_whole(path) as file:
        file.write(b"half of it")
        raise fault
    assert not list(tmp_path.iterdir())

    path.write_bytes(b"before")
    with pytest.raises(fault), written_whole(path) as file:
        file.write(b"half of it")
        raise fault
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"before"]


def test_a_file_is_seen_only_when_it_is_whole(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a.png") as file:
        file.write(b"all of it")
        assert not list(tmp_path.glob("*.png"))
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]


def test_a_file_has_the_rights_that_the_user_s_mask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_png(tmp_path / "a.png", picture(8, 8))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640


def test_a_disk_that_refuses_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.a\.png cannot be written: No such file"):
        save_png(tmp_path / "gone" / "a.png", picture(8, 8))
    with (
        pytest.raises(InputError, match="cannot be written: full"),
        written_whole(tmp_path / "b.png") as file,
    ):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "full")
    with (
        pytest.raises(InputError, match="cannot be written: encoder error -2"),
        written_whole(tmp_path / "c.png"),
    ):
        raise OSError("encoder error -2")  # as Pillow's, which have no number
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_a_picture_of_any_kind_is_read_in_three_colours(mode: str, tmp_path: Path) -> None:
    grey = Image.new("L", (6, 4), 255)
    grey.paste(0, (0, 0, 3, 4))
    grey.convert(mode).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    assert read.shape == (4, 6, 3) and read.dtype == np.uint8
    assert (read[:, :3] == 0).all() and (read[:, 3:] == 255).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture"),
        (b"words", "not a picture"),
        (None, "no picture"),
    ],
)
def test_what_is_no_picture_is_said_plainly(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_record(path)
    with pytest.raises(InputError, match="not a picture"):
        read_record(tmp_path)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "7", '"words"', "[" * 100_000, "9" * 5000, "\xff"])
def test_a_picture_without_settings_is_said_plainly(text: str | None, tmp_path: Path) -> None:
    info = PngInfo()
    if text is not None:
        info.add_text("freeu", text)
    Image.fromarray(picture(8, 8)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(InputError, match="carries no settings"):
        read_record(tmp_path / "a.png")


def test_a_picture_of_a_hundred_billion_pixels_is_not_opened(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", picture(8, 8))
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = (400_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="not a picture that can be read"):
        read_record(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png cannot be read: .*decompression bomb"):
        read_picture(tmp_path / "a.png")
    assert not is_whole(tmp_path / "a.png")


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_picture_never_gives_more_than_one_kind_of_fault(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.png"
    save_png(path, picture(8, 8), "a cat", {"prompt": "a cät"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert isinstance(read_record(path), dict)
    except InputError as fault:
        assert str(path) in str(fault)


def test_a_folder_is_made_and_a_file_in_its_way_is_named(tmp_path: Path) -> None:
    assert writable_folder(tmp_path / "a" / "b").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"Nothing can be written into {path}"):
            writable_folder(path)


def test_numbers_go_on_above_the_highest(tmp_path: Path) -> None:
    assert next_number(tmp_path) == next_number(tmp_path, "grid-") == 0
    for name in ("00003.png", "00001.png", "grid-0007.png", "me.png", "00009.jpg", "x-00012.png", "²2.png"):
        (tmp_path / name).touch()
    assert next_number(tmp_path) == 4
    assert next_number(tmp_path, "grid-") == 8


@given(
    count=st.integers(1, 9),
    columns=st.integers(1, 12),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    margin=st.integers(0, 5),
)
def test_a_grid_shows_every_picture_in_its_place_and_paper_elsewhere(
    count: int, columns: int, height: int, width: int, margin: int
) -> None:
    pictures = [np.full((height, width, 3), i, np.uint8) for i in range(count)]
    sheet = grid(pictures, columns, margin)
    across, down = min(columns, count), -(-count // columns)
    assert sheet.shape == (down * (height + margin) + margin, across * (width + margin) + margin, 3)
    for i in range(count):
        top, left = margin + i // across * (height + margin), margin + i % across * (width + margin)
        assert (sheet[top : top + height, left : left + width] == i).all()
        sheet[top : top + height, left : left + width] = PAPER
    assert (sheet == PAPER).all()


def test_a_grid_gives_pictures_of_several_sizes_cells_of_one() -> None:
    sheet = grid([picture(8, 20), picture(12, 10), picture(4, 4)], columns=2, margin=3)
    assert sheet.shape == (2 * 15 + 3, 2 * 23 + 3, 3)
    assert np.array_equal(sheet[3:11, 3:23], picture(8, 20))
    assert np.array_equal(sheet[3:15, 26:36], picture(12, 10))
    assert np.array_equal(sheet[18:22, 3:7], picture(4, 4))
    assert (sheet[3:15, 36:] == PAPER).all()
