"""Files from strangers: nothing in them runs, nothing they claim is believed, one clear line comes back."""

import io
import json
import marshal
import os
import pickle
import resource
import stat
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ldm.checkpoint import read_tensors
from ldm.errors import InputError
from ldm.torch_file import LEGACY_START, ZIP_START

NUMBERS = torch.arange(12, dtype=torch.float32)
STORAGE = NUMBERS.numpy().tobytes()


def literal(value: object) -> bytes:
    """The opcodes that push a value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def a_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def stack_global(module: str, name: str) -> bytes:
    return literal(module) + literal(name) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def tensor(
    shape: tuple = (3, 4),
    stride: tuple = (4, 1),
    offset: object = 0,
    key: object = "0",
    kind: str = "FloatStorage",
) -> bytes:
    """What torch.save writes for a tensor, with any claim in it."""
    storage = (
        b"("
        + literal("storage")
        + a_global("torch", kind)
        + literal(key)
        + literal("cpu")
        + literal(12)
        + b"tQ"
    )
    return call(
        a_global("torch._utils", "_rebuild_tensor_v2"),
        storage, literal(offset), literal(shape), literal(stride), literal(False),
        call(a_global("collections", "OrderedDict")),
    )  # fmt: skip


def binary(content: bytes) -> bytes:
    return b"B" + len(content).to_bytes(4, "little") + content


def state_dict(**values: bytes) -> bytes:
    items = b"".join(literal(key) + value for key, value in values.items())
    return b"\x80\x04}(" + items + b"u."


def archive(path: Path, stream: bytes, root: str = "archive/", **entries: bytes) -> Path:
    """A file in the layout of torch.save, around this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{root}data.pkl", stream)
        for name, content in ({"data/0": STORAGE} | entries).items():
            file.writestr(f"{root}{name}", content)
    return path


def gadgets(folder: Path) -> dict[str, bytes]:
    """Pickles, less their stop, that create folder / "canary" when a real unpickler runs them."""
    canary = str(folder / "canary")
    touch = literal(f"touch {canary}")
    payload = f"open({canary!r}, 'w').close()"
    code = literal(payload)
    system, evaluate = a_global("os", "system"), a_global("builtins", "eval")

    def instance(method: str, function: bytes) -> bytes:
        """An object of a new class that has a foreign function for a method."""
        body = b"}" + literal(method) + function + b"s"
        return call(a_global("builtins", "type"), literal("X"), literal(()), body) + b")\x81"

    lazily = a_global("builtins", "map") + b"(" + evaluate + b"]" + code + b"at\x81"
    imported = call(a_global("builtins", "__import__"), literal("os"))
    spawned = call(
        a_global("multiprocessing.util", "spawnv_passfds"),
        binary(b"/usr/bin/touch"), literal(["touch", canary]), literal(()),
    )  # fmt: skip
    return {
        "REDUCE of os.system": call(system, touch),
        "REDUCE of eval": call(evaluate, code),
        "REDUCE of exec": call(a_global("builtins", "exec"), code),
        "REDUCE of open": call(a_global("io", "open"), literal(canary), literal("w")),
        "a class that opens a file": call(a_global("logging", "FileHandler"), literal(canary)),
        "functools.partial of eval": call(call(a_global("functools", "partial"), evaluate, code)),
        "getattr of __import__": call(
            call(a_global("builtins", "getattr"), imported, literal("system")), touch
        ),
        "INST": b"(" + touch + b"ios\nsystem\n",
        "OBJ": b"(" + system + touch + b"o",
        "NEWOBJ": a_global("builtins", "tuple") + lazily + b"\x85\x81",
        "NEWOBJ_EX": a_global("builtins", "tuple") + lazily + b"\x85}\x92",
        "dotted STACK_GLOBAL": call(stack_global("logging", "os.system"), touch),
        "dunder STACK_GLOBAL": call(stack_global("builtins", "print.__self__.eval"), code),
        "method by STACK_GLOBAL": call(
            stack_global("pathlib", "Path.touch"), call(a_global("pathlib", "Path"), literal(canary))
        ),
        "BUILD of __setstate__": instance("__setstate__", system) + touch + b"b",
        "APPEND to append": instance("append", system) + touch + b"a",
        "SETITEM to __setitem__": instance("__setitem__", evaluate) + code + b"}s",
        "persistent id": call(system, touch) + b"Q",
        "memo": system + b"q\x07" + b"0" + call(b"h\x07", touch),
        "dict key": b"}" + call(system, touch) + b"Ns",
        "pickle in a pickle": call(
            a_global("_pickle", "loads"), binary(b"\x80\x04" + call(system, touch) + b".")
        ),
        "subprocess": call(a_global("subprocess", "getoutput"), touch),
        "torch.utils.collect_env": call(a_global("torch.utils.collect_env", "run"), touch),
        "multiprocessing.util": call(a_global("os", "waitpid"), spawned, literal(0)),
        "os.system by its own name": call(a_global("posix", "system"), touch),
        "dotted __call__": call(stack_global("os", "system.__call__"), touch),
        "dotted __class__": call(stack_global("builtins", "print.__class__.__call__"), system, touch),
        "nested REDUCE": call(
            a_global("builtins", "tuple"), call(a_global("builtins", "map"), system, b"(" + touch + b"t")
        ),
        "functools.reduce": call(
            call(
                a_global("functools", "reduce"),
                a_global("builtins", "getattr"),
                b"(" + imported + literal("system") + b"t",
            ),
            touch,
        ),
        "operator.methodcaller": call(
            call(a_global("operator", "methodcaller"), literal("system"), touch), imported
        ),
        "operator.attrgetter": call(
            call(call(a_global("operator", "attrgetter"), literal("system")), imported), touch
        ),
        "importlib": call(
            call(
                a_global("builtins", "getattr"),
                call(a_global("importlib", "import_module"), literal("os")),
                literal("system"),
            ),
            touch,
        ),
        "BUILD of attributes": instance("__setattr__", evaluate) + b"N}" + code + b"Ns\x86b",
        "marshalled code": call(
            call(
                a_global("types", "FunctionType"),
                call(a_global("marshal", "loads"), binary(marshal.dumps(compile(payload, "", "exec")))),
                literal({}),
            )
        ),
        "timeit": call(
            a_global("timeit", "timeit"),
            literal("pass"),
            code,
            a_global("time", "perf_counter"),
            literal(1),
        ),
        "profiler": call(a_global("profile", "run"), code, literal(str(folder / "profile"))),
        "pydoc": call(a_global("pydoc", "tempfilepager"), literal(""), literal(f"touch {canary};")),
        "numpy": call(a_global("numpy.testing._private.utils", "runstring"), code, literal({})),
        "torch's own exec": call(
            a_global("torch.jit.unsupported_tensor_ops", "execWrapper"), code, literal({}), literal({})
        ),
        "a file copied": call(
            a_global("shutil", "copyfile"), literal(str(folder / "script.py")), literal(canary)
        ),
        "a file moved": call(a_global("os", "rename"), literal(str(folder / "script.py")), literal(canary)),
        "a link": call(a_global("os", "symlink"), literal(str(folder / "script.py")), literal(canary)),
        "a folder": call(a_global("os", "mkdir"), literal(canary)),
        "runpy": call(a_global("runpy", "run_path"), literal(str(folder / "script.py"))),
        "torch.hub": call(a_global("torch.hub", "_load_local"), literal(str(folder)), literal("entry")),
    }


TRICKS = sorted(gadgets(Path()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the scripts that some gadgets run."""
    touch = f"open({str(tmp_path / 'canary')!r}, 'w').close()"
    (tmp_path / "script.py").write_text(touch)
    (tmp_path / "hubconf.py").write_text(f"def entry():\n    {touch}")
    return tmp_path


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
    path = archive(folder / "a.ckpt", b"\x80\x04" + gadgets(folder)[trick] + b"\xff")
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


BOMBS = {
    "memo place 4294967295": b"\x80\x02}" + b"r\xff\xff\xff\xff" + b".",
    "text memo place": b"\x80\x02}" + b"p" + b"9" * 4000 + b"\n.",
    "bytes that claim 4 EB": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x3f" + b".",
    "bytearray that claims 4 EB": b"\x80\x05\x96" + b"\xff" * 7 + b"\x3f" + b".",
    "text that claims 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "number that claims 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "frame that claims 4 EB": b"\x80\x04\x95" + b"\xff" * 7 + b"\x3f" + b"N.",
    "decimal of a million digits": b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
    "doubled tuples as a key": b"\x80\x02})" + b"2\x86" * 200 + b"Ns.",
    "doubled tuples": b"\x80\x02)" + b"2\x86" * 30_000 + b".",
    "names joined from long text": b"\x80\x04" + literal("a" * 100_000) + b"2" * 2000 + b"\x93" * 1000 + b".",
    "deep nesting": b"\x80\x02)" + b"\x85" * 30_000 + b".",
    "calls in calls": b"\x80\x02"
    + a_global("torch._utils", "_rebuild_parameter") * 10_000
    + b")"
    + b"\x85R" * 10_000
    + b".",
    "a loop": b"\x80\x02]q\x00h\x00a.",
    "marks": b"\x80\x02" + b"(" * 30_000 + b".",
    "nothing on the stack": b"\x80\x02.",
    "more taken than there is": b"\x80\x02R.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_takes_neither_memory_nor_time(bomb: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.ckpt", BOMBS[bomb])
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(InputError):
        read_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < 10
    assert peak < 40 << 20


def test_an_endless_pickle_is_given_up(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.ckpt", b"\x80\x02" + b"}" * 3_000_000 + b".")
    with pytest.raises(InputError, match="steps"):
        read_tensors(path)


LIES = {
    "negative shape": tensor(shape=(-3, 4)),
    "two negatives": tensor(shape=(-3, -4)),
    "huge shape": tensor(shape=(2**40, 2**40)),
    "shape past 64 bits": tensor(shape=(2**70, 1)),
    "shape of millions of digits": tensor(shape=(2**1_000_000, 1)),
    "huge shape without stride": tensor(shape=(2**40, 2**20), stride=(0, 0)),
    "shape larger than its storage without stride": tensor(shape=(13,), stride=(0,)),
    "huge and empty": tensor(shape=(0, 2**40, 2**40), stride=(1, 1, 1)),
    "one more than there is": tensor(shape=(13,), stride=(1,)),
    "negative offset": tensor(offset=-1),
    "offset past the end": tensor(offset=1),
    "huge offset": tensor(offset=2**62),
    "negative stride": tensor(stride=(-4, 1)),
    "stride past the end": tensor(stride=(5, 1)),
    "stride that wraps": tensor(stride=(2**62, 2**62)),
    "strides missing": tensor(stride=(1,)),
    "a thousand dimensions": tensor(shape=(1,) * 1000, stride=(1,) * 1000),
    "wider type": tensor(kind="DoubleStorage"),
    "unknown type": tensor(kind="StringStorage"),
    "text for a shape": tensor(shape="ab", stride="ab"),  # type: ignore[arg-type]
    "text in a shape": tensor(shape=("3", 4)),
    "truth in a shape": tensor(shape=(True, 4)),
    "float offset": tensor(offset=0.0),
    "no such storage": tensor(key="1"),
    "storage outside": tensor(key="../../../etc/passwd"),
    "number for a key": tensor(key=0),
    "too few arguments": call(a_global("torch._utils", "_rebuild_tensor_v2"), literal(1)),
    "no arguments": a_global("torch._utils", "_rebuild_parameter") + b")R",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_claim_that_the_storage_does_not_bear_out_is_refused(lie: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.ckpt", state_dict(w=LIES[lie]))
    with pytest.raises(InputError) as refused:
        read_tensors(path)
    assert len(str(refused.value).splitlines()) == 1
    assert str(path) in str(refused.value)


def test_views_that_overlap_inside_their_storage_are_read(tmp_path: Path) -> None:
    views = {
        "all": tensor(),
        "shifted": tensor(shape=(2, 5), stride=(5, 1), offset=2),
        "crossed": tensor(shape=(4, 3), stride=(1, 4)),
        "sliding": tensor(shape=(3, 4), stride=(1, 1)),
        "last": tensor(shape=(), stride=(), offset=11),
        "none": tensor(shape=(0, 7), stride=(7, 1)),
    }
    tensors = read_tensors(archive(tmp_path / "a.ckpt", state_dict(**views)))
    assert torch.equal(tensors["all"], NUMBERS.view(3, 4))
    assert torch.equal(tensors["shifted"], NUMBERS[2:].view(2, 5))
    assert torch.equal(tensors["crossed"], NUMBERS.view(3, 4).T)
    assert torch.equal(tensors["sliding"], NUMBERS[:6].unfold(0, 4, 1))
    assert torch.equal(tensors["last"], NUMBERS[11])
    assert tensors["none"].shape == (0, 7)


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


MEGABYTES = 24
LARGE = MEGABYTES << 20


def zip_of_one_storage(path: Path, stream: bytes, names: int) -> Path:
    """Many names for one large storage, at an odd place, so that mapping it is not enough."""
    for padding in (b"", b"."):
        content = bytearray(archive(path, stream + padding, **{"data/0": bytes(LARGE)}).read_bytes())
        if content.index(b"archive/data/0") % 2:
            break
    start = content.index(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    entries = [bytes(content[start:end])]
    first = content.index(b"archive/data/0", start) - 46
    for k in range(names):
        name = f"archive/data/n{k}".encode()
        entry = bytearray(content[first : first + 46])
        entry[28:30] = len(name).to_bytes(2, "little")
        entries.append(bytes(entry) + name)
    table = b"".join(entries)
    tail = bytearray(content[end:])
    tail[8:12] = (names + 2).to_bytes(2, "little") * 2
    tail[12:16] = len(table).to_bytes(4, "little")
    path.write_bytes(content[:start] + table + tail)
    return path


def many_entries(path: Path) -> Path:
    """A table of contents as large as the file."""
    end = b"PK\x05\x06" + bytes(4) + b"\xff\xff" * 2
    entry = b"PK\x01\x02" + bytes(24) + b"\1\0" + bytes(16) + b"a"
    table = entry * (LARGE // len(entry))
    path.write_bytes(
        ZIP_START + bytes(26) + table + end + len(table).to_bytes(4, "little") + b"\x1e\0\0\0" + b"\0\0"
    )
    return path


def many_tensors(path: Path) -> Path:
    """A safetensors header as large as the file, of tensors without numbers."""
    entry = '"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = ("{" + ",".join(entry % k for k in range(LARGE // 60)) + "}").encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


KINDS = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short")
GLUTTONS: dict[str, Callable[[Path], Path]] = {
    "one storage under a hundred names": lambda path: zip_of_one_storage(
        path, state_dict(**{f"t{k}": tensor((1,), (1,), key=f"n{k}") for k in range(100)}), 100
    ),
    "one storage in seven types": lambda path: zip_of_one_storage(
        path, state_dict(**{kind: tensor((1,), (1,), kind=f"{kind}Storage") for kind in KINDS}), 0
    ),
    "one storage in thousands of views": lambda path: zip_of_one_storage(
        path, state_dict(**{f"t{k}": tensor((LARGE // 4,), (1,)) for k in range(4000)}), 0
    ),
    "table of contents": many_entries,
    "tensors of nothing": many_tensors,
    "dicts": lambda path: archive(path, b"\x80\x02" + b"}" * LARGE + b"."),
    "lists in a memo": lambda path: archive(path, b"\x80\x04" + b"]\x94" * (LARGE // 2) + b"."),
    "marks": lambda path: archive(path, b"\x80\x02" + b"(" * LARGE + b"."),
    "calls": lambda path: archive(
        path,
        b"\x80\x02" + a_global("collections", "OrderedDict") + b"q\0)q\1" + b"h\0h\1R" * (LARGE // 5) + b".",
    ),
    "short texts": lambda path: archive(
        path, b"\x80\x04" + b"".join(b"\x8c\4%04x" % (k % 65536) for k in range(LARGE // 6)) + b"."
    ),
    "one text with a wide letter": lambda path: archive(
        path, b"\x80\x04X" + (LARGE).to_bytes(4, "little") + b"a" * (LARGE - 4) + "🐞".encode() + b"."
    ),
    "many texts with a wide letter": lambda path: archive(
        path, (b"X" + (1 << 19).to_bytes(4, "little") + b"a" * ((1 << 19) - 4) + "🐞".encode()) * 48 + b"."
    ),
    "a line": lambda path: archive(path, b"\x80\x02V" + b"a" * LARGE + b"\n."),
}


@pytest.mark.parametrize("glutton", GLUTTONS)
def test_no_more_than_twice_the_file_is_taken(glutton: str, tmp_path: Path) -> None:
    path = GLUTTONS[glutton](tmp_path / "a.ckpt")
    read_tensors(archive(tmp_path / "small.ckpt", state_dict(w=tensor())))  # what is imported late is there
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with suppress(InputError):
            tensors = read_tensors(path)
            sum(it.sum() for it in list(tensors.values())[:9] if it.is_floating_point())
        os.write(writer, b"%d" % (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    taken = int(os.read(reader, 99)) * (1 if sys.platform == "darwin" else 1024)
    os.close(reader)
    os.close(writer)
    # Twice the file, and what the first 200,000 steps of a pickle may leave whatever its size.
    assert taken <= 2 * path.stat().st_size + (24 << 20)


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


def whole_files() -> dict[str, bytes]:
    """A small state dict in each layout."""
    state = {"a.weight": torch.randn(3, 5), "a.bias": torch.randn(5).half(), "b": torch.arange(4)}
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, zipped)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    return {"zip": zipped.getvalue(), "legacy": legacy.getvalue(), "safetensors": save(state)}


WHOLE = whole_files()


@pytest.mark.parametrize("layout", WHOLE)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_truncated_file_is_refused(
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
        assert tensors.keys() == {"a.weight", "a.bias", "b"}


@pytest.mark.parametrize("layout", WHOLE)
@settings(max_examples=200, deadline=None)
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
