"""No code in a file runs, and no other file is touched."""

import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ldm.errors import InputError
from ldm.weights.reading import read_tensors
from ldm.weights.torch_file import LEGACY_START
from tests.hostile.files import NUMBERS, STORAGE, a_global, archive, literal, state_dict, tensor
from tests.hostile.gadgets import TRICKS, gadgets


@pytest.mark.parametrize("trick", TRICKS)
def test_a_pickle_with_code_in_it_gives_its_tensors_and_runs_nothing(trick: str, folder: Path) -> None:
    gadget = gadgets(folder)[trick]
    canary = folder / "canary"

    # The payload is a real one: it works on those who run it.
    with suppress(Exception):
        pickle.loads(b"\x80\x04" + gadget + b".")
    assert canary.exists()
    canary.rmdir() if canary.is_dir() else canary.unlink()
    here = sorted(folder.iterdir())

    path = archive(folder / "a.ckpt", state_dict(payload=gadget, w=tensor()))
    tensors = read_tensors(path)
    assert tensors.keys() == {"w"}
    assert torch.equal(tensors["w"], NUMBERS.view(3, 4))
    assert sorted(folder.iterdir()) == sorted([*here, path])


@pytest.mark.parametrize("trick", TRICKS)
def test_a_stream_that_breaks_off_behind_its_payload_is_refused_and_runs_nothing(
    trick: str, folder: Path
) -> None:
    stream, canary = b"\x80\x04" + gadgets(folder)[trick] + b"\xff", folder / "canary"

    # A real unpickler runs the payload before it finds that the stream breaks off.
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(stream)
    assert canary.exists()
    canary.rmdir() if canary.is_dir() else canary.unlink()

    path = archive(folder / "a.ckpt", stream)
    with pytest.raises(InputError, match=r"pickle .* breaks off"):
        read_tensors(path)
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("place", range(4))
def test_the_five_pickles_of_the_older_layout_run_nothing(trick: str, place: int, folder: Path) -> None:
    pickles = [literal(1001), literal({"little_endian": True}), state_dict(w=tensor())[2:-1], literal(["0"])]
    pickles[place] = gadgets(folder)[trick]
    path = folder / "a.ckpt"
    path.write_bytes(
        LEGACY_START
        + b"".join(b"\x80\x02" + it + b"." for it in pickles)
        + (12).to_bytes(8, "little")
        + STORAGE
    )
    with suppress(InputError):
        assert torch.equal(read_tensors(path)["w"], NUMBERS.view(3, 4))
    assert not (folder / "canary").exists()


def test_a_plain_pickle_is_not_opened(folder: Path) -> None:
    path = folder / "a.ckpt"
    path.write_bytes(b"\x80\x04" + gadgets(folder)["REDUCE of os.system"] + b".")
    with pytest.raises(InputError, match=r"a pickle that torch\.save did not write"):
        read_tensors(path)
    assert not (folder / "canary").exists()


def test_build_sets_no_attribute_on_what_the_reader_knows(tmp_path: Path) -> None:
    attack = b"N}" + literal("hostile") + b"K\x01s\x86b"
    known = {
        "function": a_global("torch._utils", "_rebuild_tensor_v2"),
        "storage": a_global("torch", "FloatStorage"),
        "tensor": a_global("torch", "Tensor"),
        "value": tensor(),
    }
    path = archive(tmp_path / "a.ckpt", state_dict(**{key: it + attack for key, it in known.items()}))
    assert torch.equal(read_tensors(path)["value"], NUMBERS.view(3, 4))
    assert not hasattr(torch.Tensor, "hostile")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "hostile")


def test_reading_opens_that_file_and_does_nothing_else(folder: Path) -> None:
    """Seen by Python's own audit: no other file, no process, no import, no code, whatever the pickle says."""
    files = [
        archive(folder / f"{i}.ckpt", state_dict(payload=gadget, w=tensor()))
        for i, gadget in enumerate(gadgets(folder).values())
    ]
    pid = os.fork()
    if not pid:
        events: list[str] = []
        harmless = (
            "object.",
            "marshal.",
            "builtins.id",
            "sys._getframe",
            "cpython.",
            "mmap.",
            "gc.",
            "array.",
        )

        def hear(event: str, arguments: tuple) -> None:
            if event.startswith(harmless) or (event == "open" and arguments[0] in (path, str(path))):
                return
            events.append(f"{event} {arguments}")

        path = files[0]
        read_tensors(path)
        sys.addaudithook(hear)
        for path in files:
            read_tensors(path)
        heard, count = events.copy(), len(events)
        os.write(2, "\n".join(heard).encode())
        os._exit(count > 0)
    assert os.waitpid(pid, 0)[1] == 0
