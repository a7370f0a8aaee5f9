"""From the start of a process to the end of its first step, and to a picture.

Stable Diffusion 1.4's weights are made up and written once: 4.3 GB in float32 for each implementation, in its
own layout.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from time import perf_counter
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ldm.checkpoint import build_on_meta
from ldm.config.reading import load_config
from ldm.errors import InputError
from ldm.folders import ROOT
from ldm.study.bench.networks import diffusers_autoencoder, diffusers_unet, random_weights
from ldm.study.bench.rounds import Row, rows

# Not the peak that `resource` tells, which a process inherits from the one that started it.
TELL = """
import pathlib
told = pathlib.Path("/proc/self/status")
print(told.read_text().partition("VmHWM:")[2].split()[0] if told.exists() else "", flush=True)
"""

OURS = """
import sys
from ldm.memory import lasting
from ldm.weights.cast_ahead import cast_ahead
from ldm.weights.read_ahead import read_ahead
cast_ahead(sys.argv[1], "cpu", "auto" if sys.argv[2] == "bfloat16" else "full")
read_ahead(sys.argv[1])
with lasting():
    import torch
    from ldm import load_model
    from ldm.generate import Sampling, denoise
    from ldm.parameterization import likely_kind
model = load_model("freeu_sd14.yaml", sys.argv[1], device="cpu", dtype=getattr(torch, sys.argv[2]))
likely_kind(model)  # as the script does; no more where the network is of the kind that the config names
next(denoise(model, ["a squirrel eating a burger"], [""], [42], Sampling(steps=50)))
"""

IMPORTS = """
from ldm.memory import lasting
with lasting():
    import ldm.txt2img.run
"""

DIFFUSERS = """
import sys, torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel
kind = getattr(torch, sys.argv[2])
unet, vae, text = (
    cls.from_pretrained(f"{sys.argv[1]}/{name}", **{key: kind})
    for cls, name, key in (
        (UNet2DConditionModel, "unet", "torch_dtype"),
        (AutoencoderKL, "vae", "torch_dtype"),
        (CLIPTextModel, "text_encoder", "dtype"),
    )
)
unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
unet.to(memory_format=torch.channels_last)
scheduler = DDIMScheduler()
scheduler.set_timesteps(50)
with torch.no_grad():
    context = text(torch.full((2, 77), 49407))[0]
    x = torch.randn(1, 4, 64, 64).to(kind)
    t = scheduler.timesteps[0]
    without, given = unet(torch.cat([x, x]), t, context, return_dict=False)[0].chunk(2)
    scheduler.step(without + 7.5 * (given - without), t, x)
"""


def write_ours(path: Path) -> None:
    """The whole model in one file."""
    model = build_on_meta(load_config("freeu_sd14.yaml").model)
    save_file(dict(random_weights(dict(model.named_parameters()))), path)


def write_diffusers(folder: Path) -> None:
    """The same networks in the folders that diffusers reads."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "unet": diffusers_unet(),
            "vae": diffusers_autoencoder(),
            "text_encoder": CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072,
                                          num_attention_heads=12, num_hidden_layers=12)),
        }  # fmt: skip
    for name, part in parts.items():
        made: Any = part.to_empty(device="cpu")
        made.load_state_dict(dict(random_weights(dict(made.named_parameters()))), strict=False)
        made.save_pretrained(folder / name)


def written(path: Path, write: Callable[[Path], None]) -> None:
    """Has a file or a folder written, which appears under `path` whole or not at all. Raises InputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            part = Path(folder) / path.name
            write(part)
            part.rename(path)
    except (OSError, SafetensorError) as fault:
        raise InputError(
            f"{path} cannot be written: {fault}.\nThe start takes 9 GB: give --files a folder with room."
        ) from None


def environment() -> dict[str, str]:
    """That of a process which imports what is here and what this one can, and has as many threads."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": path}


def seconds_to_line(command: list[str]) -> tuple[float, str]:
    """The first line that a process writes, and how long that takes; what follows is not counted.

    Raises InputError where the process fails.
    """
    with TemporaryFile() as errors:
        start = perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()
        ) as process:
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
            except BaseException:
                process.kill()
                raise
            seconds = perf_counter() - start
        errors.seek(0)
        check_end(process.returncode, errors.read())
    return seconds, line


def seconds_to_end(command: list[str]) -> float:
    """How long a process takes. Raises InputError where it fails."""
    start = perf_counter()
    done = subprocess.run(command, capture_output=True, check=False, env=environment())
    seconds = perf_counter() - start
    check_end(done.returncode, done.stderr)
    return seconds


def check_end(code: int, errors: bytes) -> None:
    """Raises InputError, with the last line of what it said, where a process has failed."""
    if code:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2] or "it did not say why"
        raise InputError(f"A process that was measured ended with code {code}: {last}")


def cold_start(dtype: torch.dtype, folder: Path, rounds: int) -> list[Row]:
    """Process start to the end of the first step, and each process's peak.

    The files are written into `folder` where they are not there yet. Raises InputError where the disk refuses
    them, and where a process fails.
    """
    contenders: dict[str, tuple[str, Path, Callable[[Path], None]]] = {
        "ours": (OURS, folder / "sd14.safetensors", write_ours)
    }
    if util.find_spec("diffusers") and util.find_spec("transformers"):
        contenders["diffusers"] = (DIFFUSERS, folder / "diffusers", write_diffusers)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: dict[str, int | None] = {}
    for _ in range(rounds):
        for name, (code, path, write) in contenders.items():
            if not path.exists():
                written(path, write)
            command = [sys.executable, "-c", code + TELL, str(path), str(dtype).removeprefix("torch.")]
            try:
                taken, kilobytes = seconds_to_line(command)
            except InputError as fault:
                again = f"If {path} is damaged, remove it, and it is written again."
                raise InputError(f"{fault}\n{again}") from None
            peaks[name] = 1024 * int(kilobytes) if kilobytes.strip() else None
            seconds[name].append(taken)
    return rows("cold start to the first step", dtype, seconds, peaks)


def embedded_picture(folder: Path, rounds: int, device: str) -> list[Row]:
    """A guided picture of the embedded model in 50 steps, process start to PNG, and the imports in it."""
    script = str(ROOT / "scripts" / "txt2img.py")
    works = {
        "process start to PNG": [script, f"--outdir={folder}", "--steps=50", f"--device={device}"],
        "its imports alone": ["-c", IMPORTS],
    }
    seconds = {
        name: [seconds_to_end([sys.executable, *work]) for _ in range(rounds)] for name, work in works.items()
    }
    base = seconds["process start to PNG"]
    return [Row("embedded model, 50 steps", "auto", name, taken, base) for name, taken in seconds.items()]
