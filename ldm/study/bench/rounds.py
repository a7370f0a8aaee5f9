"""Timing in rounds: all contenders take turns, so that what disturbs the machine meets them alike."""

import ctypes
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from statistics import mean, median, quantiles
from time import perf_counter
from typing import Any

import torch

Work = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """The rounds of one contender, in seconds, beside those of the one it is compared with.

    `peak` is the memory it took at most, in bytes, where that was measured.
    """

    what: str
    dtype: str
    contender: str
    seconds: list[float]
    base: list[float]
    peak: int | None = None

    @property
    def ratios(self) -> list[float]:
        """How many times as long as the base it takes, round by round."""
        return [mine / other for mine, other in zip(self.seconds, self.base, strict=True)]

    def cells(self) -> tuple[str, str, str, float, float, float, float]:
        """What the table says: the median in ms, then the median and the deciles of the ratios."""
        ratios = self.ratios
        low, *_, high = quantiles(ratios, n=10, method="inclusive") if len(ratios) > 1 else 2 * ratios
        middle = 1000 * median(self.seconds)
        return self.what, self.dtype, self.contender, middle, median(ratios), low, high


def taken(work: Work, device: torch.device) -> float:
    """The seconds that `work` takes: between two events in CUDA's stream, elsewhere by the clock.

    The clock is read when the device has done all that it was told, as MPS works on behind Python's back.
    """
    if device.type != "cuda":
        finish = torch.get_device_module(device).synchronize
        finish()
        start = perf_counter()
        work()
        finish()
        return perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream = torch.cuda.current_stream(device)
    torch.cuda.synchronize(device)
    first.record(stream)
    work()
    last.record(stream)
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1000


@torch.inference_mode()
def alternate(
    works: Mapping[str, Work],
    rounds: int,
    device: torch.device,
    warm: bool = False,
    least: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each work in each round, after a round that is not counted.

    Every round begins with another work. With `warm` each is done once more ahead of its time, so that what
    it reads lies in the cache. In a round that counts a work is done again until it has taken `least`
    seconds, and their mean is told: what disturbs the machine for a while meets short works as long ones.
    """
    names = list(works)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(1 + rounds):
        for k in range(len(names)):
            name = names[(i + k) % len(names)]
            if warm:
                works[name]()
            turn = [taken(works[name], device)]
            while i and sum(turn) < least:
                turn.append(taken(works[name], device))
            seconds[name].append(mean(turn))
    return {name: counted[1:] for name, counted in seconds.items()}


@torch.inference_mode()
def peak_memory(work: Work, device: torch.device) -> int | None:
    """The bytes that `work` holds at its peak, beside what is held already; None where nobody tells.

    On a CPU that is what Linux counts, after glibc has given back what it kept.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - held
    told, counter = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if device.type != "cpu" or not counter.exists():
        return None

    def held_and_peak() -> tuple[int, int]:
        lines = dict(line.split(":", 1) for line in told.read_text().splitlines())
        held, peak = (1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        return held, peak

    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    counter.write_text("5")  # the peak counts from here
    held, _ = held_and_peak()
    work()
    return held_and_peak()[1] - held


def rows(
    what: str,
    dtype: torch.dtype,
    seconds: Mapping[str, list[float]],
    peaks: Mapping[str, int | None] | None = None,
) -> list[Row]:
    """The table's rows of works that were measured together; the others are held against the first."""
    base = next(iter(seconds.values()))
    kind = str(dtype).removeprefix("torch.")
    peaks = peaks or {}
    return [Row(what, kind, name, counted, base, peaks.get(name)) for name, counted in seconds.items()]


def machine(device: torch.device) -> dict[str, Any]:
    """What was measured on: processor, threads, versions."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = told.partition("model name\t: ")[2].partition("\n")[0] or platform.machine()
    versions = {name: metadata.version(name) for name in ("torch", "diffusers") if util.find_spec(name)}
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "cpu": cpu,
        **gpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }
