"""Models from a config and a checkpoint: where it is found, on what device, in how much memory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from ldm.checkpoint import load_model
from ldm.config.reading import load_config
from ldm.device import is_out_of_memory, pick_device, pick_dtype
from ldm.errors import InputError
from ldm.modules import winograd_in_c
from ldm.modules.winograd_in_c import convolves_in_c
from ldm.weights.place import find_checkpoint
from ldm.weights.reading import read_tensors
from tests.checkpoints import CPU

LINEAR = {"target": "torch.nn.Linear", "params": {"in_features": 6, "out_features": 4}}


def test_a_model_is_loaded_from_a_config_and_a_path(tmp_path: Path) -> None:
    source = nn.Linear(6, 4)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "linear.ckpt")
    config = OmegaConf.create({"model": LINEAR})
    model = load_model(config, tmp_path / "linear.ckpt", device="cpu", dtype=torch.float32)
    assert not model.training
    assert torch.equal(model.weight, source.weight)

    with pytest.raises(InputError, match=r"linear\.ckpt does not fit the config"):
        load_model(config, tmp_path / "linear.ckpt", "cpu", overrides=["model.params.in_features=7"])


def test_the_averages_that_the_original_s_training_leaves_are_loaded_unless_the_config_uses_none(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    state = {key: it.float() for key, it in read_tensors(tiny_checkpoint).items()}
    unet = [key for key in state if key.startswith("model.")]
    averages = {"model_ema." + key.removeprefix("model.").replace(".", ""): state[key] + 1 for key in unet}
    torch.save({"state_dict": state | averages}, tmp_path / "trained.ckpt")
    config = load_config("tiny.yaml")
    for use_ema in (None, True, False):  # of which the first is the original's True
        config.model.params.use_ema = use_ema
        if use_ema is None:
            del config.model.params["use_ema"]
        filled = load_model(config, tmp_path / "trained.ckpt", "cpu", torch.float32).state_dict()
        for key, it in state.items():
            assert torch.equal(filled[key], it + 1 if key in unet and use_ema is not False else it)


def test_a_config_s_own_checkpoint_is_looked_up_in_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.weights.place.CHECKPOINTS", tmp_path)
    source = nn.Linear(6, 4)
    save_file(source.state_dict(), tmp_path / "linear.safetensors")
    (tmp_path / "linear.yaml").write_text(
        OmegaConf.to_yaml({"model": LINEAR, "checkpoint": "linear.safetensors"})
    )
    model = load_model(str(tmp_path / "linear.yaml"), device="cpu", dtype=torch.float16)
    assert torch.equal(model.weight, source.weight.half())
    assert find_checkpoint("linear.safetensors") == tmp_path / "linear.safetensors"


def test_a_checkpoint_that_is_not_there_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.weights.place.CHECKPOINTS", tmp_path)
    with pytest.raises(InputError, match="names no checkpoint"):
        load_model(OmegaConf.create({"model": LINEAR}))
    with pytest.raises(InputError, match="no `model:` section"):
        load_model(OmegaConf.create({"data": LINEAR}))
    with pytest.raises(
        InputError, match=r"(?s)CompVis/stable-diffusion-v-1-4-original.*fe4efff1.*--download"
    ) as refused:
        find_checkpoint("sd-v1-4.ckpt")
    assert f"sd-v1-4.ckpt, here or in {tmp_path}." in str(refused.value)
    with pytest.raises(InputError, match=f"{tmp_path / 'mine.ckpt'}.*v1-5-pruned-emaonly.safetensors"):
        find_checkpoint(tmp_path / "mine.ckpt")
    with pytest.raises(InputError, match="cannot be downloaded"):
        find_checkpoint("mine.ckpt", download=True)
    monkeypatch.setattr("ldm.weights.place.CHECKPOINTS", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"There are none; of others README tells of sd-v1-4\.ckpt"):
        find_checkpoint("mine.ckpt")
    for name in ("x" * 5000, "~nobody-of-that-name/mine.ckpt"):
        with pytest.raises(InputError, match="no checkpoint"):
            find_checkpoint(name)


def test_a_file_that_may_do_for_the_one_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.weights.place.CHECKPOINTS", tmp_path)
    for name in ("v2-1_768-ema-pruned.ckpt", "v2-1_768-nonema-pruned.ckpt", "v2-1_768-ema-pruned.txt"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"Or take what is there: --ckpt v2-1_768-ema-pruned\.ckpt\.$"):
        find_checkpoint("v2-1_768-ema-pruned.safetensors")
    with pytest.raises(InputError, match=r"have it fetched\.$"):
        find_checkpoint("sd-v1-4.ckpt")


def test_a_link_to_no_checkpoint_is_told_with_what_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.weights.place.CHECKPOINTS", tmp_path)
    for name in ("mine.safetensors", "sd-v1-4.ckpt"):
        (tmp_path / name).symlink_to(f"moved/{name}")
        said = f"The checkpoint {tmp_path / name} is a link to moved/{name}, which is not there: link it"
        for given in (name, tmp_path / name):
            with pytest.raises(InputError, match=re.escape(said)):
                find_checkpoint(given)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "mine.safetensors").touch()
    assert find_checkpoint("mine.safetensors") == tmp_path / "mine.safetensors"


def test_devices_and_precisions_are_chosen_and_checked() -> None:
    assert pick_device("cpu") == CPU
    assert pick_dtype(pick_device("auto")).is_floating_point
    assert pick_dtype(torch.device("mps")) == torch.float16
    with pytest.raises(InputError, match="'gpu'"):
        pick_device("gpu")
    for dtype in ("float16", torch.int8):
        with pytest.raises(InputError, match=f"dtype is '?{dtype}.*torch.float16"):
            load_model("freeu_tiny.yaml", dtype=dtype)


@pytest.mark.parametrize(
    ("tiles", "vectors", "kind"),
    [(True, True, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_a_cpu_computes_in_bfloat16_where_it_multiplies_that(monkeypatch, tiles, vectors, kind):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors, raising=False)
    assert pick_dtype(torch.device("cpu")) == kind
    assert pick_dtype(torch.device("xpu")) == torch.bfloat16  # whatever its CPU does


@pytest.mark.parametrize(
    ("capability", "kind"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((8, 9), torch.bfloat16), ((12, 0), torch.bfloat16)],
)
def test_a_card_computes_in_bfloat16_from_ampere_on(monkeypatch, capability, kind):
    second = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", {second: capability}.get)
    assert pick_dtype(second) == kind


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        (torch.OutOfMemoryError("3 numbers asked for, 2 are free"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.9 GiB, max allowed: 9.1 GiB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("Invalid buffer size: 28.48 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_memory_that_is_too_small_is_known_however_a_device_says_it(fault, answer):
    assert is_out_of_memory(fault) is answer


def test_a_device_that_is_missing_is_said() -> None:
    for missing in ("mps" if torch.cuda.is_available() else "cuda", "cuda:99", "cpu:1", "meta"):
        with pytest.raises(InputError, match=f"^{missing} is asked for, but torch finds no such device here"):
            pick_device(missing)


def test_a_card_that_cuda_counts_but_cannot_use_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # As under a driver that is too old for torch.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type != "cuda"
    with pytest.raises(InputError, match=r"^cuda is asked for, but torch finds no such device here"):
        pick_device("cuda")


def test_a_memory_that_does_not_hold_the_model_is_said_and_no_other_fault_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(nn.Linear(6, 4).state_dict(), tmp_path / "linear.safetensors")
    faults: list[Exception] = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")]

    def full(*_: object, **__: object) -> None:
        raise faults[-1]

    monkeypatch.setattr(nn.Linear, "load_state_dict", full)
    config = OmegaConf.create({"model": LINEAR})
    with pytest.raises(InputError) as refused:
        load_model(config, tmp_path / "linear.safetensors", "cpu")
    assert str(refused.value) == (
        "The memory of cpu does not hold the model: free it of other programs, "
        "or give --precision fp16 or --device cpu."
    )
    faults.append(RuntimeError("an illegal instruction"))
    with pytest.raises(RuntimeError, match="an illegal instruction"):
        load_model(config, tmp_path / "linear.safetensors", "cpu")


# Fills a model, half of it convolutions, from a file of 200 MB and prints by how many bytes memory grew: at
# its peak, and of memory of its own.
MEASURE = """
import sys
from pathlib import Path
import torch
from ldm.checkpoint import build_on_meta, fill
from ldm.weights.reading import read_tensors

def memory():
    # Of this process alone; getrusage would count what its parent had.
    status = Path("/proc/self/status").read_text()
    return [int(status.partition(name)[2].split()[0]) << 10 for name in ("VmHWM:", "RssAnon:")]

layers = [
    {"target": "torch.nn.Linear", "params": {"in_features": 2500, "out_features": 2500}},
    {"target": "torch.nn.Conv2d", "params": {"in_channels": 832, "out_channels": 832, "kernel_size": 3}},
]
torch.ones(4_000_000).to(torch.bfloat16).float().sum()
before = memory()
with torch.device("meta"):
    model = torch.nn.Sequential(*(build_on_meta(layer) for layer in 4 * layers))
fill(model, read_tensors(sys.argv[1]), getattr(torch, sys.argv[2]), torch.device("cpu"))
for parameter in model.parameters():
    parameter.detach().sum()
print(*(now - then for now, then in zip(memory(), before)))
"""


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heavy")
    layers = (layer for _ in range(4) for layer in (nn.Linear(2500, 2500), nn.Conv2d(832, 832, 3)))
    state = nn.Sequential(*layers).state_dict()
    torch.save({"state_dict": state}, folder / "heavy.ckpt")
    save_file(state, folder / "heavy.safetensors")
    return folder


# Kernels are laid out anew where they are not convolved in C.
UNCHANGED = 0.1 if convolves_in_c(CPU, torch.float32) else 0.6


@pytest.mark.parametrize(
    ("name", "dtype", "peak", "own"),
    [
        # Unchanged weights are the file's own pages.
        ("heavy.ckpt", "float32", 1.3, UNCHANGED),
        ("heavy.safetensors", "float32", 1.3, UNCHANGED),
        # Cast weights are half as large, beside pages of the file that the system can drop.
        ("heavy.ckpt", "bfloat16", 1.8, 0.6),
    ],
)
def test_filling_makes_no_second_copy_in_memory(
    name: str, dtype: str, peak: float, own: float, heavy: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(heavy / name), dtype],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak_grown, own_grown = map(int, done.stdout.split())
    size = (heavy / name).stat().st_size
    assert 0.4 < peak_grown / size < peak
    assert own_grown / size < own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_c", [True, False])
def test_kernels_lie_channels_last_but_as_in_the_file_where_they_are_convolved_in_c(
    in_c: bool, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd_in_c, "LIBRARIES", winograd_in_c.LIBRARIES if in_c else {})
    save_file(nn.Conv2d(5, 4, 3).state_dict(), tmp_path / "conv.safetensors")
    conv = {"target": "torch.nn.Conv2d", "params": {"in_channels": 5, "out_channels": 4, "kernel_size": 3}}
    model = load_model(OmegaConf.create({"model": conv}), tmp_path / "conv.safetensors", "cpu", dtype)
    as_in_the_file = dtype in winograd_in_c.LIBRARIES
    layout = torch.contiguous_format if as_in_the_file else torch.channels_last
    assert model.weight.is_contiguous(memory_format=layout)
