"""What FreeU costs, beside the other implementations that are there.

FreeU's first version on the concatenations that it meets in a step of Stable Diffusion 1.4, one guided
picture. The concatenation itself is not counted. Ratios are taken within a round, in which all take turns.
"""

import argparse
import csv
import json
import platform
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.fft import fft2, fftshift, ifft2, ifftshift

from ldm.freeu import PRESETS, free_u
from ldm.util import instantiate_from_config, load_config

Work = Callable[[], Any]


def joints_of_a_step(dtype: torch.dtype, side: int = 64) -> list[tuple[Tensor, Tensor, float, float]]:
    """Backbone and skip, (B, C, H, W), b and s where FreeU acts, for random latents of that side."""
    with torch.device("meta"):
        unet = instantiate_from_config(load_config("v1-inference.yaml").model.params.unet_config)
    factors = PRESETS["sd14", 1].factors(unet.decoder_stages, unet.model_channels)
    joints = []
    for stage, (b, s) in zip(unet.decoder_stages, factors, strict=True):
        if (b, s) != (1, 1):
            fused = torch.randn(2, stage.width + stage.skip_width, *2 * [side // stage.downsampling])
            joints.append((*fused.to(dtype).split([stage.width, stage.skip_width], dim=1), b, s))
    return joints


# Each makes ready what it starts from, in maps that are its own, and returns what is timed.
def ours(h: Tensor, skip: Tensor, b: float, s: float, memory: Any = torch.contiguous_format) -> Work:
    fused = torch.cat([h, skip], dim=1).contiguous(memory_format=memory)
    return lambda: free_u(fused, h.shape[1], b, s)


def diffusers(h: Tensor, skip: Tensor, b: float, s: float) -> Work:
    from diffusers.utils.torch_utils import apply_freeu

    return lambda: apply_freeu(0, h, skip, b1=b, s1=s)


def original(h: Tensor, skip: Tensor, b: float, s: float) -> Work:
    def run() -> tuple[Tensor, Tensor]:
        half, row, column = h.shape[1] // 2, skip.shape[2] // 2, skip.shape[3] // 2
        h[:, :half] = h[:, :half] * b
        mask = torch.ones(skip.shape)
        mask[..., row - 1 : row + 1, column - 1 : column + 1] = s
        spectrum = fftshift(fft2(skip.float()), dim=(-2, -1)) * mask  # transforms know no bfloat16
        return h, ifft2(ifftshift(spectrum, dim=(-2, -1))).real.to(skip.dtype)

    return run


CONTENDERS: dict[str, Callable[..., Work]] = {
    "ours, in place": ours,
    "ours, channels last": lambda *joint: ours(*joint, memory=torch.channels_last),
    **({"diffusers": diffusers} if util.find_spec("diffusers") else {}),
    "original": original,
}


@torch.inference_mode()
def measure(joints: list[tuple[Tensor, Tensor, float, float]], rounds: int) -> Tensor:
    """Seconds of each contender in each round, (rounds, contenders), after a round that is not counted."""
    seconds = torch.zeros(1 + rounds, len(CONTENDERS), dtype=torch.float64)
    for i, turn in enumerate(seconds):
        for k in torch.arange(len(CONTENDERS)).roll(i).tolist():
            for h, skip, b, s in joints:
                run = list(CONTENDERS.values())[k](h.clone(), skip.clone(), b, s)
                start = perf_counter()
                run()
                turn[k] += perf_counter() - start
    return seconds[1:]


def machine() -> dict[str, Any]:
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = told.partition("model name\t: ")[2].partition("\n")[0] or platform.machine()
    versions = {name: metadata.version(name) for name in ("torch", "diffusers") if util.find_spec(name)}
    return {"cpu": cpu, "threads": torch.get_num_threads(), **versions}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--outdir", type=Path, help="gets the table as bench.csv, every round as bench.json")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}: give a whole number from 1 up")

    table, every = [("dtype", "implementation", "ms", "times ours", "10 %", "90 %")], machine()
    print(", ".join(f"{name} {value}" for name, value in every.items()))
    for dtype in (torch.float32, torch.bfloat16):
        seconds = measure(joints_of_a_step(dtype), arguments.rounds)
        every[str(dtype)] = dict(zip(CONTENDERS, seconds.T.tolist(), strict=True))
        ratios = (seconds / seconds[:, :1]).quantile(torch.tensor([0.5, 0.1, 0.9]).double(), dim=0)
        columns = [CONTENDERS, (1000 * seconds.quantile(0.5, dim=0)).tolist(), *ratios.tolist()]
        for row in zip(*columns, strict=True):
            table.append((dtype, *row))
            print("{!s:15} {:20}{:8.2f} ms {:6.2f} times ours ({:.2f} to {:.2f})".format(*table[-1]))

    if arguments.outdir:
        arguments.outdir.mkdir(parents=True, exist_ok=True)
        (arguments.outdir / "bench.json").write_text(json.dumps(every, indent=1), encoding="utf-8")
        with (arguments.outdir / "bench.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(table)


if __name__ == "__main__":
    main()
