"""A checkpoint cast by another process before its reader has come."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.checkpoint import load_model
from ldm.device import pick_dtype
from ldm.weights import cast_ahead as module
from ldm.weights.cast_ahead import CastAhead, cast_ahead, expects_bfloat16, put_cast
from ldm.weights.reading import read_tensors
from tests.checkpoints import CPU
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is cast ahead there")

# Ties, what is just beside them, the smallest and the largest, and what rounds to infinity.
EDGES = [0, 1, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x3F808000, 0x3F818000, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000]


@pytest.fixture
def likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of all sizes are cast ahead, whatever this machine is."""
    monkeypatch.setattr(module, "LEAST", 0)
    monkeypatch.setattr(module, "expects_bfloat16", lambda *_: True)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {0, 1})


def cast_whole(path: Path, channels_last: bool = False) -> dict[str, Tensor]:
    """All that the process casts of a file when nobody stops it."""
    ahead = CastAhead(path, channels_last)
    os.waitpid(ahead.process, 0)
    return ahead.casts(read_tensors(path))


def finite_or_infinite(bits: list[int], shape: list[int]) -> Tensor:
    """A tensor of numbers that have these bits, over and over; what is not a number is one."""
    numbers = np.resize(np.array(bits, np.uint32), shape).view(np.float32)
    return torch.from_numpy(np.where(np.isnan(numbers), np.float32(1), numbers))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=5),
    bits=st.lists(st.sampled_from(EDGES) | st.integers(0, 2**32 - 1), min_size=1, max_size=30),
    at_once=st.integers(9**3, 10**4),
    channels_last=st.booleans(),
)
def test_what_is_cast_ahead_is_what_torch_casts(
    shapes: list[list[int]],
    bits: list[int],
    at_once: int,
    channels_last: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    state = {str(i): finite_or_infinite(bits, shape) for i, shape in enumerate(shapes)}
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    cast = cast_whole(path, channels_last)
    assert cast.keys() == {key for key, tensor in state.items() if tensor.numel()}
    for key, tensor in cast.items():
        assert torch.equal(tensor, state[key].bfloat16())
        layout = torch.channels_last if channels_last and tensor.ndim == 4 else torch.contiguous_format
        assert tensor.is_contiguous(memory_format=layout)


def test_other_kinds_of_numbers_are_left_to_the_reader(tmp_path: Path) -> None:
    state = {
        "counts": torch.arange(5),
        "single": torch.randn(3, 7),
        "half": torch.randn(9).half(),
        "brain": torch.randn(4).bfloat16(),
        "odd": torch.ones(3, dtype=torch.uint8),
    }
    save_file(state, path := tmp_path / "weights.safetensors")
    cast = cast_whole(path)
    assert cast.keys() == {"single"}
    assert torch.equal(cast["single"], state["single"].bfloat16())


def test_from_what_is_not_a_number_on_all_is_left_to_the_reader(tmp_path: Path) -> None:
    state = {name: torch.randn(50) for name in "abcd"}
    state["c"][17] = torch.nan
    save_file(state, path := tmp_path / "weights.safetensors")
    assert cast_whole(path).keys() == {"a", "b"}


def test_averaged_weights_are_left_to_the_reader(tmp_path: Path) -> None:
    state = {"model.weight": torch.randn(8), "model_ema.weight": torch.randn(8)}
    save_file(state, path := tmp_path / "weights.safetensors")
    assert cast_whole(path).keys() == {"model.weight"}


def written(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ONE = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04" + bytes(100),
        struct.pack("<Q", 2**62) + bytes(100),
        struct.pack("<Q", 5) + b'{"a":',
        written([1, 2]),
        written({"a": ONE}, bytes(12)),
        written({"a": ONE | {"data_offsets": [0, 2**40]}}, bytes(16)),
        written({"a": ONE | {"shape": [2**20, 2**20, 3, 3]}}, bytes(16)),
        written({"a": ONE | {"shape": "four"}}, bytes(16)),
    ],
    ids=["empty", "zip", "long", "cut off", "list", "short", "far", "large", "words"],
)
def test_of_a_damaged_file_nothing_is_cast_and_nothing_is_said(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    ahead = CastAhead(path, channels_last=True)
    os.waitpid(ahead.process, 0)
    assert ahead.state[0] == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("likely")
def test_casts_take_the_place_of_the_tensors_where_they_are_wanted(tmp_path: Path) -> None:
    state = {"kernels": torch.randn(5, 4, 3, 3), "vector": torch.randn(6)}
    save_file(state, path := tmp_path / "weights.safetensors")
    for wanted, kind in ((True, torch.bfloat16), (False, torch.float32)):
        cast_ahead(path, "auto", "auto")
        os.waitid(os.P_PID, module._begun[path].process, os.WEXITED | os.WNOWAIT)
        put_cast(path, tensors := read_tensors(path), wanted)
        assert all(torch.equal(tensor, state[key].to(kind)) for key, tensor in tensors.items())
        assert not module._begun


@pytest.mark.usefixtures("likely")
def test_a_file_that_has_taken_the_place_of_the_one_cast_is_read_as_it_is(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100)}, path := tmp_path / "weights.safetensors")
    cast_ahead(path, "auto", "auto")
    os.waitid(os.P_PID, module._begun[path].process, os.WEXITED | os.WNOWAIT)
    save_file({"a": torch.ones(100)}, other := tmp_path / "other.safetensors")
    other.replace(path)
    put_cast(path, tensors := read_tensors(path), wanted=True)
    assert torch.equal(tensors["a"], torch.ones(100))


def test_no_file_and_no_name_are_left_to_the_reader_to_tell(tmp_path: Path, likely: None) -> None:
    cast_ahead(None, "auto", "auto")
    cast_ahead(tmp_path / "missing", "auto", "auto")
    assert not module._begun


def large(path: Path) -> Path:
    """A file of eight gigabytes of zeros that take no room on the disk, and many seconds to be cast."""
    count = 2**31
    header = written({"a": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 4 * count)
    return path


def test_whoever_comes_early_has_not_to_wait(tmp_path: Path) -> None:
    ahead = CastAhead(large(tmp_path / "large.safetensors"), channels_last=False)
    start = time.monotonic()
    ahead.stop()
    assert time.monotonic() - start < 2
    assert ahead.state[0] == 0


def is_running(process: Path) -> bool:
    """Whether the process of this folder in /proc is there, and not only waits to be asked how it ended."""
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nobody_goes_on_casting_for_a_reader_that_was_killed(tmp_path: Path) -> None:
    begin = (
        "import sys, time; from ldm.weights.cast_ahead import CastAhead; from pathlib import Path;"
        "print(CastAhead(Path(sys.argv[1]), False).process, flush=True); time.sleep(60)"
    )
    path = large(tmp_path / "large.safetensors")
    with subprocess.Popen(
        [sys.executable, "-c", begin, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        process = Path("/proc", reader.stdout.readline().strip())
        assert process.exists()
        reader.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(process), seconds=2)


def test_a_process_is_begun_where_the_networks_will_compute_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GPUS", ())
    here = pick_dtype(CPU) == torch.bfloat16
    assert {expects_bfloat16(device, "auto") for device in ("auto", "cpu")} == {here}
    assert not any(expects_bfloat16(device, "auto") for device in ("cuda", "mps"))
    assert not any(expects_bfloat16("cpu", precision) for precision in ("full", "fp16"))
    monkeypatch.setattr(module, "GPUS", ("/dev/null",))
    assert (expects_bfloat16("auto", "auto"), expects_bfloat16("cpu", "auto")) == (False, here)


@pytest.mark.usefixtures("likely")
@pytest.mark.parametrize("use_ema", [True, False])
def test_casts_of_weights_that_give_way_to_averages_do_not_stay(
    use_ema: bool, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    plain = {key: tensor.float() for key, tensor in read_tensors(tiny_checkpoint).items()}
    name = "model.diffusion_model.out.2.bias"
    average = {"model_ema.diffusion_modelout2bias": plain[name] + 1}
    save_file(plain | average, path := tmp_path / "weights.safetensors")
    cast_ahead(path, "auto", "auto")
    ahead = module._begun[path]
    os.waitid(os.P_PID, ahead.process, os.WEXITED | os.WNOWAIT)
    overrides = [f"model.params.use_ema={str(use_ema).lower()}"]
    weights = load_model("tiny.yaml", path, "cpu", torch.bfloat16, overrides).state_dict()
    assert torch.equal(weights[name], (plain[name] + use_ema).bfloat16())
    first = np.frombuffer(ahead.results, np.uint8).ctypes.data
    shared = [it for it in weights.values() if first <= it.data_ptr() < first + len(ahead.results)]
    assert bool(shared) is not use_ema


# Draws with the small model as the script does, once all of it is cast, and tells how much that is.
DRAWN = """
import os, sys
sys.path.insert(0, "scripts")
import ldm.weights.cast_ahead as ahead
begun = sys.argv.pop() == "ahead"
ahead.LEAST, ahead.expects_bfloat16 = 0, lambda *_: begun
os.sched_getaffinity = lambda _: {0, 1}
put_cast = ahead.put_cast
def told(path, tensors, wanted):
    for it in ahead._begun.values():
        os.waitid(os.P_PID, it.process, os.WEXITED | os.WNOWAIT)
    put_cast(path, tensors, wanted)
    print(sum(tensor.element_size() == 2 for tensor in tensors.values()), "of", len(tensors), file=sys.stderr)
ahead.put_cast = told
import txt2img
sys.exit(txt2img.main(sys.argv[1:]))
"""


@pytest.mark.usefixtures("likely")
@pytest.mark.skipif(pick_dtype(CPU) != torch.bfloat16, reason="nothing is cast ahead there")
def test_kernels_lie_alike_whoever_has_cast_them(tmp_path: Path) -> None:
    save_file(nn.Conv2d(5, 4, 3).state_dict(), path := tmp_path / "conv.safetensors")
    conv = {"target": "torch.nn.Conv2d", "params": {"in_channels": 5, "out_channels": 4, "kernel_size": 3}}
    config = OmegaConf.create({"model": conv})
    plain = load_model(config, path, "cpu", torch.bfloat16)
    cast_ahead(path, "auto", "auto")
    os.waitid(os.P_PID, module._begun[path].process, os.WEXITED | os.WNOWAIT)
    ahead = load_model(config, path, "cpu", torch.bfloat16)
    assert plain.weight.stride() == ahead.weight.stride()
    assert torch.equal(plain.weight, ahead.weight)


@pytest.mark.slow
def test_pictures_are_the_same_whoever_has_cast_the_weights(tmp_path: Path, tiny_checkpoint: Path) -> None:
    pictures, told = [], []
    single = {key: tensor.float() for key, tensor in read_tensors(tiny_checkpoint).items()}
    save_file(single, path := tmp_path / "weights.safetensors")
    for kind in ("plain", "ahead"):
        done = subprocess.run(
            [sys.executable, "-c", DRAWN, "--ckpt", path, "--steps", "2", "--device", "cpu",
             "--precision", "bf16", "--outdir", tmp_path / kind, "--skip_grid", kind],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        told.append(done.stderr)
        pictures += [picture.read_bytes() for picture in sorted((tmp_path / kind).rglob("*.png"))]
    assert told[0].startswith("0 of")
    assert told[1].split()[0] == told[1].split()[2]
    assert len(pictures) == 2
    assert pictures[0] == pictures[1]


def test_it_begins_before_torch_and_numpy_are_imported() -> None:
    check = "import sys, ldm.weights.cast_ahead; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
